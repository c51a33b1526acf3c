//! `orlop volumes`: what volumes there are, as the drivers themselves tell, how full they are, and which have lost their
//! PersistentVolume; PersistentVolumes anew for them, or their end.

mod delete;
mod objects;
mod table;
mod usage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand, ValueEnum};
use csi::v1::controller_client::ControllerClient;
use csi::v1::identity_client::IdentityClient;
use csi::v1::{self, GetPluginInfoRequest, ListVolumesRequest};
use resources::annotations;
use serde_json::{Value, json};
use values::Quantity;

use objects::Objects;
use usage::Usage;

/// Notes on a volume's drive that say what it was made for.
const CLAIM: &str = "csi.storage.k8s.io/pvc/name";
const NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
const PERSISTENT_VOLUME: &str = "csi.storage.k8s.io/pv/name";

/// How many volumes are asked for at once.
const PAGE: i32 = 500;

/// Arguments of `orlop volumes`.
#[derive(Args)]
pub(crate) struct Volumes {
    #[command(subcommand)]
    action: Option<Action>,
    /// The data directory of an Orlop that runs: the drivers of all its nodes are asked.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/orlop", global = true)]
    data_dir: PathBuf,
    /// The socket of one driver, to be asked alone.
    #[arg(long, value_name = "unix:///PATH", value_parser = crate::driver::endpoint, global = true)]
    endpoint: Option<PathBuf>,
    /// Of the API that knows the PersistentVolumes [default: DIR/kubeconfig].
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
    /// A table, or PersistentVolumes to be created, each for the claim that its volume was made for.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// The class of the PersistentVolumes: the one that their claims name.
    #[arg(long, value_name = "NAME", default_value = resources::orlop::STORAGE_CLASS)]
    storage_class: String,
}

#[derive(Subcommand)]
enum Action {
    /// Delete volumes that no PersistentVolume names, with all their data.
    Delete {
        /// The volumes, by name or handle.
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Yaml,
}

/// Prints the volumes to standard output, or deletes some.
pub(crate) async fn volumes(arguments: Volumes) -> anyhow::Result<()> {
    let by_default = arguments.endpoint.is_none().then(|| arguments.data_dir.join("kubeconfig"));
    let sockets = match arguments.endpoint {
        Some(socket) => vec![socket],
        None => sockets(&arguments.data_dir),
    };
    ensure!(
        !sockets.is_empty(),
        "no driver serves below {}; start orlop up, or name its directory with --data-dir or a driver's socket with \
         --endpoint",
        arguments.data_dir.display()
    );
    let mut found = Vec::new();
    for socket in &sockets {
        found.extend(list(socket).await.with_context(|| format!("asking {}", socket.display()))?);
    }
    let objects = Objects::read(arguments.kubeconfig.or(by_default).as_deref()).await;
    if let Some(Action::Delete { volumes }) = arguments.action {
        return delete::delete(&found, &objects?, &volumes).await;
    }
    match arguments.output {
        Output::Table => {
            if let Err(why) = &objects {
                eprintln!("Which volumes have a PersistentVolume is not known: {why:#}");
            }
            let rows: Vec<_> = usage::of(&found).await.into_iter().zip(found).collect();
            print!("{}", table::table(&rows, objects.as_ref().ok()));
        }
        Output::Yaml => {
            // A pod's own volume goes with the pod, and never had an object.
            for one in found.iter().filter(|one| !one.is_ephemeral()) {
                let object = one.persistent_volume(&arguments.storage_class);
                print!("---\n{}", serde_saphyr::to_string(&object)?);
            }
        }
    }
    Ok(())
}

/// The sockets of our own drivers below a data directory.
fn sockets(data: &Path) -> Vec<PathBuf> {
    let nodes = std::fs::read_dir(data.join("nodes")).into_iter().flatten().flatten();
    let mut sockets: Vec<PathBuf> = nodes
        .flat_map(|node| driver::Name::ALL.map(|name| node.path().join("plugins").join(name.as_str())))
        .map(|plugin| plugin.join("csi.sock"))
        .filter(|socket| socket.exists())
        .collect();
    sockets.sort();
    sockets
}

/// A volume, and the driver that has it.
struct Found {
    driver: String,
    /// The driver's.
    socket: PathBuf,
    volume: v1::Volume,
}

async fn list(socket: &Path) -> anyhow::Result<Vec<Found>> {
    let channel = csi::connect(socket).await?;
    let driver = IdentityClient::new(channel.clone()).get_plugin_info(GetPluginInfoRequest {}).await?;
    let driver = driver.into_inner().name;
    let mut controller = ControllerClient::new(channel);
    let (mut found, mut starting_token) = (Vec::new(), String::new());
    loop {
        let request = ListVolumesRequest { max_entries: PAGE, starting_token };
        let page = controller.list_volumes(request).await?.into_inner();
        let volumes = page.entries.into_iter().filter_map(|entry| entry.volume);
        found.extend(volumes.map(|volume| Found {
            driver: driver.clone(),
            socket: socket.to_owned(),
            volume,
        }));
        starting_token = page.next_token;
        if starting_token.is_empty() {
            return Ok(found);
        }
    }
}

impl Found {
    fn note(&self, key: &str) -> Option<&str> {
        self.volume.volume_context.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The name that its PersistentVolume had; the volume's own where none was noted.
    fn name(&self) -> &str {
        let handle = &self.volume.volume_id;
        self.note(PERSISTENT_VOLUME)
            .unwrap_or_else(|| handle.rsplit_once('/').map_or(handle.as_str(), |(_, key)| key))
    }

    fn is_ephemeral(&self) -> bool {
        self.note(driver::EPHEMERAL) == Some("true")
    }

    fn claim(&self) -> Option<(&str, &str)> {
        self.note(NAMESPACE).zip(self.note(CLAIM))
    }

    fn size(&self) -> String {
        Quantity::from_bytes(self.volume.capacity_bytes.unsigned_abs()).to_string()
    }

    fn segments(&self) -> BTreeMap<String, String> {
        let places = &self.volume.accessible_topology;
        places.first().map(|place| place.segments.clone().into_iter().collect()).unwrap_or_default()
    }

    /// Kept when its claim goes, whatever the class says: who restores is told so, and changes it when all is well.
    fn persistent_volume(&self, class: &str) -> Value {
        let requirement = |(key, value)| json!({"key": key, "operator": "In", "values": [value]});
        let terms: Vec<Value> = self.segments().into_iter().map(requirement).collect();
        let mut spec = json!({
            "capacity": {"storage": self.size()},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": class,
            "volumeMode": if self.note(driver::ACCESS_TYPE) == Some("block") { "Block" } else { "Filesystem" },
            "csi": {
                "driver": self.driver,
                "volumeHandle": self.volume.volume_id,
                "volumeAttributes": self.volume.volume_context,
            },
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": terms}]}},
        });
        if let Some((namespace, name)) = self.claim() {
            spec["claimRef"] = json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name,
            });
        }
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": self.name(),
                "annotations": {annotations::PROVISIONED_BY: self.driver},
            },
            "spec": spec,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(super) fn found(context: &[(&str, &str)]) -> Found {
        let segments = [("topology.orlop.dev/node".to_owned(), "n1".to_owned())].into();
        let volume = v1::Volume {
            capacity_bytes: 64 << 20,
            volume_id: "0a1b/pvc-7".to_owned(),
            volume_context: context.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            accessible_topology: vec![v1::Topology { segments }],
            ..v1::Volume::default()
        };
        Found { driver: "orlop.dev".to_owned(), socket: "/nowhere".into(), volume }
    }

    #[test]
    fn a_persistent_volume_is_for_the_claim_that_its_volume_was_made_for() {
        let noted = found(&[(CLAIM, "journal"), (NAMESPACE, "shop"), (PERSISTENT_VOLUME, "pvc-9")]);
        let object = noted.persistent_volume("fast");
        let made: k8s_openapi::api::core::v1::PersistentVolume =
            serde_json::from_value(object.clone()).expect("a PersistentVolume");
        let spec = made.spec.expect("a spec");
        assert_eq!(made.metadata.name.as_deref(), Some("pvc-9"));
        assert_eq!(spec.claim_ref.as_ref().and_then(|claim| claim.name.as_deref()), Some("journal"));
        assert_eq!(spec.claim_ref.and_then(|claim| claim.uid), None, "whichever claim of that name");
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
        assert_eq!(spec.storage_class_name.as_deref(), Some("fast"));
        assert_eq!(spec.csi.map(|csi| csi.volume_handle).as_deref(), Some("0a1b/pvc-7"));
        assert_eq!(spec.capacity.expect("a size")["storage"].0, "64Mi");

        let unknown = found(&[]).persistent_volume("fast");
        assert_eq!(unknown["metadata"]["name"], "pvc-7");
        assert_eq!(unknown["spec"]["claimRef"], Value::Null, "for any claim that it fits");
    }
}
