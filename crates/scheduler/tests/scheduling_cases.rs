//! Scheduling as data: a world and a pod, and which plugin refuses it on which node, or how nodes are scored.
//!
//! A few cases of our own always run. Many more, with what kube-scheduler's plugins answered, are read from the file that
//! `ORLOP_SCHEDULING_CASES` names, or from `shared/cases/scheduling.json` beside the checkout.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod cases;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

/// Cases that are decided otherwise on purpose, each with the reason.
const BETTER: &[(&str, &str)] =
    &[("wait-provision-014", JOINT_CAPACITY), ("random-volumes-022", JOINT_CAPACITY)];

/// kube-scheduler asks for each claim alone whether it fits, and the second one fails when the first was made.
const JOINT_CAPACITY: &str = "claims of one pod that don't fit together are no room for it";

fn file() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ORLOP_SCHEDULING_CASES") {
        return Some(path.into());
    }
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/cases/scheduling.json");
    beside.exists().then_some(beside)
}

/// Plays all cases; returns those that fail, and how many there are.
fn play(text: &str) -> (BTreeSet<String>, Vec<Value>) {
    let document: Value = serde_json::from_str(text).expect("the file of cases is JSON");
    let all = document["cases"].as_array().expect("cases").clone();
    let mut failed = BTreeSet::new();
    for case in &all {
        let id = case["id"].as_str().expect("a case has an id");
        if let Err(why) = cases::play(case) {
            eprintln!("{id}: {why}\n    {}", case["about"].as_str().unwrap_or_default());
            failed.insert(id.to_owned());
        }
    }
    (failed, all)
}

#[test]
fn our_own_cases() {
    let (failed, all) = play(include_str!("cases/own.json"));
    assert!(failed.is_empty(), "of {} cases these fail: {failed:?}", all.len());
}

#[test]
fn cases_from_kube_scheduler() {
    let Some(path) = file() else {
        eprintln!("cases_from_kube_scheduler: NOT RUN: name a file of cases in ORLOP_SCHEDULING_CASES");
        return;
    };
    let text = std::fs::read_to_string(&path).expect("the file of cases can be read");
    let (failed, all) = play(&text);
    println!("{} of {} passed", all.len() - failed.len(), all.len());
    eprintln!("cases_from_kube_scheduler: {} of {} passed", all.len() - failed.len(), all.len());
    let find = |id: &str| all.iter().find(|case| case["id"] == id);
    for (id, why) in BETTER.iter().filter(|(id, _)| find(id).is_some()) {
        assert!(failed.contains(*id), "{id} passes now, take it off the list ({why})");
    }
    let listed = |id: &&String| BETTER.iter().any(|(known, _)| known == *id);
    let (better, unexpected): (Vec<_>, Vec<_>) = failed
        .iter()
        .filter(|id| !listed(id))
        .partition(|id| find(id).is_some_and(cases::differs_by_joint_capacity));
    if !better.is_empty() {
        eprintln!(
            "cases_from_kube_scheduler: claims don't fit together, as kube-scheduler thinks: {better:?}"
        );
    }
    assert!(unexpected.is_empty(), "these cases fail: {unexpected:?}");
}
