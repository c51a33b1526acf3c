use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Secret, SecretReference};
use kube::{Api, Client};
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
    /// CSI drivers take secrets as strings.
    #[error(
        "the value of the key {name} in the secret {key} is no UTF-8 text, and CSI drivers take nothing else; write it as \
         text (for binary data: in base64 once more, if the driver reads that)"
    )]
    Binary {
        /// The secret.
        key: Key,
        /// The key in it.
        name: String,
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
    as_text(key, secret)
}

/// A secret's content, which is handed on unchanged or not at all.
fn as_text(key: Key, secret: Secret) -> Result<BTreeMap<String, String>, SecretError> {
    let data = secret.data.unwrap_or_default().into_iter();
    data.map(|(name, value)| match String::from_utf8(value.0) {
        Ok(text) => Ok((name, text)),
        Err(_) => Err(SecretError::Binary { key: key.clone(), name }),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn a_secret_goes_to_the_driver_unchanged_or_not_at_all() {
        let key = || Key { namespace: "ns".to_owned(), name: "creds".to_owned() };
        let secret = |value: &[u8]| Secret {
            data: Some([("token".to_owned(), ByteString(value.to_vec()))].into()),
            ..Secret::default()
        };
        let text = as_text(key(), secret("grün\n".as_bytes())).expect("text");
        assert_eq!(text["token"], "grün\n");
        let refused = as_text(key(), secret(&[0x66, 0xff, 0x00])).expect_err("binary").to_string();
        assert!(refused.contains("key token") && refused.contains("secret ns/creds"), "{refused}");
        assert!(!refused.contains("ff"), "the value is not told: {refused}");
    }
}
