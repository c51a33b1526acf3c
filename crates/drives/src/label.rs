//! Labels of drives: kept on the drive, so that they move with it.

use std::collections::BTreeMap;

use linux::Host;

use crate::{
    DriveId,
    drives::Inner,
    layout::Layout,
    record::{FORMAT, Labels, RecordError, parse, render},
};

/// The labels that are on a mounted drive; none where they are damaged.
pub(crate) fn read(host: &dyn Host, layout: &Layout) -> linux::Result<Option<BTreeMap<String, String>>> {
    let file = layout.labels();
    let why = match host.read(&file) {
        Ok(None) => return Ok(Some(BTreeMap::new())),
        Ok(Some(bytes)) => match parse::<Labels>(&bytes) {
            Ok(found) => return Ok(Some(found.labels)),
            Err(error @ RecordError::Newer { .. }) => {
                return Err(linux::Error::because("use labels", file.display(), error.to_string()));
            }
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    tracing::error!(file = %file.display(), why, "the labels of a drive can't be used; label it again");
    Ok(None)
}

/// Replaces a drive's labels, on the drive first.
pub(crate) fn write(inner: &Inner, id: &DriveId, labels: BTreeMap<String, String>) -> linux::Result<()> {
    let (site, known) = {
        let state = inner.state.lock();
        let drive =
            state.drive(id).ok_or_else(|| linux::Error::because("label drive", id, state.why_not(id)))?;
        (drive.site.clone(), (!drive.unread).then(|| drive.labels.clone()))
    };
    if known.as_ref() == Some(&labels) {
        return Ok(());
    }
    let file = site.layout.labels();
    if let Some(directory) = file.parent() {
        inner.host.make_directory(directory, 0o700)?;
    }
    let bytes = render(&Labels { format: FORMAT, labels: labels.clone() });
    inner.host.write_durable(&file, &bytes, 0o600)?;
    if let Some(drive) = inner.state.lock().drive_mut(id) {
        drive.labels = labels;
        drive.unread = false;
    }
    inner.notify();
    Ok(())
}
