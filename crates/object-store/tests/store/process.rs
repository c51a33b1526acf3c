//! Two processes and one file; a process that is killed while it writes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use object_store::{OpenError, Options, Precondition, Store};

use crate::{pod, run, stamped};

const PATH: &str = "ORLOP_TEST_STORE";

/// Not a test: what the other process does. Writes objects and says which are acknowledged.
#[test]
#[ignore = "run by the tests below in a process of its own"]
fn writer() {
    let Ok(path) = std::env::var(PATH) else { return };
    let store = Store::open(Path::new(&path), Options::default()).unwrap();
    run(async {
        for number in 0.. {
            store.put(pod(&format!("p{number}")), Precondition::Absent, stamped("x")).await.unwrap();
            println!("acknowledged {number}");
        }
    });
}

/// Killed when dropped.
struct Writer(Child);

impl Writer {
    fn start(path: &Path) -> (Writer, impl Iterator<Item = u64>) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "process::writer", "--ignored", "--nocapture"]);
        let mut child = command.env(PATH, path).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let numbers =
            lines.map_while(Result::ok).filter_map(|line| line.split("acknowledged ").nth(1)?.parse().ok());
        (Writer(child), numbers)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_killed_process_loses_nothing_and_frees_its_lock() {
    let directory = tempfile::tempdir().unwrap();
    for (round, kill_after) in [1, 5, 23].into_iter().enumerate() {
        let path = directory.path().join(format!("store-{round}.redb"));
        let (writer, mut acknowledged) = Writer::start(&path);
        let mut last = acknowledged.by_ref().nth(kill_after).unwrap();

        let error = Store::open(&path, Options::default()).unwrap_err();
        assert!(matches!(error, OpenError::Locked { .. }), "{error}");
        assert!(
            error.to_string().contains("store-") && error.to_string().contains("another process"),
            "{error}"
        );

        drop(writer);
        last = acknowledged.last().unwrap_or(last);
        let store = Store::open(&path, Options::default()).unwrap();
        for number in 0..=last {
            assert!(
                store.get(&pod(&format!("p{number}"))).is_some(),
                "acknowledged {number} of {last} is lost"
            );
        }
        run(store.close());
    }
}
