//! Numbers as they are written: compared and added in decimal, without the noise of binary fractions.

use std::fmt;

/// A decimal number: `units` times ten to the power of `-scale`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decimal {
    units: i128,
    scale: u32,
}

/// So many digits after the point are kept.
const SCALE_MAX: u32 = 28;

impl Decimal {
    /// An integer.
    pub fn of(n: i64) -> Decimal {
        Decimal {
            units: n.into(),
            scale: 0,
        }
    }

    /// Reads a number as JSON writes it. `None` if it is none, or has more digits than are computed with: 38
    /// in all, 28 after the point.
    pub fn parse(text: &str) -> Option<Decimal> {
        let (negative, digits, exponent) = canonical(text)?;
        let mut units: i128 = 0;
        for digit in digits.bytes() {
            units = units.checked_mul(10)?.checked_add((digit - b'0').into())?;
        }
        let scale = if exponent > 0 {
            let exponent = u32::try_from(exponent).ok()?;
            units = units.checked_mul(10i128.checked_pow(exponent)?)?;
            0
        } else {
            u32::try_from(-exponent).ok().filter(|s| *s <= SCALE_MAX)?
        };
        let units = if negative { -units } else { units };
        Some(Decimal { units, scale })
    }

    /// The sum; `None` if it has more digits than are computed with.
    pub fn plus(self, other: Decimal) -> Option<Decimal> {
        let [a, b] = self.aligned(other)?;
        let scale = self.scale.max(other.scale);
        let units = a.checked_add(b)?;
        Some(Decimal { units, scale }.short())
    }

    /// How two compare.
    pub fn compare(self, other: Decimal) -> Option<std::cmp::Ordering> {
        let [a, b] = self.aligned(other)?;
        Some(a.cmp(&b))
    }

    /// The number, if it is an integer of 64 bits.
    pub fn integer(self) -> Option<i64> {
        let short = self.short();
        (short.scale == 0)
            .then(|| short.units.try_into().ok())
            .flatten()
    }

    /// True if it has nothing after the point.
    pub fn is_whole(self) -> bool {
        self.short().scale == 0
    }

    fn aligned(self, other: Decimal) -> Option<[i128; 2]> {
        let scale = self.scale.max(other.scale);
        let units = |d: Decimal| d.units.checked_mul(10i128.checked_pow(scale - d.scale)?);
        Some([units(self)?, units(other)?])
    }

    /// Without zeros at the end.
    fn short(mut self) -> Decimal {
        while self.scale > 0 && self.units % 10 == 0 {
            self.units /= 10;
            self.scale -= 1;
        }
        self
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decimal { units, scale } = self.short();
        if scale == 0 {
            return write!(f, "{units}");
        }
        let one = 10u128.pow(scale);
        let (sign, units) = (if units < 0 { "-" } else { "" }, units.unsigned_abs());
        let width = scale as usize;
        write!(f, "{sign}{}.{:0width$}", units / one, units % one)
    }
}

/// Sign, digits without zeros at either end, and the power of ten they are multiplied with; no digits
/// for zero. `None` if the text is no number.
fn canonical(text: &str) -> Option<(bool, String, i64)> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
            (mantissa, exponent.parse::<i64>().ok()?)
        }
        None => (rest, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    if whole.is_empty() || !digits().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let all = [whole, fraction].concat();
    let kept = all.trim_end_matches('0');
    let zeros = i64::try_from(all.len() - kept.len()).ok()?;
    let kept = kept.trim_start_matches('0');
    if kept.is_empty() {
        return Some((false, String::new(), 0));
    }
    let places = i64::try_from(fraction.len()).ok()?;
    let exponent = exponent.checked_sub(places)?.checked_add(zeros)?;
    Some((negative, kept.to_owned(), exponent))
}

/// A number in one form, whatever it is written like.
pub fn plain(text: &str) -> Option<String> {
    let (negative, digits, exponent) = canonical(text)?;
    Some(format!(
        "{}{digits}e{exponent}",
        if negative { "-" } else { "" }
    ))
}

/// Whether two numbers, as JSON writes them, are the same.
pub fn same(a: &str, b: &str) -> bool {
    a == b || canonical(a).is_some_and(|a| Some(a) == canonical(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(a: &str, b: &str) -> Option<String> {
        let sum = Decimal::parse(a)?.plus(Decimal::parse(b)?)?;
        Some(sum.to_string())
    }

    #[test]
    fn decimals_are_added_exactly() {
        for (a, b, c) in [
            ("0.1", "0.2", "0.3"),
            ("1", "-1", "0"),
            ("-0", "0", "0"),
            ("9007199254740993", "1", "9007199254740994"),
            ("0.9", "0.1", "1"),
            ("-0.05", "0.01", "-0.04"),
            ("1e3", "1", "1001"),
            ("1E-3", "1.5e+2", "150.001"),
            ("9223372036854775807", "1", "9223372036854775808"),
            (
                "0.0000000000000000000000000001",
                "1",
                "1.0000000000000000000000000001",
            ),
        ] {
            assert_eq!(sum(a, b).as_deref(), Some(c), "{a} + {b}");
        }
        for bad in [
            "1e39",
            "1e-29",
            "",
            "-",
            "1.2.3",
            "a",
            "1e99999999999999999999",
        ] {
            assert_eq!(Decimal::parse(bad), None, "{bad}");
        }
        assert_eq!(
            Decimal::parse("9223372036854775808").unwrap().integer(),
            None
        );
        assert_eq!(Decimal::parse("5.00").unwrap().integer(), Some(5));
    }

    #[test]
    fn numbers_are_the_same_however_they_are_written() {
        for (a, b) in [
            ("1", "1.0"),
            ("100", "1e2"),
            ("-0", "0"),
            ("0.5", "5E-1"),
            ("1e400", "10e399"),
        ] {
            assert!(same(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("1", "-1"),
            ("1", "10"),
            ("9007199254740993", "9007199254740992"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }
}
