//! An entry of the prefetch list of the configuration, and its state.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cache::KeepRevisions;
use crate::model::{ModelKey, ModelRequest, ModelUri, NamespaceName};

/// A model that nodes download ahead of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefetchModel {
    /// The model.
    pub uri: ModelUri,
    /// The labels that a node must have; an empty map selects every node.
    pub node_selector: BTreeMap<String, String>,
    /// How many of its newest revisions stay in the cache while there is space; `None`
    /// keeps no older one.
    pub keep_revisions: Option<usize>,
}

impl PrefetchModel {
    /// Which revisions of it stay; `None` if it has no such wish. An entry without a namespace
    /// means `own`, that of the driver's tenancy. Until that is known, revisions of this bucket and
    /// prefix stay whatever their namespace, so that none goes too early.
    pub fn kept(&self, own: Option<&NamespaceName>) -> Option<KeepRevisions> {
        let revisions = self.keep_revisions?;
        let mut uri = self.uri.clone();
        uri.namespace = uri.namespace.or_else(|| own.cloned());
        Some(KeepRevisions { uri, revisions })
    }

    /// The request for the model.
    pub(super) fn request(&self) -> ModelRequest {
        let ModelUri { namespace, bucket, prefix } = self.uri.clone();
        ModelRequest::of(namespace, bucket, prefix)
    }

    /// Whether two entries mean the same downloads.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.uri, &self.node_selector) == (&other.uri, &other.node_selector)
    }
}

/// The state of one entry of the prefetch list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefetchEntry {
    /// The URI, as in the configuration.
    pub uri: String,
    /// The labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Its state.
    pub state: PrefetchState,
    /// The model that was downloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ModelKey>,
    /// Why the last attempt failed, or why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// State of an entry of the prefetch list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrefetchState {
    /// It is queued.
    Waiting,
    /// It is being downloaded.
    Running,
    /// It was downloaded.
    Complete,
    /// It failed, and is retried later.
    Failed,
    /// This node lacks the labels of its `nodeSelector`.
    NotSelected,
    /// It has a `nodeSelector`, and the labels of this node are unknown.
    LabelsUnknown,
}
