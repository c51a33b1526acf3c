//! Carrying out what was decided.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{AttachedVolume, Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::ObjectMeta;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use resources::{annotations, attachment, node, reference};
use runtime::{Context, Next, Recorder, update_if_changed};
use serde_json::json;

use super::Key;
use super::attach::{self, News, Volume};
use super::detach::{self, NodeStep, TakeBack};
use super::world::World;

/// What the API refused, or could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("could not {action}")]
pub(super) struct AttachDetachError {
    action: String,
    source: kube::Error,
}

/// What the pods of a node were told last about a volume.
struct Told {
    news: News,
    /// UIDs.
    pods: BTreeSet<String>,
}

pub(super) struct Controller {
    world: Arc<World>,
    attachments: Api<VolumeAttachment>,
    nodes: Api<Node>,
    recorder: Recorder,
    /// By volume, then by node.
    told: Mutex<HashMap<String, BTreeMap<String, Told>>>,
}

impl Controller {
    /// The world must be known.
    pub(super) fn new(context: &Context, world: Arc<World>) -> Controller {
        let client: &Client = &context.client;
        let mut told: HashMap<String, BTreeMap<String, Told>> = HashMap::new();
        for (volume, node) in world.attached() {
            let news = Told { news: News::Attached, pods: BTreeSet::new() };
            told.entry(volume).or_default().insert(node, news);
        }
        Controller {
            world,
            attachments: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            recorder: context.recorder("attachdetach-controller", ""),
            told: Mutex::new(told),
        }
    }

    pub(super) async fn reconcile(&self, key: Key) -> Result<Next, AttachDetachError> {
        match key {
            Key::Volume(volume) => self.volume(&volume).await,
            Key::Node(node) => self.node(&node).await,
        }
    }

    /// Attaches a volume where it is wanted.
    async fn volume(&self, name: &str) -> Result<Next, AttachDetachError> {
        for doubtful in self.world.doubtful(name) {
            let found = self.attachments.get_opt(&doubtful).await;
            if found.map_err(api(format!("read the VolumeAttachment {doubtful}")))?.is_none() {
                self.world.not_made(&doubtful);
            }
        }
        let now = clock::now();
        let Some((object, view)) = self.world.volume(name, now) else {
            self.told.lock().remove(name);
            return Ok(Next::Done);
        };
        let decision = attach::decide(&view);
        self.tell(name, &object.name_any(), &view, &decision.news, now);
        for node in decision.attach {
            if let Err(error) = self.attach(name, &object, &node).await {
                let message = runtime::explain(&error);
                let news = News::Failed { at: None, message };
                let users = view.users.get(&node);
                users.iter().for_each(|users| self.say(&object.name_any(), &users.pods, &news, now));
                return Err(error);
            }
        }
        Ok(Next::Done)
    }

    async fn attach(
        &self,
        volume: &str,
        object: &PersistentVolume,
        node: &str,
    ) -> Result<(), AttachDetachError> {
        let Some(csi) = object.spec.as_ref().and_then(|spec| spec.csi.as_ref()) else { return Ok(()) };
        let name = attachment::name(&csi.volume_handle, &csi.driver, node);
        let new = VolumeAttachment {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            spec: VolumeAttachmentSpec {
                attacher: csi.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: object.metadata.name.clone(),
                    inline_volume_spec: None,
                },
            },
            status: None,
        };
        self.world.making(&name, volume, node);
        match self.attachments.create(&PostParams::default(), &new).await {
            Ok(_) => Ok(()),
            // The watch will show it.
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(error) => {
                match &error {
                    kube::Error::Api(status) if status.code < 500 => self.world.not_made(&name),
                    _ => self.world.doubt(&name),
                }
                Err(api(format!(
                    "create the VolumeAttachment {name} of {} for node {node}",
                    object.name_any()
                ))(error))
            }
        }
    }

    /// Tells pods what they have not been told yet.
    fn tell(&self, name: &str, object: &str, view: &Volume, news: &BTreeMap<String, News>, now: Timestamp) {
        let mut all = self.told.lock();
        let told = all.entry(name.to_owned()).or_default();
        told.retain(|node, _| news.contains_key(node));
        for (node, news) in news {
            let Some(users) = view.users.get(node) else { continue };
            let pods = match told.get_mut(node) {
                Some(told) if news.repeats(&told.news) => {
                    // Who comes to a volume that is attached already has nothing to wait for.
                    let late = users.pods.iter().filter(|_| *news != News::Attached);
                    late.filter(|pod| told.pods.insert(pod.uid().unwrap_or_default())).cloned().collect()
                }
                _ => {
                    let pods = users.pods.iter().filter_map(|pod| pod.uid()).collect();
                    told.insert(node.clone(), Told { news: news.clone(), pods });
                    users.pods.clone()
                }
            };
            self.say(object, &pods, news, now);
        }
        if told.is_empty() {
            all.remove(name);
        }
    }

    fn say(&self, volume: &str, pods: &[Arc<Pod>], news: &News, now: Timestamp) {
        for pod in pods {
            let message = news.message(volume, &pod.namespace().unwrap_or_default(), now);
            match news {
                News::Attached => self.recorder.normal(&reference(&**pod), "SuccessfulAttachVolume", message),
                _ => self.recorder.warning(&reference(&**pod), "FailedAttachVolume", message),
            }
        }
    }

    /// Reports a node's volumes to it, and takes back those that nobody wants there.
    async fn node(&self, name: &str) -> Result<Next, AttachDetachError> {
        let now = clock::now();
        let held = self.world.held(name, now);
        let (step, exists) = self.world.with_node(name, |known| {
            (detach::decide(known, &held, now), matches!(known, detach::Known::Present(_)))
        });
        let mut next = step.again.map_or(Next::Done, |at| Next::After(until(at, now)));
        for (object, mark) in &step.marks {
            if !self.mark(object, *mark).await? {
                next = Next::Overtaken;
            }
        }
        let done = match (step.take_back.is_empty(), exists) {
            (true, _) => self.report(name, &step).await?,
            (false, true) => self.take_back(name, &step).await?,
            (false, false) => {
                let mut done = true;
                for one in &step.take_back {
                    done &= self.delete(one).await?;
                }
                done
            }
        };
        Ok(if done { next } else { Next::Overtaken })
    }

    /// False: the attachment changed meanwhile.
    async fn mark(
        &self,
        object: &VolumeAttachment,
        mark: Option<Timestamp>,
    ) -> Result<bool, AttachDetachError> {
        let key = annotations::DETACH_WANTED;
        let written = update_if_changed(&self.attachments, object, |object| match mark {
            Some(since) => _ = object.annotations_mut().insert(key.to_owned(), since.to_string()),
            None => _ = object.annotations_mut().remove(key),
        });
        match written.await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(false),
            Err(error) => Err(api(format!("mark the VolumeAttachment {}", object.name_any()))(error)),
        }
    }

    /// False: the node is gone.
    async fn report(&self, node: &str, step: &NodeStep) -> Result<bool, AttachDetachError> {
        match &step.report {
            None => Ok(true),
            Some(list) => Ok(self.write_attached(node, list).await?.is_some()),
        }
    }

    /// Takes volumes out of the node's `volumesAttached` first, looks last whether the node uses them, and then deletes
    /// their attachments. False: it has to be looked at again.
    async fn take_back(&self, name: &str, step: &NodeStep) -> Result<bool, AttachDetachError> {
        let live = self.nodes.get_opt(name).await.map_err(api(format!("read the Node {name}")))?;
        let Some(mut live) = live else { return Ok(false) };
        let going: Vec<String> = step.take_back.iter().map(|one| one.attachment.name_any()).collect();
        let is_going = |volume: &AttachedVolume| {
            attachment::parse_status_name(&volume.name)
                .is_some_and(|(driver, handle)| going.contains(&attachment::name(handle, driver, name)))
        };
        let is = live.status.as_ref().and_then(|status| status.volumes_attached.clone()).unwrap_or_default();
        let mut list = step.report.clone().unwrap_or_else(|| is.clone());
        list.retain(|volume| !is_going(volume));
        if list != is {
            match self.write_attached(name, &list).await? {
                Some(written) => live = written,
                None => return Ok(false),
            }
        }
        let in_use: Vec<String> = node::volumes_in_use(&live)
            .iter()
            .filter_map(|volume| attachment::parse_status_name(volume))
            .map(|(driver, handle)| attachment::name(handle, driver, name))
            .collect();
        let mut done = true;
        for one in &step.take_back {
            // Its pod came back, or the node took it after all, and the watch has yet to say so.
            let kept = one.forced.is_none() && in_use.contains(&one.attachment.name_any());
            done &= !kept && !self.world.still_wanted(&one.attachment) && self.delete(one).await?;
        }
        Ok(done)
    }

    /// The node as it is after the write; none if it is gone.
    async fn write_attached(
        &self,
        node: &str,
        list: &[AttachedVolume],
    ) -> Result<Option<Node>, AttachDetachError> {
        let patch = Patch::Merge(json!({"status": {"volumesAttached": list}}));
        match self.nodes.patch_status(node, &PatchParams::default(), &patch).await {
            Ok(node) => Ok(Some(node)),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
            Err(error) => Err(api(format!("report the attached volumes to the Node {node}"))(error)),
        }
    }

    /// False: it is another one by now.
    async fn delete(&self, one: &TakeBack) -> Result<bool, AttachDetachError> {
        let (object, name) = (&one.attachment, one.attachment.name_any());
        if let Some(reason) = one.forced {
            tracing::warn!(
                attachment = name,
                volume = attachment::volume(object),
                node = object.spec.node_name,
                reason,
                "detaching by force, without knowing that the volume is unmounted"
            );
        }
        let preconditions = Preconditions { uid: object.uid(), resource_version: None };
        match self.attachments.delete(&name, &DeleteParams::default().preconditions(preconditions)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            // Another one has the name; the watch will show it.
            Err(kube::Error::Api(status)) if status.is_conflict() => return Ok(false),
            Err(error) => return Err(api(format!("delete the VolumeAttachment {name}"))(error)),
        }
        self.world.deleted(object);
        Ok(true)
    }
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default() + Duration::from_millis(1)
}

fn api(action: String) -> impl FnOnce(kube::Error) -> AttachDetachError {
    move |source| AttachDetachError { action, source }
}
