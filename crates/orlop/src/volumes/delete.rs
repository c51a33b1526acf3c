//! `orlop volumes delete`: the end of volumes that have lost their PersistentVolume.

use anyhow::{Context, bail, ensure};
use csi::v1::DeleteVolumeRequest;
use csi::v1::controller_client::ControllerClient;

use super::{Found, Objects};

/// Deletes the named volumes. All are looked at before the first goes.
pub(super) async fn delete(found: &[Found], objects: &Objects, wanted: &[String]) -> anyhow::Result<()> {
    let orphaned: Vec<&Found> =
        wanted.iter().map(|name| orphan(found, objects, name)).collect::<Result<_, _>>()?;
    for one in orphaned {
        let channel = csi::connect(&one.socket).await?;
        let request = DeleteVolumeRequest { volume_id: one.volume.volume_id.clone(), ..Default::default() };
        let deleted = ControllerClient::new(channel).delete_volume(request).await;
        let named = || format!("volume {} stays", one.name());
        deleted.map_err(|status| anyhow::anyhow!("{}", status.message())).with_context(named)?;
        println!("volume {} of {} deleted with its data ({})", one.name(), one.size(), one.volume.volume_id);
    }
    Ok(())
}

/// The volume of this name or handle, if nothing needs it.
fn orphan<'a>(found: &'a [Found], objects: &Objects, name: &str) -> anyhow::Result<&'a Found> {
    let mut named = found.iter().filter(|one| one.volume.volume_id == name || one.name() == name);
    let Some(one) = named.next() else {
        bail!("there is no volume {name}; `orlop volumes` lists them");
    };
    if let Some(other) = named.next() {
        let (first, second) = (&one.volume.volume_id, &other.volume.volume_id);
        bail!("{name} is the name of {first} and of {second}: name the one to delete by its handle");
    }
    if let Some((object, phase)) = objects.persistent_volume(one) {
        bail!(
            "volume {name} belongs to the PersistentVolume {object} ({phase}): delete its claim, or with the policy Delete \
             the PersistentVolume, and the volume goes with it"
        );
    }
    if let Some((namespace, claim)) = one.claim().filter(|claim| objects.waits(*claim)) {
        bail!(
            "volume {name} may just be made for the claim {namespace}/{claim}, which waits for a volume: delete that claim, \
             or give the volume back to it (`orlop volumes -o yaml`)"
        );
    }
    ensure!(!one.is_ephemeral(), "volume {name} is a pod's own, and goes with the pod");
    Ok(one)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::found;
    use super::super::{CLAIM, NAMESPACE, PERSISTENT_VOLUME};
    use super::*;

    #[test]
    fn only_what_nothing_needs_is_deleted() {
        let named = |name: &str, handle: &str| {
            let mut one = found(&[(PERSISTENT_VOLUME, name)]);
            one.volume.volume_id = handle.to_owned();
            one
        };
        let mut own = named("csi-1", "d1/csi-1");
        own.volume.volume_context.insert(driver::EPHEMERAL.to_owned(), "true".to_owned());
        let mut awaited = named("awaited", "d1/awaited");
        for (key, value) in [(NAMESPACE, "shop"), (CLAIM, "journal")] {
            awaited.volume.volume_context.insert(key.to_owned(), value.to_owned());
        }
        let all = [
            named("kept", "d1/kept"),
            named("lost", "d1/lost"),
            named("twice", "d1/t"),
            named("twice", "d2/t"),
            own,
            awaited,
        ];
        let volume = json!({"metadata": {"name": "pv-1"}, "status": {"phase": "Released"},
            "spec": {"csi": {"driver": "orlop.dev", "volumeHandle": "d1/kept"}}});
        let claim = json!({"metadata": {"name": "journal", "namespace": "shop"}, "spec": {}});
        let objects = Objects::of(
            vec![serde_json::from_value(volume).expect("a PersistentVolume")],
            vec![serde_json::from_value(claim).expect("a claim")],
            Vec::new(),
        );
        for (name, expected) in [
            ("lost", Ok("d1/lost")),
            ("d1/lost", Ok("d1/lost")),
            ("d2/t", Ok("d2/t")),
            ("twice", Err("d1/t and of d2/t: name the one to delete by its handle")),
            ("kept", Err("belongs to the PersistentVolume pv-1 (Released)")),
            ("d1/kept", Err("belongs to the PersistentVolume pv-1 (Released)")),
            ("csi-1", Err("goes with the pod")),
            ("awaited", Err("the claim shop/journal, which waits")),
            ("none", Err("there is no volume none")),
        ] {
            match (orphan(&all, &objects, name), expected) {
                (Ok(one), Ok(handle)) => assert_eq!(one.volume.volume_id, handle, "{name}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{name}: {error}"),
                (found, _) => panic!("{name}: {:?}", found.map(|one| one.volume.volume_id.clone())),
            }
        }
    }
}
