//! The handle through which the store is used.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

use crate::disk::{Disk, Loaded};
use crate::list::Cut;
use crate::memory::{Memory, State};
use crate::opening::{guarded, patience};
use crate::recover::Reopen;
use crate::writer::{Command, Intent, Write, Writer};
use crate::{
    DiskFailure, Encode, Key, ListError, Object, OpenError, Page, Precondition, Revision, Watch, WatchError,
    WriteError,
};

/// Bounds of a store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Largest object, in bytes. Kubernetes' own limit (etcd's request size) is 1.5 MiB.
    pub object_bytes: usize,
    /// Writes that wait for the writer; more writers than this wait for a place.
    pub queue: usize,
    /// Changes that are remembered for watches and for lists at older revisions.
    pub history_events: usize,
    /// Bytes of objects that the remembered changes may keep in memory.
    pub history_bytes: usize,
    /// Whether a file that is missing or empty becomes an empty store, or is refused ([`OpenError::Missing`]).
    pub create: bool,
    /// How long after a failure of the disk it is tried again, each time.
    pub retry: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            object_bytes: 3 << 19,
            queue: 1024,
            history_events: 20_000,
            history_bytes: 64 << 20,
            create: true,
            retry: Duration::from_secs(1),
        }
    }
}

/// A handle on an open store; clones are further handles. The store closes when the last handle is gone, or earlier
/// by [`Store::close`].
#[derive(Clone, Debug)]
pub struct Store {
    memory: Arc<Memory>,
    queue: mpsc::Sender<Command>,
}

impl Store {
    /// Opens the store in the file `path`, or makes an empty one (mode 0600). Blocks: reads every object into memory.
    ///
    /// Objects that are damaged on the disk are there with bytes that are no content ([`Object::is_damaged`]).
    pub fn open(path: &Path, options: Options) -> Result<Store, OpenError> {
        let path = path.to_owned();
        let open = move |create| {
            let length = std::fs::metadata(&path).map_or(0, |file| file.len());
            let path = path.clone();
            guarded(patience(length), move || Disk::open_file(&path, create))
        };
        let opened = open(options.create)?;
        // A file that is gone is another one when it is back: no store is made in its place while this one lives.
        Store::start(opened, Box::new(move || open(false)), options)
    }

    /// Opens the store in what `backend` returns: for simulated disks. It is called again after the disk has failed.
    /// Blocks as [`Store::open`] does.
    pub fn open_backend<B: redb::StorageBackend>(
        mut backend: impl FnMut() -> B + Send + 'static,
        options: Options,
    ) -> Result<Store, OpenError> {
        let mut open = move || {
            let backend = backend();
            let length = backend.len().unwrap_or_default();
            let opened = guarded(patience(length), move || Disk::open(backend, options.create))?;
            opened.ok_or_else(|| OpenError::Missing { path: "the store".into() })
        };
        let opened = open()?;
        Store::start(opened, Box::new(open), options)
    }

    /// An empty store that is forgotten when it closes. Its writer is a task of the runtime at hand: where that has one
    /// thread, what happens in the store happens in one order.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[expect(clippy::expect_used, reason = "for tests; memory does not fail")]
    pub fn in_memory() -> Store {
        let backend = redb::backends::InMemoryBackend::new();
        let opened = Disk::open(backend, true).expect("a store in memory").expect("a new store");
        let never = Box::new(|| Err(OpenError::Missing { path: "memory".into() }));
        let (store, writer) = Store::load(opened, never, Options::default());
        tokio::spawn(writer.run());
        store
    }

    fn start(opened: (Disk, Loaded), reopen: Reopen, options: Options) -> Result<Store, OpenError> {
        let (store, writer) = Store::load(opened, reopen, options);
        writer.start().map_err(OpenError::Thread)?;
        Ok(store)
    }

    fn load((disk, loaded): (Disk, Loaded), reopen: Reopen, options: Options) -> (Store, Writer) {
        let state = State::new(loaded.revision, loaded.objects, &options);
        let memory = Arc::new(Memory { state: RwLock::new(state) });
        let (sender, queue) = mpsc::channel(options.queue);
        let Options { object_bytes, retry, .. } = options;
        let writer = Writer { disk, memory: memory.clone(), queue, object_bytes, reopen, retry };
        (Store { memory, queue: sender }, writer)
    }

    /// Whether writes are taken: not from a failure of the disk until it takes writes again.
    pub fn health(&self) -> Result<(), DiskFailure> {
        self.memory.state.read().failing.clone().map_or(Ok(()), Err)
    }

    /// Creates or replaces an object. Returns when it is durable. A dropped future leaves the outcome open: the write
    /// happens or not.
    pub async fn put(
        &self,
        key: Key,
        precondition: Precondition,
        encode: Encode,
    ) -> Result<Object, WriteError> {
        self.write(Write { key, intent: Intent::Put(precondition), encode }).await
    }

    /// Deletes the object if it is at revision `at`. Watchers get what `encode_last` returns for the deletion's
    /// revision; so does the caller. Returns when the deletion is durable.
    pub async fn delete(&self, key: Key, at: Revision, encode_last: Encode) -> Result<Object, WriteError> {
        self.write(Write { key, intent: Intent::Delete(at), encode: encode_last }).await
    }

    async fn write(&self, write: Write) -> Result<Object, WriteError> {
        let (reply, answer) = oneshot::channel();
        if self.queue.send(Command::Write(write, reply)).await.is_err() {
            return Err(WriteError::Closed);
        }
        answer.await.unwrap_or(Err(WriteError::Closed))
    }

    /// The object, as last committed.
    pub fn get(&self, key: &Key) -> Option<Object> {
        self.memory.state.read().get(key).cloned()
    }

    /// The newest committed revision.
    pub fn revision(&self) -> Revision {
        self.memory.state.read().revision
    }

    /// Objects of `resource` in order of namespace and name: those after `after`, as of revision `at` (now if `None`),
    /// at most `limit` (0: all) of those that `keep` wants. `keep` runs without holding up anyone.
    pub fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        at: Option<Revision>,
        after: Option<(&str, &str)>,
        limit: usize,
        keep: impl FnMut(&Object) -> bool,
    ) -> Result<Page, ListError> {
        let cut = Cut::take(&self.memory.state.read(), resource, namespace, at, after)?;
        Ok(cut.page(limit, keep))
    }

    /// The changes of `resource` after revision `after`.
    pub fn watch(
        &self,
        resource: &str,
        namespace: Option<&str>,
        after: Revision,
    ) -> Result<Watch, WatchError> {
        let mut state = self.memory.state.write();
        if after > state.revision {
            return Err(WatchError::Future { current: state.revision });
        }
        let oldest = state.oldest(resource);
        if after < oldest {
            return Err(WatchError::Expired { oldest });
        }
        Ok(self.watch_in(&mut state, resource, namespace, after))
    }

    /// Every object of `resource` that `keep` wants, and the changes from exactly there on.
    pub fn list_and_watch(
        &self,
        resource: &str,
        namespace: Option<&str>,
        keep: impl FnMut(&Object) -> bool,
    ) -> Result<(Page, Watch), ListError> {
        let mut state = self.memory.state.write();
        let cut = Cut::take(&state, resource, namespace, None, None)?;
        let watch = self.watch_in(&mut state, resource, namespace, cut.revision);
        drop(state);
        Ok((cut.page(0, keep), watch))
    }

    fn watch_in(&self, state: &mut State, resource: &str, namespace: Option<&str>, after: Revision) -> Watch {
        let resource: Arc<str> = Arc::from(resource);
        let published = Arc::clone(&state.resource_mut(&resource).published);
        Watch::new(self.memory.clone(), resource, namespace.map(Arc::from), after, published)
    }

    /// Finishes the writes that wait, closes the file and ends every watch. Reads still work, writes get
    /// [`WriteError::Closed`]. The file can be opened again when this returns.
    pub async fn close(&self) {
        // An error means that it is closed already.
        self.queue.send(Command::Close).await.ok();
        self.queue.closed().await;
    }
}
