//! Groups of snapshots.

use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use resources::snapshot::is_ready;
use resources::{VolumeGroupSnapshot, VolumeGroupSnapshotContent};
use serde_json::json;

use super::world::steps::When;
use super::world::{Steps, World, eventually, object};
use super::{claim_from, delete, every_step, from_snapshot, world_with_claim};

/// A world with two bound claims, and a group of them that was asked for.
async fn world_with_group() -> World {
    let world = world_with_claim().await;
    world.bound_pair("logs", "fast", Some("n1"), "1Mi").await;
    for claim in ["data", "logs"] {
        let label = json!({"metadata": {"labels": {"app": "shop"}}});
        world.claims().patch(claim, &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    }
    let group: VolumeGroupSnapshot = object(json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshot", "metadata": {"name": "all"},
        "spec": {"source": {"selector": {"matchLabels": {"app": "shop"}}}},
    }));
    groups(&world).create(&PostParams::default(), &group).await.unwrap();
    world
}

fn groups(world: &World) -> Api<VolumeGroupSnapshot> {
    Api::default_namespaced(world.client.clone())
}

/// The group is ready, and so are its two snapshots.
async fn whole(world: &World) {
    eventually("the group is ready", async || {
        let group = groups(world).get("all").await.unwrap();
        let members = world.snapshots().list(&ListParams::default()).await.unwrap().items;
        group.status.is_some_and(|status| status.ready_to_use == Some(true))
            && members.len() == 2
            && members.iter().all(is_ready)
    })
    .await;
}

/// Deletes the group, and then, as the collector does, what it owns.
async fn delete_group(world: &World) {
    let asked = groups(world).delete("all", &DeleteParams::default()).await;
    assert!(asked.is_ok() || matches!(asked, Err(kube::Error::Api(status)) if status.is_not_found()));
    eventually("the group is gone, objects and data", async || {
        let members = world.snapshots().list(&ListParams::default()).await.unwrap().items;
        let is_gone = groups(world).get_opt("all").await.unwrap().is_none();
        for member in members.iter().filter(|_| is_gone) {
            delete(world, &member.name_any()).await;
        }
        let contents = world.contents().list(&ListParams::default()).await.unwrap().items;
        let group_contents: Api<VolumeGroupSnapshotContent> = Api::all(world.client.clone());
        let group_contents = group_contents.list(&ListParams::default()).await.unwrap().items;
        is_gone
            && members.is_empty()
            && contents.is_empty()
            && group_contents.is_empty()
            && world.driver.snapshots().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_group_is_taken_at_once_and_goes_as_one() {
    let world = world_with_group().await;
    let process = world.take_snapshots(&Steps::new()).await;
    whole(&world).await;
    let members = world.snapshots().list(&ListParams::default()).await.unwrap().items;
    let mut of: Vec<_> =
        members.iter().filter_map(|one| one.spec.source.persistent_volume_claim_name.clone()).collect();
    of.sort();
    assert_eq!(of, ["data", "logs"]);
    assert!(world.driver.shot().is_empty(), "none was taken alone");
    let copy = claim_from("copy", from_snapshot(&members[0].name_any()), "1Mi");
    world.claims().create(&PostParams::default(), &copy).await.unwrap();
    world.bound("copy").await;

    delete(&world, &members[0].name_any()).await;
    eventually("one alone stays", async || {
        world
            .events("SnapshotDeletePending")
            .await
            .iter()
            .any(|message| message.contains("belongs to a group"))
    })
    .await;
    delete_group(&world).await;
    process.kill().await;
}

/// Kills the process after every step in turn; then before every one, and the group is deleted while nobody is there.
#[tokio::test]
async fn a_crash_at_any_step_neither_loses_nor_leaks_a_group() {
    let life = |step: usize, when: When, deleted: bool| async move {
        let world = world_with_group().await;
        let steps = Steps::crashing_at(step, when);
        let process = world.take_snapshots(&steps).await;
        let life = async {
            whole(&world).await;
            delete_group(&world).await;
        };
        let crashed = tokio::select! {
            () = life => false,
            () = steps.crashed() => true,
        };
        process.kill().await;
        if crashed {
            let group = groups(&world).get_opt("all").await.unwrap();
            let living = group.is_some_and(|one| one.metadata.deletion_timestamp.is_none());
            let process = match deleted {
                true => {
                    _ = groups(&world).delete("all", &DeleteParams::default()).await;
                    world.take_snapshots(&Steps::new()).await
                }
                false => {
                    let process = world.take_snapshots(&Steps::new()).await;
                    if living {
                        whole(&world).await;
                        assert_eq!(world.driver.snapshots().len(), 2, "crash {when:?} step {step}");
                    }
                    process
                }
            };
            delete_group(&world).await;
            process.kill().await;
        }
        crashed
    };
    for (deleted, when) in [(false, When::After), (true, When::Before)] {
        let steps = every_step(|step| life(step, when, deleted)).await;
        assert!(steps >= 18, "a whole life has at least 18 steps, this one had {steps}");
    }
}

/// Refuses every write about a group in turn, by turns as a conflict and as a failure of the API.
#[tokio::test]
async fn any_refused_write_about_a_group_is_made_good() {
    let writes = every_step(|write| async move {
        let world = world_with_group().await;
        let steps = Steps::refusing_at(write, [409, 500][write % 2]);
        let process = world.take_snapshots(&steps).await;
        whole(&world).await;
        delete_group(&world).await;
        let writes = world.writes();
        process.kill().await;
        write < writes
    })
    .await;
    assert!(writes >= 16, "{writes}");
}
