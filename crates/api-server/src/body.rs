//! Request bodies: bounded, JSON or YAML (and protobuf, as far as kubectl sends it).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use crate::bounds::{self, DEEPEST};
use crate::error::ApiError;
use crate::path::Path;
use crate::protobuf;

/// The largest request body, in bytes; Kubernetes' own limit.
pub(crate) const MAX_BODY: usize = 3 << 20;

/// A body with its media type, `application/json` if the client said nothing.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

/// Reads the whole body.
pub(crate) async fn collect<B>(headers: &HeaderMap, body: B) -> Result<Payload, ApiError>
where
    B: Body<Data = Bytes> + Send,
{
    let declared = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media_type = declared.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    // `Limited` wants errors that it can box; what exactly broke the connection tells nobody anything.
    let body = body.map_err(|_| std::io::Error::other("the request body broke off"));
    let bytes = match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(ApiError::RequestTooLarge(MAX_BODY)),
        Err(error) => return Err(ApiError::BadRequest(error.to_string())),
    };
    let media_type = if media_type.is_empty() { "application/json".into() } else { media_type };
    Ok(Payload { media_type, bytes })
}

/// How much of a body that nobody wanted is taken from its client, and for how long.
const DRAINED: usize = 2 * MAX_BODY;
const DRAINING: Duration = Duration::from_secs(5);

/// Takes what is left of a body, so that a client that is still sending it gets the answer and not a broken connection.
pub(crate) async fn drain<B>(headers: &HeaderMap, body: &mut B)
where
    B: Body<Data = Bytes> + Send + Unpin,
{
    // Whoever waits to be asked for the body has not begun to send it.
    if body.is_end_stream() || headers.contains_key(header::EXPECT) {
        return;
    }
    let mut left = DRAINED;
    let drained = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // The answer is given in any case.
    let _ = tokio::time::timeout(DRAINING, drained).await;
}

impl Payload {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.iter().all(u8::is_ascii_whitespace)
    }

    /// The body as a value, with the paths of fields that occur twice.
    pub(crate) fn value(&self) -> Result<(Value, Vec<String>), ApiError> {
        let (value, duplicates) = self.decoded()?;
        check_depth(&value)?;
        Ok((value, duplicates))
    }

    fn decoded(&self) -> Result<(Value, Vec<String>), ApiError> {
        match self.media_type.as_str() {
            "application/json" => json(&self.bytes),
            "application/yaml" | "application/x-yaml" | "text/yaml" => {
                let text = std::str::from_utf8(&self.bytes)
                    .map_err(|error| ApiError::BadRequest(format!("the body is not UTF-8: {error}")))?;
                let value = serde_saphyr::from_str(text)
                    .map_err(|error| ApiError::BadRequest(format!("error parsing YAML: {error}")))?;
                Ok((value, Vec::new()))
            }
            protobuf::MEDIA_TYPE => Ok((protobuf::decode(&self.bytes)?, Vec::new())),
            _ => Err(unsupported("application/json, application/yaml")),
        }
    }
}

/// Refuses a body that is nested too deeply.
fn check_depth(value: &Value) -> Result<(), ApiError> {
    match bounds::depth(value) {
        deep if deep > DEEPEST => Err(ApiError::BadRequest(format!(
            "error decoding the body: it is nested {deep} levels deep, at most {DEEPEST} are allowed"
        ))),
        _ => Ok(()),
    }
}

pub(crate) fn unsupported(accepted: &str) -> ApiError {
    ApiError::UnsupportedMediaType(format!(
        "the body of the request was in an unknown format - accepted media types include: {accepted}"
    ))
}

/// JSON, and the duplicate fields in it in Kubernetes' wording.
pub(crate) fn json(bytes: &[u8]) -> Result<(Value, Vec<String>), ApiError> {
    let mut duplicates = Vec::new();
    let mut input = serde_json::Deserializer::from_slice(bytes);
    let seed = strict::Node { path: &Path::ROOT, duplicates: &mut duplicates };
    let value = serde::de::DeserializeSeed::deserialize(seed, &mut input)
        .and_then(|value| input.end().map(|()| value))
        .map_err(|error| ApiError::BadRequest(format!("error decoding the body as JSON: {error}")))?;
    Ok((value, duplicates))
}

/// Reading JSON without losing sight of fields that occur twice, which `Value` silently overwrites.
mod strict {
    use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
    use serde_json::{Map, Number, Value};

    use crate::path::Path;

    /// Kubernetes' number: more help nobody.
    const MOST_DUPLICATES: usize = 100;

    pub(super) struct Node<'a> {
        pub(super) path: &'a Path<'a>,
        pub(super) duplicates: &'a mut Vec<String>,
    }

    impl<'de> DeserializeSeed<'de> for Node<'_> {
        type Value = Value;
        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
            deserializer.deserialize_any(self)
        }
    }

    impl<'de> Visitor<'de> for Node<'_> {
        type Value = Value;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("JSON")
        }
        fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
            Ok(value.into())
        }
        fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
            Ok(value.into())
        }
        fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
            Ok(value.into())
        }
        fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
            Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
        }
        fn visit_str<E>(self, value: &str) -> Result<Value, E> {
            Ok(value.into())
        }
        fn visit_string<E>(self, value: String) -> Result<Value, E> {
            Ok(value.into())
        }
        fn visit_unit<E>(self) -> Result<Value, E> {
            Ok(Value::Null)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
            let mut list = Vec::new();
            loop {
                let path = &self.path.index(list.len());
                match items.next_element_seed(Node { path, duplicates: self.duplicates })? {
                    Some(item) => list.push(item),
                    None => return Ok(Value::Array(list)),
                }
            }
        }
        fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
            let mut object = Map::new();
            while let Some(key) = fields.next_key::<String>()? {
                let path = &self.path.field(&key);
                if object.contains_key(&key) && self.duplicates.len() < MOST_DUPLICATES {
                    self.duplicates.push(format!("duplicate field \"{path}\""));
                }
                let value = fields.next_value_seed(Node { path, duplicates: self.duplicates })?;
                object.insert(key, value);
            }
            Ok(Value::Object(object))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn duplicates_are_seen() {
        let (value, duplicates) = json(br#"{"a":1,"b":[{"c":1,"c":2}],"a":-1.5}"#).unwrap();
        assert_eq!(value, json!({"a": -1.5, "b": [{"c": 2}]}));
        assert_eq!(duplicates, ["duplicate field \"b[0].c\"", "duplicate field \"a\""]);
        assert!(json(b"{} x").is_err());
        assert!(json("[".repeat(100_000).as_bytes()).is_err(), "depth is bounded");
    }

    #[test]
    fn yaml_is_read_too() {
        let payload = Payload { media_type: "application/yaml".into(), bytes: "a: {b: [1, x]}\n".into() };
        assert_eq!(payload.value().unwrap().0, json!({"a": {"b": [1, "x"]}}));
        let deep = ["[".repeat(100_000), "{a: ".repeat(100_000), "- ".repeat(100_000)];
        let laughs = (1..30).fold("a0: &a0 [x, x]\n".to_owned(), |text, at| {
            text + &format!("a{at}: &a{at} [*a{0}, *a{0}, *a{0}, *a{0}]\n", at - 1)
        });
        for bad in deep.into_iter().chain([laughs]) {
            let payload = Payload { media_type: "application/yaml".into(), bytes: bad.into() };
            assert!(matches!(payload.value(), Err(ApiError::BadRequest(_))), "depth and aliases are bounded");
        }
        let other = Payload { media_type: "application/cbor".into(), bytes: "".into() };
        assert!(matches!(other.value(), Err(ApiError::UnsupportedMediaType(_))));
    }
}
