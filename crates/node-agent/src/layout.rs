//! Where things are below a node's root directory: kubelet's layout, so that drivers, tools and people find
//! what they know.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// How the directory names of Kubernetes' own plugins begin.
pub(crate) const OWN: &str = "kubernetes.io~";
/// Directory name of the emptyDir plugin; configMap and secret volumes have their own.
pub(crate) const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
/// Directory name of the configMap plugin.
pub(crate) const CONFIG_MAP: &str = "kubernetes.io~configmap";
/// Directory name of the secret plugin.
pub(crate) const SECRET: &str = "kubernetes.io~secret";
/// Directory name of the downwardAPI plugin.
pub(crate) const DOWNWARD: &str = "kubernetes.io~downward-api";
/// Directory name of the projected plugin.
pub(crate) const PROJECTED: &str = "kubernetes.io~projected";
/// Directory name of the plugin of local PersistentVolumes.
pub(crate) const LOCAL: &str = "kubernetes.io~local-volume";
/// Directory name of the plugin of PersistentVolumes that are a directory of the host.
pub(crate) const HOST_PATH: &str = "kubernetes.io~host-path";
/// Directory name of the CSI plugin.
pub(crate) const CSI: &str = "kubernetes.io~csi";

/// Bytes that the name of a file may have.
const LONGEST_NAME: usize = 255;

/// The paths below one node's root. Pure: nothing here touches the file system.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`, an absolute path.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The node's root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `pods`: one directory per pod UID.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// `pods/<uid>`.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// `pods/<uid>/volumes`.
    pub fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    /// `pods/<uid>/volumes/<plugin>/<name>`, the directory of one volume.
    pub fn volume(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.volumes(uid).join(plugin).join(name)
    }

    /// The target path of a CSI volume of a pod: `…/kubernetes.io~csi/<volume>/mount`.
    pub fn csi_target(&self, uid: &str, volume: &str) -> PathBuf {
        self.volume(uid, CSI, volume).join("mount")
    }

    /// `pods/<uid>/volumeDevices`, links to the pod's block volumes by plugin and name.
    pub fn pod_devices(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumeDevices")
    }

    /// `pods/<uid>/plugins/<plugin>`, what a volume plugin keeps for itself about the pod's volumes.
    pub fn plugin(&self, uid: &str, plugin: &str) -> PathBuf {
        self.pod(uid).join("plugins").join(plugin)
    }

    /// `pods/<uid>/plugins/<plugin>/<name>/ready`, which marks a finished set-up.
    pub fn ready(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.plugin(uid, plugin).join(name).join("ready")
    }

    /// `pods/<uid>/volume-subpaths`.
    pub fn subpaths(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volume-subpaths")
    }

    /// `pods/<uid>/volume-subpaths/<volume>/<container>/<index of the mount>`.
    pub fn subpath(&self, uid: &str, volume: &str, container: &str, index: usize) -> PathBuf {
        self.subpaths(uid).join(volume).join(container).join(index.to_string())
    }

    /// `pods/<uid>/containers`.
    pub fn containers(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("containers")
    }

    /// `pods/<uid>/containers/<name>/<attempt>`: the bundle and the records of one start of a container.
    pub fn attempt(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.containers(uid).join(container).join(attempt.to_string())
    }

    /// `plugins/kubernetes.io/csi`, below which volumes are staged.
    pub fn stages(&self) -> PathBuf {
        self.root.join("plugins/kubernetes.io/csi")
    }

    /// `plugins/kubernetes.io/csi/volumeDevices`, below which block volumes are staged and published.
    pub fn devices(&self) -> PathBuf {
        self.stages().join("volumeDevices")
    }

    /// `plugins/kubernetes.io/csi/<driver>/<hex sha256 of the handle>`, the directory of a staged volume.
    pub fn stage(&self, driver: &str, handle: &str) -> PathBuf {
        let digest = Sha256::digest(handle.as_bytes());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.stages().join(driver).join(hex)
    }

    /// `logs`: what kubelet keeps in /var/log/pods.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// `logs/<namespace>_<name>_<uid>`, the log directory of a pod. A name that makes it longer than a file's name may be
    /// is cut: the UID tells pods apart.
    pub fn pod_logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        let room = LONGEST_NAME.saturating_sub(namespace.len() + uid.len() + 2);
        let name: String = name.chars().take(room).collect();
        self.logs().join(format!("{namespace}_{name}_{uid}"))
    }

    /// `leftovers`: what was found where nothing should have been.
    pub fn leftovers(&self) -> PathBuf {
        self.root.join("leftovers")
    }

    /// `seccomp`: profiles that pods name as `localhostProfile`.
    pub fn seccomp(&self) -> PathBuf {
        self.root.join("seccomp")
    }

    /// State of the OCI runtime.
    pub fn runtime_state(&self) -> PathBuf {
        self.root.join("runtime")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_kubelet() {
        let layout = Layout::new("/var/lib/kubelet");
        assert_eq!(
            layout.csi_target("u1", "pvc-1"),
            Path::new("/var/lib/kubelet/pods/u1/volumes/kubernetes.io~csi/pvc-1/mount")
        );
        assert_eq!(
            layout.stage("hostpath.csi.k8s.io", "abc"),
            Path::new(
                "/var/lib/kubelet/plugins/kubernetes.io/csi/hostpath.csi.k8s.io/\
                 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
            )
        );
        assert_eq!(
            layout.subpath("u1", "data", "app", 2),
            Path::new("/var/lib/kubelet/pods/u1/volume-subpaths/data/app/2")
        );
        let uid = "0123456789ab-0123456789ab-0123456789";
        assert_eq!(
            layout.pod_logs("n", "p", uid),
            Path::new("/var/lib/kubelet/logs").join(format!("n_p_{uid}"))
        );
        let long = layout.pod_logs(&"n".repeat(63), &"p".repeat(253), uid);
        let name = long.file_name().unwrap().to_str().unwrap();
        assert!(name.len() == 255 && name.ends_with(&format!("p_{uid}")), "{name}");
    }
}
