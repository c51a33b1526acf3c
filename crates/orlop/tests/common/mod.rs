//! A running `orlop up` for the tests: its own directory, its own drives, and nothing left afterwards.
#![allow(dead_code, unreachable_pub, reason = "a module of every test binary, and each uses its part")]

pub mod caller;
pub mod cluster;
pub mod driver;
pub mod world;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use rustix::process::{Pid, Signal, kill_process};

pub const BINARY: &str = env!("CARGO_BIN_EXE_orlop");
/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory of one test. When it is dropped, everything below it is torn down, whatever the test's end.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        require_root();
        Place {
            dir: tempfile::Builder::new().prefix("orlop-test.").tempdir().expect("a temporary directory"),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.path().join("kubeconfig")
    }

    /// `orlop up` on this directory with more arguments, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(["up", "--listen", "127.0.0.1:0", "--data-dir"]).arg(self.data());
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Starts Orlop and waits until it says that it is ready.
    pub fn up(&self, arguments: &[&str]) -> Orlop {
        let log = File::options().create(true).append(true).open(self.log()).expect("the log");
        let mut child =
            self.command(arguments).stdout(Stdio::piped()).stderr(log).spawn().expect("starting orlop");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                tell.send(line).ok();
            }
        });
        let orlop = Orlop { child, kubeconfig: self.kubeconfig(), log: self.log() };
        let line = told
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("orlop is not ready:\n{}", orlop.log_end()));
        assert!(line.starts_with("orlop is ready: kubeconfig="), "{line}");
        orlop
    }

    /// Runs `orlop up` that is expected to refuse, and gives its exit code and error output.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let mut child =
            self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starting");
        wait_until("orlop up refuses", || child.try_wait().expect("waiting").is_some());
        let output = child.wait_with_output().expect("waiting");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "orlop up started, though it should refuse:\n{error}");
        error
    }

    fn log(&self) -> PathBuf {
        self.path().join("orlop.log")
    }

    /// Mounts, loop devices, processes, subvolumes: what still uses the directory.
    pub fn leftovers(&self) -> Vec<String> {
        let name = self.path().display().to_string();
        let uses = |text: &str| -> Vec<String> {
            text.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect()
        };
        let mut left = uses(&std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo"));
        left.extend(uses(&run("losetup", &["-l", "-n", "-O", "NAME,BACK-FILE"])));
        left.extend(uses(&run("ps", &["-eo", "pid=,args="])));
        left
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.data().join("layout.json").exists() {
            let down = Command::new(BINARY).args(["down", "--data-dir"]).arg(self.data()).output();
            if !down.as_ref().is_ok_and(|output| output.status.success()) {
                eprintln!("tearing down {} failed: {down:?}", self.path().display());
            }
        }
    }
}

/// The process. Dropping it kills it; stopping it in order is [`Orlop::stop`].
pub struct Orlop {
    child: Child,
    kubeconfig: PathBuf,
    log: PathBuf,
}

impl Orlop {
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub async fn client(&self) -> kube::Client {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).expect("a kubeconfig");
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        kube::Client::try_from(config.expect("a valid kubeconfig")).expect("a client")
    }

    /// Runs a command against this Orlop and gives what it printed; it must succeed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.attempt(program, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?} failed: {error}\n{}", self.log_end());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn attempt(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        command.output().unwrap_or_else(|error| panic!("starting {program}: {error}"))
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().expect("killing");
        self.child.wait().expect("waiting");
    }

    /// SIGTERM, and a clean end.
    pub fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("signalling");
        wait_until("orlop ends after SIGTERM", || self.child.try_wait().expect("waiting").is_some());
        let status = self.child.wait().expect("waiting");
        assert!(status.success(), "orlop ended with {status}:\n{}", self.log_end());
    }

    pub fn log_end(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Orlop {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A loop device over a file of the test's own; detached when dropped.
pub struct LoopDevice(pub String);

impl LoopDevice {
    pub fn new(place: &Place, name: &str) -> LoopDevice {
        let file = place.path().join(name).display().to_string();
        run("truncate", &["-s", "512M", &file]);
        LoopDevice(run("losetup", &["--find", "--show", &file]).trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run("losetup", &["-d", &self.0]);
    }
}

/// The kubectl binaries to test with; `cargo xtask test` names them.
pub fn kubectls() -> Vec<String> {
    let named = std::env::var_os("ORLOP_KUBECTLS").unwrap_or_else(|| "kubectl".into());
    let found: Vec<String> = std::env::split_paths(&named)
        .map(|path| path.display().to_string())
        .filter(|path| !path.is_empty() && Command::new(path).args(["version", "--client"]).output().is_ok())
        .collect();
    if found.is_empty() {
        assert!(std::env::var_os("CI").is_none(), "no kubectl of version 1.32 or newer; install one");
        eprintln!("NOT RUN: there is no kubectl of version 1.32 or newer on this machine");
    }
    found
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asks until it holds, for what nothing announces.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not true within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A small generator of repeatable numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// The seed of random moments: `ORLOP_SEED`, or another each time, which is printed.
pub fn seed() -> u64 {
    let named = std::env::var("ORLOP_SEED").ok().and_then(|text| text.parse().ok());
    let seed = named.unwrap_or_else(|| clock::now().as_nanosecond() as u64);
    eprintln!("ORLOP_SEED={seed} repeats these moments");
    seed
}

/// The whole system needs root; a run without it must not look like a passed one.
fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "these tests mount drives: run them as root");
}
