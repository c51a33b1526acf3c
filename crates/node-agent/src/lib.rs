//! What kubelet does for volumes: desired and actual mounts, volume plugins, pod directories, containers.
