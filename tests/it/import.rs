//! A directory that another program filled becomes part of the cache: correct
//! files are adopted, the rest is downloaded, and no file in use elsewhere is
//! touched.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support::disk::{Disk, run};
use crate::support::loopfs::{Kind, LoopFs};
use crate::support::models::{
    BUCKET, MIB, PREFIX, content, content_of, mode_of, put, put_large, store_with_phi3,
};
use crate::support::namespace::mount_tmpfs;
use crate::support::run::{end_to_end, eventually};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule, synthetic_bytes};
use nix::mount::{MsFlags, mount};
use oci_model_csi::ErrorKind;
use oci_model_csi::cache::{
    Cache, CacheLimits, CacheOptions, CachedModel, ImportOptions, ImportProgress, Imported,
};
use oci_model_csi::download::{Concurrency, Engine, EngineOptions, Verify};
use oci_model_csi::metrics::Metrics;
use oci_model_csi::model::{Manifest, ModelRequest, ModelUri};
use oci_model_csi::oci::{Environment, Settings, StorageConnector};
use oci_model_csi::resolve::{ClientPool, ResolveLimits, Resolver};
use oci_model_csi::source::{AuthMethod, ObjectSource, RetryPolicy, SourceConnector as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const WEIGHTS: &str = "model.safetensors";
const SIZE: u64 = 3 * MIB + 7;

const BOUND: Duration = Duration::from_secs(30);

/// A cache without a driver.
struct Node {
    cache: Cache,
    engine: Engine,
    resolver: Resolver,
    client: Arc<dyn ObjectSource>,
    store: LocalStore,
}

impl Node {
    async fn new(scratch: &Path, store: LocalStore) -> Self {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let metrics = Arc::new(Metrics::default());
        let settings = Settings {
            endpoint: Some(store.endpoint()),
            config_file: Some(store.write_cli_config(scratch).unwrap()),
            environment: Environment::empty(),
            ..Settings::new(AuthMethod::ApiKey)
        };
        let connector = Arc::new(StorageConnector::connect(settings).await.unwrap());
        let client = connector.own();
        let options = EngineOptions {
            concurrency: Concurrency::Fixed(4),
            range_size: MIB,
            verify: Verify::Always,
            bandwidth: None,
            write_back: false,
            retry: RetryPolicy::default(),
        };
        let engine = Engine::new(options, Arc::clone(&metrics)).unwrap();
        let limits = ResolveLimits { max_objects: 100, max_bytes: None };
        let resolver =
            Resolver::new(ClientPool::new(connector, Vec::new()), limits, &tasks, &shutdown);
        let options = CacheOptions {
            dir: scratch.join("cache"),
            require_mount: false,
            limits: CacheLimits { min_free: 0, min_free_inodes: 0, max_size: None },
            idle_ttl: None,
            max_models: 4,
            abandon_after: Duration::from_secs(60),
            keep_revisions: Vec::new(),
        };
        let cache = Cache::open(options, metrics, &tasks, &shutdown).unwrap();
        cache.recover(&scratch.join("pods")).unwrap();
        Self { cache, engine, resolver, client, store }
    }

    async fn manifest(&self) -> Arc<Manifest> {
        let ModelUri { namespace, bucket, prefix } =
            ModelUri::parse(&format!("oci://{BUCKET}/{PREFIX}")).unwrap();
        let request = ModelRequest::of(namespace, bucket, prefix);
        let route = self.resolver.route(&request, "").await.unwrap();
        self.resolver.resolve(&request, &route).await.unwrap()
    }

    async fn try_import(
        &self,
        dir: &Path,
        take: bool,
    ) -> Result<(CachedModel, Imported), oci_model_csi::Error> {
        let manifest = self.manifest().await;
        let options = ImportOptions { dir: dir.to_owned(), move_files: take };
        let progress = ImportProgress::default();
        let client = &self.client;
        self.cache.import(&self.engine, client, &manifest, options, &progress).await
    }

    /// Imports, and checks that the model is what the store has.
    async fn import(&self, dir: &Path, take: bool) -> Imported {
        let (model, imported) = self.try_import(dir, take).await.unwrap();
        let expected = content(
            &[
                ("config.json", b"{\"model_type\": \"phi3\"}"),
                ("tokenizer/vocab.txt", b"one\ntwo\n"),
                (WEIGHTS, &synthetic_bytes(1, 0..SIZE)),
            ],
            &["tokenizer"],
        );
        assert!(content_of(&model.tree) == expected, "the model is not what was uploaded");
        assert_eq!(mode_of(&model.tree.join(WEIGHTS)), 0o444);
        assert_eq!(fs::metadata(model.tree.join(WEIGHTS)).unwrap().uid(), 0);
        imported
    }

    async fn refusal(&self, dir: &Path) -> String {
        let before = content_of(dir);
        let error = self.try_import(dir, true).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition, "{error}");
        assert!(content_of(dir) == before, "something was changed");
        let blobs = content_of(&self.cache.layout().root().join("blobs"));
        assert!(blobs.values().all(Option::is_none), "something was taken: {:?}", blobs.keys());
        error.message().to_owned()
    }

    fn served(&self) -> u64 {
        self.store.stats().body_bytes - self.listed()
    }

    /// Bytes of listings, which are bodies too.
    fn listed(&self) -> u64 {
        let stats = self.store.stats();
        stats.body_bytes - stats.object_bytes.values().sum::<u64>()
    }
}

/// The files that an init container leaves: the model's, below `dir`.
fn fill(dir: &Path) {
    fs::create_dir_all(dir.join("tokenizer")).unwrap();
    fs::write(dir.join("config.json"), "{\"model_type\": \"phi3\"}").unwrap();
    fs::write(dir.join("tokenizer/vocab.txt"), "one\ntwo\n").unwrap();
    fs::write(dir.join(WEIGHTS), synthetic_bytes(1, 0..SIZE)).unwrap();
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn a_directory_is_adopted_flat_or_nested_with_or_without_its_marker() {
    end_to_end(async |scratch| {
        for (number, (below, marker)) in
            [("", false), ("", true), (PREFIX, false), (PREFIX, true)].into_iter().enumerate()
        {
            let scratch = scratch.join(number.to_string());
            let dir = scratch.join("model");
            fill(&dir.join(below));
            if marker {
                fs::write(dir.join(".complete"), "").unwrap();
            }
            let before = content_of(&dir);
            fs::create_dir_all(&scratch).unwrap();
            let node = Node::new(&scratch, store_with_phi3()).await;
            let imported = node.import(&dir, false).await;
            assert_eq!((imported.adopted_files, imported.downloaded_files), (3, 0));
            assert_eq!(imported.adopted_bytes, SIZE + 22 + 8);
            assert_eq!(node.served(), 0, "nothing is downloaded");
            assert!(content_of(&dir) == before, "the directory is as it was");
            assert_eq!(imported.left_files, 3 + usize::from(marker));

            let again = node.import(&dir, false).await;
            assert_eq!((again.cached_files, again.adopted_files), (3, 0));
        }
    });
}

#[test]
fn files_that_are_moved_are_neither_downloaded_nor_copied() {
    end_to_end(async |scratch| {
        for (number, below) in ["", PREFIX].into_iter().enumerate() {
            let scratch = scratch.join(number.to_string());
            let dir = scratch.join("model");
            fill(&dir.join(below));
            fs::write(dir.join(".complete"), "").unwrap();
            let weights = inode(&dir.join(below).join(WEIGHTS));
            let node = Node::new(&scratch, store_with_phi3()).await;
            let imported = node.import(&dir, true).await;
            assert_eq!(imported.adopted_files, 3);
            assert_eq!((imported.copied_bytes, imported.downloaded_bytes), (0, 0));
            assert_eq!(node.served(), 0);
            assert_eq!(imported.left, [".complete"]);
            let key = node.manifest().await.key();
            let model = node.cache.find(&key).await.unwrap().unwrap();
            assert_eq!(inode(&model.tree.join(WEIGHTS)), weights, "the inode is the same");
            assert!(
                node.cache.layout().root().join("staging").read_dir().unwrap().next().is_none()
            );
        }
    });
}

#[test]
fn wrong_truncated_and_missing_files_are_downloaded_and_the_originals_left_as_they_were() {
    end_to_end(async |scratch| {
        for (number, take) in [false, true].into_iter().enumerate() {
            let scratch = scratch.join(number.to_string());
            let dir = scratch.join("model");
            fill(&dir);
            let store = store_with_phi3();
            put(&store, "config.json", b"{\"model_type\": \"phi3\"}");
            fs::write(dir.join("config.json"), "{\"model_type\": \"phi4\"}").unwrap();
            fs::remove_file(dir.join("tokenizer/vocab.txt")).unwrap();
            let node = Node::new(&scratch, store).await;
            let imported = node.import(&dir, take).await;
            assert_eq!((imported.adopted_files, imported.downloaded_files), (1, 2));
            assert_eq!((imported.downloaded_bytes, node.served()), (22 + 8, 22 + 8));
            assert_eq!(imported.differing, ["config.json"]);
            let differs =
                "its bytes are not the object's, or no checksum of the object proves them";
            let absent = ("tokenizer/vocab.txt", "it is not in the directory");
            assert_eq!(reasons(&imported), [("config.json", differs), absent]);
            assert_eq!(fs::read(dir.join("config.json")).unwrap(), b"{\"model_type\": \"phi4\"}");
            assert_ne!(mode_of(&dir.join("config.json")), 0o444);
        }
        let dir = scratch.join("cut");
        fill(&dir);
        File::options().write(true).open(dir.join(WEIGHTS)).unwrap().set_len(SIZE - 1).unwrap();
        let scratch = scratch.join("3");
        fs::create_dir(&scratch).unwrap();
        let node = Node::new(&scratch, store_with_phi3()).await;
        let imported = node.import(&dir, false).await;
        assert_eq!((imported.downloaded_bytes, node.served()), (SIZE, SIZE));
        assert_eq!(imported.differing, [WEIGHTS]);
        let cut = format!("it has {} bytes, and the object {SIZE}", SIZE - 1);
        assert_eq!(reasons(&imported), [(WEIGHTS, cut.as_str())]);
    });
}

#[test]
fn an_object_without_a_checksum_vouches_for_no_file() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let options = PutOptions { no_checksums: true, ..PutOptions::default() };
        put_large(&store, WEIGHTS, SIZE, 1, options);
        let dir = scratch.join("model");
        fill(&dir);
        let node = Node::new(scratch, store).await;
        let imported = node.import(&dir, true).await;
        assert_eq!((imported.downloaded_bytes, node.served()), (SIZE, SIZE));
        assert!(dir.join(WEIGHTS).exists());
    });
}

#[test]
fn moving_between_subvolumes_of_one_btrfs_is_refused_before_anything_is_moved() {
    end_to_end(async |scratch| {
        let pool = Disk::formatted("btrfs", scratch, 256 << 20);
        let (own, dir) = (pool.path.join("node"), pool.path.join("sub"));
        fs::create_dir(&own).unwrap();
        run(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&dir));
        let node = Node::new(&own, store_with_phi3()).await;
        fill(&dir);
        let said = node.refusal(&dir).await;
        assert!(said.contains("in two subvolumes of one file system"), "{said}");
        assert!(dir.join(WEIGHTS).exists(), "nothing was moved");
        assert_eq!(node.import(&dir, false).await.adopted_files, 3);
    });
}

#[test]
fn moving_is_refused_between_file_systems_and_where_others_can_reach_the_files() {
    end_to_end(async |scratch| {
        let node = Node::new(scratch, store_with_phi3()).await;
        let elsewhere = scratch.join("tmpfs");
        fs::create_dir(&elsewhere).unwrap();
        mount_tmpfs(&elsewhere, MsFlags::empty(), "16m");
        fill(&elsewhere);
        let said = node.refusal(&elsewhere).await;
        assert!(said.contains("on another file system; without --move it is copied"), "{said}");

        let dir = scratch.join("model");
        fill(&dir);
        let bind = |from: &Path, to: &Path| {
            mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        };
        let (pod, file) = (scratch.join("pod"), scratch.join("file"));
        fs::create_dir(&pod).unwrap();
        fs::write(&file, "").unwrap();
        for (shown, place) in
            [(dir.clone(), &pod), (dir.join("tokenizer"), &pod), (dir.join(WEIGHTS), &file)]
        {
            bind(&shown, place);
            let said = node.refusal(&dir).await;
            assert!(
                said.contains(&format!("also mounted at {}, where", place.display())),
                "{said}"
            );
            nix::mount::umount(place.as_path()).unwrap();
        }
        // Reached through a mount of its own, nothing can be renamed out of it.
        bind(&dir, &pod);
        let said = node.refusal(&pod).await;
        assert!(said.contains("on one file system, but reached through two mounts"), "{said}");
        nix::mount::umount(pod.as_path()).unwrap();

        let writer = OpenOptions::new().append(true).open(dir.join(WEIGHTS)).unwrap();
        let said = node.refusal(&dir).await;
        assert!(said.contains(WEIGHTS) && said.contains("open for writing"), "{said}");
        drop(writer);
        assert_eq!(node.import(&dir, true).await.adopted_files, 3);
    });
}

#[test]
fn a_file_that_gets_a_writer_during_the_comparison_is_left_alone() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let dir = scratch.join("model");
        fill(&dir);
        let slow = Rule::new(Action::Latency { ms: 2000 }).operation(Operation::Head);
        store.faults().add(slow);
        let node = Node::new(scratch, store).await;
        let weights = dir.join(WEIGHTS);
        let writing = async {
            let lease = format!(":{} ", inode(&weights));
            eventually("the import has a lease on the weights", BOUND, async || {
                let locks = fs::read_to_string("/proc/locks").unwrap();
                let leased = |line: &str| line.contains("LEASE") && line.contains(&lease);
                locks.lines().any(leased).then_some(())
            })
            .await;
            let weights = weights.clone();
            // Waits until the import closes it.
            let open = move || OpenOptions::new().append(true).open(weights).unwrap();
            tokio::task::spawn_blocking(open).await.unwrap()
        };
        let (refused, mut writer) = tokio::join!(node.try_import(&dir, true), writing);
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition);
        assert!(error.message().contains("open for writing"), "{error}");
        writer.write_all(b"more").unwrap();
        assert_eq!(
            fs::metadata(&weights).unwrap().len(),
            SIZE + 4,
            "it is the writer's file still"
        );
        assert_ne!(mode_of(&weights), 0o444);
        drop(writer);
        node.store.faults().clear();
        let imported = node.import(&dir, true).await;
        assert_eq!((imported.differing, imported.downloaded_bytes), (vec![WEIGHTS.into()], SIZE));
    });
}

#[test]
fn a_file_that_could_not_be_imported_is_left_as_it_was() {
    end_to_end(async |scratch| {
        let disk = Disk::ext4(scratch, 64 * MIB, &["-N", "400"]);
        let dir = disk.path.join("model");
        fill(&dir);
        let node = Node::new(&disk.path, store_with_phi3()).await;
        let files = [WEIGHTS, "config.json", "tokenizer/vocab.txt"];
        let modes = || files.map(|name| mode_of(&dir.join(name)));
        let before = modes();
        // No inode is left for the cache's own records of the file.
        let others = disk.path.join("others");
        fs::create_dir(&others).unwrap();
        assert!((0..400).any(|n| File::create(others.join(n.to_string())).is_err()));
        let error = node.try_import(&dir, true).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        // The imports of other files that have begun are finished.
        let as_before = async || (modes() == before).then_some(());
        eventually("all files are as they were", BOUND, as_before).await;
        fs::remove_dir_all(others).unwrap();
        let imported = node.import(&dir, true).await;
        // A file that was in progress may have become the cache's meanwhile.
        assert_eq!(imported.adopted_files + imported.cached_files, 3, "{imported:?}");
        assert_eq!(imported.downloaded_files, 0, "{imported:?}");
    });
}

#[test]
fn where_the_file_system_can_clone_nothing_is_copied_and_the_directory_stays() {
    end_to_end(async |scratch| {
        let Some(disk) = LoopFs::mounted(Kind::Xfs, scratch) else { return };
        let dir = disk.directory().join("model");
        fill(&dir);
        let node = Node::new(disk.directory(), store_with_phi3()).await;
        let imported = node.import(&dir, false).await;
        let got = (imported.adopted_files, imported.copied_bytes, imported.downloaded_bytes);
        assert_eq!(got, (3, 0, 0), "{imported:?}");
        // The same blocks, but not the same file: the directory's owner may write to it.
        fs::write(dir.join(WEIGHTS), "changed").unwrap();
        let again = node.import(&dir, false).await;
        assert_eq!(again.cached_files, 3, "{again:?}");
    });
}

#[test]
fn symbolic_links_below_the_directory_are_not_followed() {
    end_to_end(async |scratch| {
        let (dir, outside) = (scratch.join("model"), scratch.join("outside"));
        fill(&outside);
        fs::create_dir(&dir).unwrap();
        symlink(outside.join(WEIGHTS), dir.join(WEIGHTS)).unwrap();
        symlink(outside.join("tokenizer"), dir.join("tokenizer")).unwrap();
        nix::unistd::mkfifo(&dir.join("config.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let link = scratch.join("link");
        symlink(&dir, &link).unwrap();
        let node = Node::new(scratch, store_with_phi3()).await;
        // The directory itself may be named through a link.
        let imported = node.import(&link, true).await;
        assert_eq!((imported.adopted_files, imported.downloaded_files), (0, 3));
        let reasons = reasons(&imported);
        assert_eq!(reasons[0], ("config.json", "it is not in the directory"));
        assert!(reasons[1].1.starts_with("model.safetensors is a symbolic link to "));
        assert!(reasons[2].1.starts_with("tokenizer is a symbolic link to "), "{reasons:?}");
        assert!(reasons[1].1.ends_with("which is not followed"), "{reasons:?}");
        assert_eq!(content_of(&outside).len(), 4);
        assert_eq!(imported.left_files, 3);
    });
}

/// A Hub cache with one snapshot of the model, of which `missing` is no blob;
/// the snapshot's directory.
fn hub_snapshot(hub: &Path, missing: &str) -> PathBuf {
    let repository = hub.join("models--org--phi3");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/0123abcd"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(snapshot.join("tokenizer")).unwrap();
    let filled = hub.join("filled");
    fill(&filled);
    for (number, name) in ["config.json", "tokenizer/vocab.txt", WEIGHTS].into_iter().enumerate() {
        let blob = format!("blob{number}");
        if name != missing {
            fs::rename(filled.join(name), blobs.join(&blob)).unwrap();
        }
        let up = if name.contains('/') { "../../../" } else { "../../" };
        symlink(format!("{up}blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    fs::remove_dir_all(filled).unwrap();
    snapshot
}

#[test]
fn a_hub_snapshot_is_adopted_through_its_links_and_its_blobs_are_never_moved() {
    end_to_end(async |scratch| {
        for (number, take) in [false, true].into_iter().enumerate() {
            let scratch = scratch.join(number.to_string());
            let snapshot = hub_snapshot(&scratch.join("hub"), "nothing");
            // The blobs of the Hub cache, beside its snapshots.
            let blobs = snapshot.join("../../blobs");
            let before = content_of(&blobs);
            let node = Node::new(&scratch, store_with_phi3()).await;
            let imported = node.import(&snapshot, take).await;
            assert_eq!((imported.adopted_files, imported.downloaded_files), (3, 0));
            assert_eq!((imported.not_adopted_files, node.served()), (0, 0));
            assert!(content_of(&blobs) == before, "the Hub cache is as it was");
            assert!(fs::symlink_metadata(snapshot.join(WEIGHTS)).unwrap().is_symlink());
        }
    });
}

#[test]
fn a_blob_that_repositories_of_a_hub_cache_share_is_adopted_and_another_link_is_not() {
    end_to_end(async |scratch| {
        let hub = scratch.join("hub");
        let snapshot = hub_snapshot(&hub, "nothing");
        let (blobs, shared) = (snapshot.join("../../blobs"), hub.join("blobs/be"));
        fs::create_dir_all(&shared).unwrap();
        fs::write(hub.join("blobs/.huggingface-shared-blobs"), "1\n").unwrap();
        fs::rename(blobs.join("blob2"), shared.join("beef")).unwrap();
        symlink("../../blobs/be/beef", blobs.join("blob2")).unwrap();
        // Through the shared blobs to outside of the cache.
        fs::rename(blobs.join("blob1"), scratch.join("vocab")).unwrap();
        symlink("../../blobs/be/../../../vocab", blobs.join("blob1")).unwrap();
        let node = Node::new(scratch, store_with_phi3()).await;
        let imported = node.import(&snapshot, true).await;
        assert_eq!((imported.adopted_files, imported.downloaded_files), (2, 1));
        let [(name, why)] = reasons(&imported)[..] else { panic!("{imported:?}") };
        assert_eq!(name, "tokenizer/vocab.txt");
        assert!(why.contains("since it is not a blob of this Hub cache"), "{why}");
        assert_eq!(fs::metadata(shared.join("beef")).unwrap().len(), SIZE, "it is not moved");
    });
}

/// Why each file was not adopted.
fn reasons(imported: &Imported) -> Vec<(&str, &str)> {
    imported.not_adopted.iter().map(|one| (one.path.as_str(), one.why.as_str())).collect()
}

#[test]
fn a_link_that_dangles_or_leaves_the_hub_cache_is_reported_by_name_and_downloaded() {
    end_to_end(async |scratch| {
        let snapshot = hub_snapshot(&scratch.join("hub"), "config.json");
        // Out of the blobs, by a path that begins in them; and a blob that is a link itself.
        let outside = scratch.join("outside");
        fs::write(&outside, synthetic_bytes(1, 0..SIZE)).unwrap();
        fs::remove_file(snapshot.join(WEIGHTS)).unwrap();
        symlink("../../blobs/../../../outside", snapshot.join(WEIGHTS)).unwrap();
        let blob = snapshot.join("../../blobs/blob1");
        fs::rename(&blob, scratch.join("vocab")).unwrap();
        symlink(scratch.join("vocab"), &blob).unwrap();
        let node = Node::new(scratch, store_with_phi3()).await;
        let imported = node.import(&snapshot, false).await;
        assert_eq!((imported.adopted_files, imported.downloaded_files), (0, 3));
        assert_eq!(imported.not_adopted_files, 3);
        let reasons = reasons(&imported);
        let [config, weights, vocab] = reasons[..] else { panic!("{reasons:?}") };
        assert_eq!((config.0, weights.0, vocab.0), ("config.json", WEIGHTS, "tokenizer/vocab.txt"));
        let dangling = "config.json is a symbolic link to ../../blobs/blob0, which does not exist";
        assert!(config.1.starts_with(dangling), "{config:?}");
        for (_, why) in [weights, vocab] {
            assert!(why.contains("which is not followed, since it is not a blob"), "{why}");
        }
    });
}

#[test]
fn a_file_with_another_hard_link_is_copied_and_left_to_its_owner() {
    end_to_end(async |scratch| {
        let dir = scratch.join("model");
        fill(&dir);
        let other = scratch.join("other");
        fs::hard_link(dir.join(WEIGHTS), &other).unwrap();
        let node = Node::new(scratch, store_with_phi3()).await;
        let imported = node.import(&dir, true).await;
        assert_eq!((imported.adopted_files, imported.downloaded_files), (3, 0));
        assert_eq!(imported.left, [WEIGHTS], "what has another name is left");
        fs::write(&other, "changed").unwrap();
        let again = node.import(&dir, true).await;
        assert_eq!(again.cached_files, 3, "the cache has its own");
    });
}

#[test]
fn a_missing_directory_and_one_of_the_cache_are_refused() {
    end_to_end(async |scratch| {
        let node = Node::new(scratch, store_with_phi3()).await;
        let kind = async |dir: PathBuf| node.try_import(&dir, false).await.unwrap_err().kind();
        assert_eq!(kind(scratch.join("nothing")).await, ErrorKind::NotFound);
        assert_eq!(kind(scratch.join("cache/blobs")).await, ErrorKind::Invalid);
        assert_eq!(kind(scratch.to_owned()).await, ErrorKind::Invalid);
        eventually("nothing is downloaded", Duration::from_secs(5), async || {
            node.cache.running().is_empty().then_some(())
        })
        .await;
        assert_eq!(node.served(), 0);
    });
}
