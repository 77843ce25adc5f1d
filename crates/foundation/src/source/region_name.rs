//! The names of regions, as users write them.

use std::fmt;
use std::str::FromStr;

use super::StorageError;
use crate::text::shown;

/// A region's identifier (`eu-frankfurt-1`), its short code (`fra`), or the domain behind
/// `objectstorage.` of a realm that has no public one; in lower case.
///
/// Oracle adds regions several times a year, so the form is checked and not the name itself.
/// Source: Oracle's "Regions and Availability Domains".
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegionName(String);

/// DNS allows names of this many bytes.
const NAME_MAX: usize = 253;

impl RegionName {
    /// The text in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegionName {
    type Err = StorageError;

    /// Parses a name in any case, with blanks around it.
    fn from_str(text: &str) -> Result<Self, StorageError> {
        let name = text.trim().to_ascii_lowercase();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        let is_code = name.len() == 3;
        let is_known_form = is_code || name.contains(['-', '.']);
        let ends = name.starts_with(['-', '.']) || name.ends_with(['-', '.']);
        if !is_known_form || ends || name.len() > NAME_MAX || !name.bytes().all(plain) {
            return Err(StorageError::config(
                format!("reading the region {:?}", shown(text, 100)),
                "a region is an identifier such as eu-frankfurt-1, or a short code such as fra",
            )
            .with_remedy("the OCI Console and oci iam region list show the identifiers"));
        }
        Ok(Self(name))
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_short_codes_and_domains_are_regions_and_cities_are_not() {
        for (text, name) in [
            ("eu-frankfurt-1", "eu-frankfurt-1"),
            (" IAD\n", "iad"),
            ("eu-x-1.example.org", "eu-x-1.example.org"),
        ] {
            assert_eq!(text.parse::<RegionName>().unwrap().as_str(), name);
        }
        let long = "a-".repeat(200) + "1";
        for text in
            ["", "Frankfurt", "a b", "eu-frankfurt-1/", "eu_frankfurt_1", "-a-1", "a-1.", &long]
        {
            let error = text.parse::<RegionName>().unwrap_err().to_string();
            assert!(error.contains("such as eu-frankfurt-1"), "{error}");
        }
    }
}
