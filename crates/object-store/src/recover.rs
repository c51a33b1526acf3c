//! How the store comes back after its disk failed: nobody knows what a failed fsync left on the disk, so the file is
//! opened and read anew, from the disk itself, and made to hold what was acknowledged, which is in memory. Only then,
//! and once the disk has taken a write of some size, are writes accepted again. Reads and watches go on meanwhile.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::disk::{Disk, Loaded};
use crate::memory::Memory;
use crate::writer::{Calls, Command};
use crate::{DiskFailure, OpenError, WriteError};

/// Opens the file again.
pub(crate) type Reopen = Box<dyn FnMut() -> Result<(Disk, Loaded), OpenError> + Send>;

/// Tries until the disk takes `room` bytes again. None if the store is closed before that.
pub(crate) async fn recover(
    reopen: &mut Reopen,
    calls: &mut Calls,
    memory: &Memory,
    pause: Duration,
    room: usize,
) -> Option<Disk> {
    let since = Instant::now();
    let mut last = String::new();
    loop {
        refuse_until(Instant::now() + pause, calls, memory).await?;
        let began = Instant::now();
        match attempt(reopen, memory, room) {
            Ok(disk) => {
                memory.works();
                tracing::info!(seconds = since.elapsed().as_secs(), "the store's disk takes writes again");
                return Some(disk);
            }
            Err(failure) => {
                let error = failure.to_string();
                if error != last {
                    tracing::warn!(error, "the store's disk does not take writes yet");
                }
                last = error;
                memory.fails(failure);
            }
        }
        // A large file is not read over and over.
        refuse_until(Instant::now() + began.elapsed() * 4, calls, memory).await?;
    }
}

/// Answers writes with the failure until then. None if the store is closed.
async fn refuse_until(then: Instant, calls: &mut Calls, memory: &Memory) -> Option<()> {
    loop {
        tokio::select! {
            () = sleep_until(then) => return Some(()),
            command = calls.queue.recv() => match command? {
                Command::Write(_, reply) => {
                    let error = memory.state.read().failing.clone().map_or(WriteError::Closed, WriteError::Disk);
                    // Who no longer waits is no concern.
                    reply.send(Err(error)).ok();
                }
                Command::Close => return None,
            },
        }
    }
}

fn attempt(reopen: &mut Reopen, memory: &Memory, room: usize) -> Result<Disk, DiskFailure> {
    let (mut disk, loaded) = reopen()?;
    let (revision, objects) = memory.state.read().everything();
    disk.restore(revision, &objects, &loaded)?;
    disk.try_writing(room)?;
    Ok(disk)
}
