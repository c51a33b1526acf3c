//! Taking stock of a drive: every record on it is read, and what is on the drive brought in line with it. What is wrong
//! with one volume is that volume's trouble alone: it is neither used nor removed until somebody deletes it, and what it
//! takes of the drive counts.

use std::{collections::BTreeMap, ffi::OsStr};

use serde::Deserialize;

use crate::{
    AccessType, VolumeId, directpv,
    execute::Site,
    layout::Maker,
    plan::{self, Recovery, Step},
    record::{FORMAT, Phase, RecordError, VolumeRecord, format_of, parse, without_notes},
    state::Entry,
};

/// The volumes of a drive by key, and the steps for those that are to be removed.
pub(crate) type Stock = (BTreeMap<String, Entry>, Vec<(String, Vec<Step>)>);

/// A record as it was found.
enum Found {
    Whole { record: Box<VolumeRecord>, format: u32 },
    Damaged { entry: Box<Entry> },
}

/// Reads every volume's record and brings what is on the drive in line with it. Nothing is changed before all are known
/// to be of a format that this version reads.
pub(crate) fn take(site: &Site) -> linux::Result<Stock> {
    let host = site.host.as_ref();
    let mut found = BTreeMap::new();
    for name in host.list(&site.layout.records())? {
        match key_in(&name) {
            Some(key) => {
                if let Some(record) = read(site, key)? {
                    found.insert(key.to_owned(), record);
                }
            }
            None if linux::is_draft(&name) => {}
            None => {
                let file = site.layout.records().join(&name);
                tracing::warn!(file = %file.display(), "no record of ours; it is left as it is");
            }
        }
    }
    remove_drafts(site)?;
    let (mut volumes, mut removals) = (BTreeMap::new(), Vec::new());
    for (key, found) in found {
        let (entry, steps) = match found {
            Found::Whole { record, format } => bring_in_line(site, *record, format),
            Found::Damaged { entry } => (*entry, None),
        };
        if let Some(unfit) = &entry.unfit {
            tracing::error!(volume = key, reason = unfit, "a volume can't be used");
        }
        removals.extend(steps.map(|steps| (key.clone(), steps)));
        volumes.insert(key, entry);
    }
    if site.layout.maker() == Maker::DirectPv {
        for directory in host.list(&site.layout.volumes())? {
            let recorded = directory.to_str().is_some_and(|key| volumes.contains_key(key));
            if recorded {
                continue;
            }
            match directpv::volume(site, &directory) {
                Ok(Some(entry)) => drop(volumes.insert(entry.record.key.clone(), entry)),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(directory = %directory.display(), %error, "it can't be told whether this is a volume");
                }
            }
        }
    }
    Ok((volumes, removals))
}

/// The volume that a record of this name is about.
fn key_in(name: &OsStr) -> Option<&str> {
    let key = name.to_str()?.strip_suffix(".json")?;
    (!key.starts_with('.') && format!("drive/{key}").parse::<VolumeId>().is_ok()).then_some(key)
}

/// Drafts that a crash left: the files that they were to become are as they were. On an adopted drive there are none
/// before the first change of ours.
fn remove_drafts(site: &Site) -> linux::Result<()> {
    let mut places = vec![site.layout.records()];
    places.extend(site.layout.drive_record().parent().map(ToOwned::to_owned));
    places.iter().try_for_each(|place| site.host.remove_drafts(place).map(drop))
}

fn read(site: &Site, key: &str) -> linux::Result<Option<Found>> {
    let file = site.layout.record(key);
    let bytes = match site.host.read(&file) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        // Of a drive that is dead more than this fails.
        Err(error) => return Ok(Some(damaged(site, key, &[], &error.to_string()))),
    };
    match parse::<VolumeRecord>(&bytes) {
        Ok(record) if record.key == key => {
            let format = format_of(&bytes).unwrap_or(FORMAT);
            let record = Box::new(VolumeRecord { format: FORMAT, ..record });
            Ok(Some(Found::Whole { record, format }))
        }
        Ok(_) => Ok(Some(damaged(site, key, &bytes, "it is about another volume"))),
        Err(error @ RecordError::Newer { .. }) => {
            Err(linux::Error::because("use record", file.display(), error.to_string()))
        }
        Err(error @ RecordError::Damaged(_)) => Ok(Some(damaged(site, key, &bytes, &error.to_string()))),
    }
}

/// What can be told of a volume without its record.
fn damaged(site: &Site, key: &str, bytes: &[u8], why: &str) -> Found {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Said {
        name: Option<String>,
        size: Option<u64>,
    }
    let said: Said = serde_json::from_slice(bytes).unwrap_or_default();
    let name = said.name.unwrap_or_else(|| key.to_owned());
    // As one on its way out it is looked for where it may have been put aside, too.
    let record = VolumeRecord {
        phase: Phase::Deleting,
        created: jiff::Timestamp::UNIX_EPOCH,
        ..VolumeRecord::intended(key.to_owned(), &name, 0)
    };
    let seen = site.observe(&record).unwrap_or_default();
    let held = seen.limit.or(said.size).or_else(|| site.used(&record).ok()).unwrap_or(0);
    let record = VolumeRecord { phase: Phase::Ready, quota: seen.quota, size: held, ..record };
    let is_image = site.host.exists(&site.layout.image(key)).unwrap_or(false);
    let mut record = match is_image {
        true => VolumeRecord { access: AccessType::Block, ..record },
        false => record,
    };
    if record.is_in_file() {
        record.size = without_notes(held);
    }
    let unfit = format!(
        "its record {} can't be used: {why}. What the volume holds is left as it is, and its space stays taken: restore the \
         record from a backup and restart Orlop, or delete the volume",
        site.layout.record(key).display()
    );
    Found::Damaged { entry: Box::new(Entry { unfit: Some(unfit), ..Entry::new(record) }) }
}

/// Brings what is on the drive in line with a record; the steps if the volume is to be removed.
fn bring_in_line(site: &Site, record: VolumeRecord, format: u32) -> (Entry, Option<Vec<Step>>) {
    let mut entry = Entry::new(record);
    let key = entry.record.key.clone();
    let observed = match site.observe(&entry.record) {
        Ok(observed) => observed,
        Err(error) => {
            entry.unfit = Some(format!("it can't be looked at: {error}; check its drive and restart Orlop"));
            return (entry, None);
        }
    };
    match plan::recover(&entry.record, observed) {
        Recovery::Sound => {}
        Recovery::Repair(steps) => {
            tracing::warn!(
                volume = key,
                size = entry.record.size,
                "the limit of a volume was lost; putting it back"
            );
            match site.execute(&steps) {
                Ok(()) => {}
                // It has the bytes that it was announced with; a growth that has no room is no reason not to serve it.
                Err(error) if entry.record.is_block() => {
                    tracing::error!(volume = key, %error, "a block volume could not be given its full size");
                    entry.doubtful = true;
                }
                Err(error) => {
                    entry.unfit = Some(format!(
                        "its limit can't be put back: {error}; check its drive and restart Orlop"
                    ));
                }
            }
        }
        Recovery::Remove(steps) => {
            tracing::info!(
                volume = key,
                phase = entry.record.phase.name(),
                "removing what a crash left half done"
            );
            entry.busy = true;
            return (entry, Some(steps));
        }
        Recovery::Lost => entry.unfit = Some(crate::state::LOST.to_owned()),
    }
    if format < FORMAT
        && site.layout.maker() == Maker::Orlop
        && let Err(error) = site.execute(&[Step::record(entry.record.clone())])
    {
        tracing::warn!(volume = key, %error, "the record of a volume keeps its earlier format");
    }
    (entry, None)
}
