//! What a push did, would do, or could not do.

use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::model::{ModelUri, Revision, counted};
use crate::source::ObjectName;

/// Result of a push.
#[derive(Debug, Clone)]
pub struct PushReport {
    /// Where the model is, with its namespace.
    pub uri: ModelUri,
    /// The revision under the prefix; `None` if nothing was to be sent (`dry_run`).
    pub revision: Option<Revision>,
    /// Number of files.
    pub files: usize,
    /// Total size of the files in bytes.
    pub bytes: u64,
    /// Number of files whose objects were there already.
    pub kept: usize,
    /// Bytes sent over the network, repeated ones included.
    pub sent: u64,
    /// Names of objects under the prefix that the directory does not have.
    pub others: Vec<String>,
    /// Those of them that were deleted.
    pub deleted: Vec<String>,
    /// Names in the directory that were left out by default.
    pub left_out: Vec<String>,
    /// Whether the bucket was created, or would be.
    pub bucket_created: bool,
    /// Multipart uploads of the same objects that an earlier push or another writer has begun.
    pub unfinished: Vec<UnfinishedUpload>,
    /// What would be done, in its order; only with `dry_run`.
    pub planned: Vec<PlannedFile>,
    /// Warnings about the directory and the model.
    pub warnings: Vec<String>,
    /// Time from the first request to the last one.
    pub elapsed: Duration,
}

impl PushReport {
    /// A push that has done nothing yet.
    pub(super) fn of(uri: ModelUri) -> Self {
        Self {
            uri,
            revision: None,
            files: 0,
            bytes: 0,
            kept: 0,
            sent: 0,
            others: Vec::new(),
            deleted: Vec::new(),
            left_out: Vec::new(),
            bucket_created: false,
            unfinished: Vec::new(),
            planned: Vec::new(),
            warnings: Vec::new(),
            elapsed: Duration::ZERO,
        }
    }
}

/// A multipart upload that is neither committed nor aborted. Its parts are stored, and paid for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedUpload {
    /// Its object.
    pub object: ObjectName,
    /// The id of the upload.
    pub id: String,
}

impl UnfinishedUpload {
    /// The oci CLI's command that removes it. `access` are its options for the identity and the
    /// endpoint.
    pub fn abort_command(&self, access: &[String]) -> String {
        let ObjectName { bucket, name } = &self.object;
        let words = [
            "--namespace",
            &bucket.namespace,
            "--bucket-name",
            &bucket.name,
            "--object-name",
            name,
            "--upload-id",
            &self.id,
        ];
        let words = access.iter().map(String::as_str).chain(words);
        format!("oci os multipart abort {}", command_line(words))
    }
}

/// Words as a shell takes them.
pub fn command_line<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let is_plain = |word: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
        !word.is_empty() && word.chars().all(plain)
    };
    let quoted = |word: &str| match is_plain(word) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    };
    words.into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// What a push would do with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Name below the directory.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Its object is there already, and nothing is sent.
    pub is_there: bool,
    /// An object of this name is there.
    pub replaces: bool,
    /// An earlier upload may be continued.
    pub continues: bool,
}

/// Why a push failed, and whether the same command continues it.
#[derive(Debug)]
pub struct PushFailure {
    /// What failed.
    pub error: Error,
    /// Whether something was left undone that the same command continues.
    pub undone: bool,
}

impl From<Error> for PushFailure {
    fn from(error: Error) -> Self {
        Self { error, undone: false }
    }
}

impl PushFailure {
    /// A failure after the prefix was listed, outside of any file.
    pub(super) fn later(error: Error) -> Self {
        Self { undone: is_continued(&error), error }
    }

    /// The failure of a push that has stored `done` of `files` files.
    pub(super) fn of(mut errors: Vec<Error>, done: usize, files: usize) -> Self {
        // What needs a person comes first.
        errors.sort_by_key(is_continued);
        let others = match errors.len() {
            0 | 1 => String::new(),
            more => format!("; and {} failed too", counted(more - 1, "other file")),
        };
        let Some(first) = errors.into_iter().next() else {
            return Error::internal("a push failed without an error").into();
        };
        let undone = is_continued(&first);
        let text = format!("{first}{others}; {done} of {} are stored", counted(files, "file"));
        Self { error: Error::new(first.kind(), text), undone }
    }
}

/// Whether the same command may succeed without anything else being done.
fn is_continued(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Changed | ErrorKind::Unavailable)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::source::Bucket;

    #[test]
    fn the_command_that_aborts_an_upload_can_be_pasted_whatever_the_name() {
        let object = Arc::new(Bucket::new("ns", "b")).object("m/it's a *.bin");
        let upload = UnfinishedUpload { object, id: "u-1".to_owned() };
        assert_eq!(
            upload.abort_command(&["--profile".to_owned(), "A B".to_owned()]),
            "oci os multipart abort --profile 'A B' --namespace ns --bucket-name b --object-name \
             'm/it'\\''s a *.bin' --upload-id u-1"
        );
    }

    #[test]
    fn a_failure_says_first_what_needs_a_person() {
        let changed = Error::new(ErrorKind::Changed, "a changed");
        let conflict = Error::new(ErrorKind::Conflict, "b is another writer's");
        let failure = PushFailure::of(vec![changed.clone(), conflict, changed.clone()], 2, 5);
        assert!(!failure.undone);
        assert_eq!(
            failure.error.message(),
            "b is another writer's; and 2 other files failed too; 2 of 5 files are stored"
        );
        assert!(PushFailure::of(vec![changed], 0, 1).undone);
    }

    #[test]
    fn what_the_service_cannot_do_for_the_moment_is_continued_once_a_push_runs() {
        assert!(PushFailure::later(Error::new(ErrorKind::Unavailable, "503")).undone);
        assert!(!PushFailure::later(Error::new(ErrorKind::Denied, "403")).undone);
    }
}
