//! Plays one case against a server of its own.

use api_server::{ApiServer, InProcess, Options};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use object_store::Store;
use serde_json::{Value, json};
use tower::Service;

use crate::compare;

/// What a server answered.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) warnings: Vec<String>,
    pub(crate) text: String,
    /// `Null` when the body is no JSON.
    pub(crate) body: Value,
}

/// # Errors
/// The first difference.
pub(crate) async fn case(setup: &[Value], case: &Value) -> Result<(), String> {
    let api = ApiServer::start(Store::in_memory(), Options::default()).await.unwrap();
    let mut service = api.in_process("admin");
    for step in setup {
        let answer = send(&mut service, step, &[]).await;
        assert_eq!(answer.code, 201, "the setup fails: {}", answer.text);
    }
    let namespace = json!({"method": "POST", "path": "/api/v1/namespaces", "content_type": "application/json",
        "body": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": case["namespace"]}}});
    send(&mut service, &namespace, &[]).await;

    let mut answers: Vec<Value> = Vec::new();
    for (number, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        // The recorded server was run without admission of service accounts.
        if let Some(account) = step["body"]["spec"]["serviceAccountName"].as_str() {
            let path = format!("/api/v1/namespaces/{}/serviceaccounts", text(case, "namespace"));
            let account = json!({"method": "POST", "path": path, "content_type": "application/json",
                "body": {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}}});
            send(&mut service, &account, &[]).await;
        }
        let mut answer = send(&mut service, step, &answers).await;
        if let Some(code) = step["repeat_until_code"].as_u64() {
            for _ in 0..20 {
                if u64::from(answer.code) == code {
                    break;
                }
                tokio::task::yield_now().await;
                answer = send(&mut service, step, &answers).await;
            }
        }
        compare::answer(&step["answer"], &answer).map_err(|why| {
            format!("step {number} ({} {}): {why}", text(step, "method"), text(step, "path"))
        })?;
        answers.push(answer.body);
        if let Some(expected) = step.get("after") {
            let path = main_resource(text(step, "path"), step);
            let get = json!({"method": "GET", "path": path});
            let after = send(&mut service, &get, &answers).await;
            let found = if after.code == 404 { Value::Null } else { after.body };
            compare::object(expected, &found).map_err(|why| format!("after step {number}: {why}"))?;
        }
    }
    Ok(())
}

fn text<'a>(step: &'a Value, field: &str) -> &'a str {
    step[field].as_str().unwrap_or_default()
}

/// The path of the object itself, for a step that may be about a subresource or a new object.
fn main_resource(path: &str, step: &Value) -> String {
    let path = ["/status", "/scale", "/binding", "/eviction", "/finalize"]
        .iter()
        .find_map(|end| path.strip_suffix(end))
        .unwrap_or(path);
    match (text(step, "method"), step["body"]["metadata"]["name"].as_str()) {
        ("POST", Some(name)) if !path.ends_with(&format!("/{name}")) => format!("{path}/{name}"),
        _ => path.to_owned(),
    }
}

async fn send(service: &mut InProcess, step: &Value, answers: &[Value]) -> Answer {
    let mut uri = filled(text(step, "path"), answers);
    let query: Vec<String> = step["query"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            form_urlencoded::Serializer::new(String::new())
                .append_pair(name, &filled(&value, answers))
                .finish()
        })
        .collect();
    if !query.is_empty() {
        uri = format!("{uri}{}{}", if uri.contains('?') { "&" } else { "?" }, query.join("&"));
    }
    let mut request = http::Request::builder().method(text(step, "method")).uri(uri);
    let headers = step["headers"].as_object();
    if !headers.is_some_and(|headers| headers.keys().any(|name| name.eq_ignore_ascii_case("accept"))) {
        request = request.header("Accept", "application/json");
    }
    request = request.header("User-Agent", "casectl/1.0");
    for (name, value) in headers.into_iter().flatten() {
        match value {
            Value::Array(values) => {
                for value in values {
                    request = request.header(name, value.as_str().unwrap_or_default());
                }
            }
            value => request = request.header(name, value.as_str().unwrap_or_default()),
        }
    }
    if let Some(media_type) = step["content_type"].as_str() {
        request = request.header("Content-Type", media_type);
    }
    let body = if let Some(parts) = step["body_parts"].as_array() {
        let times = |part: &Value| usize::try_from(part[1].as_u64().unwrap()).unwrap();
        parts.iter().map(|part| part[0].as_str().unwrap().repeat(times(part))).collect()
    } else if let Some(body) = step["body_text"].as_str() {
        filled(body, answers)
    } else {
        match step.get("body") {
            Some(body) => filled(&body.to_string(), answers),
            None => String::new(),
        }
    };
    let request = request.body(Full::new(Bytes::from(body))).unwrap();
    let Ok(answer) = service.call(request).await;
    let (parts, body) = answer.into_parts();
    let Ok(body) = body.collect().await;
    let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    Answer {
        code: parts.status.as_u16(),
        warnings: parts
            .headers
            .get_all("warning")
            .iter()
            .filter_map(|value| warning(value.to_str().ok()?))
            .collect(),
        body: serde_json::from_str(&text).unwrap_or_default(),
        text,
    }
}

/// The text of `299 - "text"`.
fn warning(header: &str) -> Option<String> {
    let quoted = header.strip_prefix("299 - \"")?.strip_suffix('"')?;
    Some(quoted.replace("\\\"", "\"").replace("\\\\", "\\"))
}

/// A text with what earlier answers said in place of `{rv:N}`, `{uid:N}` and `{continue:N}`.
fn filled(text: &str, answers: &[Value]) -> String {
    let mut text = text.to_owned();
    for (number, answer) in answers.iter().enumerate() {
        for (word, field) in [("rv", "resourceVersion"), ("uid", "uid"), ("continue", "continue")] {
            if let Some(value) = answer["metadata"][field].as_str() {
                text = text.replace(&format!("{{{word}:{number}}}"), value);
            }
        }
    }
    text
}
