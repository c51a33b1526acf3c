//! The whole of Orlop on a machine that loses its power while volumes are used.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::machine::Machine;
use super::{Bench, GIB, MEMORY, SHORT, TEST, orlop};

/// What runs in the guest: a pod that writes a line and syncs it, again and again, to a file and to a block volume.
const MANIFEST: &str = include_str!("reboot.yaml");
/// By their serial numbers: which is `nvme0` may change with every start.
const STATE: &str = "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_drive0";
const DRIVE: &str = "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_drive1";
/// The guest starts without these names.
const NAMES: &str = "udevadm trigger --subsystem-match=block --settle";
/// The pod's file.
const LOG: &str = "$(awk '$2 ~ /kubernetes.io~csi.*mount$/ {print $2}' /proc/mounts | head -n 1)/log";
/// Lines that have to be there before the power goes.
const LINES: usize = 20;

/// Cuts the power while volumes are in use, on persistent memory if the backend is called `dax`; with it on again the pod
/// runs again, with everything that it had synced.
pub(super) fn reboot(bench: &Bench, backend: &str) -> anyhow::Result<()> {
    orlop(bench)?;
    std::fs::write(bench.share.join("reboot.yaml"), MANIFEST)?;
    let hardware = match backend {
        "dax" => bench.hardware(&[GIB], Some(2 * GIB))?,
        _ => bench.hardware(&[GIB, 2 * GIB], None)?,
    };
    let mut guest = bench.start(&hardware)?;
    guest.run(&format!("{NAMES} && mkfs.ext4 -q {STATE}"), SHORT)?;
    up(&mut guest, backend)?;
    guest.run("KUBECONFIG=/state/kubeconfig /host/orlop apply -f /host/reboot.yaml", SHORT)?;
    wait(&mut guest, &format!("[ $(cat {LOG} | wc -l) -ge {LINES} ]"), "the pod writes")?;
    let before = guest.run(&format!("cat {LOG}"), SHORT)?;
    guest.cut_power()?;
    // A line is written when the one before it is synced; the last may not be.
    let (synced, _) = before.trim_end().rsplit_once('\n').context("the pod wrote lines")?;

    let mut guest = bench.start(&hardware)?;
    up(&mut guest, backend)?;
    wait(&mut guest, &format!("[ $(grep -c begin {LOG}) -eq 2 ]"), "the pod runs again")?;
    let after = guest.run(&format!("cat {LOG}"), SHORT)?;
    ensure!(after.starts_with(synced), "synced lines are lost; before:\n{synced}\nafter:\n{after}");
    ensure!(after.contains("block has first"), "the block volume has what was written to it:\n{after}");
    println!("  {} synced lines and a block volume outlived the power cut", synced.lines().count());
    guest.cut_power()
}

fn up(guest: &mut Machine<'_>, backend: &str) -> anyhow::Result<()> {
    guest.run(&format!("{NAMES} && mkdir -p /state && mount {STATE} /state"), SHORT)?;
    let drive = match backend {
        "dax" => guest.run(MEMORY, SHORT).map(|_| "/dev/pmem0 --backend lvm".to_owned())?,
        _ => format!("{DRIVE} --backend {backend}"),
    };
    let up = "/host/orlop up --data-dir /state/data --kubeconfig /state/kubeconfig";
    guest.run(&format!("{up} --drive {drive} >/state/log 2>&1 &"), SHORT)?;
    wait(guest, "grep -q 'orlop is ready' /state/log", "Orlop is ready")
}

fn wait(guest: &mut Machine<'_>, condition: &str, what: &str) -> anyhow::Result<()> {
    let seconds = TEST.as_secs() / 5;
    let wait = format!("timeout {seconds} sh -c \"until {condition}; do sleep 0.2; done\" 2>/dev/null");
    let wait = wait.replace('$', "\\$");
    let outcome = guest.attempt(&wait, TEST + Duration::from_secs(10))?;
    if outcome.status != 0 {
        let log = guest.run("tail -n 40 /state/log; cat /proc/mounts | tail -n 20", SHORT);
        anyhow::bail!("not within {seconds} s: {what}; Orlop said:\n{}", log.context("reading its log")?);
    }
    Ok(())
}
