use std::any::Any;
use std::error::Error;

use kube::core::Status;

/// An error with its causes as one line. A cause that its parent's message already quotes is not repeated, and a
/// refusal by the API server is told in the server's words alone.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    for cause in chain(error).skip(1) {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
    }
    // The client adds the whole status as debug text, wherever it is quoted.
    if let Some(status) = refusal(error) {
        line = line.replace(&kube::Error::Api(Box::new(status.clone())).to_string(), &wording(status));
    }
    line
}

/// The API server's refusal among an error and its causes.
fn refusal<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Status> {
    chain(error).find_map(|cause| match cause.downcast_ref() {
        Some(kube::Error::Api(status)) => Some(&**status),
        // Below a transparent error only the status itself is left.
        _ => cause.downcast_ref::<Status>().or_else(|| Some(cause.downcast_ref::<Box<Status>>()?)),
    })
}

/// What the API server said.
fn wording(status: &Status) -> String {
    match (status.message.is_empty(), status.reason.is_empty()) {
        (false, _) => status.message.clone(),
        (true, false) => format!("the API server refused: {}", status.reason),
        (true, true) => format!("the API server refused with status {}", status.code),
    }
}

/// Whether the API refused because somebody else's write came first.
pub fn is_conflict(error: &(dyn Error + 'static)) -> bool {
    refusal(error).is_some_and(Status::is_conflict)
}

/// An error and its causes, outermost first.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source())
}

/// What a panic said.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&'static str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
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
    enum Refused {
        #[error("could not write the claim")]
        Terse(#[source] kube::Error),
        #[error("could not write the claim: {0}")]
        Quoting(#[source] kube::Error),
        #[error(transparent)]
        Transparent(#[from] kube::Error),
    }

    fn refusal(code: u16, reason: &str) -> kube::Error {
        let status =
            Status { code, reason: reason.to_owned(), message: "no".to_owned(), ..Status::default() };
        kube::Error::Api(Box::new(status))
    }

    #[test]
    fn causes_are_named_once() {
        assert_eq!(explain(&Write::Terse(Fire)), "writing failed: the disk is on fire");
        assert_eq!(explain(&Write::Quoting(Fire)), "writing failed: the disk is on fire");
    }

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        let refused = |message: &str, reason: &str| {
            let (message, reason) = (message.to_owned(), reason.to_owned());
            kube::Error::Api(Box::new(Status { message, reason, code: 403, ..Status::default() }))
        };
        let message = "pods \"a\" is forbidden: no";
        for (error, expected) in [
            (
                Refused::Quoting(refused(message, "Forbidden")),
                "could not write the claim: pods \"a\" is forbidden: no",
            ),
            (
                Refused::Terse(refused(message, "Forbidden")),
                "could not write the claim: pods \"a\" is forbidden: no",
            ),
            (Refused::Transparent(refused(message, "Forbidden")), message),
            (
                Refused::Terse(refused("", "Forbidden")),
                "could not write the claim: the API server refused: Forbidden",
            ),
            (
                Refused::Quoting(refused("", "")),
                "could not write the claim: the API server refused with status 403",
            ),
        ] {
            assert_eq!(explain(&error), expected);
        }
        assert_eq!(explain(&refused(message, "Forbidden")), message);
    }

    #[test]
    fn a_conflict_is_found_among_the_causes() {
        type Wrap = fn(kube::Error) -> Refused;
        let ways: [Wrap; 3] = [Refused::Terse, Refused::Quoting, Refused::Transparent];
        for way in ways {
            assert!(is_conflict(&way(refusal(409, "Conflict"))));
            assert!(!is_conflict(&way(refusal(409, "AlreadyExists"))));
            assert!(!is_conflict(&way(refusal(403, "Forbidden"))));
        }
        assert!(!is_conflict(&Fire));
    }
}
