//! Requests and the answers that a Kubernetes API server gives to them, as tables.
//!
//! Our own small table always runs. Larger ones of the same form are taken from `ORLOP_API_CASES`, a file or a directory
//! of files; without it from `shared/cases/api` beside the checkout, if that is there.

#![allow(clippy::unwrap_used)]

mod compare;
mod left_out;
mod play;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Where the larger tables are, by their names, when no other place is named.
const BESIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/cases/api");

#[tokio::test]
async fn our_own_cases_pass() {
    let table: Value = serde_json::from_str(include_str!("own.json")).unwrap();
    let (passed, failures) = run(&table).await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(passed > 0, "nothing ran");
}

#[tokio::test]
async fn the_larger_tables_pass() {
    let files = files();
    if files.is_empty() {
        eprintln!("NOT TESTED: no file of API cases: name one, or a directory of them, with ORLOP_API_CASES");
        return;
    }
    let mut failures = Vec::new();
    for file in files {
        let text =
            std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let table: Value = serde_json::from_str(&text).unwrap();
        let all = table["cases"].as_array().unwrap().len();
        let (passed, failed) = run(&table).await;
        let left_out = all - passed - failed.len();
        println!("{}: {passed} of {all} passed, {left_out} left out with a reason", file.display());
        failures.extend(failed);
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

fn files() -> Vec<PathBuf> {
    let named = std::env::var_os("ORLOP_API_CASES").map(PathBuf::from);
    let place = named.clone().unwrap_or_else(|| BESIDE.into());
    if place.is_file() {
        return vec![place];
    }
    let tables = |name: &Path| name.extension().is_some_and(|extension| extension == "json");
    let mut files: Vec<PathBuf> = match std::fs::read_dir(&place) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(|path| tables(path)).collect(),
        Err(error) if named.is_some() => panic!("{}: {error}", place.display()),
        Err(_) => Vec::new(),
    };
    // Those of server-side apply and protobuf have forms of their own.
    files.retain(|path| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        !["apply", "protobuf"].iter().any(|other| name.contains(other))
    });
    files.sort();
    files
}

/// Plays every case of a table; how many passed, and what was wrong with the others.
async fn run(table: &Value) -> (usize, Vec<String>) {
    let setup = table["setup"].as_array().cloned().unwrap_or_default();
    let (mut passed, mut failures) = (0, Vec::new());
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for case in table["cases"].as_array().unwrap() {
        let (id, group) = (case["id"].as_str().unwrap(), case["group"].as_str().unwrap_or_default());
        let outcome = play::case(&setup, case).await;
        match (outcome, left_out::reason(case)) {
            (Ok(()), None) => passed += 1,
            // A case may pass by chance where a whole kind is left out, but one that is named in the list may not.
            (_, Some(left_out::Reason::Kind(why))) => *reasons.entry(why).or_default() += 1,
            (Ok(()), Some(left_out::Reason::Case(why))) => {
                failures.push(format!("{id} passes, so it is to be taken from the list ({why})"));
            }
            (Err(_), Some(left_out::Reason::Case(why))) => *reasons.entry(why).or_default() += 1,
            (Err(why), None) => failures.push(format!("{id} ({group}: {}): {why}", case["note"])),
        }
    }
    for (why, count) in reasons {
        println!("left out: {count}: {why}");
    }
    (passed, failures)
}
