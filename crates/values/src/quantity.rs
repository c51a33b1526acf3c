//! Kubernetes' fixed-point numbers with suffixes, as in `500m`, `10Gi` and `1e3`.

use std::cmp::Ordering;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Sub};
use std::str::FromStr;

use num_bigint::{BigInt, Sign};

/// Longest text that is parsed, and largest decimal exponent: a quantity must not cost more than it says.
const MAX_TEXT: usize = 128;
const MAX_EXPONENT: i64 = 1000;
/// The finest fraction: quantities count billionths.
const NANO_DIGITS: i64 = 9;

const DECIMAL: [(&str, i64); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

/// How a quantity was written, and is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
    /// `12e6`
    DecimalExponent,
}

/// An exact number with at most nine decimal places. Equal and ordered by its value, however it was written.
///
/// Prints in Kubernetes' canonical form: no fraction, the largest suffix that allows that.
#[derive(Clone, Debug)]
pub struct Quantity {
    nanos: BigInt,
    format: Format,
}

/// Why a text is not a quantity; worded as Kubernetes words it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the form number and suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// There is no such suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// The number before the suffix is not one, or is out of all bounds.
    #[error("unable to parse numeric part of quantity")]
    Number,
}

impl Quantity {
    /// Zero.
    pub fn zero() -> Quantity {
        Quantity::new(0, Format::DecimalSi)
    }

    /// A whole number, to be printed in `format`.
    pub fn new(value: i64, format: Format) -> Quantity {
        Quantity { nanos: BigInt::from(value) * power_of_ten(NANO_DIGITS), format }
    }

    /// A size in bytes, to be printed as `10Gi`.
    pub fn from_bytes(bytes: u64) -> Quantity {
        Quantity { nanos: BigInt::from(bytes) * power_of_ten(NANO_DIGITS), format: Format::BinarySi }
    }

    /// How it was written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The value as a whole number, fractions rounded away from zero (so half a byte needs a byte); `None` if that
    /// does not fit.
    pub fn ceil(&self) -> Option<i64> {
        i64::try_from(divide_away_from_zero(&self.nanos, &power_of_ten(NANO_DIGITS))).ok()
    }

    /// The value as a size, fractions rounded up; `None` if it is negative or does not fit.
    pub fn ceil_bytes(&self) -> Option<u64> {
        u64::try_from(divide_away_from_zero(&self.nanos, &power_of_ten(NANO_DIGITS))).ok()
    }

    /// Thousandths, fractions of them rounded away from zero: CPU is counted so.
    pub fn milli(&self) -> Option<i64> {
        i64::try_from(divide_away_from_zero(&self.nanos, &power_of_ten(NANO_DIGITS - 3))).ok()
    }

    /// Less than zero.
    pub fn is_negative(&self) -> bool {
        self.nanos.sign() == Sign::Minus
    }

    /// Exactly zero.
    pub fn is_zero(&self) -> bool {
        self.nanos.sign() == Sign::NoSign
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Quantity, QuantityError> {
        if text.len() > MAX_TEXT {
            return Err(QuantityError::Number);
        }
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let (number, suffix) = unsigned
            .split_at(unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len()));
        if number.is_empty() || !is_suffix_shaped(suffix) {
            return Err(QuantityError::Format);
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let (format, scale) = suffix_meaning(suffix)?;
        let digits = format!("{whole}{fraction}");
        let mantissa: BigInt = digits.parse().map_err(|_| QuantityError::Number)?;
        let (mantissa, exponent) = match scale {
            Scale::Two(power) => (mantissa << power, 0),
            Scale::Ten(power) => (mantissa, power),
        };
        let shift = exponent - fraction.len() as i64 + NANO_DIGITS;
        let mut nanos = match shift {
            0.. => mantissa * power_of_ten(shift),
            _ => divide_away_from_zero(&mantissa, &power_of_ten(-shift)),
        };
        let mut format = format;
        if format == Format::BinarySi {
            // Kubernetes caps binary sizes, and only those, at the largest 64-bit number.
            nanos = nanos.min(BigInt::from(i64::MAX) * power_of_ten(NANO_DIGITS));
            if nanos.sign() == Sign::Plus && nanos < power_of_ten(NANO_DIGITS) {
                format = Format::DecimalSi;
            }
        }
        if text.starts_with('-') {
            nanos = -nanos;
        }
        Ok(Quantity { nanos, format })
    }
}

enum Scale {
    Two(u32),
    Ten(i64),
}

fn suffix_meaning(suffix: &str) -> Result<(Format, Scale), QuantityError> {
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::DecimalSi, Scale::Ten(*power)));
    }
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::BinarySi, Scale::Two(*power)));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
    let exponent: i64 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
    if exponent.abs() > MAX_EXPONENT {
        return Err(QuantityError::Number);
    }
    Ok((Format::DecimalExponent, Scale::Ten(exponent)))
}

/// Letters, then a sign, then digits; each may be missing.
fn is_suffix_shaped(suffix: &str) -> bool {
    let rest = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    rest.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0");
        }
        let one = power_of_ten(NANO_DIGITS);
        let whole = &self.nanos / &one;
        let exact = &whole * &one == self.nanos;
        // Small and broken binary sizes print as decimals, so that nothing is rounded.
        if self.format == Format::BinarySi && exact && whole.magnitude() >= BigInt::from(1024).magnitude() {
            let (number, times) = without_factor(whole, &BigInt::from(1024), BINARY.len());
            let suffix = times.checked_sub(1).map_or("", |index| BINARY[index].0);
            return write!(f, "{number}{suffix}");
        }
        let most = match self.format {
            Format::DecimalExponent => usize::MAX,
            _ => DECIMAL.len() - 1,
        };
        let (number, times) = without_factor(self.nanos.clone(), &BigInt::from(1000), most);
        match (self.format, times as i64 * 3 - NANO_DIGITS) {
            (Format::DecimalExponent, 0) => write!(f, "{number}"),
            (Format::DecimalExponent, exponent) => write!(f, "{number}e{exponent}"),
            _ => write!(f, "{number}{}", DECIMAL[times].0),
        }
    }
}

/// `number` divided by `factor` as often as that leaves no remainder, at most `most` times; and how often that was.
fn without_factor(mut number: BigInt, factor: &BigInt, most: usize) -> (BigInt, usize) {
    let mut times = 0;
    while times < most && (&number % factor).sign() == Sign::NoSign {
        number /= factor;
        times += 1;
    }
    (number, times)
}

fn power_of_ten(exponent: i64) -> BigInt {
    BigInt::from(10).pow(exponent as u32)
}

fn divide_away_from_zero(number: &BigInt, divisor: &BigInt) -> BigInt {
    let quotient = number / divisor;
    match (number % divisor).sign() {
        Sign::NoSign => quotient,
        Sign::Plus => quotient + 1,
        Sign::Minus => quotient - 1,
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The sum keeps the format of the left side, unless that is zero.
impl Add for Quantity {
    type Output = Quantity;

    fn add(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: self.nanos + other.nanos, format }
    }
}

/// The difference keeps the format of the left side, unless that is zero.
impl Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: self.nanos - other.nanos, format }
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Quantity>>(quantities: I) -> Quantity {
        quantities.fold(Quantity::zero(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn prints_as_kubernetes_does() {
        for (text, printed) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("-0", "0"),
            ("1Ki", "1Ki"),
            ("1024Mi", "1Gi"),
            ("1000M", "1G"),
            ("1000Ki", "1000Ki"),
            ("0.5Gi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.05Gi", "53687091200m"),
            ("100.035Ki", "102435840m"),
            (".001Ki", "1024m"),
            (".000001Ki", "1024u"),
            (".000000001Ki", "1024n"),
            (".000000000001Ki", "2n"),
            ("0.5Ki", "512"),
            ("1024", "1024"),
            ("1", "1"),
            ("+7", "7"),
            ("007", "7"),
            ("1.", "1"),
            ("1.G", "1G"),
            (".001", "1m"),
            ("0.1", "100m"),
            ("1.1", "1100m"),
            ("0.0005k", "500m"),
            ("12345678M", "12345678M"),
            ("1E", "1E"),
            ("12E", "12E"),
            ("1000E", "1000E"),
            ("1e3", "1e3"),
            ("1E6", "1e6"),
            ("1.3E+6", "1300e3"),
            ("1E-3", "1e-3"),
            ("0.5e0", "500e-3"),
            ("1e0", "1"),
            ("1e30", "1e30"),
            ("3.001n", "4n"),
            ("0.9n", "1n"),
            ("0.00000012345", "124n"),
            ("-3.001n", "-4n"),
            ("-2Gi", "-2Gi"),
            ("9Ei", "9223372036854775807"),
            ("8Ei", "9223372036854775807"),
            ("-9Ei", "-9223372036854775807"),
            ("7Ei", "7Ei"),
            ("9223372036854775808", "9223372036854775808"),
            ("1000000000000000000000000000001", "1000000000000000000000000000001"),
        ] {
            assert_eq!(quantity(text).to_string(), printed, "{text}");
        }
    }

    #[test]
    fn refuses_what_kubernetes_refuses() {
        use QuantityError::*;
        for (text, error) in [
            ("", Format),
            ("aoeu", Format),
            (" 1", Format),
            ("1 ", Format),
            ("1.1.M", Format),
            ("1+1.0M", Format),
            ("--1", Format),
            ("1.5Gi!", Format),
            ("0.1mi", Suffix),
            ("0.1am", Format),
            (".5i", Suffix),
            ("1i", Suffix),
            ("-3.01e-", Suffix),
            ("1ki", Suffix),
            ("1KI", Format),
            ("10GiB", Format),
            ("1Gi2", Suffix),
            (".", Number),
            ("1e999999999", Number),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(error), "{text}");
        }
        assert_eq!("9".repeat(1 << 20).parse::<Quantity>(), Err(Number));
    }

    #[test]
    fn compares_by_value() {
        assert_eq!(quantity("1Gi"), quantity("1073741824"));
        assert!(quantity("1G") < quantity("1Gi"));
        assert!(quantity("50m") < quantity("100m"));
        assert!(quantity("10000T") > quantity("100Gi"));
        assert!(quantity("1000000000000000000000000000001") > quantity("1e30"));
        assert!(quantity("-1") < quantity("-999m"));
    }

    #[test]
    fn rounds_away_from_zero() {
        for (text, whole) in [
            ("1100m", Some(2)),
            ("1n", Some(1)),
            ("-1100m", Some(-2)),
            ("9.01", Some(10)),
            ("10Gi", Some(10 << 30)),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775807.5", None),
            ("1e30", None),
        ] {
            assert_eq!(quantity(text).ceil(), whole, "{text}");
        }
        assert_eq!(quantity("-1").ceil_bytes(), None);
        assert_eq!(quantity("18446744073709551615").ceil_bytes(), Some(u64::MAX));
        assert_eq!(quantity("1.5").milli(), Some(1500));
    }

    #[test]
    fn adds_exactly() {
        assert_eq!((quantity("1e30") + quantity("1n")) - quantity("1e30"), quantity("1n"));
        assert_eq!((quantity("1Gi") + quantity("1G")).format(), Format::BinarySi);
        assert_eq!([quantity("1Gi"), quantity("2Gi")].into_iter().sum::<Quantity>().to_string(), "3Gi");
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(
            text in r"[+-]?[0-9]{1,25}(\.[0-9]{0,12})?(n|u|m||k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[0-9]|E-[0-9]|e\+1[0-9])"
        ) {
            let parsed = quantity(&text);
            let printed = parsed.to_string();
            prop_assert_eq!(&quantity(&printed), &parsed);
            prop_assert_eq!(quantity(&printed).to_string(), printed);
        }

        #[test]
        fn whole_numbers_are_themselves(value: i64, bytes: u64) {
            prop_assert_eq!(quantity(&value.to_string()).ceil(), Some(value));
            prop_assert_eq!(Quantity::from_bytes(bytes).ceil_bytes(), Some(bytes));
        }

        #[test]
        fn any_text_is_answered(text: String) {
            let _ = text.parse::<Quantity>();
        }
    }
}
