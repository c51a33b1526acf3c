//! Drivers that come, go and take over, by the sockets on which they are announced.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

mod world;

use std::path::PathBuf;
use std::sync::Arc;

use csi::registration::registration_server::{Registration, RegistrationServer};
use csi::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use resources::annotations;
use serde_json::json;
use sidecars::register::{Drivers, REGISTRY, run};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};
use world::{DRIVER, KEY, Process, Steps, World, eventually, object};

fn registrar(world: &World, drivers: &Drivers) -> Process {
    let context = world.context(&Steps::new());
    let (shutdown, drivers) = (context.shutdown.clone(), drivers.clone());
    let root = world.directory.path().to_owned();
    let task = tokio::spawn(async move { run(context, "n1", &root, drivers).await.unwrap() });
    Process::new(shutdown, task)
}

async fn node(world: &World) -> Node {
    Api::all(world.client.clone()).get("n1").await.unwrap()
}

async fn entry(world: &World) -> Option<k8s_openapi::api::storage::v1::CSINodeDriver> {
    let csi_nodes: Api<CSINode> = Api::all(world.client.clone());
    let csi_node = csi_nodes.get_opt("n1").await.unwrap()?;
    csi_node.spec.drivers.into_iter().find(|one| one.name == DRIVER)
}

/// A plugin that says what it is told to, and remembers what it was told.
#[derive(Clone)]
struct Plugin {
    info: PluginInfo,
    told: Arc<Mutex<Vec<RegistrationStatus>>>,
}

#[tonic::async_trait]
impl Registration for Plugin {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        self.told.lock().push(request.into_inner());
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

impl Plugin {
    fn new(kind: &str, endpoint: &str, version: &str) -> Plugin {
        let info = PluginInfo {
            r#type: kind.to_owned(),
            name: DRIVER.to_owned(),
            endpoint: endpoint.to_owned(),
            supported_versions: vec![version.to_owned()],
        };
        Plugin { info, told: Arc::default() }
    }

    fn serve(&self, world: &World, name: &str) -> DropGuard {
        let directory = world.directory.path().join(REGISTRY);
        std::fs::create_dir_all(&directory).unwrap();
        let incoming = csi::listen(directory.join(name)).unwrap();
        let shutdown = CancellationToken::new();
        let until = shutdown.clone();
        let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(self.clone()));
        tokio::spawn(async move { until.run_until_cancelled(server.serve_with_incoming(incoming)).await });
        shutdown.drop_guard()
    }

    fn registered(&self) -> bool {
        self.told.lock().iter().any(|status| status.plugin_registered)
    }
}

fn socket_of(drivers: &Drivers) -> Option<PathBuf> {
    drivers.get(DRIVER).map(|endpoint| endpoint.socket.clone())
}

#[tokio::test]
async fn an_announced_driver_is_registered_and_forgotten_with_its_socket() {
    let world = World::new(1).await;
    let socket = world.socket("csi.sock");
    let _serving = world.driver.serve(&socket, &Steps::new());
    let drivers = Drivers::new();
    let process = registrar(&world, &drivers);
    let registry = world.directory.path().join(REGISTRY);
    eventually("the registry exists", async || registry.exists()).await;

    let announcing = CancellationToken::new();
    let announcement = tokio::spawn({
        let (registry, socket, announcing) = (registry.clone(), socket.clone(), announcing.clone());
        async move { sidecars::announce::run(&registry, DRIVER, &socket, announcing).await }
    });
    eventually("the driver is known", async || drivers.get(DRIVER).is_some()).await;
    let endpoint = drivers.get(DRIVER).unwrap();
    assert_eq!((endpoint.socket.clone(), endpoint.version.as_str()), (socket, "1.0.0"));
    let found = entry(&world).await.unwrap();
    assert_eq!((found.node_id.as_str(), found.topology_keys), ("id-of-n1", Some(vec![KEY.to_owned()])));
    assert_eq!(found.allocatable.unwrap().count, Some(7));
    let labelled = node(&world).await;
    assert_eq!(labelled.labels()[KEY], "n1");
    assert_eq!(labelled.annotations()[annotations::CSI_NODE_ID], format!("{{\"{DRIVER}\":\"id-of-n1\"}}"));
    assert_eq!(world.writes(), 2, "the node and the CSINode");

    // A restart registers again what exists, and writes nothing.
    process.kill().await;
    let drivers = Drivers::new();
    let process = registrar(&world, &drivers);
    eventually("the driver is known again", async || drivers.get(DRIVER).is_some()).await;
    assert_eq!(world.writes(), 2);

    announcing.cancel();
    announcement.await.unwrap().unwrap();
    eventually("the driver is forgotten", async || {
        drivers.get(DRIVER).is_none() && entry(&world).await.is_none()
    })
    .await;
    let left = node(&world).await;
    assert!(!left.annotations().contains_key(annotations::CSI_NODE_ID));
    assert_eq!(left.labels()[KEY], "n1", "volumes may depend on the label");
    process.kill().await;
}

#[tokio::test]
async fn a_newer_socket_takes_over_and_the_older_ones_removal_changes_nothing() {
    let world = World::new(1).await;
    let (old, new) = (world.socket("old.sock"), world.socket("new.sock"));
    let _old = world.driver.serve(&old, &Steps::new());
    let _new = world.driver.serve(&new, &Steps::new());
    let drivers = Drivers::new();
    let process = registrar(&world, &drivers);
    let first = Plugin::new("CSIPlugin", old.to_str().unwrap(), "1.0.0");
    let first = (first.serve(&world, "old-reg.sock"), first);
    eventually("the first is registered", async || socket_of(&drivers) == Some(old.clone())).await;
    let second = Plugin::new("CSIPlugin", new.to_str().unwrap(), "1.0.0");
    let second = (second.serve(&world, "new-reg.sock"), second);
    eventually("the second took over", async || socket_of(&drivers) == Some(new.clone())).await;
    drop(first);
    // A third driver's registration shows that the removal was seen.
    let third = Plugin::new("CSIPlugin", new.to_str().unwrap(), "3.0.0");
    let _third = third.serve(&world, "third-reg.sock");
    eventually("the removal is behind us", async || !third.told.lock().is_empty()).await;
    assert_eq!(socket_of(&drivers), Some(new.clone()));
    assert!(entry(&world).await.is_some());
    drop(second);
    eventually("the driver is gone", async || drivers.get(DRIVER).is_none() && entry(&world).await.is_none())
        .await;
    process.kill().await;
}

#[tokio::test]
async fn an_older_socket_serves_again_when_the_newer_one_goes() {
    let world = World::new(1).await;
    let (old, new) = (world.socket("old.sock"), world.socket("new.sock"));
    let _old = world.driver.serve(&old, &Steps::new());
    let _new = world.driver.serve(&new, &Steps::new());
    let drivers = Drivers::new();
    let first = Plugin::new("CSIPlugin", old.to_str().unwrap(), "1.0.0");
    let _first = first.serve(&world, "old-reg.sock");
    let second = Plugin::new("CSIPlugin", new.to_str().unwrap(), "1.0.0");
    let serving = second.serve(&world, "new-reg.sock");
    let process = registrar(&world, &drivers);
    eventually("both were seen", async || first.registered() && second.registered()).await;
    assert_eq!(socket_of(&drivers), Some(new));
    drop(serving);
    eventually("the older serves", async || socket_of(&drivers) == Some(old.clone())).await;
    assert!(entry(&world).await.is_some());
    process.kill().await;
}

#[tokio::test]
async fn a_socket_that_comes_back_with_another_driver_forgets_the_first() {
    let world = World::new(1).await;
    let socket = world.socket("csi.sock");
    let _serving = world.driver.serve(&socket, &Steps::new());
    let drivers = Drivers::new();
    let process = registrar(&world, &drivers);
    let first = Plugin::new("CSIPlugin", socket.to_str().unwrap(), "1.0.0");
    let _first = first.serve(&world, "any-reg.sock");
    eventually("the first is registered", async || drivers.get(DRIVER).is_some()).await;
    let mut second = first.clone();
    second.info.name = "other.example.com".to_owned();
    let aside = second.serve(&world, ".aside.sock");
    let registry = world.directory.path().join(REGISTRY);
    std::fs::rename(registry.join(".aside.sock"), registry.join("any-reg.sock")).unwrap();
    eventually("the second is registered", async || drivers.names() == ["other.example.com"]).await;
    eventually("the first is forgotten", async || entry(&world).await.is_none()).await;
    drop(aside);
    process.kill().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_told() {
    let world = World::new(1).await;
    let socket = world.socket("csi.sock");
    let _serving = world.driver.serve(&socket, &Steps::new());
    let endpoint = socket.to_str().unwrap();
    let drivers = Drivers::new();
    let process = registrar(&world, &drivers);
    for (name, plugin, reason) in [
        (
            "device-reg.sock",
            Plugin::new("DevicePlugin", endpoint, "1.0.0"),
            "type \"DevicePlugin\" is not supported",
        ),
        (
            "new-reg.sock",
            Plugin::new("CSIPlugin", endpoint, "2.0.0"),
            "one from 1.0.0 to below 2.0.0 is needed",
        ),
    ] {
        let serving = plugin.serve(&world, name);
        eventually("it is told", async || plugin.told.lock().iter().any(|one| one.error.contains(reason)))
            .await;
        drop(serving);
    }
    let moved = json!({"metadata": {"labels": {KEY: "elsewhere"}}});
    let nodes: Api<Node> = Api::all(world.client.clone());
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&moved)).await.unwrap();
    let plugin = Plugin::new("CSIPlugin", endpoint, "1.0.0");
    let _serving = plugin.serve(&world, "contradicting-reg.sock");
    let reason = "but its label says elsewhere";
    eventually("it is told", async || plugin.told.lock().iter().any(|one| one.error.contains(reason))).await;
    assert!(drivers.get(DRIVER).is_none() && entry(&world).await.is_none());
    assert_eq!(world.writes(), 0);
    process.kill().await;
}

#[tokio::test]
async fn a_limit_is_asked_for_again_when_a_volume_finds_no_room() {
    let world = World::new(1).await;
    let socket = world.socket("csi.sock");
    let _serving = world.driver.serve(&socket, &Steps::new());
    let drivers = Drivers::new();
    let process = registrar(&world, &drivers);
    let _announced =
        Plugin::new("CSIPlugin", socket.to_str().unwrap(), "1.0.0").serve(&world, "driver-reg.sock");
    let limit = async || entry(&world).await.and_then(|entry| entry.allocatable?.count);
    eventually("the limit is known", async || limit().await == Some(7)).await;

    world.driver.set_max_volumes(3);
    let objects: Api<CSIDriver> = Api::all(world.client.clone());
    let changes: CSIDriver = object(json!({"metadata": {"name": DRIVER},
        "spec": {"nodeAllocatableUpdatePeriodSeconds": 3600}}));
    objects.create(&PostParams::default(), &changes).await.unwrap();
    let attachments: Api<VolumeAttachment> = Api::all(world.client.clone());
    for (node, code) in [("n1", 13), ("n2", 8), ("n1", 8)] {
        assert_eq!(limit().await, Some(7), "neither another failure nor another node says so");
        let name = format!("to-{node}-{code}");
        let wanted: VolumeAttachment = object(json!({"metadata": {"name": name}, "spec": {
            "attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": "pv"}}}));
        attachments.create(&PostParams::default(), &wanted).await.unwrap();
        let failed = Patch::Merge(json!({"status": {"attachError": {"message": "full", "errorCode": code}}}));
        attachments.patch_status(&name, &PatchParams::default(), &failed).await.unwrap();
    }
    eventually("the limit is known anew", async || limit().await == Some(3)).await;
    process.kill().await;
}
