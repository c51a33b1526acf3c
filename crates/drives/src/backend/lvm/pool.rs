//! The pool that thin volumes take their space from. It is as large as all that was promised, so that it never runs
//! out; where a volume's parameters allow more promises than that, new ones end before the space does.

use std::io::ErrorKind;

use linux::{Error, Host, LogicalVolume, Making, Result};

use super::EXTENT;

pub(super) const POOL: &str = "pool";

/// Bytes that the kernel may need to know where a chunk lies: a tree of which every node is half full.
const PER_CHUNK: u64 = 128;
const SMALLEST_CHUNK: u64 = 64 << 10;
/// The kernel takes up to 15.8 GiB of metadata.
const METADATA: [u64; 2] = [16 << 20, 15 << 30];
/// No new volumes above these hundredths.
const FULL_METADATA: f64 = 85.0;
const FULL_DATA: f64 = 80.0;

/// How a pool is laid out.
pub(super) struct Pool {
    pub(super) data: u64,
    metadata: u64,
    chunk: u64,
}

impl Pool {
    /// Of a group with so much space.
    pub(super) fn on(space: u64) -> Self {
        let needed = |chunk: u64| space / chunk * PER_CHUNK;
        let mut chunk = SMALLEST_CHUNK;
        while needed(chunk) > METADATA[1] {
            chunk *= 2;
        }
        let metadata = needed(chunk).next_multiple_of(EXTENT).clamp(METADATA[0], METADATA[1]);
        Self { data: space.saturating_sub(metadata) / EXTENT * EXTENT, metadata, chunk }
    }

    pub(super) fn making(&self) -> Making<'static> {
        Making::Pool { data: self.data, metadata: self.metadata, chunk: self.chunk }
    }
}

fn find(host: &dyn Host, group: &str, name: &str) -> Result<LogicalVolume> {
    let found = host.logical_volumes(group)?.into_iter().find(|volume| volume.name == name);
    found.ok_or_else(|| Error::because("look at", format!("{group}/{name}"), "there is none"))
}

/// Refuses before the pool's space runs out, or what it notes about it.
pub(super) fn has_room(host: &dyn Host, group: &str, overcommitted: bool) -> Result<()> {
    let pool = find(host, group, POOL)?;
    let full = |used: Option<f64>, most| used.is_none_or(|used| used > most);
    let why = if full(pool.metadata, FULL_METADATA) {
        "what its pool notes about space is nearly full; delete volumes or snapshots"
    } else if overcommitted && full(pool.data, FULL_DATA) {
        "its pool promised more than it has, and is nearly full; delete volumes, snapshots, or what they hold \
         (and run fstrim)"
    } else {
        return Ok(());
    };
    Err(Error::new("make a volume in", group, std::io::Error::new(ErrorKind::StorageFull, why)))
}

/// Bytes that a thin volume has of its pool.
pub(super) fn written(host: &dyn Host, group: &str, name: &str) -> Result<u64> {
    let volume = find(host, group, name)?;
    let share = volume.data.ok_or_else(|| {
        Error::because("look at", format!("{group}/{name}"), "LVM does not tell what it has of its pool")
    })?;
    // The share is rounded to hundredths of a hundredth.
    Ok(((volume.size as f64 * (share + 0.01) / 100.0).ceil() as u64).min(volume.size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_can_note_where_every_chunk_lies() {
        for space in [200 << 20, 10 << 30, 1 << 40, 100 << 40, 4 << 50_u64] {
            let pool = Pool::on(space);
            assert!(pool.data / pool.chunk * PER_CHUNK <= pool.metadata, "{space}");
            assert!(pool.metadata <= METADATA[1] && pool.metadata.is_multiple_of(EXTENT));
            assert!(pool.data + pool.metadata <= space && pool.data.is_multiple_of(EXTENT));
            assert!(space > 1 << 30 && pool.metadata * 100 < space || pool.metadata == METADATA[0]);
        }
    }
}
