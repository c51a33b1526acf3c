//! `orlop get`: prints what the server renders.

use std::io::Write;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::Value;

use super::catalog::{Catalog, Resource};
use super::{Connection, JSON, escape, send};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// Arguments of `orlop get`.
#[derive(Args)]
pub(crate) struct Get {
    /// Resource types: plural, singular or short names or a category, for example pvc, pvc,pv or all; or KIND/NAME.
    kind: String,
    /// Name of one object; all objects when absent.
    name: Option<String>,
    /// Objects of all namespaces.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Only objects whose labels match, for example app=db.
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    selector: Option<String>,
    /// How to print.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Keep printing changes: one table row, or one JSON watch event, per line.
    #[arg(long, short)]
    watch: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Wide,
    Json,
    Yaml,
}

/// Lists or watches, and prints to standard output.
pub(crate) async fn get(arguments: Get) -> anyhow::Result<()> {
    let client = arguments.connection.open().await?;
    let catalog = Catalog::load(&client).await?;
    let (words, name) = match (arguments.kind.split_once('/'), &arguments.name) {
        (Some((word, name)), None) => (word, Some(name)),
        (Some(_), Some(_)) => bail!("name an object as KIND/NAME or as KIND NAME, not both"),
        (None, name) => (arguments.kind.as_str(), name.as_deref()),
    };
    let resources = catalog.words(words)?;
    let table = matches!(arguments.output, Output::Table | Output::Wide);
    let accept = if table { TABLE } else { JSON };
    if arguments.watch {
        let [resource] = resources[..] else { bail!("only one kind can be watched at a time; name one") };
        return watch(&client, &arguments.path(resource, name), accept, arguments.output).await;
    }
    let mut answers = Vec::new();
    for resource in &resources {
        answers
            .push(send(&client, "GET", &arguments.path(resource, name), (accept, JSON), Vec::new()).await?);
    }
    let mut out = std::io::stdout().lock();
    match arguments.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&joined(answers))?)?,
        Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&joined(answers))?)?,
        Output::Table | Output::Wide => {
            let tables = resources.iter().zip(&answers).map(|(resource, answer)| {
                let prefix = if resources.len() > 1 { resource.display("") } else { String::new() };
                Columns::of(answer, arguments.output).render(answer, true, &prefix)
            });
            let tables: Vec<String> = tables.filter(|text| !text.is_empty()).collect();
            match tables.is_empty() {
                true => eprintln!("No resources found."),
                false => write!(out, "{}", tables.join("\n"))?,
            }
        }
    }
    Ok(())
}

impl Get {
    /// What to ask of the server for one kind.
    fn path(&self, resource: &Resource, name: Option<&str>) -> String {
        let namespace = &self.connection.namespace;
        let mut path = resource.path(namespace);
        if self.all_namespaces {
            path = path.replacen(&format!("/namespaces/{namespace}"), "", 1);
        }
        let mut query = Vec::new();
        if let Some(selector) = &self.selector {
            query.push(format!("labelSelector={}", escape(selector)));
        }
        match name {
            Some(name) if self.watch => {
                query.push(format!("fieldSelector={}", escape(&format!("metadata.name={name}"))));
            }
            Some(name) => path = format!("{path}/{}", escape(name)),
            None => {}
        }
        if self.watch {
            query.push("watch=true".to_owned());
        }
        if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
    }
}

/// Several answers as one list; a single answer as it is. The items of a typed list get the type that it stands for.
fn joined(mut answers: Vec<Value>) -> Value {
    if answers.len() == 1 {
        return answers.remove(0);
    }
    let items: Vec<Value> = answers.into_iter().flat_map(super::unfold).collect();
    serde_json::json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
}

async fn watch(client: &kube::Client, path: &str, accept: &str, output: Output) -> anyhow::Result<()> {
    let request = http::Request::get(path).header(http::header::ACCEPT, accept).body(Vec::new())?;
    let mut lines = client.request_stream(request).await?.lines();
    let mut columns = None;
    while let Some(line) = lines.next().await {
        let line = line.context("the watch was cut off")?;
        let mut out = std::io::stdout().lock();
        if matches!(output, Output::Json | Output::Yaml) {
            writeln!(out, "{line}")?;
        } else {
            let event: Value = serde_json::from_str(&line)?;
            let first = columns.is_none();
            let columns = columns.get_or_insert_with(|| Columns::of(&event["object"], output));
            write!(out, "{}", columns.render(&event["object"], first, ""))?;
        }
        out.flush()?;
    }
    Ok(())
}

/// The columns to show of a server-rendered table: their places and headings.
struct Columns(Vec<(usize, String)>);

impl Columns {
    fn of(table: &Value, output: Output) -> Columns {
        let definitions = table["columnDefinitions"].as_array().into_iter().flatten().enumerate();
        let shown = definitions
            .filter(|(_, column)| output == Output::Wide || column["priority"].as_i64().unwrap_or(0) == 0);
        Columns(
            shown.map(|(at, column)| (at, column["name"].as_str().unwrap_or("").to_uppercase())).collect(),
        )
    }

    /// Rows padded to the widest cell of each column, three blanks apart; nothing for a table without rows.
    /// `prefix` is put before each name, which is the first cell.
    fn render(&self, table: &Value, heading: bool, prefix: &str) -> String {
        let rows: Vec<Vec<String>> =
            table["rows"].as_array().into_iter().flatten().map(|row| self.cells(row, prefix)).collect();
        if rows.is_empty() {
            return String::new();
        }
        let headings = heading.then(|| self.0.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>());
        let lines: Vec<Vec<String>> = headings.into_iter().chain(rows).collect();
        let widths: Vec<usize> = (0..self.0.len())
            .map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0))
            .collect();
        lines.iter().map(|line| pad(line, &widths)).collect()
    }

    fn cells(&self, row: &Value, prefix: &str) -> Vec<String> {
        let cell = |at: usize| match &row["cells"][at] {
            Value::String(text) => text.clone(),
            Value::Null => "<none>".to_owned(),
            other => other.to_string(),
        };
        let prefix_of = |at: usize| if at == 0 { prefix } else { "" };
        self.0.iter().map(|(at, _)| format!("{}{}", prefix_of(*at), cell(*at))).collect()
    }
}

fn pad(line: &[String], widths: &[usize]) -> String {
    let cells: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    format!("{}\n", cells.join("   ").trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_wide_columns_only_when_asked() {
        let table = serde_json::json!({
            "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Node", "priority": 1}, {"name": "Age"}],
            "rows": [{"cells": ["a", "n1", "5s"]}, {"cells": ["longer", null, 7]}],
        });
        assert_eq!(
            Columns::of(&table, Output::Table).render(&table, true, ""),
            "NAME     AGE\na        5s\nlonger   7\n"
        );
        assert_eq!(
            Columns::of(&table, Output::Wide).render(&table, false, "pod/"),
            "pod/a        n1       5s\npod/longer   <none>   7\n"
        );
    }

    #[test]
    fn selectors_are_escaped() {
        assert_eq!(escape("app in (a,b)"), "app%20in%20%28a%2Cb%29");
    }
}
