//! Lists the models under a prefix, and what is wrong with each, without a cluster.
//!
//! A model is a directory that directly has a file that loaders open, such as `config.json`,
//! `*.safetensors` or `*.gguf`, with everything below it. Directories without such a file are
//! searched. Where a directory and all below it have none, the topmost directory with objects
//! of its own counts as a model.
//!
//! The listing is read page by page. Kept are sums for each open directory, the models found,
//! and the names of their shards.

mod problem;
mod scan;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::error::{Error, ErrorKind, Result};
use crate::model::{ModelRequest, Pattern, Revision, RevisionHasher};
use crate::resolve::{Resolver, Route, with_nearest_buckets};
use crate::source::{
    Bucket, ListedMd5, ListingPages, ObjectName, ObjectSource, ObjectSummary, StorageErrorKind,
};
use crate::weights::{LONGEST_INDEX, missing_shards};
pub use problem::{ModelProblem, ProblemKind};
use scan::{Scan, ScannedIndex, ScannedModel};

/// The most indexes of one model that are read.
const INDEXES: usize = 16;

/// Concurrent HEAD requests.
const AT_ONCE: usize = 32;

/// A model in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketModel {
    /// Its prefix: empty for the whole bucket, else ending in `/`.
    pub prefix: String,
    /// Number of its objects.
    pub objects: usize,
    /// Sum of their sizes in bytes.
    pub bytes: u64,
    /// Its revision, as the driver computes it.
    pub revision: Revision,
    /// When the newest of its objects was changed, RFC 3339; `None` if the listing lacks it.
    pub newest_change: Option<String>,
    /// What is wrong with it; empty for a good one.
    pub problems: Vec<ModelProblem>,
}

/// One object of a model, with its checksums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketObject {
    /// The full name.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Its ETag.
    pub etag: String,
    /// The listing's MD5: base64, with `-N` for N parts; `None` if absent or unusable.
    pub md5: Option<String>,
    /// CRC-32C of the whole object, from a HEAD; `None` if the object has none, or changed since
    /// the listing.
    pub crc32c: Option<u32>,
    /// When it was changed, RFC 3339.
    pub changed: Option<String>,
    /// Whether it lies in the archive tier and cannot be read.
    pub is_archived: bool,
}

/// The sum of a listing of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectsSum {
    /// Number of objects.
    pub objects: usize,
    /// Sum of their sizes in bytes.
    pub bytes: u64,
    /// The revision of the model that they are, as the driver computes it.
    pub revision: Revision,
}

/// Lists the models under the prefix of `request`; with a pattern those whose path below the
/// prefix matches it.
///
/// # Errors
/// `NotFound` if there is none; those of the listing.
pub async fn models(
    resolver: &Resolver,
    request: &ModelRequest,
    pattern: Option<&Pattern>,
) -> Result<Vec<BucketModel>> {
    let route = resolver.route(request, "").await?;
    let source = resolver.source(request, &route).await?;
    let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
    let root = source.prefix.as_str();
    let mut scan = Scan::new(root, resolver.most_objects());
    let mut pages = route.client().pages(&bucket, root, usize::MAX);
    while let Some(page) = next_page(&mut *pages, &route, &bucket).await? {
        for object in &page {
            scan.add(object)?;
        }
    }
    let wanted = |prefix: &str| {
        let below = prefix.strip_prefix(root).unwrap_or_default();
        pattern.is_none_or(|pattern| pattern.matches(below.trim_end_matches('/')))
    };
    let mut found = Vec::new();
    for scanned in scan.models(pattern.is_none()) {
        if wanted(&scanned.model.prefix) {
            found.push(with_missing_shards(&**route.client(), &bucket, scanned).await?);
        }
    }
    match (found.is_empty(), pattern) {
        (false, _) => Ok(found),
        (true, Some(pattern)) => {
            let place = if root.is_empty() { "/" } else { root };
            Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "no model under {place} in {bucket} matches {:?}: list them all with \
                     oci://{}@{}/{root}",
                    pattern.as_str(),
                    bucket.name,
                    bucket.namespace
                ),
            ))
        }
        (true, None) => Err(nothing(resolver, request, &route).await),
    }
}

/// Lists the objects under the prefix of `request` with their checksums, in the order of their
/// names: each object is passed to `visit` as soon as it is known.
///
/// # Errors
/// `NotFound` if there is none; those of the listing, of a HEAD, and of `visit`.
pub async fn objects(
    resolver: &Resolver,
    request: &ModelRequest,
    mut visit: impl FnMut(BucketObject) -> Result<()>,
) -> Result<ObjectsSum> {
    let route = resolver.route(request, "").await?;
    let source = resolver.source(request, &route).await?;
    let bucket = Arc::new(Bucket::new(source.namespace.as_str(), source.bucket.as_str()));
    let root = source.prefix.as_str();
    let (mut objects, mut bytes, mut revision) = (0, 0_u64, RevisionHasher::new());
    let client = route.client();
    let mut pages = client.pages(&bucket, root, usize::MAX);
    while let Some(page) = next_page(&mut *pages, &route, &bucket).await? {
        let described = page.into_iter().filter(|object| object.name != root).map(|object| {
            let name = ObjectName::new(Arc::clone(&bucket), object.name.as_str());
            async move { describe(&**client, &name, object).await }
        });
        let mut described = stream::iter(described).buffered(AT_ONCE);
        while let Some(object) = described.try_next().await? {
            objects += 1;
            bytes = bytes.saturating_add(object.bytes);
            let relative = object.name.strip_prefix(root).unwrap_or_default();
            revision.add(relative, object.bytes, &object.etag);
            visit(object)?;
        }
    }
    if objects == 0 {
        return Err(nothing(resolver, request, &route).await);
    }
    Ok(ObjectsSum { objects, bytes, revision: revision.finish() })
}

/// The next page; the error of a misspelt bucket names the nearest ones.
async fn next_page(
    pages: &mut dyn ListingPages,
    route: &Route,
    bucket: &Bucket,
) -> Result<Option<Vec<ObjectSummary>>> {
    match pages.next().await {
        Ok(page) => Ok(page),
        Err(error) => Err(with_nearest_buckets(error, route, bucket).await),
    }
}

/// The error for a prefix without objects, as `fetch` gives it.
async fn nothing(resolver: &Resolver, request: &ModelRequest, route: &Route) -> Error {
    match resolver.resolve_or_suggest(request, route).await {
        Err(error) => error,
        Ok(_) => Error::new(
            ErrorKind::Changed,
            format!("{} has just been uploaded; try again", request.title()),
        ),
    }
}

async fn describe(
    client: &dyn ObjectSource,
    name: &ObjectName,
    object: ObjectSummary,
) -> Result<BucketObject> {
    let is_archived = object.is_archived();
    // One that was replaced or removed since the listing has no checksum of this version.
    let crc32c = match client.head(name, Some(&object.etag)).await {
        Ok(head) => head.crc32c,
        Err(error) if matches!(error.status(), Some(404 | 412)) => None,
        Err(error) => return Err(error.into()),
    };
    Ok(BucketObject {
        md5: object.md5.filter(|md5| ListedMd5::parse(md5).is_some()),
        name: object.name,
        bytes: object.size,
        etag: object.etag,
        crc32c,
        changed: object.time_modified,
        is_archived,
    })
}

/// Reads the indexes of a model, and adds the shards that they name and it lacks.
async fn with_missing_shards(
    client: &dyn ObjectSource,
    bucket: &Bucket,
    scanned: ScannedModel,
) -> Result<BucketModel> {
    let ScannedModel { mut model, indexes, shards, .. } = scanned;
    let shards: BTreeSet<String> = shards.into_iter().collect();
    let bucket = Arc::new(bucket.clone());
    for index in indexes.into_iter().take(INDEXES) {
        let ScannedIndex { name, etag, size } = index;
        if size > LONGEST_INDEX {
            continue;
        }
        let object = ObjectName::new(Arc::clone(&bucket), name.as_str());
        let problem = match read(client, &object, &etag, size).await {
            Ok(content) => match missing_shards(&name, &content, |shard| shards.contains(shard)) {
                Ok(missing) => missing.into_iter().fold(None, |problem, shard| {
                    Some(ModelProblem::and(problem, ProblemKind::MissingShards, shard))
                }),
                Err(_flaw) => Some(ModelProblem::new(ProblemKind::BrokenIndex, name)),
            },
            Err(error) => match error.kind() {
                StorageErrorKind::Forbidden
                | StorageErrorKind::NotFound
                | StorageErrorKind::Archived => {
                    Some(ModelProblem::new(ProblemKind::UnreadIndex, name))
                }
                // What replaced it since the listing is not what was listed.
                StorageErrorKind::Changed => None,
                _ => return Err(error.into()),
            },
        };
        model.problems.extend(problem);
    }
    Ok(model)
}

async fn read(
    client: &dyn ObjectSource,
    object: &ObjectName,
    etag: &str,
    size: u64,
) -> crate::source::Result<BytesMut> {
    let mut content = BytesMut::new();
    let mut body = client.get(object, etag, None).await?;
    body.expect_length(size);
    while let Some(chunk) = body.chunk().await? {
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BucketName, Prefix};
    use oci_model_csi_fake_source::FakeSource;

    fn request(prefix: &str) -> ModelRequest {
        let prefix = Prefix::parse(prefix).unwrap();
        ModelRequest::of(None, BucketName::parse("b").unwrap(), prefix)
    }

    #[tokio::test]
    async fn the_revision_is_the_one_that_the_driver_resolves() {
        let source = FakeSource::new(&[
            ("m/x-y/w.gguf", 1),
            ("m/x/", 0),
            ("m/x/config.json", 3),
            ("m/x/empty/", 0),
            ("m/x/sub/w", 5),
        ]);
        let resolver = Resolver::of_fake(&source);
        let found = models(&resolver, &request("m"), None).await.unwrap();
        let names: Vec<&str> = found.iter().map(|model| model.prefix.as_str()).collect();
        assert_eq!(names, ["m/x-y/", "m/x/"]);
        for model in found {
            let request = request(&model.prefix);
            let route = resolver.route(&request, "").await.unwrap();
            let manifest = resolver.resolve(&request, &route).await.unwrap();
            assert_eq!(
                (model.revision, model.bytes),
                (manifest.revision.clone(), manifest.bytes())
            );
            let sum = objects(&resolver, &request, |_| Ok(())).await.unwrap();
            assert_eq!((sum.revision, sum.objects), (manifest.revision.clone(), model.objects));
        }
    }

    #[tokio::test]
    async fn an_index_without_its_shards_and_a_missing_prefix_are_reported() {
        let source = FakeSource::new(&[("m/x/model.safetensors.index.json", 7)]);
        let resolver = Resolver::of_fake(&source);
        let found = models(&resolver, &request("m"), None).await.unwrap();
        let kinds: Vec<ProblemKind> = found[0].problems.iter().map(|one| one.kind).collect();
        assert_eq!(kinds, [ProblemKind::NoChecksum, ProblemKind::BrokenIndex]);
        let error = models(&resolver, &request("n"), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.message().contains("the nearest prefixes are m/"), "{error}");
        let pattern = Pattern::parse("y*").unwrap();
        let error = models(&resolver, &request("m"), Some(&pattern)).await.unwrap_err();
        assert!(error.message().contains("no model under m/ in bucket b"), "{error}");
    }
}
