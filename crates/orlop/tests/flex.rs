//! FlexVolume drivers: the example's, as a user installs it, behind a claim and as a pod's own volume.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Place, kubectls, wait_until};

fn install(plugins: &Path) {
    let place = plugins.join("example~directory");
    fs::create_dir_all(&place).expect("the driver's place");
    // Under another name first, as the protocol asks installers to.
    let draft = place.join(".directory");
    fs::copy(example("flex-directory"), &draft).expect("a copy");
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).expect("executable");
    fs::rename(&draft, place.join("directory")).expect("installed");
}

fn example(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

#[test]
fn the_example_runs_from_its_installation_to_its_end() {
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let place = Place::new();
    let (plugins, shown) = (place.path().join("exec"), place.path().join("shown"));
    let manifest = fs::read_to_string(example("flex-volume.yaml")).expect("the example");
    let manifest = manifest.replace("/tmp/orlop-example", &shown.display().to_string());
    let file = place.path().join("manifest.yaml");
    fs::write(&file, manifest).expect("writing");
    fs::create_dir_all(shown.join("pages")).expect("pages");
    fs::write(shown.join("pages/page"), "a page\n").expect("a page");

    let orlop = place.up(&["--volume-plugin-dir", &plugins.display().to_string()]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    ctl(&format!("apply -f {}", file.display()));
    // Without the driver it is told where it would have to be; once it is there, no hand is needed.
    let events = "get events --field-selector involvedObject.name=site -o jsonpath={.items[*].message}";
    let missing = format!("put its program at {}", plugins.join("example~directory/directory").display());
    wait_until("the driver is missed", || ctl(events).contains(&missing));
    install(&plugins);
    ctl("wait --for=condition=Ready pod/site --timeout=60s");
    wait_until("the container wrote through its sub-path", || {
        fs::read_to_string(shown.join("shared/site/html/index.html")).is_ok_and(|text| text == "hello\n")
    });
    wait_until("it reads the other", || ctl("logs site").contains("a page"));

    // At kubelet's paths, and read-only where that was asked for.
    let uid = ctl("get pod site -o jsonpath={.metadata.uid}");
    let volumes = place.data().join("nodes/orlop-0/pods").join(&uid).join("volumes/example~directory");
    assert_eq!(fs::read_to_string(volumes.join("pages/page")).expect("mounted"), "a page\n");
    fs::write(volumes.join("pages/page"), "other").expect_err("read-only");
    fs::write(volumes.join("shared/new"), "text").expect("writable");

    // A restart finds them; the driver is not asked again.
    orlop.kill();
    let orlop = place.up(&["--volume-plugin-dir", &plugins.display().to_string()]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    ctl("wait --for=condition=Ready pod/site --timeout=60s");
    assert_eq!(ctl("get pod site -o jsonpath={.status.containerStatuses[0].restartCount}"), "0");

    ctl("delete pod site --timeout=60s");
    assert!(!volumes.exists(), "all is unmounted");
    assert_eq!(fs::read_to_string(shown.join("shared/new")).expect("kept"), "text");
    assert_eq!(fs::read_to_string(shown.join("pages/page")).expect("kept"), "a page\n");
    orlop.stop();
}
