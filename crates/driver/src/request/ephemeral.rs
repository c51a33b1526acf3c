//! Requests for a volume that is made for one pod, and goes with it: what Kubernetes calls CSI ephemeral volumes.

use super::{
    Access, Refusal,
    controller::{one_backend, own},
    mount_point, parameters, text,
};
use csi::v1;
use drives::{AccessType, CreateVolume};
use std::path::PathBuf;
use values::Quantity;

const FIELD: &str = "volume_context";
/// In a volume's context: `true` where it is made for one pod and goes with it. In a request, there is no volume yet, and
/// nothing staged.
pub const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
const SIZE: &str = "orlop.dev/size";

pub(crate) struct Ephemeral {
    pub(crate) wanted: CreateVolume,
    pub(crate) target: PathBuf,
    pub(crate) access: Access,
    /// Asked for by the field or by the access mode.
    pub(crate) read_only: bool,
}

impl Ephemeral {
    /// Whether this kind of volume is meant.
    pub(crate) fn is_meant(request: &v1::NodePublishVolumeRequest) -> bool {
        request.volume_context.get(EPHEMERAL).is_some_and(|value| value == "true")
    }

    pub(crate) fn check(request: &v1::NodePublishVolumeRequest) -> Result<Self, Refusal> {
        text("volume_id", &request.volume_id)?;
        let target = mount_point("target_path", &request.target_path)?;
        let access = Access::check(request.volume_capability.as_ref())?;
        if access.kind == AccessType::Block {
            return Err(Refusal::Unserved {
                what: "an ephemeral block volume".to_owned(),
                instead: "ask for a file system, or use a claim (generic ephemeral volume)",
            });
        }
        let mut attributes = request.volume_context.clone();
        // Facts about the pod change nothing here.
        attributes.retain(|key, _| {
            key != EPHEMERAL
                && !key.starts_with("csi.storage.k8s.io/pod.")
                && !key.starts_with("csi.storage.k8s.io/serviceAccount.")
        });
        let size = attributes.remove(SIZE).unwrap_or_default();
        let bytes =
            size.parse::<Quantity>().ok().and_then(|size| size.ceil_bytes()).filter(|bytes| *bytes > 0);
        let required = bytes.ok_or_else(|| Refusal::Invalid {
            field: FIELD,
            why: format!("{SIZE} is {size:?}; set it in the pod's volumeAttributes to a size such as 1Gi"),
        })?;
        let asked = parameters::check(&attributes)?;
        let backend = one_backend(asked.backend, std::slice::from_ref(&access))?;
        let wanted = CreateVolume {
            name: request.volume_id.clone(),
            required,
            backend,
            parameters: own(backend, std::slice::from_ref(&access), asked.overcommit),
            drives: asked.drives,
            spread: asked.spread,
            ephemeral: true,
            ..CreateVolume::default()
        };
        let read_only = request.readonly || access.read_only;
        Ok(Self { wanted, target, access, read_only })
    }
}
