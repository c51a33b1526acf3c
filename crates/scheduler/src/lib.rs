//! What kube-scheduler does for volumes: place pods by volume topology, limits and capacity.
