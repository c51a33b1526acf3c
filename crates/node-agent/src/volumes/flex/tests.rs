use std::os::unix::fs::PermissionsExt;

use k8s_openapi::{ByteString, api::core::v1::Pod};
use linux::Kernel;

use super::*;

struct World {
    _directory: tempfile::TempDir,
    flex: Flex,
    layout: Layout,
    plugins: PathBuf,
}

impl World {
    fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let (plugins, root) = (directory.path().join("exec"), directory.path().join("node"));
        fs::create_dir_all(&root).unwrap();
        let flex = Flex::new(plugins.clone());
        World { _directory: directory, flex, layout: Layout::new(root), plugins }
    }

    /// Installs a driver that does these lines of shell for each command, and writes down how it was called.
    fn driver(&self, script: &str) -> PathBuf {
        let place = self.plugins.join("example~disk");
        fs::create_dir_all(&place).unwrap();
        let (draft, program) = (place.join(".disk"), place.join("disk"));
        let calls = self.calls();
        let text = format!("#!/bin/sh\necho \"$*\" >> {}\ncase $1 in\n{script}\nesac\n", calls.display());
        fs::write(&draft, text).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&draft, &program).unwrap();
        program
    }

    fn calls(&self) -> PathBuf {
        self.plugins.parent().unwrap().join("calls")
    }

    fn called(&self) -> Vec<String> {
        let lines = fs::read_to_string(self.calls()).unwrap_or_default();
        let _ = fs::remove_file(self.calls());
        lines.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
    }

    fn set_up(&self) -> Result<(), String> {
        let volume = FlexVolume { driver: "example/disk".into(), ..FlexVolume::default() };
        let publication = publication();
        let options =
            options(&volume, &Pod::default(), &publication, None).map_err(|error| error.to_string())?;
        self.flex
            .set_up(&Kernel, &self.layout, &volume, &options, &publication)
            .map_err(|error| error.to_string())
    }

    fn tear_down(&self) -> Result<Option<Leftover>, String> {
        let directory = VolumeDirectory { plugin: "example~disk".into(), name: "data".into(), block: false };
        tear_down(&Kernel, &self.layout, "u1", &directory).map_err(|error| error.to_string())
    }

    fn target(&self) -> PathBuf {
        self.layout.volume("u1", "example~disk", "data")
    }
}

fn publication() -> Publication {
    Publication { uid: "u1".into(), volume: "data".into(), ..Publication::default() }
}

const GOOD: &str = "init) echo '{\"status\": \"Success\", \"capabilities\": {\"attach\": false}}';;
mount) mount -t tmpfs flex \"$2\" && echo \"$3\" > \"$2/options\" && echo '{\"status\": \"Success\"}';;
unmount) umount \"$2\" && echo '{\"status\": \"Success\"}';;
*) echo '{\"status\": \"Not supported\"}'; exit 1;;";

#[test]
fn a_driver_is_called_once_for_each_change() {
    let world = World::new();
    world.driver(GOOD);
    world.set_up().unwrap();
    assert_eq!(world.called(), ["init", "mount"]);
    let told: BTreeMap<String, String> =
        serde_json::from_str(&fs::read_to_string(world.target().join("options")).unwrap()).unwrap();
    assert_eq!(told["kubernetes.io/readwrite"], "rw");
    assert_eq!(told["kubernetes.io/pvOrVolumeName"], "data");
    world.set_up().unwrap();
    assert_eq!(world.called(), Vec::<String>::new(), "it is mounted");
    assert_eq!(world.tear_down(), Ok(None));
    assert_eq!(world.called(), ["unmount"]);
    assert!(!world.target().exists());
    assert_eq!(world.tear_down(), Ok(None), "again");
    assert_eq!(world.called(), Vec::<String>::new());
    // One that is new at its place is initialised anew.
    world.set_up().unwrap();
    assert_eq!(world.called(), ["mount"]);
    world.tear_down().unwrap();
    world.driver(GOOD);
    world.set_up().unwrap();
    assert_eq!(world.called(), ["unmount", "init", "mount"]);
    // It goes, and what it mounted does not keep the pod.
    fs::remove_dir_all(&world.plugins).unwrap();
    assert_eq!(world.tear_down(), Ok(None));
    assert!(!world.target().exists());
}

#[test]
fn whatever_a_driver_does_wrong_is_told_and_leaves_nothing() {
    let init = |answer: &str| format!("init) {answer};;\n*) echo '{{\"status\": \"Success\"}}';;");
    let mount = |answer: &str| {
        format!(
            "init) echo '{{\"status\": \"Success\", \"capabilities\": {{\"attach\": false}}}}';;\nmount) {answer};;"
        )
    };
    for (script, reason) in [
        (init("echo '{\"status\": \"Success\"}'"), "attaches volumes, which is not served"),
        (
            init("echo '{\"status\": \"Failure\", \"message\": \"no jq\"}'; exit 1"),
            "init command of the FlexVolume driver example/disk failed, status: Failure, reason: no jq",
        ),
        (
            mount("echo '{\"status\": \"Failure\", \"message\": \"no server\"}' >&2; exit 1"),
            "reason: no server",
        ),
        (mount("echo '{\"status\": \"Success\"}'; exit 3"), "did not end as its answer says: exit status: 3"),
        (mount("echo '{\"status\": \"Not supported\"}'; exit 1"), "status: Not supported"),
        (mount("echo mounted"), "gave no JSON object with a status, but \"mounted\""),
        (mount("true"), "but \"\""),
        (mount("echo '[]'"), "but \"[]\""),
        (mount("yes x | head -c 10000000"), "gave no JSON object"),
        (mount("kill -9 $$"), "gave no JSON object"),
    ] {
        let world = World::new();
        world.driver(&script);
        let error = world.set_up().expect_err(&script);
        assert!(error.contains(reason), "{script}: {error}");
        assert!(error.len() < 1000, "{}", error.len());
        assert!(!world.target().exists(), "{script}");
        assert_eq!(world.tear_down(), Ok(None), "{script}");
    }
}

#[test]
fn what_is_no_driver_is_refused() {
    let world = World::new();
    let program = world.driver(GOOD);
    for name in
        ["", "/", "a/", "/b", "../sh", "..", "a/../b", "a/b/c", ".a/b", "kubernetes.io/csi", "a b/c", "a/b\n"]
    {
        assert_eq!(
            Driver::find(&world.plugins, name).map(|driver| driver.program),
            Err(FlexError::Name(name.to_owned())),
            "{name}"
        );
    }
    assert!(matches!(Driver::find(&world.plugins, "example/other"), Err(FlexError::Missing { .. })));
    assert!(Driver::find(&world.plugins, "example/disk").is_ok());
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(
        Driver::find(&world.plugins, "example/disk").map(|driver| driver.name),
        Err(FlexError::NotExecutable(program))
    );
    assert!(is_plugin("example~disk") && !is_plugin(layout::CSI) && !is_plugin(layout::EMPTY_DIR));
}

#[test]
fn what_a_driver_leaves_in_the_directory_is_kept() {
    let world = World::new();
    world.driver(
        "init) echo '{\"status\": \"Success\", \"capabilities\": {\"attach\": false}}';;
mount) echo precious > \"$2/file\"; echo '{\"status\": \"Success\"}';;
unmount) echo '{\"status\": \"Success\"}';;",
    );
    world.set_up().unwrap();
    let left = world.tear_down().unwrap().expect("it is set aside");
    assert_eq!(fs::read_to_string(left.to.join("file")).unwrap(), "precious\n");
    assert!(!world.target().exists());
}

#[test]
fn options_are_those_of_kubelet() {
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "team"},
        "spec": {"serviceAccountName": "default", "containers": []}}))
    .unwrap();
    let mut volume =
        FlexVolume { driver: "example/disk".into(), fs_type: "ext4".into(), ..FlexVolume::default() };
    volume.options = [("server", "10.0.0.1"), ("kubernetes.io/fsType", "own")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let secret = |kind: &str| Secret {
        type_: Some(kind.to_owned()),
        data: Some([("key".to_owned(), ByteString(b"value".to_vec()))].into()),
        ..Secret::default()
    };
    let publication = Publication { group: Some(7), read_only: true, ..publication() };
    let told = options(&volume, &pod, &publication, Some(&secret("example/disk"))).unwrap();
    let expected = [
        ("kubernetes.io/fsType", "own"),
        ("kubernetes.io/mounterArgs.FsGroup", "7"),
        ("kubernetes.io/pod.name", "web"),
        ("kubernetes.io/pod.namespace", "team"),
        ("kubernetes.io/pod.uid", "u1"),
        ("kubernetes.io/pvOrVolumeName", "data"),
        ("kubernetes.io/readwrite", "ro"),
        ("kubernetes.io/secret/key", "dmFsdWU="),
        ("kubernetes.io/serviceAccount.name", "default"),
        ("server", "10.0.0.1"),
    ];
    assert_eq!(told, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    let refused = options(&volume, &pod, &publication, Some(&secret("Opaque"))).unwrap_err().to_string();
    assert!(refused.contains("\"Opaque\"") && refused.contains("takes those of its own name"), "{refused}");
}
