//! The name of a model as part of a Kubernetes label's key.

use aws_lc_rs::digest::{SHA256, digest};

use super::ModelSource;

/// Prefix of the names of all models.
pub const LABEL_START: &str = "model.";

/// Characters of the readable part, so that the whole name has at most 63.
const READABLE: usize = 48;

/// `model.NAME.HASH`: the last segment of the prefix (of the whole bucket, its
/// name) in the characters that a label may have, and the first 8 digits of the
/// SHA-256 of `oci://BUCKET@NAMESPACE/PREFIX`, which distinguishes models of one name.
pub fn node_label(source: &ModelSource) -> String {
    let (prefix, bucket) = (source.prefix.as_str(), source.bucket.as_str());
    let last = prefix.trim_end_matches('/').rsplit('/').next();
    let name = last.filter(|name| !name.is_empty()).unwrap_or(bucket);
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = name.chars().map(plain).take(READABLE).collect();
    let hash = digest(&SHA256, source.to_string().as_bytes());
    let hash = hash.as_ref().iter().take(4).map(|byte| format!("{byte:02x}"));
    format!("{LABEL_START}{name}.{}", hash.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BucketName, NamespaceName, Prefix};

    fn label(bucket: &str, prefix: &str) -> String {
        node_label(&ModelSource {
            location: "us-ashburn-1".to_owned(),
            namespace: NamespaceName::parse("mytenancy").unwrap(),
            bucket: BucketName::parse(bucket).unwrap(),
            prefix: Prefix::parse(prefix).unwrap(),
        })
    }

    #[test]
    fn a_label_can_be_computed_from_the_uri() {
        // printf %s oci://ai-model-cache@mytenancy/models/phi3-mini/ | sha256sum | cut -c1-8
        assert_eq!(label("ai-model-cache", "models/phi3-mini/"), "model.phi3-mini.417203bd");
    }

    #[test]
    fn every_model_has_a_valid_label_of_its_own() {
        let (long, strange) = ("x".repeat(200), "models/_ünï we+rd_/");
        let sources = [
            ("b", ""),
            ("c", ""),
            ("b", "a/"),
            ("b", "a/a/"),
            ("b", strange),
            ("b", &long),
            ("b.a", ""),
        ];
        let labels = sources.map(|(bucket, prefix)| label(bucket, prefix));
        for label in &labels {
            assert!(label.len() <= 63, "{label}");
            let inside = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            assert!(label.chars().all(inside), "{label}");
            assert!(label.ends_with(|c: char| c.is_ascii_alphanumeric()), "{label}");
        }
        let unique: std::collections::HashSet<_> = labels.iter().collect();
        assert_eq!(unique.len(), labels.len(), "{labels:?}");
    }
}
