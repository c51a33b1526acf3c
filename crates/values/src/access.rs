//! Access modes of volumes and claims.

use std::fmt;
use std::str::FromStr;

/// Who may use a volume at the same time, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccessMode {
    /// Many pods on one node.
    ReadWriteOnce,
    /// Many nodes, reading only.
    ReadOnlyMany,
    /// Many nodes.
    ReadWriteMany,
    /// One pod.
    ReadWriteOncePod,
}

impl AccessMode {
    /// All modes, in the order in which they are printed.
    pub const ALL: [AccessMode; 4] = [
        AccessMode::ReadWriteOnce,
        AccessMode::ReadOnlyMany,
        AccessMode::ReadWriteMany,
        AccessMode::ReadWriteOncePod,
    ];

    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            AccessMode::ReadWriteOnce => "ReadWriteOnce",
            AccessMode::ReadOnlyMany => "ReadOnlyMany",
            AccessMode::ReadWriteMany => "ReadWriteMany",
            AccessMode::ReadWriteOncePod => "ReadWriteOncePod",
        }
    }

    /// The name in tables.
    pub fn abbreviation(self) -> &'static str {
        match self {
            AccessMode::ReadWriteOnce => "RWO",
            AccessMode::ReadOnlyMany => "ROX",
            AccessMode::ReadWriteMany => "RWX",
            AccessMode::ReadWriteOncePod => "RWOP",
        }
    }
}

/// There is no such access mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Unsupported value: \"{0}\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\""
)]
pub struct UnknownAccessMode(pub String);

impl FromStr for AccessMode {
    type Err = UnknownAccessMode;

    fn from_str(name: &str) -> Result<AccessMode, UnknownAccessMode> {
        let found = AccessMode::ALL.into_iter().find(|mode| mode.as_str() == name);
        found.ok_or_else(|| UnknownAccessMode(name.into()))
    }
}

/// A set of access modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AccessModes(u8);

impl AccessModes {
    /// Whether the mode is in the set.
    pub fn contains(self, mode: AccessMode) -> bool {
        self.0 & 1 << mode as u8 != 0
    }

    /// Whether a volume with these modes offers all that a claim with `wanted` asks for.
    pub fn is_superset(self, wanted: AccessModes) -> bool {
        wanted.0 & !self.0 == 0
    }

    /// The modes in the set.
    pub fn iter(self) -> impl Iterator<Item = AccessMode> {
        AccessMode::ALL.into_iter().filter(move |mode| self.contains(*mode))
    }
}

impl FromIterator<AccessMode> for AccessModes {
    fn from_iter<I: IntoIterator<Item = AccessMode>>(modes: I) -> AccessModes {
        AccessModes(modes.into_iter().fold(0, |set, mode| set | 1 << mode as u8))
    }
}

/// `RWO,ROX`, as tables show it.
impl fmt::Display for AccessModes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(AccessMode::abbreviation).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::AccessMode::*;
    use super::*;

    #[test]
    fn sets_contain_and_print() {
        let set = |modes: &[AccessMode]| modes.iter().copied().collect::<AccessModes>();
        let both = set(&[ReadWriteMany, ReadWriteOnce, ReadWriteOnce]);
        assert_eq!(both.to_string(), "RWO,RWX");
        assert!(both.is_superset(set(&[ReadWriteOnce])));
        assert!(both.is_superset(set(&[])));
        assert!(!both.is_superset(set(&[ReadWriteOnce, ReadWriteOncePod])));
        for mode in AccessMode::ALL {
            assert_eq!(mode.as_str().parse(), Ok(mode));
        }
        assert!("RWO".parse::<AccessMode>().is_err());
    }
}
