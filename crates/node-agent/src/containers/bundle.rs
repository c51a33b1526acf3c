//! The OCI configuration of a container of image `host`. Pure.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use linux::DeviceNumber;
use serde_json::{Value, json};
use values::Quantity;

use super::capabilities;

/// The image that stands for the host's own root file system.
pub(crate) const HOST_IMAGE: &str = "host";

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether a container can be run without an image.
pub(crate) fn is_host_image(container: &Container) -> bool {
    matches!(container.image.as_deref(), Some(HOST_IMAGE | "host:latest"))
}

/// A volume, or part of one, at its place in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BindMount {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

/// A block volume at its place in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) number: DeviceNumber,
    pub(crate) path: String,
    pub(crate) read_only: bool,
}

/// What the configuration is made of.
#[derive(Debug)]
pub(crate) struct Bundle<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) mounts: Vec<BindMount>,
    pub(crate) devices: Vec<Device>,
    /// Groups beyond those of the pod's security context.
    pub(crate) groups: Vec<i64>,
    pub(crate) rootfs: &'a Path,
    pub(crate) cgroup: &'a str,
    /// Host directories that the container must not see.
    pub(crate) hidden: &'a [PathBuf],
    pub(crate) bounding: u64,
    /// The filter of system calls.
    pub(crate) seccomp: Option<Value>,
}

/// Why a container can't be configured.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum BundleError {
    #[error("no command specified: image \"host\" has none of its own, name one in `command` or `args`")]
    NoCommand,
    #[error("container has runAsNonRoot and image will run as root: set runAsUser")]
    Root,
    #[error(
        "devicePath {0} lies in /dev, and a privileged container has the node's own /dev: choose a path outside of it"
    )]
    DeviceInHostDev(String),
    #[error(
        "sysctl {0} can't be set for a pod: its network is the host's; kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* can, without hostIPC"
    )]
    Sysctl(String),
}

/// The content of `config.json`.
pub(crate) fn config(bundle: &Bundle<'_>) -> Result<Value, BundleError> {
    let spec = bundle.pod.spec.clone().unwrap_or_default();
    let container = bundle.container;
    let context = container.security_context.as_ref();
    let pod_context = spec.security_context.clone().unwrap_or_default();
    let privileged = context.and_then(|context| context.privileged).unwrap_or(false);
    if let Some(device) =
        bundle.devices.iter().find(|of| privileged && Path::new("/").join(&of.path).starts_with("/dev"))
    {
        return Err(BundleError::DeviceInHostDev(device.path.clone()));
    }

    let args: Vec<String> = container
        .command
        .iter()
        .flatten()
        .chain(container.args.iter().flatten())
        .map(|text| super::environment::expand(text, &bundle.variables))
        .collect();
    if args.is_empty() {
        return Err(BundleError::NoCommand);
    }
    let user = context.and_then(|context| context.run_as_user).or(pod_context.run_as_user).unwrap_or(0);
    let group = context.and_then(|context| context.run_as_group).or(pod_context.run_as_group).unwrap_or(0);
    let non_root = context.and_then(|context| context.run_as_non_root).or(pod_context.run_as_non_root);
    if non_root == Some(true) && user == 0 {
        return Err(BundleError::Root);
    }
    let mut groups: Vec<i64> = pod_context.supplemental_groups.unwrap_or_default();
    groups.extend(pod_context.fs_group);
    groups.extend(&bundle.groups);
    groups.sort_unstable();
    groups.dedup();

    let hostname = hostname(bundle.pod);
    let mut env = vec![format!("PATH={PATH}"), format!("HOSTNAME={hostname}"), "HOME=/root".to_owned()];
    env.retain(|entry| entry.split_once('=').is_none_or(|(name, _)| !bundle.variables.contains_key(name)));
    env.extend(bundle.variables.iter().map(|(name, value)| format!("{name}={value}")));

    let sysctls = sysctls(&spec)?;
    let capabilities = capabilities::of(context, bundle.bounding);
    let ambient: &[String] = &[];
    let no_new_privileges =
        !privileged && context.and_then(|context| context.allow_privilege_escalation) == Some(false);
    let read_only_root = context.and_then(|context| context.read_only_root_filesystem).unwrap_or(false);

    let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "uts"})];
    if spec.host_pid != Some(true) {
        namespaces.push(json!({"type": "pid"}));
    }
    if spec.host_ipc != Some(true) {
        namespaces.push(json!({"type": "ipc"}));
    }
    // Volumes come after what every container has, and paths before what lies below them.
    let mut volumes = bundle.mounts.clone();
    volumes.sort_by(|a, b| a.target.cmp(&b.target));
    let mut mounts = base_mounts(privileged);
    mounts.extend(volumes.iter().map(|mount| {
        let access = if mount.read_only { "ro" } else { "rw" };
        json!({"destination": mount.target, "type": "bind", "source": mount.source,
               "options": ["rbind", "rprivate", access]})
    }));

    let mut masked: Vec<Value> = bundle.hidden.iter().map(|path| json!(path)).collect();
    let mut read_only: Vec<Value> = Vec::new();
    if !privileged {
        let kernel =
            ["acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "sched_debug", "scsi"];
        masked.extend(kernel.iter().map(|name| json!(format!("/proc/{name}"))));
        masked.push(json!("/sys/firmware"));
        let kernel = ["bus", "fs", "irq", "sys", "sysrq-trigger"];
        read_only.extend(kernel.iter().map(|name| json!(format!("/proc/{name}"))));
    }
    let mut resources = resources(container);
    let rules = bundle.devices.iter().map(|device| {
        json!({"allow": true, "type": "b", "major": device.number.major, "minor": device.number.minor,
               "access": if device.read_only { "r" } else { "rwm" }})
    });
    let all = json!({"allow": privileged, "access": "rwm"});
    resources["devices"] = std::iter::once(all).chain(rules).collect();
    // The container's own user may use what it was given.
    let devices: Vec<Value> = bundle
        .devices
        .iter()
        .map(|device| {
            json!({"path": Path::new("/").join(&device.path), "type": "b", "major": device.number.major,
                   "minor": device.number.minor, "uid": user, "gid": group,
                   "fileMode": if device.read_only { 0o440 } else { 0o660 }})
        })
        .collect();

    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": user, "gid": group, "additionalGids": groups},
            "args": args,
            "env": env,
            "cwd": container.working_dir.as_deref().filter(|dir| !dir.is_empty()).unwrap_or("/"),
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                             "ambient": ambient, "inheritable": ambient},
            "noNewPrivileges": no_new_privileges,
        },
        "root": {"path": bundle.rootfs, "readonly": read_only_root},
        "hostname": hostname,
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": bundle.cgroup,
            "resources": resources,
            "devices": devices,
            "maskedPaths": masked,
            "readonlyPaths": read_only,
            "sysctl": sysctls,
        },
    });
    if let (Some(filter), false) = (&bundle.seccomp, privileged) {
        config["linux"]["seccomp"] = filter.clone();
    }
    Ok(config)
}

/// The kernel's settings that a pod may have for itself: those of its own IPC namespace.
fn sysctls(spec: &PodSpec) -> Result<BTreeMap<String, String>, BundleError> {
    let wanted = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    let own_ipc = spec.host_ipc != Some(true);
    wanted
        .map(|sysctl| {
            let name = sysctl.name.replace('/', ".");
            let of_ipc = name.starts_with("kernel.shm")
                || name.starts_with("kernel.msg")
                || name == "kernel.sem"
                || name.starts_with("fs.mqueue.");
            match of_ipc && own_ipc {
                true => Ok((name, sysctl.value.clone())),
                false => Err(BundleError::Sysctl(name)),
            }
        })
        .collect()
}

/// The longest name that the kernel takes for a host.
const LONGEST_HOSTNAME: usize = 63;

/// The pod's host name: the one it asks for, else its own, cut to what a host may be called, as kubelet does.
fn hostname(pod: &Pod) -> String {
    let asked = pod.spec.as_ref().and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let mut name = asked.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    if name.len() > LONGEST_HOSTNAME {
        name.truncate(LONGEST_HOSTNAME);
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    name
}

fn base_mounts(privileged: bool) -> Vec<Value> {
    let access = if privileged { "rw" } else { "ro" };
    let mut mounts = vec![json!({"destination": "/proc", "type": "proc", "source": "proc"})];
    if privileged {
        mounts.push(json!({"destination": "/dev", "type": "bind", "source": "/dev",
                           "options": ["rbind", "rprivate", "rw"]}));
    } else {
        mounts.extend([
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                   "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
            json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                   "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
            json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                   "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
            json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                   "options": ["nosuid", "noexec", "nodev"]}),
        ]);
    }
    mounts.extend([
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
               "options": ["nosuid", "noexec", "nodev", access]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
               "options": ["nosuid", "noexec", "nodev", "relatime", access]}),
    ]);
    mounts
}

/// Memory and processor bounds, as kubelet computes them.
fn resources(container: &Container) -> Value {
    let amounts = container.resources.as_ref();
    let amount = |limits: bool, name: &str| {
        let amounts = amounts?;
        let map = if limits { amounts.limits.as_ref() } else { amounts.requests.as_ref() };
        map?.get(name).and_then(|amount| amount.0.parse::<Quantity>().ok())
    };
    let mut resources = json!({});
    if let Some(bytes) = amount(true, "memory").and_then(|amount| amount.ceil_bytes()) {
        resources["memory"] = json!({"limit": bytes});
    }
    let milli = |amount: Quantity| amount.milli();
    let request = amount(false, "cpu").or_else(|| amount(true, "cpu")).and_then(milli);
    let mut cpu = json!({"shares": request.map_or(2, |milli| (milli * 1024 / 1000).clamp(2, 262_144))});
    if let Some(limit) = amount(true, "cpu").and_then(milli) {
        cpu["period"] = json!(100_000);
        cpu["quota"] = json!((limit * 100).max(1000));
    }
    resources["cpu"] = cpu;
    resources
}

#[cfg(test)]
#[test]
fn host_names_are_as_long_as_the_kernel_takes() {
    let long = format!("{}-.{}", "p".repeat(61), "x".repeat(20));
    for (name, asked, expected) in [
        ("web-0", None, "web-0"),
        ("web-0", Some("db"), "db"),
        ("web-0", Some(""), "web-0"),
        (&*"p".repeat(65), None, &*"p".repeat(63)),
        (&*"p".repeat(63), None, &*"p".repeat(63)),
        (&long, None, &*"p".repeat(61)),
    ] {
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [], "hostname": asked}});
        assert_eq!(hostname(&serde_json::from_value(pod).unwrap()), expected, "{name} {asked:?}");
    }
}

#[cfg(test)]
#[test]
fn only_settings_of_the_pods_own_are_set() {
    for (name, host_ipc, good) in [
        ("kernel.shm_rmid_forced", false, true),
        ("kernel/shm_rmid_forced", false, true),
        ("kernel.shm_rmid_forced", true, false),
        ("fs.mqueue.msg_max", false, true),
        ("net.core.somaxconn", false, false),
        ("vm.swappiness", false, false),
    ] {
        let spec = json!({"containers": [], "hostIPC": host_ipc,
            "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        assert_eq!(sysctls(&serde_json::from_value(spec).unwrap()).is_ok(), good, "{name} {host_ipc}");
    }
}
