//! One look at a set: pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::claims::{self, Ownership};
use super::pods::{self, Health};
use super::revisions::{self, Update};
use super::set::{Set, controlled_by, controller};

/// Pods that one look makes at most, where they need not wait for each other.
const BATCH: usize = 100;

/// What is known when a set is looked at.
pub struct View<'a> {
    /// The set.
    pub set: &'a StatefulSet,
    /// The pods that it controls, and those without controller that bear one of its names.
    pub pods: Vec<Arc<Pod>>,
    /// The revisions that it controls, and those without controller that bear one of its names.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// Any pod of the set's namespace, by name.
    pub pod: &'a dyn Fn(&str) -> Option<Arc<Pod>>,
    /// Any claim of the set's namespace, by name.
    pub claim: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    /// The time.
    pub now: Timestamp,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Makes the set a pod's controller, if a live read says that the set is not going.
    AdoptPod(Box<Pod>),
    /// Lets go of a pod that the set does not select any more.
    ReleasePod(Box<Pod>),
    /// A new pod.
    CreatePod(Box<Pod>),
    /// A pod's labels.
    UpdatePod(Box<Pod>),
    /// The end of a pod.
    DeletePod(Arc<Pod>),
    /// A new claim, and the pod that it is for.
    CreateClaim(Box<PersistentVolumeClaim>, String),
    /// A claim's owners, and the pod that it is for.
    UpdateClaim(Box<PersistentVolumeClaim>, String),
    /// Makes the set a revision's controller, if a live read says that the set is not going.
    AdoptRevision(Box<ControllerRevision>),
    /// A new revision.
    CreateRevision(Box<ControllerRevision>),
    /// A revision's number.
    UpdateRevision(Box<ControllerRevision>),
    /// The end of a revision.
    DeleteRevision(Arc<ControllerRevision>),
}

impl std::fmt::Display for Write {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AdoptPod(pod) => write!(f, "adopting pod {}", pod.name_any()),
            Self::ReleasePod(pod) => write!(f, "releasing pod {}", pod.name_any()),
            Self::CreatePod(pod) => write!(f, "creating pod {}", pod.name_any()),
            Self::UpdatePod(pod) => write!(f, "labelling pod {}", pod.name_any()),
            Self::DeletePod(pod) => write!(f, "deleting pod {}", pod.name_any()),
            Self::CreateClaim(claim, _) => write!(f, "creating claim {}", claim.name_any()),
            Self::UpdateClaim(claim, _) => write!(f, "changing the owners of claim {}", claim.name_any()),
            Self::AdoptRevision(revision) => write!(f, "adopting revision {}", revision.name_any()),
            Self::CreateRevision(revision) => write!(f, "creating revision {}", revision.name_any()),
            Self::UpdateRevision(revision) => write!(f, "renumbering revision {}", revision.name_any()),
            Self::DeleteRevision(revision) => write!(f, "deleting revision {}", revision.name_any()),
        }
    }
}

/// A warning about the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// One word for machines.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// What one look at a set led to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Writes, in order; the first that fails ends them.
    pub writes: Vec<Write>,
    /// The set's status, if it is another than before. Written last, whatever became of the writes.
    pub status: Option<StatefulSetStatus>,
    /// What is in the way.
    pub notices: Vec<Notice>,
    /// When to look again without news: a pod becomes available by staying ready.
    pub again: Option<Duration>,
}

/// Decides what brings a set one step nearer to its spec. Pods start in order of their ordinals and end in reverse,
/// each after those before it are available, unless the set is Parallel.
pub fn step(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = Set::of(view.set) else { return plan };
    claim_objects(&set, view, &mut plan);
    if !plan.writes.is_empty() {
        return plan;
    }
    let mut revisions: Vec<_> =
        view.revisions.iter().filter(|revision| set.controls(&***revision)).cloned().collect();
    revisions::sort(&mut revisions);
    let update = match revisions::update(&set, &revisions) {
        Update::Is(revision) => revision,
        _ if set.is_going() => return plan,
        Update::Create(revision) => {
            plan.writes.push(Write::CreateRevision(Box::new(revision)));
            return plan;
        }
        Update::Renumber(revision) => {
            plan.writes.push(Write::UpdateRevision(Box::new(revision)));
            return plan;
        }
    };
    let current = set.object.status.as_ref().and_then(|status| status.current_revision.as_deref());
    let current = revisions.iter().find(|revision| Some(revision.name_any().as_str()) == current);
    let current = current.unwrap_or(&update);

    let mut look = Look {
        current_template: revisions::template(current).unwrap_or_else(|| set.template().clone()),
        current: current.name_any(),
        update: update.name_any(),
        members: members(&set, &view.pods),
        set,
        view,
        plan,
    };
    look.plan.status = look.status();
    if !set.is_going() {
        // Growing goes before shrinking, and both before replacing.
        let _ = look.keep_replicas() && look.end_condemned() && look.roll();
        let made_from = view.pods.iter().map(|pod| pods::revision(pod));
        let live: Vec<&str> = made_from.chain([look.current.as_str(), look.update.as_str()]).collect();
        let surplus = revisions::surplus(&set, &revisions, &live);
        look.plan.writes.extend(surplus.into_iter().map(Write::DeleteRevision));
    }
    look.plan
}

/// Takes what is selected and has no controller, lets go of what is not selected any more.
fn claim_objects(set: &Set<'_>, view: &View<'_>, plan: &mut Plan) {
    if set.is_going() {
        return;
    }
    for revision in &view.revisions {
        if controller(&**revision).is_none() && set.selects(&**revision) {
            let mut revision = ControllerRevision::clone(revision);
            revision.owner_references_mut().push(controlled_by(set.object));
            plan.writes.push(Write::AdoptRevision(Box::new(revision)));
        }
    }
    for pod in &view.pods {
        let is_member = set.ordinal(&pod.name_any()).is_some() && set.selects(&**pod);
        if controller(&**pod).is_none() && is_member && !pods::is_going(pod) {
            let mut pod = Pod::clone(pod);
            pod.owner_references_mut().push(controlled_by(set.object));
            plan.writes.push(Write::AdoptPod(Box::new(pod)));
        } else if set.controls(&**pod) && !is_member {
            let mut pod = Pod::clone(pod);
            pod.owner_references_mut().retain(|owner| owner.uid != set.uid());
            plan.writes.push(Write::ReleasePod(Box::new(pod)));
        }
    }
}

/// The set's own pods by ordinal.
fn members(set: &Set<'_>, pods: &[Arc<Pod>]) -> BTreeMap<i64, Arc<Pod>> {
    let own = pods.iter().filter(|pod| set.controls(&***pod));
    own.filter_map(|pod| Some((set.ordinal(&pod.name_any())?, Arc::clone(pod)))).collect()
}

struct Look<'a> {
    set: Set<'a>,
    view: &'a View<'a>,
    members: BTreeMap<i64, Arc<Pod>>,
    current: String,
    current_template: PodTemplateSpec,
    update: String,
    plan: Plan,
}

impl Look<'_> {
    fn health(&self, pod: &Pod) -> Health {
        pods::health(pod, self.set.min_ready_seconds(), self.view.now)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        !pods::is_going(pod) && self.health(pod) == Health::Available
    }

    /// Whether a pod is not available and can still get so by itself: one that has ended never does, so that nothing
    /// waits for it.
    fn may_recover(&self, pod: &Pod) -> bool {
        !self.is_available(pod) && !pods::has_ended(pod)
    }

    fn warn(&mut self, reason: &'static str, message: String) {
        self.plan.notices.push(Notice { reason, message });
    }

    /// The set's status if it is another than before; asks for another look when a pod will have become available.
    fn status(&mut self) -> Option<StatefulSetStatus> {
        let before = self.set.object.status.clone().unwrap_or_default();
        let mut counts = Counts::default();
        for pod in self.members.values() {
            counts.replicas += 1;
            match self.health(pod) {
                Health::Unready => {}
                Health::Ready(left) => {
                    counts.ready += 1;
                    let left = Duration::try_from(left).unwrap_or_default();
                    self.plan.again = Some(self.plan.again.map_or(left, |again| again.min(left)));
                }
                Health::Available => {
                    counts.ready += 1;
                    counts.available += 1;
                }
            }
            if !pods::is_going(pod) {
                counts.current += i32::from(pods::revision(pod) == self.current);
                counts.updated += i32::from(pods::revision(pod) == self.update);
            }
        }
        let mut current = self.current.clone();
        let all = |count: i32| i64::from(count) == self.set.replicas();
        if self.set.rolls() && all(counts.updated) && all(counts.ready) && all(counts.replicas) {
            counts.current = counts.updated;
            current.clone_from(&self.update);
        }
        let status = StatefulSetStatus {
            available_replicas: Some(counts.available),
            collision_count: Some(before.collision_count.unwrap_or(0)),
            conditions: before.conditions.clone(),
            current_replicas: Some(counts.current),
            current_revision: Some(current),
            observed_generation: self.set.object.metadata.generation,
            ready_replicas: Some(counts.ready),
            replicas: counts.replicas,
            update_revision: Some(self.update.clone()),
            updated_replicas: Some(counts.updated),
        };
        (!says_the_same(&before, &status)).then_some(status)
    }

    /// Sees to every pod that is asked for. False: something has to come true before anything else is done.
    fn keep_replicas(&mut self) -> bool {
        let start = self.set.start();
        let mut made = 0;
        for ordinal in start..start + self.set.replicas() {
            let done = match self.members.get(&ordinal).cloned() {
                Some(pod) => self.keep(ordinal, &pod),
                None => {
                    made += 1;
                    self.make(ordinal);
                    false
                }
            };
            if !done && self.set.is_ordered() {
                self.replace_what_never_comes(ordinal);
                return false;
            }
            if made == BATCH {
                return false;
            }
        }
        true
    }

    /// Ends a pod of an older template that others wait for, if what follows it has the new one: a bad template doesn't
    /// stand in the way of a better one.
    fn replace_what_never_comes(&mut self, ordinal: i64) {
        let Some(pod) = self.members.get(&ordinal).cloned() else { return };
        if self.is_old(&pod) && self.may_recover(&pod) && self.is_followed_by_new(ordinal, &pod) {
            self.plan.writes.push(Write::DeletePod(pod));
        }
    }

    /// Whether a rolling update has yet to replace a pod.
    fn is_old(&self, pod: &Pod) -> bool {
        self.set.rolls() && pods::revision(pod) != self.update && !pods::is_going(pod)
    }

    /// Whether a pod that is made after this one is gone has the new template; see [`Self::keeps_current`].
    fn is_followed_by_new(&self, ordinal: i64, pod: &Pod) -> bool {
        let is_current = |pod: &Pod| !pods::is_going(pod) && pods::revision(pod) == self.current;
        let current = self.members.values().filter(|pod| is_current(pod)).count();
        let left = i64::try_from(current).unwrap_or(i64::MAX) - i64::from(is_current(pod));
        ordinal - self.set.start() >= self.set.partition().unwrap_or(left)
    }

    /// Sees to a pod that is there. False: the next one in order has to wait for it.
    fn keep(&mut self, ordinal: i64, pod: &Arc<Pod>) -> bool {
        if pods::is_going(pod) {
            return false;
        }
        if pods::has_ended(pod) {
            self.plan.writes.push(Write::DeletePod(Arc::clone(pod)));
            return false;
        }
        if pods::is_pending(pod) {
            self.make_claims(ordinal);
        }
        self.keep_claims(ordinal, pod, true);
        let mut labelled = Pod::clone(pod);
        pods::identify(&mut labelled, ordinal);
        if labelled.labels() != pod.labels() {
            self.plan.writes.push(Write::UpdatePod(Box::new(labelled)));
        }
        self.check_volumes(ordinal, pod);
        self.is_available(pod)
    }

    /// A pod's volumes can't be changed: one that was adopted without its claims stays so.
    fn check_volumes(&mut self, ordinal: i64, pod: &Pod) {
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        let has = |claim: &String| {
            let sources = volumes.iter().filter_map(|volume| volume.persistent_volume_claim.as_ref());
            sources.into_iter().any(|source| &source.claim_name == claim)
        };
        let missing: Vec<_> = self.set.claim_names(ordinal).filter(|claim| !has(claim)).collect();
        if !missing.is_empty() {
            let message = format!(
                "Pod {} does not mount the claims {} of the set; delete it to have it made anew",
                pod.name_any(),
                missing.join(", ")
            );
            self.warn("FailedUpdate", message);
        }
    }

    /// Makes a pod, after its claims.
    fn make(&mut self, ordinal: i64) {
        let name = self.set.pod_name(ordinal);
        let set = self.set.name();
        if (self.view.pod)(&name).is_some_and(|pod| !self.set.controls(&*pod)) {
            let message = format!(
                "Create Pod {name} in StatefulSet {set} failed: a pod of that name is there that is not the set's; \
                 delete or rename it"
            );
            return self.warn("FailedCreate", message);
        }
        for claim in self.set.claim_names(ordinal).filter_map(|claim| (self.view.claim)(&claim)) {
            // The collector is about to delete it, together with the pod that it was scaled down with.
            if self.set.deletes_claims_when_scaled() && claims::belongs_to_earlier_pod(&claim, &name, None) {
                return;
            }
            if claim.metadata.deletion_timestamp.is_some() {
                let message = format!(
                    "Create Pod {name} in StatefulSet {set} failed: claim {} is being deleted; it goes when no pod \
                     uses it",
                    claim.name_any()
                );
                return self.warn("FailedCreate", message);
            }
        }
        self.make_claims(ordinal);
        let (template, revision) = match self.keeps_current(ordinal) {
            true => (&self.current_template, &self.current),
            false => (self.set.template(), &self.update),
        };
        let pod = pods::new(&self.set, ordinal, template, revision);
        self.plan.writes.push(Write::CreatePod(Box::new(pod)));
    }

    /// Whether a pod that is made now gets the template from before a rolling update.
    fn keeps_current(&self, ordinal: i64) -> bool {
        let place = ordinal - self.set.start();
        let current = self.set.object.status.as_ref().and_then(|status| status.current_replicas);
        self.set.rolls() && place < self.set.partition().unwrap_or(i64::from(current.unwrap_or(0)))
    }

    fn make_claims(&mut self, ordinal: i64) {
        for claim in claims::wanted(&self.set, ordinal) {
            if (self.view.claim)(&claim.name_any()).is_none() {
                self.plan.writes.push(Write::CreateClaim(Box::new(claim), self.set.pod_name(ordinal)));
            }
        }
    }

    /// Gives a pod's claims the owners that the retention policy wants.
    fn keep_claims(&mut self, ordinal: i64, pod: &Pod, asked_for: bool) {
        for claim in self.set.claim_names(ordinal).filter_map(|claim| (self.view.claim)(&claim)) {
            let owners = match claims::ownership(&claim, &self.set, pod, asked_for) {
                Ownership::Right => continue,
                Ownership::Change(owners) => owners,
                Ownership::Contested(owners) => {
                    let message = format!(
                        "PersistentVolumeClaim {} has another controller; the retention policy is ignored for it",
                        claim.name_any()
                    );
                    self.warn("ConflictingController", message);
                    owners
                }
            };
            let mut claim = PersistentVolumeClaim::clone(&claim);
            claim.metadata.owner_references = Some(owners);
            self.plan.writes.push(Write::UpdateClaim(Box::new(claim), pod.name_any()));
        }
    }

    /// Ends pods that are not asked for any more, the highest ordinal first. False: as for `keep_replicas`.
    fn end_condemned(&mut self) -> bool {
        let condemned: Vec<_> = self
            .members
            .iter()
            .rev()
            .filter(|(ordinal, _)| !self.set.asks_for(**ordinal))
            .map(|(ordinal, pod)| (*ordinal, Arc::clone(pod)))
            .collect();
        for (ordinal, pod) in &condemned {
            self.keep_claims(*ordinal, pod, false);
        }
        let first_unavailable =
            condemned.iter().rev().find(|(_, pod)| self.may_recover(pod)).map(|(ordinal, _)| *ordinal);
        for (ordinal, pod) in condemned {
            let waits =
                pods::is_going(&pod) || (self.may_recover(&pod) && first_unavailable != Some(ordinal));
            if !self.set.is_ordered() {
                if !pods::is_going(&pod) {
                    self.plan.writes.push(Write::DeletePod(pod));
                }
                continue;
            }
            if !waits {
                self.plan.writes.push(Write::DeletePod(pod));
            }
            return false;
        }
        true
    }

    /// Ends pods of an older template, the highest first, as far as the strategy lets them be unavailable. One that is
    /// unavailable already costs nothing; it waits for its turn if what follows it would have the old template again.
    fn roll(&mut self) -> bool {
        if !self.set.rolls() {
            return true;
        }
        let start = self.set.start();
        let asked: Vec<_> = self
            .members
            .range(start..start + self.set.replicas())
            .map(|(at, pod)| (*at, Arc::clone(pod)))
            .collect();
        let waits = |look: &Self, ordinal: i64, pod: &Pod| {
            look.is_old(pod) && !look.is_available(pod) && !look.is_followed_by_new(ordinal, pod)
        };
        let counts = |(ordinal, pod): &&(i64, Arc<Pod>)| self.is_available(pod) || waits(self, *ordinal, pod);
        let available = asked.iter().filter(counts).count();
        let missing = self.set.replicas() - i64::try_from(available).unwrap_or(i64::MAX);
        let most = self.set.max_unavailable();
        let (mut spare, mut under_way) = (most - missing, 0);
        let first = start + self.set.partition().unwrap_or(0);
        for (ordinal, pod) in asked.into_iter().rev().take_while(|(ordinal, _)| *ordinal >= first) {
            if under_way >= most {
                return false;
            }
            if waits(self, ordinal, &pod) {
                continue;
            }
            let (is_available, is_old) = (self.is_available(&pod), self.is_old(&pod));
            match (is_old, is_available) {
                (true, true) if spare > 0 => spare -= 1,
                (true, true) | (false, true) => continue,
                (_, false) => {}
            }
            under_way += 1;
            if is_old {
                self.plan.writes.push(Write::DeletePod(pod));
            }
        }
        under_way == 0
    }
}

#[derive(Default)]
struct Counts {
    replicas: i32,
    ready: i32,
    available: i32,
    current: i32,
    updated: i32,
}

/// Whether two statuses mean the same; zero may be left out.
fn says_the_same(a: &StatefulSetStatus, b: &StatefulSetStatus) -> bool {
    let numbers = |status: &StatefulSetStatus| {
        [
            status.available_replicas,
            status.collision_count,
            status.current_replicas,
            status.ready_replicas,
            status.updated_replicas,
            Some(status.replicas),
        ]
        .map(Option::unwrap_or_default)
    };
    numbers(a) == numbers(b)
        && a.current_revision == b.current_revision
        && a.update_revision == b.update_revision
        && a.observed_generation == b.observed_generation
}

#[cfg(test)]
mod tests;
