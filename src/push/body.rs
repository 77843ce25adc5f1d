//! A range of a file as the body of a request. A thread reads it while it is sent, a few chunks
//! ahead of the network, and computes its CRC-32C.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};

use super::files::{FileState, LocalFile};
use super::progress::SentBytes;
use crate::source::UploadBody;

/// Bytes of one read.
const CHUNK: usize = 256 * 1024;

/// Chunks that are read ahead: with them, the one that is read and the one that is sent, a
/// request takes a megabyte.
const AHEAD: usize = 2;

/// A file that is open for reading, and what it was when the directory was read.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: File,
    local: LocalFile,
}

/// Why a range could not be read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReadFailure {
    /// The file is no longer what it was.
    Changed,
    /// Reading failed, for the reason in the text.
    Failed(String),
}

impl OpenFile {
    /// Opens a file that is still the same. Blocks.
    pub(super) fn open(local: &LocalFile) -> Result<Self, ReadFailure> {
        let file = File::open(&local.path).map_err(|error| ReadFailure::of(&error))?;
        let open = Self { file, local: local.clone() };
        open.check()?;
        Ok(open)
    }

    /// Checks that neither the file nor its name has changed. Blocks.
    pub(super) fn check(&self) -> Result<(), ReadFailure> {
        let is_open =
            self.file.metadata().is_ok_and(|open| FileState::of(&open) == self.local.state);
        if is_open && self.local.is_unchanged() { Ok(()) } else { Err(ReadFailure::Changed) }
    }

    fn read(&self, range: &mut Range<u64>) -> Result<Vec<u8>, ReadFailure> {
        let left = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut chunk = vec![0; left.min(CHUNK)];
        self.file
            .read_exact_at(&mut chunk, range.start)
            .map_err(|error| ReadFailure::of(&error))?;
        range.start += u64::try_from(chunk.len()).unwrap_or_default();
        Ok(chunk)
    }
}

impl ReadFailure {
    pub(super) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound => Self::Changed,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// What was read for a body, once it has been sent.
pub(super) struct ReadOutcome(oneshot::Receiver<Result<u32, ReadFailure>>);

impl ReadOutcome {
    /// The CRC-32C of the whole range; `None` when the request ended before all was read.
    pub(super) fn finished(mut self) -> Option<Result<u32, ReadFailure>> {
        self.0.try_recv().ok()
    }
}

/// The body of this range. The file is checked before the last bytes are sent, so that nothing
/// is stored of a file that changed meanwhile.
pub(super) fn body_of(
    open: &Arc<OpenFile>,
    range: Range<u64>,
    sent: SentBytes,
) -> (UploadBody, ReadOutcome) {
    let (chunks, received) = mpsc::channel::<Result<Bytes, String>>(AHEAD);
    let (report, outcome) = oneshot::channel();
    let length = range.end - range.start;
    let open = Arc::clone(open);
    tokio::task::spawn_blocking(move || read_all(&open, range, &chunks, report));
    let chunks = stream::unfold((received, sent), |(mut received, mut sent)| async move {
        let chunk = received.recv().await?;
        if let Ok(chunk) = &chunk {
            sent.add(u64::try_from(chunk.len()).unwrap_or_default());
        }
        Some((chunk, (received, sent)))
    });
    (UploadBody { length, chunks: chunks.boxed() }, ReadOutcome(outcome))
}

/// Reads until the end, or until the request is over. Blocks.
fn read_all(
    open: &OpenFile,
    mut range: Range<u64>,
    chunks: &mpsc::Sender<Result<Bytes, String>>,
    report: oneshot::Sender<Result<u32, ReadFailure>>,
) {
    let mut crc32c = 0;
    while !range.is_empty() {
        let read = open.read(&mut range).and_then(|chunk| match range.is_empty() {
            true => open.check().map(|()| chunk),
            false => Ok(chunk),
        });
        match read {
            Ok(chunk) => {
                crc32c = crc32c::crc32c_append(crc32c, &chunk);
                if range.is_empty() {
                    // Before the answer can come.
                    let _ = report.send(Ok(crc32c));
                    let _ = chunks.blocking_send(Ok(chunk.into()));
                    return;
                }
                if chunks.blocking_send(Ok(chunk.into())).is_err() {
                    return;
                }
            }
            Err(failure) => {
                let _ = report.send(Err(failure));
                let _ = chunks.blocking_send(Err("broken off".to_owned()));
                return;
            }
        }
    }
    let _ = report.send(open.check().map(|()| crc32c));
}
