use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Secret, SecretReference};
use kube::{Api, Client};
use resources::secret::{self, NotText};
use runtime::Key;

/// Why a secret that a call needs can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It does not exist.
    #[error("the secret {0} does not exist; create it")]
    Missing(Key),
    /// The API refused or could not be reached.
    #[error("could not read the secret {key}")]
    Api {
        /// The secret.
        key: Key,
        /// The refusal.
        source: kube::Error,
    },
    /// A driver can't be given what it contains.
    #[error("the secret {key} can't be handed to the driver: {source}")]
    NotText {
        /// The secret.
        key: Key,
        /// Why.
        source: NotText,
    },
}

/// As [`read`], where something is to be taken away: without a secret that is gone, or went with its namespace, the driver
/// is asked all the same. Most don't need it then, and nobody could bring it back.
pub(crate) async fn read_or_none(
    client: &Client,
    reference: Option<&SecretReference>,
) -> Result<BTreeMap<String, String>, SecretError> {
    match read(client, reference).await {
        Err(SecretError::Missing(key)) => {
            tracing::warn!(secret = %key, "the secret for taking something away is gone; the driver is asked without");
            Ok(BTreeMap::new())
        }
        read => read,
    }
}

/// Reads the content of a secret live; nothing without a complete reference.
pub(crate) async fn read(
    client: &Client,
    reference: Option<&SecretReference>,
) -> Result<BTreeMap<String, String>, SecretError> {
    let Some(SecretReference { name: Some(name), namespace: Some(namespace) }) = reference else {
        return Ok(BTreeMap::new());
    };
    let key = Key { namespace: namespace.clone(), name: name.clone() };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = match secrets.get_opt(name).await {
        Ok(Some(secret)) => secret,
        Ok(None) => return Err(SecretError::Missing(key)),
        Err(source) => return Err(SecretError::Api { key, source }),
    };
    secret::text(secret).map_err(|source| SecretError::NotText { key, source })
}
