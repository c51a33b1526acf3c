//! Regular expressions of schemas: each is compiled once, and bounded in what it takes, by itself, for its definition,
//! and for all definitions together.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use regex::{Regex, RegexBuilder};

use super::go_syntax;

/// What a compiled expression may take in bytes, by the count of the regex crate. An expression counts as the least that
/// it fits into of these and their doubles, so that all tries together take no longer than twice the last.
const LEAST: usize = 4 << 10;
const MOST_EACH: usize = 1 << 20;
/// For the expressions of one definition together.
const MOST_DEFINITION: usize = 8 << 20;
/// For those of all definitions.
const MOST_ALL: usize = 64 << 20;
/// Longer texts are not even tried.
const MOST_TEXT: usize = 16 << 10;
/// What a search may keep for speed, in bytes, for each thread that searches.
const SEARCH: usize = 256 << 10;

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PatternError {
    #[error("must be a valid regular expression, but isn't: {0}")]
    Syntax(String),
    #[error("must be at most {MOST_TEXT} bytes long")]
    Long,
    #[error("must take at most {} KiB when compiled: use smaller repetitions or character classes", MOST_EACH >> 10)]
    Large,
    #[error("the patterns of the definition take more than {} MiB when compiled", MOST_DEFINITION >> 20)]
    DefinitionFull,
    #[error("the patterns of all definitions take more than {} MiB when compiled", MOST_ALL >> 20)]
    AllFull,
}

/// A compiled expression.
#[derive(Debug)]
pub(crate) struct Pattern {
    text: Box<str>,
    regex: Regex,
    size: usize,
    counted: bool,
}

impl Pattern {
    pub(crate) fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// What a search through a text may cost at worst, in steps of a nanosecond or so.
    pub(crate) fn cost(&self, text: &str) -> usize {
        text.len().saturating_mul(self.size / LEAST)
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        if self.counted {
            ALL.lock().used -= self.size;
        }
    }
}

/// The expressions that are compiled now.
#[derive(Default)]
struct All {
    used: usize,
    by_text: HashMap<Box<str>, Weak<Pattern>>,
}

static ALL: LazyLock<Mutex<All>> = LazyLock::new(Mutex::default);
/// Those of the definitions looked at last: one that is written is looked at more than once.
static RECENT: LazyLock<Mutex<VecDeque<Arc<Pattern>>>> = LazyLock::new(Mutex::default);

/// The expressions of one definition.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    used: usize,
    by_text: HashMap<String, Arc<Pattern>>,
}

impl Patterns {
    /// The expression, compiled unless it is already. Takes milliseconds at worst.
    pub(crate) fn compile(&mut self, text: &str) -> Result<Arc<Pattern>, PatternError> {
        if let Some(known) = self.by_text.get(text) {
            return Ok(known.clone());
        }
        if self.used >= MOST_DEFINITION {
            return Err(PatternError::DefinitionFull);
        }
        let pattern = match known(text) {
            Some(known) => known,
            // What was tried in vain counts, too: it took as long.
            None => compiled(text).inspect_err(|_| self.used += MOST_EACH).map(remember)??,
        };
        self.used += pattern.size;
        if self.used > MOST_DEFINITION {
            return Err(PatternError::DefinitionFull);
        }
        self.by_text.insert(text.to_owned(), pattern.clone());
        Ok(pattern)
    }
}

fn known(text: &str) -> Option<Arc<Pattern>> {
    ALL.lock().by_text.get(text)?.upgrade()
}

fn compiled(text: &str) -> Result<Pattern, PatternError> {
    if text.len() > MOST_TEXT {
        return Err(PatternError::Long);
    }
    let translated = go_syntax::translated(text);
    let sizes =
        std::iter::successors(Some(LEAST), |size| Some(size * 2)).take_while(|size| *size <= MOST_EACH);
    for size in sizes {
        match RegexBuilder::new(&translated).size_limit(size).dfa_size_limit(SEARCH).build() {
            Ok(regex) => return Ok(Pattern { text: text.into(), regex, size, counted: false }),
            Err(regex::Error::CompiledTooBig(_)) => {}
            Err(error) => return Err(PatternError::Syntax(error.to_string())),
        }
    }
    Err(PatternError::Large)
}

/// Counts a new expression among all, and keeps it for a while.
fn remember(mut pattern: Pattern) -> Result<Arc<Pattern>, PatternError> {
    let pattern = {
        let mut all = ALL.lock();
        if all.used + pattern.size > MOST_ALL {
            return Err(PatternError::AllFull);
        }
        all.used += pattern.size;
        pattern.counted = true;
        let pattern = Arc::new(pattern);
        all.by_text.retain(|_, known| known.strong_count() > 0);
        all.by_text.insert(pattern.as_str().into(), Arc::downgrade(&pattern));
        pattern
    };
    let mut recent = RECENT.lock();
    let mut gone = Vec::new();
    recent.push_back(pattern.clone());
    let mut used: usize = recent.iter().map(|pattern| pattern.size).sum();
    while used > MOST_DEFINITION {
        let Some(oldest) = recent.pop_front() else { break };
        used -= oldest.size;
        gone.push(oldest);
    }
    drop(recent);
    // Each takes the lock of all when it goes.
    drop(gone);
    Ok(pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_expressions_are_small_and_compiled_once() {
        let mut patterns = Patterns::default();
        for text in [
            "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
            r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            r"^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$",
            r"^.{1,253}$",
            r"^\w{1,63}$",
        ] {
            let pattern = patterns.compile(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let other = Patterns::default().compile(text).expect("known");
            assert!(Arc::ptr_eq(&pattern, &other), "{text}");
            assert!(pattern.size <= MOST_EACH / 2, "{text}: {}", pattern.size);
        }
        assert!(matches!(patterns.compile("a("), Err(PatternError::Syntax(_))));
    }

    #[test]
    fn large_ones_are_refused_and_many_tries_do_not_add_up() {
        let mut patterns = Patterns::default();
        let refused: Vec<PatternError> =
            (0..1000).map(|at| patterns.compile(&format!(r"\pL{{200}}{at}")).expect_err("large")).collect();
        assert_eq!(refused[0], PatternError::Large);
        assert!(refused[8..].iter().all(|error| *error == PatternError::DefinitionFull), "not even tried");
        assert_eq!(Patterns::default().compile(&"x".repeat(20_000)).err(), Some(PatternError::Long));
    }
}
