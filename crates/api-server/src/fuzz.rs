//! What clients send, mangled: bodies, patches, selectors and paths are understood or refused, without a panic, and what
//! is taken can be read again.

use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::Value;
use uuid::Uuid;

use crate::body::Payload;
use crate::catalog::Served;
use crate::change::{self, Outcome, Part};
use crate::error::ApiError;
use crate::kinds::BUILTIN;
use crate::patch::Patch;
use crate::request::{FieldValidation, Query, parse_path};
use crate::schema::Schema;
use crate::selector::Selection;
use crate::table::{self, IncludeObject, json_path::JsonPath};
use crate::verbs::delete::{self, DeleteOptions};
use crate::{bounds, object, protobuf};

fn corpus_of(kind: &str) -> Vec<Vec<u8>> {
    corpus::files(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(kind))
}

fn served(kind: &str) -> Option<Served> {
    BUILTIN.iter().find(|row| row.kind == kind).map(|row| Served::new(row.clone(), None))
}

fn payload(media_type: &str, bytes: Vec<u8>) -> Payload {
    Payload { media_type: media_type.to_owned(), bytes: Bytes::from(bytes) }
}

/// The object as it would be stored, if it were taken as a new one.
fn created(mut new: Value) -> Result<(Served, Value), ApiError> {
    let kind = new["kind"].as_str().unwrap_or("ConfigMap").to_owned();
    let served = served(&kind).ok_or(ApiError::UnknownPath)?;
    change::admit_fields(&served, &mut new, Vec::new(), FieldValidation::Warn)?;
    object::metadata_mut(&mut new).remove("resourceVersion");
    change::begin(&served, &mut new, "default", Uuid::nil(), Timestamp::UNIX_EPOCH)?;
    change::check_new(&served, &new)?;
    Ok((served, new))
}

/// What is stored can be read, shown, changed and deleted.
fn sound(served: &Served, object: &Value) -> Result<(), TestCaseError> {
    let bytes = object::encode_at(object, 7);
    prop_assert!(bounds::depth(object) <= bounds::DEEPEST);
    let back = object::decode(&bytes);
    prop_assert!(back.is_ok(), "{:?}", back);
    let back = back.unwrap_or_default();
    let columns = None;
    let _ = table::render(
        &served.kind,
        std::slice::from_ref(&back),
        columns,
        IncludeObject::Metadata,
        clock::now(),
    );
    let same = change::replace(served, Part::Main, &back, back.clone());
    prop_assert!(same.is_ok(), "{:?} of {}", same, back);
    prop_assert!(delete::plan(served, &back, &DeleteOptions::default(), Timestamp::UNIX_EPOCH).is_ok());
    Ok(())
}

/// A pod as it is stored.
fn pod() -> (Served, Value) {
    let seed = corpus_of("bodies")
        .into_iter()
        .find(|bytes| bytes.windows(12).any(|part| part == b"\"kind\":\"Pod\""));
    let pod = serde_json::from_slice(&seed.expect("a pod")).expect("JSON");
    let (served, pod) = created(pod).expect("a good pod");
    let stored = object::decode(&object::encode_at(&pod, 7)).expect("its own");
    (served, stored)
}

proptest! {
    #![proptest_config(corpus::cases(1_000))]

    #[test]
    fn bodies_are_refused_or_can_be_read_again(bytes in corpus::near(corpus_of("bodies")), yaml in any::<bool>()) {
        let media = if yaml { "application/yaml" } else { "application/json" };
        if let Ok((value, _)) = payload(media, bytes.clone()).value()
            && let Ok((served, object)) = created(value)
        {
            sound(&served, &object)?;
        }
        let _ = protobuf::decode(&[b"k8s\0", &bytes[..]].concat());
    }

    #[test]
    fn patches_are_refused_or_make_what_can_be_read_again(bytes in corpus::near(corpus_of("patches"))) {
        let (served, old) = pod();
        for media in ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"] {
            let Ok((patch, _)) = Patch::parse(&payload(media, bytes.clone()), false) else { continue };
            let Ok(mut new) = patch.apply(&served.kind, &old) else { continue };
            for part in [Part::Main, Part::Status] {
                let admitted = change::admit_fields(&served, &mut new, Vec::new(), FieldValidation::Ignore);
                if admitted.is_err() {
                    continue;
                }
                if let Ok(Outcome::Put(stored)) = change::replace(&served, part, &old, new.clone()) {
                    sound(&served, &stored)?;
                }
            }
        }
    }

    #[test]
    fn selectors_paths_and_options_are_refused_or_understood(bytes in corpus::near(corpus_of("selectors"))) {
        let text = String::from_utf8_lossy(&bytes);
        let (served, pod) = pod();
        let stored = pod.to_string();
        if let Ok(selection) = Selection::parse(&served.kind, &text, "", &[]) {
            let _ = selection.matches(&crate::seen::Facts::of(&stored.clone().into()));
        }
        if let Ok(selection) = Selection::parse(&served.kind, "", &text, &[]) {
            let _ = selection.matches(&crate::seen::Facts::of(&stored.clone().into()));
            let _ = selection.name();
        }
        // Whatever is stored, a selector looks at it.
        let everything = Selection::parse(&served.kind, "a in (b),!c", "spec.nodeName=n", &[]).expect("good");
        let _ = everything.matches(&crate::seen::Facts::of(&bytes.clone().into()));
        let (path, query) = text.split_once('?').unwrap_or((&*text, ""));
        let _ = (parse_path(path), Query::parse(query, &http::Method::GET));
        if let Ok(path) = JsonPath::parse(&text) {
            let _ = path.first(&pod);
        }
    }

    #[test]
    fn schemas_are_refused_or_hold_for_any_object(
        definition in corpus::near(corpus_of("bodies")),
        bytes in corpus::near(corpus_of("bodies")),
    ) {
        let (Ok((definition, _)), Ok((mut value, _))) = (
            payload("application/json", definition).value(),
            payload("application/json", bytes).value(),
        ) else { return Ok(()) };
        for version in definition["spec"]["versions"].as_array().into_iter().flatten() {
            let Ok(schema) = Schema::from_crd_version(version) else { continue };
            let _ = schema.prune(&mut value);
            let filled = schema.apply_defaults(&mut value, bounds::LARGEST);
            let _ = schema.validate(&value);
            // What was filled in is complete, and known.
            if filled.is_ok() {
                let before = value.clone();
                prop_assert!(schema.apply_defaults(&mut value, bounds::LARGEST).is_ok());
                prop_assert_eq!(&value, &before);
            }
        }
    }
}
