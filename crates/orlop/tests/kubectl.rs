//! The walk with real kubectl binaries, without `--validate=false`.

mod common;

use common::{Place, kubectls, wait_until};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/quickstart.yaml");

#[test]
fn kubectl_does_its_everyday_work() {
    for kubectl in kubectls() {
        let place = Place::new();
        let orlop = place.up(&["--loop-drive", "512Mi"]);
        let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());

        let applied = ctl(&format!("apply -f {QUICKSTART}"));
        assert!(applied.contains("persistentvolumeclaim/journal created"), "{applied}");
        ctl("wait --for=condition=Ready pod/writer --timeout=60s");
        ctl("wait --for=jsonpath={.status.phase}=Bound pvc/journal --timeout=60s");
        let again = ctl(&format!("apply -f {QUICKSTART}"));
        assert!(again.lines().all(|line| line.ends_with("unchanged")), "{again}");

        assert!(ctl("get pods").contains("writer   1/1     Running   0"), "{}", ctl("get pods"));
        assert!(ctl("get pvc,pv,sc,nodes,csidrivers,csinodes,drives -o wide").contains("journal"));
        assert!(ctl("get pod writer -o yaml").contains("phase: Running"));
        assert!(ctl("get pvc -o json").contains("\"Bound\""));
        let described = ctl("describe pod writer");
        assert!(described.contains("Scheduled") && described.contains("Started"), "{described}");
        assert!(
            ctl("describe pvc journal").contains("Used By:       writer"),
            "{}",
            ctl("describe pvc journal")
        );
        let events = ctl("get events");
        assert!(!events.contains("Warning"), "a healthy walk warns of nothing:\n{events}");
        assert!(ctl("describe node orlop-0").contains("orlop-0"));
        wait_until("the log arrives", || ctl("logs writer").contains("started in"));

        ctl("label pod writer tier=test");
        assert!(ctl("get pods -l tier=test -o name").contains("pod/writer"));
        ctl("annotate pvc journal note=kept");
        ctl(r#"patch pvc journal --type=merge -p {"metadata":{"labels":{"patched":"merge"}}}"#);
        ctl(
            r#"patch pvc journal --type=json -p [{"op":"add","path":"/metadata/labels/json","value":"yes"}]"#,
        );
        ctl(r#"patch pod writer -p {"metadata":{"labels":{"patched":"strategic"}}}"#);
        let labels = ctl("get pvc journal --show-labels");
        assert!(labels.contains("json=yes") && labels.contains("patched=merge"), "{labels}");
        let edited = std::process::Command::new(&kubectl)
            .args(["edit", "pvc", "journal"])
            .env("KUBECONFIG", orlop.kubeconfig())
            .env("KUBE_EDITOR", "sed -i s/kept/edited/")
            .output()
            .unwrap();
        assert!(edited.status.success(), "{edited:?}");
        assert!(ctl("get pvc journal -o yaml").contains("note: edited"));
        assert!(ctl("explain pvc.spec.resources").contains("requests"));

        let wrong =
            orlop.attempt(&kubectl, &["patch", "pvc", "journal", "-p", r#"{"spec":{"volumeName":"other"}}"#]);
        assert!(
            String::from_utf8_lossy(&wrong.stderr).contains("spec is immutable after creation"),
            "{wrong:?}"
        );

        ctl(&format!("delete -f {QUICKSTART} --timeout=60s"));
        wait_until("the volume is gone", || ctl("get pv -o name").is_empty());
        orlop.stop();
    }
}

#[test]
fn a_request_without_a_credential_is_refused() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    let config = std::fs::read_to_string(orlop.kubeconfig()).unwrap();
    let server = config
        .lines()
        .find_map(|line| line.trim().strip_prefix("server: "))
        .unwrap()
        .trim_matches('"')
        .to_owned();
    for kubectl in kubectls() {
        let bare = [
            "--kubeconfig=/dev/null",
            "--server",
            &server,
            "--insecure-skip-tls-verify",
            "--token=wrong",
            "get",
            "pods",
        ];
        let output = orlop.attempt(&kubectl, &bare);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("logged in"), "{error}");
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(orlop.kubeconfig()), 0o600);
    assert_eq!(mode(&place.data()), 0o700);
    orlop.stop();
}
