//! How long a publish takes during an attack: at most twice as long as alone,
//! plus two seconds.
//!
//! Each attack runs while models of another bucket are published, in the
//! attackers' own Kubernetes namespace and in another one.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::Volume;
use crate::support::models::{MIB, assert_synthetic};
use crate::support::run::{end_to_end, eventually, figure};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule, Source};
use tokio::task::JoinSet;
use tonic::Code;

/// For states that an attack reaches soon.
const BOUND: Duration = Duration::from_secs(60);

const GOOD: &str = "good";
const HOSTILE: &str = "hostile";

/// Of the attackers' volumes and of every second victim.
const SAME: &str = "team-a";
const OTHER: &str = "team-b";

/// Publishes in each measurement; the longest one counts.
const TRIALS: u64 = 3;

/// The size of the victims' weights.
const WEIGHTS: u64 = 8 * MIB;

/// A driver beside a store, with victims' models in a bucket of their own.
struct Scene {
    store: LocalStore,
    driver: Driver,
    attackers: JoinSet<()>,
    victims: u64,
}

impl Scene {
    async fn start(scratch: &Path, config: &str) -> Self {
        let store = LocalStore::builder().start().unwrap();
        for n in 1..=4 * TRIALS {
            store.put(GOOD, &format!("{n}/config.json"), b"{}").unwrap();
            put(&store, GOOD, &format!("{n}/weights.bin"), WEIGHTS, n);
        }
        let driver = Setup::new(scratch, &store).with_config(config).start().await;
        Self { store, driver, attackers: JoinSet::new(), victims: 0 }
    }

    /// Publishes a model that is not on the node, and returns how long it took.
    async fn victim(&mut self, namespace: &str) -> Duration {
        self.victims += 1;
        let n = self.victims;
        let prefix = format!("{n}/");
        let attributes = [("bucket", GOOD), ("prefix", prefix.as_str())];
        let mut volume = self.driver.kubelet().inline(&(9000 + n).to_string(), &attributes);
        namespace.clone_into(&mut volume.namespace);
        let started = Instant::now();
        volume.publish().await.unwrap();
        let took = started.elapsed();
        assert_synthetic(&volume.target().join("weights.bin"), n, WEIGHTS);
        volume.unpublish().await.unwrap();
        took
    }

    /// The longest of some publishes.
    async fn victims(&mut self, namespace: &str) -> Duration {
        let mut longest = Duration::ZERO;
        for _ in 0..TRIALS {
            longest = longest.max(self.victim(namespace).await);
        }
        longest
    }

    fn hostile(&self, pod: u64, prefix: &str, exclude: Option<&str>) -> Volume {
        let mut attributes = vec![("bucket", HOSTILE), ("prefix", prefix)];
        attributes.extend(exclude.map(|patterns| ("exclude", patterns)));
        let mut volume = self.driver.kubelet().inline(&pod.to_string(), &attributes);
        SAME.clone_into(&mut volume.namespace);
        volume
    }

    /// A pod that asks for a hostile model until the test ends.
    fn attack(&mut self, volume: Volume) {
        self.attackers.spawn(async move {
            volume.mount().await;
        });
    }

    /// The pods that wait for their hostile models.
    fn waiting_attackers(&mut self) -> usize {
        while self.attackers.try_join_next().is_some() {}
        self.attackers.len()
    }

    /// How often the rules have hit.
    async fn until_hit(&self, times: u64) {
        eventually("the attack is under way", BOUND, async || {
            let hits: u64 = self.store.faults().list().iter().map(|rule| rule.hits).sum();
            (hits >= times).then_some(())
        })
        .await;
    }

    /// Measures the victims beside the running attack.
    async fn measure(mut self, attack: &str, alone: Duration) {
        for (namespace, whose) in [(OTHER, "another namespace"), (SAME, "the same namespace")] {
            let beside = self.victims(namespace).await;
            let most = 2 * alone + Duration::from_secs(2);
            figure(format_args!(
                "neighbour | {attack} | {whose} | alone {:.2} s | beside {:.2} s | at most {:.2} s",
                alone.as_secs_f64(),
                beside.as_secs_f64(),
                most.as_secs_f64(),
            ));
            assert!(beside <= most, "beside {attack}: {beside:?}, alone {alone:?}");
        }
        self.attackers.shutdown().await;
    }
}

fn put(store: &LocalStore, bucket: &str, name: &str, size: u64, seed: u64) {
    let options = PutOptions { crc32c: true, ..PutOptions::default() };
    store.put_with(bucket, name, Source::Synthetic { size, seed }, options).unwrap();
}

fn on(operation: Operation, action: Action) -> Rule {
    Rule::new(action).operation(operation).bucket(format!("{HOSTILE}*"))
}

/// Bytes come one by one, some in a second over all requests together.
fn trickle() -> Action {
    Action::Bandwidth { bytes_per_sec: 3 }
}

#[test]
fn sixteen_ranges_that_trickle_delay_no_other_bucket() {
    end_to_end(async |scratch| {
        let mut scene = Scene::start(scratch, "").await;
        put(&scene.store, HOSTILE, "m/0.bin", 400 * MIB, 0);
        let alone = scene.victims(OTHER).await;
        scene.store.faults().add(on(Operation::Get, trickle()));
        scene.attack(scene.hostile(1, "m/", None));
        scene.until_hit(16).await;
        scene.measure("16 ranges that trickle", alone).await;
    });
}

#[test]
fn models_that_trickle_hold_no_slot_that_another_waits_for() {
    end_to_end(async |scratch| {
        let mut scene = Scene::start(scratch, "").await;
        let alone = scene.victims(OTHER).await;
        scene.store.faults().add(on(Operation::Get, trickle()));
        for n in 1..=8 {
            put(&scene.store, HOSTILE, &format!("{n}/0.bin"), MIB, 100 + n);
            scene.attack(scene.hostile(n, &format!("{n}/"), None));
        }
        // As many as `download.maxModels`.
        scene.until_hit(4).await;
        scene.measure("8 models that trickle", alone).await;
    });
}

#[test]
fn one_buckets_503s_slow_no_other_bucket() {
    end_to_end(async |scratch| {
        // Requests that take a while each show how many run side by side.
        let mut scene = Scene::start(scratch, "download: {rangeSize: 1MiB}\n").await;
        let late = Rule::new(Action::Latency { ms: 450 }).operation(Operation::Get);
        scene.store.faults().add(late.bucket(GOOD));
        put(&scene.store, HOSTILE, "m/0.bin", 400 * MIB, 0);
        let alone = scene.victims(OTHER).await;
        scene.store.faults().add(on(Operation::Get, Action::status(503)));
        scene.attack(scene.hostile(1, "m/", None));
        scene.until_hit(64).await;
        scene.measure("a bucket that answers 503", alone).await;
    });
}

#[test]
fn fifty_unanswered_listings_delay_no_other_bucket() {
    end_to_end(async |scratch| {
        let mut scene = Scene::start(scratch, "").await;
        let alone = scene.victims(OTHER).await;
        put(&scene.store, HOSTILE, "m/0.bin", MIB, 0);
        let faults = scene.store.faults();
        let bucket = |name: &str| format!("{HOSTILE}-{name}");
        for (name, action) in [
            ("silent", Action::Latency { ms: 600_000 }),
            ("slow", trickle()),
            ("away", Action::status(503)),
        ] {
            put(&scene.store, &bucket(name), "m/0.bin", MIB, 0);
            let rule = Rule::new(action).operation(Operation::List);
            faults.add(rule.bucket(bucket(name)));
        }
        for n in 1..=51 {
            let name = bucket(["silent", "slow", "away"][usize::try_from(n % 3).unwrap()]);
            // Each a listing of its own.
            let prefix = format!("m{n}/");
            let attributes = [("bucket", name.as_str()), ("prefix", prefix.as_str())];
            let mut volume = scene.driver.kubelet().inline(&n.to_string(), &attributes);
            SAME.clone_into(&mut volume.namespace);
            scene.attack(volume);
        }
        scene.until_hit(3).await;
        scene.measure("51 listings that do not come", alone).await;
    });
}

#[test]
fn hostile_patterns_delay_no_other_listing() {
    end_to_end(async |scratch| {
        let mut scene = Scene::start(scratch, "").await;
        for n in 0..1000 {
            let name = format!("m/{}{n}", "a".repeat(700));
            scene.store.put(HOSTILE, &name, b"x").unwrap();
        }
        let alone = scene.victims(OTHER).await;
        for n in 1..=12 {
            let marks = "?".repeat(480);
            scene.attack(scene.hostile(n, "m/", Some(&format!("*{marks}*b{n}"))));
        }
        eventually("the listings come", BOUND, async || {
            let lists = scene.store.requests().into_iter();
            (lists.filter(|r| r.target.contains(HOSTILE)).count() > 0).then_some(())
        })
        .await;
        scene.measure("patterns of 480 ? from 12 volumes", alone).await;
    });
}

#[test]
fn fifty_models_whose_headers_take_long_delay_no_other_models_check() {
    // The checks of all take about two seconds in a development build, a victim's download a tenth.
    const TENSORS: usize = 12_000;
    const ATTACKERS: u64 = 50;
    end_to_end(async |scratch| {
        let mut scene = Scene::start(scratch, "checkSafetensors: true\n").await;
        let mut header = String::from("{\"__metadata__\":{}");
        for n in 0..TENSORS {
            let _ = write!(
                header,
                ",\"tensor.{n}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}"
            );
        }
        header.push('}');
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        for n in 1..=ATTACKERS {
            let name = format!("{n}/model.safetensors");
            scene.store.put(HOSTILE, &name, &file).unwrap();
            scene.attack(scene.hostile(n, &format!("{n}/"), None));
        }
        let whole = ATTACKERS * file.len() as u64;
        eventually("all these models are on the node", BOUND, async || {
            (scene.driver.metric("download_bytes_total").await >= whole).then_some(())
        })
        .await;
        let queued = scene.waiting_attackers();
        scene.victim(OTHER).await;
        // The order is asserted, and no duration: these checks take CPU, as all tests beside this
        // one do.
        let left = scene.waiting_attackers();
        figure(format_args!("of {queued} checks in the queue, a victim came before {left}"));
        assert!(queued > 10, "the premise: the checks take longer than the downloads");
        assert!(left >= queued / 2, "{queued} checks waited, and {left} after the victim's");
        scene.attackers.shutdown().await;
    });
}

#[test]
fn our_own_rate_limit_is_never_mistaken_for_a_stall() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put(&store, GOOD, "paced/0.bin", 4 * MIB, 1);
        put(&store, GOOD, "waits/0.bin", 1024, 2);
        let config = "download: {bandwidthLimit: 512KiB, maxModels: 1, rangeSize: 1MiB}\n";
        let driver = Setup::new(scratch, &store).with_config(config).start().await;
        let volume = |pod: &str, prefix| {
            driver.kubelet().inline(pod, &[("bucket", GOOD), ("prefix", prefix)])
        };
        let (paced, waits) = (volume("1", "paced/"), volume("2", "waits/"));
        let publishing = async {
            paced.publish().await.unwrap();
            Instant::now()
        };
        let waiting = async {
            eventually("the paced model downloads", BOUND, async || {
                (driver.metric("download_bytes_total").await > 0).then_some(())
            })
            .await;
            waits.publish().await.unwrap();
            Instant::now()
        };
        let (first, second) = tokio::join!(publishing, waiting);
        assert!(first < second, "the paced model kept its place");
        let gets = store.requests().into_iter();
        let gets = gets.filter(|r| r.operation == Operation::Get && r.target.contains("paced"));
        assert_eq!(gets.count(), 4, "no range of it gave way");
        assert!(!driver.log().contains("gives way"), "{}", driver.log());
    });
}

#[test]
fn throttled_listings_and_heads_are_counted() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put(&store, GOOD, "m/0.bin", 20 * MIB, 1);
        let driver = Driver::start(scratch, &store).await;
        for operation in [Operation::List, Operation::Head, Operation::Get] {
            store.faults().add(Rule::new(Action::status(503)).operation(operation).times(1));
        }
        let volume = driver.kubelet().inline("1", &[("bucket", GOOD), ("prefix", "m/")]);
        volume.publish().await.unwrap();
        assert_eq!(volume.calls()[0].code, Code::Ok);
        assert_eq!(driver.metric("object_storage_throttled_total").await, 3);
    });
}
