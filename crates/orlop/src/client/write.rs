//! `orlop apply` and `orlop delete`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::Value;

use super::catalog::{Catalog, Resource};
use super::{Connection, JSON, escape, send};

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
///
/// # Errors
/// That some objects were refused, each of which has been told by then; all others are applied.
pub(crate) async fn apply(arguments: Apply) -> anyhow::Result<()> {
    let documents = read(&arguments.filename)?;
    let client = arguments.connection.open().await?;
    let catalog = Catalog::load(&client).await?;
    let mut refused = Refused::default();
    for document in &documents {
        match apply_one(&client, &catalog, document, &arguments.connection.namespace).await {
            Ok(done) => println!("{done}"),
            Err(error) => refused.tell(&error),
        }
    }
    refused.end(documents.len(), "applied")
}

async fn apply_one(
    client: &kube::Client,
    catalog: &Catalog,
    document: &Value,
    namespace: &str,
) -> anyhow::Result<String> {
    let target = Target::of(catalog, document, namespace)?;
    let body = serde_json::to_vec(document)?;
    let existing = send(client, "GET", &target.object(), (JSON, JSON), Vec::new()).await;
    let done = match existing {
        Ok(before) => {
            let path = format!("{}?fieldValidation=Strict", target.object());
            let after = send(client, "PATCH", &path, (JSON, "application/merge-patch+json"), body).await?;
            let same = before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"];
            if same { "unchanged" } else { "configured" }
        }
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let path = format!("{}?fieldValidation=Strict", target.collection);
            send(client, "POST", &path, (JSON, JSON), body).await?;
            "created"
        }
        Err(error) => return Err(error.into()),
    };
    Ok(format!("{} {done}", target.display))
}

/// How many objects were refused: the others are dealt with all the same.
#[derive(Default)]
struct Refused(usize);

impl Refused {
    fn tell(&mut self, error: &anyhow::Error) {
        self.0 += 1;
        eprintln!("error: {}", runtime::explain(error.as_ref()));
    }

    fn end(self, of: usize, done: &str) -> anyhow::Result<()> {
        match self.0 {
            0 => Ok(()),
            refused => bail!("{refused} of {of} objects could not be {done}; what is wrong stands above"),
        }
    }
}

/// Deletes objects and waits until they are gone.
///
/// # Errors
/// That some objects were refused, each of which has been told by then, or that some did not go in time.
pub(crate) async fn delete(arguments: Delete) -> anyhow::Result<()> {
    let client = arguments.connection.open().await?;
    let catalog = Catalog::load(&client).await?;
    let namespace = &arguments.connection.namespace;
    let wanted: Vec<anyhow::Result<Target>> = match (&arguments.filename, &arguments.kind, &arguments.name) {
        (Some(file), _, _) => {
            let documents = read(file)?;
            documents.iter().rev().map(|document| Target::of(&catalog, document, namespace)).collect()
        }
        (None, Some(kind), Some(name)) => vec![Ok(Target::new(catalog.word(kind)?, namespace, name))],
        (None, Some(kind), None) if kind.contains('/') => {
            let (kind, name) = kind.split_once('/').unwrap_or_default();
            vec![Ok(Target::new(catalog.word(kind)?, namespace, name))]
        }
        _ => bail!("name what to delete: `-f FILE`, KIND NAME, or KIND/NAME"),
    };
    let (count, mut refused, mut going) = (wanted.len(), Refused::default(), Vec::new());
    for target in wanted {
        let deleted = match &target {
            Ok(target) => match send(&client, "DELETE", &target.object(), (JSON, JSON), Vec::new()).await {
                Err(kube::Error::Api(status)) if status.code == 404 && arguments.filename.is_some() => {
                    Ok("was not there")
                }
                result => result.map(|_| "deleted").map_err(anyhow::Error::from),
            },
            Err(_) => Ok(""),
        };
        match (target, deleted) {
            (Ok(target), Ok(done)) => {
                println!("{} {done}", target.display);
                going.push(target);
            }
            (Err(error), _) | (_, Err(error)) => refused.tell(&error),
        }
    }
    if arguments.timeout > 0 {
        let all = futures::future::try_join_all(going.iter().map(|target| gone(&client, target)));
        match tokio::time::timeout(Duration::from_secs(arguments.timeout), all).await {
            Ok(done) => drop(done?),
            Err(_) => bail!(
                "not all objects are gone after {} s; `orlop get KIND NAME -o yaml` shows the finalizers that hold one",
                arguments.timeout
            ),
        }
    }
    refused.end(count, "deleted")
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
            target.collection,
            escape(&target.name)
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
        format!("{}/{}", self.collection, escape(&self.name))
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

/// YAML documents, or JSON ones, one after the other.
fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    let json = || serde_json::Deserializer::from_str(text).into_iter().collect::<Result<Vec<Value>, _>>();
    // YAML takes most JSON, but not several documents without a line between them.
    let documents = match text.trim_start().starts_with('{').then(json) {
        Some(Ok(documents)) => documents,
        _ => serde_saphyr::from_multiple(text)?,
    };
    let unfolded = documents.into_iter().flat_map(super::unfold);
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
    fn json_streams_and_typed_lists_are_read() {
        let claims = r#"{"apiVersion": "v1", "kind": "PersistentVolumeClaimList", "items": [{"metadata": {"name": "a"}},
            {"metadata": {"name": "b"}, "kind": "PersistentVolumeClaim"}]}"#;
        let yaml = r#"{"kind": "A"}
---
{kind: B}"#;
        for (text, expected) in [
            (
                format!("{}{claims}", r#"{"kind": "Pod"}"#),
                vec!["Pod", "PersistentVolumeClaim", "PersistentVolumeClaim"],
            ),
            (yaml.to_owned(), vec!["A", "B"]),
            (r#"{"kind": "List", "items": [{"kind": "AList", "items": [{}]}]}"#.to_owned(), vec!["A"]),
        ] {
            let documents = parse(&text).unwrap();
            let kinds: Vec<&str> =
                documents.iter().filter_map(|document| document["kind"].as_str()).collect();
            assert_eq!(kinds, expected, "{text}");
        }
        assert_eq!(parse(claims).unwrap()[0]["apiVersion"], "v1");
    }

    #[test]
    fn an_empty_or_broken_manifest_is_refused() {
        for text in ["", "---\n", "kind: ["] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
