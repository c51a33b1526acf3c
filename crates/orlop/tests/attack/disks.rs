//! The data directory's disk fills up and is freed again.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};

use crate::common::{LoopDevice, Place, run};
use crate::tally::Tally;

const RECOVERY: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an attack: cargo xtask attack"]
async fn a_full_disk_is_told_and_survived() {
    let place = Place::new();
    let device = LoopDevice::new(&place, "drive.img");
    std::fs::create_dir(place.data()).expect("a directory");
    let data = place.data().display().to_string();
    run("mount", &["-t", "tmpfs", "-o", "size=60m", "tmpfs", &data]);
    let _mounted = Mounted(data.clone());
    let orlop = place.up(&["--drive", &device.0]);
    let client = orlop.client().await;
    let notes: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let mut tally = Tally::new("full disks");
    let mut acknowledged = Vec::new();
    let filler = place.data().join("filler");
    for round in 0..4 {
        fill(&filler);
        let mut refused = 0;
        for number in 0..200 {
            let name = format!("note-{round}-{number}");
            match create(&notes, &name).await {
                true => acknowledged.push(name),
                false => refused += 1,
            }
            if refused > 3 {
                break;
            }
        }
        assert!(refused > 0, "the disk was never full");
        assert!(!healthy(&client).await, "readyz says ok while nothing can be written");
        tally.count("times unhealthy while full");
        std::fs::remove_file(&filler).expect("removed");
        let end = Instant::now() + RECOVERY;
        let name = format!("after-{round}");
        while !create(&notes, &name).await {
            assert!(Instant::now() < end, "writes are refused still");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        acknowledged.push(name);
        let end = Instant::now() + RECOVERY;
        while !healthy(&client).await {
            assert!(Instant::now() < end, "unhealthy though writes are taken");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tally.count("recoveries without a restart");
    }
    orlop.kill();
    let orlop = place.up(&[]);
    let notes: Api<ConfigMap> = Api::default_namespaced(orlop.client().await);
    let found: Vec<String> =
        notes.list(&ListParams::default()).await.expect("listed").iter().map(ResourceExt::name_any).collect();
    for name in &acknowledged {
        assert!(found.contains(name), "{name} was acknowledged and is lost");
        tally.count("acknowledged objects found");
    }
    orlop.stop();
    run(crate::common::BINARY, &["down", "--data-dir", &data]);
}

/// Whether it was acknowledged. The client tries again what is answered with 503, for minutes.
async fn create(notes: &Api<ConfigMap>, name: &str) -> bool {
    let answer = tokio::time::timeout(PATIENCE, async {
        match notes.create(&PostParams::default(), &note(name)).await {
            Ok(_) => true,
            // Of a call before, whose answer was not waited for.
            Err(kube::Error::Api(status)) => status.is_already_exists(),
            Err(_) => false,
        }
    });
    answer.await.unwrap_or(false)
}

fn fill(path: &std::path::Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("a file");
    while file.write_all(&[0; 1 << 16]).is_ok() {}
}

fn note(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
        data: Some([("text".to_owned(), "x".repeat(300_000))].into()),
        ..Default::default()
    }
}

async fn healthy(client: &Client) -> bool {
    let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
    let answer = tokio::time::timeout(PATIENCE, client.request_text(request)).await;
    answer.is_ok_and(|answer| answer.is_ok())
}

/// Unmounted when dropped.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        std::process::Command::new("umount").args(["-l", &self.0]).status().ok();
    }
}
