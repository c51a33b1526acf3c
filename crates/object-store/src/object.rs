//! What is stored: keys, objects, and the changes that happen to them.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// The number of a write. An empty store is at revision 1; each write adds one.
pub type Revision = u64;

/// Makes an object's bytes once its revision is known, so that the bytes can carry their own `resourceVersion`.
/// Called once by the writer thread; it should be quick and must not block.
pub type Encode = Box<dyn FnOnce(Revision) -> Bytes + Send>;

/// Where an object lives. Ordered by resource, then namespace, then name, all bytewise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `pods`, or `storageclasses.storage.k8s.io`.
    pub resource: Arc<str>,
    /// Empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    /// Unique within resource and namespace.
    pub name: Arc<str>,
}

impl Key {
    /// A key from its three parts; `namespace` is empty for cluster-scoped objects.
    pub fn new(
        resource: impl Into<Arc<str>>,
        namespace: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
    ) -> Key {
        Key { resource: resource.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{}/{}", self.resource, self.name),
            namespace => write!(f, "{}/{namespace}/{}", self.resource, self.name),
        }
    }
}

/// An object as some write left it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Where it lives.
    pub key: Key,
    /// The write that left it so.
    pub revision: Revision,
    /// What the caller's encoder returned.
    pub value: Bytes,
}

impl Object {
    /// Whether it was found damaged on the disk: its bytes are lost, and what stands for them is no content.
    pub fn is_damaged(&self) -> bool {
        *self.value == *crate::record::DAMAGED
    }
}

/// What must be true of the stored object for a put to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// There is no such object: the put creates it.
    Absent,
    /// The object is at this revision: the put replaces it.
    Revision(Revision),
}

/// What a write did to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was not there before.
    Created,
    /// It was replaced.
    Updated,
    /// It is gone.
    Deleted,
}

/// One committed change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The write that made the change.
    pub revision: Revision,
    /// What happened.
    pub kind: EventKind,
    /// The object after the change; for [`EventKind::Deleted`] its last state, encoded with the deletion's revision.
    pub object: Object,
    /// The object before the change, so that a selector can tell an object that enters or leaves its view.
    pub previous: Option<Object>,
}

impl Event {
    /// Bytes of values that the event keeps in memory.
    pub(crate) fn weight(&self) -> usize {
        self.object.value.len() + self.previous.as_ref().map_or(0, |object| object.value.len())
    }
}
