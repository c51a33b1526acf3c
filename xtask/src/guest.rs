//! `cargo xtask guest`: what this machine's kernel may lack, tried in an emulated Debian machine that is thrown away.

mod image;
mod machine;
mod power;
mod reboot;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::command::{cache, cargo, program};
use crate::conformance;
use image::Image;
use machine::{Hardware, Machine};
use power::Cuts;

const GIB: u64 = 1 << 30;
/// Of one test program, emulated on a busy machine.
const TEST: Duration = Duration::from_secs(900);
/// Makes a drive of persistent memory, `/dev/pmem0`, unless an earlier start did. Raw memory is there at once, and can't be
/// mapped.
const MEMORY: &str = "modprobe -a nfit nd_pmem && \
    { ndctl list -N | grep -q fsdax || ndctl create-namespace -f -e namespace0.0 -m fsdax; } && \
    udevadm settle && test -b /dev/pmem0";
/// Bytes that guests may write to the disk here.
const SPACE: u64 = 6 * GIB;
/// Of a command that has nothing to wait for.
const SHORT: Duration = Duration::from_secs(60);

/// Something to be tried, in a guest of its own.
struct Case {
    name: &'static str,
    /// Left out of the test command.
    long: bool,
    run: fn(&Bench) -> anyhow::Result<()>,
}

const CASES: &[Case] = &[
    Case { name: "xfs", long: false, run: xfs },
    Case { name: "flushes-xfs", long: false, run: |bench| flushes(bench, "xfs", "some") },
    Case { name: "flushes-btrfs", long: false, run: flushes_here },
    Case { name: "power-xfs", long: false, run: |bench| power::cuts(bench, "xfs", Cuts::Few) },
    Case { name: "faults-xfs", long: false, run: |bench| faults(bench, "xfs") },
    Case { name: "directpv", long: false, run: directpv },
    Case { name: "limits", long: false, run: limits },
    Case { name: "pulled-xfs", long: false, run: |bench| pulled(bench, "xfs") },
    Case { name: "reboot-xfs", long: false, run: |bench| reboot::reboot(bench, "xfs") },
    Case { name: "lvm", long: false, run: |bench| lvm(bench, "lvm") },
    Case { name: "dax", long: false, run: dax },
    Case { name: "power-lvm", long: false, run: |bench| power::cuts(bench, "lvm", Cuts::Few) },
    Case { name: "conformance-xfs", long: false, run: |bench| conformance(bench, "xfs") },
    Case { name: "lvm-thin", long: false, run: |bench| lvm(bench, "lvm-thin") },
    Case { name: "power-lvm-thin", long: false, run: |bench| power::cuts(bench, "lvm-thin", Cuts::Few) },
    Case { name: "conformance-lvm", long: false, run: |bench| conformance(bench, "lvm") },
    Case { name: "conformance-lvm-thin", long: true, run: |bench| conformance(bench, "lvm-thin") },
    Case { name: "reboot-lvm", long: true, run: |bench| reboot::reboot(bench, "lvm") },
    Case { name: "reboot-lvm-thin", long: true, run: |bench| reboot::reboot(bench, "lvm-thin") },
    Case { name: "reboot-dax", long: true, run: |bench| reboot::reboot(bench, "dax") },
    Case { name: "pulled-lvm", long: true, run: |bench| pulled(bench, "lvm") },
    Case { name: "pulled-lvm-thin", long: true, run: |bench| pulled(bench, "lvm-thin") },
    Case { name: "faults-lvm", long: true, run: |bench| faults(bench, "lvm") },
    Case { name: "faults-lvm-thin", long: true, run: |bench| faults(bench, "lvm-thin") },
    Case { name: "flushes-lvm", long: true, run: |bench| flushes(bench, "lvm", "some") },
    Case { name: "flushes-lvm-thin", long: true, run: |bench| flushes(bench, "lvm-thin", "some") },
    Case { name: "every-flush-xfs", long: true, run: |bench| flushes(bench, "xfs", "all") },
    Case { name: "many-volumes-lvm", long: true, run: |bench| many(bench, "lvm") },
    Case { name: "many-volumes-dax", long: true, run: |bench| in_memory(bench, 5 * GIB, &[("many", "")]) },
    Case { name: "many-volumes-lvm-thin", long: true, run: |bench| many(bench, "lvm-thin") },
    Case { name: "recovery-lvm", long: true, run: |bench| recovery(bench, "lvm") },
    Case { name: "recovery-lvm-thin", long: true, run: |bench| recovery(bench, "lvm-thin") },
    Case { name: "many-power-cuts-xfs", long: true, run: |bench| power::cuts(bench, "xfs", Cuts::Many) },
    Case { name: "many-power-cuts-lvm", long: true, run: |bench| power::cuts(bench, "lvm", Cuts::Many) },
    Case {
        name: "many-power-cuts-lvm-thin",
        long: true,
        run: |bench| power::cuts(bench, "lvm-thin", Cuts::Many),
    },
];

/// Runs the case that `filter` names, or else those whose name contains it; those that take long only if asked for `all`.
pub(crate) fn run(all: bool, filter: &str) -> anyhow::Result<()> {
    clean_up_on_interrupt()?;
    let image = Image::get()?;
    let directory = Directory::new()?;
    crate::command::enough_space(&directory.0, "a guest", SPACE)?;
    let share = directory.0.join("share");
    std::fs::create_dir(&share)?;
    build(&share)?;
    let bench = Bench { image, directory: directory.0.clone(), share };
    let (mut told, mut late) = (Vec::new(), Vec::new());
    let end = Instant::now() + budget()?;
    let is_name = CASES.iter().any(|case| case.name == filter);
    let wanted = |case: &&Case| if is_name { case.name == filter } else { case.name.contains(filter) };
    for case in CASES.iter().filter(wanted) {
        if case.long && !all && !is_name {
            told.push(format!("left out  {} (takes long: cargo xtask guest --all)", case.name));
            continue;
        }
        if !all && Instant::now() > end {
            late.push(case.name);
            continue;
        }
        eprintln!("\n» guest: {}", case.name);
        let began = Instant::now();
        (case.run)(&bench).with_context(|| format!("case {}", case.name))?;
        told.push(format!("passed    {} ({:.0} s)", case.name, began.elapsed().as_secs_f64()));
    }
    ensure!(!told.is_empty(), "no case is named like {filter}");
    println!("\ncases in the guest:\n  {}", told.join("\n  "));
    ensure!(
        late.is_empty(),
        "not begun, because time was over: {}; give them more with ORLOP_GUEST_MINUTES, or run each by itself",
        late.join(", ")
    );
    Ok(())
}

/// How long cases are begun: `$ORLOP_GUEST_MINUTES`, or thirty minutes.
fn budget() -> anyhow::Result<Duration> {
    let minutes = match std::env::var("ORLOP_GUEST_MINUTES") {
        Ok(minutes) => minutes.parse().context("$ORLOP_GUEST_MINUTES is a number")?,
        Err(_) => 30,
    };
    Ok(Duration::from_secs(minutes * 60))
}

/// The tests of drives that hold on every backend.
const COMMON: &str = "a_volume_lives every_volume_of_a_full creations_at_once a_copied_drive";

/// Project quotas, copies and recovery on a real XFS.
fn xfs(bench: &Bench) -> anyhow::Result<()> {
    let tests = [
        ("drives", "a_real_drive"),
        ("xfs", ""),
        ("copies", "a_snapshot_keeps"),
        ("btrfs", COMMON),
        ("many", ""),
    ];
    in_guest(bench, "xfs", &tests)
}

/// A drive that DirectPV formatted is served, changed and found again.
fn directpv(bench: &Bench) -> anyhow::Result<()> {
    in_guest(bench, "xfs", &[("directpv", "")])
}

/// Bandwidth and operations of a volume's pod, limited by a kernel that does.
fn limits(bench: &Bench) -> anyhow::Result<()> {
    in_guest(bench, "xfs", &[("features", "limits_are_kept")])
}

/// Logical volumes with each file system, as block volumes, and their copies.
fn lvm(bench: &Bench, backend: &str) -> anyhow::Result<()> {
    in_guest(bench, backend, &[("lvm", "")])
}

/// Two hundred volumes on one drive.
fn many(bench: &Bench, backend: &str) -> anyhow::Result<()> {
    in_guest(bench, backend, &[("many", "")])
}

/// The cases of `lvm` on persistent memory, where files are mapped directly.
fn dax(bench: &Bench) -> anyhow::Result<()> {
    let tests = [
        ("lvm", "a_volume_of_each"),
        ("lvm", "a_block_volume"),
        ("lvm", "what_does_not_fit"),
        ("lvm", "--ignored on_persistent_memory"),
    ];
    in_memory(bench, GIB, &tests)
}

/// Runs tests of programs, each on blank persistent memory.
fn in_memory(bench: &Bench, size: u64, tests: &[(&str, &str)]) -> anyhow::Result<()> {
    let hardware = bench.hardware(&[], Some(size))?;
    let mut guest = bench.start(&hardware)?;
    guest.run(MEMORY, SHORT)?;
    for (program, filter) in tests {
        guest.run("vgs --noheadings -o vg_name | xargs -r vgremove -f; wipefs -aq /dev/pmem0", SHORT)?;
        test(&mut guest, "lvm ORLOP_DEVICE=/dev/pmem0", program, filter)?;
    }
    guest.cut_power()
}

/// A drive that is pulled while it is used, and plugged in again at another port.
fn pulled(bench: &Bench, backend: &str) -> anyhow::Result<()> {
    let hardware = bench.hardware(&[GIB, GIB], None)?;
    let mut guest = bench.start(&hardware)?;
    guest.begin(&format!("ORLOP_BACKEND={backend} /host/pulled --ignored --nocapture"))?;
    let end = Instant::now() + TEST;
    let mut status = None;
    while status.is_none() && Instant::now() < end {
        let mut asked = None;
        status = guest.watch(Instant::now() + Duration::from_millis(100), &mut |line| {
            println!("  {line}");
            asked = line.split_once("@ ").map(|(_, what)| what.to_owned()).or(asked.take());
        })?;
        match asked.as_deref() {
            None => {}
            Some("pull") => guest.unplug(0)?,
            Some("plug") => guest.plug(0, hardware.spare_port())?,
            Some(other) => bail!("the test asks for {other}"),
        }
    }
    ensure!(status == Some(0), "the test of a pulled drive on {backend} failed in the guest");
    guest.cut_power()
}

/// Devices that fail, and that lie, under drives in use.
fn faults(bench: &Bench, backend: &str) -> anyhow::Result<()> {
    in_guest(bench, backend, &[("mapped", "--ignored")])
}

/// A drive as it was whenever something had become durable: at `some` of these moments, or at `all`.
fn flushes(bench: &Bench, backend: &str, which: &str) -> anyhow::Result<()> {
    let settings = format!("{backend} ORLOP_FLUSHES={which}");
    in_guest(bench, &settings, &[("flushes", "--ignored at_every_flush_the")])
}

/// The same for btrfs, whose quotas the guest's kernel may lack: QEMU notes what is written.
fn flushes_here(bench: &Bench) -> anyhow::Result<()> {
    let tests = program(bench.share.join("flushes"), &["--ignored", "at_every_flush_noted"]);
    tests.env("CI", "true").env("ORLOP_BACKEND", "btrfs").run()
}

/// A restart after every step of every plan.
fn recovery(bench: &Bench, backend: &str) -> anyhow::Result<()> {
    in_guest(bench, backend, &[("drives", "a_real_drive_recovers")])
}

/// csi-sanity against the driver on an NVMe drive.
fn conformance(bench: &Bench, backend: &str) -> anyhow::Result<()> {
    orlop(bench)?;
    link(&conformance::sanity()?, &bench.share.join("csi-sanity"))?;
    let hardware = bench.hardware(&[4 * GIB], None)?;
    let mut guest = bench.start(&hardware)?;
    let directory = Path::new("/var/conformance");
    let driver = "RUST_LOG=error /host/orlop driver --node-id conformance --endpoint unix:///var/conformance/csi.sock \
        --data-dir /var/conformance/data --drive /dev/nvme0n1";
    guest.run(
        &format!("mkdir /var/conformance; {driver} --backend {backend} >/var/driver.log 2>&1 &"),
        SHORT,
    )?;
    let serving = "timeout 60 sh -c 'until [ -S /var/conformance/csi.sock ]; do sleep 0.1; done' || cat /var/driver.log";
    guest.run(serving, TEST)?;
    for access in conformance::ACCESS_TYPES {
        let command = format!("/host/csi-sanity {}", conformance::options(directory, access).join(" "));
        let status = guest.follow(&command, TEST, &mut |line| println!("  {line}"))?;
        let report = guest.run("cat /var/conformance/report.json", SHORT)?;
        conformance::tell_left_out(report.as_bytes())?;
        let said = guest.run("cat /var/driver.log", SHORT)?;
        ensure!(
            status == 0,
            "csi-sanity ({access}) on {backend} failed in the guest; the driver said:\n{said}"
        );
    }
    guest.cut_power()
}

/// Runs tests of programs in a guest of their own that needs no drives.
fn in_guest(bench: &Bench, backend: &str, tests: &[(&str, &str)]) -> anyhow::Result<()> {
    let hardware = bench.hardware(&[], None)?;
    let mut guest = bench.start(&hardware)?;
    tests.iter().try_for_each(|(program, filter)| test(&mut guest, backend, program, filter))?;
    guest.cut_power()
}

/// Runs the tests of one program whose names contain `filter`, on drives of a backend.
fn test(guest: &mut Machine<'_>, backend: &str, program: &str, filter: &str) -> anyhow::Result<()> {
    let command =
        format!("cd /tmp && CI=true ORLOP_BACKEND={backend} /host/{program} --test-threads 2 {filter}");
    let status = guest.follow(&command, TEST, &mut |line| println!("  {line}"))?;
    ensure!(status == 0, "tests {program} {filter} on {backend} failed in the guest");
    Ok(())
}

/// What every case has at hand.
struct Bench {
    image: Image,
    directory: PathBuf,
    share: PathBuf,
}

impl Bench {
    fn hardware(&self, drives: &[u64], memory: Option<u64>) -> anyhow::Result<Hardware> {
        Hardware::new(self.directory.join("machine"), drives, memory)
    }

    fn start<'a>(&self, hardware: &'a Hardware) -> anyhow::Result<Machine<'a>> {
        let began = Instant::now();
        let machine = Machine::start(&self.image, hardware, &self.share)?;
        eprintln!("guest started in {:.1} s", began.elapsed().as_secs_f64());
        Ok(machine)
    }
}

/// Builds the tests, and puts them where the guest sees them.
fn build(share: &Path) -> anyhow::Result<()> {
    programs(share, &["--package", "drives"])?;
    programs(share, &["--package", "driver", "--test", "features"])
}

/// Builds Orlop, and puts it where the guest sees it.
fn orlop(bench: &Bench) -> anyhow::Result<()> {
    cargo(&["build", "--quiet", "--package", "orlop"]).run()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    link(&target.join("debug/orlop"), &bench.share.join("orlop"))
}

/// Builds test programs, and puts them where the guest sees them.
fn programs(share: &Path, which: &[&str]) -> anyhow::Result<()> {
    let arguments = [&["test", "--no-run", "--message-format", "json-render-diagnostics"], which].concat();
    for line in cargo(&arguments).read()?.lines() {
        let message: Value = serde_json::from_str(line).unwrap_or_default();
        if let Some(file) = message["executable"].as_str()
            && let Some(name) = message["target"]["name"].as_str()
            && message["target"]["kind"][0] != "bench"
        {
            link(Path::new(file), &share.join(name))?;
        }
    }
    Ok(())
}

/// A link where that works, else a copy.
fn link(from: &Path, to: &Path) -> anyhow::Result<()> {
    // One that another case put there stays.
    if to.exists() {
        return Ok(());
    }
    let done = std::fs::hard_link(from, to).or_else(|_| std::fs::copy(from, to).map(drop));
    done.with_context(|| format!("sharing {}", from.display()))
}

/// A directory of this run alone; what a run that was killed left behind is removed by the next.
struct Directory(PathBuf);

impl Directory {
    fn new() -> anyhow::Result<Directory> {
        let all = cache()?.join("guest-runs");
        std::fs::create_dir_all(&all)?;
        for entry in std::fs::read_dir(&all)? {
            let entry = entry?;
            let alive = Path::new("/proc").join(entry.file_name()).exists();
            if !alive {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        let own = all.join(std::process::id().to_string());
        std::fs::create_dir(&own).with_context(|| format!("creating {}", own.display()))?;
        Ok(Directory(own))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("removing {}: {error}", self.0.display());
        }
    }
}

/// An interrupt ends the guest with this process; its files go here.
fn clean_up_on_interrupt() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            if let Ok(cache) = cache() {
                std::fs::remove_dir_all(cache.join("guest-runs").join(std::process::id().to_string())).ok();
            }
            std::process::exit(130);
        }
    });
    Ok(())
}
