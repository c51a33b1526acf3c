//! Secrets as CSI drivers take them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;

/// A secret can't be handed to a CSI driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the value of its key {key} is no UTF-8 text, and CSI drivers take nothing else; write it as text (binary data: in \
     base64 once more, if the driver reads that)"
)]
pub struct NotText {
    /// The key of the value.
    pub key: String,
}

/// The content of a secret, which is handed on unchanged or not at all: the fields of CSI are text.
///
/// # Errors
/// A value is no text. It is not told.
pub fn text(secret: Secret) -> Result<BTreeMap<String, String>, NotText> {
    let data = secret.data.unwrap_or_default().into_iter();
    data.map(|(key, value)| match String::from_utf8(value.0) {
        Ok(text) => Ok((key, text)),
        Err(_) => Err(NotText { key }),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn a_secret_goes_to_the_driver_unchanged_or_not_at_all() {
        let secret = |value: &[u8]| Secret {
            data: Some([("token".to_owned(), ByteString(value.to_vec()))].into()),
            ..Secret::default()
        };
        assert_eq!(text(secret("grün\n".as_bytes())).expect("text")["token"], "grün\n");
        let refused = text(secret(&[0x66, 0xff, 0x00])).expect_err("binary").to_string();
        assert!(refused.contains("its key token is no UTF-8 text"), "{refused}");
    }
}
