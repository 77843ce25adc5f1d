//! Tests of the whole cache without Object Storage: models are added as a download
//! would leave them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::space::reservations::{SpaceRequest, Taken};
use super::store::disk_space::Space;
use super::store::layout::names::Directory;
use super::*;
use crate::download::{Check, Verified};
use crate::error::ErrorKind;
use crate::model::{
    BlobId, BucketName, Filters, ListedObject, ModelSource, NamespaceName, Prefix, Tree,
};
use crate::mount;

struct Fixture {
    _dir: tempfile::TempDir,
    cache: Cache,
    metrics: Arc<Metrics>,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let options = CacheOptions {
        dir: dir.path().join("cache"),
        require_mount: false,
        limits: CacheLimits { min_free: 0, min_free_inodes: 0, max_size: None },
        idle_ttl: None,
        max_models: 4,
        abandon_after: Duration::from_secs(60),
        keep_revisions: Vec::new(),
    };
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let metrics = Arc::<Metrics>::default();
    let cache = Cache::open(options, Arc::clone(&metrics), &tasks, &shutdown).unwrap();
    Fixture { _dir: dir, cache, metrics }
}

impl Fixture {
    /// Adds a model with these (object, `ETag` and content). Equal objects and `ETag`s
    /// are shared.
    fn add_model(&self, prefix: &str, files: &[(&str, &str)]) -> CachedModel {
        let source = ModelSource {
            location: "l".into(),
            namespace: NamespaceName::parse("n").unwrap(),
            bucket: BucketName::parse("b").unwrap(),
            prefix: Prefix::parse(prefix).unwrap(),
        };
        let objects = files.iter().map(|(name, content)| ListedObject {
            name: (*name).to_owned(),
            size: content.len() as u64,
            etag: (*content).to_owned(),
            md5: None,
            archived: false,
        });
        let tree = Tree::arrange(objects, &source.prefix, &Filters::default()).unwrap().unwrap();
        let manifest = Arc::new(Manifest::new(source, "", tree));
        // Like a flight.
        let wanted = manifest.files.iter().map(|file| file.blob.clone());
        let _held = self.cache.store.holds().blobs(wanted);
        let (layout, blobs) = (self.cache.store.layout(), self.cache.store.blobs());
        for file in &manifest.files {
            if blobs.find(&file.blob).unwrap().is_none() {
                fs::write(layout.part(&file.blob), &file.etag).unwrap();
                let crc32c = crc32c::crc32c(file.etag.as_bytes());
                let verified = Verified { crc32c, check: Check::Crc32c };
                blobs.commit(&file.blob, &manifest.object_name(file), file.size, verified).unwrap();
            }
        }
        self.cache.store.models().commit(&manifest).unwrap()
    }

    fn lease(&self, model: &CachedModel, target: &str) -> Lease {
        let holder = LeaseHolder {
            volume_id: format!("volume of {target}"),
            target: target.into(),
            directory: mount::DirId { dev: 1, ino: 1 },
            request: RequestDigest::of_fields("t", [].into_iter()),
            pod: None,
        };
        self.cache.lease(model.clone(), holder).unwrap()
    }

    async fn collect(&self, dry_run: bool) -> Collected {
        self.cache.collect(CollectOptions { dry_run, request: EvictionRequest::All }).await.unwrap()
    }

    async fn verify(&self) -> Verification {
        self.cache.verify(None, None, Arc::default()).await.unwrap()
    }

    fn blob(&self, model: &CachedModel, path: &str) -> PathBuf {
        let manifest = model.manifest().unwrap().unwrap();
        let file = manifest.files.iter().find(|file| file.path == path).unwrap();
        self.cache.store.layout().blob(&file.blob)
    }

    fn count(&self, directory: Directory) -> usize {
        files::names(&self.cache.store.layout().directory(directory)).unwrap().len()
    }

    /// Names of blobs and records.
    fn in_blobs(&self) -> usize {
        let blobs = self.cache.store.layout().directory(Directory::Blobs);
        let fans = files::names(&blobs).unwrap();
        fans.iter().map(|fan| files::names(&blobs.join(fan)).unwrap().len()).sum()
    }
}

/// A kind of damage, and the function that causes it.
type Damaging = (&'static str, fn(&Path));

/// Changes a read-only file.
fn overwrite(path: &Path, content: &[u8]) {
    files::set_mode(path, 0o644).unwrap();
    fs::write(path, content).unwrap();
    files::set_mode(path, 0o444).unwrap();
}

fn keys(collected: &Collected) -> Vec<ModelKey> {
    collected.models.iter().map(|(key, ..)| key.clone()).collect()
}

#[tokio::test]
async fn unused_models_are_collected_and_the_rest_stays() {
    let f = fixture();
    let (free, held) = (f.add_model("a/", &[("a/w", "1")]), f.add_model("b/", &[("b/w", "2")]));
    let pinned = f.add_model("c/", &[("c/w", "3")]);
    let lease = f.lease(&held, "/t/1");
    f.cache.pin(&pinned.key, true).unwrap();
    let free_key = free.key.clone();
    assert!(f.collect(false).await.models.is_empty(), "each of them is held");
    drop((free, held, lease, pinned));

    let before = f.cache.report().unwrap();
    assert_eq!(keys(&f.collect(true).await), std::slice::from_ref(&free_key));
    assert_eq!(f.count(Directory::Models), 3, "a dry run does nothing");
    let collected = f.collect(false).await;
    assert_eq!(keys(&collected), [free_key]);
    assert_eq!((f.count(Directory::Models), f.count(Directory::Trash)), (2, 0));
    let freed = before.usage.total - f.cache.report().unwrap().usage.total;
    assert_eq!(collected.bytes, freed, "the reported bytes are the freed bytes");
}

#[tokio::test]
async fn a_shared_blob_is_evicted_with_its_last_model() {
    let f = fixture();
    let shared = ("m/shared", "both");
    let old = f.add_model("m/", &[shared, ("m/w", "old")]);
    let new = f.add_model("m/", &[shared, ("m/w", "new")]);
    let blob = f.blob(&new, "shared");
    assert_eq!(fs::metadata(&blob).unwrap().nlink(), 3);
    let report = f.cache.report().unwrap();
    assert!(report.models.iter().all(|model| model.shared > 0 && model.shared < model.allocated));
    let lease = f.lease(&new, "/t/1");
    drop((old, new));
    assert_eq!(f.collect(false).await.models.len(), 1);
    assert!(blob.exists());
    assert_eq!(f.in_blobs(), 4, "two blobs and their records");
    f.cache.release(&lease.target).unwrap();
    drop(lease);
    assert_eq!(f.collect(false).await.models.len(), 1);
    assert_eq!((f.in_blobs(), f.count(Directory::Models), f.count(Directory::Trash)), (0, 0, 0));
}

#[tokio::test]
async fn damage_of_every_kind_is_found_quarantined_and_marked_in_the_leases() {
    let damages: [Damaging; 4] = [
        ("a flipped bit", |blob| overwrite(blob, b"Weights")),
        ("a lost end", |blob| overwrite(blob, b"weight")),
        ("an emptied file", |blob| overwrite(blob, b"")),
        ("a file too long", |blob| overwrite(blob, b"weights!")),
    ];
    for (kind, damage) in damages {
        let f = fixture();
        let model = f.add_model("m/", &[("m/w", "weights"), ("m/c", "config")]);
        let other = f.add_model("", &[("m/w", "weights")]);
        let untouched = f.add_model("u/", &[("u/w", "weights")]);
        let lease = f.lease(&model, "/t/1");
        assert_eq!(f.verify().await.damaged.len(), 0);
        damage(&f.blob(&model, "w"));
        let found = f.verify().await.damaged;
        assert_eq!(found.iter().map(|one| one.models.len()).sum::<usize>(), 2, "{kind}: {found:?}");
        for gone in [&model, &other] {
            assert!(f.cache.find(&gone.key).await.unwrap().is_none(), "{kind} was served");
        }
        assert!(f.cache.find(&untouched.key).await.unwrap().is_some(), "{kind}");
        assert!(
            f.cache
                .lease_of(&lease.target)
                .unwrap()
                .damaged
                .is_some_and(|what| what.ends_with('w'))
        );
        let kept = f.cache.store.layout().quarantine();
        assert!(f.count(Directory::Quarantine) >= 2, "{kind}: {:?}", files::names(&kept));
        assert!(
            f.cache
                .report()
                .unwrap()
                .models
                .iter()
                .any(|one| { matches!(one.state, ModelState::Damaged) && !one.holders.is_empty() })
        );
        assert_eq!(f.verify().await.damaged.len(), 0, "it is found once");

        let again = f.add_model("m/", &[("m/w", "weights"), ("m/c", "config")]);
        assert_eq!(fs::read(again.tree.join("w")).unwrap(), b"weights", "{kind}");
        drop((model, other, untouched, again));
        f.collect(false).await;
        let left = files::names(&kept).unwrap();
        assert_eq!(left.len(), 1, "a pod still uses it: {left:?}");
        f.cache.release(&lease.target).unwrap();
        f.collect(false).await;
        assert_eq!(f.count(Directory::Quarantine), 0);
    }
}

#[tokio::test]
async fn a_tree_that_does_not_match_its_manifest_is_found() {
    let f = fixture();
    let model = f.add_model("m/", &[("m/w", "weights"), ("m/c", "config")]);
    files::set_mode(&model.tree, 0o755).unwrap();
    fs::remove_file(model.tree.join("w")).unwrap();
    let found = f.verify().await;
    assert_eq!((found.damaged.len(), found.models), (1, 1));
    assert!(found.damaged[0].why.contains("missing in the tree"), "{found:?}");
    let torn = f.add_model("t/", &[("t/w", "weights")]);
    fs::write(f.cache.store.layout().manifest(&torn.key), "{").unwrap();
    assert_eq!(f.verify().await.damaged[0].what, "manifest.json");
    assert!(f.cache.find(&torn.key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_purge_removes_only_our_files_and_nothing_while_the_cache_is_in_use() {
    let f = fixture();
    let model = f.add_model("m/", &[("m/w", "weights")]);
    let lease = f.lease(&model, "/t/1");
    fs::write(f.cache.layout().root().join("notes.txt"), "mine").unwrap();
    let refused = f.cache.purge(false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.message().contains("volume of /t/1"), "{refused}");
    f.cache.release(&lease.target).unwrap();
    assert!(f.cache.purge(false).is_err(), "the model is held");
    drop((model, lease));
    assert_eq!(f.cache.purge(true).unwrap().models, 1);
    assert_eq!(f.count(Directory::Models), 0);
    drop(f.add_model("m/", &[("m/w", "weights")]));
    let strangers = ["blobs/README", "leases/notes", "models/mine", "staging/weights.part"];
    for name in strangers {
        fs::write(f.cache.layout().root().join(name), "mine").unwrap();
    }
    f.cache.purge(false).unwrap();
    let mut left = files::names(f.cache.layout().root()).unwrap();
    left.sort();
    assert_eq!(left, ["blobs", "leases", "models", "notes.txt", "staging"]);
    for name in strangers {
        let (directory, name) = name.split_once('/').unwrap();
        assert_eq!(files::names(&f.cache.layout().root().join(directory)).unwrap(), [name]);
    }
}

#[tokio::test]
async fn old_orphaned_files_are_swept() {
    let f = fixture();
    let model = f.add_model("m/", &[("m/w", "weights")]);
    let request = RequestDigest::of_fields("r", [].into_iter());
    f.cache.record_latest(&request, &model).unwrap();
    let layout = f.cache.store.layout().clone();
    let orphaned = [
        layout.directory(Directory::Content).join("c".repeat(64)),
        layout.directory(Directory::Requests).join("d".repeat(64)),
        layout
            .blob_directory(&model.manifest().unwrap().unwrap().files[0].blob)
            .join(format!("{}.json", "e".repeat(64))),
    ];
    let long_ago = SystemTime::now() - Duration::from_secs(24 * 3600);
    let kept = [
        layout.request(&request),
        layout.blob_record_unsynced(&model.manifest().unwrap().unwrap().files[0].blob),
    ];
    for path in &orphaned {
        fs::write(path, "f".repeat(64)).unwrap();
    }
    f.cache.space.sweep().unwrap();
    assert!(orphaned.iter().all(|path| path.exists()), "their other half may still be written");
    for path in orphaned.iter().chain(&kept) {
        fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
    }
    f.cache.space.sweep().unwrap();
    assert!(!orphaned.iter().any(|path| path.exists()));
    assert!(kept.iter().all(|path| path.exists()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leased_model_stays_while_others_are_evicted() {
    let f = Arc::new(fixture());
    let mut pods = tokio::task::JoinSet::new();
    for pod in 0..4 {
        let f = Arc::clone(&f);
        pods.spawn(async move {
            let prefix = format!("{pod}/");
            let object = format!("{prefix}w");
            let mut held = 0;
            for round in 0..200 {
                let model = f.add_model(&prefix, &[(&object, "weights")]);
                let target = format!("/t/{pod}-{round}");
                let lease = f.lease(&model, &target);
                drop(model);
                tokio::task::yield_now().await;
                assert_eq!(fs::read(lease.model.tree.join("w")).unwrap(), b"weights");
                let tree = lease.model.tree.clone();
                drop(lease);
                assert_eq!(fs::read(tree.join("w")).unwrap(), b"weights", "the lease holds it");
                f.cache.release(Path::new(&target)).unwrap();
                held += 1;
            }
            held
        });
    }
    let evicting = {
        let f = Arc::clone(&f);
        tokio::spawn(async move {
            let mut evicted = 0;
            for _ in 0..300 {
                evicted += f.collect(false).await.models.len();
                tokio::task::yield_now().await;
            }
            evicted
        })
    };
    assert_eq!(pods.join_all().await.iter().sum::<i32>(), 800);
    assert!(evicting.await.unwrap() > 0, "nothing was evicted, so nothing was tested");
    f.collect(false).await;
    assert_eq!((f.count(Directory::Models), f.count(Directory::Leases)), (0, 0));
}

#[tokio::test]
async fn a_publish_reports_damage_but_not_what_a_power_loss_tore() {
    for durable in [true, false] {
        let f = fixture();
        let model = f.add_model("m/", &[("m/w", "weights"), ("m/c", "config")]);
        let lease = f.lease(&model, "/t/1");
        let store = &f.cache.store;
        let ids: Vec<_> =
            model.manifest().unwrap().unwrap().files.iter().map(|file| file.blob.clone()).collect();
        if durable {
            store.blobs().mark_durable(&store.blobs().before_sync(&ids)).unwrap();
            let tree = store.models().open_tree(&model.key).unwrap();
            store.models().mark_durable(&model.key, &tree).unwrap();
        } else {
            store.blobs().distrust(&ids);
        }
        let weights = f.blob(&model, "w");
        overwrite(&weights, b"weig");
        store.models().distrust(&model.key);
        assert!(f.cache.find(&model.key).await.unwrap().is_none());
        assert_eq!(f.metrics.cache_damaged.get(), u64::from(durable));
        let marked = f.cache.lease_of(&lease.target).unwrap().damaged;
        assert_eq!(marked.is_some(), durable, "{marked:?}");
        assert!(!weights.exists());
        let again = f.add_model("m/", &[("m/w", "weights"), ("m/c", "config")]);
        assert_eq!(fs::read(again.tree.join("w")).unwrap(), b"weights");
    }
}

#[path = "room_tests.rs"]
mod room_tests;
