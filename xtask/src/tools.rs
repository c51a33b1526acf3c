//! Third-party tools that tests use, built once per version and kept outside the checkout.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::command::{cache, cargo, program};

const DENY: &str = "0.20.2";
/// The newest kubectl that Orlop promises to work with, as its Go module's version.
const KUBECTL: &str = "0.36.0";

/// cargo-deny.
pub(crate) fn deny() -> anyhow::Result<PathBuf> {
    let root = cache()?.join(format!("cargo-deny-{DENY}"));
    let binary = root.join("bin/cargo-deny");
    if !binary.exists() {
        let target = root.join("build");
        cargo(
            &["install", "cargo-deny", "--locked", "--no-default-features", "--version", DENY, "--root"]
                .map(Path::new),
        )
        .arguments(&[&root])
        .env("CARGO_TARGET_DIR", &target)
        .run()?;
        std::fs::remove_dir_all(target).ok();
    }
    Ok(binary)
}

/// The kubectl binaries to test with: the installed one where it is new enough, and the newest, which the
/// Go toolchain builds from its published module. Empty where neither can be had.
pub(crate) fn kubectls() -> anyhow::Result<Vec<PathBuf>> {
    let installed = PathBuf::from("kubectl");
    let mut found = Vec::new();
    if program(&installed, &["version", "--client", "-o", "json"]).read().is_ok_and(|text| new_enough(&text))
    {
        found.push(installed);
    }
    match newest_kubectl() {
        Ok(binary) => found.push(binary),
        Err(error) => eprintln!("kubectl {KUBECTL} is left out of the tests: {error:#}"),
    }
    Ok(found)
}

/// Whether `kubectl version --client -o json` tells of 1.32 or newer.
fn new_enough(text: &str) -> bool {
    let version: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let minor = version["clientVersion"]["minor"].as_str().unwrap_or("");
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<u32>().is_ok_and(|minor| minor >= 32)
}

fn newest_kubectl() -> anyhow::Result<PathBuf> {
    let dir = cache()?.join(format!("kubectl-{KUBECTL}"));
    let binary = dir.join("kubectl");
    if binary.exists() {
        return Ok(binary);
    }
    program("go", &["version"]).read().context("no Go toolchain; install Go 1.26 or newer")?;
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    std::fs::write(dir.join("main.go"), MAIN)?;
    std::fs::write(dir.join("go.mod"), "module kubectl\n\ngo 1.26.0\n")?;
    let go = |arguments: &[&str]| program("go", arguments).dir(&dir).run();
    go(&["get", &format!("k8s.io/kubectl@v{KUBECTL}"), &format!("k8s.io/component-base@v{KUBECTL}")])?;
    go(&["mod", "tidy"])?;
    let (_, minor) = KUBECTL.split_at(2);
    let version = format!("-s -w -X k8s.io/component-base/version.gitVersion=v1.{minor}");
    go(&["build", "-trimpath", "-ldflags", &version, "-o", "kubectl.new", "."])?;
    std::fs::rename(dir.join("kubectl.new"), &binary)?;
    Ok(binary)
}

const MAIN: &str = r#"package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
)

func main() { os.Exit(cli.Run(cmd.NewDefaultKubectlCommand())) }
"#;

#[cfg(test)]
mod tests {
    use super::new_enough;

    #[test]
    fn kubectl_from_1_32_on_is_new_enough() {
        let client = |minor: &str| format!(r#"{{"clientVersion":{{"major":"1","minor":"{minor}"}}}}"#);
        assert!(new_enough(&client("32")) && new_enough(&client("36+")));
        assert!(!new_enough(&client("20")) && !new_enough("") && !new_enough("{}"));
    }
}
