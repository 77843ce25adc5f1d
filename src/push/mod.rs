//! Uploads a directory, or a snapshot of a Hugging Face Hub cache, to a prefix.
//!
//! 1. The directory is read, and all that cannot be pushed is named before anything is sent.
//! 2. The prefix is listed. A file whose object has its size and MD5 is not sent.
//! 3. Files are sent, small ones whole and large ones in parts: weights first, and indexes and
//!    `config.json` only when everything else is stored, so that no reader finds an index before
//!    its shards. An upload that an earlier push has begun is continued. An object becomes visible
//!    when all of it is stored, or not at all.
//! 4. The prefix is listed again, and must have what was stored.
//! 5. With `delete`, objects that the directory does not have are deleted, indexes first, and the
//!    prefix is listed once more. Its revision is what the driver mounts.
//!
//! The CRC-32C of every stored object is compared with that of the bytes that were read. Writes
//! are conditional on the version that was listed, so what another writer changed meanwhile is
//! not overwritten. A file that changes while it is read is not stored; the push continues with
//! the other files, but does not send the last stage.

mod body;
mod files;
mod finish;
mod hashes;
mod parts;
mod progress;
mod remote;
mod report;
mod requests;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::blocking::blocking;
use crate::download::Concurrency;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Filters, ModelUri, NamespaceName};
use crate::source::{Bucket, ObjectSink, Replaces, RetryPolicy, StorageErrorKind};
use files::{LocalFile, SendStage};
pub use progress::PushProgress;
use remote::RemoteObjects;
pub use report::{PlannedFile, PushFailure, PushReport, UnfinishedUpload, command_line};
use requests::RequestLimit;
use upload::{StoredObject, Uploader, refused};

/// Files that are sent at once; their requests are limited by the concurrency.
const FILES_AT_ONCE: usize = 64;

/// How long after its first attempt a request may be repeated: parts take long on slow lines.
const RETRY_FOR: Duration = Duration::from_secs(3600);

/// What to push, and how.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// Which names are pushed, and with `delete` deleted.
    pub filters: Filters,
    /// Size of a part in bytes; larger files are sent in parts.
    pub part_size: u64,
    /// Requests with bytes that run at once.
    pub concurrency: Concurrency,
    /// Only report what would be done.
    pub dry_run: bool,
    /// Delete objects that the directory does not have.
    pub delete: bool,
    /// Create the bucket in this compartment if it does not exist.
    pub create_in: Option<String>,
}

/// Pushes a directory to the prefix of a URI. Dropping the future breaks requests off; what is
/// stored stays, and uploads in parts can be continued by another push.
///
/// # Errors
/// Those of reading the directory, before anything is sent, and of Object Storage.
pub async fn push(
    sink: &Arc<dyn ObjectSink>,
    dir: &Path,
    uri: &ModelUri,
    options: &PushOptions,
    progress: &Arc<PushProgress>,
) -> Result<PushReport, PushFailure> {
    let started = Instant::now();
    let mut plan = Plan::make(sink, dir, uri, options, progress).await?;
    if let Err(error) = plan.compare().await {
        return Err(if options.dry_run { error.into() } else { PushFailure::later(error) });
    }
    let mut report = plan.report();
    if options.dry_run {
        report.planned = plan.planned();
        report.elapsed = started.elapsed();
        return Ok(report);
    }
    let stored = tokio::select! {
        stored = plan.send() => stored?,
        never = plan.uploader.requests.follow(progress) => match never {},
    };
    plan.complete(stored, &mut report).await.map_err(PushFailure::later)?;
    report.sent = progress.sent();
    report.elapsed = started.elapsed();
    Ok(report)
}

/// A push whose files and objects are known.
struct Plan {
    uploader: Uploader,
    uri: ModelUri,
    files: Vec<LocalFile>,
    left_out: Vec<String>,
    warnings: Vec<String>,
    remote: RemoteObjects,
    /// Objects that are there already, by the names of their files.
    kept: BTreeMap<String, StoredObject>,
    /// Ids of running uploads by the full names of their objects; `None` if they may not be listed.
    running: Option<BTreeMap<String, Vec<String>>>,
    /// Names of objects that the directory does not have.
    others: Vec<String>,
    delete: bool,
    bucket_created: bool,
}

impl Plan {
    async fn make(
        sink: &Arc<dyn ObjectSink>,
        dir: &Path,
        uri: &ModelUri,
        options: &PushOptions,
        progress: &Arc<PushProgress>,
    ) -> Result<Self> {
        let (from, prefix) = (dir.to_owned(), uri.prefix.clone());
        let filters = options.filters.clone();
        let scan = blocking(move || files::scan(&from, prefix.as_str(), &filters)).await?;
        progress.start(scan.bytes());
        let namespace = match &uri.namespace {
            Some(namespace) => namespace.clone(),
            None => NamespaceName::parse(&sink.namespace().await?)?,
        };
        let bucket = Arc::new(Bucket::new(namespace.as_str(), uri.bucket.as_str()));
        let uri = ModelUri { namespace: Some(namespace), ..uri.clone() };
        let (remote, bucket_created) = objects_of(&**sink, &bucket, &uri, options).await?;
        let others = remote.others(&scan.files, &options.filters)?;
        let deleted: &[String] = if options.delete { &others } else { &[] };
        remote.check_with(&scan.files, deleted, &uri.prefix).await?;
        let uploader = Uploader {
            sink: Arc::clone(sink),
            bucket,
            prefix: uri.prefix.as_str().to_owned(),
            part_size: options.part_size,
            requests: RequestLimit::new(options.concurrency),
            retry: RetryPolicy::default().within(RETRY_FOR),
            progress: Arc::clone(progress),
        };
        Ok(Self {
            uploader,
            uri,
            left_out: scan.left_out,
            warnings: scan.unmatched.into_iter().map(|warning| warning.text).collect(),
            files: scan.files,
            remote,
            kept: BTreeMap::new(),
            running: None,
            others,
            delete: options.delete,
            bucket_created,
        })
    }

    /// Finds out what need not be sent.
    async fn compare(&mut self) -> Result<()> {
        self.kept = self.objects_that_are_there().await?;
        self.running = self.running_uploads().await?;
        Ok(())
    }

    /// The objects that have the sizes and MD5s of their files.
    async fn objects_that_are_there(&self) -> Result<BTreeMap<String, StoredObject>> {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let known =
            self.files.iter().filter_map(|file| Some((file, self.remote.0.get(&file.name)?)));
        stream::iter(known)
            .map(|(file, object)| async move {
                let is_there = self.uploader.is_there(file, object).await?;
                if is_there.is_some() {
                    self.uploader.progress.found(file.state.size);
                }
                Ok::<_, Error>(is_there.map(|object| (file.name.clone(), object)))
            })
            .buffer_unordered(threads)
            .try_filter_map(|found| async move { Ok(found) })
            .try_collect()
            .await
    }

    /// The running uploads of the files' objects; `None` if they may not be listed.
    async fn running_uploads(&self) -> Result<Option<BTreeMap<String, Vec<String>>>> {
        let in_parts = self.files.iter().filter(|file| self.uploader.is_in_parts(file.state.size));
        let names: BTreeSet<String> =
            in_parts.map(|file| self.uploader.object(file).name).collect();
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        if names.is_empty() {
            return Ok(Some(found));
        }
        let listed = match self.uploader.sink.running_uploads(&self.uploader.bucket, &names).await {
            Ok(listed) => listed,
            // It takes a permission of its own, without which a push can still be made.
            Err(error)
                if matches!(
                    error.kind(),
                    StorageErrorKind::Forbidden | StorageErrorKind::NotFound
                ) =>
            {
                tracing::warn!(%error, "earlier uploads are not continued");
                return Ok(None);
            }
            Err(error) => return Err(refused(error)),
        };
        for upload in listed {
            found.entry(upload.object).or_default().push(upload.id);
        }
        Ok(Some(found))
    }

    /// The running uploads of a file's object.
    fn running_of(&self, file: &LocalFile) -> &[String] {
        let running = self.running.as_ref();
        let of_object = running.and_then(|all| all.get(&self.uploader.object(file).name));
        of_object.map_or(&[], Vec::as_slice)
    }

    fn report(&self) -> PushReport {
        let bytes = |files: &mut dyn Iterator<Item = &LocalFile>| {
            files.map(|file| file.state.size).fold(0, u64::saturating_add)
        };
        PushReport {
            uri: self.uri.clone(),
            files: self.files.len(),
            bytes: bytes(&mut self.files.iter()),
            kept: self.kept.len(),
            others: self.others.clone(),
            left_out: self.left_out.clone(),
            warnings: self.warnings.clone(),
            bucket_created: self.bucket_created,
            ..PushReport::of(self.uri.clone())
        }
    }

    /// What would be done, in its order.
    fn planned(&self) -> Vec<PlannedFile> {
        let planned = |file: &LocalFile| PlannedFile {
            name: file.name.clone(),
            size: file.state.size,
            is_there: self.kept.contains_key(&file.name),
            replaces: self.remote.0.contains_key(&file.name),
            continues: !self.running_of(file).is_empty(),
        };
        self.files.iter().map(planned).collect()
    }

    /// Sends all files, stage by stage. Returns the ETags of those that were sent.
    async fn send(&self) -> Result<BTreeMap<String, StoredObject>, PushFailure> {
        let mut stored = BTreeMap::new();
        let mut failed: Vec<Error> = Vec::new();
        for stage in SendStage::ALL {
            if stage == SendStage::Entrances {
                if failed.is_empty() {
                    failed = self.changed_since().await?;
                }
                if !failed.is_empty() {
                    break;
                }
            }
            let of_stage = self.files.iter().filter(|file| file.stage == stage);
            let missing = of_stage.filter(|file| !self.kept.contains_key(&file.name));
            let mut sending = stream::iter(missing)
                .map(|file| async move { (file, self.send_file(file).await) })
                .buffer_unordered(FILES_AT_ONCE);
            while let Some((file, sent)) = sending.next().await {
                match sent {
                    Ok(object) => drop(stored.insert(file.name.clone(), object)),
                    Err(error) if concerns_one_file(&error) => failed.push(error),
                    Err(error) => {
                        failed.insert(0, error);
                        return Err(self.failure(&stored, failed));
                    }
                }
            }
        }
        if failed.is_empty() { Ok(stored) } else { Err(self.failure(&stored, failed)) }
    }

    /// Errors for the files that are no longer what their objects have.
    async fn changed_since(&self) -> Result<Vec<Error>> {
        let is_there = |file: &&LocalFile| {
            file.stage != SendStage::Entrances || self.kept.contains_key(&file.name)
        };
        let files: Vec<LocalFile> = self.files.iter().filter(is_there).cloned().collect();
        blocking(move || {
            let changed = files.iter().filter(|file| !file.is_unchanged());
            Ok(changed.map(upload::changed_later).collect())
        })
        .await
    }

    async fn send_file(&self, file: &LocalFile) -> Result<StoredObject> {
        let replaces = match self.remote.0.get(&file.name) {
            Some(object) => Replaces::Version(object.etag.clone()),
            None => Replaces::Nothing,
        };
        if !self.uploader.is_in_parts(file.state.size) {
            return self.uploader.put(file, &replaces).await;
        }
        self.uploader.upload_in_parts(file, &replaces, self.running_of(file)).await
    }

    fn failure(&self, stored: &BTreeMap<String, StoredObject>, errors: Vec<Error>) -> PushFailure {
        let done = stored.len() + self.kept.len();
        PushFailure::of(errors, done, self.files.len())
    }
}

/// The objects under the prefix; none where the bucket was just created, or would be.
async fn objects_of(
    sink: &dyn ObjectSink,
    bucket: &Bucket,
    uri: &ModelUri,
    options: &PushOptions,
) -> Result<(RemoteObjects, bool)> {
    let missing = match RemoteObjects::list(sink, bucket, &uri.prefix).await {
        Err(error) if error.kind() == ErrorKind::NotFound => error,
        listed => return Ok((listed?, false)),
    };
    let Some(compartment) = &options.create_in else {
        let text = format!("{missing}; or create it with --create-bucket --compartment-id OCID");
        return Err(Error::new(ErrorKind::NotFound, text));
    };
    if options.dry_run {
        return Ok((RemoteObjects::default(), true));
    }
    if sink.create_bucket(bucket, compartment).await.map_err(refused)? {
        return Ok((RemoteObjects::default(), true));
    }
    // There is one now: ours, if the answer to a first attempt was lost, or another user's. Or it
    // was there all along, and cannot be listed.
    match RemoteObjects::list(sink, bucket, &uri.prefix).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(missing),
        listed => Ok((listed?, false)),
    }
}

/// Whether the push may continue with the other files.
fn concerns_one_file(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Changed | ErrorKind::Conflict)
}
