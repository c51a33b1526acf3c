//! The API that a role works with.

use std::path::Path;

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// The named kubeconfig's cluster, or the one that this pod runs in.
pub(crate) async fn config(kubeconfig: Option<&Path>) -> anyhow::Result<Config> {
    match kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).context("name another file with --kubeconfig")?;
            Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
        }
        None => Config::incluster()
            .context("this is not a pod with a service account; name a cluster with --kubeconfig FILE"),
    }
}

/// A client of the same.
pub(crate) async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    Ok(Client::try_from(config(kubeconfig).await?)?)
}
