//! Which revisions each request got: the newest, and those before it.
//!
//! Superseded revisions are marked in their own directories, so that looking for them
//! costs nothing while there are none.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::files;
use super::layout::Layout;
use super::layout::names::Directory;
use super::models::{self, CachedModel};
use crate::abort_point;
use crate::error::{Error, Result};
use crate::model::{BucketName, ModelKey, ModelUri, Prefix, RequestDigest, Revision, Summary};

/// Revisions of a request that are remembered, the newest included.
pub const MAX_KEPT_REVISIONS: usize = 16;

/// How many revisions of a model the administrator wants to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepRevisions {
    /// The model. Without a namespace, which is not known yet, that of the bucket is not compared.
    pub uri: ModelUri,
    /// How many, the newest included; 1 to [`MAX_KEPT_REVISIONS`].
    pub revisions: usize,
}

impl KeepRevisions {
    fn matches(&self, summary: &Summary) -> bool {
        let ModelUri { namespace, bucket, prefix } = &self.uri;
        let source = &summary.source;
        let (their_bucket, their_prefix): (&BucketName, &Prefix) = (&source.bucket, &source.prefix);
        summary.scope.is_empty()
            && (bucket, prefix) == (their_bucket, their_prefix)
            && namespace.as_ref().is_none_or(|namespace| *namespace == source.namespace)
    }
}

/// What a request got.
#[derive(Debug, Serialize, Deserialize)]
struct Latest {
    model: ModelKey,
    revision: Revision,
    /// The revisions before it, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    previous: Vec<ModelKey>,
    /// The request named this revision.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    exact: bool,
}

impl Latest {
    fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Puts a model before all that the request got until now.
    fn after(before: Option<&Self>, model: &CachedModel, exact: bool) -> Self {
        let mut previous: Vec<ModelKey> = Vec::new();
        let known = before.into_iter().flat_map(|b| std::iter::once(&b.model).chain(&b.previous));
        for key in known.filter(|key| **key != model.key).take(MAX_KEPT_REVISIONS - 1) {
            previous.push(key.clone());
        }
        let (model, revision) = (model.key.clone(), model.summary.revision.clone());
        Self { model, revision, previous, exact }
    }

    /// All revisions, the newest first.
    fn revisions(&self) -> impl Iterator<Item = &ModelKey> {
        std::iter::once(&self.model).chain(&self.previous)
    }
}

/// The records of requests of one cache.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Requests {
    layout: Layout,
}

impl Requests {
    pub(in crate::cache) fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// Records the newest revision of a request; returns whether it changed. `exact` says
    /// that the request named the revision.
    pub(in crate::cache) fn record_latest(
        &self,
        request: &RequestDigest,
        model: &CachedModel,
        exact: bool,
    ) -> Result<bool> {
        let path = self.layout.request(request);
        let bytes = files::read(&path)?;
        let before = bytes.as_deref().and_then(Latest::parse);
        let latest = Latest::after(before.as_ref(), model, exact);
        let json = serde_json::to_vec(&latest).map_err(|e| {
            Error::internal(format!("recording the newest revision: {e}")).caused_by(e)
        })?;
        files::remove(&self.layout.superseded(&model.key))?;
        if bytes.as_deref() == Some(&json) {
            return Ok(false);
        }
        files::write_whole(&path, &json, 0o644)?;
        abort_point::reach("model-commit-4");
        // The same revision may have been uploaded again: then it supersedes nothing.
        if let Some(old) = before.map(|latest| latest.model).filter(|old| *old != model.key)
            && let Err(error) = files::write_whole(&self.layout.superseded(&old), b"", 0o644)
            // An evicted model, perhaps evicted just now, needs no mark.
            && self.layout.model(&old).is_dir()
        {
            return Err(error);
        }
        Ok(true)
    }

    /// Returns the models that a newer revision replaced, and that no request has as
    /// its latest. Blocks.
    pub(in crate::cache) fn superseded(&self) -> Result<HashSet<ModelKey>> {
        let names = files::names(&self.layout.models())?;
        let keys = names.iter().filter_map(|name| ModelKey::parse(name));
        let mut found: HashSet<_> =
            keys.filter(|key| self.layout.superseded(key).exists()).collect();
        if !found.is_empty() {
            for latest in self.all()? {
                found.remove(&latest.model);
            }
        }
        Ok(found)
    }

    /// Returns the models that these rules keep, each with the number of newer revisions
    /// in the cache. Blocks.
    pub(in crate::cache) fn kept(
        &self,
        rules: &[KeepRevisions],
    ) -> Result<HashMap<ModelKey, usize>> {
        let mut kept = HashMap::new();
        if rules.is_empty() {
            return Ok(kept);
        }
        for latest in self.all()?.into_iter().filter(|latest| !latest.exact) {
            let (mut most, mut newer) = (None, 0);
            for key in latest.revisions() {
                let Some(summary) = models::summary(&self.layout, key)? else { continue };
                let most = *most.get_or_insert_with(|| {
                    let matching = rules.iter().filter(|rule| rule.matches(&summary));
                    matching.map(|rule| rule.revisions).max().unwrap_or_default()
                });
                if newer >= most {
                    break;
                }
                kept.entry(key.clone())
                    .and_modify(|least: &mut usize| *least = newer.min(*least))
                    .or_insert(newer);
                newer += 1;
            }
        }
        Ok(kept)
    }

    /// Returns the newest revision that was recorded for a request.
    pub(in crate::cache) fn latest(&self, request: &RequestDigest) -> Result<Option<ModelKey>> {
        Ok(self.recorded_latest(request)?.map(|(model, _)| model))
    }

    /// Like [`Requests::latest`], with its revision.
    pub(in crate::cache) fn recorded_latest(
        &self,
        request: &RequestDigest,
    ) -> Result<Option<(ModelKey, Revision)>> {
        let bytes = files::read(&self.layout.request(request))?;
        let latest = bytes.as_deref().and_then(Latest::parse);
        Ok(latest.map(|latest| (latest.model, latest.revision)))
    }

    fn all(&self) -> Result<Vec<Latest>> {
        let directory = self.layout.directory(Directory::Requests);
        let mut found = Vec::new();
        for name in files::names(&directory)? {
            let bytes = files::read(&directory.join(name))?;
            found.extend(bytes.as_deref().and_then(Latest::parse));
        }
        Ok(found)
    }
}

/// The models that the record of a request names, the newest first; none if it is damaged.
pub(in crate::cache) fn revisions_of(record: &[u8]) -> Vec<ModelKey> {
    let latest = Latest::parse(record);
    latest.iter().flat_map(Latest::revisions).cloned().collect()
}
