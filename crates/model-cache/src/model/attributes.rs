//! Parses the keys that users type: volume attributes of pods and volumes, and
//! parameters of storage classes. Hostile input: unknown keys are refused.

use std::collections::{BTreeMap, HashMap};

use super::{
    BucketName, CacheScope, Filters, ModelRequest, NamespaceName, Prefix, PullPolicy, Revision,
    nearest,
};
use crate::error::{Error, Result};
use crate::redact::has_par;
use crate::source::StorageError;
use crate::text::shown;

/// The author of the attributes, which decides the keys that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttributeSource {
    /// A pod's author, in an inline volume.
    Pod,
    /// An administrator, in a `StorageClass` or a `PersistentVolume`.
    Administrator,
}

const FOR_ALL: &[&str] =
    &["bucket", "prefix", "namespace", "include", "exclude", "pullPolicy", "revision"];
const FOR_ADMINISTRATORS: &[&str] = &["region", "auth", "cacheScope"];

/// Prefixes of the keys that Kubernetes adds.
const FROM_KUBERNETES: &[&str] = &["csi.storage.k8s.io/", "storage.kubernetes.io/"];

/// Longest value that is accepted. Object names end at 1024 bytes; filters are lists.
const VALUE_MAX: usize = 4096;

/// The driver's own keys as they were written. Two requests are the same if these
/// are equal: what Kubernetes adds, tokens among it, differs with each call.
pub fn own_attributes(attributes: &HashMap<String, String>) -> BTreeMap<String, String> {
    let own = attributes.iter().filter(|(key, _)| !is_from_kubernetes(key));
    own.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Whether Kubernetes adds a key of this name.
pub(super) fn is_from_kubernetes(key: &str) -> bool {
    FROM_KUBERNETES.iter().any(|prefix| key.starts_with(prefix))
}

/// Normalizes attributes for digests: a prefix with or without its slash is one
/// directory. Invalid values stay as they are.
pub fn plain_attributes(attributes: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut plain = attributes.clone();
    if let Some(prefix) = plain.get_mut("prefix")
        && let Ok(parsed) = Prefix::parse(prefix)
    {
        parsed.as_str().clone_into(prefix);
    }
    plain
}

/// Parses the attributes of a volume; returns the request and the driver's own keys
/// as they were written.
///
/// Unknown keys are `Invalid` and the message names the nearest valid one.
pub fn parse_attributes(
    attributes: &HashMap<String, String>,
    source: AttributeSource,
) -> Result<(ModelRequest, BTreeMap<String, String>)> {
    let ours = own_attributes(attributes);
    check_no_par(&ours)?;
    for (key, value) in &ours {
        check_key(key, source)?;
        if value.len() > VALUE_MAX {
            return Err(Error::invalid(format!(
                "attribute {key} is {} bytes long; {VALUE_MAX} is the most",
                value.len()
            )));
        }
    }
    let get = |key: &str| ours.get(key).map(String::as_str);
    let required = |key: &str, example: &str| {
        get(key).ok_or_else(|| {
            Error::invalid(format!("attribute {key} is missing; it names {example}"))
        })
    };
    let request = ModelRequest {
        bucket: BucketName::parse(required("bucket", "the bucket, as in bucket: ai-model-cache")?)?,
        prefix: Prefix::parse(required(
            "prefix",
            "the directory in it, as in prefix: models/phi3-mini/ (\"\" is the whole bucket)",
        )?)?,
        namespace: get("namespace").map(NamespaceName::parse).transpose()?,
        filters: Filters::parse(get("include"), get("exclude"))?,
        pull_policy: get("pullPolicy").map_or(Ok(PullPolicy::default()), PullPolicy::parse)?,
        revision: get("revision").map(Revision::parse).transpose()?,
        region: get("region").map(str::parse).transpose().map_err(|e| unusable(&e))?,
        auth: get("auth").map(str::parse).transpose().map_err(|e| unusable(&e))?,
        scope: get("cacheScope").map_or(Ok(CacheScope::default()), CacheScope::parse)?,
    };
    Ok((request, ours))
}

/// Checks that no attribute has the URL of a pre-authenticated request, which is a credential.
///
/// # Errors
/// `Invalid`, without the value.
fn check_no_par(ours: &BTreeMap<String, String>) -> Result<()> {
    let Some((key, _)) = ours.iter().find(|(key, value)| has_par(key) || has_par(value)) else {
        return Ok(());
    };
    let named = if has_par(key) { "an attribute".to_owned() } else { shown(key, 100) };
    Err(Error::invalid(format!(
        "{named} has the URL of a pre-authenticated request, a credential that anyone who sees the \
         volume could use: delete that request, and put the URL of a new one into the key par of a \
         Secret"
    )))
}

fn unusable(error: &StorageError) -> Error {
    Error::invalid(error.to_string())
}

fn check_key(key: &str, source: AttributeSource) -> Result<()> {
    let administrators = FOR_ADMINISTRATORS.contains(&key);
    if FOR_ALL.contains(&key) || (administrators && source == AttributeSource::Administrator) {
        return Ok(());
    }
    if administrators {
        return Err(Error::invalid(format!(
            "attribute {key} is for administrators only: a StorageClass or a PersistentVolume may \
             set it, a pod may not"
        )));
    }
    let known = FOR_ALL.iter().chain(match source {
        AttributeSource::Pod => &[],
        AttributeSource::Administrator => FOR_ADMINISTRATORS,
    });
    let shown = shown(key, 100);
    let meant = nearest(key, known.clone().copied());
    let all: Vec<&str> = known.copied().collect();
    Err(Error::invalid(match meant {
        Some(nearest) => format!("unknown attribute \"{shown}\"; did you mean {nearest}?"),
        None => format!("unknown attribute \"{shown}\"; known are {}", all.join(", ")),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn parse(pairs: &[(&str, &str)], source: AttributeSource) -> Result<ModelRequest> {
        let map = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        parse_attributes(&map, source).map(|(request, _)| request)
    }

    #[test]
    fn the_documented_example_is_accepted() {
        let request = parse(
            &[
                ("bucket", "ai-model-cache"),
                ("prefix", "models/phi3-mini/"),
                ("csi.storage.k8s.io/pod.name", "x"),
                ("storage.kubernetes.io/csiProvisionerIdentity", "y"),
            ],
            AttributeSource::Pod,
        )
        .unwrap();
        assert_eq!(request.title(), "models/phi3-mini/ from ai-model-cache");
        assert_eq!(request.pull_policy, PullPolicy::Always);
    }

    #[test]
    fn an_unknown_attribute_is_refused_with_the_nearest_name() {
        for (typed, nearest) in
            [("bucketName", "bucket"), ("Prefix", "prefix"), ("pullpolicy", "pullPolicy")]
        {
            let error = parse(&[(typed, "x")], AttributeSource::Pod).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.message().contains(&format!("did you mean {nearest}?")), "{error}");
        }
        let error = parse(&[("zzz", "x")], AttributeSource::Pod).unwrap_err();
        assert!(error.message().contains("known are bucket, prefix"), "{error}");
    }

    #[test]
    fn missing_bucket_and_prefix_are_named() {
        for (given, missing) in [("prefix", "bucket"), ("bucket", "prefix")] {
            let error = parse(&[(given, "x")], AttributeSource::Pod).unwrap_err();
            assert!(error.message().starts_with(&format!("attribute {missing} is missing")));
        }
        assert!(parse(&[("bucket", "b"), ("prefix", "")], AttributeSource::Pod).is_ok());
    }

    #[test]
    fn a_pod_may_not_set_the_administrators_attributes() {
        for key in FOR_ADMINISTRATORS {
            let pairs = [("bucket", "b"), ("prefix", "p"), (*key, "cluster")];
            let error = parse(&pairs, AttributeSource::Pod).unwrap_err();
            assert!(error.message().contains("administrators only"), "{error}");
        }
        let scope = [("bucket", "b"), ("prefix", "p"), ("cacheScope", "namespace")];
        let request = parse(&scope, AttributeSource::Administrator).unwrap();
        assert_eq!(request.scope, CacheScope::Namespace);
        for key in ["endpoint", "caFile", "cacheDir"] {
            let pairs = [("bucket", "b"), ("prefix", "p"), (key, "x")];
            assert!(parse(&pairs, AttributeSource::Administrator).is_err(), "{key}");
        }
    }

    #[test]
    fn a_prefix_with_and_without_its_slash_is_one_text_for_digests() {
        let plain = |prefix: &str| {
            let pairs = [("bucket", "b"), ("prefix", prefix)];
            plain_attributes(&pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
        };
        assert_eq!(plain("models/phi3"), plain("models/phi3/"));
        assert_ne!(plain("models/phi3"), plain("models/phi4"));
        assert_eq!(plain("../x")["prefix"], "../x");
        assert_eq!(plain("")["prefix"], "");
    }

    #[test]
    fn a_pre_authenticated_request_is_refused_in_any_attribute_and_not_repeated() {
        let url = "https://x.example/p/s3cret/n/ns/b/bk/o/m/";
        for key in ["bucket", "prefix", "namespace", "include", "par", "url", url] {
            let value = if key == url { "x" } else { url };
            let error = parse(&[(key, value)], AttributeSource::Administrator).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.message().contains("key par of a Secret"), "{error}");
            assert!(!error.message().contains("s3cret"), "{error}");
        }
        let prefix = [("bucket", "b"), ("prefix", "models/p/x/n/y/")];
        assert!(parse(&prefix, AttributeSource::Pod).is_ok(), "the name of a directory");
    }

    #[test]
    fn the_drivers_own_keys_are_returned_without_those_of_kubernetes() {
        let map = [("bucket", "b"), ("prefix", "p"), ("csi.storage.k8s.io/pod.uid", "u")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()));
        let (_, ours) = parse_attributes(&map.into(), AttributeSource::Pod).unwrap();
        assert_eq!(ours.keys().collect::<Vec<_>>(), ["bucket", "prefix"]);
    }
}
