//! A node's life in fast motion: more models than the cache holds, pods that
//! come and go, new revisions, a store that fails, and a driver that is killed
//! again and again. Nothing may ever be wrong, and nothing may be left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::commands::Commands;
use crate::support::driver::{Driver, Setup, process_state, with_budget};
use crate::support::invariants::{
    Descriptors, Kind, Tally, Violation, allocated, check_invariants,
};
use crate::support::kubelet::{Kubelet, Volume};
use crate::support::models::MIB;
use crate::support::pods::{Model, Pod};
use crate::support::random::{Random, number, random_for};
use crate::support::run::{end_to_end_within, eventually, figure};
use localstore::{Action, LocalStore, Operation, Rule};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Code;

/// How long, in seconds; `.ci/run` takes the default.
const SECONDS: &str = "OCI_MODEL_CSI_TEST_SOAK_SECONDS";

const CONFIG: &str = "cache: {minFree: 1MiB, minFreeInodes: 0%}
download: {concurrency: 8, rangeSize: 1MiB, abandonAfter: 5s}
";

const MODELS: usize = 20;

/// A model and what the cache keeps beside its bytes.
const SHARDS: [u64; 2] = [2 * MIB + 5, MIB];
const MODEL: u64 = 3 * MIB + 256 * 1024;

/// Of so many models.
const BUDGET: u64 = 6 * MODEL;

/// Files that are written without admission: leases, indexes, journals.
const BESIDE: u64 = MIB / 2;

const PODS: u64 = 8;

/// Pods that stay between two episodes; others need space to be checked.
const STAY: usize = 3;

/// How long a pod may wait when there is room and nothing fails.
const SERVED: Duration = Duration::from_secs(60);

/// A temporary fault of Object Storage.
fn faults(random: &mut Random) -> Vec<Rule> {
    let on = |action, operation| Rule::new(action).operation(operation);
    let bytes = random.below(MIB);
    let all = [
        on(Action::status(503), Operation::Get).times(20),
        on(Action::status(503), Operation::List).times(5),
        on(Action::retry_after(429, 1), Operation::Get).times(4),
        on(Action::status(500), Operation::Head).times(4),
        on(Action::Disconnect, Operation::Get).times(6),
        on(Action::ResetAfter { bytes }, Operation::Get).times(6),
        on(Action::ShortBody { missing: bytes }, Operation::Get).times(3),
        on(Action::WrongRange, Operation::Get).times(2),
        on(Action::IgnoreRange, Operation::Get).times(2),
        on(Action::FlipByte { offset: bytes }, Operation::Get).times(2),
        on(Action::Latency { ms: 300 }, Operation::Get).times(30),
        on(Action::Bandwidth { bytes_per_sec: 4 * MIB }, Operation::Get),
    ];
    (0..random.below(4)).map(|_| random.one_of(&all).clone()).collect()
}

/// Every revision of every model, by its seed, the newest last.
type Revisions = Vec<Vec<u64>>;

/// What pods share, and what they count.
#[derive(Debug)]
struct World {
    revisions: Revisions,
    kubelet: Kubelet,
    /// Whether the driver will be killed, and forgets who waited.
    ends_with_kill: bool,
    over: AtomicBool,
    published: AtomicU64,
    stale: AtomicU64,
    no_room: AtomicU64,
    refused: AtomicU64,
    looks: AtomicU64,
}

/// What kubelet knows of a pod's volume.
#[derive(Debug)]
enum State {
    Gone,
    Starting(Volume, usize),
    Running(Pod),
    Leaving(Volume),
}

fn name(model: usize) -> String {
    format!("m{model}")
}

impl World {
    fn newest(&self, model: usize) -> Model {
        let seed = *self.revisions[model].last().expect("a revision");
        Model::new(&name(model), seed, &SHARDS)
    }

    /// The pod of a volume that was just published: what it shows has to be one
    /// revision, and may be an older one while Object Storage is away.
    fn pod(&self, volume: Volume, model: usize) -> Pod {
        let newest = self.newest(model);
        let shown = Model::seed_shown(&volume.target());
        let known = shown.filter(|seed| self.revisions[model].contains(seed));
        let revision = known.map_or(newest, |seed| Model::new(&name(model), seed, &SHARDS));
        self.stale.fetch_add(
            u64::from(known != self.revisions[model].last().copied()),
            Ordering::Relaxed,
        );
        Pod::start(volume, &revision)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// A pod that is created and deleted until the episode is over, and what it saw.
async fn live(
    number: u64,
    mut state: State,
    world: Arc<World>,
    mut random: Random,
) -> (State, Vec<Violation>) {
    let mut wrong = Vec::new();
    while !world.is_over() {
        tokio::time::sleep(random.up_to(Duration::from_millis(200))).await;
        state = match state {
            State::Gone => {
                let model = usize::try_from(random.below(MODELS as u64)).expect("an index");
                State::Starting(world.newest(model).volume(&world.kubelet, number), model)
            }
            State::Starting(volume, model) => match volume.publish().await {
                Ok(()) => {
                    world.published.fetch_add(1, Ordering::Relaxed);
                    State::Running(world.pod(volume, model))
                }
                Err(status) => {
                    let counter = match status.code() {
                        Code::ResourceExhausted => &world.no_room,
                        _ => &world.refused,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    // Some pods are deleted while they wait; a driver that lives on
                    // keeps their models for them for minutes.
                    if world.ends_with_kill && random.below(4) == 0 {
                        State::Leaving(volume)
                    } else {
                        State::Starting(volume, model)
                    }
                }
            },
            State::Running(pod) => {
                // The mount of a pod does not depend on the driver.
                wrong.extend(pod.look());
                world.looks.fetch_add(1, Ordering::Relaxed);
                if random.below(3) == 0 { State::Leaving(pod.end()) } else { State::Running(pod) }
            }
            State::Leaving(volume) => match volume.unpublish().await {
                Ok(()) => State::Gone,
                Err(_) => State::Leaving(volume),
            },
        };
    }
    (state, wrong)
}

/// Samples the space of the cache until the episode is over, and returns the
/// peak. The driver is stopped for each sample, which otherwise would count both
/// the old and the new files of a replacement.
async fn measure(pid: u32, cache: PathBuf, world: Arc<World>) -> u64 {
    let mut most = 0;
    while !world.is_over() {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let signal = |signal| kill(Pid::from_raw(pid.cast_signed()), signal);
        // It may be killed at any time, and then nothing of it runs either.
        if signal(Signal::SIGSTOP).is_ok() {
            while process_state(pid).is_some_and(|state| !"TZX".contains(state)) {
                tokio::task::yield_now().await;
            }
        }
        // The 256 directories of blobs/ are in no budget.
        let (blobs, fixed) = (cache.join("blobs"), Some(cache.as_path()));
        let now = allocated(&cache, |path, metadata| {
            metadata.is_file() || path.parent() != fixed && path.parent() != Some(&blobs)
        });
        let _ = signal(Signal::SIGCONT);
        most = most.max(now);
    }
    most
}

#[test]
fn a_node_under_constant_change_serves_no_wrong_byte_and_leaves_nothing() {
    let length = Duration::from_secs(number(SECONDS).unwrap_or(60));
    end_to_end_within(length * 2 + Duration::from_secs(120), async |scratch| {
        Soak::start(scratch).await.run(length).await;
    });
}

struct Soak {
    store: LocalStore,
    driver: Driver,
    idle: Descriptors,
    random: Random,
    revisions: Revisions,
    running: Vec<Pod>,
    tally: Tally,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    episodes: u64,
    kills: u64,
    published: u64,
    stale: u64,
    no_room: u64,
    refused: u64,
    looks: u64,
    evicted: u64,
    most: u64,
}

impl Soak {
    async fn start(scratch: &Path) -> Self {
        let store = LocalStore::builder().start().unwrap();
        let mut random = random_for("soak");
        let revisions: Revisions = (0..MODELS)
            .map(|model| {
                let seed = random.below(1 << 40);
                Model::upload(&store, &name(model), seed, &SHARDS);
                vec![seed]
            })
            .collect();
        let config = with_budget(CONFIG, BUDGET);
        let driver = Setup::new(scratch, &store).with_config(&config).start().await;
        let idle = Descriptors::of_idle(&driver).await;
        let (running, tally, counts) = (Vec::new(), Tally::default(), Counts::default());
        Self { store, driver, idle, random, revisions, running, tally, counts }
    }

    async fn run(mut self, length: Duration) {
        let started = Instant::now();
        while started.elapsed() < length {
            self.change();
            self.episode().await;
            self.check().await;
        }
        self.end().await;
    }

    /// Uploads a new revision of a model, or an old one again.
    fn change(&mut self) {
        let model = usize::try_from(self.random.below(MODELS as u64)).unwrap();
        let again = self.random.below(4) == 0;
        let seed = match again {
            true => *self.random.one_of(&self.revisions[model]),
            false => self.random.below(1 << 40),
        };
        Model::upload(&self.store, &name(model), seed, &SHARDS);
        self.revisions[model].push(seed);
    }

    /// Pods come and go for some seconds; often the driver is killed at the end.
    async fn episode(&mut self) {
        let mut kubelet = self.driver.kubelet();
        // A pod that waits for room is asked about soon.
        kubelet.deadline = Duration::from_secs(6);
        let world = Arc::new(World {
            revisions: self.revisions.clone(),
            kubelet,
            ends_with_kill: self.random.below(3) > 0,
            over: AtomicBool::new(false),
            published: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            no_room: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            looks: AtomicU64::new(0),
        });
        for rule in faults(&mut self.random) {
            self.store.faults().add(rule);
        }
        let (pid, cache) = (self.driver.pid(), self.driver.setup.cache.clone());
        let space = tokio::spawn(measure(pid, cache, Arc::clone(&world)));
        let mut pods = JoinSet::new();
        for pod in 1..=PODS {
            let at = self.running.iter().position(|running| running.volume.pod == pod.to_string());
            let state = at.map_or(State::Gone, |at| State::Running(self.running.swap_remove(at)));
            pods.spawn(live(pod, state, Arc::clone(&world), self.random.split()));
        }
        tokio::time::sleep(self.random.up_to(Duration::from_secs(5))).await;
        self.counts.evicted += self.evictions().await;
        world.over.store(true, Ordering::Relaxed);
        let most = space.await.unwrap();
        if world.ends_with_kill {
            self.driver.kill().await;
            self.counts.kills += 1;
        }
        let left = pods.join_all().await;
        self.store.faults().clear();
        if world.ends_with_kill {
            self.driver.restart_to(None).await;
        }
        self.settle(left, &world).await;
        self.count(&world, most);
    }

    /// Keeps some pods and ends the others; pods that waited end once they were served.
    async fn settle(&mut self, left: Vec<(State, Vec<Violation>)>, world: &World) {
        let mut waiting = Vec::new();
        for (state, wrong) in left {
            self.tally.violations.extend(wrong);
            let leaving = match state {
                State::Gone => continue,
                State::Running(pod) if self.running.len() < STAY => {
                    self.running.push(pod);
                    continue;
                }
                State::Starting(volume, _) if !world.ends_with_kill => {
                    waiting.push(volume);
                    continue;
                }
                State::Running(pod) => pod.end(),
                State::Starting(volume, _) | State::Leaving(volume) => volume,
            };
            leaving.unpublish().await.unwrap();
        }
        let mut served = JoinSet::new();
        for volume in waiting {
            served.spawn(async move {
                let in_time = timeout(SERVED, volume.mount()).await.is_ok();
                volume.unpublish().await.unwrap();
                in_time
            });
        }
        for in_time in served.join_all().await {
            if !in_time {
                let what = format!("a pod that waited for room had none after {SERVED:?}");
                self.tally.violations.push(Violation { kind: Kind::Refused, what });
            }
        }
    }

    fn count(&mut self, world: &World, most: u64) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &mut self.counts;
        counts.episodes += 1;
        counts.published += get(&world.published);
        counts.stale += get(&world.stale);
        counts.no_room += get(&world.no_room);
        counts.refused += get(&world.refused);
        counts.looks += get(&world.looks);
        counts.most = counts.most.max(most);
        if most > BUDGET + BESIDE {
            let what = format!("the cache took {most} bytes of {BUDGET}");
            self.tally.violations.push(Violation { kind: Kind::Space, what });
        }
    }

    async fn check(&mut self) {
        let some = [0; 2].map(|_| usize::try_from(self.random.below(MODELS as u64)).unwrap());
        let newest = |model: usize| {
            Model::new(&name(model), *self.revisions[model].last().unwrap(), &SHARDS)
        };
        let models = some.map(newest);
        let models: Vec<&Model> = models.iter().collect();
        let (driver, running, tally) = (&self.driver, &self.running, &mut self.tally);
        check_invariants(driver, running, &models, self.idle, tally).await;
    }

    async fn evictions(&self) -> u64 {
        let mut sum = 0;
        for reason in ["space", "watermark", "limit"] {
            let series = format!("cache_evictions_total{{reason=\"{reason}\"}}");
            sum += self.driver.metric(&series).await;
        }
        sum
    }

    /// Ends all pods and evicts all models: anything left is a leak.
    async fn end(mut self) {
        self.counts.evicted += self.evictions().await;
        for pod in std::mem::take(&mut self.running) {
            pod.end().unpublish().await.unwrap();
        }
        self.check().await;
        Commands::of(&self.driver.setup).text(&["gc", "--all"]).await;
        let cache = self.driver.setup.cache.clone();
        eventually("the trash is emptied", Duration::from_secs(30), async || {
            self.driver.in_cache("trash").is_empty().then_some(())
        })
        .await;
        let left = allocated(&cache, |path, metadata| {
            metadata.is_file() && path.parent() != Some(cache.as_path())
        });
        let blobs = allocated(&cache.join("blobs"), |path, metadata| {
            metadata.is_file() && path.extension().is_none()
        });
        if blobs > 0 || !self.driver.in_cache("models").is_empty() {
            let what = format!("{blobs} bytes of blobs are left, that no model needs");
            self.tally.violations.push(Violation { kind: Kind::Space, what });
        }
        figure(format_args!("soak: {:?}, of a budget of {BUDGET}", self.counts));
        figure(format_args!("soak: {}; {left} bytes of small files are left", self.tally));
        figure(format_args!("soak, violations by kind: {:?}", self.tally.by_kind()));
        assert!(self.counts.evicted > 0 && self.counts.kills > 0, "nothing happened");
        self.tally.assert_clean("a soak");
    }
}
