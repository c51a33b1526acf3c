//! Damaged files on a drive: what is wrong with one volume is that volume's trouble alone.

use super::*;
use crate::{CreateError, MountError, MountFlags, record::FORMAT};

const MIB: u64 = 1 << 20;

/// Two volumes, and what the record of the first is called.
async fn furnished(kind: Kind) -> (World, VolumeId, VolumeId, PathBuf) {
    let world = World::new(kind).await;
    let one = world.drives.create(kind.request(SIZE)).await.expect("create").id;
    let other = CreateVolume { name: "other".to_owned(), ..kind.request(32 * MIB) };
    let other = world.drives.create(other).await.expect("create").id;
    let records = world.drives.drives()[0].mount.clone().expect("mounted").join(".orlop/volumes");
    (world, one, other, records)
}

#[tokio::test]
async fn a_damaged_record_of_a_volume_takes_that_volume_alone() {
    let flipped = |bytes: &mut Vec<u8>| {
        let at = bytes.windows(5).position(|word| word == b"ready").expect("it is ready");
        bytes[at] ^= 4;
    };
    let another = |bytes: &mut Vec<u8>| {
        let about = VolumeRecord { key: "pvc-9".to_owned(), ..record(None) };
        *bytes = crate::record::render(&about);
    };
    type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);
    let damages: [(&str, Damage<'_>); 5] = [
        ("flipped", &flipped),
        ("cut", &|bytes| bytes.truncate(40)),
        ("empty", &|bytes| bytes.clear()),
        ("zeros", &|bytes| bytes.fill(0)),
        ("another's", &another),
    ];
    for kind in kinds() {
        for (what, damage) in damages {
            let (mut world, one, other, records) = furnished(kind).await;
            let before = world.drives.drives().remove(0);
            let file = records.join("pvc-1.json");
            let mut bytes = world.host.read(&file).expect("read").expect("there");
            damage(&mut bytes);
            world.host.write_durable(&file, &bytes, 0o600).expect("write");
            world.restart(Ending::PowerLoss).await;

            let when = format!("{kind:?} {what}");
            let drive = world.drives.drives().remove(0);
            let condition = drive.trouble.expect("people are told");
            assert!(condition.contains("pvc-1"), "{when}: {condition}");
            assert!(drive.allocated.abs_diff(before.allocated) <= 2 * MIB, "{when}: its space counts");
            let volume = world.drives.volume(&one).expect("it is listed");
            assert!(volume.trouble.is_some_and(|why| why.contains("pvc-1.json")), "{when}");
            assert_eq!(world.drives.volume(&other).expect("served").trouble, None, "{when}");
            assert!(disk(&world.host).has(Path::new("volumes/pvc-1")), "{when}: nothing of it is removed");
            let found = world.host.read(&file).expect("read").expect("there");
            assert_eq!(found, bytes, "{when}: nor is its record changed");

            let refused = world.drives.create(kind.request(SIZE)).await;
            assert!(matches!(refused, Err(CreateError::Unfit { .. })), "{when}: {refused:?}");
            let staged = match kind.access {
                AccessType::Mount => {
                    world.drives.stage(&one, Path::new("/node/staging"), MountFlags::default()).await
                }
                AccessType::Block => world.drives.stage_block(&one).await,
            };
            assert!(matches!(staged, Err(MountError::NoDrive { .. })), "{when}: {staged:?}");
            let third = CreateVolume { name: "third".to_owned(), ..kind.request(16 * MIB) };
            let third = world.drives.create(third).await.expect("the drive serves").id;

            world.drives.delete(&one).await.expect("it can be freed");
            world.drives.delete(&third).await.expect("delete");
            world.check(&[32 * MIB], &when);
            assert_eq!(world.drives.drives()[0].trouble, None, "{when}");
            world.restart(Ending::Crash).await;
            world.check(&[32 * MIB], &when);
        }
    }
}

#[tokio::test]
async fn drafts_go_and_foreign_files_stay() {
    let (mut world, _, _, records) = furnished(BackendKind::Btrfs.into()).await;
    let write = |file: PathBuf| world.host.write_durable(&file, b"{", 0o600).expect("write");
    let own = records.parent().expect("a parent").to_owned();
    for draft in [".pvc-1.json.new", ".pvc-7.json.new"] {
        write(records.join(draft));
    }
    for draft in [".drive.json.new", ".labels.json.new", ".trial.new"] {
        write(own.join(draft));
    }
    for foreign in ["README", "pvc-1.json.bak", ".hidden"] {
        write(records.join(foreign));
    }
    world.restart(Ending::PowerLoss).await;
    assert_eq!(world.drives.volumes().len(), 2);
    let mut expected = [".hidden", "README", "other.json", "pvc-1.json", "pvc-1.json.bak"].map(PathBuf::from);
    expected.sort();
    let mut found: Vec<PathBuf> =
        world.host.list(&records).expect("list").into_iter().map(PathBuf::from).collect();
    found.sort();
    assert_eq!(found, expected);
    let own = world.host.list(&own).expect("list");
    assert!(!own.iter().any(|name| linux::is_draft(name)), "{own:?}");
}

#[tokio::test]
async fn a_damaged_record_of_the_drive_or_of_its_labels_is_no_reason_not_to_serve() {
    let (mut world, one, _, records) = furnished(BackendKind::Xfs.into()).await;
    let own = records.parent().expect("a parent").to_owned();
    let id = one.drive().clone();
    world.drives.label(&id, [("a".to_owned(), "b".to_owned())].into()).await.expect("label");
    for damaged in ["drive.json", "labels.json"] {
        world.host.write_durable(&own.join(damaged), b"{\"format\": 3", 0o600).expect("write");
    }
    world.restart(Ending::PowerLoss).await;
    let drive = world.drives.drives().remove(0);
    assert!(drive.trouble.expect("told").contains("labels") && drive.labels.is_empty());
    world.drives.label(&id, [].into()).await.expect("label");
    assert_eq!(world.drives.drives()[0].trouble, None);
    let whole = |name| {
        crate::record::parse::<crate::record::DriveRecord>(
            &world.host.read(&own.join(name)).expect("read").expect("there"),
        )
    };
    assert_eq!(whole("drive.json").expect("mended"), whole("drive.copy.json").expect("whole"));

    for damaged in ["drive.json", "drive.copy.json"] {
        world.host.write_durable(&own.join(damaged), b"{", 0o600).expect("write");
    }
    world.host.lose_power();
    let before = disk(&world.host);
    let drives = open(&world.host).await;
    let DriveState::Failed { reason } = &drives.drives()[0].state else { panic!("it serves") };
    assert!(reason.contains("damaged") && reason.contains("backup"), "{reason}");
    assert_eq!(disk(&world.host), before, "untouched");
}

#[tokio::test]
async fn earlier_formats_are_brought_up_to_date_and_a_newer_one_is_refused_untouched() {
    let (mut world, _, _, records) = furnished(BackendKind::Xfs.into()).await;
    let file = records.join("pvc-1.json");
    let older = |world: &World, format: u32| {
        let bytes = world.host.read(&file).expect("read").expect("there");
        let mut record: serde_json::Value = serde_json::from_slice(&bytes).expect("a record");
        record["format"] = format.into();
        record.as_object_mut().expect("an object").remove("sum");
        world.host.write_durable(&file, record.to_string().as_bytes(), 0o600).expect("write");
    };
    for format in 1..FORMAT {
        older(&world, format);
        world.restart(Ending::PowerLoss).await;
        let bytes = world.host.read(&file).expect("read").expect("there");
        assert_eq!(crate::record::format_of(&bytes), Some(FORMAT), "of format {format}");
    }
    older(&world, FORMAT + 1);
    world.host.write_durable(&records.join(".pvc-1.json.new"), b"{", 0o600).expect("write");
    world.host.lose_power();
    let before = disk(&world.host);
    let drives = open(&world.host).await;
    let DriveState::Failed { reason } = &drives.drives()[0].state else { panic!("it serves") };
    assert!(reason.contains(&format!("format {}", FORMAT + 1)), "{reason}");
    assert_eq!(disk(&world.host), before);
}
