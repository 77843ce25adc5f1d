//! Sizes and shares as people write them: `16MiB`, `100%`, `auto`.

use std::fmt;
use std::str::FromStr;

use bytesize::ByteSize;

use super::size::parse_size;

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

#[cfg(test)]
mod tests {
    use super::*;

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
