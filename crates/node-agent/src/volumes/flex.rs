//! FlexVolume: drivers that are programs in a directory, called for each mount. Kubernetes' protocol as kubelet speaks it
//! (`pkg/volume/flexvolume`), without its attachment: drivers whose `init` wants that are refused.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use linux::{
    Host, Unmount,
    ownership::{self, ChangePolicy},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{VolumeError, csi::Publication, local::Marker};
use crate::{
    layout::{self, Layout},
    leftovers::{self, Leftover},
    plan::VolumeDirectory,
    records::{self, Record, RecordError},
};

/// Where kubelet looks for FlexVolume drivers, unless it is told otherwise: `vendor~driver/driver`.
pub const DIRECTORY: &str = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec";

/// A call may take so long; kubelet would wait for ever.
const DEADLINE: Duration = Duration::from_secs(50);

/// What is shown of an answer that is none.
const SHOWN: usize = 200;

/// A volume of a FlexVolume driver, of a pod or of a PersistentVolume.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FlexVolume {
    /// `vendor/driver`, or `driver`.
    pub(crate) driver: String,
    pub(crate) fs_type: String,
    pub(crate) read_only: bool,
    pub(crate) options: BTreeMap<String, String>,
    /// Namespace and name.
    pub(crate) secret: Option<(String, String)>,
}

/// Why a driver did not do its work. The text goes into the pod's event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum FlexError {
    #[error(
        "{0:?} is no name of a FlexVolume driver: it is vendor/driver, each of letters, digits, '.', '_' and '-'"
    )]
    Name(String),
    #[error("there is no FlexVolume driver {name}: put its program at {}", program.display())]
    Missing { name: String, program: PathBuf },
    #[error("{} is no program: make it executable", .0.display())]
    NotExecutable(PathBuf),
    #[error(
        "the FlexVolume driver {0} attaches volumes, which is not served by this node agent yet: its init would have to answer \
         with \"capabilities\": {{\"attach\": false}}"
    )]
    Attaches(String),
    #[error("{command} command of the FlexVolume driver {driver} failed, status: {status}, reason: {reason}")]
    Refused { driver: String, command: &'static str, status: String, reason: String },
    #[error(
        "{command} command of the FlexVolume driver {driver} did not end as its answer says: {how}; mend the driver"
    )]
    Contradiction { driver: String, command: &'static str, how: String },
    #[error(
        "{command} command of the FlexVolume driver {driver} gave no JSON object with a status, but {said:?}"
    )]
    NoAnswer { driver: String, command: &'static str, said: String },
    #[error("{command} command of the FlexVolume driver {driver}: {why}")]
    Call { driver: String, command: &'static str, why: String },
    #[error(
        "the secret {secret} is of type {found:?}, and the FlexVolume driver {driver} takes those of its own name"
    )]
    SecretType { secret: String, found: String, driver: String },
}

/// What a driver prints.
#[derive(Debug, Default, Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    capabilities: Capabilities,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
struct Capabilities {
    attach: bool,
    #[serde(rename = "fsGroup")]
    fs_group: bool,
}

/// What holds of a driver that says nothing.
impl Default for Capabilities {
    fn default() -> Self {
        Self { attach: true, fs_group: true }
    }
}

/// What tells one state of a driver's program from another: device, inode, and times of change.
type Version = (u64, u64, i64, i64);

/// Which program a volume was given to: written before it is called, so that it is the one that unmounts.
#[derive(Debug, Serialize, Deserialize)]
struct Given {
    name: String,
    program: PathBuf,
}

impl Record for Given {}

/// The drivers of a node.
#[derive(Debug)]
pub(crate) struct Flex {
    directory: PathBuf,
    /// What initialised programs can, until they change.
    known: Mutex<HashMap<PathBuf, (Version, Capabilities)>>,
}

impl Flex {
    pub(crate) fn new(directory: PathBuf) -> Flex {
        Flex { directory, known: Mutex::default() }
    }

    /// Lets the driver mount the volume in the pod's directory. Repeating it does no harm. Blocks.
    pub(crate) fn set_up(
        &self,
        host: &dyn Host,
        layout: &Layout,
        volume: &FlexVolume,
        options: &BTreeMap<String, String>,
        publication: &Publication,
    ) -> Result<(), VolumeError> {
        let driver = Driver::find(&self.directory, &volume.driver)?;
        let capabilities = self.initialised(&driver)?;
        if capabilities.attach {
            return Err(FlexError::Attaches(volume.driver.clone()).into());
        }
        let plugin = plugin(&volume.driver);
        let target = layout.volume(&publication.uid, &plugin, &publication.volume);
        let files = |action| move |source| VolumeError::Files { action, source };
        host.make_directory(&target, 0o750)?;
        if host.mount_table()?.at(&target).is_none() {
            let given = given(layout, &publication.uid, &plugin, &publication.volume);
            host.make_directory(given.parent().unwrap_or(layout.root()), 0o750)?;
            let record = Given { name: volume.driver.clone(), program: driver.program.clone() };
            records::write_durably(&given, &record).map_err(files("write the volume's record"))?;
            let options = json!(options).to_string();
            let called = driver.call("mount", &[target.as_os_str(), options.as_ref()]);
            if let Err(error) = called.and_then(|answer| answer.ok_or_else(|| driver.cannot("mount"))) {
                // As kubelet does; what the driver has left there is looked at when the pod goes.
                let _ = host.remove_directory(&target);
                return Err(error.into());
            }
        }
        if let Some(group) = publication.group.filter(|_| capabilities.fs_group && !publication.read_only) {
            let policy = publication.policy.unwrap_or(ChangePolicy::Always);
            ownership::apply(&target, group, false, policy).map_err(files("give the volume to fsGroup"))?;
        }
        let ready = layout.ready(&publication.uid, &plugin, &publication.volume);
        host.make_directory(ready.parent().unwrap_or(layout.root()), 0o750)?;
        // A driver need not mount; where it has, the volume is there as long as it is mounted.
        let memory = host.mount_table()?.at(&target).is_some();
        records::write_volatile(&ready, &Marker { memory }).map_err(files("write the volume's record"))
    }

    /// Initialises a driver that is new or has changed.
    fn initialised(&self, driver: &Driver) -> Result<Capabilities, FlexError> {
        let version = driver.version();
        if let Some((known, capabilities)) = self.known.lock().get(&driver.program)
            && Some(*known) == version
        {
            return Ok(*capabilities);
        }
        let answer = driver.call("init", &[])?.unwrap_or_default();
        if let Some(version) = version {
            self.known.lock().insert(driver.program.clone(), (version, answer.capabilities));
        }
        Ok(answer.capabilities)
    }
}

/// Lets the driver that mounted the volume unmount it; what it leaves mounted is unmounted without it, and so is all if its
/// program is gone. Nothing in the directory is removed. Blocks.
pub(crate) fn tear_down(
    host: &dyn Host,
    layout: &Layout,
    uid: &str,
    volume: &VolumeDirectory,
) -> Result<Option<Leftover>, VolumeError> {
    let target = layout.volume(uid, &volume.plugin, &volume.name);
    let given = given(layout, uid, &volume.plugin, &volume.name);
    let mut left = None;
    if host.exists(&target)? {
        match records::read::<Given>(&given) {
            Ok(Some(Given { name, program })) if program.exists() => {
                Driver { name, program }.call("unmount", &[target.as_os_str()])?;
            }
            Err(error @ RecordError::Newer { .. }) => return Err(error.into()),
            _ => tracing::warn!(
                uid,
                volume = volume.name,
                "unmounting a volume without its driver, which is gone"
            ),
        }
        while host.mount_table()?.at(&target).is_some() {
            host.unmount(&target, Unmount::Plain)?;
        }
        if host.exists(&target)? {
            left = leftovers::remove_directory(host, layout, &target)?;
        }
    }
    if let Some(kept) = given.parent() {
        host.remove_tree(kept)?;
    }
    Ok(left)
}

fn given(layout: &Layout, uid: &str, plugin: &str, volume: &str) -> PathBuf {
    layout.plugin(uid, plugin).join(volume).join("driver.json")
}

/// The directory's name of a driver's volumes, and of the driver itself.
pub(crate) fn plugin(driver: &str) -> String {
    driver.replacen('/', "~", 1)
}

/// Whether a plugin's directory is of a FlexVolume driver: all others are Kubernetes' own.
pub(crate) fn is_plugin(directory: &str) -> bool {
    !directory.starts_with(layout::OWN)
}

/// What a driver is told with a mount: the secret first, and the volume's own options last, as kubelet orders them.
///
/// # Errors
/// The secret is for another driver.
pub(crate) fn options(
    volume: &FlexVolume,
    pod: &k8s_openapi::api::core::v1::Pod,
    publication: &Publication,
    secret: Option<&Secret>,
) -> Result<BTreeMap<String, String>, FlexError> {
    let mut options = BTreeMap::new();
    if let Some(secret) = secret {
        let found = secret.type_.clone().unwrap_or_default();
        if found != volume.driver {
            let secret = secret.metadata.name.clone().unwrap_or_default();
            return Err(FlexError::SecretType { secret, found, driver: volume.driver.clone() });
        }
        let data = secret.data.iter().flatten();
        options.extend(data.map(|(key, value)| (format!("secret/{key}"), STANDARD.encode(&value.0))));
    }
    let metadata = pod.metadata.clone();
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    let read_only = volume.read_only || publication.read_only;
    options.extend(
        [
            ("fsType", Some(volume.fs_type.clone())),
            ("readwrite", Some(if read_only { "ro" } else { "rw" }.to_owned())),
            ("pvOrVolumeName", Some(publication.volume.clone())),
            ("pod.name", metadata.name),
            ("pod.namespace", metadata.namespace),
            ("pod.uid", Some(publication.uid.clone())),
            ("serviceAccount.name", Some(account.unwrap_or_default())),
            ("mounterArgs.FsGroup", publication.group.map(|group| group.to_string())),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?))),
    );
    let mut options: BTreeMap<_, _> =
        options.into_iter().map(|(key, value)| (format!("kubernetes.io/{key}"), value)).collect();
    options.extend(volume.options.clone());
    Ok(options)
}

/// A driver's program.
struct Driver {
    name: String,
    program: PathBuf,
}

impl Driver {
    fn find(directory: &Path, name: &str) -> Result<Driver, FlexError> {
        let (vendor, driver) =
            name.split_once('/').map_or((None, name), |(vendor, driver)| (Some(vendor), driver));
        let is_plain = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            !part.is_empty() && part.bytes().all(plain) && !part.starts_with('.')
        };
        // The directories of Kubernetes' own plugins are not a driver's.
        let is_own = vendor == Some("kubernetes.io");
        if !is_plain(driver) || !vendor.is_none_or(is_plain) || is_own {
            return Err(FlexError::Name(name.to_owned()));
        }
        let program = directory.join(plugin(name)).join(driver);
        match fs::metadata(&program) {
            Err(_) => Err(FlexError::Missing { name: name.to_owned(), program }),
            Ok(found) if !found.is_file() || found.permissions().mode() & 0o111 == 0 => {
                Err(FlexError::NotExecutable(program))
            }
            Ok(_) => Ok(Driver { name: name.to_owned(), program }),
        }
    }

    fn cannot(&self, command: &'static str) -> FlexError {
        let reason = "the driver does not do that".to_owned();
        FlexError::Refused { driver: self.name.clone(), command, status: "Not supported".to_owned(), reason }
    }

    fn version(&self) -> Option<Version> {
        let found = fs::metadata(&self.program).ok()?;
        Some((found.dev(), found.ino(), found.mtime(), found.mtime_nsec()))
    }

    /// Calls the driver; None: it says that it does not do this.
    fn call(&self, command: &'static str, arguments: &[&OsStr]) -> Result<Option<Answer>, FlexError> {
        let driver = || self.name.clone();
        let arguments: Vec<&OsStr> =
            [command.as_ref()].into_iter().chain(arguments.iter().copied()).collect();
        let ended = linux::run_to_end(&self.program.to_string_lossy(), &arguments, DEADLINE);
        let (output, status) =
            ended.map_err(|error| FlexError::Call { driver: driver(), command, why: error.to_string() })?;
        let said = [output.stdout.trim(), output.stderr.trim()].concat();
        let Ok(answer) = serde_json::from_str::<Answer>(&said) else {
            let said = said.chars().take(SHOWN).collect();
            return Err(FlexError::NoAnswer { driver: driver(), command, said });
        };
        match answer.status.as_str() {
            "Success" if status.success() => Ok(Some(answer)),
            "Success" => Err(FlexError::Contradiction { driver: driver(), command, how: status.to_string() }),
            "Not supported" => Ok(None),
            _ => Err(FlexError::Refused {
                driver: driver(),
                command,
                status: answer.status,
                reason: answer.message,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
