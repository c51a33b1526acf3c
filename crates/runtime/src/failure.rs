use std::error::Error;

/// An error with its causes as one line. A cause that its parent's message already quotes is not repeated.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
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

    #[test]
    fn causes_are_named_once() {
        assert_eq!(explain(&Write::Terse(Fire)), "writing failed: the disk is on fire");
        assert_eq!(explain(&Write::Quoting(Fire)), "writing failed: the disk is on fire");
    }
}
