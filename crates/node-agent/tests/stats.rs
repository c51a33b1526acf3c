//! How full volumes are, with a driver that does not answer for one of them.

#![allow(clippy::unwrap_used)]

mod common;

use common::{World, driver::Driver, is_root};
use serde_json::{Value, json};

async fn user(world: &World, name: &str) {
    world.bound_claim(name, "1Mi", json!({"accessModes": ["ReadWriteOnce"]})).await;
    let mounts = json!([{"name": "data", "mountPath": "/data"}, {"name": "own", "mountPath": "/own"},
        {"name": "memory", "mountPath": "/memory"}]);
    let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": name}},
        {"name": "own", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]);
    let spec = json!({"containers": [{"image": "nginx", "volumeMounts": mounts}], "volumes": volumes});
    world.pod(name, "", spec).await;
}

fn volume<'a>(summary: &'a Value, pod: &str, name: &str) -> Option<&'a Value> {
    let pod = summary["pods"].as_array()?.iter().find(|one| one["podRef"]["name"] == pod)?;
    pod["volume"].as_array()?.iter().find(|one| one["name"] == name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_does_not_answer_hides_no_other() {
    if !is_root() {
        return;
    }
    let driver = Driver::default();
    driver.hangs.lock().insert("hung".into());
    let (world, driver) = World::with_driver("stats", driver, json!({"attachRequired": false})).await;
    for name in ["good", "hung"] {
        user(&world, name).await;
    }
    let summary = world
        .until("all volumes are told of", async || {
            let summary = world.stats.summary().await.unwrap();
            let told =
                |pod| volume(&summary, pod, "data").is_some() && volume(&summary, pod, "own").is_some();
            (told("good") && told("hung") && volume(&summary, "good", "memory").is_some()).then_some(summary)
        })
        .await;

    let good = volume(&summary, "good", "data").unwrap();
    assert!(good["capacityBytes"].as_u64().unwrap() > 0, "{good}");
    assert_eq!(good["pvcRef"], json!({"name": "good", "namespace": "default"}));
    assert_eq!(good["volumeHealthStats"]["abnormal"], true);
    let hung = volume(&summary, "hung", "data").unwrap();
    assert_eq!(hung["capacityBytes"], Value::Null, "{hung}");
    assert_eq!(volume(&summary, "good", "memory").unwrap()["capacityBytes"], 1 << 20);
    assert!(volume(&summary, "good", "own").unwrap()["usedBytes"].as_u64().is_some());
    assert!(summary["node"]["fs"]["capacityBytes"].as_u64().unwrap() > 0, "{summary}");

    let metrics = runtime::Metrics::new();
    metrics.register_collector(node_agent::VolumeMetrics(vec![world.stats.clone()]));
    let page = metrics.encode();
    let labels = r#"{namespace="default",persistentvolumeclaim="good"}"#;
    assert!(
        page.contains(&format!("kubelet_volume_stats_capacity_bytes{labels} {}\n", good["capacityBytes"])),
        "{page}"
    );
    assert!(page.contains(&format!("kubelet_volume_stats_health_status_abnormal{labels} 1\n")), "{page}");
    assert!(!page.contains("\"hung\""), "{page}");

    world.stats.summary().await.unwrap();
    let asked = driver.counted.lock().iter().filter(|one| *one == "hung").count();
    assert_eq!(asked, 1, "one that hangs is not asked again meanwhile");
    let abnormal = world
        .until("an event tells of the condition", async || {
            let mut told = world.events().await;
            told.retain(|(reason, _)| reason == "VolumeConditionAbnormal");
            (!told.is_empty()).then_some(told)
        })
        .await;
    assert_eq!(abnormal.len(), 1, "{abnormal:?}");
    assert_eq!(abnormal[0].1, "Volume data: a bit worn");
    driver.hangs.lock().clear();
    world.end().await;
}
