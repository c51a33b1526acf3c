//! `cargo xtask demo`: the whole walk, shown from the outside with real commands only.

mod orlop;
mod walk;

use std::path::Path;

use anyhow::{Context, bail, ensure};

use crate::command::{cargo, program};
use orlop::Orlop;

const MANIFEST: &str = "examples/quickstart.yaml";
const CLAIM_BYTES: u64 = 64 << 20;
/// What stays in the volume until its claim is deleted: 32 MiB.
const KEPT: u64 = 32 << 20;

/// Runs the demo; with `check` tears down at the end and proves that nothing is left.
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    cargo(&["build", "--package", "orlop"]).run()?;
    let dir = TemporaryDir::new()?;
    let mut orlop = Orlop::start(dir.path())?;
    let shown = show(&orlop);
    if shown.is_ok() && !check {
        say("Orlop keeps running. In another terminal:");
        println!("  export KUBECONFIG={}", orlop.kubeconfig().display());
        println!(
            "  kubectl get pods,pvc,pv,storageclasses,drives    (or: {} get pods)",
            orlop.binary().display()
        );
        println!("  Ctrl-C here stops it and cleans up everything.");
        orlop.wait_for_interrupt()?;
    }
    let stopped = orlop.stop();
    let left = dir.leftovers()?;
    if let Err(error) = &shown {
        eprintln!("\nthe demo failed: {error:#}\n{}", orlop.last_log_lines());
    }
    shown?;
    stopped?;
    ensure!(left.is_empty(), "left behind after tear-down:\n  {}", left.join("\n  "));
    say("Torn down: no mount, loop device, process or file is left.");
    Ok(())
}

fn show(orlop: &Orlop) -> anyhow::Result<()> {
    say("A claim becomes a mounted volume");
    let walk = walk::Walk::start(orlop)?;
    println!("{}", orlop.client(&["apply", "-f", MANIFEST]).read()?.trim_end());
    let mounted = walk.follow(&walk::STEPS)?;

    say("The mount");
    let target = mounted.target.display().to_string();
    println!(
        "{}",
        program("findmnt", &["-o", "TARGET,SOURCE,FSTYPE,OPTIONS", "--mountpoint", &target])
            .read()?
            .trim_end()
    );
    let drive = mounted.drive_mount()?;

    say("The size limit holds");
    let overflow = mounted.target.join("overflow");
    let (fits, output) = program(
        "dd",
        &["if=/dev/zero", &format!("of={}", overflow.display()), "bs=1M", "count=200", "conv=fsync"],
    )
    .attempt()?;
    println!("{}", output.trim_end());
    let written = overflow.metadata().context("the overflowing file was not even created")?.len();
    ensure!(!fits, "writing 200 MiB into a claim of 64 MiB succeeded");
    ensure!(written <= CLAIM_BYTES, "{written} bytes were written into a claim of {CLAIM_BYTES}");
    ensure!(written > CLAIM_BYTES / 2, "only {written} bytes of {CLAIM_BYTES} could be written");
    std::fs::remove_file(&overflow).context("removing the overflowing file")?;
    let kept = format!("of={}", mounted.target.join("kept").display());
    let (fits, output) =
        program("dd", &["if=/dev/zero", &kept, "bs=1M", "count=32", "conv=fsync", "status=none"])
            .attempt()?;
    ensure!(fits, "writing 32 MiB into the emptied volume failed: {output}");

    say("The data outlives the pod");
    println!("{}", orlop.client(&["delete", "pod", "writer"]).read()?.trim_end());
    let walk = walk::Walk::start(orlop)?;
    println!("{}", orlop.client(&["apply", "-f", MANIFEST]).read()?.trim_end());
    let again = walk.follow(&["staged", "published", "container running"])?;
    let journal = again.target.join("journal");
    walk::wait_until("the journal has a line of each pod", || {
        Ok(std::fs::read_to_string(&journal).is_ok_and(|text| text.lines().count() == 2))
    })?;
    println!("{}", program("cat", &[journal]).read()?.trim_end());

    say("Deleting the claim gives the space back");
    print!("{}", orlop.client(&["get", "drives"]).read()?);
    program("sync", &["--file-system", &drive.display().to_string()]).read()?;
    let before = free(&drive)?;
    println!("{}", orlop.client(&["delete", "-f", MANIFEST]).read()?.trim_end());
    walk::wait_until("the volume is gone from the drive", || {
        let (_, volumes) = orlop.client(&["get", "pv", "-o", "json"]).attempt()?;
        let volumes: serde_json::Value = serde_json::from_str(&volumes)?;
        Ok(volumes["items"].as_array().is_some_and(Vec::is_empty))
    })?;
    walk::wait_until("the drive shows all its space as free", || {
        let drives: serde_json::Value =
            serde_json::from_str(&orlop.client(&["get", "drives", "-o", "json"]).read()?)?;
        let drives = drives["items"].as_array().cloned().unwrap_or_default();
        Ok(!drives.is_empty() && drives.iter().all(|drive| drive["status"]["allocated"] == "0"))
    })?;
    print!("{}", orlop.client(&["get", "drives"]).read()?);
    walk::wait_until(
        "the drive's file system has the space back",
        || Ok(free(&drive)? >= before + KEPT / 2),
    )?;
    println!("df of the drive: {before} bytes free with the volume, {} after", free(&drive)?);
    Ok(())
}

/// Bytes free on the file system at `path`, as df prints them.
fn free(path: &Path) -> anyhow::Result<u64> {
    let output = program("df", &["--block-size=1", "--output=avail", &path.display().to_string()]).read()?;
    let number = output.lines().nth(1).map(str::trim).and_then(|line| line.parse().ok());
    number.with_context(|| format!("df printed no number for {}", path.display()))
}

fn say(heading: &str) {
    println!("\n== {heading}");
}

/// A directory of this run alone; it is removed only when nothing is mounted below it.
struct TemporaryDir(std::path::PathBuf);

impl TemporaryDir {
    fn new() -> anyhow::Result<TemporaryDir> {
        let made = tempfile::Builder::new().prefix("orlop-demo.").tempdir_in("/tmp");
        Ok(TemporaryDir(made.context("making a directory in /tmp")?.keep()))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    /// Mounts, loop devices and processes that still use the directory; removes it when there are none.
    fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        let name = self.0.display().to_string();
        let uses = |text: String| {
            text.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect::<Vec<_>>()
        };
        let mut left = uses(std::fs::read_to_string("/proc/self/mountinfo")?);
        left.extend(uses(program("losetup", &["-l", "-n", "-O", "NAME,BACK-FILE"]).read()?));
        let own = std::process::id().to_string();
        left.extend(
            uses(program("ps", &["-eo", "pid=,args="]).read()?)
                .into_iter()
                .filter(|line| line.split_whitespace().next() != Some(&own)),
        );
        if left.is_empty() {
            std::fs::remove_dir_all(&self.0).with_context(|| format!("removing {name}"))?;
        } else {
            eprintln!("{name} is kept, because something still uses it");
        }
        if self.0.exists() && left.is_empty() {
            bail!("{name} could not be removed");
        }
        Ok(left)
    }
}
