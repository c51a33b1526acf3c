//! A durable API server and one node agent in a process that tests may kill.
//!
//! `one-node DIRECTORY NODE MONITOR`; standard input takes lines of `{"create": POD}` and `{"delete": NAME}`, standard
//! output tells of every change of a pod: `NAME PHASE RESTARTS`, or `NAME gone`.

use std::{io::BufRead, path::PathBuf, sync::Arc};

use api_server::ApiServer;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt, api::PostParams};
use node_agent::{Drivers, Options};
use object_store::Store;
use runtime::{Change, Context, Metrics};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct NoDrivers(watch::Sender<u64>);

impl Drivers for NoDrivers {
    fn endpoint(&self, _: &str) -> Option<PathBuf> {
        None
    }
    fn changed(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: one-node DIRECTORY NODE MONITOR");
    let (directory, node, monitor) = (PathBuf::from(next()?), next()?, next()?);
    let store = Store::open(&directory.join("store.redb"), Default::default())?;
    let api = ApiServer::start(store, Default::default()).await?;
    let client = Client::new(api.in_process("system:orlop"), "default");
    let context = Context::new(client.clone(), Metrics::new(), CancellationToken::new());
    context.informers.pods().subscribe(|change| match change {
        Change::Applied { new, .. } => {
            let status = new.status.clone().unwrap_or_default();
            let restarts: i32 = status.container_statuses.iter().flatten().map(|of| of.restart_count).sum();
            println!("{} {} {restarts}", new.name_any(), status.phase.unwrap_or_default());
        }
        Change::Deleted(pod) => println!("{} gone", pod.name_any()),
    });
    let pods = Api::<Pod>::default_namespaced(client);
    let (sender, mut commands) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        std::io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| sender.blocking_send(line))
    });
    tokio::spawn(async move {
        while let Some(line) = commands.recv().await {
            let command: Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(name) = command["delete"].as_str() {
                let _ = pods.delete(name, &Default::default()).await;
            } else if let Ok(pod) = serde_json::from_value(command["create"].clone()) {
                let _ = pods.create(&PostParams::default(), &pod).await;
            }
        }
    });
    let options = Options::new(node, directory.join("node"), vec![monitor.into()]);
    node_agent::run(context, options, Arc::new(NoDrivers(watch::Sender::new(0)))).await?;
    Ok(())
}
