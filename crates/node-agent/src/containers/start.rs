//! Starting a container: its directory is made and written down, its root mounted, and its monitor started.

use std::{
    ffi::OsString,
    io::{self, Read},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use linux::{Attributes, FilesystemMount, Host};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use super::attempt::{self, AttemptRecord};
use crate::{records, volumes::VolumeError};

/// Bytes of what a monitor says that are passed on.
const LONGEST_MESSAGE: u64 = 1024;
/// How long a runtime may take to start a container.
const DEADLINE: Duration = Duration::from_mins(1);

/// Makes the attempt's directory complete. Repeating it for an attempt that was not begun does no harm. Blocks.
pub(crate) fn prepare(
    host: &dyn Host,
    directory: &Path,
    record: &AttemptRecord,
    mut config: Value,
    termination_log: &str,
    hosts: Option<&str>,
) -> Result<(), VolumeError> {
    let files = |source| VolumeError::Files { action: "write the container's bundle", source };
    for name in ["", "upper", "work", "rootfs"] {
        let mode = if name == "upper" { 0o755 } else { 0o700 };
        host.make_directory(&directory.join(name), mode)?;
    }
    let message = directory.join("termination-log");
    std::fs::write(&message, "").map_err(files)?;
    std::fs::set_permissions(&message, std::os::unix::fs::PermissionsExt::from_mode(0o666)).map_err(files)?;
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.push(json!({"destination": termination_log, "type": "bind", "source": message,
                           "options": ["bind", "rprivate", "rw"]}));
    }
    if let (Some(hosts), Some(mounts)) = (hosts, config["mounts"].as_array_mut()) {
        let known = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let file = directory.join("hosts");
        std::fs::write(&file, format!("{known}\n{hosts}")).map_err(files)?;
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .map_err(files)?;
        mounts.push(json!({"destination": "/etc/hosts", "type": "bind", "source": file,
                           "options": ["bind", "rprivate", "ro"]}));
    }
    records::replace(&directory.join("config.json"), config.to_string().as_bytes()).map_err(files)?;
    records::write_durably(&directory.join("attempt.json"), record).map_err(files)?;
    let rootfs = directory.join("rootfs");
    if host.mount_table()?.at(&rootfs).is_none() {
        let (upper, work) = (text(&directory.join("upper")), text(&directory.join("work")));
        let options = vec![
            ("lowerdir", Some("/")),
            ("upperdir", Some(upper.as_str())),
            ("workdir", Some(work.as_str())),
        ];
        let attributes = Attributes::default();
        host.mount(
            &FilesystemMount { filesystem: "overlay", source: "overlay", options, attributes },
            &rootfs,
        )?;
    }
    Ok(())
}

/// The lines that a pod adds to `/etc/hosts`; None if there are none.
pub(crate) fn hosts(pod: &Pod) -> Option<String> {
    let aliases = pod.spec.as_ref()?.host_aliases.as_ref().filter(|aliases| !aliases.is_empty())?;
    let mut text = "# Entries added by HostAliases.\n".to_owned();
    for alias in aliases {
        let names = alias.hostnames.clone().unwrap_or_default();
        text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    Some(text)
}

/// Starts the monitor and waits until the container runs or has failed to start; which of the two, its records tell.
pub(crate) async fn launch(monitor: &[OsString], directory: &Path) -> io::Result<()> {
    let (program, arguments) = monitor
        .split_first()
        .ok_or_else(|| io::Error::other("no program for the container monitor is configured"))?;
    let errors = std::fs::File::options().create(true).append(true).open(directory.join("monitor.log"))?;
    // What an earlier try has said was told then.
    errors.set_len(0)?;
    let failed = |error: io::Error| {
        let program = Path::new(program).display();
        io::Error::other(format!("{program} can't be run: {}", linux::in_words(&error)))
    };
    let mut child = Command::new(program)
        .args(arguments)
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(failed)?;
    let Some(out) = child.stdout.take() else { return Ok(()) };
    let mut line = String::new();
    let told = tokio::time::timeout(DEADLINE, BufReader::new(out).read_line(&mut line)).await;
    match told {
        Ok(Ok(0)) => {
            let mut said = String::new();
            if let Ok(log) = std::fs::File::open(directory.join("monitor.log")) {
                let _ = log.take(LONGEST_MESSAGE).read_to_string(&mut said);
            }
            let ended = attempt::monitor_of(directory)?.is_none() && !directory.join("exit.json").exists();
            if ended {
                Err(io::Error::other(format!("the container's monitor has failed: {}", said.trim())))
            } else {
                Ok(())
            }
        }
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the OCI runtime takes longer than a minute to start a container",
        )),
    }
    // The child is reaped by the async runtime; what it does is known from its records.
}

/// The control group of a container; pods of a node lie below one group.
pub(crate) fn cgroup(node: &str, uid: &str, container: &str, number: u32) -> String {
    format!("/orlop/{node}/{uid}/{container}-{number}")
}

/// The control group of all pods of a node.
pub(crate) fn node_cgroup(node: &str) -> String {
    format!("/orlop/{node}")
}

/// The control group of all containers of a pod.
pub(crate) fn pod_cgroup(node: &str, uid: &str) -> String {
    format!("/orlop/{node}/{uid}")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The log file of an attempt.
pub(crate) fn log_path(pod_logs: &Path, container: &str, number: u32) -> PathBuf {
    pod_logs.join(container).join(format!("{number}.log"))
}
