//! From one object to one verified file.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::gate::{Gate, Visitor};
use super::md5::{self, MultipartLayouts};
use super::pace::Pace;
use super::range::{self, Job};
use super::target::Target;
use super::{Check, Demand, Progress, Share, Verified};
use crate::abort_point;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;
use crate::model::shown;
use crate::oci::{ObjectHead, ObjectName, ObjectStorage, RetryPolicy};

/// Times that an object is downloaded before damaged bytes are the answer.
const ROUNDS: u32 = 3;

/// Objects over this size are not read for their MD5 under `verify: cheap`.
const CHEAP_MD5_BYTES: u64 = 1 << 30;

/// Which checksums are worth their time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verify {
    /// The strongest that the object carries.
    #[default]
    Always,
    /// No MD5 of objects over 1 GiB.
    Cheap,
}

/// How the engine works.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Requests at once, over all downloads.
    pub concurrency: usize,
    /// Bytes per second of all downloads together; `None` is no limit.
    pub bandwidth: Option<u64>,
    /// Bytes asked for in one request.
    pub range_size: u64,
    /// Which checksums are compared.
    pub verify: Verify,
    /// Push data to the disk while it arrives (for a cache that will sync it).
    pub write_back: bool,
    /// Delays between attempts.
    pub retry: RetryPolicy,
}

/// Where a download works: the data file and its journal. Both stay when it
/// is interrupted, and the next one of the same object version goes on.
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
pub struct Engine(Arc<Inner>);

struct Inner {
    options: EngineOptions,
    gate: Gate,
    pace: Option<Pace>,
    metrics: Arc<Metrics>,
    workers: Handle,
    runtime: Mutex<Option<Runtime>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let runtime = self.runtime.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = runtime.take() {
            // Waiting here could block an async caller for ever.
            runtime.shutdown_background();
        }
    }
}

/// What the object says about its bytes.
enum Expected {
    Crc32c(u32),
    Md5([u8; 16]),
    Multipart { digest: [u8; 16], layouts: MultipartLayouts },
    Nothing,
}

impl Engine {
    /// An engine; each download says as whom it reads.
    ///
    /// # Errors
    /// `Internal` when the system gives no threads.
    pub fn new(options: EngineOptions, metrics: Arc<Metrics>) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let runtime = Builder::new_multi_thread()
            .thread_name("download")
            .worker_threads(cores.clamp(2, 16))
            .enable_all()
            .build()
            .map_err(|e| Error::io("starting the download threads", &e))?;
        let gate = Gate::new(options.concurrency.max(1));
        let pace = options.bandwidth.map(Pace::new);
        let workers = runtime.handle().clone();
        let runtime = Mutex::new(Some(runtime));
        Ok(Self(Arc::new(Inner { options, gate, pace, metrics, workers, runtime })))
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.0.gate
    }

    pub(super) fn pace(&self) -> Option<&Pace> {
        self.0.pace.as_ref()
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(super) fn retry(&self) -> &RetryPolicy {
        &self.0.options.retry
    }

    /// Downloads one object version into the staging file and verifies it.
    /// `demand` says for whom, and so when its requests are admitted.
    ///
    /// Cancellation safe: dropping the future stops the workers, and what they
    /// wrote stands in the journal.
    ///
    /// # Errors
    /// `Changed` when the object is no longer this version; `Unavailable` when
    /// Object Storage cannot be reached long enough; `Corrupt` when the bytes
    /// fail their checksum three times; `NoSpace` when the disk is full.
    pub async fn download(
        &self,
        object: ObjectName,
        size: u64,
        etag: &str,
        staging: Staging,
        demand: Demand,
        progress: Arc<Progress>,
    ) -> Result<Verified> {
        let (engine, etag) = (self.clone(), Arc::from(etag));
        let run = async move { engine.run(object, size, etag, staging, demand, progress).await };
        let work = self.0.workers.spawn(run.in_current_span());
        match AbortOnDropHandle::new(work).await {
            Ok(result) => result,
            Err(error) => Err(Error::internal(format!("a download task failed: {error}"))),
        }
    }

    /// Whether a file is what the object holds, by the object's checksums;
    /// `None` when it is not, or cannot be proved to be. The file is only read.
    ///
    /// # Errors
    /// As [`Engine::download`], without `Corrupt`.
    pub async fn verify(
        &self,
        client: &ObjectStorage,
        object: ObjectName,
        size: u64,
        etag: &str,
        path: &Path,
        progress: Arc<Progress>,
    ) -> Result<Option<Verified>> {
        let (engine, etag, path) = (self.clone(), Arc::from(etag), path.to_owned());
        let share = Share::urgent();
        share.read_as(client);
        let work = self.0.workers.spawn(async move {
            let local = path.display().to_string();
            let adopted = tokio::task::spawn_blocking(move || Target::adopt(&path, size, progress));
            let adopted = adopted.await.map_err(|e| Error::internal(format!("{local}: {e}")))?;
            let target = adopted.map_err(|e| Error::io(format!("reading {local}"), &e))?;
            let Some(target) = target else { return Ok(None) };
            if size == 0 {
                return Ok(Some(Verified { crc32c: 0, check: Check::Empty }));
            }
            // Bytes that are here wait for no place among those that are not.
            let visitor = Visitor::new(Demand::of(share), size);
            let target = Arc::new(target);
            let job = Job { engine: engine.clone(), object, etag, target, visitor };
            let expected = engine.expected(&engine.head(&job).await?, size);
            if matches!(expected, Expected::Nothing) {
                // The ETag says nothing about bytes that did not come from the object.
                return Ok(None);
            }
            let md5 = Self::follow(&job, &expected);
            let (crc32c, check) = engine.prove(&job, expected, md5).await?;
            Ok(check.map(|check| Verified { crc32c, check }))
        });
        match AbortOnDropHandle::new(work).await {
            Ok(result) => result,
            Err(error) => Err(Error::internal(format!("a verifying task failed: {error}"))),
        }
    }

    /// Stops all workers and waits for them, so that their journals are
    /// complete. Blocks at most `grace`; the engine is of no use afterwards.
    pub fn stop(&self, grace: Duration) {
        let runtime = self.0.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(grace);
        }
    }

    async fn run(
        &self,
        object: ObjectName,
        size: u64,
        etag: Arc<str>,
        staging: Staging,
        demand: Demand,
        progress: Arc<Progress>,
    ) -> Result<Verified> {
        let target = self.open(&object, size, &etag, staging, progress).await?;
        let visitor = Visitor::new(demand, size);
        let job = Job { engine: self.clone(), object, etag, target, visitor };
        let verified = match size {
            0 => Verified { crc32c: 0, check: Check::Empty },
            _ => self.rounds(&job).await?,
        };
        abort_point::reach("download-5");
        self.metrics().verified(verified.check.label(), true);
        Ok(verified)
    }

    async fn open(
        &self,
        object: &ObjectName,
        size: u64,
        etag: &Arc<str>,
        staging: Staging,
        progress: Arc<Progress>,
    ) -> Result<Arc<Target>> {
        let (etag, write_back) = (Arc::clone(etag), self.0.options.write_back);
        let data = staging.data.display().to_string();
        let opened = tokio::task::spawn_blocking(move || {
            Target::open(&staging.data, &staging.journal, size, &etag, progress, write_back)
        });
        let opened = opened.await.map_err(|e| Error::internal(format!("opening {data}: {e}")))?;
        let name = shown(&object.name, 200);
        let target = opened.map_err(|e| {
            Error::io(format!("making room for {size} bytes of {name} in {data}"), &e)
        })?;
        Ok(Arc::new(target))
    }

    /// Downloads until the bytes are proved, or proved damaged.
    async fn rounds(&self, job: &Job) -> Result<Verified> {
        let mut unproved = None;
        for round in 1..=ROUNDS {
            let (crc32c, check) = self.round(job).await?;
            if let Some(check) = check {
                return Ok(Verified { crc32c, check });
            }
            self.metrics().verified("content", false);
            // The layout of the parts may be one we do not know. Bytes that
            // arrive the same twice were not damaged on the way.
            let multipart = unproved == Some((crc32c, true));
            unproved = Some((crc32c, self.may_be_unknown_layout(job).await?));
            if multipart {
                tracing::warn!(
                    object = job.object.name,
                    "no known part size gives the object's MD5; two downloads gave the same bytes, \
                     so size and ETag have to do; upload with CRC32C checksums to have it verified"
                );
                return Ok(Verified { crc32c, check: Check::SizeAndEtag });
            }
            tracing::warn!(object = job.object.name, round, "bytes fail their checksum");
            job.target.restart().map_err(|e| Error::io("starting the journal anew", &e))?;
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "object {} failed its checksum {ROUNDS} times in a row: it, or the path to it, is \
                 damaged; upload it again, or look at this node's network and memory",
                shown(&job.object.name, 200)
            ),
        ))
    }

    async fn may_be_unknown_layout(&self, job: &Job) -> Result<bool> {
        let head = self.head(job).await?;
        Ok(head.crc32c.is_none() && head.content_md5.is_none() && head.multipart_md5.is_some())
    }

    /// One download of what is missing, and the proof: the CRC of the content,
    /// and the check that it passed, if it passed.
    async fn round(&self, job: &Job) -> Result<(u32, Option<Check>)> {
        let size = job.target.size();
        let missing = job.target.missing(self.0.options.range_size);
        // A small object's plain GET brings the checksums along.
        let whole = missing.len() == 1 && missing[0] == (0..size);
        let (expected, md5) = if whole {
            let head = range::fetch(job, 0..size, true).await?;
            let head = match head {
                Some(head) => head,
                None => self.head(job).await?,
            };
            let expected = self.expected(&head, size);
            let md5 = Self::follow(job, &expected);
            (expected, md5)
        } else {
            let expected = self.expected(&self.head(job).await?, size);
            let md5 = Self::follow(job, &expected);
            self.fetch_all(job, missing).await?;
            (expected, md5)
        };
        abort_point::reach("download-4");
        self.prove(job, expected, md5).await
    }

    /// The CRC of the whole content, and the check that it passed, if it passed.
    async fn prove(
        &self,
        job: &Job,
        expected: Expected,
        md5: Option<Hashing>,
    ) -> Result<(u32, Option<Check>)> {
        job.target.check_disk().map_err(|e| {
            Error::io(format!("writing {} to the disk", shown(&job.object.name, 200)), &e)
        })?;
        let crc32c = job.target.whole().ok_or_else(|| {
            Error::internal(format!("{} is not whole after its download", job.object.name))
        })?;
        let md5 = match md5 {
            Some(md5) => Some(joined(md5.await)?),
            None => None,
        };
        let check = match expected {
            Expected::Crc32c(expected) => (expected == crc32c).then_some(Check::Crc32c),
            Expected::Md5(expected) => (md5 == Some(expected)).then_some(Check::Md5),
            Expected::Multipart { digest, layouts } => {
                self.any_layout(job, md5, digest, &layouts).await?
            }
            Expected::Nothing => Some(Check::SizeAndEtag),
        };
        Ok((crc32c, check))
    }

    /// Hashes behind the writers, with the most likely part size.
    fn follow(job: &Job, expected: &Expected) -> Option<Hashing> {
        let target = Arc::clone(&job.target);
        match expected {
            Expected::Md5(_) => Some(spawn(md5::of_whole(target))),
            Expected::Multipart { layouts, .. } => {
                let part_size = *layouts.part_sizes().first()?;
                Some(spawn(md5::of_parts(target, part_size)))
            }
            Expected::Crc32c(_) | Expected::Nothing => None,
        }
    }

    async fn any_layout(
        &self,
        job: &Job,
        first: Option<[u8; 16]>,
        digest: [u8; 16],
        layouts: &MultipartLayouts,
    ) -> Result<Option<Check>> {
        if first == Some(digest) {
            return Ok(Some(Check::MultipartMd5));
        }
        for part_size in layouts.part_sizes().iter().skip(1) {
            let hashing = spawn(md5::of_parts(Arc::clone(&job.target), *part_size));
            if joined(hashing.await)? == digest {
                return Ok(Some(Check::MultipartMd5));
            }
        }
        Ok(None)
    }

    async fn head(&self, job: &Job) -> Result<ObjectHead> {
        let mut client = job.reader()?;
        loop {
            let error = match client.head_object(&job.object, Some(&job.etag)).await {
                Ok(head) => return Ok(head),
                Err(error) if range::is_refusal(&error) => error,
                Err(error) => return Err(range::gone(error)),
            };
            if !job.change_over(&mut client, &error)? {
                return Err(range::gone(error));
            }
        }
    }

    fn expected(&self, head: &ObjectHead, size: u64) -> Expected {
        let read_for_md5 = self.0.options.verify == Verify::Always || size <= CHEAP_MD5_BYTES;
        if let Some(crc32c) = head.crc32c {
            Expected::Crc32c(crc32c)
        } else if !read_for_md5 {
            Expected::Nothing
        } else if let Some(md5) = head.content_md5 {
            Expected::Md5(md5)
        } else if let Some(multipart) = &head.multipart_md5 {
            let layouts = MultipartLayouts::of(size, multipart.parts);
            Expected::Multipart { digest: multipart.digest, layouts }
        } else {
            Expected::Nothing
        }
    }

    /// Fetches the ranges in ascending order on as many workers as may run at
    /// once. The first error stops them all.
    async fn fetch_all(&self, job: &Job, ranges: Vec<Range<u64>>) -> Result<()> {
        let workers = ranges.len().min(self.0.options.concurrency.max(1));
        let plan = Arc::new((ranges, AtomicUsize::new(0)));
        let mut running: JoinSet<Result<()>> = JoinSet::new();
        for _ in 0..workers {
            let (job, plan) = (job.clone(), Arc::clone(&plan));
            let work = async move {
                loop {
                    let next = plan.1.fetch_add(1, Ordering::Relaxed);
                    let Some(range) = plan.0.get(next) else { return Ok(()) };
                    range::fetch(&job, range.clone(), false).await?;
                }
            };
            running.spawn(work.in_current_span());
        }
        while let Some(done) = running.join_next().await {
            done.map_err(|e| Error::internal(format!("a download worker failed: {e}")))??;
        }
        Ok(())
    }
}

type Hashing = AbortOnDropHandle<std::io::Result<[u8; 16]>>;

fn spawn(work: impl Future<Output = std::io::Result<[u8; 16]>> + Send + 'static) -> Hashing {
    AbortOnDropHandle::new(tokio::spawn(work))
}

fn joined(result: Result<std::io::Result<[u8; 16]>, tokio::task::JoinError>) -> Result<[u8; 16]> {
    let read = "reading a download back for its MD5";
    result.map_err(|e| Error::internal(format!("{read}: {e}")))?.map_err(|e| Error::io(read, &e))
}
