//! The small built-in client: `apply`, `get` and `delete` for machines without kubectl.
//!
//! It knows no kinds. Names come from the server's discovery, tables from the server's own rendering, and
//! every error is the server's `Status` message.

mod catalog;
mod get;
mod write;

use std::path::{Path, PathBuf};

use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};

pub(crate) use get::{Get, get};
pub(crate) use write::{Apply, Delete, apply, delete};

/// Which API server to talk to and in which namespace.
#[derive(Args)]
pub(crate) struct Connection {
    /// The kubeconfig that `orlop up` wrote.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
    /// Namespace of namespaced objects.
    #[arg(long, short, default_value = "default", global = true)]
    namespace: String,
}

impl Connection {
    async fn open(&self) -> anyhow::Result<kube::Client> {
        connect(self.kubeconfig.as_deref()).await
    }
}

/// A client by a kubeconfig; without one, by the usual places of one.
pub(crate) async fn connect(kubeconfig: Option<&Path>) -> anyhow::Result<kube::Client> {
    let kubeconfig = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    }
    .map_err(|error| {
        anyhow::anyhow!("{error}; name the file that `orlop up` printed with --kubeconfig or $KUBECONFIG")
    })?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

/// Sends one request and gives the answer's JSON; a `Status` failure becomes its message.
async fn send(
    client: &kube::Client,
    method: &str,
    path: &str,
    content: (&str, &str),
    body: Vec<u8>,
) -> Result<serde_json::Value, kube::Error> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::ACCEPT, content.0)
        .header(http::header::CONTENT_TYPE, content.1)
        .body(body)
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// The objects of a list, each with its type; anything else is itself. The items of a typed list, such as
/// `PersistentVolumeClaimList`, may leave their type out: the list's name says it.
fn unfold(document: serde_json::Value) -> Vec<serde_json::Value> {
    let of_items = document["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).map(str::to_owned);
    let (Some(kind), Some(items)) = (of_items, document["items"].as_array()) else { return vec![document] };
    let typed = |item: &serde_json::Value| {
        let mut item = item.clone();
        if !kind.is_empty() && item.is_object() {
            for (field, value) in [("apiVersion", &document["apiVersion"]), ("kind", &kind.as_str().into())] {
                if item[field].is_null() {
                    item[field] = value.clone();
                }
            }
        }
        item
    };
    items.iter().map(typed).flat_map(unfold).collect()
}

/// Percent-encodes a query value or a part of a path.
fn escape(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|b| if keep(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

const JSON: &str = "application/json";
