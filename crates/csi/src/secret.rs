//! What `Debug` shows in the place of secrets.

use std::collections::BTreeMap;
use std::fmt;

/// Stands for a map of secrets, of which only the number of entries is shown.
pub(crate) struct Redacted(pub(crate) usize);

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} redacted]", self.0)
    }
}

/// A map whose values may be sensitive.
pub(crate) struct Names<'a>(pub(crate) &'a BTreeMap<String, String>);

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use crate::v1;
    use std::collections::BTreeMap;

    #[test]
    fn debug_shows_everything_but_secrets() {
        let secrets = BTreeMap::from([("password-key".to_owned(), "hunter2".to_owned())]);
        let shown = [
            format!(
                "{:?}",
                v1::CreateVolumeRequest {
                    secrets: secrets.clone(),
                    name: "pvc-1".into(),
                    ..Default::default()
                }
            ),
            format!(
                "{:#?}",
                v1::NodeStageVolumeRequest {
                    secrets: secrets.clone(),
                    volume_id: "pvc-1".into(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                v1::NodeExpandVolumeRequest {
                    secrets: secrets.clone(),
                    volume_id: "pvc-1".into(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                v1::GetMetadataDeltaRequest {
                    secrets,
                    base_snapshot_id: "pvc-1".into(),
                    ..Default::default()
                }
            ),
        ];
        for text in shown {
            assert!(text.contains("pvc-1") && text.contains("[1 redacted]"), "{text}");
            assert!(!text.contains("hunter2") && !text.contains("password-key"), "{text}");
        }
    }

    #[test]
    fn debug_shows_only_the_names_of_a_context() {
        let volume_context = BTreeMap::from([("serviceAccount.tokens".to_owned(), "eyJhbGci".to_owned())]);
        let text = format!("{:?}", v1::NodePublishVolumeRequest { volume_context, ..Default::default() });
        assert!(text.contains("serviceAccount.tokens") && !text.contains("eyJhbGci"), "{text}");
    }
}
