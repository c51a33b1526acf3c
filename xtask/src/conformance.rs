//! `cargo xtask conformance`: the CSI project's own test program against the driver, over its socket, on a drive made
//! of a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::command::{cache, cargo, program};

const SANITY: &str = "5.6.0";
const DRIVE: &str = "4Gi";
/// What the test program asks volumes as: each in a run of its own.
pub(crate) const ACCESS_TYPES: [&str; 2] = ["mount", "block"];
const VOLUME_BYTES: u64 = 64 << 20;

/// Runs every applicable case; an unmet one is an error.
pub(crate) fn run() -> anyhow::Result<()> {
    against(&sanity()?)
}

/// As [`run`], on a machine that may have no way to build the test program. In CI that is an error.
pub(crate) fn run_where_possible() -> anyhow::Result<()> {
    match sanity() {
        Ok(sanity) => against(&sanity),
        Err(error) if std::env::var_os("CI").is_some() => Err(error),
        Err(error) => {
            eprintln!("\nNOT RUN: the conformance tests of CSI: {error:#}");
            Ok(())
        }
    }
}

fn against(sanity: &Path) -> anyhow::Result<()> {
    cargo(&["build", "--quiet", "--package", "orlop"]).run()?;
    let directory = std::env::temp_dir().join(format!("orlop-conformance-{}", std::process::id()));
    std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let outcome = Driver::start(&directory).and_then(|driver| {
        let tested = ACCESS_TYPES.iter().try_for_each(|access| test(sanity, &directory, access));
        driver.stop().and(tested)
    });
    outcome.and(clean(&directory))
}

/// Removes the directory, unless something is mounted there still.
fn clean(directory: &Path) -> anyhow::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    if mounts.contains(&directory.display().to_string()) {
        bail!("something is still mounted in {}: unmount it and remove the directory", directory.display());
    }
    std::fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))
}

fn test(sanity: &Path, directory: &Path, access: &str) -> anyhow::Result<()> {
    eprintln!("\nvolumes as {access}:");
    let tested = program(sanity, &options(directory, access)).run();
    let report = std::fs::read(directory.join("report.json")).context("csi-sanity left no report")?;
    tell_left_out(&report)?;
    tested
}

/// What the test program is told; the driver's socket lies in the directory, and `access` is how volumes are asked for.
pub(crate) fn options(directory: &Path, access: &str) -> Vec<String> {
    let at = |name: &str| directory.join(name).display().to_string();
    vec![
        format!("--csi.endpoint={}", at("csi.sock")),
        format!("--csi.stagingdir={}", at("staging")),
        format!("--csi.mountdir={}", at("target")),
        format!("--csi.testvolumeaccesstype={access}"),
        format!("--csi.testvolumesize={VOLUME_BYTES}"),
        format!("--csi.testvolumeexpandsize={}", 2 * VOLUME_BYTES),
        "--ginkgo.no-color".to_owned(),
        format!("--ginkgo.json-report={}", at("report.json")),
    ]
}

/// Prints which cases did not apply, and why.
pub(crate) fn tell_left_out(report: &[u8]) -> anyhow::Result<()> {
    for (reason, cases) in left_out(&serde_json::from_slice(report)?) {
        eprintln!("left out, {} cases: {reason}", cases.len());
        for case in cases {
            eprintln!("  {case}");
        }
    }
    Ok(())
}

/// The cases that did not apply, by reason.
fn left_out(report: &Value) -> BTreeMap<String, Vec<String>> {
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let suites = report.as_array().into_iter().flatten();
    for case in suites.flat_map(|suite| suite["SpecReports"].as_array().into_iter().flatten()) {
        let reason = match case["State"].as_str() {
            Some("skipped") => case["Failure"]["Message"].as_str().unwrap_or("no reason is given"),
            Some("pending") => "switched off by the test program itself",
            _ => continue,
        };
        let words =
            case["ContainerHierarchyTexts"].as_array().into_iter().flatten().chain([&case["LeafNodeText"]]);
        let name = words.filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
        reasons.entry(reason.to_owned()).or_default().push(name);
    }
    reasons
}

/// The driver as a process of its own.
struct Driver(Child);

impl Driver {
    fn start(directory: &Path) -> anyhow::Result<Self> {
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
        let child = Command::new(target.join("debug/orlop"))
            .args(["driver", "--node-id", "conformance", "--loop-drive", DRIVE, "--endpoint"])
            .arg(format!("unix://{}", directory.join("csi.sock").display()))
            .arg("--data-dir")
            .arg(directory.join("data"))
            .env("RUST_LOG", "error")
            .spawn()
            .context("starting the driver")?;
        let mut driver = Self(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !directory.join("csi.sock").exists() {
            if let Some(status) = driver.0.try_wait()? {
                bail!("the driver ended before it served: {status}");
            }
            if Instant::now() > deadline {
                driver.stop()?;
                bail!("the driver did not serve in time");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(driver)
    }

    /// Ends it in order, so that it gives its drive back.
    fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = Pid::from_raw(self.0.id().cast_signed()) {
            kill_process(pid, Signal::TERM)?;
        }
        let status = self.0.wait()?;
        if !status.success() {
            bail!("the driver did not end well: {status}");
        }
        Ok(())
    }
}

/// csi-sanity, which the Go toolchain builds from its published module.
pub(crate) fn sanity() -> anyhow::Result<PathBuf> {
    let directory = cache()?.join(format!("csi-sanity-{SANITY}"));
    let binary = directory.join("csi-sanity");
    if !binary.exists() {
        program("go", &["version"]).read().context("no Go toolchain; install Go 1.26 or newer")?;
        let module = format!("github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v{SANITY}");
        program("go", &["install", module.as_str()]).env("GOBIN", &directory).run()?;
    }
    Ok(binary)
}

#[cfg(test)]
mod tests {
    use super::left_out;

    #[test]
    fn what_was_left_out_is_told_by_reason() {
        let case = |state: &str, text: &str, why: &str| {
            serde_json::json!({"State": state, "ContainerHierarchyTexts": ["Node"], "LeafNodeText": text,
                "Failure": {"Message": why}})
        };
        let report = serde_json::json!([{"SpecReports": [
            case("passed", "a", ""), case("skipped", "b", "no such service"), case("skipped", "c", "no such service"),
        ]}]);
        let told = left_out(&report);
        assert_eq!(
            told.into_iter().collect::<Vec<_>>(),
            [("no such service".to_owned(), vec!["Node b".to_owned(), "Node c".to_owned()],)]
        );
    }
}
