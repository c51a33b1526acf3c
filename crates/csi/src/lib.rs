//! The CSI and plugin-registration protocols, and unix-socket plumbing for both ends.
