//! A pod from nothing to nothing, with every step in turn repeated, or followed by the loss of all memory.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use api_server::ApiServer;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
};
use linux::{Kernel, Mounts};
use object_store::Store;
use runtime::{Change, Metrics, Queue, Recorder};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    Drivers, Layout, Options,
    agent::{Agent, Memory},
    containers::oci,
    in_use::InUse,
    plan::{Step, plan},
    run::boot_id,
    volumes::csi::Csi,
    wanted,
};

struct NoDrivers(watch::Sender<u64>);

impl Drivers for NoDrivers {
    fn endpoint(&self, _: &str) -> Option<PathBuf> {
        None
    }
    fn changed(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The step is done twice.
    Repeat,
    /// The agent dies after the step.
    Forget,
    /// The agent dies while the step is under way: its future is dropped at this many-th wait.
    Drop(usize),
}

struct World {
    client: Client,
    directory: tempfile::TempDir,
    host_path: PathBuf,
    node: String,
}

impl World {
    async fn new(name: &str) -> World {
        let api = ApiServer::start(Store::in_memory(), api_server::Options::default()).await.unwrap();
        let client = Client::new(api.in_process("system:orlop"), "default");
        let directory = tempfile::Builder::new().prefix("orlop-steps-").tempdir().unwrap();
        let settings: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "settings"}, "data": {"a": "1"}})).unwrap();
        Api::default_namespaced(client.clone()).create(&PostParams::default(), &settings).await.unwrap();
        let door: Secret =
            serde_json::from_value(json!({"metadata": {"name": "door"}, "data": {"k": "aHVudGVyMg=="}}))
                .unwrap();
        Api::default_namespaced(client.clone()).create(&PostParams::default(), &door).await.unwrap();
        let host_path = directory.path().join("host");
        std::fs::create_dir(&host_path).unwrap();
        World { client, directory, host_path, node: format!("steps-{name}-{}", std::process::id()) }
    }

    fn agent(&self) -> Agent {
        let test = std::env::current_exe().unwrap();
        let monitor = test.parent().unwrap().parent().unwrap().join("examples/container-monitor");
        let root = self.directory.path().join("node");
        let options = Options::new(&self.node, &root, vec![monitor.into()]);
        let drivers = Arc::new(NoDrivers(watch::Sender::new(0)));
        let boot = boot_id().unwrap();
        let csi = Csi::open(Arc::new(Kernel), Layout::new(&root), drivers, self.node.clone(), boot.clone());
        let csi = Arc::new(csi.unwrap());
        let recorder = Recorder::new(self.client.clone(), "kubelet", &self.node);
        let queue = Queue::new("pods", &Metrics::new());
        Agent::new(
            options,
            Arc::new(Kernel),
            self.client.clone(),
            recorder,
            queue,
            Queue::new("grow", &Metrics::new()),
            csi,
            Arc::new(InUse::new(&self.client, &self.node, Default::default())),
            boot,
            oci::find(None),
        )
    }

    async fn pod(&self) -> Arc<Pod> {
        // It counts its starts in a file of the host.
        let script = "trap 'exit 0' TERM; echo start >> /host/starts; cat /settings/a /door/k; \
                      while :; do sleep 0.01; done";
        let pod = json!({"metadata": {"name": "pod"}, "spec": {
            "nodeName": self.node, "terminationGracePeriodSeconds": 20,
            "containers": [{"name": "app", "image": "host", "command": ["sh", "-c", script], "volumeMounts": [
                {"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"},
                {"name": "disk", "mountPath": "/part", "subPath": "a"},
                {"name": "host", "mountPath": "/host"}, {"name": "settings", "mountPath": "/settings"},
                {"name": "door", "mountPath": "/door"}]}],
            "volumes": [
                {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}},
                {"name": "host", "hostPath": {"path": self.host_path}},
                {"name": "settings", "configMap": {"name": "settings"}},
                {"name": "door", "secret": {"secretName": "door"}}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        Arc::new(
            Api::default_namespaced(self.client.clone()).create(&PostParams::default(), &pod).await.unwrap(),
        )
    }

    /// Plans and carries out until nothing is left to do; the step with number `at` (counted on) meets the fault.
    async fn drive(
        &self,
        agent: &mut Agent,
        memory: &mut Memory,
        pod: &Arc<Pod>,
        count: &mut usize,
        at: usize,
        fault: Fault,
    ) {
        let uid = pod.uid().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            assert!(std::time::Instant::now() < deadline, "{fault:?} at {at}: does not come to an end");
            let actual = agent.observe(&uid, memory).await.unwrap();
            let wanted = wanted::of(Some(pod), true);
            let plan = plan(&wanted, &actual, clock::now());
            if plan.steps.is_empty() {
                if plan.again.is_none()
                    && !actual.attempts.values().flatten().any(|of| of.live() && of.exit().is_some())
                {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                continue;
            }
            for step in &plan.steps {
                let struck = *count == at;
                *count += 1;
                if let (Fault::Drop(waits), true) = (fault, struck) {
                    let mut work = std::pin::pin!(agent.carry_out(&uid, Some(pod), &actual, step));
                    let mut left = waits;
                    std::future::poll_fn(|context| {
                        left = left.saturating_sub(1);
                        let over = work.as_mut().poll(context).is_ready() || left == 0;
                        if over { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
                    })
                    .await;
                    // What blocks goes on for a moment, as a call in the kernel would.
                    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
                } else {
                    agent.carry_out(&uid, Some(pod), &actual, step).await.unwrap();
                }
                if let Step::SetUp(volume) = step
                    && volume == "host"
                {
                    memory.checked.insert(volume.clone());
                }
                if *step == Step::Delete {
                    return;
                }
                match fault {
                    Fault::Repeat if struck => {
                        agent.carry_out(&uid, Some(pod), &actual, step).await.unwrap();
                    }
                    Fault::Forget | Fault::Drop(_) if struck => {
                        *agent = self.agent();
                        *memory = Memory::default();
                        break;
                    }
                    _ => {}
                }
                if matches!(step, Step::Terminate { .. }) {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            }
        }
    }

    async fn life(&self, at: usize, fault: Fault) -> usize {
        let (mut agent, mut memory, mut count) = (self.agent(), Memory::default(), 0);
        let pod = self.pod().await;
        self.drive(&mut agent, &mut memory, &pod, &mut count, at, fault).await;
        let actual = agent.observe(&pod.uid().unwrap(), &memory).await.unwrap();
        assert!(actual.attempts["app"].iter().all(|attempt| attempt.live() && attempt.record.number == 0));
        let starts = self.host_path.join("starts");
        while !std::fs::read_to_string(&starts).is_ok_and(|text| text.ends_with('\n')) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        assert_eq!(std::fs::read_to_string(&starts).unwrap(), "start\n", "{fault:?} at {at}");
        std::fs::remove_file(&starts).unwrap();

        let api: Api<Pod> = Api::default_namespaced(self.client.clone());
        api.delete("pod", &DeleteParams::default()).await.unwrap();
        let pod = Arc::new(api.get("pod").await.unwrap());
        agent.notice(&Change::Applied { old: None, new: pod.clone() });
        self.drive(&mut agent, &mut memory, &pod, &mut count, at, fault).await;
        assert!(api.get_opt("pod").await.unwrap().is_none(), "{fault:?} at {at}");
        let table = Kernel.mount_table().unwrap();
        let left: Vec<_> =
            table.below(self.directory.path()).into_iter().map(|mount| &mount.target).collect();
        assert!(left.is_empty(), "{fault:?} at {at}: {left:?}");
        let names = |name: &str| -> BTreeSet<_> {
            let entries = std::fs::read_dir(self.directory.path().join("node").join(name)).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        for name in ["pods", "logs", "runtime"] {
            assert_eq!(names(name), BTreeSet::new(), "{name} after {fault:?} at {at}");
        }
        count
    }
}

impl Drop for World {
    /// A failed test cleans up as well.
    fn drop(&mut self) {
        let (node, root) = (self.node.clone(), self.directory.path().join("node"));
        let clean = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let drivers = Arc::new(NoDrivers(watch::Sender::new(0)));
            runtime.block_on(crate::teardown(&node, &root, drivers)).unwrap();
        });
        clean.join().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_may_be_repeated_or_the_last() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "tests must run as root in CI");
        return;
    }
    let steps = World::new("plain").await.life(usize::MAX, Fault::Repeat).await;
    assert!(steps >= 12, "{steps} steps");
    let lives = [("repeat", Fault::Repeat), ("forget", Fault::Forget), ("drop", Fault::Drop(2))];
    futures::future::join_all(lives.map(async |(name, fault)| {
        let world = World::new(name).await;
        for at in 0..steps {
            world.life(at, fault).await;
        }
    }))
    .await;
}
