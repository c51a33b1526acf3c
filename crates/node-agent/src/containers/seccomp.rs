//! Filters of system calls: the usual one, and those that lie on the node.

use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use serde_json::{Value, json};

/// System calls by which a container could change the machine, look into other processes or reach parts of the kernel
/// that programs have no use for.
const REFUSED: &[&str] = &[
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "clone3",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "get_mempolicy",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "migrate_pages",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "sysfs",
    "_sysctl",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "vm86",
    "vm86old",
];
/// The flag of `clone` that makes a user namespace, which the others would need.
const NEW_USER: u64 = 0x1000_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Why a filter can't be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cannot load seccomp profile \"{name}\": {why}; profiles lie below {place}")]
pub(crate) struct SeccompError {
    name: String,
    why: String,
    place: String,
}

/// The filter of a container: its own, else its pod's, else none. Profiles of the node lie below `place`. Blocks.
pub(crate) fn filter(pod: &Pod, container: &Container, place: &Path) -> Result<Option<Value>, SeccompError> {
    let own = container.security_context.as_ref().and_then(|context| context.seccomp_profile.as_ref());
    let of_pod = || pod.spec.as_ref()?.security_context.as_ref()?.seccomp_profile.as_ref();
    match own.or_else(of_pod) {
        Some(SeccompProfile { type_, .. }) if type_ == "RuntimeDefault" => Ok(Some(usual())),
        Some(SeccompProfile { type_, localhost_profile }) if type_ == "Localhost" => {
            let name = localhost_profile.clone().unwrap_or_default();
            load(&name, place).map(Some).map_err(|why| SeccompError {
                name,
                why,
                place: place.display().to_string(),
            })
        }
        _ => Ok(None),
    }
}

fn load(name: &str, place: &Path) -> Result<Value, String> {
    let path = Path::new(name);
    if name.is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err("its name must be a relative path without '..'".into());
    }
    let bytes = std::fs::read(place.join(path)).map_err(|error| linux::in_words(&error))?;
    let filter: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    match filter["defaultAction"].is_string() {
        true => Ok(filter),
        false => Err("it has no defaultAction".into()),
    }
}

fn usual() -> Value {
    // glibc falls back to `clone` where `clone3`, whose flags can't be seen, is not there.
    let (new, names): (Vec<&str>, Vec<&str>) = REFUSED.iter().partition(|name| **name == "clone3");
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures(),
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM},
            {"names": new, "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
            {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM, "args": [
                {"index": 0, "value": NEW_USER, "valueTwo": NEW_USER, "op": "SCMP_CMP_MASKED_EQ"}]},
        ],
    })
}

fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_found_or_refused_by_name() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("good.json"), r#"{"defaultAction":"SCMP_ACT_LOG"}"#).unwrap();
        std::fs::write(place.path().join("bad.json"), "{}").unwrap();
        for (of_pod, own, expected) in [
            (json!(null), json!(null), Ok(None)),
            (json!({"type": "Unconfined"}), json!(null), Ok(None)),
            (json!({"type": "RuntimeDefault"}), json!(null), Ok(Some("SCMP_ACT_ALLOW"))),
            (json!({"type": "RuntimeDefault"}), json!({"type": "Unconfined"}), Ok(None)),
            (
                json!(null),
                json!({"type": "Localhost", "localhostProfile": "good.json"}),
                Ok(Some("SCMP_ACT_LOG")),
            ),
            (
                json!({"type": "Localhost", "localhostProfile": "nope.json"}),
                json!(null),
                Err("\"nope.json\": No such"),
            ),
            (
                json!({"type": "Localhost", "localhostProfile": "bad.json"}),
                json!(null),
                Err("no defaultAction"),
            ),
            (
                json!({"type": "Localhost", "localhostProfile": "../good.json"}),
                json!(null),
                Err("without '..'"),
            ),
        ] {
            let container = json!({"name": "c", "securityContext": {"seccompProfile": own}});
            let pod =
                json!({"spec": {"containers": [container], "securityContext": {"seccompProfile": of_pod}}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let filter = filter(&pod, &pod.spec.as_ref().unwrap().containers[0], place.path());
            match (&filter, expected) {
                (Ok(filter), Ok(action)) => {
                    let is = filter.as_ref().and_then(|filter| filter["defaultAction"].as_str());
                    assert_eq!(is, action, "{own}");
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                _ => panic!("{of_pod} {own}: {filter:?}"),
            }
        }
    }
}
