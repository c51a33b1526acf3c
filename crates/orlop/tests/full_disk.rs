//! The disk of the data directory is full for a while.

#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use common::{BINARY, LoopDevice, Place, run, wait_until};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;

/// A small file system in memory; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Small {
        std::fs::create_dir(&at).unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=60m", "small", &at.display().to_string()]);
        Small(at)
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("fill")).unwrap();
        while file.write_all(&[7; 1 << 16]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("fill")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run("umount", &[&self.0.display().to_string()]);
    }
}

fn map(name: &str, bytes: usize) -> ConfigMap {
    let data = [("v".to_owned(), "x".repeat(bytes))].into();
    let metadata = kube::api::ObjectMeta { name: Some(name.to_owned()), ..Default::default() };
    ConfigMap { data: Some(data), metadata, ..Default::default() }
}

/// The codes of the health endpoints on their own listener.
fn health(address: SocketAddr) -> [String; 3] {
    ["healthz", "livez", "readyz"].map(|path| {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    })
}

#[test]
fn writes_come_back_by_themselves_and_health_tells() {
    let place = Place::new();
    let drive = LoopDevice::new(&place, "drive.img");
    let small = Small::mount(place.data());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let orlop = place.up(&["--drive", &drive.0, "--health", &free.to_string()]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(orlop.client());
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let api_health = || {
        ["/healthz", "/livez", "/readyz"].map(|path| {
            let request = http::Request::get(path).body(Vec::new()).unwrap();
            runtime.block_on(client.request_text(request)).is_ok_and(|text| text == "ok")
        })
    };
    assert_eq!((health(free), api_health()), (["200"; 3].map(str::to_owned), [true; 3]));

    small.fill();
    let mut acknowledged = Vec::new();
    // The client tries what is answered 503 again for minutes: who is not answered soon was refused.
    let refused = (0..100).any(|number| {
        let name = format!("c{number}");
        match runtime.block_on(async {
            tokio::time::timeout(
                Duration::from_secs(5),
                maps.create(&PostParams::default(), &map(&name, 400_000)),
            )
            .await
        }) {
            Ok(Ok(_)) => acknowledged.push(name),
            Ok(Err(_)) | Err(_) => return true,
        }
        false
    });
    assert!(refused, "a hundred objects of 400 kB found room on a full disk");
    assert_eq!((health(free), api_health()), (["503"; 3].map(str::to_owned), [false; 3]));

    small.free();
    wait_until("health is well again", || health(free) == ["200"; 3]);
    assert_eq!(api_health(), [true; 3]);
    runtime.block_on(maps.create(&PostParams::default(), &map("after", 10))).unwrap();
    acknowledged.push("after".to_owned());
    let there = || {
        let names = runtime.block_on(maps.list(&Default::default())).unwrap().items;
        let mut names: Vec<_> = names.into_iter().filter_map(|map| map.metadata.name).collect();
        names.retain(|name| name != "kube-root-ca.crt");
        names.sort();
        names
    };
    acknowledged.sort();
    assert_eq!(there(), acknowledged);
    orlop.stop();
    run(BINARY, &["down", "--data-dir", &place.data().display().to_string()]);
}
