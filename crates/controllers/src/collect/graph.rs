//! Who owns whom, and what follows from it for one object: pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use kube::core::ObjectMeta;

use super::kinds::Kind;

/// An object's finalizer while its deletion waits for its dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// An object's finalizer while its dependents are cut loose.
pub(super) const ORPHAN: &str = "orphan";

/// An owner as its dependent names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Uid: what counts.
    pub uid: String,
    /// Whether a foreground deletion of the owner waits for this dependent.
    pub blocks: bool,
}

/// What is known of an object.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its kind.
    pub kind: Arc<Kind>,
    /// Its namespace, "" if it has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The version that was seen.
    pub version: Option<String>,
    /// Who owns it.
    pub owners: Vec<Owner>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// What keeps it.
    pub finalizers: Vec<String>,
}

impl Object {
    /// What matters of an object's metadata.
    pub fn of(kind: &Arc<Kind>, meta: &ObjectMeta) -> Option<Self> {
        let owners = meta.owner_references.iter().flatten().map(|owner| Owner {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            blocks: owner.block_owner_deletion == Some(true),
        });
        Some(Self {
            kind: Arc::clone(kind),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
            version: meta.resource_version.clone(),
            owners: owners.collect(),
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
        })
    }

    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|name| name == finalizer)
    }

    /// Whether it is deleted in the foreground: its dependents go first.
    fn waits_for_dependents(&self) -> bool {
        self.deleting && self.has(FOREGROUND)
    }
}

/// What to do about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Keep,
    /// Ask the API server whether these owners are there: the watch doesn't show them.
    Confirm(Vec<Owner>),
    /// Delete it; its own dependents as told.
    Delete {
        /// Whether its dependents go first.
        foreground: bool,
    },
    /// Forget these owners, by uid: they are gone or going, and others remain.
    Disown(Vec<String>),
    /// Cut these dependents loose, by uid, and then take the finalizer off.
    CutLoose(Vec<String>),
    /// Take this finalizer off.
    Unblock(&'static str),
}

/// All objects that own or are owned.
#[derive(Default)]
pub struct Graph {
    /// By uid. In order, so that those of a kind are looked at in one.
    objects: BTreeMap<String, Object>,
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Files an object; the uids to look at now.
    pub fn put(&mut self, object: Object) -> Vec<String> {
        let uid = object.uid.clone();
        let before = self.objects.get(&uid).map(|known| known.owners.clone()).unwrap_or_default();
        let released: Vec<_> = before.into_iter().filter(|owner| !object.owners.contains(owner)).collect();
        self.unlink(&uid);
        for owner in &object.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let acts = object.deleting && (object.has(FOREGROUND) || object.has(ORPHAN));
        let mut next = Vec::new();
        if acts || !object.owners.is_empty() {
            next.push(uid.clone());
        }
        if object.waits_for_dependents() {
            next.extend(self.dependents_of(&uid).map(|dependent| dependent.uid.clone()));
        }
        self.objects.insert(uid, object);
        // An owner that is going may have waited for this reference to go.
        next.extend(released.into_iter().map(|owner| owner.uid).filter(|owner| self.is_going(owner)));
        next
    }

    /// Forgets an object; the uids to look at now.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let owners = self.objects.get(uid).map(|object| object.owners.clone()).unwrap_or_default();
        self.unlink(uid);
        self.objects.remove(uid);
        let waiting = owners.into_iter().map(|owner| owner.uid);
        let dependents: Vec<_> = self.dependents_of(uid).map(|object| object.uid.clone()).collect();
        dependents.into_iter().chain(waiting.filter(|owner| self.is_going(owner))).collect()
    }

    fn is_going(&self, uid: &str) -> bool {
        self.objects.get(uid).is_some_and(|object| object.deleting)
    }

    fn unlink(&mut self, uid: &str) {
        for owner in self.objects.get(uid).into_iter().flat_map(|object| &object.owners) {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    /// The object of that uid.
    pub fn get(&self, uid: &str) -> Option<&Object> {
        self.objects.get(uid)
    }

    /// The objects of a kind.
    pub fn of_kind(&self, kind: &Kind) -> Vec<String> {
        self.objects
            .values()
            .filter(|object| *object.kind == *kind)
            .map(|object| object.uid.clone())
            .collect()
    }

    /// The objects that name owners.
    pub fn owned(&self) -> Vec<String> {
        self.objects
            .values()
            .filter(|object| !object.owners.is_empty())
            .map(|object| object.uid.clone())
            .collect()
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Object> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.objects.get(uid))
    }

    /// What to do about an object. `gone` are owners that the API server said are not there.
    pub fn decide(&self, uid: &str, gone: &[String]) -> Action {
        let Some(object) = self.objects.get(uid) else { return Action::Keep };
        if object.deleting {
            return self.finish(object);
        }
        if object.owners.is_empty() {
            return Action::Keep;
        }
        let is_gone = |owner: &&Owner| gone.contains(&owner.uid);
        let (absent, present): (Vec<_>, Vec<_>) =
            object.owners.iter().partition(|owner| !self.objects.contains_key(&owner.uid));
        let unconfirmed: Vec<Owner> =
            absent.iter().filter(|owner| !is_gone(owner)).map(|owner| (*owner).clone()).collect();
        let is_waiting =
            |owner: &&Owner| self.objects.get(&owner.uid).is_some_and(Object::waits_for_dependents);
        let (waiting, solid): (Vec<_>, Vec<_>) = present.into_iter().partition(is_waiting);
        if !solid.is_empty() {
            let lost: Vec<_> =
                absent.into_iter().filter(is_gone).chain(waiting).map(|owner| owner.uid.clone()).collect();
            return match (lost.is_empty(), unconfirmed.is_empty()) {
                (_, false) => Action::Confirm(unconfirmed),
                (false, true) => Action::Disown(lost),
                (true, true) => Action::Keep,
            };
        }
        if !unconfirmed.is_empty() {
            return Action::Confirm(unconfirmed);
        }
        let has_dependents = self.dependents_of(uid).next().is_some();
        Action::Delete { foreground: !waiting.is_empty() && has_dependents }
    }

    /// A deletion that the collector has a part in.
    fn finish(&self, object: &Object) -> Action {
        if object.has(ORPHAN) {
            return Action::CutLoose(
                self.dependents_of(&object.uid).map(|dependent| dependent.uid.clone()).collect(),
            );
        }
        if !object.has(FOREGROUND) {
            return Action::Keep;
        }
        let blocks =
            |dependent: &Object| dependent.owners.iter().any(|owner| owner.uid == object.uid && owner.blocks);
        if self.dependents_of(&object.uid).any(blocks) { Action::Keep } else { Action::Unblock(FOREGROUND) }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::ApiResource;

    use super::*;

    fn object(uid: &str, owners: &[(&str, bool)], finalizer: Option<&str>) -> Object {
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&());
        let owner = |(uid, blocks): &(&str, bool)| Owner {
            api_version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            name: (*uid).to_owned(),
            uid: (*uid).to_owned(),
            blocks: *blocks,
        };
        Object {
            kind: Arc::new(Kind { resource, namespaced: true }),
            namespace: "default".to_owned(),
            name: uid.to_owned(),
            uid: uid.to_owned(),
            version: None,
            owners: owners.iter().map(owner).collect(),
            deleting: finalizer.is_some(),
            finalizers: finalizer.into_iter().map(str::to_owned).collect(),
        }
    }

    fn graph(objects: Vec<Object>) -> Graph {
        let mut graph = Graph::default();
        objects.into_iter().for_each(|object| drop(graph.put(object)));
        graph
    }

    #[test]
    fn an_object_goes_with_its_last_owner() {
        let there = || object("there", &[], None);
        let going = || object("going", &[], Some(FOREGROUND));
        let orphaning = || object("orphaning", &[], Some(ORPHAN));
        let child = || object("child", &[("x", false)], None);
        let confirm = |uid: &str| Action::Confirm(object("x", &[(uid, false)], None).owners);
        let cases = [
            ("no owner", vec![object("x", &[], None)], vec![], Action::Keep),
            ("owner there", vec![there(), object("x", &[("there", false)], None)], vec![], Action::Keep),
            ("owner unseen", vec![object("x", &[("gone", false)], None)], vec![], confirm("gone")),
            (
                "owner gone",
                vec![object("x", &[("gone", false)], None)],
                vec!["gone"],
                Action::Delete { foreground: false },
            ),
            (
                "one of two gone",
                vec![there(), object("x", &[("gone", false), ("there", false)], None)],
                vec!["gone"],
                Action::Disown(vec!["gone".to_owned()]),
            ),
            (
                "one of two going",
                vec![there(), going(), object("x", &[("going", true), ("there", false)], None)],
                vec![],
                Action::Disown(vec!["going".to_owned()]),
            ),
            (
                "owner going",
                vec![going(), object("x", &[("going", true)], None)],
                vec![],
                Action::Delete { foreground: false },
            ),
            (
                "owner going, with a child of its own",
                vec![going(), child(), object("x", &[("going", true)], None)],
                vec![],
                Action::Delete { foreground: true },
            ),
            (
                "owner lets go",
                vec![orphaning(), object("x", &[("orphaning", false)], None)],
                vec![],
                Action::Keep,
            ),
            (
                "going, child not blocking",
                vec![child(), object("x", &[], Some(FOREGROUND))],
                vec![],
                Action::Unblock(FOREGROUND),
            ),
            (
                "going, child blocking",
                vec![object("child", &[("x", true)], None), object("x", &[], Some(FOREGROUND))],
                vec![],
                Action::Keep,
            ),
            (
                "orphaning",
                vec![child(), object("x", &[], Some(ORPHAN))],
                vec![],
                Action::CutLoose(vec!["child".to_owned()]),
            ),
            (
                "going for another reason",
                vec![object("x", &[("gone", false)], Some("mine"))],
                vec!["gone"],
                Action::Keep,
            ),
        ];
        for (name, objects, gone, action) in cases {
            let gone: Vec<_> = gone.into_iter().map(str::to_owned).collect();
            assert_eq!(graph(objects).decide("x", &gone), action, "{name}");
        }
    }

    #[test]
    fn changes_name_whom_to_look_at() {
        let mut graph = graph(vec![object("owner", &[], None), object("child", &[("owner", true)], None)]);
        assert_eq!(graph.put(object("owner", &[], Some(FOREGROUND))), ["owner", "child"]);
        assert_eq!(graph.put(object("child", &[], None)), ["owner"], "the reference is gone");
        assert_eq!(graph.put(object("child", &[("owner", true)], None)), ["child"]);
        assert_eq!(graph.remove("child"), ["owner"]);
        graph.put(object("child", &[("owner", true)], None));
        assert_eq!(graph.remove("owner"), ["child"]);
    }
}
