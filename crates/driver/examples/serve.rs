//! Serves the driver from one file as its drive, for trying a CSI tool on it:
//!
//! `serve DIRECTORY SIZE_IN_BYTES`, then talk to `DIRECTORY/csi.sock`. Ctrl-C stops it, gives the drive back and leaves
//! the directory.

use anyhow::Context;
use driver::NodeInfo;
use drives::{Drives, Force, Source};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().context("name a directory")?);
    let size = arguments.next().context("name a size in bytes")?.parse()?;
    std::fs::create_dir_all(&directory)?;

    let source = Source::LoopFile { path: directory.join("drive.img"), size };
    let drives = Drives::open(Arc::new(linux::Kernel), directory.join("drives"), vec![source]).await?;
    for source in drives.uninitialised() {
        drives.initialise(source, None, Force::No).await?;
    }
    let node = NodeInfo {
        node_id: "node-1".into(),
        segments: BTreeMap::from([("topology.orlop.dev/node".into(), "node-1".into())]),
        max_volumes: None,
    };
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    driver::serve(&directory.join("csi.sock"), drives.clone(), node, shutdown).await?;
    drives.close().await?;
    Ok(())
}
