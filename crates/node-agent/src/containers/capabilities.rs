//! Linux capabilities of a container.

use std::fs;

use k8s_openapi::api::core::v1::SecurityContext;

/// All capabilities, in the order of their numbers.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What container runtimes give by default.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The capabilities (`CAP_…`) of a container with this security context, out of those that we may give.
pub(crate) fn of(context: Option<&SecurityContext>, bounding: u64) -> Vec<String> {
    let privileged = context.and_then(|context| context.privileged).unwrap_or(false);
    let lists = context.and_then(|context| context.capabilities.as_ref());
    let named = |list: Option<&Vec<String>>, name: &str| {
        list.into_iter().flatten().any(|entry| {
            let entry = entry.trim_start_matches("CAP_");
            entry == "ALL" || entry == name
        })
    };
    ALL.iter()
        .enumerate()
        .filter(|(number, _)| bounding >> number & 1 == 1)
        .map(|(_, name)| *name)
        .filter(|name| {
            let added = lists.is_some_and(|lists| named(lists.add.as_ref(), name));
            let dropped = lists.is_some_and(|lists| named(lists.drop.as_ref(), name));
            privileged || added || (DEFAULT.contains(name) && !dropped)
        })
        .map(|name| format!("CAP_{name}"))
        .collect()
}

/// The bounding set of this process, as a bit mask; everything if it can't be read.
pub(crate) fn bounding_set() -> u64 {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn capabilities_follow_the_security_context() {
        let of = |context: serde_json::Value, bounding| {
            super::of(Some(&serde_json::from_value(context).unwrap()), bounding)
        };
        assert_eq!(super::of(None, u64::MAX).len(), DEFAULT.len());
        assert_eq!(of(json!({"privileged": true}), u64::MAX).len(), ALL.len());
        let without_sys_resource = !(1 << 24);
        assert!(!of(json!({"privileged": true}), without_sys_resource).contains(&"CAP_SYS_RESOURCE".into()));
        assert_eq!(
            of(json!({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}), u64::MAX),
            ["CAP_NET_ADMIN"]
        );
    }
}
