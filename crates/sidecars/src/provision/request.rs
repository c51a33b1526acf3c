//! From a claim and its class to a CreateVolume request: pure.

use std::collections::BTreeMap;

use csi::v1::volume_capability::access_mode::Mode;
use csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use csi::v1::{CapacityRange, CreateVolumeRequest, Topology, TopologyRequirement, VolumeCapability};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttributesClass};
use kube::ResourceExt;
use resources::{claim, fit, volume};
use values::{Quantity, QuantityError, Segments};

use super::parameters::{ParameterError, Parameters};
use super::source::Content;

/// Why no volume can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The class's parameters.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// A size that is missing, no number, or too large for CSI.
    #[error("the claim asks for no usable size ({0}); set spec.resources.requests.storage")]
    Size(String),
    /// Modes that no CSI volume can have together.
    #[error("unsupported combination of access modes {0}; use a claim for each")]
    AccessModes(String),
    /// The class does not allow volumes on this node.
    #[error("the allowedTopologies of the StorageClass exclude the node {0}; choose another node or class")]
    Topology(String),
    /// The claim's VolumeAttributesClass.
    #[error("the VolumeAttributesClass {name:?} can't be used: {why}")]
    AttributesClass {
        /// The class.
        name: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
}

/// The part of a request that the provisioner decides once, not per claim.
#[derive(Clone, Debug, Default)]
pub(super) struct Manner {
    /// The driver tells single-node writers apart.
    pub(super) single_node_multi_writer: bool,
    /// Name claim and volume in the parameters, as `csi.storage.k8s.io/pvc/name` and so on, and say what the labels and
    /// annotations of the claim are that the class's parameters name.
    pub(super) extra_metadata: bool,
    /// The segments of this node; the volume must lie there.
    pub(super) segments: Segments,
}

/// The size that the claim asks for, in bytes.
pub(super) fn requested_bytes(of: &PersistentVolumeClaim) -> Result<i64, RequestError> {
    let Some(quantity) = claim::requested(of) else { return Err(RequestError::Size("none".to_owned())) };
    let parsed: Result<Quantity, QuantityError> = quantity.0.parse();
    let bytes = parsed.ok().and_then(|quantity| quantity.ceil()).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| RequestError::Size(quantity.0.clone()))
}

/// The request for a claim. Equal for equal inputs, so that it can be repeated after a crash.
pub(super) fn create(
    of: &PersistentVolumeClaim,
    class: &StorageClass,
    parameters: &Parameters,
    manner: &Manner,
    source: Option<&Content>,
) -> Result<CreateVolumeRequest, RequestError> {
    let name = volume::name_for(of.metadata.uid.as_deref().unwrap_or_default());
    let mut for_driver = parameters.driver.clone();
    if manner.extra_metadata {
        for (key, value) in [
            ("csi.storage.k8s.io/pvc/name", of.metadata.name.as_deref().unwrap_or_default()),
            ("csi.storage.k8s.io/pvc/namespace", of.metadata.namespace.as_deref().unwrap_or_default()),
            ("csi.storage.k8s.io/pv/name", &name),
        ] {
            for_driver.insert(key.to_owned(), value.to_owned());
        }
        for named in parameters.driver.values() {
            for (kind, of_claim) in [("labels", of.labels()), ("annotations", of.annotations())] {
                if let Some(value) = of_claim.get(named) {
                    for_driver.insert(format!("csi.storage.k8s.io/pvc/{kind}/{named}"), value.clone());
                }
            }
        }
    }
    // A node-local provisioner makes volumes for its own node only: upstream's strict topology.
    let here = Topology { segments: manner.segments.clone() };
    let requirement = (!here.segments.is_empty())
        .then(|| TopologyRequirement { requisite: vec![here.clone()], preferred: vec![here] });
    Ok(CreateVolumeRequest {
        name,
        capacity_range: Some(CapacityRange { required_bytes: requested_bytes(of)?, limit_bytes: 0 }),
        volume_capabilities: vec![capability(of, class, parameters, manner.single_node_multi_writer)?],
        parameters: for_driver,
        volume_content_source: source.map(Content::to_csi),
        accessibility_requirements: requirement,
        ..CreateVolumeRequest::default()
    })
}

/// What the claim's VolumeAttributesClass, as far as that exists, says to the driver.
pub(super) fn attributes(
    of: &PersistentVolumeClaim,
    class: Option<&VolumeAttributesClass>,
    driver: &str,
    modifies: bool,
) -> Result<BTreeMap<String, String>, RequestError> {
    let name = fit::attributes_class_of_claim(of);
    let refused = |why: String| Err(RequestError::AttributesClass { name: name.to_owned(), why });
    match class {
        _ if name.is_empty() => Ok(BTreeMap::new()),
        None => refused("it does not exist; create it".to_owned()),
        Some(class) if class.driver_name != driver => {
            refused(format!("it is for the driver {}; name one for {driver}", class.driver_name))
        }
        Some(_) if !modifies => refused(format!("the driver {driver} knows no such classes; name none")),
        Some(class) => Ok(class.parameters.clone().unwrap_or_default()),
    }
}

fn capability(
    of: &PersistentVolumeClaim,
    class: &StorageClass,
    parameters: &Parameters,
    single_node_multi_writer: bool,
) -> Result<VolumeCapability, RequestError> {
    let access_type = if claim::volume_mode(of) == "Block" {
        AccessType::Block(BlockVolume {})
    } else {
        AccessType::Mount(MountVolume {
            fs_type: parameters.fs_type.clone().unwrap_or_default(),
            mount_flags: class.mount_options.clone().unwrap_or_default(),
            volume_mount_group: String::new(),
        })
    };
    let mode = access_mode(claim::access_modes(of), single_node_multi_writer)?;
    Ok(VolumeCapability {
        access_mode: Some(AccessMode { mode: mode as i32 }),
        access_type: Some(access_type),
    })
}

/// The one CSI mode that stands for the access modes of a claim or volume.
pub(crate) fn access_mode(modes: &[String], single_node_multi_writer: bool) -> Result<Mode, RequestError> {
    let has = |mode: &str| modes.iter().any(|one| one == mode);
    let unsupported = || RequestError::AccessModes(modes.join(", "));
    let [once, read_only, many, once_pod] =
        ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"].map(has);
    match (once, read_only, many, once_pod) {
        (false, false, false, true) if single_node_multi_writer => Ok(Mode::SingleNodeSingleWriter),
        (false, false, false, true) => Ok(Mode::SingleNodeWriter),
        (_, _, _, true) => Err(unsupported()),
        (_, _, true, _) => Ok(Mode::MultiNodeMultiWriter),
        (true, true, _, _) => Err(unsupported()),
        (_, true, _, _) => Ok(Mode::MultiNodeReaderOnly),
        (true, _, _, _) if single_node_multi_writer => Ok(Mode::SingleNodeMultiWriter),
        (true, _, _, _) => Ok(Mode::SingleNodeWriter),
        (false, false, false, false) => Err(unsupported()),
    }
}

/// Whether the class allows volumes in these segments.
pub(super) fn allows(class: &StorageClass, segments: &Segments) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    let holds = |term: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
        let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
        expressions.iter().all(|one| segments.get(&one.key).is_some_and(|value| one.values.contains(value)))
    };
    terms.is_empty() || terms.iter().any(holds)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{
        PersistentVolumeClaimSpec, TopologySelectorLabelRequirement, TopologySelectorTerm,
        VolumeResourceRequirements,
    };
    use k8s_openapi::apimachinery::pkg::api::resource;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn claim(size: &str, modes: &[&str], volume_mode: Option<&str>) -> PersistentVolumeClaim {
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some("data".to_owned()),
                namespace: Some("shop".to_owned()),
                uid: Some("7".to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(modes.iter().map(|mode| (*mode).to_owned()).collect()),
                volume_mode: volume_mode.map(str::to_owned),
                resources: Some(VolumeResourceRequirements {
                    requests: Some([("storage".to_owned(), resource::Quantity(size.to_owned()))].into()),
                    limits: None,
                }),
                ..PersistentVolumeClaimSpec::default()
            }),
            ..PersistentVolumeClaim::default()
        }
    }

    #[test]
    fn sizes_are_rounded_up_to_bytes() {
        for (size, bytes) in [
            ("1Gi", Some(1 << 30)),
            ("0.5", Some(1)),
            ("1500m", Some(2)),
            ("0", None),
            ("-1", None),
            ("8Ei", Some(i64::MAX)),
            ("20E", None),
            ("much", None),
        ] {
            assert_eq!(requested_bytes(&claim(size, &[], None)).ok(), bytes, "{size}");
        }
    }

    #[test]
    fn access_modes_become_one_mode() {
        const RWO: &str = "ReadWriteOnce";
        const ROX: &str = "ReadOnlyMany";
        const RWX: &str = "ReadWriteMany";
        const RWOP: &str = "ReadWriteOncePod";
        let cases: &[(&[&str], Option<Mode>, Option<Mode>)] = &[
            (&[], None, None),
            (&[RWO], Some(Mode::SingleNodeWriter), Some(Mode::SingleNodeMultiWriter)),
            (&[ROX], Some(Mode::MultiNodeReaderOnly), Some(Mode::MultiNodeReaderOnly)),
            (&[RWX], Some(Mode::MultiNodeMultiWriter), Some(Mode::MultiNodeMultiWriter)),
            (&[RWOP], Some(Mode::SingleNodeWriter), Some(Mode::SingleNodeSingleWriter)),
            (&[RWO, RWX, ROX], Some(Mode::MultiNodeMultiWriter), Some(Mode::MultiNodeMultiWriter)),
            (&[RWO, ROX], None, None),
            (&[RWO, RWOP], None, None),
        ];
        for (modes, plain, telling_apart) in cases {
            let modes: Vec<String> = modes.iter().map(|mode| (*mode).to_owned()).collect();
            assert_eq!(access_mode(&modes, false).ok(), *plain, "{modes:?}");
            assert_eq!(access_mode(&modes, true).ok(), *telling_apart, "{modes:?}");
        }
    }

    #[test]
    fn a_request_names_the_claim_only_if_told_to_and_asks_for_this_node() {
        let segments = Segments::from([("node".to_owned(), "n1".to_owned())]);
        let parameters = Parameters {
            driver: [("tier".to_owned(), "fast".to_owned())].into(),
            fs_type: Some("xfs".to_owned()),
            ..Parameters::default()
        };
        let class =
            StorageClass { mount_options: Some(vec!["noatime".to_owned()]), ..StorageClass::default() };
        let request = |extra_metadata, volume_mode| {
            let manner =
                Manner { single_node_multi_writer: false, extra_metadata, segments: segments.clone() };
            create(&claim("1Gi", &["ReadWriteOnce"], volume_mode), &class, &parameters, &manner, None)
                .expect("valid")
        };
        let plain = request(false, None);
        assert_eq!(plain.name, "pvc-7");
        assert_eq!(plain.capacity_range, Some(CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }));
        assert_eq!(plain.parameters, BTreeMap::from([("tier".to_owned(), "fast".to_owned())]));
        let topology = plain.accessibility_requirements.expect("topology");
        assert_eq!(topology.requisite, topology.preferred);
        assert_eq!(topology.requisite[0].segments["node"], "n1");
        let Some(AccessType::Mount(mount)) = &plain.volume_capabilities[0].access_type else {
            panic!("mount")
        };
        assert_eq!(
            (mount.fs_type.as_str(), mount.mount_flags.as_slice()),
            ("xfs", &["noatime".to_owned()][..])
        );

        let told = request(true, Some("Block"));
        assert_eq!(told.parameters["csi.storage.k8s.io/pvc/name"], "data");
        assert_eq!(told.parameters["csi.storage.k8s.io/pvc/namespace"], "shop");
        assert_eq!(told.parameters["csi.storage.k8s.io/pv/name"], "pvc-7");
        assert_eq!(told.volume_capabilities[0].access_type, Some(AccessType::Block(BlockVolume {})));
    }

    #[test]
    fn a_request_tells_what_the_parameters_name() {
        let parameters = Parameters {
            driver: [("orlop.dev/spread".to_owned(), "app".to_owned())].into(),
            ..Parameters::default()
        };
        let mut claim = claim("1Gi", &["ReadWriteOnce"], None);
        claim.metadata.labels =
            Some([("app", "db"), ("tier", "1")].map(|(k, v)| (k.into(), v.into())).into());
        claim.metadata.annotations = Some([("app".to_owned(), "web".to_owned())].into());
        let manner = Manner { extra_metadata: true, ..Manner::default() };
        let told =
            create(&claim, &StorageClass::default(), &parameters, &manner, None).expect("valid").parameters;
        assert_eq!(told["csi.storage.k8s.io/pvc/labels/app"], "db");
        assert_eq!(told["csi.storage.k8s.io/pvc/annotations/app"], "web");
        assert!(!told.contains_key("csi.storage.k8s.io/pvc/labels/tier"), "{told:?}");
    }

    #[test]
    fn attributes_are_those_of_a_class_for_the_driver() {
        let mut with_class = claim("1Gi", &["ReadWriteOnce"], None);
        with_class.spec.get_or_insert_default().volume_attributes_class_name = Some("fast".to_owned());
        let class = |driver: &str| VolumeAttributesClass {
            driver_name: driver.to_owned(),
            parameters: Some([("iops".to_owned(), "9".to_owned())].into()),
            ..VolumeAttributesClass::default()
        };
        let told = |class: Option<&VolumeAttributesClass>, modifies| {
            attributes(&with_class, class, "d", modifies).map_err(|error| error.to_string())
        };
        assert_eq!(told(Some(&class("d")), true).expect("fits")["iops"], "9");
        for (class, modifies, why) in [
            (None, true, "does not exist"),
            (Some(class("e")), true, "for the driver e"),
            (Some(class("d")), false, "knows no such classes"),
        ] {
            let refused = told(class.as_ref(), modifies).expect_err("unfit");
            assert!(refused.contains("\"fast\"") && refused.contains(why), "{refused}");
        }
        assert_eq!(attributes(&claim("1Gi", &[], None), None, "d", false), Ok(BTreeMap::new()));
    }

    #[test]
    fn classes_can_exclude_nodes() {
        let here = Segments::from([("zone".to_owned(), "a".to_owned())]);
        let class = |values: &[&str]| StorageClass {
            allowed_topologies: Some(vec![TopologySelectorTerm {
                match_label_expressions: Some(vec![TopologySelectorLabelRequirement {
                    key: "zone".to_owned(),
                    values: values.iter().map(|value| (*value).to_owned()).collect(),
                }]),
            }]),
            ..StorageClass::default()
        };
        assert!(allows(&StorageClass::default(), &here));
        assert!(allows(&class(&["b", "a"]), &here));
        assert!(!allows(&class(&["b"]), &here));
    }
}
