use super::*;
use crate::{
    containers::attempt::{AttemptRecord, Exit, Started, Stopping},
    volumes::{
        local::Marker,
        stages::{PublishRecord, StageRecord},
    },
};

/// What earlier versions wrote, as it lay on disk.
fn earlier<T: Record>(version: u64, name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/records/{version}/{name}"));
    read(&path).unwrap().unwrap()
}

#[test]
fn records_of_earlier_versions_are_read() {
    assert_eq!(earlier::<Started>(0, "started.json").pid, 4242);
    assert_eq!(earlier::<Stopping>(0, "stopping.json").at.to_string(), "2026-05-01T10:00:01Z");
    assert_eq!(earlier::<StageRecord>(0, "stage.json").handle, "h");
    let kubelets: PublishRecord = earlier(0, "vol_data.json");
    assert!(!kubelets.own.ready && kubelets.driver == "d");
    let attempt: AttemptRecord = earlier(1, "attempt.json");
    assert_eq!((attempt.number, attempt.image), (3, None));
    assert_eq!(earlier::<Exit>(1, "exit.json").code, 143);
    assert!(earlier::<Marker>(1, "ready").memory);
    let publication: PublishRecord = earlier(1, "vol_data.json");
    assert!(publication.own.ready && publication.own.attached);
}

/// A record is found to be cut short or changed in any of its bits, and one of a later version is left alone.
fn holds<T: Record + PartialEq>(version: u64, name: &str) {
    let record: T = earlier(version, name);
    let whole = render(&record).unwrap();
    let same = |bytes: &[u8]| parse::<T>(bytes).ok().map(|read| read == record);
    assert_eq!(same(&whole), Some(true));
    for length in 0..whole.len() {
        assert_eq!(same(&whole[..length]), None, "{name} cut to {length}");
    }
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // Flips in the name of the sum take that away; the content is then what it was.
        assert_ne!(same(&flipped), Some(false), "{name} with bit {bit} flipped");
    }
    let (now, next) = (format!(r#""format":{}"#, T::FORMAT), format!(r#""format":{}"#, T::FORMAT + 1));
    let newer = String::from_utf8(whole).unwrap().replace(&now, &next);
    assert!(matches!(parse::<T>(newer.as_bytes()), Err(Fault::Newer(_))), "{name}");
}

#[test]
fn flipped_bits_are_found_and_newer_records_refused() {
    holds::<AttemptRecord>(1, "attempt.json");
    holds::<Exit>(1, "exit.json");
    holds::<PublishRecord>(1, "vol_data.json");
    holds::<Started>(0, "started.json");
}
