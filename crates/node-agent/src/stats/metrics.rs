//! `kubelet_volume_stats_*`: the figures of claims, with kubelet's names and labels.

use std::{collections::BTreeMap, fmt};

use kube::ResourceExt;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::{Stats, space::Counted};

/// The figures of the claims of some nodes, as of the last minute, for the process's metrics.
#[derive(Debug)]
pub struct VolumeMetrics(pub Vec<Stats>);

/// What one metric tells of a volume.
type Figure = fn(&Counted) -> Option<u64>;

const METRICS: [(&str, &str, Figure); 7] = [
    ("capacity_bytes", "Capacity in bytes of the volume", |counted| counted.space.capacity),
    ("available_bytes", "Number of available bytes in the volume", |counted| counted.space.available),
    ("used_bytes", "Number of used bytes in the volume", |counted| counted.space.used),
    ("inodes", "Maximum number of inodes in the volume", |counted| counted.space.inodes),
    ("inodes_free", "Number of free inodes in the volume", |counted| counted.space.inodes_free),
    ("inodes_used", "Number of used inodes in the volume", |counted| counted.space.inodes_used),
    ("health_status_abnormal", "Abnormal volume health status, 1 where the driver says so", |counted| {
        counted.has_condition.then(|| u64::from(counted.abnormal.is_some()))
    }),
];

impl Collector for VolumeMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        // Several pods may use one claim.
        let mut claims = BTreeMap::new();
        for stats in &self.0 {
            for entry in stats.0.volumes.lock().values() {
                if let (Some(claim), Some(counted)) = (&entry.mounted.claim, &entry.counted) {
                    let namespace = entry.mounted.pod.namespace().unwrap_or_default();
                    claims.insert((namespace, claim.clone()), counted.clone());
                }
            }
        }
        for (name, help, figure) in METRICS {
            let name = format!("kubelet_volume_stats_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for ((namespace, claim), counted) in &claims {
                let Some(value) = figure(counted).and_then(|value| i64::try_from(value).ok()) else {
                    continue;
                };
                let labels = [("namespace", namespace), ("persistentvolumeclaim", claim)];
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
