//! Two Orlops on one drive: the second is refused and changes nothing, however it was told of the drive.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::caller::{self, Caller, Running};
use crate::common::{BINARY, LoopDevice, Place, run, wait_until};
use crate::tally::Tally;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an attack: cargo xtask attack"]
async fn a_second_process_leaves_the_first_one_s_volumes_alone() {
    let place = Place::new();
    let device = LoopDevice::new(&place, "drive.img");
    let running = Running::start(&place, &["--drive", &device.0]);
    let caller = Caller::connect(&caller::socket(&place), place.path()).await;
    let mut tally = Tally::new("second holders");
    let copy = place.path().join("copy");
    run("cp", &["-a", &place.data().display().to_string(), &copy.display().to_string()]);
    // Another loop device on the same file, as a second container of a rolling update could make one.
    let again = run("losetup", &["--find", "--show", &place.path().join("drive.img").display().to_string()]);
    let again = LoopDevice(again.trim().to_owned());

    let churn = tokio::spawn(async move {
        let mut volumes = Vec::new();
        for number in 0..40 {
            volumes.push(caller.create(&format!("v{number}"), 4 << 20).await.expect("room for every volume"));
        }
        (caller, volumes)
    });
    let fresh = place.path().join("fresh");
    for _ in 0..6 {
        for (data, arguments) in [
            (&copy, &[][..]),
            (&fresh, &["--drive", &device.0]),
            (&fresh, &["--drive", &again.0]),
            (&fresh, &["--overwrite-drive", &again.0]),
        ] {
            let error = second(&place, data, arguments);
            assert!(
                error.contains(&running.pid().to_string())
                    || error.contains("in use")
                    || error.contains("held"),
                "the refusal does not say who holds the drive: {error}"
            );
            tally.count("refused");
        }
    }
    let (caller, volumes) = churn.await.expect("the churn");
    for (number, volume) in volumes.iter().enumerate() {
        let name = format!("v{number}");
        let target = caller.show(volume, &name).await.expect("an acknowledged volume is there");
        std::fs::write(target.join("data"), "here").expect("written");
        caller.hide(volume, &name).await.expect("taken away");
        caller.delete(volume).await.expect("deleted");
    }
    drop(again);
    running.stop();
    assert_eq!(place.leftovers().into_iter().filter(|line| !line.contains(&device.0)).count(), 0);
}

/// Runs a second driver that is to end by itself, and gives what it said.
fn second(place: &Place, data: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(BINARY);
    command.args(["driver", "--node-id", "n2", "--data-dir"]).arg(data);
    command.arg("--endpoint").arg(format!("unix://{}", place.path().join("second.sock").display()));
    let mut child = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starting the second");
    wait_until("the second driver refuses", || child.try_wait().expect("waiting").is_some());
    let output = child.wait_with_output().expect("waiting");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "the second driver served the same drive:\n{error}");
    error
}
