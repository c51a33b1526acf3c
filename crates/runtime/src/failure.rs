use std::error::Error;

/// An error with its causes as one line for people. A cause that its parent's message already quotes is not repeated,
/// and a refusal of the API server is the server's own message: the client's wording of one holds debug text.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        let refusal = error.downcast_ref::<kube::Error>().and_then(refusal);
        let words = refusal.as_ref().unwrap_or(&text);
        if line.contains(&text) {
            line = line.replace(&text, words);
        } else if !line.contains(words.as_str()) {
            line.push_str(if line.is_empty() { "" } else { ": " });
            line.push_str(words);
        }
        next = if refusal.is_some() { None } else { error.source() };
    }
    line
}

/// What the API server said, if it was the server that refused.
fn refusal(error: &kube::Error) -> Option<String> {
    let kube::Error::Api(status) = error else { return None };
    Some(match (status.message.is_empty(), status.reason.is_empty()) {
        (false, _) => status.message.clone(),
        (true, false) => format!("the API server refused: {}", status.reason),
        (true, true) => format!("the API server refused with status {}", status.code),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the disk is on fire")]
    struct Fire;

    #[derive(Debug, thiserror::Error)]
    enum Write {
        #[error("writing failed")]
        Terse(#[source] Fire),
        #[error("writing failed: {0}")]
        Quoting(#[source] Fire),
    }

    #[derive(Debug, thiserror::Error)]
    enum Call {
        #[error("can't create the pod: {0}")]
        Quoting(#[source] kube::Error),
        #[error("can't create the pod")]
        Terse(#[from] kube::Error),
    }

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        let refused = |message: &str, reason: &str| {
            kube::Error::Api(Box::new(kube::core::Status {
                message: message.to_owned(),
                reason: reason.to_owned(),
                code: 403,
                ..Default::default()
            }))
        };
        let message = "pods \"a\" is forbidden: no";
        for (error, expected) in [
            (
                Call::Quoting(refused(message, "Forbidden")),
                "can't create the pod: pods \"a\" is forbidden: no",
            ),
            (Call::Terse(refused(message, "Forbidden")), "can't create the pod: pods \"a\" is forbidden: no"),
            (
                Call::Terse(refused("", "Forbidden")),
                "can't create the pod: the API server refused: Forbidden",
            ),
            (Call::Quoting(refused("", "")), "can't create the pod: the API server refused with status 403"),
        ] {
            assert_eq!(explain(&error), expected);
        }
        assert_eq!(explain(&refused(message, "Forbidden")), message);
    }

    #[test]
    fn causes_are_named_once() {
        assert_eq!(explain(&Write::Terse(Fire)), "writing failed: the disk is on fire");
        assert_eq!(explain(&Write::Quoting(Fire)), "writing failed: the disk is on fire");
    }
}
