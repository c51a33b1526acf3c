//! Removing everything that a node agent has put on a machine, without the API.

use std::{io, path::Path, sync::Arc};

use linux::{Host, Kernel, Unmount};

use crate::{
    blocking::blocking,
    containers::{
        attempt::{self, AttemptState, Exit},
        cgroup, monitor, oci, start,
    },
    layout::{self, Layout},
    observe::{Place, observe},
    records,
    run::{Drivers, boot_id},
    volumes::{self, VolumeError, csi::Csi, places::Places, recover, stages, subpath},
};

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot tear down {what} below {root}: {why}")]
pub struct TeardownError {
    what: String,
    root: String,
    why: String,
}

/// Stops all containers of the node whose root is `root`, and unmounts and removes its pods' volumes: CSI volumes
/// through their drivers, if those still answer, else by unmounting. The agent of this root must not be running.
///
/// # Errors
/// The first thing that could not be removed; everything else has been tried.
pub async fn teardown(node: &str, root: &Path, drivers: Arc<dyn Drivers>) -> Result<(), TeardownError> {
    let failed =
        |what: &str, why: String| TeardownError { what: what.into(), root: root.display().to_string(), why };
    let Ok(root) = std::fs::canonicalize(root) else { return Ok(()) };
    let host: Arc<dyn Host> = Arc::new(Kernel);
    let layout = Layout::new(&root);
    let boot_id = boot_id().map_err(|error| failed("everything", error.to_string()))?;
    let csi = Csi::open(host.clone(), layout.clone(), drivers, node.to_owned(), boot_id.clone())
        .map_err(|error| failed("CSI volumes", error.to_string()))?;
    let uids = host.list(&layout.pods()).map_err(|error| failed("pods", error.to_string()))?;
    let mut first = None;
    for uid in uids.into_iter().filter_map(|uid| uid.into_string().ok()) {
        if let Err(error) = pod(&host, &layout, &csi, node, &uid, &boot_id).await {
            first.get_or_insert(failed(&format!("pod {uid}"), error.to_string()));
        }
    }
    let stages = layout.stages();
    let unmounted = blocking("unmounting staged volumes", move || {
        for mount in host.mount_table()?.below(&stages) {
            host.unmount(&mount.target, Unmount::Detach)?;
        }
        Ok(())
    });
    if let Err(error) = unmounted.await {
        first.get_or_insert(failed("staged volumes", error.to_string()));
    }
    cgroup::remove(&format!("/orlop/{node}"));
    cgroup::remove("/orlop");
    first.map_or(Ok(()), Err)
}

async fn pod(
    host: &Arc<dyn Host>,
    layout: &Layout,
    csi: &Csi,
    node: &str,
    uid: &str,
    boot_id: &str,
) -> Result<(), VolumeError> {
    let actual = {
        let (host, layout, uid) = (host.clone(), layout.clone(), uid.to_owned());
        let place = Place {
            host: host.clone(),
            layout: layout.clone(),
            node: node.to_owned(),
            boot_id: boot_id.to_owned(),
            runtime: oci::find(None).unwrap_or_else(|| oci::KNOWN[0].into()),
        };
        blocking("stopping a pod's containers", move || {
            let actual = observe(&place, &uid, &Default::default())?;
            if let Some(fault) = actual.faults.iter().find(|fault| fault.newer) {
                return Err(VolumeError::Leftover(fault.message.clone()));
            }
            for attempt in actual.attempts.values().flatten() {
                let directory = layout.attempt(&uid, &attempt.record.container, attempt.record.number);
                let files = |source: io::Error| VolumeError::Files { action: "stop a container", source };
                let _lock = end_monitor(&directory, &attempt.record.cgroup).map_err(files)?;
                monitor::release(&directory, &attempt.record).map_err(files)?;
                let begun = attempt.live() || attempt.state == AttemptState::Lost;
                if begun && !host.exists(&directory.join("exit.json"))? {
                    let exit = Exit::unknown(clock::now());
                    records::write_durably(&directory.join("exit.json"), &exit).map_err(files)?;
                }
                if !begun && attempt.exit().is_none() {
                    host.remove_file(&directory.join("attempt.json"))?;
                }
            }
            subpath::clean(&*host, &layout, &uid)?;
            Ok(actual)
        })
        .await?
    };
    for volume in &actual.present {
        if volume.plugin == layout::CSI {
            let record =
                match stages::publish_record(Places { layout, block: volume.block }, uid, &volume.name) {
                    Ok(Some(record)) => Some(record),
                    _ => {
                        let (host, layout, node) = (host.clone(), layout.clone(), node.to_owned());
                        let (uid, volume) = (uid.to_owned(), volume.clone());
                        blocking("looking for a volume's stage", move || {
                            recover::from_stages(&*host, &layout, &host.mount_table()?, &uid, &volume, &node)
                        })
                        .await?
                    }
                };
            if let Err(error) = csi.tear_down(uid, &volume.name, volume.block, record).await {
                tracing::warn!(uid, volume = volume.name, %error, "driver did not unmount; unmounting without it");
                let target = Places { layout, block: volume.block }.target(uid, &volume.name);
                let host = host.clone();
                blocking("unmounting a volume", move || {
                    host.unmount(&target, Unmount::Detach)?;
                    Ok(())
                })
                .await?;
            }
        } else {
            let (host, layout, uid, volume) = (host.clone(), layout.clone(), uid.to_owned(), volume.clone());
            blocking("tearing down a volume", move || volumes::tear_down(&*host, &layout, &uid, &volume))
                .await?;
        }
    }
    let (host, directory, pods) = (host.clone(), layout.pod(uid), layout.pods());
    blocking("removing a pod's directory", move || {
        let table = host.mount_table()?;
        for mount in table.below(&directory) {
            host.unmount(&mount.target, Unmount::Plain)?;
        }
        debug_assert!(directory.starts_with(pods));
        keep_ends(&*host, &directory)
    })
    .await?;
    cgroup::remove(&start::pod_cgroup(node, uid));
    Ok(())
}

/// Removes all of a pod's directory but the records of its containers' starts and ends: how often it was restarted, and
/// which log is the previous one, is known again at the next start. They go with the pod.
fn keep_ends(host: &dyn Host, pod: &Path) -> Result<(), VolumeError> {
    let mut kept = 0;
    let containers = pod.join("containers");
    for container in host.list(&containers)? {
        for attempt in host.list(&containers.join(&container))? {
            let attempt = containers.join(&container).join(attempt);
            let ended =
                host.exists(&attempt.join("exit.json"))? && host.exists(&attempt.join("attempt.json"))?;
            if !ended {
                attempt::remove(host, &attempt)?;
                continue;
            }
            kept += 1;
            for name in host.list(&attempt)? {
                if name != "exit.json" && name != "attempt.json" {
                    host.remove_tree(&attempt.join(name))?;
                }
            }
        }
    }
    if kept == 0 {
        host.remove_tree(pod)?;
        return Ok(());
    }
    for name in host.list(pod)? {
        if name != "containers" {
            host.remove_tree(&pod.join(name))?;
        }
    }
    Ok(())
}

/// Kills a container and waits until its monitor has written down its end, up to ten seconds. With the lock in hand none
/// starts anything any more, not even one that was only just started.
fn end_monitor(directory: &Path, cgroup: &str) -> io::Result<attempt::Lock> {
    let deadline = clock::now() + jiff::SignedDuration::from_secs(10);
    loop {
        cgroup::kill(cgroup)?;
        if let Some(lock) = attempt::lock(directory)? {
            return Ok(lock);
        }
        if clock::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the container's monitor does not end"));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
