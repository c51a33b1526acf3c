use serde_json::{Value, json};

use super::*;
use crate::kinds::{self, BUILTIN};

fn widget(spec: Value) -> Schema {
    let version = json!({"schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}});
    Schema::from_crd_version(&version).expect("structural")
}

fn messages(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn builtin(kind: &str) -> &'static Schema {
    kinds::builtin(kind).row.schema.expect("a schema").get()
}

#[test]
fn every_builtin_kind_has_a_schema_with_metadata() {
    for kind in BUILTIN.iter() {
        let schema = kind.row.schema.unwrap_or_else(|| panic!("{} has no schema", kind.kind)).get();
        assert!(schema.root().fields.contains_key("metadata"), "{}", kind.kind);
    }
}

#[test]
fn builtin_objects_lose_unknown_fields_and_nulls_and_get_canonical_quantities() {
    let mut claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "a", "creationTimestamp": null, "labels": {"any": "thing"}, "colour": 1},
        "spec": {
            "foo": 1, "volumeName": null, "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1024Mi", "any": 5}},
        },
    });
    let unknown = builtin("PersistentVolumeClaim").prune(&mut claim);
    assert_eq!(unknown, [r#"unknown field "metadata.colour""#, r#"unknown field "spec.foo""#]);
    assert_eq!(
        claim,
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "a", "labels": {"any": "thing"}},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi", "any": "5"}},
            },
        })
    );
    let mut pod = json!({"spec": {"containers": [{"name": "a", "imagee": "b"}]}});
    assert_eq!(builtin("Pod").prune(&mut pod), [r#"unknown field "spec.containers[0].imagee""#]);
}

#[test]
fn a_schema_inside_a_custom_resource_definition_is_pruned_too() {
    let mut definition = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {
        "type": "object",
        "properties": {"a": {"type": "object", "additionalProperties": {"type": "string", "foo": 1}, "default": {"x": 1}}},
        "additionalProperties": true,
    }}}]}});
    let unknown = builtin("CustomResourceDefinition").prune(&mut definition);
    assert_eq!(unknown.len(), 1, "{unknown:?}");
    assert!(unknown[0].ends_with(r#"openAPIV3Schema.properties.a.additionalProperties.foo""#), "{unknown:?}");
}

#[test]
fn builtin_types_are_checked() {
    let cases = [
        (
            "Pod",
            json!({"spec": {"terminationGracePeriodSeconds": "soon"}}),
            r#"spec.terminationGracePeriodSeconds: Invalid value: "string": spec.terminationGracePeriodSeconds in body must be of type integer: "string""#,
        ),
        (
            "PersistentVolumeClaim",
            json!({"spec": {"accessModes": "ReadWriteOnce"}}),
            r#"spec.accessModes: Invalid value: "string": spec.accessModes in body must be of type array: "string""#,
        ),
        (
            "PersistentVolumeClaim",
            json!({"spec": {"resources": {"requests": {"storage": "ten"}}}}),
            r#"spec.resources.requests.storage: Invalid value: "ten": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"#,
        ),
        (
            "Secret",
            json!({"data": {"a": "%%"}}),
            r#"data.a: Invalid value: "<redacted>": illegal base64 data"#,
        ),
    ];
    for (kind, object, expected) in cases {
        assert_eq!(messages(&builtin(kind).validate(&object)), [expected]);
    }
}

#[test]
fn custom_values_are_checked() {
    let cases = [
        (
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("c"),
            r#"spec: Unsupported value: "c": supported values: "a", "b""#,
        ),
        (
            json!({"type": "integer", "minimum": 1}),
            json!(0),
            "spec: Invalid value: 0: spec in body should be greater than or equal to 1",
        ),
        (
            json!({"type": "integer", "maximum": 5, "exclusiveMaximum": true}),
            json!(5),
            "spec: Invalid value: 5: spec in body should be less than 5",
        ),
        (
            json!({"type": "string", "pattern": "^[a-z]+$"}),
            json!("A"),
            r#"spec: Invalid value: "A": spec in body should match '^[a-z]+$'"#,
        ),
        (
            json!({"type": "string", "maxLength": 2}),
            json!("abc"),
            "spec: Too long: may not be more than 2 bytes",
        ),
        (
            json!({"type": "array", "maxItems": 1, "items": {"type": "string"}}),
            json!(["a", "b"]),
            "spec: Too many: 2: must have at most 1 items",
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}),
            json!(["a", "a"]),
            r#"spec[1]: Duplicate value: "a""#,
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
                "items": {"type": "object", "required": ["n"], "properties": {"n": {"type": "string"}}}}),
            json!([{"n": "a"}, {"n": "a"}]),
            r#"spec[1]: Duplicate value: {"n":"a"}"#,
        ),
        (
            json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}),
            json!({}),
            "spec.a: Required value",
        ),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!(true),
            r#"spec: Invalid value: "boolean": spec in body must be of type integer or string: "boolean""#,
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            json!({}),
            r#"spec: Invalid value: {}: "spec" must validate one and only one schema (oneOf). Found none valid"#,
        ),
    ];
    for (spec, value, expected) in cases {
        assert_eq!(messages(&widget(spec.clone()).validate(&json!({"spec": value}))), [expected], "{spec}");
    }
}

#[test]
fn custom_objects_are_pruned_and_defaulted() {
    let schema = widget(json!({
        "type": "object",
        "properties": {
            "size": {"type": "integer", "default": 3},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "nested": {"type": "object", "default": {}, "properties": {"a": {"type": "string", "default": "b"}}},
        },
    }));
    let mut object = json!({
        "apiVersion": "a/v1", "kind": "Widget", "metadata": {"name": "x", "creationTimestamp": null, "bad": 1},
        "spec": {"size": null, "free": {"any": {"thing": 1}}, "gone": 1},
    });
    assert_eq!(
        schema.prune(&mut object),
        [r#"unknown field "metadata.bad""#, r#"unknown field "spec.gone""#]
    );
    schema.apply_defaults(&mut object, 1000).expect("room");
    assert_eq!(
        object,
        json!({
            "apiVersion": "a/v1", "kind": "Widget", "metadata": {"name": "x"},
            "spec": {"size": 3, "free": {"any": {"thing": 1}}, "nested": {"a": "b"}},
        })
    );
    assert_eq!(messages(&schema.validate(&object)), Vec::<String>::new());
}

#[test]
fn schemas_that_are_not_structural_are_refused() {
    let cases = [
        (
            json!({}),
            "schema.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields",
        ),
        (
            json!({"type": "array"}),
            "schema.openAPIV3Schema.properties[spec].items: Required value: must be specified",
        ),
        (
            json!({"type": "object", "oneOf": [{"properties": {"a": {}}}]}),
            "schema.openAPIV3Schema.properties[spec].oneOf[0].properties[a]: Required value: must be specified outside of the junctor",
        ),
        (
            json!({"type": "array", "items": {}}),
            "schema.openAPIV3Schema.properties[spec].items.type: Required value: must not be empty for specified array items",
        ),
        (
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}]}),
            "schema.openAPIV3Schema.properties[spec].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            json!({"x-kubernetes-int-or-string": true, "x-kubernetes-preserve-unknown-fields": true}),
            "schema.openAPIV3Schema.properties[spec].x-kubernetes-preserve-unknown-fields: Invalid value: true: must be false if x-kubernetes-int-or-string is true",
        ),
        (
            json!({"x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
            "schema.openAPIV3Schema.properties[spec].type: Required value: must be object if x-kubernetes-embedded-resource is true",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            "schema.openAPIV3Schema.properties[spec].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
        ),
    ];
    for (spec, expected) in cases {
        let version =
            json!({"schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}});
        assert_eq!(messages(&Schema::from_crd_version(&version).unwrap_err()), [expected]);
    }
}

#[test]
fn defaults_are_bounded_while_they_are_filled_in() {
    let schema = widget(json!({"type": "array", "items": {"type": "object", "properties": {
        "text": {"type": "string", "default": "x".repeat(1000)}}}}));
    let mut object = json!({"spec": vec![json!({}); 1000]});
    assert_eq!(schema.apply_defaults(&mut object, 100_000), Err(TooLarge(100_000)));
    assert!(crate::bounds::size(&object) < 110_000, "it stopped there");
}

/// Forms that generators write and the API server takes.
#[test]
fn schemas_that_are_structural_in_unusual_ways_are_taken() {
    let int_or_string = json!([{"type": "integer"}, {"type": "string"}]);
    for spec in [
        json!({"type": "string", "x-kubernetes-int-or-string": true}),
        json!({"type": "integer", "x-kubernetes-int-or-string": true, "anyOf": int_or_string}),
        json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": int_or_string}, {"pattern": "^[0-9]+$"}]}),
        // The pattern needs no extension beside it.
        json!({"type": "string", "anyOf": int_or_string}),
        json!({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}),
        json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": true}),
        json!({"type": "object", "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": {"type": "string"}},
            "not": {"required": ["a"], "description": "", "nullable": false, "default": null}}),
    ] {
        let version =
            json!({"schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}});
        let refused = Schema::from_crd_version(&version).map(|_| ()).map_err(|errors| messages(&errors));
        assert_eq!(refused, Ok(()), "{spec}");
    }
    let named_port = widget(json!({"type": "string", "x-kubernetes-int-or-string": true}));
    for (value, good) in [(json!(80), true), (json!("http"), true), (json!(true), false)] {
        assert_eq!(named_port.validate(&json!({"spec": value})).is_empty(), good, "{value}");
    }
}
