//! `oci://BUCKET@NAMESPACE/PREFIX`, as ocifs and the HDFS connector write it.

use std::fmt;

use super::{BucketName, NamespaceName, Prefix};
use crate::error::{Error, Result};
use crate::redact::has_par;

/// A parsed model URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelUri {
    /// Object Storage namespace; `None`: the tenancy's own.
    pub namespace: Option<NamespaceName>,
    /// Bucket.
    pub bucket: BucketName,
    /// Prefix.
    pub prefix: Prefix,
}

impl ModelUri {
    /// Parses `oci://BUCKET@NAMESPACE/PREFIX`, `oci://BUCKET/PREFIX` or
    /// `oci://n/NS/b/BUCKET/o/PREFIX`. The prefix is taken literally: it is
    /// an object name, not percent-encoded.
    pub fn parse(text: &str) -> Result<Self> {
        if has_par(text) {
            return Err(Error::invalid(
                "this is the URL of a pre-authenticated request, a credential that other users see \
                 in the list of processes: write it to a file and name that with --par-file, or \
                 pass it to the standard input of --par-file -",
            ));
        }
        let Some(rest) = text.strip_prefix("oci://") else {
            return Err(Error::invalid(format!(
                "{text:?} is not a model URI: oci://BUCKET@NAMESPACE/PREFIX, or oci://BUCKET/PREFIX \
                 in the tenancy's own namespace"
            )));
        };
        if let Some((namespace, bucket, prefix)) = long_form(rest) {
            return Self::of(Some(namespace), bucket, prefix);
        }
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        match authority.split_once('@') {
            Some((bucket, namespace)) => Self::of(Some(namespace), bucket, prefix),
            None => Self::of(None, authority, prefix),
        }
        .map_err(|e| e.context(format!("URI {text:?}")))
    }

    fn of(namespace: Option<&str>, bucket: &str, prefix: &str) -> Result<Self> {
        Ok(Self {
            namespace: namespace.map(NamespaceName::parse).transpose()?,
            bucket: BucketName::parse(bucket)?,
            prefix: Prefix::parse(prefix)?,
        })
    }
}

impl fmt::Display for ModelUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci://{}", self.bucket)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "@{namespace}")?;
        }
        write!(f, "/{}", self.prefix)
    }
}

/// `n/NS/b/BUCKET/o/PREFIX`, the path of the API.
fn long_form(rest: &str) -> Option<(&str, &str, &str)> {
    let (namespace, rest) = rest.strip_prefix("n/")?.split_once("/b/")?;
    let (bucket, prefix) = match rest.split_once("/o/") {
        Some(both) => both,
        None => (rest.strip_suffix("/o").unwrap_or(rest), ""),
    };
    let plain = !namespace.contains('/') && !bucket.contains('/');
    plain.then_some((namespace, bucket, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_name_the_same_model() {
        let long = ModelUri::parse("oci://n/ns/b/models/o/a/b").unwrap();
        assert_eq!(long, ModelUri::parse("oci://models@ns/a/b/").unwrap());
        let short = ModelUri::parse("oci://models/a/b/").unwrap();
        assert_eq!(
            (short.namespace.as_ref(), short.to_string().as_str()),
            (None, "oci://models/a/b/")
        );
        assert_eq!(long.to_string(), "oci://models@ns/a/b/");
        assert_eq!((short.bucket, short.prefix), (long.bucket, long.prefix));
        assert_eq!(ModelUri::parse("oci://models").unwrap().prefix.as_str(), "");
        assert_eq!(ModelUri::parse("oci://n/ns/b/models").unwrap().prefix.as_str(), "");
    }

    #[test]
    fn names_are_taken_literally() {
        let uri = ModelUri::parse("oci://b@ns/a b%20c#d?e/").unwrap();
        assert_eq!(uri.prefix.as_str(), "a b%20c#d?e/");
    }

    #[test]
    fn a_pre_authenticated_request_is_refused_with_the_flag_for_it_and_not_repeated() {
        let error = ModelUri::parse("https://x/p/s3cret/n/ns/b/bk/o/").unwrap_err();
        assert!(error.message().contains("--par-file"), "{error}");
        assert!(!error.message().contains("s3cret"), "{error}");
    }

    #[test]
    fn invalid_model_uris_are_refused() {
        for bad in ["", "s3://b/p", "oci://", "oci:///p", "oci://b@/p", "oci://b@n@x/p", "b/p"] {
            assert!(ModelUri::parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
