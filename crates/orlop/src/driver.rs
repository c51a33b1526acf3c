//! `orlop driver`: the CSI socket alone, with no Kubernetes anywhere.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use clap::Args;
use driver::NodeInfo;
use tokio_util::sync::CancellationToken;

use crate::signals::Signals;
use crate::storage::{self, DataDir, Storage};

/// Arguments of `orlop driver`.
#[derive(Args)]
pub(crate) struct Driver {
    /// Where to serve: a unix socket, as CSI writes it.
    #[arg(long, value_name = "unix:///PATH", env = "CSI_ENDPOINT", value_parser = endpoint)]
    endpoint: PathBuf,
    /// The node's identity, as orchestrators are told it [default: the host's name].
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// Label a drive, named by its device, file or id, for classes to choose it by; kept on the drive. May be repeated.
    #[arg(long = "drive-label", value_name = "DRIVE:KEY=VALUE", value_parser = label)]
    labels: Vec<Label>,
    /// A directory beneath which volumes may be staged and published, such as /var/lib/kubelet. May be repeated [default:
    /// wherever a place is new or empty, but in the system's own directories].
    #[arg(long = "kubelet-dir", value_name = "DIR", value_parser = absolute)]
    kubelet_dirs: Vec<PathBuf>,
    #[command(flatten)]
    storage: Storage,
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.is_absolute() {
        true => Ok(path),
        false => Err("write an absolute path, for example /var/lib/kubelet".to_owned()),
    }
}

/// The path of a unix endpoint.
pub(crate) fn endpoint(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err("only unix sockets with an absolute path are served; write unix:///PATH".to_owned()),
    }
}

/// One label of one drive.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Label {
    drive: String,
    key: String,
    value: String,
}

fn label(text: &str) -> Result<Label, String> {
    let label = || {
        let (drive, label) = text.rsplit_once(':')?;
        let (key, value) = label.split_once('=')?;
        Some(Label { drive: drive.to_owned(), key: key.to_owned(), value: value.to_owned() })
    };
    let label = label().filter(|label| !label.drive.is_empty()).ok_or("write DRIVE:KEY=VALUE")?;
    let wrong =
        [values::names::qualified_name(&label.key), values::names::label_value(&label.value)].concat();
    match wrong.is_empty() {
        true => Ok(label),
        false => Err(wrong.join("; ")),
    }
}

/// Adds the labels to those that the drives have.
async fn attach(drives: &drives::Drives, labels: &[Label]) -> anyhow::Result<()> {
    for label in labels {
        let all = drives.drives();
        let named = |drive: &&drives::Drive| {
            let id = drive.id.as_ref().is_some_and(|id| id.as_str() == label.drive);
            id || drive.source.path() == Path::new(&label.drive)
                || drive.device.as_deref() == Some(Path::new(&label.drive))
        };
        let found = all.iter().find(named).and_then(|drive| Some((drive.id.as_ref()?, &drive.labels)));
        let Some((id, labels)) = found else {
            bail!("there is no drive {} here to label; name a drive by its device, file or id", label.drive);
        };
        let mut labels = labels.clone();
        labels.insert(label.key.clone(), label.value.clone());
        drives.label(id, labels).await?;
    }
    Ok(())
}

/// Serves until SIGINT or SIGTERM. What is mounted stays mounted, and so does a drive that a volume is mounted from.
pub(crate) async fn driver(arguments: Driver) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "orlop driver mounts drives and volumes, which needs root; run it with sudo"
    );
    let data = DataDir::open(&arguments.storage.data_dir)?;
    let known = data.layout()?;
    let asked = arguments.storage.asked(None);
    ensure!(
        known.nodes.len() <= 1,
        "{} has the drives of {} nodes, and a driver serves one; name another directory with --data-dir, or run orlop up",
        data.path().display(),
        known.nodes.len()
    );
    ensure!(
        !known.nodes.is_empty() || !asked.devices.is_empty() || !asked.loop_drives.is_empty(),
        "there is no drive to serve; name one with --drive DEVICE, or with --loop-drive SIZE for a trial"
    );
    let layout = known.with(&asked, data.path())?;
    let node_id = arguments
        .node_id
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    let info = NodeInfo {
        name: layout.driver,
        segments: layout.driver.segments(&node_id),
        node_id,
        max_volumes: arguments.storage.max_volumes,
    };
    info.check()?;
    let mut signals = Signals::listen()?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        signals.recv().await;
        stop.cancel();
        tracing::info!("stopping");
    });

    let root = data.node(&storage::node_name(0)).join("drives");
    let sources = &layout.nodes[0];
    let drives = storage::open(&info.node_id, root, sources, arguments.storage.making()).await?;
    drives.confine(drives::Confines { below: arguments.kubelet_dirs, never: vec![data.path().to_owned()] });
    let ready = match storage::check_backend(arguments.storage.making().backend, [&drives]) {
        Ok(()) => attach(&drives, &arguments.labels).await,
        refused => refused,
    };
    let served = match ready.and_then(|()| Ok(data.remember(&layout)?)) {
        Ok(()) => {
            let calls = driver::Calls::default();
            driver::serve(&arguments.endpoint, drives.clone(), info, calls, shutdown)
                .await
                .map_err(Into::into)
        }
        Err(error) => Err(error),
    };
    storage::give_back(&drives).await;
    served
}

#[cfg(test)]
mod tests {
    use super::{Label, endpoint, label};

    #[test]
    fn labels_name_their_drive() {
        let expected =
            Label { drive: "/dev/disk/by-id/a:b".into(), key: "x/medium".into(), value: "nvme".into() };
        assert_eq!(label("/dev/disk/by-id/a:b:x/medium=nvme"), Ok(expected));
        for text in ["", "medium=nvme", ":medium=nvme", "/dev/sdb:medium", "/dev/sdb:a b=c", "/dev/sdb:a=b c"]
        {
            assert!(label(text).is_err(), "{text}");
        }
    }

    #[test]
    fn endpoints_are_unix_sockets() {
        for text in ["unix:///run/csi.sock", "unix:/run/csi.sock", "/run/csi.sock"] {
            assert_eq!(endpoint(text), Ok("/run/csi.sock".into()), "{text}");
        }
        for text in ["", "unix://csi.sock", "csi.sock", "tcp://127.0.0.1:1"] {
            assert!(endpoint(text).is_err_and(|why| why.contains("unix:///PATH")), "{text}");
        }
    }
}
