//! Files made from objects of the API: configMap, secret, downwardAPI and projected volumes.
//!
//! The content of a volume is computed here (pure), and written by [`super::atomic`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, DownwardAPIVolumeFile, KeyToPath, Pod, SecretProjection, Volume,
};

use crate::containers::environment::{Data, NodeFacts, Reference, field, resource};

/// A file of the volume: content and permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContentFile {
    pub(crate) content: Vec<u8>,
    pub(crate) mode: u32,
}

/// All files of a volume by relative path.
pub(crate) type Payload = BTreeMap<String, ContentFile>;

const DEFAULT_MODE: u32 = 0o644;

/// Content that can't be computed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ContentError {
    #[error("{kind} \"{name}\" not found")]
    MissingObject { kind: &'static str, name: String },
    #[error("references non-existent {kind} key: {key}")]
    MissingKey { kind: &'static str, key: String },
    #[error("invalid path \"{0}\": it must be relative, without \"..\", and at most 4096 bytes")]
    Path(String),
    #[error("{0} is not served yet")]
    Unserved(String),
}

/// The objects that the volume is made from.
pub(crate) fn references(volume: &Volume) -> Vec<Reference> {
    let mut found = Vec::new();
    found.extend(volume.config_map.as_ref().map(|of| Reference::ConfigMap(of.name.clone())));
    found.extend(volume.secret.as_ref().and_then(|of| of.secret_name.clone()).map(Reference::Secret));
    for source in volume.projected.iter().flat_map(|of| of.sources.iter().flatten()) {
        found.extend(source.config_map.as_ref().map(|of| Reference::ConfigMap(of.name.clone())));
        found.extend(source.secret.as_ref().map(|of| Reference::Secret(of.name.clone())));
    }
    found
}

/// The files of the volume.
pub(crate) fn payload(
    pod: &Pod,
    node: &NodeFacts,
    volume: &Volume,
    data: &Data,
) -> Result<Payload, ContentError> {
    let mut files = Payload::new();
    let mode = |mode: Option<i32>| mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(DEFAULT_MODE);
    if let Some(source) = &volume.config_map {
        let reference = Reference::ConfigMap(source.name.clone());
        let all = mode(source.default_mode);
        take(&mut files, data, reference, source.items.as_deref(), source.optional, all)?;
    } else if let Some(source) = &volume.secret {
        let reference = Reference::Secret(source.secret_name.clone().unwrap_or_default());
        let all = mode(source.default_mode);
        take(&mut files, data, reference, source.items.as_deref(), source.optional, all)?;
    } else if let Some(source) = &volume.downward_api {
        fields(&mut files, pod, node, source.items.as_deref(), mode(source.default_mode))?;
    } else if let Some(source) = &volume.projected {
        let all = mode(source.default_mode);
        for part in source.sources.iter().flatten() {
            if let Some(ConfigMapProjection { name, items, optional }) = &part.config_map {
                take(&mut files, data, Reference::ConfigMap(name.clone()), items.as_deref(), *optional, all)?;
            } else if let Some(SecretProjection { name, items, optional }) = &part.secret {
                take(&mut files, data, Reference::Secret(name.clone()), items.as_deref(), *optional, all)?;
            } else if let Some(downward) = &part.downward_api {
                fields(&mut files, pod, node, downward.items.as_deref(), all)?;
            } else {
                let kind = serde_json::to_value(part).ok();
                let kind = kind.and_then(|part| part.as_object()?.keys().next().cloned());
                let kind = kind.unwrap_or_else(|| "no source".into());
                return Err(ContentError::Unserved(format!("the source {kind} of a projected volume")));
            }
        }
    }
    match files.keys().find(|path| !allowed(path)) {
        Some(path) => Err(ContentError::Path(path.clone())),
        None => Ok(files),
    }
}

fn take(
    files: &mut Payload,
    data: &Data,
    reference: Reference,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
) -> Result<(), ContentError> {
    let optional = optional.unwrap_or(false);
    let (kind, name) = reference.parts();
    let Some(values) = data.get(&reference) else {
        return if optional { Ok(()) } else { Err(ContentError::MissingObject { kind, name: name.into() }) };
    };
    match items {
        None | Some([]) => files.extend(
            values.iter().map(|(key, value)| (key.clone(), ContentFile { content: value.clone(), mode })),
        ),
        Some(items) => {
            for item in items {
                let mode = item.mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(mode);
                match values.get(&item.key) {
                    Some(value) => {
                        files.insert(item.path.clone(), ContentFile { content: value.clone(), mode });
                    }
                    None if optional => {}
                    None => return Err(ContentError::MissingKey { kind, key: item.key.clone() }),
                }
            }
        }
    }
    Ok(())
}

fn fields(
    files: &mut Payload,
    pod: &Pod,
    node: &NodeFacts,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: u32,
) -> Result<(), ContentError> {
    for item in items.into_iter().flatten() {
        let mode = item.mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(mode);
        let path = item.field_ref.as_ref().map(|of| of.field_path.as_str());
        let amount = item.resource_field_ref.as_ref();
        let value = match (path, amount) {
            (None, Some(of)) => resource(pod, None, node, of),
            (path, _) => path.and_then(|path| field(pod, node, path)),
        };
        let value = value.ok_or_else(|| {
            let what = path.or(amount.map(|of| of.resource.as_str())).unwrap_or("empty item");
            ContentError::Unserved(format!("the downward API's {what}"))
        })?;
        files.insert(item.path.clone(), ContentFile { content: value.into_bytes(), mode });
    }
    Ok(())
}

/// Whether a path may be written below a volume's root; names with `..` in front belong to the writer.
fn allowed(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 4096
        && !path.starts_with("..")
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && part.len() <= 255)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(volume: serde_json::Value) -> Result<Vec<(String, String, u32)>, ContentError> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}}, "spec": {"containers": []}
        }))
        .unwrap();
        let node =
            NodeFacts { name: "node".into(), address: "127.0.0.1".into(), processors: 2, memory: 1 << 30 };
        let data = Data::from([
            (
                Reference::ConfigMap("cm".into()),
                BTreeMap::from([("a".into(), b"1".to_vec()), ("b".into(), b"2".to_vec())]),
            ),
            (Reference::Secret("s".into()), BTreeMap::from([("k".into(), b"3".to_vec())])),
        ]);
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let files = payload(&pod, &node, &volume, &data)?;
        Ok(files
            .into_iter()
            .map(|(path, file)| (path, String::from_utf8(file.content).unwrap(), file.mode))
            .collect())
    }

    #[test]
    fn files_follow_the_source() {
        let file = |path: &str, text: &str, mode| (path.to_owned(), text.to_owned(), mode);
        let cases = [
            (
                json!({"name": "v", "configMap": {"name": "cm"}}),
                Ok(vec![file("a", "1", 0o644), file("b", "2", 0o644)]),
            ),
            (
                json!({"name": "v", "configMap": {"name": "cm", "defaultMode": 0o400,
                       "items": [{"key": "b", "path": "x/y", "mode": 0o600}]}}),
                Ok(vec![file("x/y", "2", 0o600)]),
            ),
            (json!({"name": "v", "secret": {"secretName": "gone", "optional": true}}), Ok(vec![])),
            (
                json!({"name": "v", "secret": {"secretName": "gone"}}),
                Err(ContentError::MissingObject { kind: "secret", name: "gone".into() }),
            ),
            (
                json!({"name": "v", "secret": {"secretName": "s", "items": [{"key": "z", "path": "z"}]}}),
                Err(ContentError::MissingKey { kind: "secret", key: "z".into() }),
            ),
            (
                json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "a", "path": "../a"}]}}),
                Err(ContentError::Path("../a".into())),
            ),
            (
                json!({"name": "v", "downwardAPI": {"items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}),
                Ok(vec![file("labels", "a=\"b\"", 0o644)]),
            ),
            (
                json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}),
                Err(ContentError::Unserved("the source serviceAccountToken of a projected volume".into())),
            ),
            (
                json!({"name": "v", "projected": {"sources": [
                    {"configMap": {"name": "cm", "items": [{"key": "a", "path": "same"}]}},
                    {"secret": {"name": "s", "items": [{"key": "k", "path": "same"}]}}]}}),
                Ok(vec![file("same", "3", 0o644)]),
            ),
        ];
        for (volume, expected) in cases {
            assert_eq!(of(volume.clone()), expected, "{volume}");
        }
    }
}
