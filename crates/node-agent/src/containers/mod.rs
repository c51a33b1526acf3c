//! Containers of image `host`: the command runs in its own namespaces on the host's own root file system, with the
//! pod's volumes.

pub(crate) mod attempt;
pub(crate) mod bundle;
mod capabilities;
pub(crate) mod cgroup;
pub(crate) mod environment;
pub(crate) mod log_file;
pub(crate) mod monitor;
pub(crate) mod oci;
pub(crate) mod seccomp;
pub(crate) mod signal;
pub(crate) mod start;

pub(crate) use capabilities::bounding_set;
