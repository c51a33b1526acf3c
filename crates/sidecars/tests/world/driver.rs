//! A CSI driver that keeps its volumes in memory and answers as it is told.

mod served;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use csi::v1::controller_server::ControllerServer;
use csi::v1::group_controller_server::GroupControllerServer;
use csi::v1::identity_server::IdentityServer;
use csi::v1::node_server::NodeServer;
use csi::v1::{ControllerModifyVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest};
use parking_lot::Mutex;
use served::Served;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use super::Steps;

/// How a CreateVolume is answered; as it should be, if nothing is scripted.
pub enum Answer {
    /// With an error, and nothing made.
    Refuse(Status),
    /// With an error, although the volume is made.
    MakeAndFail(Status),
    /// With a volume of this size.
    Make(i64),
}

/// How a ControllerExpandVolume or ControllerModifyVolume is answered; as it should be, if nothing is scripted.
pub enum Growth {
    /// With an error, and nothing grown.
    Refuse(Status),
    /// With an error, although the volume has grown, or changed.
    GrowAndFail(Status),
}

/// How a ControllerPublishVolume or ControllerUnpublishVolume is answered; as it should be, if nothing is scripted.
pub enum Publishing {
    /// With an error, and nothing done.
    Refuse(Status),
    /// With an error, although it is done.
    DoAndFail(Status),
}

/// How a CreateSnapshot is answered; with a ready snapshot, if nothing is scripted.
pub enum Shot {
    /// With an error, and nothing made.
    Refuse(Status),
    /// With an error, although the snapshot is made.
    MakeAndFail(Status),
    /// With a snapshot that is not ready yet.
    Unready,
}

/// Cloning gives another handle on the same driver.
#[derive(Clone)]
pub struct FakeDriver {
    state: Arc<Mutex<State>>,
}

struct State {
    node: String,
    max_volumes: i64,
    volumes: BTreeMap<String, i64>,
    create: VecDeque<Answer>,
    delete: VecDeque<Status>,
    requests: Vec<CreateVolumeRequest>,
    expand: VecDeque<Growth>,
    expanded: Vec<i64>,
    modify: VecDeque<Growth>,
    modified: Vec<ControllerModifyVolumeRequest>,
    needs_node: bool,
    node_only: bool,
    capacity: i64,
    asked: usize,
    attaches: bool,
    publishing: VecDeque<Publishing>,
    /// Volume and node ids.
    published: BTreeSet<(String, String)>,
    publish_calls: Vec<String>,
    listed: usize,
    /// Sources of snapshots by their names.
    snapshots: BTreeMap<String, String>,
    shots: VecDeque<Shot>,
    shot: Vec<CreateSnapshotRequest>,
}

impl FakeDriver {
    pub fn new(node: &str) -> FakeDriver {
        let state = State {
            node: node.to_owned(),
            max_volumes: 7,
            volumes: BTreeMap::new(),
            create: VecDeque::new(),
            delete: VecDeque::new(),
            requests: Vec::new(),
            expand: VecDeque::new(),
            expanded: Vec::new(),
            modify: VecDeque::new(),
            modified: Vec::new(),
            needs_node: false,
            node_only: false,
            capacity: 100 << 30,
            asked: 0,
            attaches: true,
            publishing: VecDeque::new(),
            published: BTreeSet::new(),
            publish_calls: Vec::new(),
            listed: 0,
            snapshots: BTreeMap::new(),
            shots: VecDeque::new(),
            shot: Vec::new(),
        };
        FakeDriver { state: Arc::new(Mutex::new(state)) }
    }

    pub fn answer_create(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state.lock().create.extend(answers);
    }

    pub fn answer_delete(&self, refusals: impl IntoIterator<Item = Status>) {
        self.state.lock().delete.extend(refusals);
    }

    pub fn answer_expand(&self, answers: impl IntoIterator<Item = Growth>) {
        self.state.lock().expand.extend(answers);
    }

    /// Sizes that were asked for by expansions.
    pub fn expanded(&self) -> Vec<i64> {
        self.state.lock().expanded.clone()
    }

    pub fn answer_modify(&self, answers: impl IntoIterator<Item = Growth>) {
        self.state.lock().modify.extend(answers);
    }

    /// What ControllerModifyVolume was asked.
    pub fn modified(&self) -> Vec<ControllerModifyVolumeRequest> {
        self.state.lock().modified.clone()
    }

    /// After the controller, the node has something to do as well.
    pub fn need_node(&self) {
        self.state.lock().needs_node = true;
    }

    /// Only the node service can expand; to be said before the driver is served.
    pub fn only_node_expands(&self) {
        self.state.lock().node_only = true;
    }

    /// Nothing has to be attached; to be said before the driver is served.
    pub fn attaches_nothing(&self) {
        self.state.lock().attaches = false;
    }

    pub fn answer_publishing(&self, answers: impl IntoIterator<Item = Publishing>) {
        self.state.lock().publishing.extend(answers);
    }

    /// Volume and node ids of what is published.
    pub fn published(&self) -> BTreeSet<(String, String)> {
        self.state.lock().published.clone()
    }

    /// Takes a volume from its node behind everybody's back.
    pub fn lose_publications(&self) {
        self.state.lock().published.clear();
    }

    /// How often the last page of volumes was read.
    pub fn listed(&self) -> usize {
        self.state.lock().listed
    }

    /// Calls that publish and unpublish, as `publish VOLUME NODE`.
    pub fn publish_calls(&self) -> Vec<String> {
        self.state.lock().publish_calls.clone()
    }

    /// Sizes by name.
    pub fn volumes(&self) -> BTreeMap<String, i64> {
        self.state.lock().volumes.clone()
    }

    pub fn requests(&self) -> Vec<CreateVolumeRequest> {
        self.state.lock().requests.clone()
    }

    pub fn answer_snapshot(&self, answers: impl IntoIterator<Item = Shot>) {
        self.state.lock().shots.extend(answers);
    }

    /// Names of snapshots.
    pub fn snapshots(&self) -> Vec<String> {
        self.state.lock().snapshots.keys().cloned().collect()
    }

    /// A snapshot that was made by other means.
    pub fn add_snapshot(&self, name: &str, source: &str) {
        self.state.lock().snapshots.insert(name.to_owned(), source.to_owned());
    }

    /// How many volumes a node takes from now on.
    pub fn set_max_volumes(&self, count: i64) {
        self.state.lock().max_volumes = count;
    }

    /// What CreateSnapshot was asked.
    pub fn shot(&self) -> Vec<CreateSnapshotRequest> {
        self.state.lock().shot.clone()
    }

    pub fn set_capacity(&self, bytes: i64) {
        self.state.lock().capacity = bytes;
    }

    /// How often the capacity was asked for.
    pub fn asked(&self) -> usize {
        self.state.lock().asked
    }

    /// Serves until the guard is dropped. CreateVolume and DeleteVolume are steps.
    pub fn serve(&self, socket: &Path, steps: &Steps) -> DropGuard {
        let _ = std::fs::remove_file(socket);
        let incoming = csi::listen(socket).unwrap();
        let shutdown = CancellationToken::new();
        let served = Served { state: self.state.clone(), steps: steps.clone() };
        let server = tonic::transport::Server::builder()
            .add_service(IdentityServer::new(served.clone()))
            .add_service(ControllerServer::new(served.clone()))
            .add_service(GroupControllerServer::new(served.clone()))
            .add_service(NodeServer::new(served))
            .serve_with_incoming(incoming);
        let until = shutdown.clone();
        tokio::spawn(async move { until.run_until_cancelled(server).await });
        shutdown.drop_guard()
    }
}
