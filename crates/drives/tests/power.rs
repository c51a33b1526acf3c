//! Work that is cut off at any moment, and what has to be there afterwards. `cargo xtask guest` runs the first test in an
//! emulated machine, cuts its power, and runs the second when it is on again. What the first one says, a line for each
//! step, is what outlived the cut; the second believes it and looks at the drive.

mod bench;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use bench::{
    MIB,
    journal::{self, Journal},
    request,
};
use drives::{CreateVolume, DriveState, Drives, Force, MountFlags, Origin, Source};
use linux::Kernel;

const LANES: u64 = 3;

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo xtask guest sets ${name}"))
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@ {line}").and_then(|()| out.flush()).expect("standard output");
}

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

async fn open() -> Drives {
    let source = Source::Device(setting("ORLOP_DEVICE").into());
    let kind = setting("ORLOP_BACKEND").parse().expect("backend");
    let drives =
        Drives::open(Arc::new(Kernel), "/var/orlop/drives".into(), vec![source]).await.expect("open");
    for source in drives.uninitialised() {
        drives.initialise(source, Some(kind), Force::No).await.expect("initialise");
    }
    assert_eq!(drives.drives()[0].state, DriveState::Ready);
    drives
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "cargo xtask guest cuts it off"]
async fn churn() {
    let drives = open().await;
    let seed: u64 = setting("ORLOP_SEED").parse().expect("seed");
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..LANES {
        let drives = drives.clone();
        lanes.spawn(async move {
            let mut dice = Dice((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(lane));
            for turn in 0.. {
                walk(&drives, &mut dice, &format!("s{seed}-{lane}-{turn}")).await;
            }
        });
    }
    lanes.join_all().await;
}

/// A volume's life, cut short now and then so that volumes stay.
async fn walk(drives: &Drives, dice: &mut Dice, name: &str) {
    let size = (20 + 4 * dice.roll(3)) * MIB;
    say(&format!("creating {name} {size}"));
    let Ok(volume) = drives.create(request(name, size)).await else { return };
    say(&format!("created {name}"));
    let at = PathBuf::from("/var/orlop/staged").join(name);
    drives.stage(&volume.id, &at, MountFlags::default()).await.expect("stage");
    journal::write(&at, name);
    say(&format!("written {name}"));
    if dice.roll(2) == 0 {
        let size = size + 8 * MIB;
        say(&format!("growing {name} {size}"));
        if drives.expand(&volume.id, size, None).await.is_ok() {
            say(&format!("grown {name} {size}"));
        }
    }
    if dice.roll(2) == 0 {
        let snapshot = format!("{name}-snap");
        say(&format!("creating {snapshot} 0"));
        if let Ok(taken) = drives.create_snapshot(&volume.id, &snapshot).await {
            say(&format!("created {snapshot}"));
            let restored = format!("{name}-back");
            say(&format!("creating {restored} 0"));
            let origin = Some(Origin::Snapshot(taken.id.clone()));
            if drives.create(CreateVolume { origin, ..request(&restored, 0) }).await.is_ok() {
                say(&format!("created {restored}"));
                say(&format!("written {restored}"));
            }
            say(&format!("deleting {snapshot}"));
            if drives.delete_snapshot(&taken.id).await.is_ok() {
                say(&format!("deleted {snapshot}"));
            }
        }
    }
    if dice.roll(8) == 0 {
        return;
    }
    drives.unstage(&volume.id, &at).await.expect("unstage");
    for volume in drives.volumes().into_iter().filter(|volume| volume.name.starts_with(name)) {
        say(&format!("deleting {}", volume.name));
        match drives.delete(&volume.id).await {
            Ok(()) => say(&format!("deleted {}", volume.name)),
            Err(error) => panic!("{}: {error}", volume.name),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "cargo xtask guest runs it after a power cut"]
async fn what_was_announced_is_there() {
    let journal = fs::read_to_string(setting("ORLOP_JOURNAL")).expect("journal");
    let journal = Journal::read(journal.lines());
    let drives = open().await;
    journal.holds(&drives, Path::new("/var/orlop/staged")).await;
    journal::all_space_comes_back(&drives).await;
    drives.close().await.expect("close");
    say(&format!("checked {} volumes and snapshots", journal.len()));
}
