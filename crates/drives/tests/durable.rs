//! What was answered is on the device, not only in the kernel's memory: the file of a drive is copied when an answer was
//! given, and the copy opened as after power loss. Needs root.

mod bench;

use std::{process::Command, sync::Arc};

use bench::{Bench, MIB, journal::settle, request};
use drives::{CreateVolume, DriveState, Drives, Source};
use linux::Kernel;

/// Copies of the file of a drive, and the volumes that were there when each was made.
struct Moments<'a> {
    bench: &'a Bench,
    expected: Vec<Vec<(String, u64)>>,
}

impl Moments<'_> {
    fn note(&mut self, drives: &Drives) {
        let copy = self.bench.path(&format!("copy-{}.img", self.expected.len()));
        let copied =
            Command::new("cp").arg("--sparse=always").arg(self.bench.path("a.img")).arg(copy).status();
        assert!(copied.expect("cp").success());
        self.expected.push(names(drives));
    }
}

fn names(drives: &Drives) -> Vec<(String, u64)> {
    drives.volumes().into_iter().map(|volume| (volume.name, volume.size)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_on_the_device() {
    let Some(bench) = Bench::new() else { return };
    if matches!(bench.source("a.img"), Source::Device(_)) {
        eprintln!("SKIPPED: the drive is no file that could be copied");
        return;
    }
    let drives = bench.fresh(&["a.img"]).await;
    let mut moments = Moments { bench: &bench, expected: Vec::new() };
    let mut ids = Vec::new();
    // btrfs keeps small records in its tree, and the last one not.
    for (number, notes) in [0, 600, 1200, 9000].into_iter().enumerate() {
        let notes = [("note".to_owned(), "n".repeat(notes))].into();
        let wanted = CreateVolume { notes, ..request(&format!("pvc-{number}"), 16 * MIB) };
        ids.push(drives.create(wanted).await.expect("create").id);
        moments.note(&drives);
    }
    drives.expand(&ids[0], 32 * MIB, None).await.expect("expand");
    moments.note(&drives);
    // Many at once share flushes.
    let mut calls = tokio::task::JoinSet::new();
    for id in ids {
        let drives = drives.clone();
        calls.spawn(async move { drives.delete(&id).await.expect("delete") });
    }
    for number in 0..8 {
        let drives = drives.clone();
        calls.spawn(async move {
            drives.create(request(&format!("late-{number}"), 16 * MIB)).await.expect("create");
        });
    }
    calls.join_all().await;
    moments.note(&drives);
    drives.close().await.expect("close");

    for (number, expected) in moments.expected.iter().enumerate() {
        let source = bench.source_of(&format!("copy-{number}.img"), 512 * MIB);
        let copy = Drives::open(Arc::new(Kernel), bench.path("drives"), vec![source]).await.expect("open");
        assert_eq!(copy.drives()[0].state, DriveState::Ready, "moment {number}");
        settle(&copy).await;
        assert_eq!(names(&copy), *expected, "moment {number}");
        copy.close().await.expect("close");
    }
}
