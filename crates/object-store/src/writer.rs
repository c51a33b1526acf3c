//! The one writer: takes all waiting writes, commits them with one fsync, publishes them, answers their callers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use crate::disk::Disk;
use crate::memory::Memory;
use crate::recover::{Reopen, recover};
use crate::{Encode, Event, EventKind, Key, Object, Precondition, Revision, WriteError};

/// Most writes in one commit, and most bytes: bounds the time that the first of them waits.
const BATCH_WRITES: usize = 1024;
const BATCH_BYTES: usize = 16 << 20;
/// The least that a disk which failed must take before it is trusted again, in bytes.
const LEAST_ROOM: usize = 1 << 20;

/// A write as it was asked for.
pub(crate) struct Write {
    pub(crate) key: Key,
    pub(crate) intent: Intent,
    pub(crate) encode: Encode,
}

pub(crate) enum Intent {
    Put(Precondition),
    Delete(Revision),
}

type Reply = oneshot::Sender<Result<Object, WriteError>>;

pub(crate) enum Command {
    Write(Write, Reply),
    Close,
}

/// Runs by itself, on a thread of its own where commits block.
pub(crate) struct Writer {
    pub(crate) disk: Disk,
    pub(crate) memory: Arc<Memory>,
    pub(crate) queue: mpsc::Receiver<Command>,
    pub(crate) object_bytes: usize,
    /// How the file is opened again after its disk failed, and how long that waits each time.
    pub(crate) reopen: Reopen,
    pub(crate) retry: Duration,
}

impl Writer {
    /// On a thread of its own.
    pub(crate) fn start(self) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let run = move || runtime.block_on(self.run());
        std::thread::Builder::new().name("store-writer".into()).spawn(run).map(drop)
    }

    pub(crate) async fn run(self) {
        let Writer { memory, object_bytes, mut reopen, retry, .. } = self;
        let mut calls = Calls { queue: self.queue, memory: memory.clone() };
        // Closed before `calls` end: whoever sees those end can open the file again.
        let mut disk = self.disk;
        let mut closing = false;
        while !closing && let Some(mut command) = calls.queue.recv().await {
            let mut batch = Batch::new(memory.state.read().revision, object_bytes);
            loop {
                match command {
                    Command::Write(write, reply) => {
                        batch.add(write, reply, |key| memory.state.read().get(key).cloned());
                    }
                    Command::Close => {
                        closing = true;
                        break;
                    }
                }
                if batch.is_full() {
                    break;
                }
                match calls.queue.try_recv() {
                    Ok(next) => command = next,
                    Err(_) => break,
                }
            }
            let Err(failure) = disk.commit(&batch.events) else {
                batch.publish(&memory);
                continue;
            };
            let (writes, room) = (batch.events.len(), batch.bytes.max(LEAST_ROOM));
            tracing::error!(error = %failure, writes, "a commit failed, no writes are taken until the disk takes them");
            memory.fails(failure.clone());
            batch.fail(&WriteError::Disk(failure));
            disk.close();
            if closing {
                break;
            }
            match recover(&mut reopen, &mut calls, &memory, retry, room).await {
                Some(works) => disk = works,
                None => break,
            }
        }
    }
}

/// Those who wait for the writer. However it ends, nobody waits for it any longer.
pub(crate) struct Calls {
    pub(crate) queue: mpsc::Receiver<Command>,
    memory: Arc<Memory>,
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.memory.close();
        self.queue.close();
        // Not only what is queued: a caller that has its place in the queue already may still fill it.
        while !matches!(self.queue.try_recv(), Err(TryRecvError::Disconnected)) {
            std::thread::yield_now();
        }
    }
}

/// Writes that are committed together: each sees those before it.
struct Batch {
    revision: Revision,
    object_bytes: usize,
    changed: HashMap<Key, Option<Object>>,
    events: Vec<Event>,
    bytes: usize,
    answers: Vec<(Reply, Result<Object, WriteError>)>,
}

impl Batch {
    fn new(revision: Revision, object_bytes: usize) -> Batch {
        Batch {
            revision,
            object_bytes,
            changed: HashMap::new(),
            events: Vec::new(),
            bytes: 0,
            answers: Vec::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.answers.len() >= BATCH_WRITES || self.bytes >= BATCH_BYTES
    }

    /// Decides a write and remembers its answer. A refusal waits for the commit as well: it may rest on a write of
    /// this batch.
    fn add(&mut self, write: Write, reply: Reply, stored: impl FnOnce(&Key) -> Option<Object>) {
        let current = match self.changed.get(&write.key) {
            Some(changed) => changed.clone(),
            None => stored(&write.key),
        };
        let answer = self.decide(write, current).map(|event| {
            let object = event.object.clone();
            self.revision = event.revision;
            self.bytes += object.value.len();
            let left = (event.kind != EventKind::Deleted).then(|| object.clone());
            self.changed.insert(object.key.clone(), left);
            self.events.push(event);
            object
        });
        self.answers.push((reply, answer));
    }

    fn decide(&self, write: Write, previous: Option<Object>) -> Result<Event, WriteError> {
        let kind = allowed(&write.intent, previous.as_ref().map(|object| object.revision))?;
        let revision = self.revision + 1;
        let value = (write.encode)(revision);
        if value.len() > self.object_bytes {
            return Err(WriteError::TooLarge { size: value.len(), limit: self.object_bytes });
        }
        Ok(Event { revision, kind, object: Object { key: write.key, revision, value }, previous })
    }

    fn publish(self, memory: &Memory) {
        if !self.events.is_empty() {
            memory.publish(self.events);
        }
        for (reply, answer) in self.answers {
            // A caller that no longer waits is no concern: its write is done.
            reply.send(answer).ok();
        }
    }

    fn fail(self, error: &WriteError) {
        for (reply, _) in self.answers {
            reply.send(Err(error.clone())).ok();
        }
    }
}

/// What a write does to an object that is at revision `current`, or absent.
fn allowed(intent: &Intent, current: Option<Revision>) -> Result<EventKind, WriteError> {
    match (intent, current) {
        (Intent::Put(Precondition::Absent), None) => Ok(EventKind::Created),
        (Intent::Put(Precondition::Absent), Some(current)) => Err(WriteError::Exists { current }),
        (Intent::Put(Precondition::Revision(_)) | Intent::Delete(_), None) => Err(WriteError::Missing),
        (Intent::Put(Precondition::Revision(at)), Some(current)) if *at == current => Ok(EventKind::Updated),
        (Intent::Delete(at), Some(current)) if *at == current => Ok(EventKind::Deleted),
        (_, Some(current)) => Err(WriteError::Conflict { current }),
    }
}
