//! An API server that has no controllers of its own, and roles of the binary as real processes against it.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api_server::{ApiServer, Credentials, Options};
use kube::{Api, Client};
use object_store::Store;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{BINARY, PATIENCE};

pub struct Cluster {
    pub directory: tempfile::TempDir,
    pub client: Client,
    _serving: DropGuard,
}

impl Cluster {
    pub async fn start() -> Cluster {
        let directory = tempfile::Builder::new().prefix("orlop-test.").tempdir().unwrap();
        let hosts = ["127.0.0.1".to_owned()];
        let credentials = Credentials::open(&directory.path().join("pki"), &hosts).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        credentials.write_kubeconfig(&directory.path().join("kubeconfig"), &url, None).unwrap();
        let api = ApiServer::start(Store::in_memory(), Options::default()).await.unwrap();
        let client = Client::new(api.in_process("test"), "default");
        let shutdown = CancellationToken::new();
        let ends = shutdown.clone();
        tokio::spawn(async move { api.serve(listener, credentials, ends).await });
        Cluster { directory, client, _serving: shutdown.drop_guard() }
    }

    /// A role of the binary on this API.
    pub fn command(&self, role: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg(role).arg("--kubeconfig").arg(self.directory.path().join("kubeconfig"));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    pub async fn create<K>(&self, api: Api<K>, object: Value)
    where
        K: Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
    {
        api.create(&Default::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }
}

pub struct Process {
    pub child: Child,
    pub log: PathBuf,
}

impl Process {
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether it ended well, and its log.
    pub async fn end(mut self) -> (bool, String) {
        let status = eventually("the process ends", async || self.child.try_wait().unwrap()).await;
        (status.success(), log(&self.log))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub fn log(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
