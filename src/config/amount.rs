//! Sizes and shares as people write them: `16MiB`, `100%`, `auto`.

use std::fmt;
use std::str::FromStr;

use bytesize::{ByteSize, Unit};

/// A whole percentage, 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

impl Percent {
    /// The whole of it.
    pub const ALL: Self = Self(100);

    /// This many hundredths; `None` above 100.
    pub const fn new(percent: u8) -> Option<Self> {
        if percent <= 100 { Some(Self(percent)) } else { None }
    }

    /// This share of `total` (bytes, inodes), rounded down.
    pub fn of(self, total: u64) -> u64 {
        let share = u128::from(total) * u128::from(self.0) / 100;
        u64::try_from(share).expect("at most 100 % of a u64 is a u64")
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_suffix('%')
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .and_then(Self::new)
            .ok_or_else(|| format!("`{text}` is not a whole percentage from 0% to 100%"))
    }
}

/// A part of a file system: a number of bytes, or a share of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// This many bytes, whatever the size of the file system.
    Bytes(ByteSize),
    /// A share of the file system's size.
    Percent(Percent),
}

impl Amount {
    /// The amount in bytes on a file system of `total` bytes.
    pub fn resolve(self, total: ByteSize) -> ByteSize {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => ByteSize::b(percent.of(total.as_u64())),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Percent(percent) => write!(f, "{percent}"),
        }
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.ends_with('%') {
            text.parse().map(Self::Percent)
        } else {
            parse_size(text).map(Self::Bytes)
        }
    }
}

/// The space that stays free on the file system of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    /// 20 % where kubelet or the root file system live on the same file
    /// system, since kubelet evicts pods below 10 to 15 %; else 5 %.
    Auto,
    /// A given amount.
    Amount(Amount),
}

impl MinFree {
    const SHARED: Percent = Percent(20);
    const OWN: Percent = Percent(5);

    /// The amount in bytes on a file system of `total` bytes; `shared` says
    /// whether kubelet or the root file system use it too.
    pub fn resolve(self, total: ByteSize, shared: bool) -> ByteSize {
        let amount = match self {
            Self::Auto if shared => Amount::Percent(Self::SHARED),
            Self::Auto => Amount::Percent(Self::OWN),
            Self::Amount(amount) => amount,
        };
        amount.resolve(total)
    }
}

impl FromStr for MinFree {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse()
            .map(Self::Amount)
            .map_err(|error| format!("{error}; `auto` chooses by who shares the file system"))
    }
}

/// A size in bytes or with an IEC unit. `16MB` and `16M` are refused: half of
/// the people who write them mean 16 MiB.
///
/// # Errors
/// The message says what would be right.
pub fn parse_size(text: &str) -> Result<ByteSize, String> {
    let wrong = || {
        format!("`{text}` is not a size: a number of bytes, or a number with KiB, MiB, GiB or TiB")
    };
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit = unit.trim_start();
    if number.is_empty() || number.starts_with('.') || number.ends_with('.') {
        return Err(wrong());
    }
    match unit.parse::<Unit>() {
        Ok(
            Unit::KiloByte
            | Unit::MegaByte
            | Unit::GigaByte
            | Unit::TeraByte
            | Unit::PetaByte
            | Unit::ExaByte,
        ) => {
            return Err(format!(
                "`{text}` has a decimal unit; write {number}{}iB, or the number of bytes",
                unit[..1].to_ascii_uppercase()
            ));
        }
        Ok(Unit::Byte) if number.contains('.') => return Err(wrong()),
        Ok(_) => {}
        Err(_) if unit.is_empty() && !number.contains('.') => {}
        Err(_) => return Err(wrong()),
    }
    match text.parse::<ByteSize>() {
        // The parser saturates.
        Ok(size) if size.as_u64() < u64::MAX => Ok(size),
        Ok(_) => Err(format!("`{text}` is more than any file system holds")),
        Err(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_iec() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512B", 512),
            ("16MiB", 16 << 20),
            ("16 MiB", 16 << 20),
            ("16Mi", 16 << 20),
            ("1.5GiB", 3 << 29),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(ByteSize::b(bytes)), "{text}");
        }
    }

    #[test]
    fn a_decimal_unit_is_refused_with_the_binary_one() {
        for text in ["16MB", "16M", "16mb", "16 MB"] {
            assert!(parse_size(text).unwrap_err().contains("16MiB"), "{text}");
        }
        assert!(parse_size("1.5k").unwrap_err().contains("1.5KiB"));
    }

    #[test]
    fn invalid_sizes_are_refused() {
        for text in [
            "", "MiB", "-1", "1.2.3GiB", "1.5", ".5GiB", "5.GiB", "1.5B", "16XiB", "1e9", "true",
            "16MiB!", "٣MiB", "1_000",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_size("99999999999999999999").is_err());
        assert!(parse_size("99999999999GiB").is_err());
    }

    #[test]
    fn an_amount_resolves_against_the_file_system() {
        let total = ByteSize::gib(200);
        assert_eq!("10%".parse::<Amount>().unwrap().resolve(total), ByteSize::gib(20));
        assert_eq!("3GiB".parse::<Amount>().unwrap().resolve(total), ByteSize::gib(3));
        assert_eq!(Percent::ALL.of(u64::MAX), u64::MAX);
    }

    #[test]
    fn percentages_are_whole_and_at_most_a_hundred() {
        assert_eq!("0%".parse(), Ok(Percent(0)));
        assert_eq!("100%".parse(), Ok(Percent::ALL));
        for text in ["101%", "-1%", "+1%", "1.5%", "%", "5", "5 %", "256%"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
        assert!("101%".parse::<Amount>().is_err());
    }

    #[test]
    fn auto_leaves_more_where_kubelet_lives() {
        let total = ByteSize::gib(100);
        let auto: MinFree = "auto".parse().unwrap();
        assert_eq!(auto.resolve(total, true), ByteSize::gib(20));
        assert_eq!(auto.resolve(total, false), ByteSize::gib(5));
        let fixed: MinFree = "7GiB".parse().unwrap();
        assert_eq!(fixed.resolve(total, true), ByteSize::gib(7));
        assert!("Auto".parse::<MinFree>().unwrap_err().contains("`auto`"));
    }
}
