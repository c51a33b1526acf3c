//! What lies on a drive, mangled: nothing makes opening it panic or count wrong, and what is refused is left as it is.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

use linux::{Files, LoopDevices};
use proptest::prelude::*;

use crate::{
    BackendKind, CreateVolume, DriveId, DriveState, Drives, Force, MountFlags, Source, VolumeId, directpv,
    expected::Sighting,
    fake::FakeHost,
    record::{DriveRecord, FORMAT, VolumeRecord, parse, render},
};

const IMAGE: &str = "/loop/a.img";
const ROOT: &str = "/drives";

fn corpus_of(kind: &str) -> Vec<Vec<u8>> {
    corpus::files(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(kind))
}

fn source() -> Source {
    Source::LoopFile { path: IMAGE.into(), size: 1 << 30 }
}

async fn open(host: &Arc<FakeHost>) -> Drives {
    Drives::open(host.clone(), ROOT.into(), vec![source()]).await.expect("opened")
}

/// A drive with a volume, after its file `name` below `.orlop` became `bytes`.
async fn with_file(name: &str, bytes: &[u8]) -> (Arc<FakeHost>, Drives) {
    let host = Arc::new(FakeHost::new());
    let drives = open(&host).await;
    drives.initialise(source(), Some(BackendKind::Xfs), Force::No).await.expect("initialised");
    let wanted = CreateVolume { name: "other".to_owned(), required: 1 << 20, ..CreateVolume::default() };
    drives.create(wanted).await.expect("created");
    let mount = drives.drives()[0].mount.clone().expect("mounted");
    host.write_durable(&mount.join(".orlop").join(name), bytes, 0o600).expect("written");
    host.lose_power();
    let drives = open(&host).await;
    (host, drives)
}

/// What a drive says of itself holds together.
fn sound(drives: &Drives) -> Result<(), TestCaseError> {
    for drive in drives.drives() {
        prop_assert!(drive.free <= drive.capacity && drive.capacity <= drive.size, "{drive:?}");
        if let DriveState::Failed { reason } = &drive.state {
            prop_assert!(!reason.is_empty());
        }
    }
    let capacity = drives.capacity(None, &crate::DriveSelector::default(), &Default::default());
    prop_assert!(capacity.largest_volume <= capacity.available);
    Ok(())
}

fn run(case: impl Future<Output = Result<(), TestCaseError>>) -> Result<(), TestCaseError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(case)
}

proptest! {
    #![proptest_config(corpus::cases(4_000))]

    #[test]
    fn records_are_refused_or_understood(bytes in corpus::near([corpus_of("drive"), corpus_of("volume")].concat())) {
        if let Ok(record) = parse::<VolumeRecord>(&bytes) {
            prop_assert!(record.format <= FORMAT);
            prop_assert_eq!(parse::<VolumeRecord>(&render(&record)).expect("its own"), record);
        }
        if let Ok(record) = parse::<DriveRecord>(&bytes) {
            prop_assert_eq!(parse::<DriveRecord>(&render(&record)).expect("its own"), record);
        }
    }

    #[test]
    fn sightings_are_refused_or_understood(bytes in corpus::near(corpus_of("expected"))) {
        let _ = parse::<Sighting>(&bytes);
    }

    #[test]
    fn what_directpv_noted_is_about_this_drive_or_not(bytes in corpus::near(corpus_of("directpv"))) {
        let id = DriveId("6d9b8d5b-8a6e-4b9c-9a3e-2f6f2f3f4a5b".to_owned());
        if let Err(why) = directpv::check_meta(&bytes, &id) {
            prop_assert!(why.contains(id.as_str()));
        }
    }

    #[test]
    fn only_plain_names_are_volumes(name in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Some(name) = directpv::volume_name(OsStr::from_bytes(&name)) {
            prop_assert!(!name.contains('/') && !name.starts_with('.') && Path::new(name).components().count() == 1);
        }
    }

    #[test]
    fn identities_are_read_as_they_are_written(text in "[a-z0-9/._-]{0,140}|.{0,20}") {
        if let Ok(id) = text.parse::<VolumeId>() {
            prop_assert_eq!(id.to_string(), text);
            prop_assert!(Path::new(id.key()).components().count() == 1 && id.key() != "..");
        }
    }

    #[test]
    fn mount_flags_are_known_or_refused(flags in prop::collection::vec("[a-z,=]{0,12}", 0..4)) {
        let _ = MountFlags::parse(&flags);
    }
}

proptest! {
    #![proptest_config(corpus::cases(250))]

    #[test]
    fn a_drive_with_any_record_of_a_volume_opens_or_says_why(bytes in corpus::near(corpus_of("volume"))) {
        run(async {
            let (host, drives) = with_file("volumes/pvc-1.json", &bytes).await;
            sound(&drives)?;
            if let DriveState::Failed { .. } = drives.drives()[0].state {
                // Refused untouched: the other volume is there once the record is mended.
                let path = Path::new("volumes/other/");
                host.attach_loop(Path::new(IMAGE)).expect("attached");
                prop_assert!(host.disk(Path::new(IMAGE)).has(path), "{path:?}");
            } else {
                prop_assert!(drives.volumes().iter().any(|volume| volume.name == "other"));
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_drive_with_any_record_of_itself_opens_or_says_why(bytes in corpus::near(corpus_of("drive"))) {
        run(async {
            let (_, drives) = with_file("drive.json", &bytes).await;
            sound(&drives)
        })?;
    }
}
