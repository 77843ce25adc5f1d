//! One worker fetches one range: from the socket to the disk, resumed from
//! the byte it reached.

use std::error::Error as StdError;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::limiter::{ObjectDownload, RequestPermit};
use super::spans::Span;
use super::target::DownloadTarget;
use super::{Engine, ObjectVersion};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{ObjectHead, ObjectName, ObjectSource, StorageError, StorageErrorKind};
use crate::text::shown;

/// The journal records a span at least this often: the most that a kill can cost.
const SPAN_BYTES: u64 = 1 << 20;

/// Progress that resets the count of failures.
const WORTHWHILE_BYTES: u64 = 256 << 10;

/// Failures in a row, without progress, after which a range gives up. With
/// the delays of the retry policy these are minutes.
const FAILURES_IN_A_ROW: u32 = 8;

/// All attempts of one range, so that a server that delivers a little each time
/// cannot occupy a worker forever.
const ATTEMPTS: u32 = 200;

/// How to give an object the strongest checksum.
const REUPLOAD: &str = "upload it again with a CRC-32C checksum (oci os object put --force --opc-checksum-algorithm \
     CRC32C)";

/// What one object's workers share.
#[derive(Clone)]
pub(super) struct RangeJob {
    pub(super) engine: Engine,
    pub(super) object: ObjectName,
    pub(super) etag: Arc<str>,
    pub(super) listed_md5: Option<Arc<str>>,
    pub(super) target: Arc<DownloadTarget>,
    pub(super) download: ObjectDownload,
}

impl RangeJob {
    pub(super) fn new(
        engine: Engine,
        object: ObjectVersion,
        target: Arc<DownloadTarget>,
        download: ObjectDownload,
    ) -> Self {
        let ObjectVersion { name, etag, md5, .. } = object;
        let (etag, listed_md5) = (Arc::from(etag), md5.map(Arc::from));
        Self { engine, object: name, etag, listed_md5, target, download }
    }

    /// The error for bytes that fail their checksum.
    pub(super) fn damaged(&self, times: u32, how: &str) -> Error {
        let name = shown(&self.object.name, 200);
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "object {name} failed its checksum {times} times in a row{how}: it, or the path \
                 to it, is damaged; {REUPLOAD}, or look at this node's network and memory"
            ),
        )
    }

    /// The error for bytes that no checksum can prove.
    pub(super) fn unproved(&self, why: &str) -> Error {
        let name = shown(&self.object.name, 200);
        Error::new(
            ErrorKind::Precondition,
            format!(
                "no checksum proves the content of object {name} ({why}), and download.verify is \
                 strict; {REUPLOAD}"
            ),
        )
    }

    /// The client that reads the object.
    pub(super) fn reader(&self) -> Result<Arc<dyn ObjectSource>> {
        self.download.interest().reader().ok_or_else(|| {
            Error::internal(format!("no client reads {}", shown(&self.object.name, 200)))
        })
    }

    /// Switches to another client after a refusal, if there is one, and stores it in `client`.
    pub(super) fn switch_reader(
        &self,
        client: &mut Arc<dyn ObjectSource>,
        error: &StorageError,
    ) -> Result<bool> {
        // Another worker may have switched meanwhile.
        let other = self.reader()?;
        if other.is(&**client) && !self.download.interest().switch_reader(&**client) {
            return Ok(false);
        }
        tracing::debug!(object = self.object.name, %error, "reading as another requester");
        *client = self.reader()?;
        Ok(true)
    }
}

/// Whether another identity may get another answer.
pub(super) fn is_refusal(error: &StorageError) -> bool {
    match error.kind() {
        StorageErrorKind::Unauthenticated
        | StorageErrorKind::Forbidden
        | StorageErrorKind::Config
        | StorageErrorKind::Identity => true,
        StorageErrorKind::NotFound => error.code() != Some("ObjectNotFound"),
        _ => false,
    }
}

/// Whether a connection could not be opened, or broke: only then is the cause an error of the
/// transport. Answers that cannot be used, and those that do not come, have none.
fn is_broken_connection(error: &StorageError) -> bool {
    error.kind() == StorageErrorKind::Unavailable && StdError::source(error).is_some()
}

/// An object that is gone has changed: the listing had it.
pub(super) fn gone(error: StorageError) -> Error {
    let gone = matches!(error.kind(), StorageErrorKind::Changed | StorageErrorKind::NotFound);
    let error = Error::from(error);
    if gone { Error::new(ErrorKind::Changed, error.message()) } else { error }
}

/// Fetches the range, or the whole object without a range header; the head of
/// a whole answer has the object's checksums. `permit` is for the first attempt.
pub(super) async fn fetch(
    job: &RangeJob,
    range: Range<u64>,
    whole: bool,
    mut permit: Option<RequestPermit>,
) -> Result<Option<ObjectHead>> {
    let mut at = range.start;
    let mut head = None;
    let mut client = job.reader()?;
    let (mut failures, mut attempts, mut gave_way) = (0, 0, 0);
    let started = std::time::Instant::now();
    loop {
        attempts += 1;
        let from = at;
        let (limiter, download) = (job.engine.limiter(), &job.download);
        let slot = match permit.take() {
            Some(permit) => permit,
            None => limiter.enter(download).await,
        };
        let as_whole = whole && at == 0;
        let outcome = tokio::select! {
            biased;
            outcome = attempt(job, &*client, &slot, &mut at, range.end, as_whole, &mut head) => {
                Some(outcome)
            }
            () = slot.preempted() => None,
        };
        let slow = slot.flow().is_slow();
        let unanswered = (!slot.is_answered()).then(|| slot.number());
        drop(slot);
        let error = match outcome {
            Some(Ok(())) => {
                limiter.succeeded(download);
                return Ok(head);
            }
            Some(Err(RangeOutcome::Final(error))) => return Err(error),
            Some(Err(RangeOutcome::Storage(error))) => error,
            None => {
                tracing::debug!(object = job.object.name, at, slow, "a range gives way");
                if slow {
                    gave_way += 1;
                    tokio::time::sleep(job.engine.retry().delay(gave_way, None)).await;
                } else {
                    // Only its turn is over.
                    attempts -= 1;
                }
                if attempts < ATTEMPTS {
                    continue;
                }
                return Err(trickles(job, attempts, started.elapsed()));
            }
        };
        if slow && error.is_transient() {
            limiter.slow(download);
        }
        if error.is_transient() {
            limiter.failed();
        }
        if let Some(request) = unanswered
            && is_broken_connection(&error)
        {
            limiter.unanswered(download, request);
        }
        if is_refusal(&error) && job.switch_reader(&mut client, &error)? {
            continue;
        }
        failures = if at - from >= WORTHWHILE_BYTES { 1 } else { failures + 1 };
        let gone = error.kind() == StorageErrorKind::NotFound;
        if error.kind() == StorageErrorKind::Changed || (gone && failures >= 3) {
            return Err(changed(job, &error));
        }
        let again = error.is_transient() || gone || error.kind() == StorageErrorKind::Protocol;
        if !again || failures >= FAILURES_IN_A_ROW || attempts >= ATTEMPTS {
            let spent = started.elapsed().as_secs();
            let error = Error::from(error);
            return Err(match attempts {
                1 => error,
                n => error.context(format!("after {n} attempts in {spent} s")),
            });
        }
        if is_throttling(&error) {
            limiter.throttled(download);
        }
        let delay = job.engine.retry().delay(failures, error.retry_after());
        tracing::debug!(object = job.object.name, at, attempts, %error, ?delay, "range interrupted");
        tokio::time::sleep(delay.max(Duration::from_millis(10))).await;
    }
}

enum RangeOutcome {
    Storage(StorageError),
    Final(Error),
}

async fn attempt(
    job: &RangeJob,
    client: &dyn ObjectSource,
    slot: &RequestPermit,
    at: &mut u64,
    end: u64,
    whole: bool,
    head: &mut Option<ObjectHead>,
) -> Result<(), RangeOutcome> {
    let range = (!whole).then_some(*at..end);
    let (flow, interest) = (slot.flow(), job.download.interest());
    let asked = client.get(&job.object, &job.etag, range);
    let started = tokio::time::Instant::now();
    let mut body = flow.waiting(asked).await.map_err(RangeOutcome::Storage)?;
    slot.answered(started.elapsed());
    let size = job.target.size();
    if let Some(other) = body.head.size.filter(|other| *other != size) {
        let name = shown(&job.object.name, 200);
        let text = format!("{name} has {other} bytes where the listing said {size}");
        return Err(RangeOutcome::Final(Error::new(ErrorKind::Changed, text)));
    }
    if whole {
        body.expect_length(end);
        *head = Some(body.head.clone());
    }
    let asked_for = end - *at;
    let mut span = OpenSpan { target: &job.target, start: *at, len: 0, crc32c: 0 };
    let disk = |error: std::io::Error| {
        RangeOutcome::Final(Error::io(
            format!("writing {} to the disk", shown(&job.object.name, 200)),
            &error,
        ))
    };
    loop {
        let chunk = match flow.waiting(body.chunk()).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            // All bytes are here, and only the end of the body was lost: a chunked
            // body may break off behind its last byte.
            Err(_) if *at == end && body.received() == asked_for => break,
            Err(_) if *at == end => return Err(RangeOutcome::Final(longer(job))),
            Err(error) => return Err(RangeOutcome::Storage(error)),
        };
        // Until the next chunk is requested: the disk, and our own pacing.
        let _own = interest.own_work();
        slot.arrived(chunk.len() as u64);
        interest.received(chunk.len() as u64);
        let left = usize::try_from(end - *at).unwrap_or(usize::MAX);
        let chunk = &chunk[..chunk.len().min(left)];
        job.target.write(chunk, *at).map_err(disk)?;
        job.engine.metrics().download_bytes.inc_by(chunk.len() as u64);
        span.crc32c = crc32c::crc32c_append(span.crc32c, chunk);
        span.len += chunk.len() as u64;
        *at += chunk.len() as u64;
        if span.len >= SPAN_BYTES {
            span.close().map_err(disk)?;
        }
        if let Some(pace) = job.engine.pace() {
            pace.spend(chunk.len() as u64).await;
        }
    }
    span.close().map_err(disk)?;
    // The body has as many bytes as were requested, or ended in an error.
    debug_assert_eq!(*at, end);
    Ok(())
}

/// The bytes since the last journal entry. Dropping it records them too, so that
/// a cancelled download keeps every byte it wrote.
struct OpenSpan<'a> {
    target: &'a DownloadTarget,
    start: u64,
    len: u64,
    crc32c: u32,
}

impl OpenSpan<'_> {
    fn close(&mut self) -> std::io::Result<()> {
        let span = Span { start: self.start, len: self.len, crc32c: self.crc32c };
        (self.start, self.len, self.crc32c) = (span.end(), 0, 0);
        if span.len == 0 { Ok(()) } else { self.target.record(span) }
    }
}

impl Drop for OpenSpan<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "recording the last bytes of a download failed");
        }
    }
}

fn is_throttling(error: &StorageError) -> bool {
    error.kind() == StorageErrorKind::Throttled || matches!(error.status(), Some(429 | 503))
}

fn trickles(job: &RangeJob, attempts: u32, spent: Duration) -> Error {
    let text = format!(
        "{} arrives too slowly: it gave its connection to other downloads {attempts} times in {} s; \
         what has arrived is kept",
        shown(&job.object.name, 200),
        spent.as_secs()
    );
    Error::new(ErrorKind::Unavailable, text)
}

/// Bytes behind the end of an object are not the object's, and those before it may
/// not be either.
fn longer(job: &RangeJob) -> Error {
    let name = shown(&job.object.name, 200);
    let text = format!("{name} returned more bytes than were requested");
    Error::new(ErrorKind::Changed, text)
}

fn changed(job: &RangeJob, error: &StorageError) -> Error {
    let name = shown(&job.object.name, 200);
    Error::new(ErrorKind::Changed, format!("{name} changed while it was read: {error}"))
}
