//! The running `orlop up` of the demo.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::command::{Run, program};

const DRIVES: usize = 3;
const DRIVE_SIZE: &str = "1Gi";
const TEAR_DOWN: Duration = Duration::from_secs(90);

/// `orlop up --ephemeral` in a directory of its own.
pub(crate) struct Orlop {
    child: Child,
    dir: PathBuf,
    binary: PathBuf,
    kubeconfig: PathBuf,
}

impl Orlop {
    /// Starts it and returns when it printed that it is ready.
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Orlop> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
        let binary = target.join("debug/orlop").canonicalize().context("the build left no binary")?;
        let log = File::create(dir.join("orlop.log"))?;
        let kubeconfig = dir.join("kubeconfig");
        let mut command = Command::new(&binary);
        command.args(["up", "--ephemeral", "--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.join("data"));
        command.arg("--kubeconfig").arg(&kubeconfig);
        for _ in 0..DRIVES {
            command.args(["--loop-drive", DRIVE_SIZE]);
        }
        let began = Instant::now();
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0).spawn()?;
        let output = child.stdout.take().context("the output of orlop is piped")?;
        let mut lines = BufReader::new(output).lines();
        let ready = lines.find_map(|line| line.ok().filter(|line| line.starts_with("orlop is ready")));
        let orlop = Orlop { child, dir: dir.to_owned(), binary, kubeconfig };
        let Some(ready) = ready else {
            bail!("orlop up ended before it was ready:\n{}", orlop.last_log_lines());
        };
        println!("{ready}   ({:.0} ms after start)", began.elapsed().as_secs_f64() * 1e3);
        Ok(orlop)
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    /// Orlop's data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// One call of the built-in client.
    pub(crate) fn client(&self, arguments: &[&str]) -> Run {
        program(&self.binary, arguments).env("KUBECONFIG", &self.kubeconfig)
    }

    /// A watch of the built-in client whose output is read line by line.
    pub(crate) fn watch(&self, kind: &str) -> anyhow::Result<Child> {
        let mut command = Command::new(&self.binary);
        command.args(["get", kind, "--watch", "-o", "json"]).env("KUBECONFIG", &self.kubeconfig);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?)
    }

    /// Blocks until Ctrl-C. Orlop runs in a process group of its own, so only this process is interrupted.
    pub(crate) fn wait_for_interrupt(&self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(tokio::signal::ctrl_c()).context("waiting for Ctrl-C")
    }

    /// Asks it to stop and to tear down, and waits for that.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        let pid = Pid::from_child(&self.child);
        if self.child.try_wait()?.is_none() {
            kill_process(pid, Signal::INT).context("interrupting orlop")?;
        }
        let deadline = Instant::now() + TEAR_DOWN;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        if let Ok(pidfd) = pidfd {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: 0 };
            let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            if rustix::event::poll(&mut ended, Some(&timeout))? == 0 {
                self.child.kill()?;
                self.child.wait()?;
                bail!("orlop did not stop within {} s of the interrupt", TEAR_DOWN.as_secs());
            }
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "orlop ended with {status}:\n{}", self.last_log_lines());
        Ok(())
    }

    /// The end of Orlop's log, for a failure's report.
    pub(crate) fn last_log_lines(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("orlop.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}
