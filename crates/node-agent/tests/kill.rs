//! `kill -9` of the whole process at odd moments while pods come and go.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use common::{Sockets, is_root};
use linux::{Kernel, Mounts};
use serde_json::json;

struct Process {
    child: Child,
    commands: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Process {
    fn start(directory: &Path, node: &str) -> Process {
        let monitor = common::monitor().remove(0);
        let mut child = Command::new(Path::new(&monitor).with_file_name("one-node"))
            .arg(directory)
            .arg(node)
            .arg(&monitor)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the examples are built too: cargo test -p node-agent");
        let commands = child.stdin.take().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Process { child, commands, lines }
    }

    fn command(&mut self, value: serde_json::Value) {
        writeln!(self.commands, "{value}").unwrap();
    }

    /// Collects what is told of pods until `enough`.
    fn watch(
        &self,
        states: &mut BTreeMap<String, String>,
        enough: impl Fn(&BTreeMap<String, String>) -> bool,
    ) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !enough(states) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else { panic!("not in time: {states:?}") };
            let (name, state) = line.split_once(' ').unwrap();
            states.insert(name.to_owned(), state.to_owned());
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn pod(node: &str, name: &str, host: &Path) -> serde_json::Value {
    // A second start of a container would append a second line.
    let script = format!("trap 'exit 0' TERM; echo start >> /host/{name}; while :; do sleep 0.05; done");
    json!({"create": {"metadata": {"name": name}, "spec": {
        "nodeName": node, "terminationGracePeriodSeconds": 20,
        "containers": [{"name": "app", "image": "host", "command": ["sh", "-c", script], "volumeMounts": [
            {"name": "host", "mountPath": "/host"}, {"name": "memory", "mountPath": "/memory"}]}],
        "volumes": [{"name": "host", "hostPath": {"path": host}},
                    {"name": "memory", "emptyDir": {"medium": "Memory"}}]}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_nothing_is_lost_or_done_twice() {
    if !is_root() {
        return;
    }
    let directory = tempfile::Builder::new().prefix("orlop-kill-").tempdir().unwrap();
    let node = format!("kill-{}", std::process::id());
    let host = directory.path().join("host");
    std::fs::create_dir(&host).unwrap();
    let names: Vec<String> = (0..5).map(|number| format!("pod-{number}")).collect();

    for pause in [40, 90, 140, 200, 260, 330] {
        let mut process = Process::start(directory.path(), &node);
        names.iter().for_each(|name| process.command(pod(&node, name, &host)));
        std::thread::sleep(Duration::from_millis(pause));
        process.kill();
    }
    let mut process = Process::start(directory.path(), &node);
    names.iter().for_each(|name| process.command(pod(&node, name, &host)));
    let mut states = BTreeMap::new();
    process.watch(&mut states, |states| {
        names.iter().all(|name| states.get(name).is_some_and(|of| of == "Running 0"))
    });
    for name in &names {
        let file = host.join(name);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), "start\n", "{name} was started once");
    }

    names.iter().for_each(|name| process.command(json!({"delete": name})));
    for pause in [20, 60, 120] {
        std::thread::sleep(Duration::from_millis(pause));
        process.kill();
        process = Process::start(directory.path(), &node);
        names.iter().for_each(|name| process.command(json!({"delete": name})));
    }
    let root = directory.path().join("node");
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::read_dir(root.join("pods")).unwrap().count() > 0 {
        assert!(Instant::now() < deadline, "pods are left");
        std::thread::sleep(Duration::from_millis(20));
    }
    process.kill();
    let table = Kernel.mount_table().unwrap();
    let left: Vec<&PathBuf> = table.below(directory.path()).into_iter().map(|mount| &mount.target).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(std::fs::read_dir(root.join("runtime")).unwrap().count(), 0);
    node_agent::teardown(&node, &root, Sockets::new(vec![])).await.unwrap();
}
