//! How bandwidth is shared: the configured limit, models side by side, small
//! files first, and pods before prefetches.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::driver::Setup;
use crate::support::models::{BUCKET, MIB, PREFIX, assert_synthetic, put, put_large};
use crate::support::run::{end_to_end, eventually, figure, ratio};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use oci_model_csi::cache::{
    Cache, CacheLimits, CacheOptions, CachedModel, FillProgress, Phase, Priority,
};
use oci_model_csi::download::{Concurrency, Engine, EngineOptions, Verify};
use oci_model_csi::flight::Waiter;
use oci_model_csi::metrics::Metrics;
use oci_model_csi::model::{ModelRequest, ModelUri, Tenant};
use oci_model_csi::oci::{Environment, Settings, StorageConnector};
use oci_model_csi::resolve::{ClientPool, ResolveLimits, Resolver};
use oci_model_csi::source::{AuthMethod, RetryPolicy};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const BOUND: Duration = Duration::from_secs(60);

/// The attributes of a volume of a model under [`PREFIX`].
fn model(name: &str) -> [(&'static str, String); 2] {
    [("bucket", BUCKET.to_owned()), ("prefix", format!("{PREFIX}{name}/"))]
}

fn borrowed<'a>(attributes: &'a [(&'static str, String); 2]) -> [(&'a str, &'a str); 2] {
    attributes.each_ref().map(|(key, value)| (*key, value.as_str()))
}

/// Bytes of a model that the store sent.
fn served(store: &LocalStore, name: &str) -> u64 {
    let prefix = format!("{BUCKET}/{PREFIX}{name}/");
    let objects = store.stats().object_bytes;
    objects.iter().filter(|(object, _)| object.starts_with(&prefix)).map(|(_, bytes)| bytes).sum()
}

/// A model of so many objects of this size.
fn put_model(store: &LocalStore, name: &str, objects: u64, size: u64) {
    for n in 0..objects {
        let options = PutOptions { crc32c: true, ..PutOptions::default() };
        put_large(store, &format!("{name}/{n}.bin"), size, n, options);
    }
}

#[test]
fn all_downloads_together_keep_the_bandwidth_limit_and_finish() {
    const LIMIT: u64 = 8 * MIB;
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_model(&store, "one", 1, 20 * MIB);
        put_model(&store, "two", 20, MIB);
        let config = format!("download: {{bandwidthLimit: {LIMIT}}}\n");
        let driver = Setup::new(scratch, &store).with_config(&config).start().await;
        let (kubelet, one, two) = (driver.kubelet(), model("one"), model("two"));
        let volumes = [kubelet.inline("1", &borrowed(&one)), kubelet.inline("2", &borrowed(&two))];
        let started = Instant::now();
        tokio::join!(volumes[0].mount(), volumes[1].mount());
        let millis = u64::try_from(started.elapsed().as_millis()).unwrap();
        let bytes = driver.metric("download_bytes_total").await;
        assert_eq!(bytes, 40 * MIB);
        let share = ratio(bytes * 1000 / millis, LIMIT);
        figure(format_args!("40 MiB in {millis} ms under a limit of 8 MiB/s: {share} of it"));
        assert!(share <= 1.3, "{share} of the limit");
        assert!(!driver.log().contains("bandwidthLimit"), "{}", driver.log());
        assert_synthetic(&volumes[0].target().join("0.bin"), 0, 20 * MIB);
    });
}

#[test]
fn two_models_get_equal_shares_however_many_objects_each_has() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_model(&store, "many", 24, 4 * MIB);
        put_model(&store, "single", 1, 32 * MIB);
        let config = "download: {bandwidthLimit: 16MiB, concurrency: 4, rangeSize: 1MiB}\n";
        let driver = Setup::new(scratch, &store).with_config(config).start().await;
        let (kubelet, many, single) = (driver.kubelet(), model("many"), model("single"));
        let many = kubelet.inline("1", &borrowed(&many));
        let publishing = tokio::spawn(async move { many.mount().await });
        eventually("the model of many objects downloads", BOUND, async || {
            (served(&store, "many") > 4 * MIB).then_some(())
        })
        .await;
        let before = served(&store, "many");
        kubelet.inline("2", &borrowed(&single)).publish().await.unwrap();
        let meanwhile = served(&store, "many") - before;
        assert!(!publishing.is_finished());
        let share = ratio(meanwhile, 32 * MIB);
        figure(format_args!(
            "while one object of 32 MiB came, the model of 24 objects got {share} of that"
        ));
        assert!((0.6..=1.6).contains(&share), "{share}");
        publishing.abort();
    });
}

#[test]
fn small_files_come_before_the_weights() {
    const SMALL: usize = 80;
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_large(&store, "big/a-1-of-2.safetensors", 8 * MIB, 1, PutOptions::default());
        put_large(&store, "big/a-2-of-2.safetensors", 8 * MIB, 2, PutOptions::default());
        for n in 0..SMALL {
            put(&store, &format!("big/tokenizer/{n}.json"), vec![b'x'; 100 + n]);
        }
        // So slow that everything that may wait does wait.
        store.faults().add(Rule::new(Action::Latency { ms: 20 }).operation(Operation::Get));
        let config = "download: {concurrency: 2, rangeSize: 1MiB}\n";
        let driver = Setup::new(scratch, &store).with_config(config).start().await;
        driver.kubelet().inline("1", &borrowed(&model("big"))).publish().await.unwrap();
        let gets = store.requests().into_iter().filter(|r| r.operation == Operation::Get);
        let weights: Vec<bool> = gets.map(|r| r.target.contains("safetensors")).collect();
        assert_eq!(weights.len(), SMALL + 16);
        let last_small = weights.iter().rposition(|weight| !weight).unwrap();
        let early = weights[..last_small].iter().filter(|weight| **weight).count();
        figure(format_args!(
            "{early} of 16 ranges of weights before the last of {SMALL} small files"
        ));
        assert!(early <= 2, "{early} of 16 ranges of weights came before a small file");
    });
}

/// Cache and engine as the driver has them; nothing outside asks for a
/// prefetch yet.
struct Node {
    cache: Cache,
    engine: Engine,
    resolver: Resolver,
    _scratch: tempfile::TempDir,
}

impl Node {
    async fn start(store: &LocalStore, bandwidth: u64, max_models: usize) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let settings = Settings {
            endpoint: Some(store.endpoint()),
            config_file: Some(store.write_cli_config(scratch.path()).unwrap()),
            environment: Environment::empty(),
            ..Settings::new(AuthMethod::ApiKey)
        };
        let connector = Arc::new(StorageConnector::connect(settings).await.unwrap());
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let metrics = Arc::new(Metrics::default());
        let options = EngineOptions {
            concurrency: Concurrency::Fixed(4),
            bandwidth: Some(bandwidth),
            range_size: MIB,
            verify: Verify::Always,
            write_back: false,
            retry: RetryPolicy::default(),
        };
        let engine = Engine::new(options, Arc::clone(&metrics)).unwrap();
        let options = CacheOptions {
            dir: scratch.path().join("cache"),
            require_mount: false,
            limits: CacheLimits { min_free: 0, min_free_inodes: 0, max_size: None },
            idle_ttl: None,
            max_models,
            abandon_after: BOUND,
            keep_revisions: Vec::new(),
        };
        let cache = Cache::open(options, metrics, &tasks, &shutdown).unwrap();
        cache.recover(Path::new("/nonexistent")).unwrap();
        let limits = ResolveLimits { max_objects: 1000, max_bytes: None };
        let resolver =
            Resolver::new(ClientPool::new(connector, Vec::new()), limits, &tasks, &shutdown);
        Self { cache, engine, resolver, _scratch: scratch }
    }

    async fn fill(&self, name: &str, asker: Priority) -> Waiter<FillProgress, CachedModel> {
        let uri = ModelUri::parse(&format!("oci://{BUCKET}/{PREFIX}{name}/")).unwrap();
        let request = ModelRequest::of(uri.namespace, uri.bucket, uri.prefix);
        let route = self.resolver.route(&request, "").await.unwrap();
        let manifest = self.resolver.resolve(&request, &route).await.unwrap();
        self.cache.fill(&self.engine, &manifest, &asker, route.client())
    }
}

async fn land(mut ticket: Waiter<FillProgress, CachedModel>) {
    tokio::time::timeout(BOUND, ticket.completed()).await.unwrap().unwrap();
}

async fn until_phase(ticket: &Waiter<FillProgress, CachedModel>, phase: Phase) {
    eventually("the phase of a model", BOUND, async || {
        (ticket.progress().snapshot().phase == phase).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_waits_overtakes_a_prefetch() {
    let store = LocalStore::builder().start().unwrap();
    put_model(&store, "prefetch", 8, 8 * MIB);
    put_model(&store, "pod", 2, 16 * MIB);
    let node = Node::start(&store, 16 * MIB, 1).await;
    let prefetch = node.fill("prefetch", Priority::Prefetch).await;
    eventually("the prefetch runs", BOUND, async || {
        (served(&store, "prefetch") > 4 * MIB).then_some(())
    })
    .await;
    let before = served(&store, "prefetch");
    land(node.fill("pod", Priority::Pod(Tenant::Unknown)).await).await;
    let meanwhile = served(&store, "prefetch") - before;
    let share = ratio(meanwhile, 32 * MIB);
    figure(format_args!("while a pod's 32 MiB came, a prefetch got {share} of that"));
    // The ranges that ran at the start, and what was left over at the end.
    assert!(share <= 0.4, "{share}");
    land(prefetch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefetch_that_waits_for_its_turn_starts_at_once_when_a_pod_joins_it() {
    let store = LocalStore::builder().start().unwrap();
    put_model(&store, "running", 4, 16 * MIB);
    put_model(&store, "waiting", 1, 8 * MIB);
    let node = Node::start(&store, 16 * MIB, 1).await;
    let running = node.fill("running", Priority::Prefetch).await;
    until_phase(&running, Phase::Downloading).await;
    let prefetch = node.fill("waiting", Priority::Prefetch).await;
    assert_eq!(prefetch.progress().snapshot().phase, Phase::Waiting);
    assert!(!prefetch.joined());
    let pod = node.fill("waiting", Priority::Pod(Tenant::Unknown)).await;
    assert!(pod.joined(), "one download for all callers");
    land(pod).await;
    let left = running.progress().snapshot();
    assert_eq!(left.phase, Phase::Downloading, "it was not waited for");
    land(prefetch).await;
    land(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefetch_gives_way_where_a_pods_model_needs_one_of_its_objects() {
    let store = LocalStore::builder().start().unwrap();
    put_model(&store, "all/needed", 1, 16 * MIB);
    put_model(&store, "all/other", 6, 8 * MIB);
    let node = Node::start(&store, 16 * MIB, 2).await;
    let prefetch = node.fill("all", Priority::Prefetch).await;
    until_phase(&prefetch, Phase::Downloading).await;
    land(node.fill("all/needed", Priority::Pod(Tenant::Unknown)).await).await;
    let other = served(&store, "all/other");
    figure(format_args!(
        "while 16 MiB came that a pod needed, its prefetch got {other} more bytes"
    ));
    assert!(other < 40 * MIB, "it waited for the whole prefetch: {other}");
    assert_eq!(served(&store, "all/needed"), 16 * MIB, "one object is downloaded once");
    land(prefetch).await;
}
