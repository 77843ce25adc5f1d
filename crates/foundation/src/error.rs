//! The one error type of the library: a meaning, and a sentence for people.
//!
//! The names of the meanings are enough to write the gRPC mapping, which
//! `csi::status` does; nothing else knows gRPC codes.

use std::error::Error as StdError;
use std::sync::Arc;
use std::{fmt, io};

use nix::errno::Errno;

use crate::redact::without_pars;

/// What went wrong, in the terms in which a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ErrorKind {
    /// Work continues; ask again (a download, a slot, another call on the same target).
    InProgress,
    /// A required service cannot be reached or is not ready; ask again.
    Unavailable,
    /// Not enough bytes or inodes.
    NoSpace,
    /// The request itself is wrong.
    Invalid,
    /// The bucket, the prefix, the volume or the cached revision does not exist, or is not visible.
    NotFound,
    /// Credentials were refused (401).
    Unauthenticated,
    /// The credentials are good, and the request is not allowed (403, or a policy rule).
    Denied,
    /// The model cannot be used as it is: unsafe names, archived, revision mismatch, always changing.
    Precondition,
    /// The object is no longer the version that was listed: resolve again.
    Changed,
    /// Another volume or request has this name or target.
    Conflict,
    /// The capacity limit is below the model's size.
    OutOfRange,
    /// Bytes failed their checksum again and again.
    Corrupt,
    /// A disk of the node fails. `mount::on_disk` adds which one, and what to do.
    Disk,
    /// A bug of the driver, or a kernel that refuses what it should not.
    Internal,
}

/// An error for people: what was attempted, on what, how often, what to do next.
///
/// Cheap to clone, since every waiter of a download gets the same cause.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    message: Box<str>,
    cause: Option<Cause>,
}

/// An error of the system or of a library, shared by all clones of what it caused.
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

const OWN_DESCRIPTORS: &str = "; the driver has reached its limit of open files \
     (RLIMIT_NOFILE) for the moment; it will be tried again";
const ALL_DESCRIPTORS: &str = "; the node has reached its limit of open files (fs.file-max) \
     for the moment; it will be tried again";
const MEMORY: &str = "; the node is short of memory for the moment; it will be tried again";

/// The answers of a disk or file system that has failed, or that the kernel has made
/// read-only because of that.
const FAILING_DISK: [Errno; 11] = [
    Errno::EIO,
    Errno::EROFS,
    Errno::ENXIO,
    Errno::ENODEV,
    Errno::EUCLEAN,
    Errno::EBADMSG,
    Errno::ESTALE,
    Errno::ESHUTDOWN,
    Errno::ENOTCONN,
    Errno::EREMOTEIO,
    Errno::ENOMEDIUM,
];

impl Error {
    /// An error of this meaning. Whatever names the sentence quotes, no character
    /// of it is invisible or changes the direction of reading, and no URL that it quotes has the
    /// credential of a pre-authenticated request.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.contains(is_invisible) {
            let visible = |c: char| match is_invisible(c) {
                true => c.escape_default().to_string(),
                false => c.to_string(),
            };
            message = message.chars().map(visible).collect();
        }
        if let Some(without) = without_pars(&message) {
            message = without;
        }
        Self { kind, message: message.into_boxed_str(), cause: None }
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// A bug of ours, or a kernel that refuses what it should not.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// An input/output error on something local: out of space, short of
    /// descriptors or memory for the moment, and a failing disk have different meanings.
    pub fn io(attempted: impl fmt::Display, error: &io::Error) -> Self {
        use io::ErrorKind as Io;
        let errno = error.raw_os_error().map(Errno::from_raw);
        let (kind, hint) = match errno {
            Some(Errno::EMFILE) => (ErrorKind::Unavailable, OWN_DESCRIPTORS),
            Some(Errno::ENFILE) => (ErrorKind::Unavailable, ALL_DESCRIPTORS),
            Some(Errno::ENOMEM | Errno::ENOBUFS | Errno::EAGAIN) => {
                (ErrorKind::Unavailable, MEMORY)
            }
            Some(errno) if FAILING_DISK.contains(&errno) => (ErrorKind::Disk, ""),
            _ => match error.kind() {
                Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => (ErrorKind::NoSpace, ""),
                _ => (ErrorKind::Internal, ""),
            },
        };
        Self::new(kind, format!("{attempted}: {error}{hint}")).caused_by(copy_of(error))
    }

    /// Keeps the cause for callers that look at it with [`source`](StdError::source). The
    /// message has its text already, so only the message is printed.
    #[must_use]
    pub fn caused_by(self, cause: impl StdError + Send + Sync + 'static) -> Self {
        self.with_cause(Some(Arc::new(cause)))
    }

    /// As [`caused_by`](Self::caused_by), where there is a cause.
    #[must_use]
    pub fn with_cause(self, cause: Option<Cause>) -> Self {
        Self { cause, ..self }
    }

    /// The meaning.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same meaning with `context: ` before the sentence.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self::new(self.kind, format!("{context}: {}", self.message)).with_cause(self.cause)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

/// By meaning and message: the message has the text of the cause.
impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, &self.message) == (other.kind, &other.message)
    }
}

impl Eq for Error {}

/// What a caller can look at of an error that cannot be cloned.
fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Whether a character shows nothing, or changes the order in which others are
/// shown: Unicode's `Default_Ignorable_Code_Point`, the bidirectional controls
/// ("Bidi_Control", UAX #9), and separators of lines and paragraphs.
pub fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_has_a_character_that_cannot_be_seen_whatever_it_quotes() {
        let error = Error::invalid("prefix a\u{202e}b\u{200b} is wrong").context("c\u{feff}");
        assert_eq!(error.message(), "c\\u{feff}: prefix a\\u{202e}b\\u{200b} is wrong");
        assert_eq!(Error::invalid("größer als 模型").message(), "größer als 模型");
    }

    #[test]
    fn the_cause_is_kept_with_the_context_and_shown_once() {
        let full = io::Error::from_raw_os_error(Errno::ENOSPC as i32);
        let error = Error::io("writing a", &full).context("model m");
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()).unwrap();
        assert_eq!(cause.raw_os_error(), full.raw_os_error());
        assert_eq!(error.to_string().matches("No space left").count(), 1, "{error}");
        assert_eq!(format!("{error:?}").matches("No space left").count(), 1, "{error:?}");
        assert!(Error::invalid("no").source().is_none());
    }

    #[test]
    fn full_disks_shortages_and_failing_disks_are_no_bugs() {
        for (errno, kind) in [
            (Errno::ENOSPC, ErrorKind::NoSpace),
            (Errno::EDQUOT, ErrorKind::NoSpace),
            (Errno::EMFILE, ErrorKind::Unavailable),
            (Errno::ENFILE, ErrorKind::Unavailable),
            (Errno::ENOMEM, ErrorKind::Unavailable),
            (Errno::EAGAIN, ErrorKind::Unavailable),
            (Errno::EIO, ErrorKind::Disk),
            (Errno::EROFS, ErrorKind::Disk),
            (Errno::EUCLEAN, ErrorKind::Disk),
            (Errno::EINVAL, ErrorKind::Internal),
            (Errno::EBADF, ErrorKind::Internal),
        ] {
            let error = Error::io("writing", &errno.into());
            assert_eq!(error.kind(), kind, "{errno}");
            let transient = error.message().ends_with("it will be tried again");
            assert_eq!(transient, kind == ErrorKind::Unavailable, "{error}");
        }
    }
}
