//! Logical volumes, through the `lvm` program: what it does is no system call. Its reports are JSON, and are read
//! strictly: what is not as expected is an error and not a guess.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{Error, Kernel, Programs, Result};

/// One call of the program; it waits for the locks of those that others call.
const DEADLINE: Duration = Duration::from_secs(60);
/// Writing zeros to a whole volume, where the device has no quick way.
const ZEROING: Duration = Duration::from_secs(3600);
/// Another volume may be given the space that was made ready for a growth.
const GROWTHS: usize = 3;
/// What the names of volumes begin with that are made ready to become part of others.
pub const COMING: &str = "coming-";
const COMING_TAG: &str = "orlop.dev/coming";
/// What the system's own configuration must not change: no questions, no colours, no messages among reports; and a full
/// pool answers errors at once.
const SETTINGS: &str = "global/suffix=0 global/units=b log/prefix=\"\" log/silent=0 report/output_format=basic devices/use_devicesfile=0 activation/error_when_full=1";

/// A volume group on one device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VolumeGroup {
    /// Its name.
    #[serde(rename = "vg_name")]
    pub name: String,
    /// What it was tagged with when it was made.
    #[serde(rename = "vg_tags", deserialize_with = "words")]
    pub tags: Vec<String>,
    /// How many devices it lies on.
    #[serde(rename = "pv_count", deserialize_with = "number")]
    pub devices: u64,
    /// Devices that it had and that are missing.
    #[serde(rename = "vg_missing_pv_count", deserialize_with = "number")]
    pub missing: u64,
    /// Bytes of the unit that its volumes are made of.
    #[serde(rename = "vg_extent_size", deserialize_with = "number")]
    pub extent: u64,
    /// Bytes that no volume has.
    #[serde(rename = "vg_free", deserialize_with = "number")]
    pub free: u64,
}

/// A logical volume.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct LogicalVolume {
    /// Its name within its group.
    #[serde(rename = "lv_name")]
    pub name: String,
    /// Bytes that can be written to it.
    #[serde(rename = "lv_size", deserialize_with = "number")]
    pub size: u64,
    /// What it was tagged with when it was made.
    #[serde(rename = "lv_tags", deserialize_with = "words")]
    pub tags: Vec<String>,
    /// The pool that a thin volume takes its space from.
    #[serde(rename = "pool_lv", deserialize_with = "word")]
    pub pool: Option<String>,
    /// Hundredths of a pool's data, or of a thin volume, that are in use.
    #[serde(rename = "data_percent", deserialize_with = "percent")]
    pub data: Option<f64>,
    /// Hundredths of a pool's metadata that are in use.
    #[serde(rename = "metadata_percent", deserialize_with = "percent")]
    pub metadata: Option<f64>,
}

/// Where a part of a volume lies: `/dev/sda:16-23`, in units of its group.
#[derive(Deserialize)]
struct Segment {
    #[serde(rename = "seg_pe_ranges", deserialize_with = "ranges")]
    ranges: Vec<String>,
}

/// What a new logical volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Making<'a> {
    /// Space of its own, of so many bytes.
    Linear(u64),
    /// As `Linear`, and every byte is zero: nothing of what the device held before can be read there.
    Zeroed(u64),
    /// A pool that thin volumes take their space from: bytes of data and of metadata.
    Pool {
        /// Bytes for what is written.
        data: u64,
        /// Bytes for what lies where.
        metadata: u64,
        /// Bytes of the pieces that space is given out in.
        chunk: u64,
    },
    /// A thin volume in a pool, of so many bytes.
    Thin {
        /// The pool's name.
        pool: &'a str,
        /// Bytes that can be written.
        size: u64,
    },
    /// What another thin volume holds at this moment, a file system on it being frozen for that.
    Snapshot {
        /// The other volume's name.
        of: &'a str,
    },
}

/// Logical volumes. Groups and volumes are named as LVM allows: letters, digits and `_`.
pub trait LogicalVolumes {
    /// The group that a device belongs to; `None` when it belongs to none.
    ///
    /// # Errors
    /// When LVM can't tell.
    fn group_on(&self, device: &Path) -> Result<Option<VolumeGroup>>;

    /// Makes a group of one device, with units of 4 MiB; what the device carried is lost.
    ///
    /// # Errors
    /// When LVM refuses: the device is in use.
    fn make_group(&self, device: &Path, group: &str, tags: &[&str]) -> Result<()>;

    /// Makes the devices of a group's volumes appear, or disappear.
    ///
    /// # Errors
    /// When LVM refuses: a volume to disappear is in use, a device is missing.
    fn activate_group(&self, group: &str, active: bool) -> Result<()>;

    /// All volumes of a group.
    ///
    /// # Errors
    /// When LVM can't tell.
    fn logical_volumes(&self, group: &str) -> Result<Vec<LogicalVolume>>;

    /// Makes a volume, durably; its device appears. One of that name that is there already stays as it is.
    ///
    /// # Errors
    /// When LVM refuses: there is no space.
    fn make_logical_volume(&self, group: &str, name: &str, what: Making<'_>, tag: &str) -> Result<()>;

    /// Makes a volume this large, in use or not; one that is as large or larger stays as it is. With `zeroed`, what is
    /// added is zero before anybody sees it.
    ///
    /// # Errors
    /// When LVM refuses: there is no space.
    fn grow_logical_volume(&self, group: &str, name: &str, size: u64, zeroed: bool) -> Result<()>;

    /// Removes a volume, durably; `false` when there was none.
    ///
    /// # Errors
    /// When LVM refuses: it is in use.
    fn remove_logical_volume(&self, group: &str, name: &str) -> Result<bool>;

    /// Whether the kernel has a device mapper target, such as `linear` or `thin-pool`, and LVM is installed.
    ///
    /// # Errors
    /// With the reason, if not.
    fn has_device_mapper(&self, target: &str) -> Result<()>;
}

/// The device of a logical volume.
pub fn logical_device(group: &str, name: &str) -> PathBuf {
    // A dash between the two, so one within either is doubled.
    let plain = |part: &str| part.replace('-', "--");
    PathBuf::from(format!("/dev/mapper/{}-{}", plain(group), plain(name)))
}

impl LogicalVolumes for Kernel {
    fn group_on(&self, device: &Path) -> Result<Option<VolumeGroup>> {
        let fields = "vg_name,vg_tags,pv_count,vg_missing_pv_count,vg_extent_size,vg_free";
        // Only this device is looked at: a copy elsewhere is not taken for it.
        let only = device.as_os_str();
        let arguments: [&OsStr; 4] = ["--devices".as_ref(), only, "-o".as_ref(), fields.as_ref()];
        let groups: Vec<VolumeGroup> = match report("pvs", "pv", &[&arguments[..], &[only]].concat()) {
            Err(error) if error.to_string().contains("Failed to find physical volume") => return Ok(None),
            other => other?,
        };
        Ok(groups.into_iter().find(|group| !group.name.is_empty()))
    }

    fn make_group(&self, device: &Path, group: &str, tags: &[&str]) -> Result<()> {
        let device = device.as_os_str();
        lvm("pvcreate", &["-ff".as_ref(), "--devices".as_ref(), device, device])?;
        let mut arguments: Vec<&OsStr> = vec!["--devices".as_ref(), device, "-s".as_ref(), "4m".as_ref()];
        for tag in tags {
            arguments.extend([OsStr::new("--addtag"), tag.as_ref()]);
        }
        arguments.extend([group.as_ref(), device]);
        lvm("vgcreate", &arguments).map(drop)
    }

    fn activate_group(&self, group: &str, active: bool) -> Result<()> {
        let wanted = if active { "-ay" } else { "-an" };
        in_group(group, || lvm("vgchange", &[wanted.as_ref(), group.as_ref()])).map(drop)
    }

    fn logical_volumes(&self, group: &str) -> Result<Vec<LogicalVolume>> {
        let fields = "lv_name,lv_size,lv_tags,pool_lv,data_percent,metadata_percent";
        in_group(group, || report("lvs", "lv", &["-o".as_ref(), fields.as_ref(), group.as_ref()]))
    }

    fn make_logical_volume(&self, group: &str, name: &str, what: Making<'_>, tag: &str) -> Result<()> {
        let bytes = |size: u64| format!("{size}b");
        let path = |name: &str| format!("{group}/{name}");
        let mut arguments: Vec<String> = ["-n", name, "--addtag", tag].map(str::to_owned).into();
        match what {
            // Old content of the device is not to be seen through it.
            Making::Linear(size) | Making::Zeroed(size) => {
                arguments.extend(["-Wy".into(), "-Zy".into(), "-L".into(), bytes(size), group.to_owned()]);
            }
            Making::Pool { data, metadata, chunk } => {
                let sizes = ["--type", "thin-pool", "--poolmetadataspare", "n", "--poolmetadatasize"];
                arguments.extend(sizes.map(str::to_owned));
                arguments.extend([bytes(metadata), "--chunksize".into(), bytes(chunk), "-L".into()]);
                arguments.extend([bytes(data), group.to_owned()]);
            }
            Making::Thin { pool, size } => {
                arguments.extend(["-V".into(), bytes(size), "--thinpool".into(), path(pool)]);
            }
            Making::Snapshot { of } => {
                arguments.extend(["-kn".into(), "-ay".into(), "-s".into(), path(of)]);
            }
        }
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        if let Err(error) = in_group(group, || lvm("lvcreate", &arguments)) {
            // A call that was broken off may have left it behind, and may not have activated it.
            match self.logical_volumes(group)?.iter().any(|volume| volume.name == name) {
                true => in_group(group, || lvm("lvchange", &["-ay".as_ref(), path(name).as_ref()]))?,
                false => return Err(error),
            };
        }
        match what {
            Making::Zeroed(_) => {
                let device = logical_device(group, name);
                self.run("blkdiscard", &["-z".as_ref(), device.as_os_str()], ZEROING).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn grow_logical_volume(&self, group: &str, name: &str, size: u64, zeroed: bool) -> Result<()> {
        let (path, target) = (format!("{group}/{name}"), format!("{size}b"));
        let extend = |space: &[String]| {
            let mut arguments: Vec<&OsStr> = vec!["-L".as_ref(), target.as_ref(), path.as_ref()];
            arguments.extend(space.iter().map(OsStr::new));
            in_group(group, || lvm("lvextend", &arguments)).map(drop)
        };
        let found = self.logical_volumes(group)?.into_iter().find(|volume| volume.name == name);
        let found = found.ok_or_else(|| Error::because("grow", &path, "there is none"))?;
        if found.size >= size {
            return Ok(());
        }
        if !zeroed {
            return extend(&[]);
        }
        // Zeroed as a volume of its own first: who has the device sees what is added at once.
        let coming = format!("{COMING}{name}");
        for attempt in 1.. {
            self.remove_logical_volume(group, &coming)?;
            self.make_logical_volume(group, &coming, Making::Zeroed(size - found.size), COMING_TAG)?;
            let fields = ["--segments", "-o", "seg_pe_ranges"].map(OsStr::new);
            let whole = format!("{group}/{coming}");
            let asked = [&fields[..], &[whole.as_ref()]].concat();
            let segments: Vec<Segment> = in_group(group, || report("lvs", "seg", &asked))?;
            let space: Vec<String> = segments.into_iter().flat_map(|segment| segment.ranges).collect();
            self.remove_logical_volume(group, &coming)?;
            match extend(&space) {
                Err(error) if attempt == GROWTHS => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
        Ok(())
    }

    fn remove_logical_volume(&self, group: &str, name: &str) -> Result<bool> {
        let whole = format!("{group}/{name}");
        let remove = || in_group(group, || lvm("lvremove", &["-f".as_ref(), whole.as_ref()]));
        let Err(error) = remove() else { return Ok(true) };
        match self.logical_volumes(group)?.into_iter().find(|volume| volume.name == name) {
            None => Ok(false),
            Some(LogicalVolume { pool: Some(pool), .. }) if forget(group, name, &pool).is_ok() => {
                remove().map(|_| true)
            }
            Some(_) => Err(error),
        }
    }

    fn has_device_mapper(&self, target: &str) -> Result<()> {
        lvm("version", &[])?;
        // The target's module is loaded by asking for it; the version tells nothing else.
        let module = format!("dm-{target}");
        // A kernel with the target built in has no such module.
        let _ = self.run("modprobe", &["-q".as_ref(), module.as_ref()], DEADLINE);
        let known = self.run("dmsetup", &["targets".as_ref()], DEADLINE)?.stdout;
        match known.lines().any(|line| line.split_whitespace().next() == Some(target)) {
            true => Ok(()),
            false => Err(Error::because("use device mapper", target, "this kernel does not have it")),
        }
    }
}

/// Has a pool forget a thin volume that is to be removed. After power loss between the pool's making it and LVM's noting
/// that, LVM asks for it again before it does anything else, and the pool refuses, because it has it. The kernel refuses
/// this for one that is active.
fn forget(group: &str, name: &str, pool: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Thin {
        #[serde(deserialize_with = "number")]
        thin_id: u64,
    }
    let whole = format!("{group}/{name}");
    let asked = ["-o", "thin_id", &whole].map(OsStr::new);
    let found: Vec<Thin> = in_group(group, || report("lvs", "lv", &asked))?;
    let id = found.first().ok_or_else(|| Error::because("look at", &whole, "there is none"))?.thin_id;
    let mut pool = logical_device(group, pool).into_os_string();
    pool.push("-tpool");
    let message = format!("delete {id}");
    let arguments: [&OsStr; 4] = ["message".as_ref(), &pool, "0".as_ref(), message.as_ref()];
    Kernel.run("dmsetup", &arguments, DEADLINE).map(drop)
}

/// Whose turn it is in each group.
static TURNS: Mutex<BTreeMap<String, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());

/// Has the commands of one group run one after the other. LVM would have them wait, too, but with their deadlines running.
fn in_group<T>(group: &str, command: impl FnOnce() -> Result<T>) -> Result<T> {
    let turn =
        TURNS.lock().unwrap_or_else(PoisonError::into_inner).entry(group.to_owned()).or_default().clone();
    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
    command()
}

/// Runs one command of LVM, without questions.
fn lvm(command: &'static str, arguments: &[&OsStr]) -> Result<String> {
    let mut all: Vec<&OsStr> = vec![command.as_ref()];
    if command != "version" {
        all.extend(["-y", "-qq", "--config", SETTINGS].map(OsStr::new));
    }
    all.extend(arguments);
    Kernel.run("lvm", &all, DEADLINE).map(|output| output.stdout)
}

fn report<T: for<'a> Deserialize<'a>>(
    command: &'static str,
    kind: &'static str,
    arguments: &[&OsStr],
) -> Result<Vec<T>> {
    let json = ["--reportformat", "json", "--units", "b", "--nosuffix"].map(OsStr::new);
    let text = lvm(command, &[&json[..], arguments].concat())?;
    parse(&text, kind).map_err(|why| Error::because("read the report of", command, why))
}

/// The rows of a report: `{"report":[{"<kind>":[{…},…]}]}`.
fn parse<T: for<'a> Deserialize<'a>>(text: &str, kind: &str) -> std::result::Result<Vec<T>, String> {
    #[derive(Deserialize)]
    struct Report {
        report: Vec<serde_json::Map<String, serde_json::Value>>,
    }
    let report: Report = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let [mut only] =
        <[_; 1]>::try_from(report.report).map_err(|all| format!("{} reports in one", all.len()))?;
    let rows = only.remove(kind).ok_or_else(|| format!("it has no {kind:?}"))?;
    serde_json::from_value(rows).map_err(|error| error.to_string())
}

/// Every value of a report is text.
fn text<'a, D: Deserializer<'a>>(from: D) -> std::result::Result<String, D::Error> {
    String::deserialize(from)
}

fn number<'a, D: Deserializer<'a>>(from: D) -> std::result::Result<u64, D::Error> {
    text(from)?.parse().map_err(D::Error::custom)
}

fn word<'a, D: Deserializer<'a>>(from: D) -> std::result::Result<Option<String>, D::Error> {
    Ok(Some(text(from)?).filter(|word| !word.is_empty()))
}

fn words<'a, D: Deserializer<'a>>(from: D) -> std::result::Result<Vec<String>, D::Error> {
    Ok(text(from)?.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

fn ranges<'a, D: Deserializer<'a>>(from: D) -> std::result::Result<Vec<String>, D::Error> {
    Ok(text(from)?.split_whitespace().map(str::to_owned).collect())
}

fn percent<'a, D: Deserializer<'a>>(from: D) -> std::result::Result<Option<f64>, D::Error> {
    match word(from)? {
        None => Ok(None),
        Some(word) => match word.parse() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Some(percent)),
            _ => Err(D::Error::custom(format!("{word} is no percentage"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUMES: &str = r#"{"report": [{"lv": [
        {"lv_name":"pool","lv_size":"734003200","lv_tags":"","pool_lv":"","data_percent":"0.00","metadata_percent":"10.94"},
        {"lv_name":"v1","lv_size":"4194304","lv_tags":"orlop.dev/volume=a,b","pool_lv":"pool","data_percent":"3.1","metadata_percent":""}
    ]}], "log": []}"#;

    #[test]
    fn a_report_is_read_as_it_is() {
        let volumes: Vec<LogicalVolume> = parse(VOLUMES, "lv").expect("a report");
        assert_eq!((volumes[0].data, volumes[0].metadata, &volumes[0].pool), (Some(0.0), Some(10.94), &None));
        assert_eq!(volumes[1].tags, ["orlop.dev/volume=a", "b"]);
        assert_eq!((volumes[1].size, volumes[1].pool.as_deref()), (4 << 20, Some("pool")));
    }

    #[test]
    fn what_is_not_as_expected_is_refused() {
        for text in [
            "",
            "{}",
            r#"{"report":[]}"#,
            r#"{"report":[{"lv":[]},{"lv":[]}]}"#,
            r#"{"report":[{"vg":[]}]}"#,
            &VOLUMES.replace("4194304", "4.00m"),
            &VOLUMES.replace("4194304", "-1"),
            &VOLUMES.replace("10.94", "110.94"),
            &VOLUMES.replace("10.94", "NaN"),
            &VOLUMES.replace(r#""lv_size":"4194304","#, ""),
        ] {
            assert!(parse::<LogicalVolume>(text, "lv").is_err(), "{text}");
        }
    }

    #[test]
    fn devices_are_named_as_the_device_mapper_does() {
        assert_eq!(logical_device("orlop_1", "v7"), Path::new("/dev/mapper/orlop_1-v7"));
        assert_eq!(logical_device("a-b", "c"), Path::new("/dev/mapper/a--b-c"));
    }
}
