//! Requests to the Controller service.

use super::{Access, Parameters, Refusal, Sizes, parameters, present, snapshot, text, volume};
use csi::v1;
use drives::{AccessType, BackendKind, CreateVolume, Throttle, VolumeId};
use std::collections::BTreeMap;

pub(crate) struct Create(pub(crate) CreateVolume);

impl Create {
    /// `segments` are those of the node that the volume would be on.
    pub(crate) fn check(
        request: v1::CreateVolumeRequest,
        segments: &BTreeMap<String, String>,
    ) -> Result<Self, Refusal> {
        text("name", &request.name)?;
        let access = Access::check_all(&request.volume_capabilities)?;
        let asked = parameters::check(&request.parameters)?;
        let throttle = parameters::mutable(&request.mutable_parameters)?;
        let backend = one_backend(asked.backend, &access)?;
        let sizes = Sizes::check(request.capacity_range)?;
        place_or_elsewhere(request.accessibility_requirements, segments)?;
        Ok(Self(CreateVolume {
            name: request.name,
            required: sizes.required,
            limit: sizes.limit,
            access: Access::one_kind(&access)?,
            backend,
            drives: asked.drives,
            spread: asked.spread,
            throttle,
            ephemeral: false,
            parameters: own(backend, &access, asked.overcommit),
            notes: parameters::notes(request.parameters),
            origin: snapshot::origin(request.volume_content_source)?,
        }))
    }
}

/// Refuses what is required to be on other nodes only.
pub(super) fn place_or_elsewhere(
    required: Option<v1::TopologyRequirement>,
    segments: &BTreeMap<String, String>,
) -> Result<(), Refusal> {
    if within(required.unwrap_or_default().requisite, segments) {
        return Ok(());
    }
    let here = segments.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    Err(Refusal::Elsewhere { here })
}

/// Whether one of the places, if any is named, holds the node, which is all of `segments`. Of a requirement only the
/// requisite places bind: the preferred ones are an order among them, or a wish.
fn within(places: impl IntoIterator<Item = v1::Topology>, segments: &BTreeMap<String, String>) -> bool {
    let places: Vec<_> = places.into_iter().map(|place| place.segments).collect();
    values::accessible(&places, segments)
}

/// The type of the file system that a volume has for itself: `xfs` and `btrfs` are backends, too.
fn own_filesystem(backend: Option<BackendKind>, access: &[Access]) -> Option<&'static str> {
    let asked = access.iter().find_map(|access| access.filesystem)?;
    (asked == "ext4" || backend.is_some_and(BackendKind::has_filesystems)).then_some(asked)
}

/// What is kept with the volume of what was asked for.
pub(super) fn own(
    backend: Option<BackendKind>,
    access: &[Access],
    overcommit: Option<String>,
) -> BTreeMap<String, String> {
    let filesystem = own_filesystem(backend, access).map(|own| (drives::FILESYSTEM, own.to_owned()));
    let pairs = filesystem.into_iter().chain(overcommit.map(|times| (drives::OVERCOMMIT, times)));
    pairs.map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The backend that parameters and file-system types agree upon. On `lvm` and `lvm-thin` a volume has
/// whichever type is asked for.
pub(super) fn one_backend(
    parameter: Option<BackendKind>,
    access: &[Access],
) -> Result<Option<BackendKind>, Refusal> {
    if parameter.is_some_and(BackendKind::has_filesystems) {
        return Ok(parameter);
    }
    if let (Some(backend), Some(own)) = (parameter, own_filesystem(parameter, access)) {
        return Err(Refusal::Invalid {
            field: "volume_capabilities",
            why: format!(
                "volumes on {backend} don't have {own} of their own; leave the file-system type out"
            ),
        });
    }
    let mut asked = parameter.into_iter().chain(access.iter().filter_map(|access| access.backend));
    let Some(first) = asked.next() else { return Ok(None) };
    match asked.find(|other| *other != first) {
        None => Ok(Some(first)),
        Some(other) => Err(Refusal::Invalid {
            field: "volume_capabilities",
            why: format!(
                "both {first} and {other} are asked for, by parameter and file-system type; name one"
            ),
        }),
    }
}

pub(crate) struct Delete(pub(crate) VolumeId);

impl Delete {
    pub(crate) fn check(request: &v1::DeleteVolumeRequest) -> Result<Self, Refusal> {
        present("volume_id", &request.volume_id)?;
        volume(&request.volume_id).map(Self)
    }
}

pub(crate) struct Get(pub(crate) VolumeId);

impl Get {
    pub(crate) fn check(request: &v1::ControllerGetVolumeRequest) -> Result<Self, Refusal> {
        text("volume_id", &request.volume_id)?;
        volume(&request.volume_id).map(Self)
    }
}

pub(crate) struct Expand {
    pub(crate) volume: VolumeId,
    pub(crate) sizes: Sizes,
}

impl Expand {
    pub(crate) fn check(request: v1::ControllerExpandVolumeRequest) -> Result<Self, Refusal> {
        text("volume_id", &request.volume_id)?;
        if request.capacity_range.is_none_or(|range| range == v1::CapacityRange::default()) {
            return Err(Refusal::Missing { field: "capacity_range" });
        }
        let sizes = Sizes::check(request.capacity_range)?;
        if request.volume_capability.is_some() {
            Access::check(request.volume_capability.as_ref())?;
        }
        Ok(Self { volume: volume(&request.volume_id)?, sizes })
    }
}

pub(crate) struct Modify {
    pub(crate) volume: VolumeId,
    pub(crate) throttle: Throttle,
}

impl Modify {
    pub(crate) fn check(request: &v1::ControllerModifyVolumeRequest) -> Result<Self, Refusal> {
        text("volume_id", &request.volume_id)?;
        let throttle = parameters::mutable(&request.mutable_parameters)?;
        Ok(Self { volume: volume(&request.volume_id)?, throttle })
    }
}

/// Whether a volume can be used as asked; decided without knowing the volume, except for its access type and backend.
pub(crate) struct Validate {
    pub(crate) volume: VolumeId,
    pub(crate) verdict: Verdict,
}

pub(crate) enum Verdict {
    /// Any such volume can, if it is of this backend.
    Of(AccessType, Option<BackendKind>),
    /// No volume of this driver can.
    No(Refusal),
}

impl Validate {
    pub(crate) fn check(request: &v1::ValidateVolumeCapabilitiesRequest) -> Result<Self, Refusal> {
        text("volume_id", &request.volume_id)?;
        let wanted = || {
            let access = Access::check_all(&request.volume_capabilities)?;
            let asked = parameters::check(&request.parameters)?;
            parameters::mutable(&request.mutable_parameters)?;
            Ok((Access::one_kind(&access)?, one_backend(asked.backend, &access)?))
        };
        let verdict = match wanted() {
            Ok((kind, backend)) => Verdict::Of(kind, backend),
            // A request that is not complete has no answer.
            Err(missing @ Refusal::Missing { .. }) => return Err(missing),
            Err(refusal) => Verdict::No(refusal),
        };
        Ok(Self { volume: volume(&request.volume_id)?, verdict })
    }
}

pub(crate) struct List {
    /// The page starts after this volume or snapshot.
    pub(crate) after: Option<VolumeId>,
    pub(crate) most: usize,
}

impl List {
    pub(crate) fn check(request: &v1::ListVolumesRequest) -> Result<Self, Refusal> {
        Self::of(request.max_entries, &request.starting_token)
    }

    pub(super) fn of(max_entries: i32, starting_token: &str) -> Result<Self, Refusal> {
        let most = usize::try_from(max_entries).map_err(|_| Refusal::Invalid {
            field: "max_entries",
            why: format!("{max_entries} is negative"),
        })?;
        let after = match starting_token {
            "" => None,
            token => Some(token.parse().map_err(|_| Refusal::ForeignToken(token.to_owned()))?),
        };
        Ok(Self { after, most: if most == 0 { usize::MAX } else { most } })
    }
}

/// Whose capacity is asked for.
pub(crate) enum Capacity {
    Of(AccessType, Parameters, BTreeMap<String, String>),
    /// No volume as asked for can be made here, and why, unless it is by the place.
    None(Option<String>),
}

impl Capacity {
    pub(crate) fn check(
        request: &v1::GetCapacityRequest,
        segments: &BTreeMap<String, String>,
    ) -> Result<Self, Refusal> {
        let asked = parameters::check(&request.parameters)?;
        if !within(request.accessible_topology.clone(), segments) {
            return Ok(Self::None(None));
        }
        let access = request.volume_capabilities.iter().map(|capability| Access::check(Some(capability)));
        let of = |access: Vec<Access>| {
            let backend = one_backend(asked.backend, &access)?;
            Ok((Access::one_kind(&access)?, backend, own(backend, &access, asked.overcommit.clone())))
        };
        match access.collect::<Result<Vec<_>, _>>().and_then(of) {
            Ok((kind, backend, own)) => Ok(Self::Of(kind, Parameters { backend, ..asked }, own)),
            Err(refusal @ (Refusal::Unserved { .. } | Refusal::Invalid { .. })) => {
                Ok(Self::None(Some(refusal.to_string())))
            }
            Err(refusal) => Err(refusal),
        }
    }
}
