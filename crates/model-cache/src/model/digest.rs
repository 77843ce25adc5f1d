//! The ids of revisions, blobs, models and requests. All are
//! SHA-256 over length-prefixed fields, so that no two field lists share one.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::{BucketName, Filters, NamespaceName, Prefix};
use crate::error::{Error, Result};

/// Part of every cache id: ids of different layouts never collide.
const LAYOUT: &str = "1";

/// The same for a revision. Users write revisions into their manifests, so this
/// never changes, whatever becomes of [`LAYOUT`].
const REVISION_FORMAT: &str = "1";

/// The source of a model: its location in Object Storage, without a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSource {
    /// Region or endpoint, as the client names it.
    pub location: String,
    /// Object Storage namespace.
    pub namespace: NamespaceName,
    /// Bucket.
    pub bucket: BucketName,
    /// Prefix.
    pub prefix: Prefix,
}

impl ModelSource {
    /// Its name for people, as in [`super::ModelRequest::title`].
    pub fn title(&self) -> String {
        super::request::title(&self.prefix, &self.bucket)
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci://{}@{}/{}", self.bucket, self.namespace, self.prefix)
    }
}

/// 64 hexadecimal digits, stored inline: there may be hundreds of thousands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Hex([u8; 64]);

impl Hex {
    fn parse(text: &str) -> Option<Self> {
        is_hex64(text).then(|| text.as_bytes().try_into().ok().map(Self))?
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Hex);

        impl $name {
            /// The 64 hexadecimal digits.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// Parses 64 lower-case hexadecimal digits.
            pub fn parse(text: &str) -> Option<Self> {
                Hex::parse(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                Self::parse(&text).ok_or_else(|| format!("{text:?} is not an id of 64 hex digits"))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

hex_id!(
    /// The id of one object version's bytes in the cache.
    BlobId
);
hex_id!(
    /// The key of one revision of one source in the cache: what is published and leased.
    ModelKey
);
hex_id!(
    /// The digest of a request, before it is resolved.
    RequestDigest
);

/// The exact set of object versions of a model: `sha256:` and 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Revision(String);

impl Revision {
    /// Parses `sha256:` and 64 lower-case hex digits; anything else is `Invalid`.
    pub fn parse(text: &str) -> Result<Self> {
        match text.strip_prefix("sha256:") {
            Some(hex) if is_hex64(hex) => Ok(Self(text.to_owned())),
            _ => Err(Error::invalid(format!(
                "revision {text:?} is not `sha256:` followed by 64 lower-case hex digits"
            ))),
        }
    }

    /// The revision of these (relative name, size in bytes, ETag), in any order.
    pub fn of<'a>(selected: impl Iterator<Item = (&'a str, u64, &'a str)>) -> Self {
        let mut lines: Vec<_> = selected.collect();
        lines.sort_unstable();
        let mut hasher = RevisionHasher::new();
        for (name, size, etag) in lines {
            hasher.add(name, size, etag);
        }
        hasher.finish()
    }

    /// The text, `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Computes the revision of objects that come one by one, in the order of their names.
pub struct RevisionHasher(Fields);

impl RevisionHasher {
    /// Begins without an object.
    pub fn new() -> Self {
        Self(Fields::of_format("oci-model-csi revision", REVISION_FORMAT))
    }

    /// Adds an object by its name below the prefix.
    pub fn add(&mut self, relative: &str, bytes: u64, etag: &str) {
        self.0.add(relative).add(&bytes.to_string()).add(etag);
    }

    /// The revision of all objects.
    pub fn finish(mut self) -> Revision {
        Revision(format!("sha256:{}", self.0.hex().as_str()))
    }
}

impl Default for RevisionHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl TryFrom<String> for Revision {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<Revision> for String {
    fn from(revision: Revision) -> Self {
        revision.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl BlobId {
    /// The id of one object version of `source`'s bucket in this cache scope.
    pub fn of(scope: &str, source: &ModelSource, object: &str, etag: &str) -> Self {
        let mut fields = Fields::new("oci-model-csi blob");
        fields.add(scope).add(&source.location).add(source.namespace.as_str());
        Self(fields.add(source.bucket.as_str()).add(object).add(etag).hex())
    }

    /// The id under which equal content of the same object name is found
    /// again after a re-upload: by size and MD5 instead of the ETag.
    pub fn of_content(
        scope: &str,
        source: &ModelSource,
        object: &str,
        size: u64,
        md5: &str,
    ) -> Self {
        let mut fields = Fields::new("oci-model-csi content");
        fields.add(scope).add(&source.location).add(source.namespace.as_str());
        Self(fields.add(source.bucket.as_str()).add(object).add(&size.to_string()).add(md5).hex())
    }
}

impl ModelKey {
    /// A key that no model has, for unknown ones.
    pub fn unknown() -> Self {
        Self(Hex([b'0'; 64]))
    }

    /// The key of one revision of `source` in this cache scope.
    pub fn of(scope: &str, source: &ModelSource, revision: &Revision) -> Self {
        let mut fields = Fields::new("oci-model-csi model");
        fields.add(scope).add(&source.location).add(source.namespace.as_str());
        fields.add(source.bucket.as_str()).add(source.prefix.as_str());
        Self(fields.add(revision.as_str()).hex())
    }
}

impl RequestDigest {
    /// The digest of a request: region or endpoint, namespace (`None`: the
    /// tenancy's own), bucket, prefix, filters and cache scope.
    pub fn of(
        scope: &str,
        location: &str,
        namespace: Option<&NamespaceName>,
        bucket: &BucketName,
        prefix: &Prefix,
        filters: &Filters,
    ) -> Self {
        let mut fields = Fields::new("oci-model-csi request");
        fields.add(scope).add(location).add(namespace.map_or("", NamespaceName::as_str));
        fields.add(bucket.as_str()).add(prefix.as_str());
        Self(fields.add(&filters.canonical()).hex())
    }

    /// The digest of any list of texts, under a name of its own.
    pub fn of_fields<'a>(name: &str, fields: impl Iterator<Item = &'a str>) -> Self {
        let mut digest = Fields::new(name);
        for field in fields {
            digest.add(field);
        }
        Self(digest.hex())
    }
}

fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A digest over length-prefixed fields, the first one a format line.
struct Fields(Context);

impl Fields {
    fn new(format: &str) -> Self {
        Self::of_format(format, LAYOUT)
    }

    fn of_format(format: &str, version: &str) -> Self {
        let mut fields = Self(Context::new(&SHA256));
        fields.add(format).add(version);
        fields
    }

    fn add(&mut self, field: &str) -> &mut Self {
        self.0.update(format!("{}:", field.len()).as_bytes());
        self.0.update(field.as_bytes());
        self.0.update(b"\n");
        self
    }

    fn hex(&mut self) -> Hex {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digest = self.0.clone().finish();
        let mut hex = [0; 64];
        for (two, byte) in hex.chunks_mut(2).zip(digest.as_ref()) {
            two.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        Hex(hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_does_not_depend_on_the_order_of_the_listing() {
        let a = [("a", 1, "e1"), ("b", 2, "e2")];
        let b = [("b", 2, "e2"), ("a", 1, "e1")];
        assert_eq!(Revision::of(a.into_iter()), Revision::of(b.into_iter()));
    }

    #[test]
    fn a_revision_changes_with_name_size_and_etag() {
        let base = Revision::of([("a", 1, "e")].into_iter());
        for other in [("b", 1, "e"), ("a", 2, "e"), ("a", 1, "f")] {
            assert_ne!(base, Revision::of([other].into_iter()));
        }
        assert_ne!(
            Revision::of([("a\nb", 1, "e")].into_iter()),
            Revision::of([("a", 1, "e"), ("b", 1, "e")].into_iter())
        );
    }

    /// Computed with another program: SHA-256 over `LENGTH:FIELD` lines.
    #[test]
    fn revisions_match_those_that_users_have_pinned() {
        let files = [("sub/ä.safetensors", 5_368_709_120, "5ab1f3-2"), ("config.json", 2, "e-1")];
        assert_eq!(
            Revision::of(files.into_iter()).as_str(),
            "sha256:fe7d694c44547d0be55cbbddc3380cd6c945b1d0559a8a1cca30eb8890d5cd55"
        );
        assert_eq!(
            Revision::of(std::iter::empty()).as_str(),
            "sha256:58e7443295ba4ec557b411c466bfbf150e84c8221a7568320b8c8d21aa038929"
        );
    }

    /// Of layout 1. Changing these requires a new layout: after an upgrade, leases of
    /// running pods and the newest revisions of requests are found by these ids.
    #[test]
    fn ids_match_those_that_earlier_versions_wrote_to_the_disk() {
        assert_eq!(LAYOUT, "1", "write those of the new layout here");
        let source = ModelSource {
            location: "us-ashburn-1".to_owned(),
            namespace: NamespaceName::parse("mytenancy").unwrap(),
            bucket: BucketName::parse("ai-model-cache").unwrap(),
            prefix: Prefix::parse("models/phi3").unwrap(),
        };
        let files = [("sub/ä.safetensors", 5_368_709_120, "5ab1f3-2"), ("config.json", 2, "e-1")];
        let revision = Revision::of(files.into_iter());
        let object = "models/phi3/config.json";
        let filters = Filters::parse(Some("config*,*.json"), Some("*.bin")).unwrap();
        let (bucket, prefix) = (&source.bucket, &source.prefix);
        let request = RequestDigest::of("", &source.location, None, bucket, prefix, &filters);
        let fields = |name, fields: &[&str]| RequestDigest::of_fields(name, fields.iter().copied());
        for (id, written) in [
            (
                ModelKey::of("", &source, &revision).to_string(),
                "7e05d97adc0d008c2ddb64c2681cfa1b77b8a2b4f4c699532377464846145fba",
            ),
            (
                BlobId::of("", &source, object, "e-1").to_string(),
                "02b60d603d0917f76b5b5494749889d3f108ec9544c471a337a93329eb66fd44",
            ),
            (
                BlobId::of_content("", &source, object, 2, "md5").to_string(),
                "11f5f4788b2d64c9b35f7d725f64324d68a738b2fb6458ee72d3e8b62c69c169",
            ),
            (
                request.to_string(),
                "d7e3003a02bca18507608450f038defad212d89173e1204701731e009ea07875",
            ),
            (
                fields("oci-model-csi publish", &["2", "bucket", "b", "prefix", "p", "persistent"])
                    .to_string(),
                "28b3a57ac2ae79f71fb8692c457a6408eeceb804c7f1073d5714cd3c93142109",
            ),
            (
                fields("oci-model-csi lease", &["v", "/t"]).to_string(),
                "01552635f77cec72309fedb39c39bdbbafe02c537a65ab3c801aa151b7afd9d9",
            ),
        ] {
            assert_eq!(id, written);
        }
    }

    #[test]
    fn only_complete_revisions_are_accepted() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(Revision::parse(&good).unwrap().as_str(), good);
        for bad in ["", "sha256:", "sha256:abc", &good.to_uppercase(), &good[7..]] {
            assert!(Revision::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn fields_cannot_run_into_each_other() {
        let digest = |fields: &[&str]| RequestDigest::of_fields("t", fields.iter().copied());
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_ne!(digest(&["a", ""]), digest(&["a"]));
    }
}
