//! Node calls that name what is not Orlop's: nothing is deleted, mounted over or followed out of its place.

use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use csi::v1::node_client::NodeClient;
use csi::v1::volume_capability::{AccessType, BlockVolume};
use csi::v1::{self, VolumeCapability};
use tonic::Code;

use crate::common::caller::{self, Caller, Running, capability};
use crate::common::{Place, run};
use crate::tally::Tally;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an attack: cargo xtask attack"]
async fn what_is_not_a_volume_s_stays_as_it_is() {
    let place = Place::new();
    let running = Running::start(&place, &["--loop-drive", "512Mi"]);
    let channel = csi::connect(&caller::socket(&place)).await.expect("a connection");
    let caller = Caller::connect(&caller::socket(&place), place.path()).await;
    let mut node = NodeClient::new(channel);
    let mut tally = Tally::new("targets");
    let volume = caller.create("v1", 16 << 20).await.expect("a volume");
    let targets = victims(place.path());
    let handles =
        [volume.id.clone(), "never-existed".to_owned(), "x/y".to_owned(), "a".repeat(3000), "..".to_owned()];
    for (path, before) in &targets {
        for id in &handles {
            let target_path = path.display().to_string();
            let request =
                v1::NodeUnpublishVolumeRequest { volume_id: id.clone(), target_path: target_path.clone() };
            let answer = node.node_unpublish_volume(request).await;
            tally.count(if answer.is_ok() { "unpublished, to no effect" } else { "refused" });
            let request =
                v1::NodeUnstageVolumeRequest { volume_id: id.clone(), staging_target_path: target_path };
            let answer = node.node_unstage_volume(request).await;
            tally.count(if answer.is_ok() { "unstaged, to no effect" } else { "refused" });
            assert_eq!(Some(before), look(path).as_ref(), "{} was touched", path.display());
        }
    }
    let block =
        VolumeCapability { access_type: Some(AccessType::Block(BlockVolume::default())), ..capability() };
    let full = place.path().join("full");
    let elsewhere =
        ["/etc", "/proc/1", "/", "/dev/null", "/usr/bin", "relative", "", "/proc/self/fd", "/sys/kernel"];
    let own = [place.data(), place.data().join("drives"), full.clone(), full.join("link-to-etc")];
    let before = mounts();
    for path in elsewhere
        .iter()
        .map(PathBuf::from)
        .chain(own)
        .chain([PathBuf::from(format!("/{}", "a/".repeat(3000)))])
    {
        for capability in [capability(), block.clone()] {
            let target_path = path.display().to_string();
            let stage = v1::NodeStageVolumeRequest {
                volume_id: volume.id.clone(),
                staging_target_path: target_path.clone(),
                volume_capability: Some(capability.clone()),
                ..Default::default()
            };
            let refused = node.node_stage_volume(stage).await.expect_err(&target_path);
            assert_ne!(refused.code(), Code::Internal, "{target_path}: {refused}");
            let staging = place.path().join("staging").join("s").display().to_string();
            let publish = v1::NodePublishVolumeRequest {
                volume_id: volume.id.clone(),
                staging_target_path: staging,
                target_path: target_path.clone(),
                volume_capability: Some(capability),
                ..Default::default()
            };
            let refused = node.node_publish_volume(publish).await.expect_err(&target_path);
            assert_ne!(refused.code(), Code::Internal, "{target_path}: {refused}");
            tally.count("refused to mount over");
        }
    }
    assert_eq!(mounts(), before, "something was mounted");
    // The ordinary life goes on.
    let target = caller.show(&volume, "v1").await.expect("staged and published");
    std::fs::write(target.join("data"), "here").expect("written");
    caller.hide(&volume, "v1").await.expect("unpublished and unstaged");
    caller.delete(&volume).await.expect("deleted");
    running.stop();
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

/// What an attacker would name, and how it looks.
fn victims(directory: &Path) -> Vec<(PathBuf, String)> {
    let at = |name: &str| directory.join(name);
    let text = |path: &Path| path.display().to_string();
    std::fs::write(at("file"), "content").expect("a file");
    std::fs::write(at("empty-file"), "").expect("a file");
    std::fs::create_dir(at("empty-directory")).expect("a directory");
    std::fs::create_dir_all(at("full/inner")).expect("a directory");
    std::fs::write(at("full/inner/file"), "content").expect("a file");
    symlink(at("full"), at("link")).expect("a link");
    symlink("/etc", at("full/link-to-etc")).expect("a link");
    run("mkfifo", &[&text(&at("fifo"))]);
    run("mknod", &[&text(&at("null")), "c", "1", "3"]);
    run("mknod", &[&text(&at("block")), "b", "7", "255"]);
    let socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
    drop(socket);
    let names = [
        "file",
        "empty-file",
        "empty-directory",
        "full",
        "link",
        "fifo",
        "null",
        "block",
        "socket",
        "full/inner/../../empty-file",
    ];
    let mut victims: Vec<PathBuf> = names.iter().map(|name| at(name)).collect();
    victims.push("/etc/hostname".into());
    victims.into_iter().filter_map(|path| look(&path).map(|before| (path, before))).collect()
}

/// What there is at a path: kind, inode, size, number of entries.
fn look(path: &Path) -> Option<String> {
    let metadata = path.symlink_metadata().ok()?;
    let kind = metadata.file_type();
    let entries = if kind.is_dir() && path.starts_with(std::env::temp_dir()) {
        std::fs::read_dir(path).map_or(0, Iterator::count)
    } else {
        0
    };
    let special = kind.is_fifo() || kind.is_char_device() || kind.is_block_device() || kind.is_socket();
    let size = if kind.is_file() { metadata.len() } else { 0 };
    Some(format!("{kind:?} {special} {} {size} {entries}", metadata.ino()))
}

fn mounts() -> usize {
    std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").lines().count()
}
