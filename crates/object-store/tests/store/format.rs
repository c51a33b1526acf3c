//! Files that are not quite a store of today.

use object_store::{OpenError, Options, Precondition, Store};

use crate::disk::Disk;
use crate::{pod, run, stamped};

/// A store with one object: as it is while a process has it open, and after it was closed.
fn images() -> (Vec<u8>, Vec<u8>) {
    let disk = Disk::default();
    run(async {
        let store = Store::open_backend(disk.clone(), Options::default()).unwrap();
        store.put(pod("a"), Precondition::Absent, stamped("x")).await.unwrap();
        let open = disk.image();
        store.close().await;
        (open, disk.image())
    })
}

#[test]
fn what_is_newer_or_foreign_is_refused_untouched() {
    let newer = |mut image: Vec<u8>| {
        image[12] = 2;
        image
    };
    let headless = |mut image: Vec<u8>| {
        image[..4096].fill(0);
        image
    };
    let (open, closed) = images();
    for (what, image, newer) in [
        ("a newer format", newer(closed.clone()), true),
        ("a newer format that was not closed", newer(open.clone()), true),
        ("a store without its head", headless(closed.clone()), false),
        ("a short text", b"hello".to_vec(), false),
        ("a long text", b"hello ".repeat(5000), false),
        ("a bare database", closed[4096..].to_vec(), false),
        ("only the head", closed[..4096].to_vec(), false),
        ("a head before something else", [&closed[..4096], &[7; 9000]].concat(), false),
    ] {
        let disk = Disk::from_image(image.clone());
        let error = Store::open_backend(disk.clone(), Options::default()).expect_err(what);
        match newer {
            true => {
                assert!(matches!(error, OpenError::NewerFormat { found: 2, known: 1 }), "{what}: {error}")
            }
            false => assert!(matches!(error, OpenError::Corrupt { .. }), "{what}: {error:?}"),
        }
        assert!(disk.image() == image, "{what} was changed");
    }
}

#[test]
fn after_an_unclean_stop_damaged_bytes_are_not_served() {
    let (mut image, _) = images();
    let at = image.windows(3).position(|bytes| bytes == b"2:x").expect("the object's bytes");
    image[at] ^= 1;
    if let Ok(store) = Store::open_backend(Disk::from_image(image), Options::default()) {
        assert_eq!(store.get(&pod("a")), None);
    }
}

#[test]
fn files_are_private_and_missing_directories_named() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    run(async { Store::open(&path, Options::default()).unwrap().close().await });
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let error = Store::open(&directory.path().join("no/store.redb"), Options::default()).unwrap_err();
    assert!(error.to_string().contains("no/store.redb"), "{error}");
}
