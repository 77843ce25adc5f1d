//! Names the directories that a misspelt prefix may have meant. Only callers that may see
//! them get their names.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use super::Route;
use super::resolver::{NothingSelected, Resolver, is_of_empty_prefix};
use crate::error::{Error, Result};
use crate::model::{Manifest, ModelRequest, Prefix, nearest_first};
use crate::source::{Bucket, ObjectSource, StorageError};
use crate::text::shown;

/// How many directories a message names.
const NAMED: usize = 3;

/// How many levels above a missing directory are listed, for commands. Pods see one: whether a
/// level has directories at all may be a secret.
const LEVELS: usize = 4;

/// How long the listings may take: the error waits for them.
const PATIENCE: Duration = Duration::from_secs(3);

impl Resolver {
    /// As [`Resolver::resolve`], for callers that may see whatever the route can list: the
    /// error of an empty prefix names the nearest directories.
    ///
    /// # Errors
    /// Those of [`Resolver::resolve`].
    pub async fn resolve_or_suggest(
        &self,
        request: &ModelRequest,
        route: &Route,
    ) -> Result<Arc<Manifest>> {
        match self.resolve(request, route).await {
            Ok(manifest) => Ok(manifest),
            Err(error) => {
                let error = self.or_object(error, request, route).await;
                let siblings = self.siblings(&error, request, route, LEVELS).await;
                Err(with_siblings(error, &siblings))
            }
        }
    }

    /// The directories that may have been meant, the most similar first, if this is the error
    /// of an empty prefix; for a pod's own identity none. Failures give none either: they must
    /// not hide the error.
    pub(crate) async fn siblings(
        &self,
        error: &Error,
        request: &ModelRequest,
        route: &Route,
        levels: usize,
    ) -> Vec<Prefix> {
        if !is_of_empty_prefix(error) || route.principal().is_some() {
            return Vec::new();
        }
        let found = tokio::time::timeout(PATIENCE, self.directories_beside(request, route, levels));
        found.await.unwrap_or_default()
    }

    async fn directories_beside(
        &self,
        request: &ModelRequest,
        route: &Route,
        levels: usize,
    ) -> Vec<Prefix> {
        let Ok(source) = self.source(request, route).await else { return Vec::new() };
        let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
        let mut wanted = source.prefix.as_str().trim_end_matches('/');
        for _ in 0..levels {
            let split = wanted.rfind('/').map_or(0, |slash| slash + 1);
            let (parent, name) = wanted.split_at(split);
            let found = match self.directories().below(route, &bucket, parent).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(%error, "listing the directories beside a prefix failed");
                    return Vec::new();
                }
            };
            if !found.is_empty() || parent.is_empty() {
                return ranked(parent, name, &found);
            }
            wanted = parent.trim_end_matches('/');
        }
        Vec::new()
    }
}

/// Whether a listing was answered, and nothing in it can be mounted: not a refusal.
pub(crate) fn is_answered(error: &Error) -> bool {
    let is_other = |cause: &(dyn StdError + 'static)| cause.is::<NothingSelected>();
    is_of_empty_prefix(error) || StdError::source(error).is_some_and(is_other)
}

/// The directories below `parent`, those whose last segment is most like `name` first.
fn ranked(parent: &str, name: &str, found: &[String]) -> Vec<Prefix> {
    let segment = |full: &'_ str| -> Option<String> {
        let segment = full.strip_prefix(parent)?.strip_suffix('/')?;
        // A marker alone is listed, too.
        (segment != name).then(|| segment.to_owned())
    };
    let names: Vec<String> = found.iter().filter_map(|full| segment(full)).collect();
    nearest_first(name, names.iter().map(String::as_str))
        .into_iter()
        .filter_map(|name| Prefix::parse(&format!("{parent}{name}/")).ok())
        .collect()
}

/// Adds the names of directories to the error of an empty prefix.
pub(crate) fn with_siblings(error: Error, siblings: &[Prefix]) -> Error {
    if siblings.is_empty() {
        return error;
    }
    let names = siblings.iter().take(NAMED);
    let names: Vec<String> = names.map(|prefix| shown(prefix.as_str(), 120)).collect();
    let text = format!("{}; the nearest prefixes are {}", error.message(), names.join(", "));
    Error::new(error.kind(), text)
}

/// The error of a listing; if the bucket does not exist, with the names of those that are most
/// like it, as far as this identity may list them. For callers that may see whatever the route
/// can list.
pub(crate) async fn with_nearest_buckets(
    error: StorageError,
    route: &Route,
    bucket: &Bucket,
) -> Error {
    let is_missing = error.code() == Some("BucketNotFound");
    let error = Error::from(error);
    if !is_missing || route.principal().is_some() {
        return error;
    }
    match nearest_buckets(&**route.client(), bucket).await {
        Some(names) => {
            let text = format!("{}; the nearest buckets are {names}", error.message());
            Error::new(error.kind(), text)
        }
        None => error,
    }
}

/// The names of the buckets that are most like this one, as a text; `None` if there are none that
/// the source may list. Failures give none either: they must not hide the error.
pub(crate) async fn nearest_buckets(source: &dyn ObjectSource, bucket: &Bucket) -> Option<String> {
    let found = tokio::time::timeout(PATIENCE, source.buckets(&bucket.namespace)).await;
    let found = found.ok().and_then(Result::ok)?;
    let others = found.iter().map(String::as_str).filter(|name| *name != bucket.name);
    let nearest = nearest_first(&bucket.name, others).into_iter().take(NAMED);
    let names: Vec<String> = nearest.map(|name| shown(name, 120)).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::model::BucketName;
    use oci_model_csi_fake_source::FakeSource;

    async fn message(objects: &[&str], prefix: &str) -> String {
        let objects: Vec<(&str, u64)> = objects.iter().map(|name| (*name, 1)).collect();
        let resolver = Resolver::of_fake(&FakeSource::new(&objects));
        let prefix = Prefix::parse(prefix).unwrap();
        let request = ModelRequest::of(None, BucketName::parse("b").unwrap(), prefix);
        let route = resolver.route(&request, "").await.unwrap();
        let error = resolver.resolve_or_suggest(&request, &route).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        error.message().to_owned()
    }

    #[tokio::test]
    async fn a_misspelt_prefix_gets_the_most_similar_directories() {
        let objects = ["m/bert/w", "m/phi3-mini/w", "m/phi3/w", "m/phi4-x/w", "m/zz/w", "other/w"];
        let text = message(&objects, "m/phi3-mnii/").await;
        assert!(text.contains("; the nearest prefixes are m/phi3-mini/, m/phi3/, "), "{text}");
        assert!(!text.contains("Allow") && !text.contains("let the test read"), "{text}");
    }

    #[tokio::test]
    async fn a_missing_parent_is_searched_for_in_the_level_above() {
        let text = message(&["models/a/v1/w", "models/b/v1/w"], "model/a/v1").await;
        assert!(text.ends_with("; the nearest prefixes are models/"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn many_callers_of_misspelt_prefixes_share_one_listing_for_a_while() {
        let source = FakeSource::new(&[("m/phi3/w", 1)]);
        let resolver = Resolver::of_fake(&source);
        let ask = |name: String| {
            let resolver = resolver.clone();
            async move {
                let prefix = Prefix::parse(&format!("m/{name}/")).unwrap();
                let bucket = BucketName::parse("b").unwrap();
                let request = ModelRequest::of(None, bucket, prefix);
                let route = resolver.route(&request, "").await.unwrap();
                let error = resolver.resolve_or_suggest(&request, &route).await.unwrap_err();
                assert!(error.message().contains("nearest prefixes are m/phi3/"), "{error}");
            }
        };
        futures_util::future::join_all((0..100).map(|n| ask(format!("at-once-{n}")))).await;
        for n in 0..100 {
            ask(format!("later-{n}")).await;
        }
        assert_eq!(source.directory_listings(), 1);
        tokio::time::advance(Duration::from_secs(31)).await;
        ask("much-later".to_owned()).await;
        assert_eq!(source.directory_listings(), 2);
    }

    #[tokio::test]
    async fn without_directories_there_is_nothing_to_name() {
        for (objects, prefix) in [(&["w"][..], "m"), (&[], "m/x"), (&[], "")] {
            let text = message(objects, prefix).await;
            assert!(!text.contains("nearest"), "{text}");
            assert!(text.contains("oci-model-csi ls oci://b@mytenancy/"), "{text}");
        }
    }
}
