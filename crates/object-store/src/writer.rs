//! The one writer: takes all waiting writes, commits them with one fsync, publishes them, answers their callers.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::disk::Disk;
use crate::memory::{End, Memory};
use crate::{Encode, Event, EventKind, Key, Object, Precondition, Revision, WriteError};

/// Most writes in one commit, and most bytes: bounds the time that the first of them waits.
const BATCH_WRITES: usize = 1024;
const BATCH_BYTES: usize = 16 << 20;

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
    Close(oneshot::Sender<()>),
}

/// Runs on its own thread, since commits block.
pub(crate) struct Writer {
    disk: Disk,
    memory: Arc<Memory>,
    queue: mpsc::Receiver<Command>,
    object_bytes: usize,
}

impl Writer {
    pub(crate) fn new(
        disk: Disk,
        memory: Arc<Memory>,
        queue: mpsc::Receiver<Command>,
        object_bytes: usize,
    ) -> Writer {
        Writer { disk, memory, queue, object_bytes }
    }

    pub(crate) fn start(self) -> std::io::Result<()> {
        std::thread::Builder::new().name("store-writer".into()).spawn(move || self.run()).map(drop)
    }

    fn run(self) {
        let Writer { disk, memory, mut queue, object_bytes } = self;
        // Whatever ends this thread ends the store, also a panic: nobody may wait for it any more.
        let _end = EndOnDrop(memory.clone());
        let mut closing = None;
        while closing.is_none()
            && let Some(mut command) = queue.blocking_recv()
        {
            let mut batch = Batch::new(memory.state.read().revision, object_bytes);
            loop {
                match command {
                    Command::Write(write, reply) => {
                        let stored = |key: &Key| memory.state.read().get(key).cloned();
                        batch.add(write, reply, stored);
                    }
                    Command::Close(reply) => {
                        closing = Some(reply);
                        break;
                    }
                }
                if batch.is_full() {
                    break;
                }
                match queue.try_recv() {
                    Ok(next) => command = next,
                    Err(_) => break,
                }
            }
            if let Err(failure) = disk.commit(&batch.events) {
                tracing::error!(error = %failure, writes = batch.events.len(), "commit failed, the store is closed for writes");
                memory.end(End::Failed(failure.clone()));
                batch.fail(&WriteError::Disk(failure));
                break;
            }
            batch.publish(&memory);
        }
        // The file is free before the queue is seen to be closed: whoever waits for that can open it again.
        drop(disk);
        memory.end(End::Closed);
        drop(queue);
        drop(closing);
    }
}

struct EndOnDrop(Arc<Memory>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(End::Closed);
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
