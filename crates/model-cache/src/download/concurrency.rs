//! How many requests run at once: the option `download.concurrency`.

use std::fmt;
use std::str::FromStr;

/// The number of requests that run at once, over all downloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Concurrency {
    /// Between [`Concurrency::LEAST`] and [`Concurrency::MOST`], by what the network gives.
    #[default]
    Auto,
    /// This many, at least 1.
    Fixed(usize),
}

impl Concurrency {
    /// Where `auto` begins, and below which it does not go. Throttling may lower the number of
    /// one bucket further.
    pub const LEAST: usize = 16;

    /// Where `auto` ends.
    pub const MOST: usize = 256;

    /// The largest fixed number.
    const LARGEST: usize = 1024;

    /// How many requests a new engine begins with.
    pub(super) fn first(self) -> usize {
        match self {
            Self::Auto => Self::LEAST,
            Self::Fixed(number) => number.max(1),
        }
    }
}

impl FromStr for Concurrency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let number = text.parse().ok().filter(|number| (1..=Self::LARGEST).contains(number));
        number.map(Self::Fixed).ok_or_else(|| {
            format!("`{text}` is neither auto nor a whole number from 1 to {}", Self::LARGEST)
        })
    }
}

impl fmt::Display for Concurrency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(number) => number.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrency_is_auto_or_a_number_in_bounds() {
        for text in ["auto", "1", "1024"] {
            assert_eq!(text.parse::<Concurrency>().unwrap().to_string(), text);
        }
        for text in ["", "0", "1025", "10000", "-1", "Auto", "1.5"] {
            let error = text.parse::<Concurrency>().unwrap_err();
            assert!(error.contains("from 1 to 1024"), "{error}");
        }
    }
}
