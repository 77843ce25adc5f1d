//! Reports the content of the cache, for commands and metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::CacheInner;
use super::fill::progress::FillProgress;
use super::space::evict;
use super::space::evict::RetentionReasons;
use super::space::policy;
use super::space::policy::{RetentionReason, Space};
use super::space::reservations::FileSystem;
use super::store::disk_usage::DiskUsage;
use super::store::files;
use super::store::layout::names::{EntryPath, ModelFile, QuarantineFile};
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
    /// Complete and durable.
    Complete,
    /// Complete, but not known to be durable. One of an earlier process is checked
    /// before it is served.
    Unsynced,
    /// Being downloaded.
    Arriving(Arc<FillProgress>),
    /// In quarantine.
    Damaged,
}

/// The space of the cache and its limits, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Everything in the cache directory.
    pub total: u64,
    /// Inodes of everything in the cache directory.
    pub inodes: u64,
    /// Evictable now.
    pub evictable: u64,
    /// Downloads that run or were interrupted.
    pub staging: u64,
    /// Evicted, but not deleted yet.
    pub trash: u64,
    /// Damaged, and kept for inspection.
    pub quarantine: u64,
    /// Caches of older layouts.
    pub set_aside: u64,
    /// The most that the cache may take.
    pub limit: u64,
    /// Free on the file system.
    pub free: u64,
    /// To be kept free on the file system.
    pub min_free: u64,
}

impl CacheInner {
    /// Reports everything in the cache. Blocks: a fraction of a second for thousands
    /// of models.
    pub(super) fn report(&self) -> Result<CacheReport> {
        let (taken, kept) = (DiskUsage::read(&self.layout)?, RetentionReasons::now(self)?);
        let usage = self.usage(&taken, &kept)?;
        let (leases, uses) = (self.leases.all(), mount::uses_of(self.layout.root())?);
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
                state: match self.models.is_durable(&model.key) {
                    true => ModelState::Complete,
                    false => ModelState::Unsynced,
                },
                bytes: model.summary.as_ref().map_or(0, |summary| summary.bytes),
                allocated: model.own.bytes + model.blobs.iter().map(bytes).sum::<u64>(),
                shared: shared.map(bytes).sum(),
                last_used: model.last_used,
                pinned: kept.is_pinned(&model.key),
                mounts: mounts.map(|one| one.target.clone()).filter(|at| !leased(at)).collect(),
                summary: model.summary.map(Arc::new),
                directory: Some(self.layout.model(&model.key)),
                holders,
                key: model.key,
            });
        }
        models.extend(self.damaged(&leases)?);
        models.extend(self.arriving(&kept));
        models.sort_by(|a, b| (b.last_used, &a.key).cmp(&(a.last_used, &b.key)));
        Ok(CacheReport { models, usage, set_aside: self.set_aside()? })
    }

    fn damaged(&self, leases: &[LeaseRecord]) -> Result<Vec<ModelReport>> {
        let mut found = Vec::new();
        for name in files::names(&self.layout.quarantine())? {
            let Some(QuarantineFile::Model(key)) = QuarantineFile::parse(&name) else { continue };
            let path = self.layout.quarantine().join(&name);
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
        let running = self.model_flights.running().into_iter();
        let arriving = running.map(|(key, progress)| ModelReport {
            summary: progress.manifest().map(|manifest| Arc::new(manifest.summary())),
            directory: None,
            bytes: progress.snapshot().total,
            state: ModelState::Arriving(progress),
            allocated: 0,
            shared: 0,
            last_used: SystemTime::now(),
            pinned: kept.is_pinned(&key),
            holders: Vec::new(),
            mounts: Vec::new(),
            key,
        });
        arriving.collect()
    }

    pub(super) fn usage(&self, taken: &DiskUsage, kept: &RetentionReasons) -> Result<Usage> {
        let fs = FileSystem::of(self.layout.root())?;
        let input = evict::eviction_input(taken, kept, &self.holds.held_blobs());
        let Space { bytes: total, inodes } = taken.total();
        let limits = self.reservations.limits();
        let most = fs.total_bytes.saturating_sub(limits.min_free);
        Ok(Usage {
            total,
            inodes,
            evictable: policy::evictable(&input).bytes,
            staging: taken.staging.bytes,
            trash: taken.trash.bytes,
            quarantine: taken.quarantine.bytes,
            set_aside: taken.aside.bytes,
            limit: limits.max_size.map_or(most, |max| max.min(most)),
            free: fs.free_bytes,
            min_free: limits.min_free,
        })
    }

    /// Updates the gauges of the metrics. Blocks.
    pub(super) fn measure(&self) -> Result<()> {
        let (taken, kept) = (DiskUsage::read(&self.layout)?, RetentionReasons::now(self)?);
        let usage = self.usage(&taken, &kept)?;
        let models = |wanted: fn(Option<RetentionReason>) -> bool| {
            taken.models.iter().filter(|model| wanted(kept.why(&model.key))).count()
        };
        let m = &self.metrics;
        m.cache_size("evictable", usage.evictable);
        m.cache_size("staging", usage.staging);
        m.cache_size("trash", usage.trash);
        m.cache_size("quarantine", usage.quarantine);
        m.cache_size("set_aside", usage.set_aside);
        let rest = [usage.evictable, usage.staging, usage.trash, usage.quarantine, usage.set_aside];
        m.cache_size("in_use", rest.into_iter().fold(usage.total, u64::saturating_sub));
        m.cache_limit.set(i64::try_from(usage.limit).unwrap_or(i64::MAX));
        m.cache_models(
            "in_use",
            models(|keep| matches!(keep, Some(keep) if keep != RetentionReason::Pinned)),
        );
        m.cache_models("pinned", models(|keep| keep == Some(RetentionReason::Pinned)));
        m.cache_models("evictable", models(|keep| keep.is_none()));
        m.cache_models("arriving", self.model_flights.running().len());
        m.cache_models("damaged", self.damaged(&[])?.len());
        Ok(())
    }
}
