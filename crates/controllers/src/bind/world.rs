//! What the binder knows: every claim, volume, class and pod of interest, filed by what a decision asks for.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::core::ObjectMeta;
use resources::{claim, class, fit, volume};
use values::Quantity;

use super::plugins::Plugins;

/// Namespace and name of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClaimKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ClaimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl ClaimKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a claim.
    pub fn of(claim: &PersistentVolumeClaim) -> Self {
        Self::new(claim.namespace().unwrap_or_default(), claim.name_any())
    }

    /// The claim that a volume refers to.
    pub fn referred(volume: &PersistentVolume) -> Option<Self> {
        let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
        Some(Self::new(reference.namespace.clone()?, reference.name.clone()?))
    }
}

/// What a step is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A claim.
    Claim(ClaimKey),
    /// A volume, by name.
    Volume(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Claim(key) => write!(f, "claim {key}"),
            Key::Volume(name) => write!(f, "volume {name}"),
        }
    }
}

/// A set of access modes. Smaller sets come first, so that a claim gets a volume with the fewest modes it doesn't need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modes(Vec<String>);

impl Modes {
    /// The set of the modes given, in whichever order.
    pub fn new(modes: &[String]) -> Self {
        Self(modes.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect())
    }
}

impl Ord for Modes {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Modes {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

type ClaimsBySize = BTreeSet<(Option<Quantity>, ClaimKey)>;
type BySize = BTreeSet<(Option<Quantity>, String)>;
type ByClass = HashMap<(String, String), BySize>;

/// The volumes, filed for matching.
#[derive(Default)]
pub struct Volumes {
    by_name: HashMap<String, Arc<PersistentVolume>>,
    /// Volumes whose claimRef names the claim, whoever wrote it.
    by_claim: HashMap<ClaimKey, BTreeSet<String>>,
    /// Available volumes without claimRef: access modes, then class and volume mode, then size.
    free: BTreeMap<Modes, ByClass>,
    /// Volumes about which a decision was made whose writes are still under way.
    taken: HashMap<String, BTreeSet<Key>>,
}

impl Volumes {
    /// The volume of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<PersistentVolume>> {
        self.by_name.get(name)
    }

    /// Every volume.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<PersistentVolume>> {
        self.by_name.values()
    }

    /// Files a volume, unless a newer version is known.
    pub fn put(&mut self, volume: Arc<PersistentVolume>) -> Filed {
        let name = volume.name_any();
        let filed = Filed::of(&volume.metadata, self.by_name.get(&name).map(|known| &known.metadata));
        if filed == Filed::Older {
            return filed;
        }
        self.remove(&name);
        if let Some(claim) = ClaimKey::referred(&volume) {
            self.by_claim.entry(claim).or_default().insert(name.clone());
        } else if is_free(&volume) {
            let by_class = self.free.entry(Modes::new(volume::access_modes(&volume))).or_default();
            by_class.entry(class_key(&volume)).or_default().insert((fit::capacity(&volume), name.clone()));
        }
        self.by_name.insert(name, volume);
        filed
    }

    /// Forgets a volume.
    pub fn remove(&mut self, name: &str) -> Option<Arc<PersistentVolume>> {
        let volume = self.by_name.remove(name)?;
        if let Some(claim) = ClaimKey::referred(&volume) {
            if let Some(names) = self.by_claim.get_mut(&claim) {
                names.remove(name);
                if names.is_empty() {
                    self.by_claim.remove(&claim);
                }
            }
        } else if is_free(&volume) {
            let modes = Modes::new(volume::access_modes(&volume));
            let class = class_key(&volume);
            if let Some(by_class) = self.free.get_mut(&modes) {
                if let Some(sizes) = by_class.get_mut(&class) {
                    sizes.remove(&(fit::capacity(&volume), name.to_owned()));
                    if sizes.is_empty() {
                        by_class.remove(&class);
                    }
                }
                if by_class.is_empty() {
                    self.free.remove(&modes);
                }
            }
        }
        Some(volume)
    }

    /// Volumes that refer to a claim, smallest first.
    pub fn referring_to(&self, claim: &ClaimKey) -> Vec<&Arc<PersistentVolume>> {
        let names = self.by_claim.get(claim).into_iter().flatten();
        let mut volumes: Vec<_> = names.filter_map(|name| self.by_name.get(name)).collect();
        volumes.sort_by_cached_key(|volume| fit::capacity(volume));
        volumes
    }

    /// The access-mode sets among free volumes that contain the modes asked for, tightest first.
    pub fn mode_sets(&self, requested: &[String]) -> impl Iterator<Item = &Modes> {
        self.free.keys().filter(move |modes| requested.iter().all(|mode| modes.0.contains(mode)))
    }

    /// Free volumes with exactly these modes, of that class and volume mode, at least that large, smallest first.
    pub fn free(
        &self,
        modes: &Modes,
        class: &str,
        mode: &str,
        size: Option<Quantity>,
    ) -> impl Iterator<Item = &Arc<PersistentVolume>> {
        let sizes =
            self.free.get(modes).and_then(|by_class| by_class.get(&(class.to_owned(), mode.to_owned())));
        sizes
            .into_iter()
            .flat_map(move |sizes| sizes.range((size.clone(), String::new())..))
            .filter(|(_, name)| !self.taken.contains_key(name))
            .filter_map(|(_, name)| self.by_name.get(name))
    }
}

fn is_free(volume: &PersistentVolume) -> bool {
    let claimed = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
    !claimed && volume::phase(volume) == "Available" && volume.metadata.deletion_timestamp.is_none()
}

fn class_key(volume: &PersistentVolume) -> (String, String) {
    (volume::class(volume).to_owned(), volume::volume_mode(volume).to_owned())
}

/// Everything that binding decisions rest upon. Own writes are filed at once, so that a watch that lags behind never
/// leads to a second decision about the same volume.
#[derive(Default)]
pub struct World {
    claims: HashMap<ClaimKey, Arc<PersistentVolumeClaim>>,
    /// The volumes.
    pub volumes: Volumes,
    classes: BTreeMap<String, Arc<StorageClass>>,
    pods: HashMap<ClaimKey, BTreeMap<String, Arc<Pod>>>,
    /// Claims that name no volume: class and volume mode, then size.
    waiting: HashMap<(String, String), ClaimsBySize>,
    /// Those of them that were not told of a free volume.
    untold: HashMap<(String, String), ClaimsBySize>,
    /// Claims that were told of a free volume and have not looked yet.
    told: HashMap<ClaimKey, String>,
    /// Claims by the volume that they name.
    by_volume: HashMap<String, BTreeSet<ClaimKey>>,
    /// In-tree plugins: those compiled in, and those whose volumes a CSI driver serves.
    pub plugins: Plugins,
    /// Whether VolumeAttributesClass is honoured (it is since Kubernetes 1.34).
    pub attributes_class_off: bool,
}

impl World {
    /// The claim of that key.
    pub fn claim(&self, key: &ClaimKey) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(key)
    }

    /// Every claim.
    pub fn claims(&self) -> impl Iterator<Item = &Arc<PersistentVolumeClaim>> {
        self.claims.values()
    }

    /// Files a claim, unless a newer version is known.
    pub fn put_claim(&mut self, claim: Arc<PersistentVolumeClaim>) -> Filed {
        let key = ClaimKey::of(&claim);
        let filed = Filed::of(&claim.metadata, self.claims.get(&key).map(|known| &known.metadata));
        if filed == Filed::Older {
            return filed;
        }
        self.remove_claim(&key);
        let name = claim::volume_name(&claim);
        if !name.is_empty() {
            self.by_volume.entry(name.to_owned()).or_default().insert(key.clone());
        } else {
            let entry = (fit::requested(&claim), key.clone());
            if !self.told.contains_key(&key) {
                self.untold.entry(waiting_key(&claim)).or_default().insert(entry.clone());
            }
            self.waiting.entry(waiting_key(&claim)).or_default().insert(entry);
        }
        self.claims.insert(key, claim);
        filed
    }

    /// Forgets a claim.
    pub fn remove_claim(&mut self, key: &ClaimKey) -> Option<Arc<PersistentVolumeClaim>> {
        let claim = self.claims.remove(key)?;
        let name = claim::volume_name(&claim);
        if !name.is_empty() {
            if let Some(claims) = self.by_volume.get_mut(name) {
                claims.remove(key);
                if claims.is_empty() {
                    self.by_volume.remove(name);
                }
            }
        } else {
            drop_claim(&mut self.waiting, &claim);
            drop_claim(&mut self.untold, &claim);
        }
        Some(claim)
    }

    /// The claims that name a volume.
    pub fn claims_naming(&self, volume: &str) -> impl Iterator<Item = &ClaimKey> {
        self.by_volume.get(volume).into_iter().flatten()
    }

    /// Tells the largest waiting claim that a free volume fits of it: only one can have it. None is told of two.
    pub fn offer(&mut self, volume: &str) -> Option<ClaimKey> {
        let claim = self.volumes.get(volume).and_then(|volume| self.taker(volume))?;
        self.told.insert(claim.clone(), volume.to_owned());
        let waiting = self.claims.get(&claim).cloned();
        waiting.iter().for_each(|claim| drop_claim(&mut self.untold, claim));
        Some(claim)
    }

    /// The claim has looked; the volume that it was told of, if it was.
    pub fn heard(&mut self, key: &ClaimKey) -> Option<String> {
        let volume = self.told.remove(key)?;
        if let Some(claim) = self.claims.get(key).filter(|claim| claim::volume_name(claim).is_empty()) {
            self.untold.entry(waiting_key(claim)).or_default().insert((fit::requested(claim), key.clone()));
        }
        Some(volume)
    }

    fn taker(&self, volume: &PersistentVolume) -> Option<ClaimKey> {
        if !is_free(volume) || self.volumes.taken.contains_key(&volume.name_any()) {
            return None;
        }
        let class = class_key(volume);
        if self.classes.get(&class.0).is_some_and(|class| class::waits_for_consumer(class)) {
            return None;
        }
        // No name sorts behind this.
        let last = (fit::capacity(volume), ClaimKey::new("\u{10ffff}", ""));
        let claims = self.untold.get(&class)?.range(..last).rev();
        claims
            .filter(|(_, key)| {
                self.claims.get(key).is_some_and(|claim| {
                    volume::satisfies_access_modes(volume, claim)
                        && fit::same_attributes_class(claim, volume)
                        && fit::selector_takes(claim, volume)
                })
            })
            .map(|(_, key)| key.clone())
            .next()
    }

    /// The class of that name.
    pub fn class(&self, name: &str) -> Option<&Arc<StorageClass>> {
        self.classes.get(name)
    }

    /// The name of the class for claims which name none.
    pub fn default_class(&self) -> Option<String> {
        let classes: Vec<_> = self.classes.values().collect();
        class::default(&classes).map(|class| class.name_any())
    }

    /// Files a class.
    pub fn put_class(&mut self, class: Arc<StorageClass>) {
        self.classes.insert(class.name_any(), class);
    }

    /// Forgets a class.
    pub fn remove_class(&mut self, name: &str) {
        self.classes.remove(name);
    }

    /// Waiting claims that a change of this class may concern: those that name it, and those that name none.
    pub fn claims_of_class(&self, class: &str) -> Vec<ClaimKey> {
        let modes = ["Filesystem", "Block"].into_iter();
        let groups = modes.flat_map(|mode| [class, ""].map(move |class| (class.to_owned(), mode.to_owned())));
        groups.filter_map(|group| self.waiting.get(&group)).flatten().map(|(_, key)| key.clone()).collect()
    }

    /// Files a pod under the claims it uses.
    pub fn put_pod(&mut self, pod: &Arc<Pod>) {
        for key in claims_of_pod(pod) {
            self.pods.entry(key).or_default().insert(pod.name_any(), Arc::clone(pod));
        }
    }

    /// Forgets a pod.
    pub fn remove_pod(&mut self, pod: &Pod) {
        for key in claims_of_pod(pod) {
            if let Some(pods) = self.pods.get_mut(&key) {
                pods.remove(&pod.name_any());
                if pods.is_empty() {
                    self.pods.remove(&key);
                }
            }
        }
    }

    /// The pods that use a claim, by name.
    pub fn pods_of(&self, claim: &ClaimKey) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.get(claim).into_iter().flat_map(BTreeMap::values)
    }

    /// Marks volumes as decided upon until [`Self::release`]. False: writes about one of them are under way already;
    /// `key` is then named when they end.
    pub fn take(&mut self, volumes: &[String], key: &Key) -> bool {
        let busy = volumes.iter().find(|name| self.volumes.taken.contains_key(*name));
        if let Some(waiting) = busy.and_then(|name| self.volumes.taken.get_mut(name)) {
            waiting.insert(key.clone());
            return false;
        }
        self.volumes.taken.extend(volumes.iter().map(|name| (name.clone(), BTreeSet::new())));
        true
    }

    /// The writes about these volumes have ended: what waited for them.
    pub fn release(&mut self, volumes: &[String]) -> BTreeSet<Key> {
        volumes.iter().filter_map(|name| self.volumes.taken.remove(name)).flatten().collect()
    }
}

/// The claims that a pod uses, generic ephemeral volumes included.
pub fn claims_of_pod(pod: &Pod) -> Vec<ClaimKey> {
    let namespace = pod.namespace().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mut names: Vec<_> = volumes
        .iter()
        .filter_map(|volume| claim::of_volume(pod, volume))
        .map(|name| ClaimKey::new(namespace.clone(), name))
        .collect();
    names.sort();
    names.dedup();
    names
}

fn drop_claim(groups: &mut HashMap<(String, String), ClaimsBySize>, claim: &PersistentVolumeClaim) {
    let group = waiting_key(claim);
    if let Some(claims) = groups.get_mut(&group) {
        claims.remove(&(fit::requested(claim), ClaimKey::of(claim)));
        if claims.is_empty() {
            groups.remove(&group);
        }
    }
}

fn waiting_key(claim: &PersistentVolumeClaim) -> (String, String) {
    (claim::class(claim).to_owned(), claim::volume_mode(claim).to_owned())
}

/// How a version compares to the one that was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filed {
    /// It is news.
    News,
    /// It was known: the echo of an own write.
    Known,
    /// It is older than what is known, and was left out.
    Older,
}

impl Filed {
    fn of(new: &ObjectMeta, known: Option<&ObjectMeta>) -> Self {
        let version =
            |meta: &ObjectMeta| meta.resource_version.as_ref().and_then(|text| text.parse::<u64>().ok());
        match (version(new), known.and_then(version)) {
            (Some(new), Some(known)) if new < known => Self::Older,
            (Some(new), Some(known)) if new == known => Self::Known,
            _ => Self::News,
        }
    }
}
