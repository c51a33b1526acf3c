//! Two Orlops on one drive: the second changes nothing and says who holds it, however it was told of the drive.

use std::path::Path;
use std::process::{Child, Command, Stdio};

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
            second(&place, running.pid(), data, arguments);
            tally.count("told who holds the drive");
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

/// Runs a second driver until it says who holds the drive, and makes sure that it changes nothing there: the first one's volumes
/// are looked at afterwards.
fn second(place: &Place, holder: u32, data: &Path, arguments: &[&str]) {
    let log = place.path().join("second.log");
    let mut command = Command::new(BINARY);
    command.args(["driver", "--node-id", "n2", "--data-dir"]).arg(data);
    command.arg("--endpoint").arg(format!("unix://{}", place.path().join("second.sock").display()));
    let child = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).expect("the log"))
        .spawn()
        .expect("starting the second");
    let mut child = Killed(child);
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let names_holder = |text: &str| text.contains(&format!("process {holder} "));
    wait_until("the second driver says who holds the drive, or ends", || {
        names_holder(&said()) || child.0.try_wait().expect("waiting").is_some()
    });
    let text = said();
    assert!(names_holder(&text), "the second driver does not say who holds the drive:\n{text}");
}

/// Killed when dropped, whatever it was doing.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
