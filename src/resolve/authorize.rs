//! Checks whether a pod's own identity may read the objects of a revision.
//!
//! Permission to list is not permission to read, and HEAD needs only the former. So
//! the proof is a GET of one byte, of the largest file of each directory: policies and
//! conditions match names by their prefixes, so each directory may have its own. If an
//! object was replaced, its name alone is requested, because permissions are about
//! names. An object that is gone proves nothing, and a revision with such an object
//! counts as not cached: the answer is the same as if it had never been cached.
//!
//! An identity without permission always gets the same message, whether objects
//! exist, existed, or are cached.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::Route;
use super::known_buckets::{BucketOperation, KnownBuckets};
use super::proofs::Proofs;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Manifest, ManifestFile, ModelKey, ModelSource};
use crate::source::{
    Bucket, ObjectName, ObjectSummary, PodPrincipal, StorageError, StorageErrorKind,
};
use crate::text::shown;

/// The maximum number of directories with files in a model whose permissions are
/// checked: as much work for the service as a listing of 100,000 objects.
const MOST_DIRECTORIES: usize = 256;

/// Concurrent requests of one proof.
const AT_ONCE: usize = 8;

/// The longest prefix in a message, which must also hold a policy statement.
const PREFIX: usize = 120;

/// The name, below a prefix, of an object that is asked for where nothing is cached.
const NO_OBJECT: &str = ".oci-model-csi-permission";

/// Whether a pod's own identity may read a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    /// It may.
    Granted,
    /// It can no longer be proved: objects are gone, or the revision has no files.
    Unprovable,
}

/// The result of a probe of one object.
enum Probe {
    Readable,
    Gone,
}

/// Checks whether pods may read revisions, and records the proofs.
#[derive(Debug, Default)]
pub(super) struct Authorizer {
    proofs: Proofs,
}

impl Authorizer {
    /// Checks whether the route's identity may read the revision. The driver's identity
    /// needs no proof: the policy decides who gets what it can read.
    ///
    /// # Errors
    /// `NotFound`, with the message of [`unseen`], if an object may not be read;
    /// `Precondition` for too many directories; other errors of Object Storage and the
    /// identity service.
    pub(super) async fn ask(
        &self,
        buckets: &KnownBuckets,
        route: &Route,
        manifest: &Manifest,
    ) -> Result<Permission> {
        let Some(principal) = route.principal() else { return Ok(Permission::Granted) };
        if let Some(error) = route.refusal().of(&manifest.key()) {
            return Err(error);
        }
        let asked = probe_all(buckets, route, principal, manifest).await;
        let place = (route.location(), manifest.source.bucket.as_str());
        match &asked {
            Err(error) if is_refusal(error.kind()) => {
                route.refusal().record(manifest.key(), error);
                self.proofs.forget(principal, place);
            }
            Ok(Permission::Granted) => self.proofs.record(principal, manifest.key(), place),
            Ok(Permission::Unprovable) | Err(_) => {}
        }
        asked
    }

    /// Asks as [`Authorizer::ask`] does, where there is no revision to ask about: for an object
    /// whose name no model has.
    ///
    /// # Errors
    /// As [`Authorizer::ask`].
    pub(super) async fn ask_for_nothing(
        &self,
        buckets: &KnownBuckets,
        route: &Route,
        source: &ModelSource,
    ) -> Result<Permission> {
        let Some(principal) = route.principal() else { return Ok(Permission::Granted) };
        let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
        let name = format!("{}{NO_OBJECT}", source.prefix.as_str());
        let object = ObjectName::new(Arc::new(bucket), name);
        match probe(buckets, route, object, NO_OBJECT, 1).await {
            Ok(_) => Ok(Permission::Unprovable),
            Err(error) => Err(refusal(error, route, source, principal)),
        }
    }

    /// Whether this identity has proved within the last hour that it may read the model.
    /// The driver's own identity needs no proof.
    pub(super) fn was_granted(&self, route: &Route, model: &ModelKey) -> bool {
        route.principal().is_none_or(|principal| self.proofs.has(principal, model))
    }

    /// Checks whether the route's identity may read an object of a listing: only then
    /// may it learn what is wrong with the listing.
    ///
    /// # Errors
    /// As [`Authorizer::ask`].
    pub(super) async fn ask_for_one(
        &self,
        buckets: &KnownBuckets,
        route: &Route,
        source: &ModelSource,
        largest: Option<ObjectSummary>,
    ) -> Result<()> {
        let (Some(principal), Some(largest)) = (route.principal(), largest) else { return Ok(()) };
        let ObjectSummary { name, size, etag, .. } = largest;
        let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
        let object = ObjectName::new(Arc::new(bucket), name);
        match probe(buckets, route, object, &etag, size).await {
            Ok(Probe::Readable) => Ok(()),
            Ok(Probe::Gone) => Err(unseen(route, source, principal)),
            Err(error) => Err(self.refusal(route, source, error)),
        }
    }

    /// Translates the error of a failed listing for a pod with its own identity.
    pub(super) fn refusal(
        &self,
        route: &Route,
        source: &ModelSource,
        error: StorageError,
    ) -> Error {
        let Some(principal) = route.principal() else { return error.into() };
        let error = refusal(error, route, source, principal);
        let place = (route.location(), source.bucket.as_str());
        self.forget_if_refused(principal, place, &error);
        error
    }

    /// Forgets all proofs for the bucket after a refusal, but not after an outage.
    fn forget_if_refused(&self, principal: &PodPrincipal, place: (&str, &str), error: &Error) {
        if is_refusal(error.kind()) {
            self.proofs.forget(principal, place);
        }
    }
}

/// Whether another identity may get a different answer.
pub(crate) fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unauthenticated | ErrorKind::Denied | ErrorKind::NotFound)
}

/// The answer about a prefix under which a pod's own identity may read nothing. It is
/// the same whether the prefix is empty, unreadable, or cached.
pub(super) fn unseen(route: &Route, source: &ModelSource, principal: &PodPrincipal) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!(
            "no object under {:?} in bucket {} of namespace {} that {principal} may read; to allow \
             it: {}",
            shown(source.prefix.as_str(), PREFIX),
            source.bucket,
            source.namespace,
            route.client().how_to_allow(source.bucket.as_str())
        ),
    )
}

/// Translates an error without naming the request, which would disclose what is cached.
fn refusal(
    error: StorageError,
    route: &Route,
    source: &ModelSource,
    principal: &PodPrincipal,
) -> Error {
    if error.kind() == StorageErrorKind::NotFound {
        tracing::info!(%error, "Object Storage refused a pod's own identity");
        return unseen(route, source, principal);
    }
    let attempted = format!(
        "reading {:?} in bucket {} of namespace {} as {principal}",
        shown(source.prefix.as_str(), PREFIX),
        source.bucket,
        source.namespace
    );
    error.while_attempting(attempted).into()
}

async fn probe_all(
    buckets: &KnownBuckets,
    route: &Route,
    principal: &PodPrincipal,
    manifest: &Manifest,
) -> Result<Permission> {
    let files = one_of_each_directory(&manifest.files);
    if files.is_empty() {
        return Ok(Permission::Unprovable);
    }
    let source = &manifest.source;
    let bucket = Arc::new(Bucket::new(source.namespace.as_str(), source.bucket.as_str()));
    let too_many = files.len() > MOST_DIRECTORIES;
    let mut probes = Vec::new();
    for file in files.into_iter().take(MOST_DIRECTORIES) {
        let object = ObjectName::new(Arc::clone(&bucket), manifest.object_name(file));
        probes.push(probe(buckets, route, object, &file.etag, file.size));
    }
    let readable = stream::iter(probes)
        .buffer_unordered(AT_ONCE)
        .try_all(async |probe| matches!(probe, Probe::Readable))
        .await
        .map_err(|error| refusal(error, route, source, principal))?;
    match (readable, too_many) {
        (false, _) => Ok(Permission::Unprovable),
        (true, false) => Ok(Permission::Granted),
        // Only an identity that may read the requested objects may learn how many there are.
        (true, true) => Err(Error::new(
            ErrorKind::Precondition,
            format!(
                "{} has files in more than {MOST_DIRECTORIES} directories, and permission is \
                 checked for each of them if pods read with their own identities: name a longer \
                 prefix, or leave some out with exclude",
                source.title()
            ),
        )),
    }
}

/// The largest file of each directory, the largest first.
fn one_of_each_directory(files: &[ManifestFile]) -> Vec<&ManifestFile> {
    let mut largest: BTreeMap<&str, &ManifestFile> = BTreeMap::new();
    for file in files {
        let directory = file.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let known = largest.entry(directory).or_insert(file);
        if file.size > known.size {
            *known = file;
        }
    }
    let mut files: Vec<&ManifestFile> = largest.into_values().collect();
    files.sort_by_key(|file| std::cmp::Reverse(file.size));
    files
}

async fn probe(
    buckets: &KnownBuckets,
    route: &Route,
    object: ObjectName,
    etag: &str,
    size: u64,
) -> Result<Probe, StorageError> {
    let client = route.client();
    let bucket = &*object.bucket;
    let version = Some(etag);
    let is_empty = size == 0;
    let mut asked = buckets
        .ask(BucketOperation::Read, (route, bucket), || client.may_read(&object, version, is_empty))
        .await;
    if fails_as(&asked, StorageErrorKind::Changed) {
        asked = buckets
            .ask(BucketOperation::Read, (route, bucket), || client.may_read(&object, None, false))
            .await;
    }
    if fails_as(&asked, StorageErrorKind::RangeNotSatisfiable) {
        asked = buckets
            .ask(BucketOperation::Read, (route, bucket), || client.may_read(&object, None, true))
            .await;
    }
    match asked {
        Ok(()) => Ok(Probe::Readable),
        Err(error) if error.code() == Some("ObjectNotFound") => Ok(Probe::Gone),
        Err(error) => Err(error),
    }
}

fn fails_as(asked: &Result<(), StorageError>, kind: StorageErrorKind) -> bool {
    asked.as_ref().is_err_and(|error| error.kind() == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BlobId;
    use crate::model::{BucketName, NamespaceName, Prefix};

    fn files(of: &[(&str, u64)]) -> Vec<ManifestFile> {
        let source = ModelSource {
            location: "x".into(),
            namespace: NamespaceName::parse("ns").unwrap(),
            bucket: BucketName::parse("b").unwrap(),
            prefix: Prefix::parse("m/").unwrap(),
        };
        let file = |&(path, size): &(&str, u64)| ManifestFile {
            path: path.to_owned(),
            size,
            etag: "e".to_owned(),
            md5: None,
            blob: BlobId::of("", &source, path, "e"),
        };
        of.iter().map(file).collect()
    }

    #[test]
    fn the_largest_file_of_each_directory_is_probed_largest_first() {
        let files = files(&[
            ("a", 3),
            ("b", 9),
            ("d/empty", 0),
            ("d/e/x", 20),
            ("d/e/y", 20),
            ("f/one", 5),
            ("f/two", 6),
        ]);
        let asked: Vec<&str> =
            one_of_each_directory(&files).iter().map(|file| file.path.as_str()).collect();
        assert_eq!(asked, ["d/e/x", "b", "f/two", "d/empty"]);
        assert!(one_of_each_directory(&[]).is_empty());
    }
}
