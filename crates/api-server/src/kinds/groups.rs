//! The API groups of the built-in kinds.

/// The core group, whose name is empty.
pub(crate) const CORE: &str = "";
pub(crate) const APPS: &str = "apps";
pub(crate) const COORDINATION: &str = "coordination.k8s.io";
pub(crate) const EXTENSIONS: &str = "apiextensions.k8s.io";
pub(crate) const SCHEDULING: &str = "scheduling.k8s.io";
pub(crate) const STORAGE: &str = "storage.k8s.io";

/// All of them.
pub(crate) const BUILTIN: &[&str] = &[CORE, APPS, COORDINATION, EXTENSIONS, SCHEDULING, STORAGE];
