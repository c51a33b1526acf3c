//! What the API knows of volumes and drives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use resources::Drive;

use super::Found;

/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The PersistentVolumes and Drives of an API.
pub(super) struct Objects {
    /// Name and phase of PersistentVolumes, by driver and handle.
    volumes: BTreeMap<(String, String), (String, String)>,
    /// Claims that have no volume yet, as `NAMESPACE/NAME`.
    waiting: BTreeSet<String>,
    pub(super) drives: Vec<Drive>,
}

impl Objects {
    /// Reads them. Fails where no API can be asked, saying why.
    pub(super) async fn read(kubeconfig: Option<&Path>) -> anyhow::Result<Objects> {
        let reading = async {
            let kubeconfig = kubeconfig.context("name the API's kubeconfig with --kubeconfig")?;
            let client = crate::client::connect(Some(kubeconfig)).await?;
            // Claims first: whose volume is written in between still counts as waiting.
            let claims =
                Api::<PersistentVolumeClaim>::all(client.clone()).list(&ListParams::default()).await?;
            let volumes = Api::<PersistentVolume>::all(client.clone()).list(&ListParams::default()).await?;
            // An API that knows no drives is one where nobody mirrors them.
            let drives = Api::<Drive>::all(client).list(&ListParams::default()).await;
            let drives = drives.map(|list| list.items).unwrap_or_default();
            anyhow::Ok(Objects::of(volumes.items, claims.items, drives))
        };
        tokio::time::timeout(PATIENCE, reading).await.context("the API does not answer")?
    }

    pub(super) fn of(
        volumes: Vec<PersistentVolume>,
        claims: Vec<PersistentVolumeClaim>,
        drives: Vec<Drive>,
    ) -> Objects {
        let waiting = claims.iter().filter(|claim| resources::claim::volume_name(claim).is_empty());
        let waiting =
            waiting.map(|claim| format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any()));
        let entry = |volume: PersistentVolume| {
            let name = volume.name_any();
            let phase = volume.status.and_then(|status| status.phase).unwrap_or_else(|| "Pending".to_owned());
            let csi = volume.spec?.csi?;
            Some(((csi.driver, csi.volume_handle), (name, phase)))
        };
        Objects {
            volumes: volumes.into_iter().filter_map(entry).collect(),
            waiting: waiting.collect(),
            drives,
        }
    }

    /// Whether a claim waits for a volume, which may just be being made.
    pub(super) fn waits(&self, (namespace, name): (&str, &str)) -> bool {
        self.waiting.contains(&format!("{namespace}/{name}"))
    }

    /// The name and phase of the PersistentVolume that names a volume.
    pub(super) fn persistent_volume(&self, of: &Found) -> Option<(&str, &str)> {
        let key = (of.driver.clone(), of.volume.volume_id.clone());
        self.volumes.get(&key).map(|(name, phase)| (name.as_str(), phase.as_str()))
    }
}
