//! A populator at work: the volume of a claim of its own, really provisioned, is handed over to the claim that it fills.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

mod world;

use controllers::Controller;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use resources::populator::{self, GroupKind, VolumePopulator};
use resources::source::{self, SourceKind};
use resources::{annotations, claim, volume};
use runtime::{Change, Context, Key, Metrics, Next, Queue};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use world::steps::When;
use world::{Steps, World, eventually, object};

/// Where the populator has its own claims.
const WORKSHOP: &str = "populators";
const FINALIZER: &str = "example.com/populate-target-protection";

/// A populator of the usual form: each of its steps is taken when its effect is not there yet.
async fn populate(context: Context) {
    let queue = Queue::<Key>::new("populator", &context.metrics);
    let (claims, volumes) = (context.informers.claims(), context.informers.volumes());
    claims.subscribe({
        let queue = queue.clone();
        move |change| {
            if let Change::Applied { new, .. } = change {
                let name = new.annotations().get("example.com/for").cloned().unwrap_or(new.name_any());
                queue.add(Key { namespace: "default".to_owned(), name });
            }
        }
    });
    volumes.subscribe({
        let (queue, claims) = (queue.clone(), claims.clone());
        move |_| claims.in_namespace("default").iter().for_each(|claim| queue.add(Key::of(&**claim)))
    });
    tokio::join!(claims.synced(), volumes.synced());
    runtime::work(queue, 1, context.shutdown.clone(), |key| {
        let (claim, client) = (claims.get(&key.namespace, &key.name), context.client.clone());
        async move {
            match claim.filter(|claim| source::of(claim).is_some_and(|source| is_backup(&source.kind))) {
                Some(claim) => fill(&client, &claim).await.map(|()| Next::Done),
                None => Ok(Next::Done),
            }
        }
    })
    .await;
}

fn is_backup(kind: &SourceKind) -> bool {
    kind.group_and_kind() == ("example.com", "Backup")
}

async fn fill(client: &Client, wanted: &PersistentVolumeClaim) -> Result<(), kube::Error> {
    let (own, workshop) = (
        Api::<PersistentVolumeClaim>::namespaced(client.clone(), "default"),
        Api::<PersistentVolumeClaim>::namespaced(client.clone(), WORKSHOP),
    );
    let (uid, to) = (wanted.uid().unwrap(), PatchParams::default());
    let prime_name = format!("prime-{uid}");
    let prime = workshop.get_opt(&prime_name).await?;
    if claim::phase(wanted) == "Bound" {
        if prime.is_some() {
            workshop.delete(&prime_name, &DeleteParams::default()).await?;
        }
        let none = Patch::Merge(json!({"metadata": {"finalizers":
            wanted.finalizers().iter().filter(|name| *name != FINALIZER).collect::<Vec<_>>()}}));
        own.patch(&wanted.name_any(), &to, &none).await?;
        return Ok(());
    }
    let Some(node) = claim::selected_node(wanted) else { return Ok(()) };
    if !wanted.finalizers().iter().any(|name| name == FINALIZER) {
        let kept = Patch::Json::<()>(
            serde_json::from_value(
                json!([{"op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER}]),
            )
            .unwrap(),
        );
        own.patch(&wanted.name_any(), &to, &kept).await?;
    }
    let Some(prime) = prime else {
        let mut spec = wanted.spec.clone().unwrap();
        (spec.data_source, spec.data_source_ref) = (None, None);
        let prime = object(json!({
            "metadata": {"name": prime_name, "namespace": WORKSHOP,
                "annotations": {annotations::SELECTED_NODE: node, "example.com/for": wanted.name_any()}},
            "spec": spec,
        }));
        workshop.create(&PostParams::default(), &prime).await?;
        return Ok(());
    };
    let name = claim::volume_name(&prime);
    if claim::phase(&prime) != "Bound" || name.is_empty() {
        return Ok(());
    }
    // Here a pod would have mounted the volume and filled it.
    let volumes = Api::<PersistentVolume>::all(client.clone());
    if !volume::is_bound_to(&volumes.get(name).await?, wanted) {
        let now = own.get(&wanted.name_any()).await?;
        let handed = json!({"spec": {"claimRef": {"namespace": "default", "name": now.name_any(), "uid": now.uid(),
            "resourceVersion": now.resource_version()}}});
        volumes.patch(name, &to, &Patch::Strategic(handed)).await?;
    }
    Ok(())
}

fn context(client: Client) -> Context {
    Context::new(client, Metrics::new(), CancellationToken::new())
}

/// The whole dance, while the provisioner is killed at one of its steps. Whether it got there.
async fn dance(step: usize, when: When) -> bool {
    let world = World::new(1).await;
    world.class("fast", |_| {}).await;
    let create = PostParams::default();
    let definitions: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    definitions.create(&create, &populator::definition()).await.unwrap();
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    namespaces.create(&create, &object(json!({"metadata": {"name": WORKSHOP}}))).await.unwrap();
    let controllers = context(world.client.clone());
    let _stopped = controllers.shutdown.clone().drop_guard();
    tokio::spawn({
        let context = controllers.clone();
        async move {
            let all = [Controller::Bind, Controller::Protect, Controller::Populate];
            controllers::run(context, &all).await.unwrap();
        }
    });
    tokio::spawn(populate(controllers.clone()));
    let kind = GroupKind { group: "example.com".to_owned(), kind: "Backup".to_owned() };
    eventually("the kind is registered", async || {
        let populators: Api<VolumePopulator> = Api::all(world.client.clone());
        populators.create(&create, &VolumePopulator::new("backups", kind.clone())).await.is_ok()
    })
    .await;
    let steps = Steps::crashing_at(step, when);
    let process = world.provision(&steps).await;

    let wanted: PersistentVolumeClaim = object(json!({
        "metadata": {"name": "wanted", "namespace": "default", "annotations": {annotations::SELECTED_NODE: "n1"}},
        "spec": {"storageClassName": "fast", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "dataSourceRef": {"apiGroup": "example.com", "kind": "Backup", "name": "monday"}},
    }));
    let wanted = world.claims().create(&create, &wanted).await.unwrap();
    let is_bound = async || claim::phase(&world.claims().get("wanted").await.unwrap()) == "Bound";
    let crashed = tokio::select! {
        () = steps.crashed() => true,
        () = eventually("the claim is bound without a crash", is_bound) => false,
    };
    process.kill().await;
    let process = world.provision(&Steps::new()).await;
    eventually("the claim is bound", is_bound).await;
    let workshop: Api<PersistentVolumeClaim> = Api::namespaced(world.client.clone(), WORKSHOP);
    eventually("the populator has cleaned up", async || {
        let wanted = world.claims().get("wanted").await.unwrap();
        workshop.list(&Default::default()).await.unwrap().items.is_empty()
            && wanted.finalizers().iter().all(|name| name != FINALIZER)
    })
    .await;
    let bound = world.claims().get("wanted").await.unwrap();
    let volumes = world.volume_list().await;
    assert_eq!(volumes.len(), 1, "one volume, whoever died");
    assert_eq!(claim::volume_name(&bound), volumes[0].name_any());
    assert!(volume::is_bound_to(&volumes[0], &wanted));
    assert_eq!(volume::phase(&volumes[0]), "Bound");
    assert_eq!(world.driver.volumes().len(), 1);
    assert!(world.driver.requests().iter().all(|request| request.volume_content_source.is_none()));
    eventually("the provisioner left the claim to the populator", async || {
        let assuming = "Assuming an external populator will provision the volume";
        world.events("Provisioning").await.iter().any(|message| message == assuming)
    })
    .await;
    assert!(world.events("UnrecognizedDataSourceKind").await.is_empty());

    world.delete_claim("wanted").await;
    eventually("everything is gone", async || {
        world.volume_list().await.is_empty() && world.driver.volumes().is_empty()
    })
    .await;
    process.kill().await;
    crashed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_populated_claim_gets_its_volume_whenever_the_provisioner_dies() {
    for when in [When::Before, When::After] {
        let mut step = 0;
        while dance(step, when).await {
            step += 1;
        }
        assert!(step >= 3, "only {step} steps were tried");
    }
}
