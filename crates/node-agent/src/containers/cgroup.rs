//! Control groups of containers: version 1 (one hierarchy per controller), version 2, or both mixed.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

const MOUNT: &str = "/sys/fs/cgroup";
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Every hierarchy that may have the group.
fn hierarchies() -> Vec<PathBuf> {
    let mount = Path::new(MOUNT);
    if mount.join("cgroup.procs").exists() {
        return vec![mount.to_path_buf()];
    }
    let entries = fs::read_dir(mount).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn groups(cgroup: &str) -> impl Iterator<Item = PathBuf> {
    let relative = cgroup.trim_start_matches('/').to_owned();
    hierarchies().into_iter().map(move |hierarchy| hierarchy.join(&relative)).filter(|group| group.exists())
}

/// Processes in the group, in any hierarchy.
pub(crate) fn processes(cgroup: &str) -> Vec<i32> {
    let mut pids: Vec<i32> = groups(cgroup)
        .filter_map(|group| fs::read_to_string(group.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Kills every process of the group and waits, up to ten seconds, until none is left.
pub(crate) fn kill(cgroup: &str) -> io::Result<()> {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let pids = processes(cgroup);
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "processes {} of {cgroup} do not end: look at them with ps, they may wait for a device",
                    pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
                ),
            ));
        }
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Makes the group in the hierarchy of version 2, where that is; containers' runtimes make their own everywhere else. What
/// can't be made is missed by those who need it, and they say so.
pub(crate) fn make(cgroup: &str) {
    let unified = hierarchies().into_iter().find(|hierarchy| hierarchy.join("cgroup.controllers").exists());
    if let Some(hierarchy) = unified {
        let _ = fs::create_dir_all(hierarchy.join(cgroup.trim_start_matches('/')));
    }
}

/// Removes the group with those below it from every hierarchy, as far as no process is in them.
pub(crate) fn remove(cgroup: &str) {
    groups(cgroup).for_each(|group| remove_below(&group, DEEPEST));
}

/// A container that may make groups can make them deeper; nobody else does.
const DEEPEST: usize = 16;

fn remove_below(group: &Path, depth: usize) {
    if depth > 0 {
        children(group).for_each(|child| remove_below(&group.join(child), depth - 1));
    }
    let _ = fs::remove_dir(group);
}

fn children(group: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups.filter_map(|entry| entry.file_name().into_string().ok())
}

/// The names of the groups in a group, in any hierarchy.
pub(crate) fn names(cgroup: &str) -> BTreeSet<String> {
    groups(cgroup).flat_map(|group| children(&group)).collect()
}

/// Whether the kernel has killed a process of the group for its memory limit.
pub(crate) fn out_of_memory(cgroup: &str) -> bool {
    groups(cgroup).any(|group| {
        ["memory.oom_control", "memory.events"].iter().any(|file| {
            fs::read_to_string(group.join(file)).is_ok_and(|text| {
                text.lines()
                    .any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
            })
        })
    })
}

#[cfg(test)]
#[test]
fn groups_go_with_those_below_them() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("pod/app-0/inner")).unwrap();
    fs::create_dir_all(root.path().join("pod/app-1")).unwrap();
    remove_below(&root.path().join("pod"), DEEPEST);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    // What is not empty stays, as a group with processes would.
    fs::create_dir_all(root.path().join("pod/app-0")).unwrap();
    fs::write(root.path().join("pod/app-0/process"), "").unwrap();
    remove_below(&root.path().join("pod"), DEEPEST);
    assert!(root.path().join("pod/app-0/process").exists());
}
