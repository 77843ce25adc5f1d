//! From one object to one verified file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::hashing::HashService;
use super::limiter::{ConcurrencyLimiter, ObjectDownload, Origin};
use super::pace::RateLimiter;
use super::plan::RangePlan;
use super::range::{self, RangeJob};
use super::target::DownloadTarget;
use super::{Check, Concurrency, FairShare, Interest, ObjectProgress, Verified};
use crate::abort_point;
use crate::error::{Error, Result};
use crate::md5_lanes::Lanes;
use crate::metrics::Metrics;
use crate::source::{Bucket, ObjectHead, ObjectName, ObjectSource, RetryPolicy};
use crate::sync::lock;
use crate::text::shown;

/// Times that an object is downloaded before its bytes are reported as damaged.
const ROUNDS: u32 = 3;

/// Of one object as many requests wait at once as one part of so many of those that may run.
const WAITING_PART: usize = 4;

/// Which checksums are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verify {
    /// The strongest one that the object has.
    #[default]
    Always,
    /// No MD5 of objects over 1 GiB.
    Cheap,
    /// As `Always`, and objects without a usable checksum are refused.
    Strict,
}

/// One version of an object, as the listing has it.
#[derive(Debug, Clone)]
pub struct ObjectVersion {
    /// The object's name.
    pub name: ObjectName,
    /// Its size in bytes.
    pub size: u64,
    /// The ETag of the version.
    pub etag: String,
    /// The listing's `md5`, which is used where headers have no checksum.
    pub md5: Option<String>,
    /// Its place in the order of its model: large objects are downloaded in this order.
    pub position: usize,
}

/// The options of an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Requests at once, over all downloads.
    pub concurrency: Concurrency,
    /// Bytes per second of all downloads together; `None` is no limit.
    pub bandwidth: Option<u64>,
    /// Bytes per request. Under `Concurrency::Auto` a request may take up to four times as many;
    /// the last ones of a download are smaller.
    pub range_size: u64,
    /// Which checksums are compared.
    pub verify: Verify,
    /// Push data to the disk while it arrives (for a cache that will sync it).
    pub write_back: bool,
    /// Delays between attempts.
    pub retry: RetryPolicy,
}

/// The files of a download: the data and its journal. Both remain when it is
/// interrupted, and the next download of the same object version continues there.
#[derive(Debug, Clone)]
pub struct Staging {
    /// The data, preallocated to the object's size.
    pub data: PathBuf,
    /// The journal of finished ranges.
    pub journal: PathBuf,
}

/// The download engine; cheap to clone. Its workers run on threads of their
/// own, which end when the last clone is dropped.
#[derive(Clone)]
pub struct Engine(Arc<EngineInner>);

struct EngineInner {
    options: EngineOptions,
    limiter: ConcurrencyLimiter,
    pace: Option<RateLimiter>,
    hashing: HashService,
    metrics: Arc<Metrics>,
    workers: Handle,
    runtime: Mutex<Option<Runtime>>,
}

impl Drop for EngineInner {
    fn drop(&mut self) {
        if let Some(runtime) = lock(&self.runtime).take() {
            // Waiting here could block an async caller without end.
            runtime.shutdown_background();
        }
    }
}

impl Engine {
    /// Starts an engine; each download has its own clients.
    ///
    /// # Errors
    /// `Internal` when the system starts no threads.
    pub fn new(options: EngineOptions, metrics: Arc<Metrics>) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        // Twice the cores: writes to one file wait for each other.
        let runtime = Builder::new_multi_thread()
            .thread_name("download")
            .worker_threads((cores * 2).clamp(4, 32))
            .enable_all()
            .build()
            .map_err(|e| Error::io("starting the download threads", &e))?;
        let limiter = ConcurrencyLimiter::new(options.concurrency, Arc::clone(&metrics));
        let pace = options.bandwidth.map(RateLimiter::new);
        let hashing = HashService::new(Lanes::detect());
        tracing::debug!(lanes = hashing.lanes().name(), "MD5 is hashed in lanes");
        let workers = runtime.handle().clone();
        let runtime = Mutex::new(Some(runtime));
        Ok(Self(Arc::new(EngineInner {
            options,
            limiter,
            pace,
            hashing,
            metrics,
            workers,
            runtime,
        })))
    }

    pub(super) fn limiter(&self) -> &ConcurrencyLimiter {
        &self.0.limiter
    }

    pub(super) fn pace(&self) -> Option<&RateLimiter> {
        self.0.pace.as_ref()
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(super) fn retry(&self) -> &RetryPolicy {
        &self.0.options.retry
    }

    pub(super) fn verify_mode(&self) -> Verify {
        self.0.options.verify
    }

    pub(super) fn hashing(&self) -> &HashService {
        &self.0.hashing
    }

    /// Downloads one object version into the staging file and verifies it.
    /// `interest` lists the models that want it, and so decides when its requests are admitted.
    ///
    /// Cancellation safe: dropping the future stops the workers, and what they
    /// wrote is in the journal.
    ///
    /// # Errors
    /// `Changed` when the object is no longer this version; `Unavailable` when
    /// Object Storage cannot be reached long enough; `Corrupt` when the bytes
    /// fail their checksum repeatedly; `Precondition` when no checksum proves
    /// them under [`Verify::Strict`]; `NoSpace` when the disk is full.
    pub async fn download(
        &self,
        object: ObjectVersion,
        staging: Staging,
        interest: Interest,
        progress: Arc<ObjectProgress>,
    ) -> Result<Verified> {
        let engine = self.clone();
        let run = async move { engine.run(object, staging, interest, progress).await };
        let work = self.0.workers.spawn(run.in_current_span());
        match AbortOnDropHandle::new(work).await {
            Ok(result) => result,
            Err(error) => {
                Err(Error::internal(format!("a download task failed: {error}")).caused_by(error))
            }
        }
    }

    /// Checks a file against the object's checksums. `None` when they differ, or
    /// when no checksum can prove the content. The file is only read.
    ///
    /// # Errors
    /// As [`Engine::download`], without `Corrupt`.
    pub async fn verify(
        &self,
        client: &Arc<dyn ObjectSource>,
        object: ObjectVersion,
        path: &Path,
        progress: Arc<ObjectProgress>,
    ) -> Result<Option<Verified>> {
        let (engine, size, path) = (self.clone(), object.size, path.to_owned());
        let share = FairShare::urgent();
        share.add_reader(client);
        let work = self.0.workers.spawn(async move {
            let local = path.display().to_string();
            let adopted =
                tokio::task::spawn_blocking(move || DownloadTarget::adopt(&path, size, progress));
            let adopted =
                adopted.await.map_err(|e| Error::internal(format!("{local}: {e}")).caused_by(e))?;
            let target = adopted.map_err(|e| Error::io(format!("reading {local}"), &e))?;
            let Some(target) = target else { return Ok(None) };
            if size == 0 {
                return Ok(Some(Verified { crc32c: 0, check: Check::Empty }));
            }
            // Local bytes need no permit for the network.
            let download = engine.object_download(&object, Interest::of(share)).await?;
            let target = Arc::new(target);
            let job = RangeJob::new(engine.clone(), object, target, download);
            let expected = engine.expected(&job, &engine.head(&job).await?)?;
            // The ETag proves nothing about bytes that did not come from the object.
            let unproved = |check| matches!(check, Check::SizeAndEtag | Check::UnknownLayout);
            if expected.unprovable().is_some() {
                return Ok(None);
            }
            let md5 = engine.follow(&job, &expected);
            let (crc32c, check) = engine.prove(&job, expected, md5).await?;
            let check = check.filter(|check| !unproved(*check));
            Ok(check.map(|check| Verified { crc32c, check }))
        });
        match AbortOnDropHandle::new(work).await {
            Ok(result) => result,
            Err(error) => {
                Err(Error::internal(format!("a verifying task failed: {error}")).caused_by(error))
            }
        }
    }

    /// Stops all workers and waits for them, so that their journals are
    /// complete. Blocks at most `grace`; the engine cannot be used afterwards.
    pub fn stop(&self, grace: Duration) {
        let runtime = lock(&self.0.runtime).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(grace);
        }
    }

    async fn run(
        &self,
        object: ObjectVersion,
        staging: Staging,
        interest: Interest,
        progress: Arc<ObjectProgress>,
    ) -> Result<Verified> {
        let size = object.size;
        let download = self.object_download(&object, interest.clone()).await?;
        let opening = interest.own_work();
        let target = self.open(&object, staging, progress).await?;
        drop(opening);
        let job = RangeJob::new(self.clone(), object, target, download);
        let verified = match size {
            0 => Verified { crc32c: 0, check: Check::Empty },
            _ => self.rounds(&job).await?,
        };
        abort_point::reach("download-5");
        interest.progressed();
        self.metrics().verified(verified.check.label(), true);
        Ok(verified)
    }

    /// The object's entry in the limiter.
    async fn object_download(
        &self,
        object: &ObjectVersion,
        interest: Interest,
    ) -> Result<ObjectDownload> {
        let reader = interest.reader().ok_or_else(|| {
            Error::internal(format!("no client reads {}", shown(&object.name.name, 200)))
        })?;
        let location = reader.location().await?;
        let origin = Origin { location, bucket: Bucket::clone(&object.name.bucket) };
        Ok(ObjectDownload::new(interest, object.size, object.position, Arc::new(origin)))
    }

    async fn open(
        &self,
        object: &ObjectVersion,
        staging: Staging,
        progress: Arc<ObjectProgress>,
    ) -> Result<Arc<DownloadTarget>> {
        let (size, etag) = (object.size, object.etag.clone());
        let write_back = self.0.options.write_back;
        let data = staging.data.display().to_string();
        let opened = tokio::task::spawn_blocking(move || {
            DownloadTarget::open(&staging.data, &staging.journal, size, &etag, progress, write_back)
        });
        let opened = opened
            .await
            .map_err(|e| Error::internal(format!("opening {data}: {e}")).caused_by(e))?;
        let name = shown(&object.name.name, 200);
        let target = opened.map_err(|e| {
            Error::io(format!("making room for {size} bytes of {name} in {data}"), &e)
        })?;
        Ok(Arc::new(target))
    }

    /// Downloads until the bytes are proved, or proved damaged.
    async fn rounds(&self, job: &RangeJob) -> Result<Verified> {
        let mut before = None;
        for round in 1..=ROUNDS {
            let (crc32c, check) = self.round(job).await?;
            if let Some(check) = check {
                return Ok(Verified { crc32c, check });
            }
            self.metrics().verified("content", false);
            tracing::warn!(object = job.object.name, round, "bytes fail their checksum");
            // Bytes that arrive the same twice were not damaged on the way.
            if before == Some(crc32c) {
                return Err(job.damaged(round, ", with the same bytes each time"));
            }
            before = Some(crc32c);
            if round < ROUNDS {
                job.target.restart().map_err(|e| Error::io("restarting the journal", &e))?;
            }
        }
        Err(job.damaged(ROUNDS, ""))
    }

    /// One download of what is missing, and the proof: the CRC of the content,
    /// and the check that it passed, if any.
    async fn round(&self, job: &RangeJob) -> Result<(u32, Option<Check>)> {
        let size = job.target.size();
        let range_size = self.0.options.range_size;
        let missing = job.target.missing(range_size);
        // A small object's plain GET returns the checksums too.
        let whole = missing.len() == 1 && missing[0] == (0..size);
        let (expected, md5) = if whole {
            let head = range::fetch(job, 0..size, true, None).await?;
            let head = match head {
                Some(head) => head,
                None => self.head(job).await?,
            };
            let expected = self.admit(job, self.expected(job, &head)?)?;
            let md5 = self.follow(job, &expected);
            (expected, md5)
        } else {
            let expected = self.expected(job, &self.head(job).await?)?;
            let expected = self.admit(job, expected)?;
            let md5 = self.follow(job, &expected);
            self.fetch_all(job, RangePlan::new(missing, range_size, expected.part_size())).await?;
            (expected, md5)
        };
        abort_point::reach("download-4");
        self.prove(job, expected, md5).await
    }

    async fn head(&self, job: &RangeJob) -> Result<ObjectHead> {
        let mut client = job.reader()?;
        loop {
            let error = match client.head(&job.object, Some(&job.etag)).await {
                Ok(head) => return Ok(head),
                Err(error) if range::is_refusal(&error) => error,
                Err(error) => return Err(range::gone(error)),
            };
            if !job.switch_reader(&mut client, &error)? {
                return Err(range::gone(error));
            }
        }
    }

    /// Fetches all ranges, as many at once as the limiter admits. The first error stops them all.
    async fn fetch_all(&self, job: &RangeJob, mut plan: RangePlan) -> Result<()> {
        let (limiter, download) = (self.limiter(), &job.download);
        let mut running: JoinSet<Result<usize>> = JoinSet::new();
        // Several wait, so that a model that comes late gets its share soon.
        let mut waiting = FuturesUnordered::new();
        loop {
            let (most, ahead) = (limiter.most(), (limiter.most() / WAITING_PART).max(1));
            download.set_streams(plan.streams());
            if plan.is_empty() {
                waiting.clear();
            } else {
                let all = most + ahead;
                while waiting.len() < ahead && running.len() + waiting.len() < all {
                    waiting.push(limiter.enter(download));
                }
            }
            tokio::select! {
                Some(permit) = waiting.next() => {
                    let size = limiter.request_size(download, self.0.options.range_size);
                    let Some((part, range)) = plan.take(size) else { continue };
                    let job = job.clone();
                    let work = async move {
                        range::fetch(&job, range, false, Some(permit)).await?;
                        Ok(part)
                    };
                    running.spawn(work.in_current_span());
                }
                Some(done) = running.join_next() => {
                    let part = done.map_err(|e| {
                        Error::internal(format!("a download worker failed: {e}")).caused_by(e)
                    })??;
                    plan.ended(part);
                }
                else => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
