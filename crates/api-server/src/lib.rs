//! The embedded Kubernetes API: table of kinds, REST verbs, watch, patch, discovery, OpenAPI, tables.
