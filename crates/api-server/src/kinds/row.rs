//! The row of a kind: all that is particular to it, as data and pure functions.
//!
//! What a row leaves out is what most kinds have: `..Row::PLAIN`.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use super::{metadata::NameRule, violations::Violations};
use crate::protobuf::wire::Message;
use crate::schema::TypeSchema;
use crate::table::column::{OTHER, Printer};

/// All that is particular to a kind.
pub(crate) struct Row {
    /// API group; empty for the core group.
    pub(crate) group: &'static str,
    /// Kind of one object, such as `Pod`; its lists are `PodList`.
    pub(crate) kind: &'static str,
    /// Resource name in URLs, such as `pods`.
    pub(crate) plural: &'static str,
    /// Short names that kubectl accepts, such as `po`.
    pub(crate) short_names: &'static [&'static str],
    /// Groups of kinds that kubectl accepts, such as `all`.
    pub(crate) categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub(crate) namespaced: bool,
    /// Whether there is a `status` subresource.
    pub(crate) status: bool,
    /// The Go type's schema; absent for kinds of definitions.
    pub(crate) schema: Option<&'static TypeSchema>,
    /// Defaults and rules.
    pub(crate) rules: Rules,
    /// How `kubectl get` prints objects; kinds of definitions have columns of their own.
    pub(crate) table: Printer,
    /// Fields that a field selector may name, metadata aside.
    pub(crate) fields: &'static [Field],
    /// How a body in protobuf is read, for the kinds that kubectl sends so.
    pub(crate) protobuf: Option<Message>,
    /// Subresources but `status` and `scale`.
    pub(crate) subresources: &'static [Subresource],
    /// Subresources that a cluster has and this server has not.
    pub(crate) unserved: &'static [&'static str],
    /// What the `scale` subresource is about, if there is one.
    pub(crate) scale: Option<&'static ScalePaths>,
    /// What happens besides when objects are created, changed and deleted.
    pub(crate) hooks: Hooks,
    /// Whether `metadata.generation` counts changes outside metadata and status.
    pub(crate) generations: bool,
    /// Whether a new object may bring its status.
    pub(crate) status_on_create: bool,
    /// Whether all objects of a collection can be deleted at once.
    pub(crate) collectable: bool,
    /// Whether a delete answers with the object that is gone, not with a Status.
    pub(crate) shows_deleted: bool,
    /// Whether other objects live in it: none is created while a delete of it is decided.
    pub(crate) houses: bool,
    /// Whether its objects define kinds, which are served from the write on that says so.
    pub(crate) defines: bool,
}

impl Row {
    /// A namespaced kind with nothing of its own.
    pub(crate) const PLAIN: Row = Row {
        group: "",
        kind: "",
        plural: "",
        short_names: &[],
        categories: &[],
        namespaced: true,
        status: false,
        schema: None,
        rules: Rules::NONE,
        table: OTHER,
        fields: &[],
        protobuf: None,
        subresources: &[],
        unserved: &[],
        scale: None,
        hooks: Hooks::NONE,
        generations: false,
        status_on_create: false,
        collectable: true,
        shows_deleted: false,
        houses: false,
        defines: false,
    };

    /// A kind of a CustomResourceDefinition.
    pub(crate) const CUSTOM: Row = Row { generations: true, ..Row::PLAIN };

    /// The subresource of this name.
    pub(crate) fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// `pods` or `storageclasses.storage.k8s.io`: the name that the store keeps objects under, and that messages use.
    pub(crate) fn resource(&self) -> Cow<'static, str> {
        match self.group {
            "" => self.plural.into(),
            group => format!("{}.{group}", self.plural).into(),
        }
    }
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Row({})", self.resource())
    }
}

/// The defaults and rules of one kind, metadata aside.
pub(crate) struct Rules {
    /// What its objects may be named.
    pub(crate) name: NameRule,
    /// Fills in defaults; the old object is there on updates.
    pub(crate) default: fn(&mut Value, Option<&Value>),
    /// What every object must keep to.
    pub(crate) check: fn(&Value, &mut Violations),
    /// What only a new object must keep to.
    pub(crate) check_new: fn(&Value, &mut Violations),
    /// What a change from an old to a new object must keep to.
    pub(crate) check_change: fn(new: &Value, old: &Value, &mut Violations),
    /// What a client should know of an object that is accepted all the same.
    pub(crate) warnings: fn(&Value) -> Vec<String>,
}

impl Rules {
    /// A kind without rules of its own.
    pub(crate) const NONE: Rules = Rules {
        name: NameRule::Subdomain,
        default: |_, _| {},
        check: |_, _| {},
        check_new: |_, _| {},
        check_change: |_, _, _| {},
        warnings: |_| Vec::new(),
    };
}

/// What happens besides, in the order of an object's life. Everything is decided from the object and, in admission, from
/// what the cluster tells.
pub(crate) struct Hooks {
    /// Admission of a new object: adds what Kubernetes' admission plugins add, or says why it is forbidden.
    pub(crate) on_create: fn(&mut Value, &dyn Cluster) -> Result<(), String>,
    /// Something to do after the object was created: to log it.
    pub(crate) created: fn(&Value),
    /// Admission of a change of the main resource: completes the new object, or says why it is forbidden.
    pub(crate) on_update: fn(new: &mut Value, old: &Value, &dyn Cluster) -> Result<(), String>,
    /// Why the object may not be deleted.
    pub(crate) kept: fn(&Value) -> Option<&'static str>,
    /// Seconds that a deleted object gets to end by itself, given those that the client asked for.
    pub(crate) grace: fn(&Value, asked: Option<i64>) -> i64,
    /// What an object that begins to be deleted looks like, its metadata being complete.
    pub(crate) ending: fn(&mut Value),
    /// What an object that goes without waiting looks like at last.
    pub(crate) ended: fn(&mut Value, Timestamp),
    /// Whether a deleted object waits for something beside its finalizers and its grace.
    pub(crate) waits: fn(&Value) -> bool,
    /// Completes what stands in for an object that can't be read, so that it is deleted by the rules of its kind.
    pub(crate) stand_in: fn(&mut Value),
}

impl Hooks {
    /// A kind that nothing happens to.
    pub(crate) const NONE: Hooks = Hooks {
        on_create: |_, _| Ok(()),
        created: |_| {},
        on_update: |_, _, _| Ok(()),
        kept: |_| None,
        grace: |_, _| 0,
        ending: |_| {},
        ended: |_, _| {},
        waits: |_| false,
        stand_in: |_| {},
    };
}

/// What admission may ask about the rest of the cluster.
pub(crate) trait Cluster {
    /// The object of this name, if it is there and can be read; cluster-scoped ones have an empty namespace.
    fn get(&self, of: &Row, namespace: &str, name: &str) -> Option<Value>;
    /// All objects of a kind that can be read.
    fn list(&self, of: &Row) -> Vec<Value>;
    /// Whether another kind of the group has this kind, or a built-in one this plural.
    fn is_taken(&self, group: &str, plural: &str, kind: &str) -> bool;
}

/// A field that a field selector may name.
#[derive(Debug)]
pub(crate) struct Field {
    /// The name in selectors.
    pub(crate) label: &'static str,
    /// Where it is in objects.
    pub(crate) path: &'static str,
    /// What an unset field counts as.
    pub(crate) unset: &'static str,
}

impl Field {
    /// A text that is selected by its path.
    pub(crate) const fn at(path: &'static str) -> Field {
        Field { label: path, path, unset: "" }
    }

    /// A boolean, which is false where it is not set.
    pub(crate) const fn flag(path: &'static str) -> Field {
        Field { unset: "false", ..Field::at(path) }
    }
}

/// A subresource that only this kind has.
pub(crate) struct Subresource {
    pub(crate) name: &'static str,
    /// The kind of what is sent or answered, if that is not the object's own.
    pub(crate) kind: Option<&'static str>,
    /// The group of that kind, if it is another; its version is `v1`.
    pub(crate) group: Option<&'static str>,
    pub(crate) verbs: &'static [&'static str],
    pub(crate) act: Act,
}

/// What a request of a subresource does.
pub(crate) enum Act {
    /// What is sent, once it is found good, changes the object.
    Change {
        check: fn(sent: &Value) -> Result<(), Refusal>,
        make: fn(&Value, &Value) -> Result<Value, Refusal>,
    },
    /// `spec.finalizers` are replaced.
    Finalize,
    /// The object is deleted with the options that are sent.
    Evict,
    /// What the object's containers wrote is answered.
    Log,
    /// A page that the node itself serves is answered.
    Page,
}

/// Why a subresource refuses what is sent.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It is no such thing.
    Malformed(String),
    /// The object is not so that this could be done.
    Conflict(String),
}

/// Where an object says how many replicas it is asked for and has, as JSON pointers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScalePaths {
    pub(crate) wanted: Cow<'static, str>,
    pub(crate) observed: Cow<'static, str>,
    /// A label selector, or its text form.
    pub(crate) selector: Option<Cow<'static, str>>,
}
