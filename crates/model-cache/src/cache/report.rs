//! Reports the content of the cache, for commands and metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::Cache;
use super::fill::progress::FillProgress;
use super::space::evict::RetentionReasons;
use super::space::usage::Usage;
use super::store::layout::names::{EntryPath, ModelFile};
use super::store::leases::LeaseRecord;
use super::store::set_aside::SetAside;
use crate::error::Result;
use crate::model::{Manifest, ManifestFile, ModelKey, Summary};
use crate::mount;

/// A snapshot of everything in the cache.
#[derive(Debug, Clone)]
pub struct CacheReport {
    /// The models, most recently used first.
    pub models: Vec<ModelReport>,
    /// The space of the whole cache.
    pub usage: Usage,
    /// Caches of older layouts.
    pub set_aside: Vec<SetAside>,
}

/// A snapshot of one model.
#[derive(Debug, Clone)]
pub struct ModelReport {
    /// Its key.
    pub key: ModelKey,
    /// Its summary; `None` when it cannot be read, or is not known yet.
    pub summary: Option<Arc<Summary>>,
    /// Its directory, if it exists.
    pub directory: Option<PathBuf>,
    /// Its state.
    pub state: ModelState,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that it takes on the disk, including shared ones.
    pub allocated: u64,
    /// Bytes of those that it shares with other models.
    pub shared: u64,
    /// When a pod last began or ended to use it.
    pub last_used: SystemTime,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether it is one of the newest revisions that the administrator keeps.
    pub kept: bool,
    /// The leases of the volumes that use it.
    pub holders: Vec<LeaseRecord>,
    /// Its mount points without a lease, such as kubelet's `subPath` binds.
    pub mounts: Vec<PathBuf>,
}

impl ModelReport {
    /// Reads the list of its files, or as much of it as is readable. Blocks.
    pub fn files(&self) -> Vec<ManifestFile> {
        let mut files = Vec::new();
        if let ModelState::Arriving(progress) = &self.state {
            files.extend(progress.manifest().iter().flat_map(|all| all.files.iter().cloned()));
        } else if let Some(directory) = &self.directory
            && let Ok(manifest) = std::fs::File::open(ModelFile::Manifest.of(directory))
        {
            // A torn manifest yields the files before the error.
            let _ = Manifest::each_file(manifest, |file| files.push(file));
        }
        files
    }
}

/// The state of a model.
#[derive(Debug, Clone)]
pub enum ModelState {
    /// Complete: it is durable, or this process built or checked it.
    Complete,
    /// Left by an earlier process, and not known to be durable: it is checked before it is
    /// served.
    Unchecked,
    /// Being downloaded.
    Arriving(Arc<FillProgress>),
    /// In quarantine.
    Damaged,
}

impl Cache {
    /// Reports everything in the cache. Blocks: a fraction of a second for thousands
    /// of models.
    pub fn report(&self) -> Result<CacheReport> {
        let (taken, kept) = (self.store.usage()?, self.space.retention()?);
        let usage = self.space.usage(&taken, &kept)?;
        let (leases, uses) = (self.store.leases(), self.store.mounts()?);
        let mut references = vec![0_usize; taken.blobs.len()];
        for at in taken.models.iter().flat_map(|model| &model.blobs) {
            references[*at] += 1;
        }
        let bytes = |at: &usize| taken.blobs[*at].space.bytes;
        let mut models = Vec::new();
        for model in taken.models {
            let holders: Vec<_> =
                leases.iter().filter(|lease| lease.model == model.key).cloned().collect();
            let leased = |target: &PathBuf| holders.iter().any(|lease| lease.target == *target);
            let shows = |one: &&mount::Use| {
                EntryPath::parse(&one.root).and_then(|path| path.model()).as_ref()
                    == Some(&model.key)
            };
            let mounts = uses.iter().filter(shows);
            let shared = model.blobs.iter().filter(|at| references[**at] > 1);
            models.push(ModelReport {
                state: match self.store.models().needs_no_check(&model.key) {
                    true => ModelState::Complete,
                    false => ModelState::Unchecked,
                },
                bytes: model.summary.as_ref().map_or(0, |summary| summary.bytes),
                allocated: model.own.bytes + model.blobs.iter().map(bytes).sum::<u64>(),
                shared: shared.map(bytes).sum(),
                last_used: model.last_used,
                pinned: kept.is_pinned(&model.key),
                kept: kept.preferred(&model.key).is_some(),
                mounts: mounts.map(|one| one.target.clone()).filter(|at| !leased(at)).collect(),
                summary: model.summary.map(Arc::new),
                directory: Some(self.store.layout().model(&model.key)),
                holders,
                key: model.key,
            });
        }
        models.extend(self.damaged(&leases)?);
        models.extend(self.arriving(&kept));
        models.sort_by(|a, b| (b.last_used, &a.key).cmp(&(a.last_used, &b.key)));
        Ok(CacheReport { models, usage, set_aside: self.store.set_aside()? })
    }

    fn damaged(&self, leases: &[LeaseRecord]) -> Result<Vec<ModelReport>> {
        let mut found = Vec::new();
        for (key, path) in self.store.damaged()? {
            let manifest = ModelFile::Manifest.of(&path);
            let used = std::fs::metadata(&manifest).and_then(|metadata| metadata.modified());
            let manifest = std::fs::File::open(manifest);
            let summary = manifest.ok().and_then(|file| Summary::of_stored(file).ok());
            let root = mount::identity(&ModelFile::Tree.of(&path)).ok();
            let holders = leases.iter().filter(|lease| Some(lease.root) == root);
            found.push(ModelReport {
                state: ModelState::Damaged,
                bytes: summary.as_ref().map_or(0, |summary| summary.bytes),
                allocated: 0,
                shared: 0,
                last_used: used.unwrap_or(SystemTime::UNIX_EPOCH),
                pinned: false,
                kept: false,
                holders: holders.cloned().collect(),
                mounts: Vec::new(),
                summary: summary.map(Arc::new),
                directory: Some(path),
                key,
            });
        }
        Ok(found)
    }

    fn arriving(&self, kept: &RetentionReasons) -> Vec<ModelReport> {
        let running = self.fill.running().into_iter();
        let arriving = running.map(|(key, progress)| ModelReport {
            summary: progress.manifest().map(|manifest| Arc::new(manifest.summary())),
            directory: None,
            bytes: progress.snapshot().total,
            state: ModelState::Arriving(progress),
            allocated: 0,
            shared: 0,
            last_used: SystemTime::now(),
            pinned: kept.is_pinned(&key),
            kept: false,
            holders: Vec::new(),
            mounts: Vec::new(),
            key,
        });
        arriving.collect()
    }
}
