//! Sizes in bytes for people.

use std::fmt;
use std::str::FromStr;

use crate::{Quantity, QuantityError};

const UNITS: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// A size in bytes. Reads what a [`Quantity`] reads; prints `10Gi`, or one decimal place (`9.8Gi`, rounded down) where
/// the exact number would be unreadable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BytesError {
    /// Not a quantity.
    #[error(transparent)]
    Quantity(#[from] QuantityError),
    /// Negative, or more than 16 EiB.
    #[error("a size must be from 0 to 16Ei bytes")]
    Range,
}

impl Bytes {
    /// As it prints, but exact where `other` is not the same and would look the same.
    pub fn beside(self, other: Bytes) -> String {
        match self.to_string() {
            text if self != other && text == other.to_string() => format!("{} bytes", self.0),
            text => text,
        }
    }
}

impl FromStr for Bytes {
    type Err = BytesError;

    fn from_str(text: &str) -> Result<Bytes, BytesError> {
        text.parse::<Quantity>()?.ceil_bytes().map(Bytes).ok_or(BytesError::Range)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = self.0.checked_ilog2().unwrap_or(0) / 10;
        let Some(unit) = power.checked_sub(1).map(|index| UNITS[index as usize]) else {
            return write!(f, "{}", self.0);
        };
        let tenths = (u128::from(self.0) * 10) >> (10 * power);
        match tenths % 10 {
            0 => write!(f, "{}{unit}", tenths / 10),
            tenth => write!(f, "{}.{tenth}{unit}", tenths / 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints() {
        for (text, bytes, printed) in [
            ("0", 0, "0"),
            ("1023", 1023, "1023"),
            ("10Gi", 10 << 30, "10Gi"),
            ("1G", 1_000_000_000, "953.6Mi"),
            ("1.5Gi", 3 << 29, "1.5Gi"),
            ("1023.99Mi", 1_073_731_339, "1023.9Mi"),
            ("7Ei", 7 << 60, "7Ei"),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
            assert_eq!(Bytes(bytes).to_string(), printed, "{text}");
        }
        assert_eq!(Bytes(u64::MAX).to_string(), "15.9Ei");
        assert_eq!(Bytes((10 << 30) + 1).beside(Bytes(10 << 30)), "10737418241 bytes");
        assert_eq!(Bytes(11 << 30).beside(Bytes(10 << 30)), "11Gi");
        assert_eq!(Bytes(10 << 30).beside(Bytes(10 << 30)), "10Gi");
        assert_eq!("-1".parse::<Bytes>(), Err(BytesError::Range));
        assert!(matches!("ten".parse::<Bytes>(), Err(BytesError::Quantity(_))));
    }
}
