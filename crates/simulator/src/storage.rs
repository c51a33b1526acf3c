//! A storage system that counts what it holds, and knows what it must never be asked to do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use resources::modification::{self, Stage};
use resources::volume;
use tokio::time::sleep;
use tonic::{Code, Status};

use crate::{Dice, Ledger, Network};

/// The driver's name.
pub const DRIVER: &str = "storage.example.com";

/// What no volume can be made to be.
pub const ODD: &str = "odd";

/// For how long the provisioner may not have seen that somebody changed what becomes of a volume.
const NEWS_TAKE: Duration = Duration::from_secs(60);

/// The storage system. Clones are handles on the same one.
#[derive(Clone)]
pub struct Storage {
    network: Network,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    held: Held,
    /// What operations are about that are under way.
    busy: BTreeSet<String>,
    /// How many operations there were about the same.
    asked: BTreeMap<String, u64>,
    /// What operations were carried out about.
    done: BTreeSet<String>,
    /// How many operations in a thousand fail.
    failing: u64,
}

/// What a storage system holds. Volumes and snapshots go by the driver's ids.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Volumes.
    pub volumes: BTreeMap<String, Volume>,
    /// Snapshots, with the volumes that they were taken of.
    pub snapshots: BTreeMap<String, String>,
    /// Groups of snapshots, with their snapshots.
    pub groups: BTreeMap<String, BTreeSet<String>>,
    /// Volumes and the nodes that they are attached to.
    pub attached: BTreeSet<(String, String)>,
    /// Volumes and the nodes that have them mounted.
    pub mounted: BTreeSet<(String, String)>,
}

/// A volume.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// Its size.
    pub bytes: i64,
    /// The node that alone can use it, if not all can.
    pub node: Option<String>,
    /// An administrator made it, and nobody else may delete it.
    pub by_hand: bool,
}

/// What becomes of an operation.
struct Fate {
    before: Duration,
    after: Duration,
    /// Nothing is done.
    refused: Option<Code>,
    /// It is done, and nobody is told.
    unanswered: Option<Code>,
    /// It is done although its caller is gone.
    outlives_its_caller: bool,
}

impl Storage {
    /// An empty one, for the world behind this network.
    pub(crate) fn new(network: Network) -> Storage {
        Storage { network, state: Arc::default() }
    }

    /// What it holds now.
    pub fn held(&self) -> Held {
        self.state.lock().held.clone()
    }

    /// Looks at what it holds, or changes it.
    pub(crate) fn hold<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.state.lock().held)
    }

    /// From now on so many operations in a thousand fail, after their effect or without one.
    pub fn fail(&self, in_a_thousand: u64) {
        self.state.lock().failing = in_a_thousand;
    }

    /// An operation about something, one at a time.
    pub(crate) async fn operate<T: Send + 'static>(
        &self,
        about: &str,
        effect: impl FnOnce(&mut Held, &mut Ledger) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let fate = {
            let mut state = self.state.lock();
            if !state.busy.insert(about.to_owned()) {
                return Err(Status::aborted("an operation is under way"));
            }
            let nth = state.asked.entry(about.to_owned()).and_modify(|nth| *nth += 1).or_insert(0);
            let dice = Dice::about(self.network.seed(), ("storage", about, *nth));
            Fate::roll(dice, state.failing)
        };
        let outlives_its_caller = fate.outlives_its_caller;
        let work = self.clone().work(Busy(self.state.clone(), about.to_owned()), fate, effect);
        match outlives_its_caller {
            true => tokio::spawn(work).await.unwrap_or_else(|_| Err(Status::internal("the storage stopped"))),
            false => work.await,
        }
    }

    async fn work<T>(
        self,
        busy: Busy,
        fate: Fate,
        effect: impl FnOnce(&mut Held, &mut Ledger) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let failure = |code| Status::new(code, "as the weather is");
        sleep(fate.before).await;
        if let Some(code) = fate.refused {
            // By the specification none says of what was done before that it was not.
            let is_done = self.state.lock().done.contains(&busy.1);
            let code = if is_done { Code::Unavailable } else { code };
            self.network.note(format_args!("storage: {}: {code:?}", busy.1));
            return Err(failure(code));
        }
        let answer = {
            let mut state = self.state.lock();
            let answer = self.network.ledger(|ledger| effect(&mut state.held, ledger));
            if answer.is_ok() {
                state.done.insert(busy.1.clone());
            }
            answer
        };
        let told = answer.as_ref().map(drop).map_err(Status::code);
        self.network.note(format_args!("storage: {}: {told:?} {:?}", busy.1, fate.unanswered));
        sleep(fate.after).await;
        match fate.unanswered {
            Some(code) => Err(failure(code)),
            None => answer,
        }
    }
}

/// Something that an operation is about.
struct Busy(Arc<Mutex<State>>, String);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.lock().busy.remove(&self.1);
    }
}

impl Fate {
    fn roll(mut dice: Dice, failing: u64) -> Fate {
        let fails = dice.in_a_thousand(failing);
        let is_done = dice.in_a_thousand(500);
        // Longer than any caller waits.
        let slow = fails && dice.in_a_thousand(200);
        let refused = [Code::Unavailable, Code::ResourceExhausted, Code::Internal, Code::Aborted];
        Fate {
            before: dice.up_to(if slow && !is_done { 90_000 } else { 40 }),
            after: dice.up_to(if slow && is_done { 90_000 } else { 40 }),
            refused: (fails && !is_done).then(|| dice.pick(&refused)),
            unanswered: (fails && is_done).then(|| dice.pick(&[Code::Unavailable, Code::DeadlineExceeded])),
            outlives_its_caller: dice.in_a_thousand(500),
        }
    }
}

impl Held {
    /// Something is asked for about a volume by the driver on this node.
    pub(crate) fn asked_at(&self, node: &str, id: &str, ledger: &mut Ledger) {
        let place = self.volumes.get(id).and_then(|volume| volume.node.as_deref());
        if let Some(place) = place.filter(|place| *place != node) {
            ledger
                .wrong
                .push(format!("{node} is asked for something about volume {id}, which is at {place}"));
        }
    }

    /// Deletes a volume.
    pub(crate) fn delete(&mut self, id: &str, ledger: &mut Ledger) -> Result<(), Status> {
        if self.attached.iter().any(|(volume, _)| volume == id) {
            return Err(Status::failed_precondition("it is attached"));
        }
        let now = ledger.volumes.get(id);
        let owner = now.and_then(|now| ledger.owner_of(now)).map(|claim| claim.metadata.name.clone());
        let policy = now.map(volume::reclaim_policy);
        let is_retained = ledger.retained(id).is_some_and(|since| since.elapsed() > NEWS_TAKE);
        if owner.is_some() || is_retained || self.volumes.get(id).is_some_and(|volume| volume.by_hand) {
            let wrong =
                format!("the data of volume {id} is deleted under policy {policy:?}, claim {owner:?}");
            ledger.wrong.push(wrong);
        }
        self.volumes.remove(id);
        Ok(())
    }

    /// Makes a volume be of a tier.
    pub(crate) fn modify(&mut self, id: &str, tier: &str, ledger: &mut Ledger) -> Result<(), Status> {
        if tier == ODD {
            return Err(Status::invalid_argument("no volume can be so"));
        }
        if !self.volumes.contains_key(id) {
            return Err(Status::not_found("there is no such volume"));
        }
        let owner = ledger.volumes.get(id).and_then(|volume| ledger.owner_of(volume));
        let lives = owner.filter(|claim| claim.metadata.deletion_timestamp.is_none());
        if let Some(claim) = lives.filter(|_| !ledger.adrift.contains(id)) {
            let (change, has) = (modification::under_way(claim), modification::current(claim));
            // News of the end may come late: then the same is asked for once more.
            let is_told = match change {
                Some((Stage::InProgress, target)) => target == tier,
                _ => has == tier,
            };
            if !is_told {
                let wrong =
                    format!("volume {id} is made {tier}, and its claim tells of {change:?} and {has:?}");
                ledger.wrong.push(wrong);
            }
        }
        ledger.tiers.insert(id.to_owned(), tier.to_owned());
        Ok(())
    }

    /// Attaches a volume to a node; a `lone` one may be nowhere else.
    pub(crate) fn attach(
        &mut self,
        id: &str,
        node: &str,
        lone: bool,
        ledger: &mut Ledger,
    ) -> Result<(), Status> {
        if !self.volumes.contains_key(id) {
            return Err(Status::not_found("there is no such volume"));
        }
        let elsewhere = self.attached.iter().find(|(volume, other)| volume == id && other != node);
        if let Some((_, other)) = elsewhere.filter(|_| lone) {
            ledger.wrong.push(format!("volume {id} is attached to {node} while it is at {other}"));
        }
        self.attached.insert((id.to_owned(), node.to_owned()));
        Ok(())
    }

    /// Detaches a volume from a node.
    pub(crate) fn detach(&mut self, id: &str, node: &str, ledger: &mut Ledger) {
        let place = (id.to_owned(), node.to_owned());
        if self.mounted.contains(&place) {
            ledger.wrong.push(format!("volume {id} is detached from {node}, which has it mounted"));
        }
        self.attached.remove(&place);
    }

    /// Whether these volumes are all there, and can be used on one node.
    pub(crate) fn are_together(&self, volumes: &[String]) -> bool {
        let found: Option<Vec<_>> = volumes.iter().map(|id| self.volumes.get(id)).collect();
        let nodes =
            |found: Vec<&Volume>| found.iter().filter_map(|one| one.node.clone()).collect::<BTreeSet<_>>();
        found.is_some_and(|found| nodes(found).len() < 2)
    }

    /// Takes snapshots of volumes at one moment, by the driver on this node.
    pub(crate) fn take_group(
        &mut self,
        id: &str,
        volumes: &[String],
        node: &str,
        ledger: &mut Ledger,
    ) -> Result<(), Status> {
        if self.groups.contains_key(id) {
            return Ok(());
        }
        if !self.are_together(volumes) {
            return Err(Status::invalid_argument("these volumes are not all there, or not together"));
        }
        volumes.iter().for_each(|volume| self.asked_at(node, volume, ledger));
        let members = volumes.iter().map(|volume| (format!("{id}-{volume}"), volume.clone()));
        let members: BTreeMap<_, _> = members.collect();
        self.groups.insert(id.to_owned(), members.keys().cloned().collect());
        self.snapshots.extend(members);
        Ok(())
    }

    /// Deletes a group with its snapshots.
    pub(crate) fn forget_group(
        &mut self,
        id: &str,
        snapshots: &[String],
        ledger: &mut Ledger,
    ) -> Result<(), Status> {
        let Some(members) = self.groups.get(id) else { return Ok(()) };
        if *members != snapshots.iter().cloned().collect() {
            return Err(Status::invalid_argument("the group has other snapshots"));
        }
        if ledger.retained_snapshots.contains(id) {
            ledger.wrong.push(format!("the group {id}, which is to be retained, is deleted"));
        }
        if let Some(group) = ledger.groups.get(id) {
            ledger.wrong.push(format!("the data of the group {group}, which lives, is deleted"));
        }
        self.snapshots.retain(|member, _| !members.contains(member));
        self.groups.remove(id);
        Ok(())
    }

    /// Deletes a snapshot.
    pub(crate) fn forget(&mut self, id: &str, ledger: &mut Ledger) {
        if self.groups.values().any(|members| members.contains(id)) {
            ledger.wrong.push(format!("the snapshot {id} is deleted alone, which is of a group"));
        }
        if ledger.retained_snapshots.contains(id) {
            ledger.wrong.push(format!("the snapshot {id}, which is to be retained, is deleted"));
        }
        self.snapshots.remove(id);
    }
}
