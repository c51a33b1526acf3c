//! Annotation, label and finalizer names, our custom resources, and typed helpers over the Kubernetes API types.
