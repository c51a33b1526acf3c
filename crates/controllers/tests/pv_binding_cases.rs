//! Kubernetes' binding behaviour as data: given, when, then.
//!
//! The cases are read from the file that `ORLOP_PV_CASES` names, or from `shared/cases/pv-binding.json` beside the
//! checkout. Each is played against the pure steps, with an API server that is a map.

#![allow(clippy::unwrap_used, clippy::large_futures, reason = "a test may fail")]

mod cases;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

/// Cases that don't pass yet. None may be added; one that passes must be taken off.
const NOT_YET: &[&str] = &[];

fn file() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ORLOP_PV_CASES") {
        return Some(path.into());
    }
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/cases/pv-binding.json");
    beside.exists().then_some(beside)
}

#[test]
fn pv_binding_cases() {
    let Some(path) = file() else {
        eprintln!("pv_binding_cases: NOT RUN: name a file of cases in ORLOP_PV_CASES");
        return;
    };
    let text = std::fs::read_to_string(&path).expect("the file of cases can be read");
    let document: Value = serde_json::from_str(&text).expect("the file of cases is JSON");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let all = document["cases"].as_array().expect("cases");
    let mut failed = BTreeSet::new();
    for case in all {
        let id = case["id"].as_str().expect("a case has an id");
        if let Err(why) = runtime.block_on(cases::play(case, &document["fixtures"])) {
            eprintln!("{id}: {why}\n    {}", case["about"].as_str().unwrap_or_default());
            failed.insert(id);
        }
    }
    println!("{} of {} passed", all.len() - failed.len(), all.len());
    eprintln!("pv_binding_cases: {} of {} passed", all.len() - failed.len(), all.len());
    let not_yet = BTreeSet::from_iter(NOT_YET.iter().copied());
    let unexpected: Vec<_> = failed.difference(&not_yet).collect();
    assert!(unexpected.is_empty(), "these cases fail: {unexpected:?}");
    let passing: Vec<_> =
        not_yet.iter().filter(|id| !failed.contains(*id) && all.iter().any(|c| c["id"] == **id)).collect();
    assert!(passing.is_empty(), "these cases pass now, take them off the list: {passing:?}");
}
