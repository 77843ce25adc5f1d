//! The machine dies: the cache's file system loses its power at each numbered
//! step and at random instants, and a driver starts on what is left of it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::commands::Commands;
use crate::support::driver::{Driver, Setup, stopped};
use crate::support::invariants::{Descriptors, Tally, check_invariants};
use crate::support::kubelet::{Volume, is_final};
use crate::support::load::{Load, State};
use crate::support::loopfs::{Kind, LoopFs, Written};
use crate::support::models::{MIB, try_content_of};
use crate::support::pods::{Model, Pod, sent_of};
use crate::support::random::{Random, random_for, rounds};
use crate::support::run::{end_to_end_within, eventually, figure};
use crate::support::steps::{self, Asked};
use localstore::LocalStore;

const CONFIG: &str = "cache: {minFree: 1MiB, minFreeInodes: 0%}
download: {concurrency: 4, rangeSize: 1MiB}
";

const SHARDS: [u64; 2] = [MIB + 7, 300_000];

/// What was published so long ago survives: invariant 4 of ARCHITECTURE.md.
const OLD: Duration = Duration::from_secs(30);

/// For many rounds; one takes about a second.
const LIMIT: Duration = Duration::from_secs(3 * 60 * 60);

/// Pods that come and go.
const PODS: u64 = 5;

/// Models whose revisions change, beside an old one that stays.
const YOUNG: u64 = 3;

/// A node whose cache is on a disk of its own, with a model that was published
/// [`OLD`] ago and nothing else since.
struct Node {
    disk: LoopFs,
    store: LocalStore,
    driver: Driver,
    idle: Descriptors,
    random: Random,
    old: Model,
    young: Vec<Model>,
    tally: Tally,
    cuts: u64,
    /// Bytes of young models that were lost.
    sent_again: u64,
}

impl Node {
    async fn start(kind: Kind, scratch: &Path) -> Option<Self> {
        let disk = LoopFs::mounted(kind, scratch)?;
        let store = LocalStore::builder().start().unwrap();
        let mut random = random_for(kind.name());
        let old = Model::upload(&store, "old", 0, &SHARDS);
        let young = |n: u64| Model::upload(&store, &n.to_string(), random.next(), &SHARDS);
        let young = (0..YOUNG).map(young).collect();
        let mut setup = Setup::new(scratch, &store).with_config(CONFIG);
        setup.cache = disk.directory().join("cache");
        let driver = setup.start().await;
        let idle = Descriptors::of_idle(&driver).await;
        let volume = old.volume(&driver.kubelet(), 0);
        volume.publish().await.unwrap();
        volume.unpublish().await.unwrap();
        store.reset_stats();
        let published = Instant::now();
        // Of the model's content the driver itself records that the disk has it.
        eventually("the model is recorded as durable", OLD, async || {
            let model = driver.in_cache("models").pop()?;
            driver.setup.cache.join("models").join(model).join("durable").exists().then_some(())
        })
        .await;
        figure(format_args!("{}: durable {:?} after a publish", kind.name(), published.elapsed()));
        // What it records nothing of, such as its index, has this time.
        tokio::time::sleep(OLD.saturating_sub(published.elapsed())).await;
        let (tally, cuts, sent_again) = (Tally::default(), 0, 0);
        Some(Self { disk, store, driver, idle, random, old, young, tally, cuts, sent_again })
    }

    /// Uploads a new revision of one of the young models.
    fn change(&mut self) -> Model {
        let n = self.random.below(YOUNG);
        let model = Model::upload(&self.store, &n.to_string(), self.random.next(), &SHARDS);
        self.young[usize::try_from(n).unwrap()] = model.clone();
        model
    }

    /// Cuts the power now.
    async fn die(&mut self, written: Written) {
        self.disk.write_back(written);
        self.disk.cut_power();
        self.cuts += 1;
        self.driver.kill().await;
    }

    /// The machine boots; nothing may be open on the disk.
    async fn boot(&mut self) {
        self.disk.remount(&self.driver.setup.scratch.join("kubelet")).await;
        let leases = self.driver.setup.cache.join("leases");
        for lease in fs::read_dir(leases).into_iter().flatten() {
            of_an_earlier_boot(&lease.unwrap().path());
        }
        self.driver.restart_to(None).await;
    }

    /// Checks that all models are as they were uploaded, and that the old one is
    /// not downloaded again. It is used last, so that it is never the next to be
    /// evicted.
    async fn check(&mut self, running: &[Pod], when: &str) {
        let models: Vec<&Model> = self.young.iter().chain([&self.old]).collect();
        check_invariants(&self.driver, running, &models, self.idle, &mut self.tally).await;
        self.tally.assert_clean(when);
        assert_eq!(
            sent_of(&self.store, &self.old),
            0,
            "{when}: the old model was downloaded again"
        );
    }

    fn report(&self, what: &str) {
        let (cuts, kind, tally) = (self.cuts, self.disk.kind().name(), &self.tally);
        figure(format_args!("{cuts} power losses {what} on {kind}: {tally}"));
    }
}

/// A lease as the next boot of a machine finds it; one that is torn stays so.
fn of_an_earlier_boot(lease: &Path) {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = String::from_utf8_lossy(&fs::read(lease).unwrap()).into_owned();
    fs::write(lease, text.replace(boot.trim(), "an-earlier-boot")).unwrap();
}

/// Pods of kubelet's beside those of the load.
const OLD_POD: u64 = 101;
const YOUNG_POD: u64 = 102;

/// Cuts the power once before anything else happens, then at every step.
async fn cut_at_each_step(kind: Kind, scratch: &Path) {
    let Some(mut node) = Node::start(kind, scratch).await else { return };
    node.die(Written::Nothing).await;
    node.boot().await;
    // Not even a listing is needed to find it again.
    let kubelet = node.driver.kubelet();
    let volume = node.old.volume_with(&kubelet, OLD_POD, &[("pullPolicy", "Never")]);
    volume.publish().await.unwrap();
    let pod = [Pod::start(volume, &node.old)];
    node.check(&pod, &format!("{OLD:?} after the publish")).await;
    for pod in pod {
        pod.end().unpublish().await.unwrap();
    }

    for round in 0..rounds(3) {
        let written = Written::ALL.into_iter().cycle().skip(usize::try_from(round % 3).unwrap());
        for ((asked, (step, times)), written) in steps::all().zip(written) {
            let nth = times.start() + node.random.below(times.end() - times.start() + 1);
            let step = format!("stop:{step}:{nth}");
            if asked == Asked::Import {
                cut_in_import(&mut node, &step, written).await;
            } else {
                cut_at(&mut node, asked, &step, written).await;
            }
        }
    }
    node.report("at steps");
    let (kind, lost) = (kind.name(), node.sent_again);
    figure(format_args!("of models younger than a sync {lost} bytes were lost on {kind}"));
}

async fn cut_at(node: &mut Node, asked: Asked, step: &str, written: Written) {
    if asked == Asked::Evict {
        node.driver.restart_full(CONFIG).await;
    }
    node.driver.restart_to(Some(step)).await;
    node.driver.setup = node.driver.setup.clone().with_config(CONFIG);
    let model = node.change();
    let sent = sent_of(&node.store, &model);
    let volume = model.volume(&node.driver.kubelet(), YOUNG_POD);
    let asking = async {
        if asked != Asked::Unpublish {
            return volume.publish().await;
        }
        volume.publish().await.unwrap();
        volume.unpublish().await
    };
    let (answer, ()) = tokio::join!(asking, async {
        node.driver.stopped().await;
        node.die(written).await;
    });
    // A publish may have been answered before the sync after it was reached.
    let final_error = answer.as_ref().is_err_and(|status| is_final(status.code()));
    assert!(!final_error, "{step}: {answer:?}");
    node.boot().await;

    // kubelet's directories are on another disk: it asks for its pods again.
    let mut running = Vec::new();
    if asked == Asked::Unpublish {
        volume.unpublish().await.unwrap();
    } else {
        volume.mount().await;
        running.push(Pod::start(volume, &model));
    }
    node.check(&running, &format!("{step}, {written:?}")).await;
    for pod in running {
        pod.end().unpublish().await.unwrap();
    }
    let sent = sent_of(&node.store, &model) - sent;
    node.sent_again += sent.saturating_sub(model.bytes());
}

/// Files of an old directory on the same disk are still there or in the cache.
async fn cut_in_import(node: &mut Node, step: &str, written: Written) {
    node.driver.kill().await;
    let model = node.change();
    let directory = node.disk.directory().join(format!("filled-{}", node.cuts));
    model.fill(&directory);
    node.disk.sync();
    let mut commands = Commands::of(&node.driver.setup);
    commands.environment.push(("OCI_MODEL_CSI_ABORT_AT", step.to_owned()));
    let uri = model.uri();
    let mut import = commands.spawn(&["import", directory.to_str().unwrap(), &uri, "--move"]);
    stopped(import.id().unwrap()).await;
    node.disk.write_back(written);
    node.disk.cut_power();
    node.cuts += 1;
    import.kill().await.unwrap();
    node.boot().await;
    for (name, bytes) in try_content_of(&directory).unwrap() {
        assert!(model.content[&name] == bytes, "{step}, {written:?}: {name} is torn");
    }
    fs::remove_dir_all(&directory).unwrap();
    node.check(&[], &format!("{step}, {written:?}")).await;
}

async fn cut_at_random(kind: Kind, scratch: &Path) {
    let Some(mut node) = Node::start(kind, scratch).await else { return };
    let mut running = Vec::new();
    for round in 0..rounds(15) {
        for _ in 0..YOUNG {
            node.change();
        }
        let models: Vec<Model> = node.young.iter().chain([&node.old]).cloned().collect();
        let kubelet = node.driver.kubelet();
        let load = Load::start(1..=PODS, running, &models, &kubelet, &mut node.random);
        tokio::time::sleep(node.random.up_to(Duration::from_millis(300))).await;
        load.over();
        let written = *node.random.one_of(&Written::ALL);
        node.die(written).await;
        let left = load.end().await;
        let asked = left.into_iter().filter_map(State::volume).collect::<Vec<Volume>>();
        node.boot().await;
        running = Vec::new();
        for volume in asked {
            // After the boot, only the directory of the pod is left.
            if node.random.below(2) == 0 {
                volume.mount().await;
                let model = models.iter().find(|model| model.is_of(&volume)).unwrap();
                running.push(Pod::start(volume, model));
            } else {
                volume.unpublish().await.unwrap();
            }
        }
        node.check(&running, &format!("power loss {round}")).await;
    }
    node.report("at random instants");
}

#[test]
fn a_power_loss_at_any_step_on_ext4_tears_nothing_and_loses_nothing_old() {
    end_to_end_within(LIMIT, async |scratch| cut_at_each_step(Kind::Ext4, scratch).await);
}

#[test]
fn a_power_loss_at_any_step_on_xfs_tears_nothing_and_loses_nothing_old() {
    end_to_end_within(LIMIT, async |scratch| cut_at_each_step(Kind::Xfs, scratch).await);
}

#[test]
fn power_losses_at_random_instants_on_ext4_tear_nothing_and_lose_nothing_old() {
    end_to_end_within(LIMIT, async |scratch| cut_at_random(Kind::Ext4, scratch).await);
}

#[test]
fn power_losses_at_random_instants_on_xfs_tear_nothing_and_lose_nothing_old() {
    end_to_end_within(LIMIT, async |scratch| cut_at_random(Kind::Xfs, scratch).await);
}

#[test]
fn a_power_loss_in_the_first_moments_of_a_cache_does_not_prevent_the_next_start() {
    end_to_end_within(LIMIT, async |scratch| {
        let kinds = [Kind::Ext4, Kind::Xfs].into_iter();
        for (kind, written) in kinds.flat_map(|kind| Written::ALL.map(|written| (kind, written))) {
            let when = format!("{kind:?}-{written:?}");
            let scratch = scratch.join(&when);
            fs::create_dir(&scratch).unwrap();
            let Some(disk) = LoopFs::mounted(kind, &scratch) else { return };
            let store = LocalStore::builder().start().unwrap();
            let model = Model::upload(&store, "new", 1, &SHARDS);
            let mut setup = Setup::new(&scratch, &store).with_config(CONFIG);
            setup.cache = disk.directory().join("cache");
            let mut driver = setup.start().await;
            let idle = Descriptors::of_idle(&driver).await;
            disk.write_back(written);
            disk.cut_power();
            driver.kill().await;
            disk.remount(&scratch.join("kubelet")).await;
            driver.restart_to(None).await;
            let mut tally = Tally::default();
            check_invariants(&driver, &[], &[&model], idle, &mut tally).await;
            tally.assert_clean(&when);
        }
    });
}
