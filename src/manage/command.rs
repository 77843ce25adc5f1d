//! What can be asked for, as it goes over the admin socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::{Filters, ModelRequest, ModelUri, progress_text};

/// A command for the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CacheCommand {
    /// All models.
    Ls,
    /// Everything about some.
    Inspect {
        /// Key, its beginning, or URI.
        model: String,
    },
    /// Read models again, and put aside what is damaged.
    Verify {
        /// Keys, their beginnings, or URIs; none of them means everything.
        models: Vec<String>,
        /// Bytes per second at most.
        rate: Option<u64>,
    },
    /// Evict what nobody uses.
    Gc {
        /// Only tell what would go.
        dry_run: bool,
        /// How much.
        selection: CollectionScope,
    },
    /// Keep a model although nobody uses it.
    Pin {
        /// Key, its beginning, or the URI of a single revision.
        model: String,
    },
    /// Let it go again.
    Unpin {
        /// Key, its beginning, or URI.
        model: String,
    },
    /// Bring models in before a pod asks for them.
    Prefetch {
        /// Which.
        models: Vec<ModelSpec>,
        /// Do not wait for them.
        detach: bool,
    },
    /// Bring a model in from a directory.
    Import {
        /// The directory.
        dir: PathBuf,
        /// What it is a copy of.
        model: ModelSpec,
        /// Take the files themselves.
        take: bool,
    },
    /// Remove the whole cache.
    Purge,
}

/// How much a garbage collection is to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CollectionScope {
    /// What the limits of the configuration ask for.
    Limits,
    /// Everything that nobody uses and nobody pinned.
    All,
    /// So much.
    Free {
        /// Bytes.
        bytes: u64,
    },
}

/// A model in Object Storage, as a person names it.
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
    /// `Invalid` when the URI or a pattern is none.
    pub fn request(&self) -> Result<ModelRequest> {
        let ModelUri { namespace, bucket, prefix } = ModelUri::parse(&self.uri)?;
        let mut request = ModelRequest::of(namespace, bucket, prefix);
        request.filters = Filters::parse(self.include.as_deref(), self.exclude.as_deref())?;
        Ok(request)
    }
}

/// How far a command is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandProgress {
    /// What is being done; progress of one thing has one subject.
    pub subject: String,
    /// For people.
    pub text: String,
    /// Bytes that are done.
    pub done: u64,
    /// Bytes altogether; 0 while that is not known.
    pub total: u64,
}

impl CommandProgress {
    /// Some of all bytes.
    pub(super) fn of_bytes(subject: &str, done: u64, total: u64) -> Self {
        let text = format!("{subject}: {}", progress_text(done, total));
        Self { subject: subject.to_owned(), text, done, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_go_over_the_wire_and_unknown_ones_do_not() {
        let wanted =
            ModelSpec { uri: "oci://b/p".into(), include: None, exclude: Some("*.x".into()) };
        for command in [
            CacheCommand::Ls,
            CacheCommand::Verify { models: vec!["ab".into()], rate: Some(1) },
            CacheCommand::Gc { dry_run: true, selection: CollectionScope::Free { bytes: 5 } },
            CacheCommand::Prefetch { models: vec![wanted.clone()], detach: true },
            CacheCommand::Import { dir: "/d".into(), model: wanted, take: true },
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
