//! The checks of the test command, cheapest first.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::command::{cargo, program};
use crate::tools;

/// What a first build and the guests write, with room to spare.
pub(crate) const SPACE: u64 = 12 << 30;

/// The rooms from top to bottom; an arrow may only point from a room to one further down.
const ROOMS: &[&str] = &[
    "xtask",
    "orlop",
    "simulator",
    "sidecars",
    "controllers",
    "scheduler",
    "node-agent",
    "api-server",
    "object-store",
    "runtime",
    "resources",
    "driver",
    "drives",
    "linux",
    "csi",
    "values",
    "clock",
    "corpus",
];
/// The first room that knows nothing of Kubernetes.
const LINE: &str = "driver";
/// What a room below the line may not depend upon.
const KUBERNETES: &[&str] = &["kube", "k8s-openapi"];

/// Format, directions between crates, licences and bans.
pub(crate) fn without_build() -> anyhow::Result<()> {
    cargo(&["fmt", "--all", "--check"]).run()?;
    directions()?;
    // Advisories change by the day, not by the commit: `cargo deny check advisories` is run by itself.
    program(tools::deny()?, &["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]).run()
}

/// Clippy with warnings as errors.
pub(crate) fn lints() -> anyhow::Result<()> {
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).run()
}

/// Every test of the workspace.
pub(crate) fn tests() -> anyhow::Result<()> {
    let kubectls = tools::kubectls()?;
    let kubectls =
        std::env::join_paths(kubectls).context("a kubectl lies at a path with a colon; move it")?;
    // All of them, so that one run names every failure.
    cargo(&["test", "--workspace", "--no-fail-fast"]).env("ORLOP_KUBECTLS", kubectls).run()
}

/// Every arrow between our crates points downwards; below the line nothing knows Kubernetes; only `linux`
/// steps out of the workspace's lints, which forbid unsafe code.
fn directions() -> anyhow::Result<()> {
    eprintln!("\n» directions between crates");
    let metadata = cargo(&["metadata", "--format-version", "1", "--no-deps"]).read()?;
    let wrong = wrong_arrows(&serde_json::from_str(&metadata)?)?;
    for package in ROOMS.iter().filter(|room| !["linux", "xtask"].contains(room)) {
        let manifest = std::fs::read_to_string(format!("crates/{package}/Cargo.toml"))?;
        if !manifest.contains("[lints]\nworkspace = true") {
            bail!("crates/{package}/Cargo.toml lacks the workspace's lints; add `[lints] workspace = true`");
        }
    }
    if !wrong.is_empty() {
        bail!(
            "dependencies must point downwards, and Kubernetes stays above `{LINE}`:\n  {}",
            wrong.join("\n  ")
        );
    }
    Ok(())
}

fn wrong_arrows(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let depth: BTreeMap<&str, usize> = ROOMS.iter().enumerate().map(|(at, room)| (*room, at)).collect();
    let line = depth[LINE];
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().context("cargo metadata names no packages")? {
        let name = package["name"].as_str().unwrap_or_default();
        let &from =
            depth.get(name).with_context(|| format!("crate {name} has no place in ROOMS; give it one"))?;
        let arrows = package["dependencies"].as_array().into_iter().flatten();
        for arrow in arrows.filter(|arrow| arrow["kind"] != "dev") {
            let to = arrow["name"].as_str().unwrap_or_default();
            let upwards = depth.get(to).is_some_and(|&to| to <= from);
            if upwards || (from >= line && KUBERNETES.contains(&to)) {
                wrong.push(format!("{name} -> {to}"));
            }
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_upwards_and_kubernetes_below_the_line_are_wrong() {
        let package = |name: &str, to: &str, kind: Value| serde_json::json!({"name": name, "dependencies": [{"name": to, "kind": kind}]});
        let metadata = serde_json::json!({"packages": [
            package("driver", "drives", Value::Null),
            package("linux", "drives", Value::Null),
            package("drives", "kube", Value::Null),
            package("sidecars", "api-server", "dev".into()),
            package("runtime", "kube", Value::Null),
        ]});
        assert_eq!(wrong_arrows(&metadata).unwrap(), ["linux -> drives", "drives -> kube"]);
    }
}
