//! Names as Object Storage and the driver allow them.

use std::fmt;

use crate::error::{Error, Result};
use crate::text::shown;

/// A bucket's name: 1 to 256 of letters, digits, `-`, `_`, `.`
/// (Object Storage API, CreateBucketDetails.name).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketName(String);

/// An Object Storage namespace: letters, digits, `-`, `_`; one per tenancy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceName(String);

/// A directory-like prefix: empty (the whole bucket) or ending in exactly one
/// `/`, so that `models/phi3` never selects `models/phi3-mini/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(String);

impl BucketName {
    /// Parses a bucket name; an invalid one is `Invalid`.
    pub fn parse(text: &str) -> Result<Self> {
        // `.` and `..` would be directories in a URL path.
        let good = (1..=256).contains(&text.len())
            && text != "."
            && text != ".."
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::invalid(format!(
                "bucket {:?} is not a bucket name: 1 to 256 letters, digits, '-', '_' or '.'",
                shown(text, 100)
            )))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl NamespaceName {
    /// Parses a namespace; an invalid one is `Invalid`.
    pub fn parse(text: &str) -> Result<Self> {
        let good = (1..=256).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::invalid(format!(
                "namespace {:?} is not an Object Storage namespace: letters, digits, '-' or \
                 '_' (`oci os ns get` prints a tenancy's)",
                shown(text, 100)
            )))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Prefix {
    /// Parses a prefix with or without its trailing slash.
    ///
    /// A leading `/`, `//`, a `.` or `..` segment, or a control character is `Invalid`.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse =
            |why: &str| Err(Error::invalid(format!("prefix {:?} {why}", shown(text, 200))));
        if text.is_empty() {
            return Ok(Self(String::new()));
        }
        if text.len() > 1024 {
            return refuse("is longer than an object name can be (1024 bytes)");
        }
        if text.starts_with('/') {
            return refuse("starts with '/': object names have no leading slash, leave it out");
        }
        if text.contains(['\0', '\n', '\r']) {
            return refuse("contains a NUL or a line break, which no object name has");
        }
        let body = text.strip_suffix('/').unwrap_or(text);
        for segment in body.split('/') {
            match segment {
                "" => return refuse("contains '//'"),
                "." | ".." => return refuse("contains a '.' or '..' segment"),
                _ => {}
            }
        }
        Ok(Self(format!("{body}/")))
    }

    /// The prefix of object names: empty, or ending in `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The object that a user may have meant: the prefix without its slash.
    pub fn as_object_name(&self) -> Option<&str> {
        self.0.strip_suffix('/')
    }

    /// The directory above; that of the whole bucket is itself.
    #[must_use]
    pub fn parent(&self) -> Self {
        let name = self.as_object_name().unwrap_or_default();
        Self(name[..name.rfind('/').map_or(0, |slash| slash + 1)].to_owned())
    }
}

macro_rules! displays_as_text {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
displays_as_text!(BucketName, NamespaceName, Prefix);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_with_or_without_its_slash_is_the_same_directory() {
        assert_eq!(Prefix::parse("models/phi3").unwrap(), Prefix::parse("models/phi3/").unwrap());
        assert_eq!(Prefix::parse("models/phi3").unwrap().as_str(), "models/phi3/");
        assert_eq!(Prefix::parse("").unwrap().as_str(), "");
    }

    #[test]
    fn prefixes_that_name_no_directory_are_refused() {
        for bad in
            ["/a", "a//b", "a//", "../a", "a/../b", "a/..", ".", "a/./b", "a\0b", "/", "a\nb"]
        {
            assert!(Prefix::parse(bad).is_err(), "{bad:?} was taken");
        }
        assert!(Prefix::parse("a/..b/...").is_ok());
    }

    #[test]
    fn bucket_and_namespace_names_follow_the_service() {
        for good in ["a", "ai-model-cache", "A_b.9"] {
            assert!(BucketName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "a b", "..", "ä", &"x".repeat(257)] {
            assert!(BucketName::parse(bad).is_err(), "{bad}");
        }
        assert!(NamespaceName::parse("axaxnpcrorw5").is_ok());
        assert!(NamespaceName::parse("a.b").is_err());
    }
}
