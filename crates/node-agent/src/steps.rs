//! Carrying out the steps of a plan.

mod mounts;

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, PodSecurityContext, Secret, Volume},
    storage::v1::CSIDriver,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Preconditions},
};

use linux::ownership::ChangePolicy;
use resources::{attachment, secret};
use runtime::Key;
use tracing::Instrument;

use crate::{
    agent::{Agent, reference},
    blocking::blocking,
    containers::{
        attempt::{self, AttemptRecord, AttemptState, Exit},
        bundle::{self, Bundle, BundleError},
        cgroup,
        environment::{self, EnvironmentError},
        monitor,
        seccomp::{self, SeccompError},
        signal, start,
    },
    leftovers::{self, Leftover},
    objects::Kind,
    plan::{Actual, Step, VolumeDirectory},
    records::{self, RecordError},
    volumes::{
        self, Source, VolumeError,
        claim::{self, Claimed, ClaimedVolume},
        content,
        csi::{CsiError, Publication},
        flex::{self, FlexVolume},
        inline,
        local::{self, LocalVolume},
        places::Places,
        recover,
        stages::{self, PublishRecord},
        subpath,
    },
};

/// Why a step failed; it is repeated later.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("cannot {action}: {}", linux::in_words(source))]
    Container { action: &'static str, source: std::io::Error },
    #[error("the API server was asked in vain: {}", runtime::explain(.0))]
    Api(#[from] kube::Error),
    #[error("volume {0} of the container is not among the pod's volumes")]
    UnknownVolume(String),
}

impl StepError {
    /// Whether it is no failure: something is awaited that will be told.
    pub(crate) fn is_wait(&self) -> bool {
        matches!(self, StepError::Volume(VolumeError::Csi(CsiError::NotAttached { .. })))
    }

    /// Whether what is awaited can't come while the node is as full as it is.
    pub(crate) fn is_without_room(&self) -> bool {
        matches!(self, StepError::Volume(VolumeError::Csi(CsiError::NotAttached { no_room: true, .. })))
    }

    /// The reason that a container shows while it waits because of this.
    pub(crate) fn waiting_reason(&self) -> &'static str {
        match self {
            StepError::Environment(_)
            | StepError::Bundle(BundleError::Root | BundleError::Sysctl(_))
            | StepError::Seccomp(_)
            | StepError::Volume(VolumeError::SubPath { .. }) => "CreateContainerConfigError",
            _ => "CreateContainerError",
        }
    }

    /// The event that tells of it: reason and message, as kubelet writes them.
    pub(crate) fn event(&self, step: &Step, pod: &Pod) -> (&'static str, String) {
        match step {
            Step::SetUp(volume) if volumes::uses(pod, volume).0 => {
                ("FailedMapVolume", format!("MapVolume.MapPodDevice failed for volume \"{volume}\" : {self}"))
            }
            Step::SetUp(volume) => {
                ("FailedMount", format!("MountVolume.SetUp failed for volume \"{volume}\" : {self}"))
            }
            _ => ("Failed", format!("Error: {self}")),
        }
    }
}

impl Agent {
    /// Carries out one step. Cancelling or repeating it is safe.
    pub(crate) async fn carry_out(
        &self,
        uid: &str,
        pod: Option<&Arc<Pod>>,
        actual: &Actual,
        step: &Step,
    ) -> Result<(), StepError> {
        tracing::debug!(uid, ?step, "step");
        match (step, pod) {
            (Step::SetUp(name), Some(pod)) => {
                let volume = volumes::used(pod).into_iter().find(|volume| volume.name == *name);
                let volume = volume.ok_or_else(|| StepError::UnknownVolume(name.clone()))?;
                Ok(self.set_up(uid, pod, volume).await?)
            }
            (Step::Start { container, number, crashes }, Some(pod)) => {
                Box::pin(self.start(uid, pod, actual, container, *number, *crashes)).await
            }
            (Step::Terminate { container, number }, _) => {
                self.signal(uid, pod, actual, container, *number, false)
            }
            (Step::Kill { container, number }, _) => self.signal(uid, pod, actual, container, *number, true),
            (Step::Release { container, number }, _) => self.release(uid, actual, container, *number).await,
            (Step::Discard { container, number }, _) => self.discard(uid, actual, container, *number).await,
            (Step::CleanSubPaths, _) => {
                let (host, layout, uid) = (self.host.clone(), self.layout.clone(), uid.to_owned());
                Ok(blocking("removing sub-paths", move || subpath::clean(&*host, &layout, &uid)).await?)
            }
            (Step::TearDown(volume), _) => {
                let left = self.tear_down(uid, pod, volume).await?;
                self.tell_leftovers(pod, &left);
                Ok(())
            }
            (Step::RemovePod, _) => {
                let left = self.remove_pod(uid).await?;
                self.tell_leftovers(pod, &left);
                Ok(())
            }
            (Step::Delete, Some(pod)) => self.confirm_deletion(uid, pod).await,
            (Step::SetUp(_) | Step::Start { .. } | Step::Delete, None) => Ok(()),
        }
    }

    async fn set_up(&self, uid: &str, pod: &Arc<Pod>, volume: &Volume) -> Result<(), VolumeError> {
        let security = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
        let group = security.fs_group.and_then(|group| u32::try_from(group).ok());
        let namespace = pod.namespace().unwrap_or_default();
        let (plugin, memory, size, payload) = match Source::of(volume) {
            Source::Unserved(kind) => return Err(VolumeError::Unserved(kind)),
            Source::HostPath { path, kind } => {
                return blocking("checking a host path", move || {
                    volumes::host_path::check(&path, &kind).map_err(VolumeError::HostPath)
                })
                .await;
            }
            Source::Claim { name, .. } => {
                let publication = publication(uid, volume, volumes::reads_only(pod, &name), &security);
                return Box::pin(self.set_up_claim(pod, &namespace, &name, false, publication)).await;
            }
            Source::Ephemeral => {
                let name = resources::claim::of_volume(pod, volume).unwrap_or_default();
                let publication = publication(uid, volume, false, &security);
                return Box::pin(self.set_up_claim(pod, &namespace, &name, true, publication)).await;
            }
            Source::Inline(source) => {
                let read_only = source.read_only.unwrap_or(false);
                let described = inline::resolve(uid, &volume.name, &namespace, source);
                let publication = publication(uid, volume, read_only, &security);
                return Box::pin(self.set_up_inline(pod, described, publication)).await;
            }
            Source::Flex(source) => {
                let publication = publication(uid, volume, source.read_only, &security);
                return Box::pin(self.set_up_flex(pod, source, publication)).await;
            }
            Source::EmptyDir { memory, size } => (crate::layout::EMPTY_DIR, memory, size, None),
            Source::Content { plugin, memory } => {
                let data = self.objects.all(&namespace, content::references(volume), uid).await?;
                (plugin, memory, None, Some(content::payload(pod, &self.facts, volume, &data)?))
            }
        };
        let (host, layout, uid) = (self.host.clone(), self.layout.clone(), uid.to_owned());
        let directory = VolumeDirectory { plugin: plugin.into(), name: volume.name.clone(), block: false };
        blocking("setting up a volume", move || {
            local::set_up(
                &*host,
                &layout,
                &LocalVolume { uid: &uid, directory, memory, size, group, payload },
            )
        })
        .await
    }

    /// Reads claim and volume live, and lets the driver mount it.
    async fn set_up_claim(
        &self,
        pod: &Pod,
        namespace: &str,
        name: &str,
        owned: bool,
        mut publication: Publication,
    ) -> Result<(), VolumeError> {
        let claim =
            Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace).get_opt(name).await?;
        let owners = claim.as_ref().and_then(|claim| claim.metadata.owner_references.as_ref());
        let ours = owners.into_iter().flatten().any(|owner| owner.uid == publication.uid);
        if owned && claim.is_some() && !ours {
            return Err(claim::ClaimError::Foreign(name.into()).into());
        }
        let bound = claim::volume_name(name, claim.as_ref());
        if bound.is_err() {
            let seen = claim.as_ref().and_then(|claim| claim.resource_version());
            self.objects.follow(Kind::Claim, namespace, name, &publication.uid, seen);
        }
        let (volume_name, claim) = (bound?, claim.unwrap_or_default());
        let mounting = tracing::info_span!("mount", claim = claim.metadata.uid, volume = volume_name);
        let object = Api::<PersistentVolume>::all(self.client.clone()).get_opt(&volume_name).await?;
        let node = Api::<Node>::all(self.client.clone()).get(&self.facts.name).await?;
        let labels = node.metadata.labels.unwrap_or_default();
        let uses = volumes::uses(pod, &publication.volume);
        let volume = match claim::resolve(&claim, object.as_ref(), &volume_name, &self.facts.name, &labels)? {
            Claimed::Csi(volume) => volume,
            Claimed::Directory(directory) => {
                claim::check_mode(&publication.volume, false, uses)?;
                let (host, layout) = (self.host.clone(), self.layout.clone());
                return blocking("binding a directory of the node", move || {
                    volumes::directory::set_up(&*host, &layout, &directory, &publication)
                })
                .await;
            }
            Claimed::Flex(volume) => {
                claim::check_mode(&publication.volume, false, uses)?;
                return self.set_up_flex(pod, volume, publication).await;
            }
        };
        claim::check_mode(&publication.volume, volume.block, uses)?;

        let driver = Api::<CSIDriver>::all(self.client.clone()).get_opt(&volume.driver).await?;
        inline::check_life(&volume.driver, driver.as_ref(), false)?;
        let spec = driver.as_ref().map(|driver| driver.spec.clone()).unwrap_or_default();
        if attachment::is_required(driver.as_ref()) {
            publication.attachment = Some(self.attached(&publication.uid, &volume, driver.as_ref()).await?);
        }
        if spec.pod_info_on_mount == Some(true) {
            publication.pod_info = pod_info(pod, false);
        }
        // Before the volume, as kubelet does: its driver may have to hold the pod to the volume's limits.
        // The pod's directory comes first: while it is there, the agent knows that there is something to be removed.
        let (group, directory) =
            (start::pod_cgroup(&self.facts.name, &publication.uid), self.layout.pod(&publication.uid));
        let host = self.host.clone();
        blocking("making a pod's control group", move || {
            host.make_directory(&directory, 0o750)?;
            cgroup::make(&group);
            Ok(())
        })
        .await?;
        publication.stage_secrets = self.secret(volume.stage_secret.as_ref()).await?;
        publication.publish_secrets = self.secret(volume.publish_secret.as_ref()).await?;
        let key = Key { namespace: namespace.to_owned(), name: name.to_owned() };
        let growth = match &object {
            Some(object) if !publication.read_only => self.begin_growth(claim, object, &volume).await?,
            _ => None,
        };
        let Some((claim, size, growth)) = growth else {
            let mounted = self.csi.set_up(&volume, driver.as_ref(), &publication);
            mounted.instrument(mounting.clone()).await?;
            tracing::info!(parent: &mounting, "mounted");
            if self.awaited.lock().remove(&key) {
                self.growing.add(key);
            }
            return Ok(());
        };
        publication.growth = Some(growth);
        let mounted = self.csi.set_up(&volume, driver.as_ref(), &publication);
        let outcome = mounted.instrument(mounting.clone()).await;
        if outcome.is_ok() {
            tracing::info!(parent: &mounting, "mounted");
        }
        match &outcome {
            Ok(None) => self.end_growth(&claim, pod, &volume, &size, None).await?,
            Ok(Some(error)) | Err(error @ VolumeError::Growth(_)) => {
                self.end_growth(&claim, pod, &volume, &size, Some(error)).await?;
            }
            Err(_) => {}
        }
        outcome.map(drop)
    }

    /// Lets the driver make and mount a volume that the pod describes itself.
    async fn set_up_inline(
        &self,
        pod: &Pod,
        volume: ClaimedVolume,
        mut publication: Publication,
    ) -> Result<(), VolumeError> {
        claim::check_mode(&volume.name, false, volumes::uses(pod, &volume.name))?;
        let driver = Api::<CSIDriver>::all(self.client.clone()).get_opt(&volume.driver).await?;
        inline::check_life(&volume.driver, driver.as_ref(), true)?;
        if driver.as_ref().is_some_and(|driver| driver.spec.pod_info_on_mount == Some(true)) {
            publication.pod_info = pod_info(pod, true);
        }
        publication.publish_secrets = self.secret(volume.publish_secret.as_ref()).await?;
        self.csi.set_up(&volume, driver.as_ref(), &publication).await.map(drop)
    }

    /// Lets a driver's program mount a volume.
    async fn set_up_flex(
        &self,
        pod: &Pod,
        volume: FlexVolume,
        publication: Publication,
    ) -> Result<(), VolumeError> {
        let secret = match &volume.secret {
            None => None,
            Some((namespace, name)) => {
                let own = pod.namespace().unwrap_or_default();
                let namespace = if namespace.is_empty() { &own } else { namespace };
                Some(Api::<Secret>::namespaced(self.client.clone(), namespace).get(name).await?)
            }
        };
        let options = flex::options(&volume, pod, &publication, secret.as_ref())?;
        let (host, layout, flex) = (self.host.clone(), self.layout.clone(), self.flex.clone());
        blocking("calling a FlexVolume driver", move || {
            flex.set_up(&*host, &layout, &volume, &options, &publication)
        })
        .await
    }

    pub(crate) async fn secret(
        &self,
        reference: Option<&(String, String)>,
    ) -> Result<BTreeMap<String, String>, VolumeError> {
        let Some((namespace, name)) = reference else { return Ok(BTreeMap::new()) };
        let found = Api::<Secret>::namespaced(self.client.clone(), namespace).get(name).await?;
        let refused =
            |source| VolumeError::Secret { namespace: namespace.clone(), name: name.clone(), source };
        secret::text(found).map_err(refused)
    }

    /// The log has it already.
    fn tell_leftovers(&self, pod: Option<&Arc<Pod>>, left: &[Leftover]) {
        let Some(pod) = pod else { return };
        for leftover in left {
            self.recorder.warning(&reference(pod), "LeftoverSetAside", leftover.to_string());
        }
    }

    async fn tear_down(
        &self,
        uid: &str,
        pod: Option<&Arc<Pod>>,
        volume: &VolumeDirectory,
    ) -> Result<Vec<Leftover>, VolumeError> {
        if volume.plugin == crate::layout::CSI {
            let places = Places { layout: &self.layout, block: volume.block };
            let record = match stages::publish_record(places, uid, &volume.name) {
                Ok(Some(record)) => Some(record),
                Err(error @ RecordError::Newer { .. }) => return Err(error.into()),
                Ok(None) | Err(_) => self.recover(uid, pod, volume).await?,
            };
            let left = self.csi.tear_down(uid, &volume.name, volume.block, record.clone()).await?;
            if let Some(record) = record.filter(|record| record.own.attached) {
                let name = attachment::status_name(&record.driver, &record.handle);
                self.in_use.give_up(&name, &(uid.to_owned(), volume.name.clone()));
            }
            return Ok(left);
        }
        let (host, layout, uid, volume) =
            (self.host.clone(), self.layout.clone(), uid.to_owned(), volume.clone());
        blocking("tearing down a volume", move || {
            Ok(volumes::tear_down(&*host, &layout, &uid, &volume)?.into_iter().collect())
        })
        .await
    }

    /// What a volume is whose record can't be read, or was never written.
    async fn recover(
        &self,
        uid: &str,
        pod: Option<&Arc<Pod>>,
        volume: &VolumeDirectory,
    ) -> Result<Option<PublishRecord>, VolumeError> {
        let object = Api::<PersistentVolume>::all(self.client.clone()).get_opt(&volume.name).await?;
        let (node, pod) = (&self.facts.name, pod.map(|pod| &**pod));
        if let Some(record) = recover::from_objects(uid, &volume.name, node, pod, object.as_ref()) {
            return Ok(Some(record));
        }
        let (host, layout, node) = (self.host.clone(), self.layout.clone(), node.clone());
        let (uid, volume) = (uid.to_owned(), volume.clone());
        blocking("looking for a volume's stage", move || {
            recover::from_stages(&*host, &layout, &host.mount_table()?, &uid, &volume, &node)
        })
        .await
    }

    async fn start(
        &self,
        uid: &str,
        pod: &Arc<Pod>,
        actual: &Actual,
        name: &str,
        number: u32,
        crashes: u32,
    ) -> Result<(), StepError> {
        let spec = pod.spec.clone().unwrap_or_default();
        let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let (Some(container), Some(oci)) = (containers.find(|of| of.name == name), &self.oci) else {
            return Ok(());
        };
        let (namespace, pod_name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let data = self.objects.all(&namespace, environment::references(container), uid).await?;
        let variables = environment::variables(pod, container, &self.facts, &data)?;
        let mounts = self.mounts(uid, pod, container, &variables, actual).await?;
        let devices = self.devices(uid, pod, container, actual).await?;
        let directory = self.layout.attempt(uid, name, number);
        let cgroup = start::cgroup(&self.facts.name, uid, name, number);
        let mut hidden = self.options.hidden.clone();
        hidden.push(self.layout.root().to_path_buf());
        let seccomp = {
            let (pod, container, place) = (pod.clone(), container.clone(), self.layout.seccomp());
            let filter = move || Ok(seccomp::filter(&pod, &container, &place));
            blocking("reading a seccomp profile", filter).await??
        };
        let config = bundle::config(&Bundle {
            seccomp,
            pod,
            container,
            variables,
            mounts,
            devices,
            groups: vec![],
            rootfs: &directory.join("rootfs"),
            cgroup: &cgroup,
            hidden: &hidden,
            bounding: self.bounding,
        })?;
        let record = AttemptRecord {
            log: start::log_path(&self.layout.pod_logs(&namespace, &pod_name, uid), name, number),
            namespace,
            pod: pod_name,
            uid: uid.to_owned(),
            container: name.to_owned(),
            number,
            crashes,
            grace: spec.termination_grace_period_seconds.unwrap_or(30),
            boot_id: self.boot_id.clone(),
            runtime: oci.clone(),
            state: self.layout.runtime_state(),
            cgroup,
            log_size: self.options.log_size,
            log_files: self.options.log_files,
            image: container.image.clone(),
            logs_as_message: container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"),
        };
        let _permit = self.starts.acquire().await;
        let termination_log =
            container.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".into());
        let host = self.host.clone();
        blocking("preparing a container", {
            let directory = directory.clone();
            let hosts = start::hosts(pod);
            move || start::prepare(&*host, &directory, &record, config, &termination_log, hosts.as_deref())
        })
        .await?;
        self.recorder.normal(&reference(pod), "Created", format!("Created container: {name}"));
        let failed = |source| StepError::Container { action: "start the container", source };
        start::launch(&self.options.monitor, &directory).await.map_err(failed)?;
        match records::read::<Exit>(&directory.join("exit.json"))? {
            Some(exit) if exit.started.is_none() => {
                let message = exit.message.unwrap_or_default();
                self.recorder.warning(&reference(pod), "Failed", format!("Error: {message}"));
            }
            _ => self.recorder.normal(&reference(pod), "Started", format!("Started container {name}")),
        }
        Ok(())
    }

    fn signal(
        &self,
        uid: &str,
        pod: Option<&Arc<Pod>>,
        actual: &Actual,
        container: &str,
        number: u32,
        kill: bool,
    ) -> Result<(), StepError> {
        let attempt = find(actual, container, number);
        let (Some(monitor), Some(AttemptState::Running { started: Some(started), .. })) =
            (attempt.and_then(|of| of.monitor), attempt.map(|of| &of.state))
        else {
            return Ok(());
        };
        let directory = self.layout.attempt(uid, container, number);
        let failed = |source| StepError::Container { action: "signal the container", source };
        if kill {
            return signal::kill(monitor, started).map_err(failed);
        }
        if let Some(pod) = pod {
            let spec = pod.spec.iter();
            let wanted = spec.flat_map(|spec| &spec.containers).find(|of| of.name == container);
            let had = attempt.and_then(|attempt| attempt.record.image.as_ref());
            let replaced = had.is_some() && wanted.is_some_and(|wanted| wanted.image.as_ref() != had);
            let message = match replaced && pod.metadata.deletion_timestamp.is_none() {
                true => format!("Container {container} definition changed, will be restarted"),
                false => format!("Stopping container {container}"),
            };
            self.recorder.normal(&reference(pod), "Killing", message);
        }
        signal::terminate(&directory, monitor, started).map_err(failed)
    }

    async fn release(
        &self,
        uid: &str,
        actual: &Actual,
        container: &str,
        number: u32,
    ) -> Result<(), StepError> {
        let Some(attempt) = find(actual, container, number) else { return Ok(()) };
        let (directory, record) = (self.layout.attempt(uid, container, number), attempt.record.clone());
        let lost = attempt.state == AttemptState::Lost;
        let released = blocking("removing a container", move || {
            let files = |source| VolumeError::Files { action: "remove a container", source };
            // First that nothing runs any more, then that it has ended.
            monitor::release(&directory, &record).map_err(files)?;
            if lost {
                let exit = Exit::unknown(clock::now());
                records::write_durably(&directory.join("exit.json"), &exit).map_err(files)?;
            }
            Ok(())
        });
        Ok(released.await?)
    }

    async fn discard(
        &self,
        uid: &str,
        actual: &Actual,
        container: &str,
        number: u32,
    ) -> Result<(), StepError> {
        let Some(attempt) = find(actual, container, number) else { return Ok(()) };
        let (host, log) = (self.host.clone(), attempt.record.log.clone());
        let directory = self.layout.attempt(uid, container, number);
        let discarded = blocking("removing an old container", move || {
            for rotated in crate::containers::log_file::rotated(&log).unwrap_or_default() {
                host.remove_file(&rotated)?;
            }
            host.remove_file(&log)?;
            attempt::remove(&*host, &directory)?;
            Ok(())
        });
        Ok(discarded.await?)
    }

    /// Removes the pod's directory. Volumes have been given back: what is left of them must be empty.
    async fn remove_pod(&self, uid: &str) -> Result<Vec<Leftover>, VolumeError> {
        let (host, layout, uid) = (self.host.clone(), self.layout.clone(), uid.to_owned());
        let group = start::pod_cgroup(&self.facts.name, &uid);
        blocking("removing a pod's directory", move || {
            let volumes = layout.volumes(&uid);
            let mut left = Vec::new();
            for plugin in host.list(&volumes)? {
                left.extend(leftovers::remove_directory(&*host, &layout, &volumes.join(plugin))?);
            }
            left.extend(leftovers::remove_directory(&*host, &layout, &volumes)?);
            cgroup::remove(&group);
            let suffix = format!("_{uid}");
            for logs in host.list(&layout.logs())? {
                if logs.to_string_lossy().ends_with(&suffix) {
                    host.remove_tree(&layout.logs().join(logs))?;
                }
            }
            let files = |source| VolumeError::Files { action: "remove the pod's containers", source };
            attempt::remove_all(&*host, &layout.pod(&uid).join("containers")).map_err(files)?;
            host.remove_tree(&layout.pod(&uid))?;
            Ok(left)
        })
        .await
    }

    async fn confirm_deletion(&self, uid: &str, pod: &Pod) -> Result<(), StepError> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let mut parameters = DeleteParams::default().grace_period(0);
        parameters.preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        match api.delete(&pod.name_any(), &parameters).await {
            Ok(_) => Ok(()),
            // Gone, or another pod has the name: either way this one is gone.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn find<'a>(actual: &'a Actual, container: &str, number: u32) -> Option<&'a attempt::Attempt> {
    actual.attempts.get(container)?.iter().find(|attempt| attempt.record.number == number)
}

fn publication(uid: &str, volume: &Volume, read_only: bool, security: &PodSecurityContext) -> Publication {
    let policy = match security.fs_group_change_policy.as_deref() {
        Some("OnRootMismatch") => ChangePolicy::OnRootMismatch,
        _ => ChangePolicy::Always,
    };
    Publication {
        uid: uid.to_owned(),
        volume: volume.name.clone(),
        read_only,
        group: security.fs_group.and_then(|group| u32::try_from(group).ok()),
        policy: Some(policy),
        ..Publication::default()
    }
}

fn pod_info(pod: &Pod, inline: bool) -> BTreeMap<String, String> {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or_default();
    [
        ("csi.storage.k8s.io/pod.name", pod.name_any()),
        ("csi.storage.k8s.io/pod.namespace", pod.namespace().unwrap_or_default()),
        ("csi.storage.k8s.io/pod.uid", pod.uid().unwrap_or_default()),
        ("csi.storage.k8s.io/serviceAccount.name", account),
        ("csi.storage.k8s.io/ephemeral", inline.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

#[cfg(test)]
mod tests;
