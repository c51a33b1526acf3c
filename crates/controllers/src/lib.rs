//! What kube-controller-manager does for volumes: bind, reclaim, protect, collect, namespaces.
