//! One guest: a QEMU process with drives that outlive it, commands that run in it, and the plug of each drive.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::image::Image;

const BOOT: Duration = Duration::from_secs(180);
const MEMORY_MIB: u64 = 1024;
/// At the end of persistent memory, for the labels of its namespaces.
const LABELS: u64 = 2 << 20;
/// Precedes the status of a finished command.
const END: &str = "\u{1e} ";
/// A full disk below the guest is an I/O error in it; otherwise it would be stopped silently.
const ON_ERROR: &str = "rerror=report,werror=report";
/// The kernel's arguments that matter under emulation: without them the clock runs off and start takes twice as long.
const KERNEL: &str = "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr mitigations=off nopti tsc=reliable \
    no_timer_check cryptomgr.notests random.trust_cpu=on audit=0 selinux=0 apparmor=0 nowatchdog \
    rcupdate.rcu_expedited=1";

/// The drives of a guest: files that stay when it is switched off.
pub(super) struct Hardware {
    dir: PathBuf,
    drives: Vec<PathBuf>,
    memory: Option<(PathBuf, u64)>,
}

impl Hardware {
    /// Empty NVMe drives, and persistent memory if asked for; all sizes in bytes.
    pub(super) fn new(dir: PathBuf, drives: &[u64], memory: Option<u64>) -> anyhow::Result<Hardware> {
        let image = |name: String, size| {
            let path = dir.join(name);
            File::create(&path).and_then(|file| file.set_len(size)).context("making a drive")?;
            anyhow::Ok(path)
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let memory = memory.map(|size| size + LABELS);
        let memory = memory.map(|size| Ok::<_, anyhow::Error>((image("memory.img".into(), size)?, size)));
        let drives = drives.iter().enumerate().map(|(at, size)| image(format!("drive{at}.img"), *size));
        Ok(Hardware { drives: drives.collect::<anyhow::Result<_>>()?, memory: memory.transpose()?, dir })
    }
}

impl Hardware {
    /// The port that nothing is plugged into at first.
    pub(super) fn spare_port(&self) -> usize {
        self.drives.len()
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("removing {}: {error}", self.dir.display());
        }
    }
}

/// What a command came to.
pub(super) struct Outcome {
    pub(super) status: i32,
    pub(super) output: String,
}

/// A guest that is switched on. Dropping it cuts its power.
pub(super) struct Machine<'a> {
    qemu: Child,
    hardware: &'a Hardware,
    commands: UnixStream,
    received: Vec<u8>,
    monitor: UnixStream,
}

impl<'a> Machine<'a> {
    /// Switches a guest on and returns when it takes commands. `share` is seen at `/host` in it.
    pub(super) fn start(image: &Image, hardware: &'a Hardware, share: &Path) -> anyhow::Result<Machine<'a>> {
        let at = |name: &str| hardware.dir.join(name);
        for socket in ["commands", "monitor"] {
            std::fs::remove_file(at(socket)).ok();
        }
        let log = File::create(at("qemu.log"))?;
        // Where this process goes, the guest goes too.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]).args(arguments(image, hardware, share)?);
        // What is written to the root goes to a file in there.
        command.env("TMPDIR", &hardware.dir);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut qemu = command.spawn().context("starting QEMU")?;
        let connected = connect(&mut qemu, &at("commands"))
            .and_then(|commands| Ok((commands, connect(&mut qemu, &at("monitor"))?)));
        let (commands, monitor) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                qemu.kill().ok();
                qemu.wait().ok();
                return Err(error.context(tail(&at("qemu.log"))));
            }
        };
        let mut machine = Machine { qemu, hardware, commands, received: Vec::new(), monitor };
        let booted = machine.answer(BOOT, &mut |_| {});
        booted.with_context(|| format!("the guest did not start:\n{}", tail(&at("console.log"))))?;
        machine.monitor(json!({"execute": "qmp_capabilities"}))?;
        Ok(machine)
    }

    /// Runs one line of shell to its end; `line` sees what it prints as it comes.
    pub(super) fn follow(
        &mut self,
        command: &str,
        deadline: Duration,
        line: &mut dyn FnMut(&str),
    ) -> anyhow::Result<i32> {
        ensure!(!command.contains('\n'), "a command is one line: {command}");
        writeln!(self.commands, "{command}").context("the guest takes no commands")?;
        let console = self.hardware.dir.join("console.log");
        self.answer(deadline, line).with_context(|| format!("`{command}` in the guest\n{}", tail(&console)))
    }

    /// Runs one line of shell quietly.
    pub(super) fn attempt(&mut self, command: &str, deadline: Duration) -> anyhow::Result<Outcome> {
        let mut output = String::new();
        let status = self.follow(command, deadline, &mut |line| {
            output.push_str(line);
            output.push('\n');
        })?;
        Ok(Outcome { status, output })
    }

    /// Runs one line of shell that has to succeed; returns what it printed.
    pub(super) fn run(&mut self, command: &str, deadline: Duration) -> anyhow::Result<String> {
        let Outcome { status, output } = self.attempt(command, deadline)?;
        ensure!(status == 0, "`{command}` in the guest failed with {status}:\n{output}");
        Ok(output)
    }

    /// Starts a command without waiting for it.
    pub(super) fn begin(&mut self, command: &str) -> anyhow::Result<()> {
        writeln!(self.commands, "{command}").context("the guest takes no commands")
    }

    /// What a command that was begun prints until `until`; returns its status if it ended.
    pub(super) fn watch(
        &mut self,
        until: Instant,
        line: &mut dyn FnMut(&str),
    ) -> anyhow::Result<Option<i32>> {
        self.lines(until, line)
    }

    /// Switches it off as a pulled plug does: nothing inside gets to write any more.
    pub(super) fn cut_power(mut self) -> anyhow::Result<()> {
        self.qemu.kill().and_then(|()| self.qemu.wait()).context("stopping QEMU")?;
        Ok(())
    }

    /// Pulls a drive, in use or not.
    pub(super) fn unplug(&mut self, drive: usize) -> anyhow::Result<()> {
        self.monitor(json!({"execute": "device_del", "arguments": {"id": format!("nvme{drive}")}}))?;
        let gone = Instant::now() + Duration::from_secs(30);
        while Instant::now() < gone {
            let devices = self.monitor(json!({"execute": "human-monitor-command",
                "arguments": {"command-line": "info qtree"}}))?;
            if !devices.as_str().unwrap_or_default().contains(&format!("id \"nvme{drive}\"")) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("drive {drive} stays plugged in")
    }

    /// Plugs a drive in again, at another port.
    pub(super) fn plug(&mut self, drive: usize, port: usize) -> anyhow::Result<()> {
        let file = self.hardware.drives[drive].display().to_string();
        let node = format!("again{drive}");
        self.monitor(json!({"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": node,
            "file": {"driver": "file", "filename": file}}}))?;
        self.monitor(
            json!({"execute": "device_add", "arguments": {"driver": "nvme", "id": format!("nvme{drive}"),
            "drive": node, "serial": format!("drive{drive}"), "bus": format!("port{port}")}}),
        )?;
        Ok(())
    }

    fn answer(&mut self, deadline: Duration, line: &mut dyn FnMut(&str)) -> anyhow::Result<i32> {
        let status = self.lines(Instant::now() + deadline, line)?;
        status.with_context(|| format!("no end after {} s", deadline.as_secs()))
    }

    /// Lines until the status of a command, which is returned, or until the time is over.
    fn lines(&mut self, until: Instant, line: &mut dyn FnMut(&str)) -> anyhow::Result<Option<i32>> {
        let mut buffer = vec![0; 64 << 10];
        let mut blank = false;
        loop {
            while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let text: Vec<u8> = self.received.drain(..=end).collect();
                let text = String::from_utf8_lossy(&text[..end]).into_owned();
                if let Some(status) = text.strip_prefix(END) {
                    return status.trim().parse().map(Some).context("the guest ended a command oddly");
                }
                if std::mem::replace(&mut blank, text.is_empty()) {
                    line("");
                }
                if !text.is_empty() {
                    line(&text);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.commands.set_read_timeout(Some(left))?;
            match self.commands.read(&mut buffer) {
                Ok(0) => bail!("the guest went away"),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error).context("listening to the guest"),
            }
        }
    }

    /// One exchange with QEMU's monitor; events in between are passed over.
    fn monitor(&mut self, request: Value) -> anyhow::Result<Value> {
        writeln!(self.monitor, "{request}")?;
        self.monitor.set_read_timeout(Some(Duration::from_secs(30)))?;
        loop {
            let mut text = Vec::new();
            let mut byte = [0];
            while byte != *b"\n" {
                self.monitor.read_exact(&mut byte).context("QEMU's monitor does not answer")?;
                text.push(byte[0]);
            }
            let mut answer: Value = serde_json::from_slice(&text).context("QEMU's monitor answers oddly")?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {request}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.qemu.kill().ok();
        self.qemu.wait().ok();
    }
}

/// The command line of QEMU. Only emulation: nested virtual machines are too often broken.
fn arguments(image: &Image, hardware: &Hardware, share: &Path) -> anyhow::Result<Vec<String>> {
    let at = |name: &str| hardware.dir.join(name).display().to_string();
    let mut words: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| words.extend([format!("-{option}"), value]);
    add("accel", "tcg,thread=multi,tb-size=256".into());
    add("cpu", "max,la57=off".into());
    add("smp", "2".into());
    add("display", "none".into());
    add("kernel", image.kernel.display().to_string());
    add("initrd", image.initrd.display().to_string());
    add("append", format!("{KERNEL} tsc_early_khz={}", clock()?));
    add("serial", format!("file:{}", at("console.log")));
    add("qmp", format!("unix:{},server=on,wait=off", at("monitor")));
    let root = image.root.display();
    add("drive", format!("if=none,id=root,file={root},format=raw,snapshot=on,cache=unsafe,{ON_ERROR}"));
    add("device", "virtio-blk-pci,drive=root".into());
    add("fsdev", format!("local,id=share,path={},security_model=none,readonly=on", share.display()));
    add("device", "virtio-9p-pci,fsdev=share,mount_tag=host".into());
    add("chardev", format!("socket,id=commands,path={},server=on,wait=off", at("commands")));
    add("device", "virtio-serial-pci".into());
    add("device", "virtserialport,chardev=commands".into());
    match &hardware.memory {
        None => {
            add("machine", "q35".into());
            add("m", format!("{MEMORY_MIB}M"));
        }
        Some((file, size)) => {
            add("machine", "q35,nvdimm=on".into());
            add("m", format!("{MEMORY_MIB}M,slots=2,maxmem={}M", MEMORY_MIB + (size >> 20) + 1024));
            let file = file.display();
            add(
                "object",
                format!("memory-backend-file,id=memory,share=on,mem-path={file},size={size},align=2M"),
            );
            add("device", format!("nvdimm,id=nvdimm,memdev=memory,label-size={LABELS}"));
        }
    }
    // A spare port for a drive that comes back elsewhere.
    for port in 0..=hardware.drives.len() {
        add("device", format!("pcie-root-port,id=port{port},chassis={},slot={}", port + 1, port + 1));
    }
    for (number, file) in hardware.drives.iter().enumerate() {
        let file = file.display();
        let how = format!("format=raw,cache=unsafe,discard=unmap,{ON_ERROR}");
        add("drive", format!("if=none,id=drive{number},file={file},{how}"));
        let serial = format!("serial=drive{number},bus=port{number}");
        add("device", format!("nvme,id=nvme{number},drive=drive{number},{serial}"));
    }
    words.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    Ok(words)
}

/// The processor's kHz: a guest that has to find out under load ends up with a clock that runs several times too fast.
fn clock() -> anyhow::Result<u64> {
    let facts = std::fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let line = facts.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(':'));
    let mhz: f64 = line.context("/proc/cpuinfo names no clock")?.1.trim().parse()?;
    Ok((mhz * 1000.0) as u64)
}

fn connect(qemu: &mut Child, socket: &Path) -> anyhow::Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < deadline => {}
            Err(error) => return Err(error).context("QEMU opened no socket"),
        }
        if let Some(status) = qemu.try_wait()? {
            bail!("QEMU ended at once: {status}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The last lines of a log, for messages.
fn tail(file: &Path) -> String {
    let text =
        std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
