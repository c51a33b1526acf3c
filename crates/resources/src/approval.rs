//! The API server's rule for definitions in Kubernetes' own groups: they name the review that approved them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

/// The definition with the annotation that names the review.
pub(crate) fn approved(mut definition: CustomResourceDefinition, review: &str) -> CustomResourceDefinition {
    let annotations = definition.metadata.annotations.get_or_insert_default();
    annotations.insert("api-approved.kubernetes.io".to_owned(), review.to_owned());
    definition
}
