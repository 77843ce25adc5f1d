//! The commands, in their form on the admin socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::{Filters, ModelRequest, ModelUri, progress_text};

/// A command for the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CacheCommand {
    /// List all models.
    Ls,
    /// Show everything about some models.
    Inspect {
        /// Key, its beginning, or URI.
        model: String,
    },
    /// Compare cached files with their checksums, and quarantine damaged ones.
    Verify {
        /// Keys, their beginnings, or URIs; an empty list means all models.
        models: Vec<String>,
        /// Maximum rate in bytes per second.
        rate: Option<u64>,
    },
    /// Evict unused models.
    Gc {
        /// Only list what would be removed.
        dry_run: bool,
        /// How much to remove.
        selection: CollectionScope,
    },
    /// Keep a model in the cache even when no pod uses it.
    Pin {
        /// Key, its beginning, or the URI of a single revision.
        model: String,
    },
    /// Allow the eviction of a pinned model.
    Unpin {
        /// Key, its beginning, or URI.
        model: String,
    },
    /// Download models before a pod asks for them.
    Prefetch {
        /// Which models.
        models: Vec<ModelSpec>,
        /// Do not wait for the downloads.
        detach: bool,
    },
    /// Import a model from a directory.
    Import {
        /// The directory.
        dir: PathBuf,
        /// The model that the directory is a copy of.
        model: ModelSpec,
        /// Move the files instead of copying them.
        take: bool,
    },
    /// Remove the whole cache.
    Purge,
}

impl CacheCommand {
    /// Whether it changes nothing.
    pub fn only_reads(&self) -> bool {
        matches!(self, Self::Ls | Self::Inspect { .. })
    }

    /// Whether the command may download models, even into a new cache.
    pub fn downloads(&self) -> bool {
        matches!(self, Self::Prefetch { .. } | Self::Import { .. })
    }
}

/// How much a garbage collection should remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CollectionScope {
    /// What the limits of the configuration ask for.
    Limits,
    /// Every model that no pod uses and that is not pinned.
    All,
    /// Enough to free this many bytes.
    Free {
        /// Bytes to free.
        bytes: u64,
    },
}

/// A model in Object Storage, as the user names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// `oci://BUCKET@NAMESPACE/PREFIX`.
    pub uri: String,
    /// Patterns, as in a volume's attributes.
    #[serde(default)]
    pub include: Option<String>,
    /// Patterns, as in a volume's attributes.
    #[serde(default)]
    pub exclude: Option<String>,
}

impl ModelSpec {
    /// The request for its current revision.
    ///
    /// # Errors
    /// `Invalid` if the URI or a pattern is malformed.
    pub fn request(&self) -> Result<ModelRequest> {
        let ModelUri { namespace, bucket, prefix } = ModelUri::parse(&self.uri)?;
        let mut request = ModelRequest::of(namespace, bucket, prefix);
        request.filters = Filters::parse(self.include.as_deref(), self.exclude.as_deref())?;
        Ok(request)
    }
}

/// Progress of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandProgress {
    /// What the progress is about, the same for all reports on one task.
    pub subject: String,
    /// Text for people.
    pub text: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in total; 0 while unknown.
    pub total: u64,
}

impl CommandProgress {
    /// Progress in bytes.
    pub(super) fn of_bytes(subject: &str, done: u64, total: u64) -> Self {
        let text = format!("{subject}: {}", progress_text(done, total));
        Self { subject: subject.to_owned(), text, done, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_serialization_and_unknown_ones_are_refused() {
        let model =
            ModelSpec { uri: "oci://b/p".into(), include: None, exclude: Some("*.x".into()) };
        for command in [
            CacheCommand::Ls,
            CacheCommand::Verify { models: vec!["ab".into()], rate: Some(1) },
            CacheCommand::Gc { dry_run: true, selection: CollectionScope::Free { bytes: 5 } },
            CacheCommand::Prefetch { models: vec![model.clone()], detach: true },
            CacheCommand::Import { dir: "/d".into(), model, take: true },
            CacheCommand::Purge,
        ] {
            let json = serde_json::to_string(&command).unwrap();
            assert_eq!(serde_json::from_str::<CacheCommand>(&json).unwrap(), command, "{json}");
        }
        assert!(serde_json::from_str::<CacheCommand>(r#"{"command": "format-c"}"#).is_err());
        assert!(
            serde_json::from_str::<CacheCommand>(r#"{"command": "pin", "modle": "x"}"#).is_err()
        );
    }
}
