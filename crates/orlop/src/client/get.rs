//! `orlop get`: prints what the server renders.

use std::io::Write;

use anyhow::Context;
use clap::{Args, ValueEnum};
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::Value;

use super::catalog::Catalog;
use super::{Connection, JSON, send};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// Arguments of `orlop get`.
#[derive(Args)]
pub(crate) struct Get {
    /// Resource type: plural, singular or short name, for example pvc.
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
    let resource = catalog.word(&arguments.kind)?;
    let mut path = resource.path(&arguments.connection.namespace);
    if arguments.all_namespaces {
        path = path.replacen(&format!("/namespaces/{}", arguments.connection.namespace), "", 1);
    }
    let mut query = Vec::new();
    if let Some(selector) = &arguments.selector {
        query.push(format!("labelSelector={}", escape(selector)));
    }
    if arguments.watch {
        query.push("watch=true".to_owned());
        query.extend(
            arguments
                .name
                .as_ref()
                .map(|name| format!("fieldSelector={}", escape(&format!("metadata.name={name}")))),
        );
    } else if let Some(name) = &arguments.name {
        path = format!("{path}/{name}");
    }
    let path = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
    let accept = if matches!(arguments.output, Output::Table | Output::Wide) { TABLE } else { JSON };
    if arguments.watch {
        return watch(&client, &path, accept, arguments.output).await;
    }
    let answer = send(&client, "GET", &path, (accept, JSON), Vec::new()).await?;
    let mut out = std::io::stdout().lock();
    match arguments.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?,
        Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&answer)?)?,
        Output::Table | Output::Wide => {
            let text = Columns::of(&answer, arguments.output).render(&answer, true);
            match text.is_empty() {
                true => eprintln!("No resources found."),
                false => write!(out, "{text}")?,
            }
        }
    }
    Ok(())
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
            write!(out, "{}", columns.render(&event["object"], first))?;
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
    fn render(&self, table: &Value, heading: bool) -> String {
        let rows: Vec<Vec<String>> =
            table["rows"].as_array().into_iter().flatten().map(|row| self.cells(row)).collect();
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

    fn cells(&self, row: &Value) -> Vec<String> {
        let cell = |at: usize| match &row["cells"][at] {
            Value::String(text) => text.clone(),
            Value::Null => "<none>".to_owned(),
            other => other.to_string(),
        };
        self.0.iter().map(|(at, _)| cell(*at)).collect()
    }
}

fn pad(line: &[String], widths: &[usize]) -> String {
    let cells: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    format!("{}\n", cells.join("   ").trim_end())
}

/// Percent-encodes a query value.
fn escape(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|b| if keep(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
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
            Columns::of(&table, Output::Table).render(&table, true),
            "NAME     AGE\na        5s\nlonger   7\n"
        );
        assert_eq!(
            Columns::of(&table, Output::Wide).render(&table, false),
            "a        n1       5s\nlonger   <none>   7\n"
        );
    }

    #[test]
    fn selectors_are_escaped() {
        assert_eq!(escape("app in (a,b)"), "app%20in%20%28a%2Cb%29");
    }
}
