//! `orlop apply` and `orlop delete`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::Value;

use super::catalog::{Catalog, Resource};
use super::{Connection, JSON, send};

/// Arguments of `orlop apply`.
#[derive(Args)]
pub(crate) struct Apply {
    /// Manifest to apply, YAML or JSON, several documents allowed; - reads standard input.
    #[arg(short = 'f', long, value_name = "FILE")]
    filename: PathBuf,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of `orlop delete`.
#[derive(Args)]
pub(crate) struct Delete {
    /// Manifest whose objects to delete.
    #[arg(short = 'f', long, value_name = "FILE", conflicts_with = "kind", required_unless_present = "kind")]
    filename: Option<PathBuf>,
    /// Resource type of the object to delete.
    #[arg(requires = "name")]
    kind: Option<String>,
    /// Name of the object to delete.
    name: Option<String>,
    /// Seconds to wait until the objects are gone; 0 does not wait.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    #[command(flatten)]
    connection: Connection,
}

/// Creates what is missing and merges the manifest into what exists. Fields that an earlier manifest had
/// and this one has not are kept: kubectl's three-way merge needs kubectl.
pub(crate) async fn apply(arguments: Apply) -> anyhow::Result<()> {
    let documents = read(&arguments.filename)?;
    let client = arguments.connection.open().await?;
    let catalog = Catalog::load(&client).await?;
    for document in &documents {
        let target = Target::of(&catalog, document, &arguments.connection.namespace)?;
        let body = serde_json::to_vec(document)?;
        let existing = send(&client, "GET", &target.object(), (JSON, JSON), Vec::new()).await;
        let done = match existing {
            Ok(before) => {
                let path = format!("{}?fieldValidation=Strict", target.object());
                let after =
                    send(&client, "PATCH", &path, (JSON, "application/merge-patch+json"), body).await?;
                let same = before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"];
                if same { "unchanged" } else { "configured" }
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let path = format!("{}?fieldValidation=Strict", target.collection);
                send(&client, "POST", &path, (JSON, JSON), body).await?;
                "created"
            }
            Err(error) => return Err(error.into()),
        };
        println!("{} {done}", target.display);
    }
    Ok(())
}

/// Deletes objects and waits until they are gone.
pub(crate) async fn delete(arguments: Delete) -> anyhow::Result<()> {
    let client = arguments.connection.open().await?;
    let catalog = Catalog::load(&client).await?;
    let namespace = &arguments.connection.namespace;
    let targets = match (&arguments.filename, &arguments.kind, &arguments.name) {
        (Some(file), _, _) => {
            let documents = read(file)?;
            documents
                .iter()
                .rev()
                .map(|document| Target::of(&catalog, document, namespace))
                .collect::<Result<_, _>>()?
        }
        (None, Some(kind), Some(name)) => vec![Target::new(catalog.word(kind)?, namespace, name)],
        _ => bail!("name what to delete: `-f FILE`, or KIND NAME"),
    };
    for target in &targets {
        match send(&client, "DELETE", &target.object(), (JSON, JSON), Vec::new()).await {
            Ok(_) => println!("{} deleted", target.display),
            Err(kube::Error::Api(status)) if status.code == 404 && arguments.filename.is_some() => {
                println!("{} was not there", target.display);
            }
            Err(error) => return Err(error.into()),
        }
    }
    if arguments.timeout == 0 {
        return Ok(());
    }
    let all = futures::future::try_join_all(targets.iter().map(|target| gone(&client, target)));
    match tokio::time::timeout(Duration::from_secs(arguments.timeout), all).await {
        Ok(done) => done.map(drop),
        Err(_) => bail!(
            "not all objects are gone after {} s; `orlop get KIND NAME -o yaml` shows the finalizers that hold one",
            arguments.timeout
        ),
    }
}

/// Waits until the object is gone (another object of the same name counts as gone).
async fn gone(client: &kube::Client, target: &Target) -> anyhow::Result<()> {
    loop {
        let before = match send(client, "GET", &target.object(), (JSON, JSON), Vec::new()).await {
            Ok(object) if object["metadata"]["deletionTimestamp"].is_null() => return Ok(()),
            Ok(object) => object,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let version = before["metadata"]["resourceVersion"].as_str().unwrap_or("0");
        let path = format!(
            "{}?watch=true&resourceVersion={version}&fieldSelector=metadata.name%3D{}",
            target.collection, target.name
        );
        let mut lines = client.request_stream(http::Request::get(&path).body(Vec::new())?).await?.lines();
        while let Some(line) = lines.next().await {
            let event: Value = serde_json::from_str(&line?)?;
            if event["type"] == "DELETED" {
                return Ok(());
            }
        }
    }
}

/// One object to write, and how to speak of it.
struct Target {
    collection: String,
    name: String,
    display: String,
}

impl Target {
    fn new(resource: &Resource, namespace: &str, name: &str) -> Target {
        Target {
            collection: resource.path(namespace),
            name: name.to_owned(),
            display: resource.display(name),
        }
    }

    fn of(catalog: &Catalog, document: &Value, namespace: &str) -> anyhow::Result<Target> {
        let text = |value: &Value, what: &str| {
            value.as_str().map(str::to_owned).with_context(|| format!("the manifest has no {what}; add it"))
        };
        let kind = text(&document["kind"], "kind")?;
        let name = text(&document["metadata"]["name"], "metadata.name")?;
        let resource = catalog.manifest(&text(&document["apiVersion"], "apiVersion")?, &kind)?;
        let namespace = document["metadata"]["namespace"].as_str().unwrap_or(namespace);
        Ok(Target::new(resource, namespace, &name))
    }

    fn object(&self) -> String {
        format!("{}/{}", self.collection, self.name)
    }
}

/// The documents of a manifest; lists are unfolded.
fn read(path: &Path) -> anyhow::Result<Vec<Value>> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
        text
    } else {
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?
    };
    parse(&text).with_context(|| format!("{} is not a valid manifest", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let unfolded = documents.into_iter().flat_map(|document| match document["items"].as_array() {
        Some(items) if document["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) => items.clone(),
        _ => vec![document],
    });
    let documents: Vec<Value> = unfolded.filter(|document| !document.is_null()).collect();
    if documents.is_empty() {
        bail!("it holds no object");
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_unfolded() {
        let text = "kind: A\nx: 1\n---\nkind: List\nitems:\n- kind: B\n- kind: C\n---\n";
        let kinds: Vec<String> =
            parse(text).unwrap().iter().map(|d| d["kind"].as_str().unwrap().to_owned()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
    }

    #[test]
    fn an_empty_or_broken_manifest_is_refused() {
        for text in ["", "---\n", "kind: ["] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
