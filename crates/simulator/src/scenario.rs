//! A course of events, played with every write failing in turn.

use std::future::Future;
use std::time::Duration;

use controllers::Controller;
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use resources::{claim, fit, modification, volume};
use tokio::time::sleep;

use crate::{Fault, Role, World};

/// Plays `scene` in a calm world in which these controllers and processes run, then once more for every write that they
/// made and every way in which it can fail. Where more than the controllers runs, which takes its time, the ways take
/// turns, unless `ORLOP_EVERY_FAULT` is set. Each time `expect` looks at what is left when nobody writes any more.
///
/// Returns how many writes there are.
///
/// # Panics
/// What `expect` found wrong, or what must never happen, with the write that failed.
pub fn every_write_fails<S, E>(controllers: &[Controller], roles: &[Role], scene: S, expect: E) -> usize
where
    S: AsyncFn(&World),
    E: AsyncFn(&World) -> Result<(), String>,
{
    let writes = play(controllers, roles, None, &scene, &expect);
    let thorough = roles.is_empty() || std::env::var_os("ORLOP_EVERY_FAULT").is_some();
    for number in 0..writes {
        let turn = number % Fault::ALL.len();
        let ways = if thorough { &Fault::ALL[..] } else { &Fault::ALL[turn..=turn] };
        for &fault in ways {
            play(controllers, roles, Some((number, fault)), &scene, &expect);
        }
    }
    writes
}

/// [`every_write_fails`] without the failures.
///
/// # Panics
/// What `expect` found wrong, or what must never happen.
pub fn once<S, E>(controllers: &[Controller], roles: &[Role], scene: S, expect: E)
where
    S: AsyncFn(&World),
    E: AsyncFn(&World) -> Result<(), String>,
{
    play(controllers, roles, None, &scene, &expect);
}

fn play<S, E>(
    controllers: &[Controller],
    roles: &[Role],
    fault: Option<(usize, Fault)>,
    scene: &S,
    expect: &E,
) -> usize
where
    S: AsyncFn(&World),
    E: AsyncFn(&World) -> Result<(), String>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    runtime.block_on(async {
        let mut world = World::new(0).await.with(controllers);
        if controllers.contains(&Controller::Snapshots) {
            world.define_snapshots().await;
        }
        world.start(Role::Controllers);
        roles.iter().for_each(|role| world.start(*role));
        sleep(Duration::from_secs(1)).await;
        if let Some((number, fault)) = fault {
            world.network.fail(number, fault);
        }
        Box::pin(scene(&world)).await;
        let rested = Box::pin(world.rest(Duration::from_secs(90))).await;
        let expected = Box::pin(expect(&world)).await;
        let wrong = world.network.ledger(|ledger| ledger.wrong.clone());
        let report = |why: &str| panic!("{}\n\nwrite {fault:?}: {why}", world.network.trace().join("\n"));
        match (rested, expected, wrong.as_slice()) {
            (Ok(()), Ok(()), []) => world.network.writes(),
            (Err(why), _, _) | (_, Err(why), _) => report(&why),
            (_, _, [wrong, ..]) => report(wrong),
        }
    })
}

/// What a world says, does and leaves alone over a long time.
pub struct Quiet {
    /// Writes of processes.
    pub writes: usize,
    /// Events written.
    pub events: usize,
    /// Reads, watches aside.
    pub reads: usize,
}

impl Quiet {
    /// Counts while time passes.
    pub async fn over(world: &World, time: Duration) -> Quiet {
        let network = &world.network;
        let (writes, events, reads) = (network.writes(), network.events(), network.reads());
        sleep(time).await;
        Quiet {
            writes: network.writes() - writes,
            events: network.events() - events,
            reads: network.reads() - reads,
        }
    }
}

impl World {
    /// Waits until it holds, for an hour at most.
    ///
    /// # Panics
    /// It does not.
    pub async fn until<F: Future<Output = bool>>(&self, what: &str, mut holds: impl FnMut() -> F) {
        for _ in 0..3600 {
            if holds().await {
                return;
            }
            sleep(Duration::from_secs(1)).await;
            self.tend().await;
        }
        panic!("{}\n\nnot within an hour: {what}", self.network.trace().join("\n"));
    }

    /// Adds to the trace how volumes and claims are, and what events say.
    pub(crate) async fn note_end(&self) {
        for volume in self.list::<PersistentVolume>().await {
            let spec = volume.spec.clone().unwrap_or_default();
            let (class, claim) = (spec.storage_class_name.unwrap_or_default(), spec.claim_ref);
            let of = claim.map(|claim| (claim.name.unwrap_or_default(), claim.uid.unwrap_or_default()));
            let going = volume.metadata.deletion_timestamp.is_some();
            let (name, phase) = (volume.name_any(), volume::phase(&volume));
            self.network.note(format_args!("volume {name} of {class:?}: {phase} of {of:?}, going: {going}"));
        }
        for claim in self.list::<PersistentVolumeClaim>().await {
            let (name, uid) = (claim.name_any(), claim.uid().unwrap_or_default());
            let (class, phase) = (claim::class(&claim), claim::phase(&claim));
            let (volume, node) = (claim::volume_name(&claim), claim::selected_node(&claim));
            self.network
                .note(format_args!("claim {name} {uid} of {class:?}: {phase} to {volume:?}, {node:?}"));
            let (wanted, has) = (fit::attributes_class_of_claim(&claim), modification::current(&claim));
            let change = modification::under_way(&claim);
            self.network.note(format_args!("claim {name} asks to be {wanted:?}, is {has:?}: {change:?}"));
        }
        for event in self.list::<Event>().await {
            let (reason, message) = (event.reason.unwrap_or_default(), event.message.unwrap_or_default());
            let (about, count) = (event.involved_object.name.unwrap_or_default(), event.count.unwrap_or(1));
            self.network.note(format_args!("event about {about}: {count} times {reason}: {message}"));
        }
        for attachment in self.list::<VolumeAttachment>().await {
            let error = attachment.status.and_then(|status| status.attach_error.or(status.detach_error));
            let volume = attachment.spec.source.persistent_volume_name.unwrap_or_default();
            self.network.note(format_args!("attachment of {volume}: {error:?}"));
        }
    }

    /// The reasons and messages of events about an object.
    pub async fn events_of(&self, name: &str) -> Vec<(String, String)> {
        let events = self.list::<Event>().await.into_iter();
        let about = events.filter(|event| event.involved_object.name.as_deref() == Some(name));
        about.map(|event| (event.reason.unwrap_or_default(), event.message.unwrap_or_default())).collect()
    }
}
