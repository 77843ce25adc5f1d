use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;

const BOUND: Duration = Duration::from_secs(20);

/// A gate whose requests end when the test says so.
struct Scene {
    gate: Gate,
    entered: mpsc::UnboundedReceiver<(&'static str, Slot)>,
    report: mpsc::UnboundedSender<(&'static str, Slot)>,
    tasks: JoinSet<()>,
}

impl Scene {
    fn new(most: usize) -> Self {
        let (report, entered) = mpsc::unbounded_channel();
        Self { gate: Gate::new(most), entered, report, tasks: JoinSet::new() }
    }

    /// So many requests of one object come to the gate, and wait there.
    async fn come(&mut self, name: &'static str, requests: usize, visitor: &Visitor) {
        for _ in 0..requests {
            let (gate, visitor, report) = (self.gate.clone(), visitor.clone(), self.report.clone());
            self.tasks.spawn(async move {
                let slot = gate.enter(&visitor).await;
                let _ = report.send((name, slot));
            });
            tokio::task::yield_now().await;
        }
    }

    /// Who was admitted next.
    async fn next(&mut self) -> (&'static str, Slot) {
        tokio::time::timeout(BOUND, self.entered.recv()).await.unwrap().unwrap()
    }

    /// Who is admitted in which order, if each ends before the next begins.
    async fn order(&mut self, count: usize) -> Vec<&'static str> {
        let mut names = Vec::new();
        for _ in 0..count {
            let (name, slot) = self.next().await;
            names.push(name);
            drop(slot);
        }
        names
    }
}

fn object(share: &Share, size: u64) -> Visitor {
    Visitor::new(Demand::of(share.clone()), size)
}

#[tokio::test]
async fn throttling_halves_and_successes_raise_step_by_step() {
    let (gate, visitor) = (Gate::new(8), object(&Share::urgent(), 1));
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(gate.enter(&visitor).await);
    }
    gate.throttled();
    assert_eq!(gate.limit(), 4);
    held.truncate(4);
    let fifth = tokio::time::timeout(Duration::from_millis(1), gate.enter(&visitor));
    assert!(fifth.await.is_err(), "four run, and no more may");
    held.clear();
    gate.throttled();
    gate.throttled();
    gate.throttled();
    assert_eq!(gate.limit(), 1, "never zero");
    for _ in 0..SUCCESSES_PER_STEP * 20 {
        drop(gate.enter(&visitor).await);
        gate.succeeded();
    }
    assert_eq!(gate.limit(), 8, "and never above what is configured");
    for _ in 0..8 {
        held.push(gate.enter(&visitor).await);
    }
    assert_eq!(gate.lock().running, 8);
}

#[tokio::test]
async fn a_limit_that_is_raised_admits_who_waits() {
    let mut scene = Scene::new(2);
    let visitor = object(&Share::urgent(), 1);
    scene.gate.throttled();
    scene.come("a", 2, &visitor).await;
    let (_, first) = scene.next().await;
    assert!(scene.entered.is_empty());
    for _ in 0..SUCCESSES_PER_STEP {
        scene.gate.succeeded();
    }
    let (_, second) = scene.next().await;
    drop((first, second));
}

#[tokio::test]
async fn a_pod_that_waits_overtakes_a_prefetch_at_the_end_of_its_range() {
    let mut scene = Scene::new(1);
    scene.come("prefetch", 3, &object(&Share::background(), 1)).await;
    let (running, slot) = scene.next().await;
    scene.come("pod", 2, &object(&Share::urgent(), 1 << 40)).await;
    assert!(running == "prefetch" && scene.entered.is_empty(), "what runs is not interrupted");
    drop(slot);
    assert_eq!(scene.order(4).await, ["pod", "pod", "prefetch", "prefetch"]);
}

#[tokio::test]
async fn a_prefetch_that_a_pod_joins_moves_up() {
    let mut scene = Scene::new(1);
    let (joined, other) = (Share::background(), Share::background());
    scene.come("other", 3, &object(&other, 1)).await;
    scene.come("joined", 3, &object(&joined, 1)).await;
    let (_, slot) = scene.next().await;
    joined.raise();
    drop(slot);
    assert_eq!(scene.order(5).await, ["joined", "joined", "joined", "other", "other"]);
}

#[tokio::test]
async fn an_object_of_a_prefetch_that_a_pods_model_needs_too_is_as_urgent_as_that() {
    let mut scene = Scene::new(1);
    let (prefetch, pod) = (Share::background(), Share::urgent());
    let shared = Visitor::new(Demand::of(prefetch.clone()), 1 << 30);
    scene.come("prefetch", 3, &object(&prefetch, 1)).await;
    scene.come("shared", 2, &shared).await;
    shared.demand.join(&pod);
    let (_, slot) = scene.next().await;
    drop(slot);
    assert_eq!(scene.order(4).await, ["shared", "shared", "prefetch", "prefetch"]);
}

#[tokio::test]
async fn two_models_share_the_connections_evenly_whatever_each_asks_for() {
    let mut scene = Scene::new(8);
    // One model of many objects with many ranges, here before the other.
    let (large, small) = (Share::urgent(), Share::urgent());
    for _ in 0..10 {
        scene.come("large", 20, &object(&large, 1 << 30)).await;
    }
    let mut running = Vec::new();
    for _ in 0..8 {
        running.push(scene.next().await);
    }
    scene.come("small", 40, &object(&small, 1 << 20)).await;
    let mut admitted = [0, 0];
    for turn in 0..60 {
        running.remove(turn % 8);
        let next = scene.next().await;
        admitted[usize::from(next.0 == "small")] += 1;
        running.insert(turn % 8, next);
        if turn >= 8 {
            assert_eq!((large.running(), small.running()), (4, 4), "after {turn} turns");
        }
    }
    assert!(admitted[1] >= 30, "the late one got as many turns: {admitted:?}");
}

#[tokio::test]
async fn models_take_turns_where_one_request_may_run() {
    let mut scene = Scene::new(1);
    for name in ["a", "b", "c"] {
        scene.come(name, 4, &object(&Share::urgent(), 1)).await;
    }
    let order = scene.order(12).await;
    for turns in order.chunks(3) {
        assert_eq!(turns, ["a", "b", "c"], "{order:?}");
    }
}

#[tokio::test]
async fn small_objects_of_a_model_come_first() {
    let mut scene = Scene::new(1);
    let share = Share::urgent();
    scene.come("shard", 3, &object(&share, 5 << 30)).await;
    let (_, slot) = scene.next().await;
    scene.come("tokenizer", 1, &object(&share, 2 << 20)).await;
    scene.come("config", 1, &object(&share, 700)).await;
    drop(slot);
    assert_eq!(scene.order(4).await, ["config", "tokenizer", "shard", "shard"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_goes_away_takes_no_place_along() {
    const MOST: usize = 3;
    let gate = Gate::new(MOST);
    let shares: Vec<Share> = (0..4).map(|_| Share::urgent()).collect();
    let most = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for n in 0..600_u64 {
        let visitor = object(&shares[usize::try_from(n % 4).unwrap()], n % 5);
        let (gate, most) = (gate.clone(), Arc::clone(&most));
        let visit = async move {
            let slot = gate.enter(&visitor).await;
            most.fetch_max(gate.lock().running, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_micros(n % 7 * 50)).await;
            drop(slot);
        };
        // Two of three give up, at all kinds of moments.
        tasks.spawn(async move {
            if n % 3 == 0 {
                visit.await;
            } else {
                let patience = Duration::from_micros(n * 37 % 20_000);
                tokio::select! { biased; () = tokio::time::sleep(patience) => {}, () = visit => {} }
            }
        });
    }
    while let Some(done) = tokio::time::timeout(BOUND, tasks.join_next()).await.unwrap() {
        done.unwrap();
    }
    assert_eq!(most.load(Ordering::Relaxed), MOST);
    assert!(gate.lock().running == 0 && gate.lock().lines.is_empty());
    assert!(shares.iter().all(|share| share.running() == 0));
    let visitor = object(&shares[0], 1);
    let all = futures_util::future::join_all((0..MOST).map(|_| gate.enter(&visitor)));
    assert_eq!(tokio::time::timeout(BOUND, all).await.unwrap().len(), MOST);
}
