//! The steps of a claim as they happen, read from API watches and from the kernel's mount table.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::orlop::Orlop;

const PATIENCE: Duration = Duration::from_secs(60);

/// All steps, in the order in which they usually happen.
pub(super) const STEPS: [&str; 7] = [
    "claim created",
    "node chosen",
    "volume created",
    "claim bound",
    "staged",
    "published",
    "container running",
];

/// What a source tells: one step's name, and more about it.
struct Step {
    name: &'static str,
    detail: String,
    at: Instant,
}

/// The sources of a walk, all watching.
pub(super) struct Walk {
    began: Instant,
    steps: Receiver<Step>,
    watches: Vec<Child>,
}

/// Where the volume ended up.
pub(super) struct Mounted {
    /// The pod's mount of the volume.
    pub(super) target: PathBuf,
    /// Where Orlop mounts drives.
    data: PathBuf,
}

impl Mounted {
    /// Where the drive that holds the volume is mounted: the mount of Orlop's with the same device.
    pub(super) fn drive_mount(&self) -> anyhow::Result<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let fields =
            mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|fields| fields.len() > 4);
        let fields: Vec<_> = fields.collect();
        let device =
            fields.iter().find(|f| Path::new(f[4]) == self.target).context("the target is not mounted")?[2];
        let whole =
            fields.iter().find(|f| f[2] == device && f[3] == "/" && Path::new(f[4]).starts_with(&self.data));
        Ok(whole.context("the drive of the volume is not mounted")?[4].into())
    }
}

impl Walk {
    /// Begins to watch; what happens from now on is told by `follow`.
    pub(super) fn start(orlop: &Orlop) -> anyhow::Result<Walk> {
        let (tell, steps) = channel();
        let mut watches = Vec::new();
        for (kind, read) in WATCHES {
            let mut watch = orlop.watch(kind)?;
            let lines = BufReader::new(watch.stdout.take().context("the watch's output is piped")?).lines();
            let tell = tell.clone();
            std::thread::spawn(move || {
                for event in
                    lines.map_while(Result::ok).filter_map(|line| serde_json::from_str::<Value>(&line).ok())
                {
                    for (name, detail) in read(&event) {
                        tell.send(Step { name, detail, at: Instant::now() }).ok();
                    }
                }
            });
            watches.push(watch);
        }
        let data = orlop.data();
        std::thread::spawn(move || watch_mounts(&data, &tell));
        Ok(Walk { began: Instant::now(), steps, watches })
    }

    /// Prints each of `expected` as it happens, once, until all have happened.
    pub(super) fn follow(mut self, expected: &[&'static str]) -> anyhow::Result<Mounted> {
        let mut seen = BTreeSet::new();
        let mut mounted = None;
        let deadline = Instant::now() + PATIENCE;
        while seen.len() < expected.len() {
            let step = match self.steps.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(step) => step,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    self.end();
                    bail!("after {} s only these steps were seen: {seen:?}", PATIENCE.as_secs());
                }
            };
            if step.name == "published" {
                mounted = Some(PathBuf::from(&step.detail));
            }
            if expected.contains(&step.name) && seen.insert(step.name) {
                let millis = step.at.saturating_duration_since(self.began).as_secs_f64() * 1e3;
                println!("{millis:>8.0} ms  {:<18} {}", step.name, step.detail);
            }
        }
        self.end();
        let target = mounted.context("the volume was published")?;
        let data = target
            .ancestors()
            .find(|path| path.ends_with("data"))
            .context("the target lies in the data directory")?;
        Ok(Mounted { data: data.to_owned(), target })
    }

    fn end(&mut self) {
        for watch in &mut self.watches {
            watch.kill().ok();
            watch.wait().ok();
        }
    }
}

type ReadEvent = fn(&Value) -> Vec<(&'static str, String)>;

/// A kind to watch, and what its events tell.
const WATCHES: &[(&str, ReadEvent)] = &[("pvc", claim_steps), ("pv", volume_steps), ("pods", pod_steps)];

fn claim_steps(event: &Value) -> Vec<(&'static str, String)> {
    let claim = &event["object"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut steps = vec![("claim created", text(&claim["metadata"]["name"]))];
    if let Some(node) = claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].as_str() {
        steps.push(("node chosen", node.to_owned()));
    }
    if claim["status"]["phase"] == "Bound" {
        let capacity = text(&claim["status"]["capacity"]["storage"]);
        steps.push(("claim bound", format!("{} {capacity}", text(&claim["spec"]["volumeName"]))));
    }
    steps
}

fn volume_steps(event: &Value) -> Vec<(&'static str, String)> {
    let handle = event["object"]["spec"]["csi"]["volumeHandle"].as_str();
    handle.map(|handle| ("volume created", format!("on drive {handle}"))).into_iter().collect()
}

fn pod_steps(event: &Value) -> Vec<(&'static str, String)> {
    let running = &event["object"]["status"]["containerStatuses"][0]["state"]["running"];
    if running.is_null() {
        return Vec::new();
    }
    vec![("container running", event["object"]["spec"]["nodeName"].as_str().unwrap_or_default().to_owned())]
}

/// Tells of stage and publish mounts below `data`; the kernel wakes us whenever the mount table changes.
fn watch_mounts(data: &Path, tell: &Sender<Step>) {
    let Ok(table) = std::fs::File::open("/proc/self/mountinfo") else { return };
    let until = Instant::now() + PATIENCE;
    let mut told = BTreeSet::new();
    while Instant::now() < until {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let targets = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|t| Path::new(t).starts_with(data));
        for target in targets {
            let name = match target {
                t if t.ends_with("/globalmount") => "staged",
                t if t.contains("/volumes/kubernetes.io~csi/") && t.ends_with("/mount") => "published",
                _ => continue,
            };
            if told.insert(target.to_owned())
                && tell.send(Step { name, detail: target.to_owned(), at: Instant::now() }).is_err()
            {
                return;
            }
        }
        let tick = Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut [PollFd::new(&table, PollFlags::PRI)], Some(&tick)).ok();
    }
}

/// Asks `holds` again and again until it is true, for what no command can wait for.
pub(super) fn wait_until(what: &str, holds: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        if Instant::now() > deadline {
            bail!("it is not true after {} s that {what}", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
