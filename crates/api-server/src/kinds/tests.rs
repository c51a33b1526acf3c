use serde_json::{Value, json};

use super::*;

fn kind(name: &str) -> &'static Kind {
    BUILTIN.iter().find(|kind| kind.kind == name).expect("a built-in kind")
}

/// `base` with the changes of a merge patch.
fn with(base: &Value, patch: Value) -> Value {
    let mut object = base.clone();
    json_patch::merge(&mut object, &patch);
    object
}

fn claim() -> Value {
    json!({
        "metadata": {"name": "c", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    })
}

fn volume() -> Value {
    json!({
        "metadata": {"name": "v"},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "csi": {"driver": "orlop.dev", "volumeHandle": "h"}},
    })
}

fn class() -> Value {
    json!({"metadata": {"name": "s"}, "provisioner": "orlop.dev"})
}

fn pod() -> Value {
    json!({
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {
            "containers": [{"name": "c", "image": "host", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}],
        },
    })
}

fn stateful_set() -> Value {
    json!({
        "metadata": {"name": "db", "namespace": "default"},
        "spec": {
            "serviceName": "db",
            "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [
                    {"name": "c", "image": "host", "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
                ]},
            },
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim()["spec"]}],
        },
    })
}

fn service() -> Value {
    json!({
        "metadata": {"name": "db", "namespace": "default"},
        "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 5432}]},
    })
}

fn driver() -> Value {
    json!({"metadata": {"name": "orlop.dev"}, "spec": {}})
}

fn defaulted(name: &str, object: &Value) -> Value {
    let mut object = object.clone();
    default_object(kind(name), &mut object, None);
    object
}

fn created(name: &str, object: &Value) -> Vec<String> {
    validate_create(kind(name), &defaulted(name, object)).iter().map(ToString::to_string).collect()
}

/// The violations of changing `old`, once defaulted, by a merge patch.
fn changed(name: &str, old: &Value, patch: Value) -> Vec<String> {
    let old = defaulted(name, old);
    let mut new = with(&old, patch);
    default_object(kind(name), &mut new, Some(&old));
    validate_update(kind(name), &new, &old).iter().map(ToString::to_string).collect()
}

#[test]
fn plain_objects_are_good() {
    for (name, object) in [
        ("PersistentVolumeClaim", claim()),
        ("PersistentVolume", volume()),
        ("StorageClass", class()),
        ("Pod", pod()),
        ("CSIDriver", driver()),
        ("StatefulSet", stateful_set()),
        ("Service", service()),
        (
            "ControllerRevision",
            json!({"metadata": {"name": "r", "namespace": "default"}, "data": {}, "revision": 1}),
        ),
    ] {
        assert_eq!(created(name, &object), Vec::<String>::new(), "{name}");
        assert_eq!(changed(name, &object, json!({})), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn defaults() {
    let claim = defaulted("PersistentVolumeClaim", &claim());
    assert_eq!(claim["spec"]["volumeMode"], "Filesystem");
    assert_eq!(claim["status"], json!({"phase": "Pending"}));
    assert!(claim["spec"].get("dataSource").is_none());

    let volume = defaulted("PersistentVolume", &volume());
    assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Retain");

    let class = defaulted("StorageClass", &class());
    assert_eq!(
        (&class["reclaimPolicy"], &class["volumeBindingMode"]),
        (&json!("Delete"), &json!("Immediate"))
    );

    assert_eq!(
        defaulted("CSIDriver", &driver())["spec"],
        json!({
            "attachRequired": true, "podInfoOnMount": false, "storageCapacity": false, "seLinuxMount": false,
            "requiresRepublish": false, "fsGroupPolicy": "ReadWriteOnceWithFSType",
            "volumeLifecycleModes": ["Persistent"],
        })
    );

    let pod = defaulted(
        "Pod",
        &with(&pod(), json!({"spec": {"volumes": [{"name": "data"}, {"name": "s", "secret": {}}]}})),
    );
    assert_eq!(pod["spec"]["volumes"][0], json!({"name": "data", "emptyDir": {}}));
    assert_eq!(pod["spec"]["volumes"][1]["secret"]["defaultMode"], 420);
    assert_eq!(pod["spec"]["restartPolicy"], "Always");
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 30);
    assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));

    let secret = json!({"stringData": {"a": "b"}, "data": {"c": "ZA=="}});
    assert_eq!(defaulted("Secret", &secret), json!({"type": "Opaque", "data": {"a": "Yg==", "c": "ZA=="}}));
}

#[test]
fn data_sources_mirror_each_other() {
    let snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
    let other = json!({"apiGroup": "example.com", "kind": "Other", "name": "o"});
    for (spec, source, reference) in [
        (json!({"dataSource": snapshot}), &snapshot, &snapshot),
        (json!({"dataSourceRef": other}), &other, &other),
        (json!({"dataSource": other}), &Value::Null, &Value::Null),
    ] {
        let claim = defaulted("PersistentVolumeClaim", &with(&claim(), json!({"spec": spec})));
        assert_eq!(
            (&claim["spec"]["dataSource"], &claim["spec"]["dataSourceRef"]),
            (source, reference),
            "{spec}"
        );
    }
}

#[test]
fn creation_is_refused_in_kubernetes_words() {
    let no_default: &[(&str, Value, Value, &[&str])] = &[
        (
            "PersistentVolumeClaim",
            claim(),
            json!({"spec": {"accessModes": null, "resources": null}}),
            &[
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ],
        ),
        (
            "PersistentVolumeClaim",
            claim(),
            json!({"spec": {"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]}}),
            &["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"],
        ),
        (
            "PersistentVolumeClaim",
            claim(),
            json!({"spec": {"accessModes": ["Any"]}}),
            &[
                r#"spec.accessModes: Unsupported value: "Any": supported values: "ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod""#,
            ],
        ),
        (
            "PersistentVolumeClaim",
            claim(),
            json!({"spec": {"resources": {"requests": {"storage": "-1Gi"}}, "volumeMode": "Tape"}}),
            &[
                r#"spec.resources[storage]: Invalid value: "-1Gi": must be greater than zero"#,
                r#"spec.volumeMode: Unsupported value: "Tape": supported values: "Block", "Filesystem""#,
            ],
        ),
        (
            "PersistentVolumeClaim",
            claim(),
            json!({"metadata": {"name": null, "labels": {"a b": "c"}}}),
            &[
                "metadata.name: Required value: name or generateName is required",
                r#"metadata.labels: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"#,
            ],
        ),
        (
            "PersistentVolume",
            volume(),
            json!({"metadata": {"namespace": "default"}, "spec": {"csi": null}}),
            &[
                "metadata.namespace: Forbidden: not allowed on this type",
                "spec: Required value: must specify a volume type",
            ],
        ),
        (
            "PersistentVolume",
            volume(),
            json!({"spec": {"csi": null, "local": {"path": "/a/../b"}, "capacity": null}}),
            &[
                "spec.capacity: Required value",
                r#"spec.capacity: Unsupported value: null: supported values: "storage""#,
                r#"spec.local.path: Invalid value: "/a/../b": must not contain '..'"#,
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ],
        ),
        (
            "PersistentVolume",
            volume(),
            json!({"spec": {"hostPath": {"path": "/a"}}}),
            &["spec.hostPath: Forbidden: may not specify more than 1 volume type"],
        ),
        (
            "StorageClass",
            class(),
            json!({"provisioner": null, "reclaimPolicy": "Recycle", "volumeBindingMode": "Later"}),
            &[
                "provisioner: Required value",
                r#"reclaimPolicy: Unsupported value: "Recycle": supported values: "Delete", "Retain""#,
                r#"volumeBindingMode: Unsupported value: "Later": supported values: "Immediate", "WaitForFirstConsumer""#,
            ],
        ),
        (
            "Pod",
            pod(),
            json!({"spec": {"volumes": null}}),
            &[r#"spec.containers[0].volumeMounts[0].name: Not found: "data""#],
        ),
        (
            "Pod",
            pod(),
            json!({"spec": {"restartPolicy": "Sometimes", "containers": [{"name": "C"}]}}),
            &[
                "spec.containers[0].name: Invalid value: \"C\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                "spec.containers[0].image: Required value",
                r#"spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never""#,
            ],
        ),
        (
            "Pod",
            pod(),
            json!({"spec": {"volumes": [{"name": "data", "emptyDir": {}, "hostPath": {"path": "/"}}]}}),
            &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
        ),
        ("Pod", pod(), json!({"spec": {"containers": null}}), &["spec.containers: Required value"]),
        (
            "Pod",
            pod(),
            json!({"spec": {"containers": [{"name": "c", "image": "host",
                "volumeMounts": [{"name": "data", "mountPath": "/a:b"}]}]}}),
            &[r#"spec.containers[0].volumeMounts[0].mountPath: Invalid value: "/a:b": must not contain ':'"#],
        ),
        (
            "CSIDriver",
            driver(),
            json!({"spec": {"fsGroupPolicy": "Some"}}),
            &[
                r#"spec.fsGroupPolicy: Unsupported value: "Some": supported values: "File", "None", "ReadWriteOnceWithFSType""#,
            ],
        ),
        (
            "Secret",
            json!({"metadata": {"name": "s", "namespace": "default"}}),
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "", "..a": "YQ=="}}),
            &["data[..a]: Invalid value: \"..a\": must not start with '..'", "data[tls.key]: Required value"],
        ),
        (
            "Event",
            json!({"metadata": {"name": "e", "namespace": "default"}}),
            json!({"involvedObject": {"namespace": "other"}}),
            &[r#"involvedObject.namespace: Invalid value: "other": does not match event.namespace"#],
        ),
        (
            "VolumeAttachment",
            json!({"metadata": {"name": "a"}, "spec": {"attacher": "d", "nodeName": "n"}}),
            json!({}),
            &[
                "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ],
        ),
        (
            "CustomResourceDefinition",
            json!({"metadata": {"name": "things.example.com"}}),
            json!({"spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "widgets", "kind": "Widget"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {}}]}}),
            &[
                r#"metadata.name: Invalid value: "things.example.com": must be spec.names.plural+"."+spec.group"#,
                "spec.validation.openAPIV3Schema: Required value: schemas are required",
            ],
        ),
    ];
    for (name, base, patch, expected) in no_default {
        assert_eq!(created(name, &with(base, patch.clone())), *expected, "{name} {patch}");
    }
}

#[test]
fn changes_are_refused_in_kubernetes_words() {
    let bound = with(
        &claim(),
        json!({
            "spec": {"volumeName": "v", "storageClassName": "s"},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        }),
    );
    let immutable = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n";
    let cases: &[(&str, &Value, Value, Vec<String>)] = &[
        ("PersistentVolumeClaim", &claim(), json!({"spec": {"volumeName": "v"}}), vec![]),
        ("PersistentVolumeClaim", &claim(), json!({"spec": {"storageClassName": "s"}}), vec![]),
        (
            "PersistentVolumeClaim",
            &claim(),
            json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}),
            vec![format!("{immutable}resources.requests.storage: \"1Gi\" -> \"2Gi\"")],
        ),
        ("PersistentVolumeClaim", &bound, json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}), vec![]),
        (
            "PersistentVolumeClaim",
            &bound,
            json!({"spec": {"resources": {"requests": {"storage": "500Mi"}}}}),
            vec!["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity".into()],
        ),
        (
            "PersistentVolumeClaim",
            &bound,
            json!({"spec": {"storageClassName": "t"}}),
            vec![format!("{immutable}storageClassName: \"s\" -> \"t\"")],
        ),
        (
            "PersistentVolumeClaim",
            &bound,
            json!({"spec": {"volumeName": "w"}}),
            vec![format!("{immutable}volumeName: \"v\" -> \"w\"")],
        ),
        (
            "PersistentVolumeClaim",
            &with(&bound, json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}})),
            json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}),
            vec![],
        ),
        ("PersistentVolume", &volume(), json!({"spec": {"capacity": {"storage": "2Gi"}}}), vec![]),
        (
            "PersistentVolume",
            &volume(),
            json!({"spec": {"csi": {"volumeHandle": "other"}}}),
            vec!["spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation\ncsi.volumeHandle: \"h\" -> \"other\"".into()],
        ),
        (
            "StorageClass",
            &class(),
            json!({"parameters": {"a": "b"}, "provisioner": "x"}),
            vec![
                r#"parameters: Invalid value: {"a":"b"}: field is immutable"#.into(),
                r#"provisioner: Invalid value: "x": field is immutable"#.into(),
            ],
        ),
        ("StorageClass", &class(), json!({"allowVolumeExpansion": true, "mountOptions": ["noatime"]}), vec![]),
        (
            "CSIDriver",
            &driver(),
            json!({"spec": {"attachRequired": false}}),
            vec!["spec.attachedRequired: Invalid value: false: field is immutable".into()],
        ),
        (
            "Pod",
            &pod(),
            json!({"spec": {"nodeName": "n"}}),
            vec![format!(
                "spec: Forbidden: pod updates may not change fields other than {}\nnodeName: null -> \"n\"",
                "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
            )],
        ),
        ("Pod", &pod(), json!({"spec": {"activeDeadlineSeconds": 5, "tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"operator": "Exists"}]}}), vec![]),
        (
            "Pod",
            &pod(),
            json!({"spec": {"containers": []}}),
            vec![
                "spec.containers: Required value".into(),
                "spec.containers: Forbidden: pod updates may not add or remove containers".into(),
            ],
        ),
        (
            "ConfigMap",
            &json!({"metadata": {"name": "m", "namespace": "default"}, "immutable": true, "data": {"a": "b"}}),
            json!({"immutable": null, "data": {"a": "c"}}),
            vec![
                "immutable: Forbidden: field is immutable when `immutable` is set".into(),
                "data: Forbidden: field is immutable when `immutable` is set".into(),
            ],
        ),
        (
            "PersistentVolumeClaim",
            &with(&claim(), json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "uid": "u", "finalizers": ["a/a"]}})),
            json!({"metadata": {"finalizers": ["a/a", "a/b"], "uid": "v"}}),
            vec![
                r#"metadata.uid: Invalid value: "v": field is immutable"#.into(),
                r#"metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers ["a/b"]"#.into(),
            ],
        ),
        (
            "CSINode",
            &json!({"metadata": {"name": "n"}, "spec": {"drivers": [{"name": "d", "nodeID": "n"}]}}),
            json!({"spec": {"drivers": [{"name": "d", "nodeID": "n", "allocatable": {"count": 3}}]}}),
            vec![],
        ),
        (
            "CSINode",
            &json!({"metadata": {"name": "n"}, "spec": {"drivers": [{"name": "d", "nodeID": "n"}]}}),
            json!({"spec": {"drivers": [{"name": "d", "nodeID": "m"}]}}),
            vec![r#"spec.drivers: Invalid value: {"name":"d","nodeID":"m"}: field is immutable"#.into()],
        ),
    ];
    for (name, old, patch, expected) in cases {
        assert_eq!(changed(name, old, patch.clone()), *expected, "{name} {patch}");
    }
}

#[test]
fn an_image_may_change() {
    let old = defaulted("Pod", &pod());
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = "other".into();
    assert_eq!(validate_update(kind("Pod"), &new, &old), []);
}

#[test]
fn definitions_get_their_names_and_a_warning_about_rules() {
    let definition = json!({
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "x-kubernetes-validations": [{"rule": "true"}]}}}]},
    });
    assert_eq!(created("CustomResourceDefinition", &definition), Vec::<String>::new());
    let definition = defaulted("CustomResourceDefinition", &definition);
    assert_eq!(definition["spec"]["names"]["listKind"], "WidgetList");
    assert_eq!(warnings(kind("CustomResourceDefinition"), &definition).len(), 1);
}

#[test]
fn stateful_sets_are_filled_in() {
    let set = defaulted("StatefulSet", &stateful_set());
    let spec = &set["spec"];
    assert_eq!((&spec["replicas"], &spec["podManagementPolicy"]), (&json!(1), &json!("OrderedReady")));
    assert_eq!(spec["updateStrategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}));
    assert_eq!(
        spec["persistentVolumeClaimRetentionPolicy"],
        json!({"whenDeleted": "Retain", "whenScaled": "Retain"})
    );
    assert_eq!(spec["template"]["spec"]["restartPolicy"], "Always");
    let template = &spec["volumeClaimTemplates"][0];
    assert_eq!(
        (&template["kind"], &template["spec"]["volumeMode"]),
        (&json!("PersistentVolumeClaim"), &json!("Filesystem"))
    );
    let on_delete = with(&stateful_set(), json!({"spec": {"updateStrategy": {"type": "OnDelete"}}}));
    assert_eq!(defaulted("StatefulSet", &on_delete)["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
}

#[test]
fn stateful_sets_that_could_never_work_are_refused() {
    let spec = |spec: Value| json!({"spec": spec});
    for (patch, expected) in [
        (json!({"metadata": {"name": "a.b"}}), "metadata.name: Invalid value"),
        (
            spec(json!({"replicas": -1})),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (spec(json!({"selector": null})), "spec.selector: Required value"),
        (spec(json!({"selector": {"matchLabels": null}})), "empty selector is invalid for statefulset"),
        (
            spec(json!({"template": {"metadata": {"labels": {"app": "web"}}}})),
            "`selector` does not match template `labels`",
        ),
        (spec(json!({"podManagementPolicy": "Any"})), "must be 'OrderedReady' or 'Parallel'"),
        (spec(json!({"updateStrategy": {"type": "Recreate"}})), "must be 'RollingUpdate' or 'OnDelete'"),
        (
            spec(json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": {"partition": 1}}})),
            "only allowed for updateStrategy 'RollingUpdate'",
        ),
        (spec(json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "0%"}}})), "cannot be 0"),
        (
            spec(json!({"updateStrategy": {"rollingUpdate": {"partition": -1}}})),
            "partition: Invalid value: -1",
        ),
        (spec(json!({"ordinals": {"start": -1}})), "spec.ordinals.start: Invalid value: -1"),
        (spec(json!({"serviceName": "A"})), "spec.serviceName: Invalid value"),
        (
            spec(json!({"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Keep"}})),
            "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"Keep\"",
        ),
        (
            spec(json!({"template": {"spec": {"restartPolicy": "Never"}}})),
            "spec.template.spec.restartPolicy: Unsupported",
        ),
        (
            spec(json!({"template": {"spec": {"activeDeadlineSeconds": 5}}})),
            "activeDeadlineSeconds in StatefulSet is not",
        ),
        (
            spec(json!({"template": {"spec": {"containers": []}}})),
            "spec.template.spec.containers: Required value",
        ),
        (
            spec(json!({"volumeClaimTemplates": []})),
            "spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"data\"",
        ),
        (
            spec(json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]})),
            "spec.volumeClaimTemplates[0].spec.accessModes: Required value",
        ),
    ] {
        let errors = created("StatefulSet", &with(&stateful_set(), patch.clone()));
        assert!(errors.iter().any(|error| error.contains(expected)), "{patch}: {errors:?}");
    }
}

#[test]
fn little_of_a_stateful_set_may_change() {
    let spec = |spec: Value| json!({"spec": spec});
    let grown = json!([{"metadata": {"name": "data"}, "spec": with(&claim()["spec"], json!({"resources": {"requests": {"storage": "2Gi"}}}))}]);
    for (patch, allowed) in [
        (spec(json!({"replicas": 3})), true),
        (spec(json!({"ordinals": {"start": 3}})), true),
        (spec(json!({"minReadySeconds": 3})), true),
        (spec(json!({"updateStrategy": {"rollingUpdate": {"partition": 1}}})), true),
        (spec(json!({"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"}})), true),
        (spec(json!({"template": {"spec": {"terminationGracePeriodSeconds": 3}}})), true),
        (spec(json!({"serviceName": "other"})), false),
        (spec(json!({"podManagementPolicy": "Parallel"})), false),
        (spec(json!({"volumeClaimTemplates": grown})), false),
    ] {
        let errors = changed("StatefulSet", &stateful_set(), patch.clone());
        assert_eq!(errors.is_empty(), allowed, "{patch}: {errors:?}");
        assert!(
            allowed || errors[0].contains("for fields other than 'replicas', 'ordinals', 'template'"),
            "{errors:?}"
        );
    }
}

#[test]
fn services_are_kept_with_a_warning() {
    assert!(warnings(kind("Service"), &service())[0].contains("stored only"));
    for (patch, expected) in [
        (json!({"spec": {"type": "Magic"}}), "spec.type: Unsupported value"),
        (json!({"spec": {"clusterIP": "", "ports": []}}), "spec.ports: Required value"),
        (json!({"spec": {"ports": [{"port": 0}]}}), "must be between 1 and 65535"),
        (json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}}), "spec.ports[0].name: Required value"),
    ] {
        let errors = created("Service", &with(&service(), patch.clone()));
        assert!(errors.iter().any(|error| error.contains(expected)), "{patch}: {errors:?}");
    }
}

/// What was stored before a rule came can still be changed, but for what breaks the rule.
#[test]
fn rules_that_are_newer_than_an_object_keep_nobody_from_changing_it() {
    let mut old = defaulted("Pod", &pod());
    old["spec"]["hostname"] = "a.b".into();
    old["metadata"]["finalizers"] = json!(["mine"]);
    for (patch, expected) in [
        (json!({"metadata": {"labels": {"a": "b"}}}), vec![]),
        (json!({"status": {"message": "x"}}), vec![]),
        (
            json!({"metadata": {"finalizers": ["mine", "yours"]}}),
            vec![
                r#"metadata.finalizers[1]: Invalid value: "yours": name is neither a standard finalizer name nor is it fully qualified"#,
            ],
        ),
    ] {
        let mut new = old.clone();
        json_patch::merge(&mut new, &patch);
        let errors: Vec<String> =
            validate_update(kind("Pod"), &new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected, "{patch}");
    }
}

#[test]
fn groups_are_those_of_the_rows() {
    let groups: std::collections::BTreeSet<&str> = ROWS.iter().map(|row| row.group).collect();
    assert_eq!(groups, groups::BUILTIN.iter().copied().collect());
}
