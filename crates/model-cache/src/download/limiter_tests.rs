use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use oci_model_csi_foundation::sync::interleave::{Work, poll_for, random, run_on_tokio, switch};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::buckets::SUCCESSES_PER_STEP;
use super::*;
use crate::download::fair_share::Interest;
use crate::source::Bucket;

const BOUND: Duration = Duration::from_secs(20);

/// A limiter whose requests end when the test says so.
struct LimiterScene {
    limiter: ConcurrencyLimiter,
    entered: mpsc::UnboundedReceiver<(&'static str, RequestPermit)>,
    report: mpsc::UnboundedSender<(&'static str, RequestPermit)>,
    tasks: JoinSet<()>,
}

impl LimiterScene {
    fn new(most: usize) -> Self {
        let (report, entered) = mpsc::unbounded_channel();
        Self { limiter: fixed(most), entered, report, tasks: JoinSet::new() }
    }

    /// Adds requests of one object to the limiter, where they wait.
    async fn add(&mut self, name: &'static str, requests: usize, download: &ObjectDownload) {
        for _ in 0..requests {
            let (limiter, download, report) =
                (self.limiter.clone(), download.clone(), self.report.clone());
            self.tasks.spawn(async move {
                let slot = limiter.enter(&download).await;
                let _ = report.send((name, slot));
            });
            tokio::task::yield_now().await;
        }
    }

    /// The request that is admitted next.
    async fn next(&mut self) -> (&'static str, RequestPermit) {
        tokio::time::timeout(BOUND, self.entered.recv()).await.unwrap().unwrap()
    }

    /// The order of admission, if each request ends before the next begins.
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

fn fixed(most: usize) -> ConcurrencyLimiter {
    ConcurrencyLimiter::new(Concurrency::Fixed(most), Arc::default())
}

fn object(share: &FairShare, size: u64) -> ObjectDownload {
    object_in("bucket", share, size)
}

fn object_in(bucket: &str, share: &FairShare, size: u64) -> ObjectDownload {
    ObjectDownload::new(Interest::of(share.clone()), size, 0, origin(bucket))
}

fn origin(bucket: &str) -> Arc<Origin> {
    Arc::new(Origin { location: "here".to_owned(), bucket: Bucket::new("ns", bucket) })
}

fn share_of(namespace: &str) -> FairShare {
    let share = FairShare::urgent();
    share.add_tenant(&Tenant::of_namespace(namespace));
    share
}

#[tokio::test]
async fn throttling_halves_and_successes_raise_step_by_step() {
    let (limiter, download) = (fixed(8), object(&FairShare::urgent(), 1));
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(limiter.enter(&download).await);
    }
    limiter.throttled(&download);
    assert_eq!(limiter.limit(&download), 4);
    held.truncate(4);
    let fifth = tokio::time::timeout(Duration::from_millis(1), limiter.enter(&download));
    assert!(fifth.await.is_err(), "four run, and no more may");
    held.clear();
    limiter.throttled(&download);
    limiter.throttled(&download);
    limiter.throttled(&download);
    assert_eq!(limiter.limit(&download), 1, "never zero");
    for _ in 0..SUCCESSES_PER_STEP * 20 {
        drop(limiter.enter(&download).await);
        limiter.succeeded(&download);
    }
    assert_eq!(limiter.limit(&download), 8, "and never above what is configured");
    for _ in 0..8 {
        held.push(limiter.enter(&download).await);
    }
    assert_eq!(limiter.lock().running.len(), 8);
}

#[tokio::test]
async fn a_raised_limit_admits_a_waiting_request() {
    let mut scene = LimiterScene::new(2);
    let download = object(&FairShare::urgent(), 1);
    scene.limiter.throttled(&download);
    scene.add("a", 2, &download).await;
    let (_, first) = scene.next().await;
    assert!(scene.entered.is_empty());
    for _ in 0..SUCCESSES_PER_STEP {
        scene.limiter.succeeded(&download);
    }
    let (_, second) = scene.next().await;
    drop((first, second));
}

#[tokio::test]
async fn a_pod_that_waits_overtakes_a_prefetch_at_the_end_of_its_range() {
    let mut scene = LimiterScene::new(1);
    scene.add("prefetch", 3, &object(&FairShare::background(), 1)).await;
    let (running, slot) = scene.next().await;
    scene.add("pod", 2, &object(&FairShare::urgent(), 1 << 40)).await;
    assert!(running == "prefetch" && scene.entered.is_empty(), "what runs is not interrupted");
    drop(slot);
    assert_eq!(scene.order(4).await, ["pod", "pod", "prefetch", "prefetch"]);
}

#[tokio::test]
async fn a_prefetch_that_a_pod_joins_moves_up() {
    let mut scene = LimiterScene::new(1);
    let (joined, other) = (FairShare::background(), FairShare::background());
    scene.add("other", 3, &object(&other, 1)).await;
    scene.add("joined", 3, &object(&joined, 1)).await;
    let (_, slot) = scene.next().await;
    joined.make_urgent();
    drop(slot);
    assert_eq!(scene.order(5).await, ["joined", "joined", "joined", "other", "other"]);
}

#[tokio::test]
async fn an_object_of_a_prefetch_that_a_pods_model_needs_too_is_as_urgent_as_that() {
    let mut scene = LimiterScene::new(1);
    let (prefetch, pod) = (FairShare::background(), FairShare::urgent());
    let shared = object(&prefetch, 1 << 30);
    scene.add("prefetch", 3, &object(&prefetch, 1)).await;
    scene.add("shared", 2, &shared).await;
    shared.interest.join(&pod);
    let (_, slot) = scene.next().await;
    drop(slot);
    assert_eq!(scene.order(4).await, ["shared", "shared", "prefetch", "prefetch"]);
}

#[tokio::test]
async fn two_models_share_the_connections_evenly_whatever_each_asks_for() {
    let mut scene = LimiterScene::new(8);
    // One model of many objects with many ranges, here before the other.
    let (large, small) = (FairShare::urgent(), FairShare::urgent());
    for _ in 0..10 {
        scene.add("large", 20, &object(&large, 1 << 30)).await;
    }
    let mut running = Vec::new();
    for _ in 0..8 {
        running.push(scene.next().await);
    }
    scene.add("small", 40, &object(&small, 1 << 20)).await;
    let mut admitted = [0, 0];
    for turn in 0..60 {
        running.remove(turn % 8);
        let next = scene.next().await;
        admitted[usize::from(next.0 == "small")] += 1;
        running.insert(turn % 8, next);
        if turn >= 8 {
            let running = (scene.limiter.running(&large), scene.limiter.running(&small));
            assert_eq!(running, (4, 4), "after {turn} turns");
        }
    }
    assert!(admitted[1] >= 30, "the late one got as many turns: {admitted:?}");
}

#[tokio::test]
async fn models_take_turns_where_one_request_may_run() {
    let mut scene = LimiterScene::new(1);
    for name in ["a", "b", "c"] {
        scene.add(name, 4, &object(&FairShare::urgent(), 1)).await;
    }
    let order = scene.order(12).await;
    for turns in order.chunks(3) {
        assert_eq!(turns, ["a", "b", "c"], "{order:?}");
    }
}

#[tokio::test]
async fn small_objects_of_a_model_come_first() {
    let mut scene = LimiterScene::new(1);
    let share = FairShare::urgent();
    scene.add("shard", 3, &object(&share, 5 << 30)).await;
    let (_, slot) = scene.next().await;
    scene.add("tokenizer", 1, &object(&share, 2 << 20)).await;
    scene.add("config", 1, &object(&share, 700)).await;
    drop(slot);
    assert_eq!(scene.order(4).await, ["config", "tokenizer", "shard", "shard"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_that_is_dropped_keeps_no_permit() {
    const MOST: usize = 3;
    let limiter = fixed(MOST);
    let shares: Vec<FairShare> = (0..4).map(|_| FairShare::urgent()).collect();
    let most = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for n in 0..600_u64 {
        let download = object(&shares[usize::try_from(n % 4).unwrap()], n % 5);
        let (limiter, most) = (limiter.clone(), Arc::clone(&most));
        let visit = async move {
            let slot = limiter.enter(&download).await;
            most.fetch_max(limiter.lock().running.len(), Ordering::Relaxed);
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
    assert!(limiter.lock().running.is_empty() && limiter.lock().lines.is_empty());
    assert!(shares.iter().all(|share| limiter.running(share) == 0));
    let download = object(&shares[0], 1);
    let all = futures_util::future::join_all((0..MOST).map(|_| limiter.enter(&download)));
    assert_eq!(tokio::time::timeout(BOUND, all).await.unwrap().len(), MOST);
}

#[tokio::test]
async fn one_buckets_throttling_leaves_the_other_buckets_their_requests() {
    let mut scene = LimiterScene::new(8);
    let share = FairShare::urgent();
    let (throttled, other) = (object_in("a", &share, 1), object_in("b", &share, 2));
    for _ in 0..5 {
        scene.limiter.throttled(&throttled);
    }
    scene.add("a", 4, &throttled).await;
    scene.add("b", 7, &other).await;
    let mut running = Vec::new();
    for _ in 0..8 {
        running.push(scene.next().await);
    }
    assert_eq!(running.iter().filter(|(name, _)| *name == "a").count(), 1);
    assert_eq!((scene.limiter.limit(&throttled), scene.limiter.limit(&other)), (1, 8));
}

#[tokio::test]
async fn tenants_share_the_connections_evenly_however_many_models_each_has() {
    let mut scene = LimiterScene::new(4);
    for _ in 0..6 {
        scene.add("many", 10, &object(&share_of("many"), 1)).await;
    }
    let mut running = Vec::new();
    for _ in 0..4 {
        running.push(scene.next().await);
    }
    scene.add("one", 10, &object(&share_of("one"), 1 << 30)).await;
    for turn in 0..12 {
        running.remove(0);
        running.push(scene.next().await);
        let one = running.iter().filter(|(name, _)| *name == "one").count();
        assert!(turn < 4 || one == 2, "{one} of 4 after {turn} turns");
    }
}

/// Requests that end when they are asked to give way, and return after `pause`.
async fn trickle(
    limiter: ConcurrencyLimiter,
    download: ObjectDownload,
    gave_way: Arc<AtomicUsize>,
) {
    loop {
        let slot = limiter.enter(&download).await;
        slot.flow().waiting(slot.preempted()).await;
        gave_way.fetch_add(1, Ordering::Relaxed);
        drop(slot);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_trickle_give_their_slots_to_others_within_a_second() {
    // As one tenant's two buckets, and as two tenants'.
    for namespace in ["same", "other"] {
        let (limiter, gave_way) = (fixed(16), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        let slow = object_in("slow", &share_of("same"), 1 << 30);
        for _ in 0..64 {
            tasks.spawn(trickle(limiter.clone(), slow.clone(), Arc::clone(&gave_way)));
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(gave_way.load(Ordering::Relaxed), 0, "no other download waits");
        let victim = object_in("good", &share_of(namespace), 2);
        let started = Instant::now();
        let mut held = vec![limiter.enter(&victim).await];
        assert!(started.elapsed() <= Duration::from_secs(1), "{:?}", started.elapsed());
        for _ in 0..7 {
            held.push(limiter.enter(&victim).await);
        }
        assert!(started.elapsed() <= Duration::from_secs(5), "{:?}", started.elapsed());
        assert!(limiter.limit(&slow) < 16, "the bucket has fewer requests for a while");
    }
}

#[tokio::test(start_paused = true)]
async fn many_slow_tenants_leave_half_of_the_slots_to_one_that_is_not() {
    let (limiter, gave_way) = (fixed(16), Arc::new(AtomicUsize::new(0)));
    let mut tasks = JoinSet::new();
    for n in 0..30 {
        let share = share_of(&format!("slow-{n}"));
        for _ in 0..4 {
            let slow = object_in(&format!("slow-{n}"), &share, 1 << 30);
            tasks.spawn(trickle(limiter.clone(), slow, Arc::clone(&gave_way)));
        }
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (victim, ranges) =
        (object_in("good", &share_of("good"), 1 << 30), Arc::new(AtomicUsize::new(0)));
    for _ in 0..16 {
        let (limiter, victim, ranges) = (limiter.clone(), victim.clone(), Arc::clone(&ranges));
        tasks.spawn(async move {
            loop {
                let slot = limiter.enter(&victim).await;
                tokio::select! {
                    () = slot.preempted() => {}
                    () = tokio::time::sleep(Duration::from_millis(200)) => {
                        ranges.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(ranges.load(Ordering::Relaxed) > 0, "it waits for no queue of the others");
    tokio::time::sleep(Duration::from_secs(30)).await;
    // Alone it would be 80 a second.
    let ranges = ranges.load(Ordering::Relaxed);
    assert!(ranges >= 30 * 20, "{ranges} ranges in 33 s");
}

#[tokio::test(start_paused = true)]
async fn a_slow_line_is_shared_and_nothing_goes_back_and_forth() {
    let (limiter, gave_way) = (fixed(8), Arc::new(AtomicUsize::new(0)));
    let mut tasks = JoinSet::new();
    for namespace in ["a", "b"] {
        let download = object_in(namespace, &share_of(namespace), 1 << 30);
        for _ in 0..16 {
            tasks.spawn(trickle(limiter.clone(), download.clone(), Arc::clone(&gave_way)));
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let before = gave_way.load(Ordering::Relaxed);
    assert!((1..=8).contains(&before), "{before} gave way to the second one");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(gave_way.load(Ordering::Relaxed) <= before + 2, "{gave_way:?} after {before}");
}

#[tokio::test(start_paused = true)]
async fn a_fast_request_keeps_its_slot_beside_as_many_of_another_tenant() {
    let mut scene = LimiterScene::new(2);
    scene.add("a", 4, &object_in("a", &share_of("a"), 1)).await;
    scene.add("b", 4, &object_in("b", &share_of("b"), 1)).await;
    let first = scene.next().await;
    let second = scene.next().await;
    // Of one tenant, as the other one came later.
    assert_eq!((first.0, second.0), ("a", "a"));
    tokio::time::timeout(BOUND, second.1.preempted()).await.unwrap();
    drop(second);
    let second = scene.next().await;
    assert_eq!(second.0, "b");
    let kept = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::select! { () = first.1.preempted() => {}, () = second.1.preempted() => {} }
    });
    assert!(kept.await.is_err());
}

#[test]
fn in_any_order_no_permit_is_granted_twice_or_lost() {
    for seed in 0..300 {
        let (limiter, running) = (fixed(2), AtomicUsize::new(0));
        let wants = || {
            let bucket = ["one", "two"][usize::try_from(random(2)).unwrap()];
            let download = object_in(bucket, &share_of("a"), 1);
            for _ in 0..3 {
                // Some requests are dropped before they are admitted.
                let polls = [1, 2, u64::MAX][usize::try_from(random(3)).unwrap()];
                let Some(permit) = poll_for(polls, limiter.enter(&download)) else { continue };
                let others = running.fetch_add(1, Ordering::Relaxed);
                assert!(others < 2, "seed {seed}: {others} others have a permit");
                (0..20).for_each(|_| switch());
                running.fetch_sub(1, Ordering::Relaxed);
                drop(permit);
            }
        };
        run_on_tokio(seed, (0..4).map(|_| -> Work<'_> { Box::new(wants) }).collect());
        assert!(limiter.lock().running.is_empty(), "seed {seed}: a permit was lost");
    }
}

#[tokio::test]
async fn shards_come_in_their_order_and_a_further_request_of_one_after_the_streams_of_the_others() {
    let share = FairShare::urgent();
    let shard = |position| {
        ObjectDownload::new(Interest::of(share.clone()), 5 << 30, position, origin("bucket"))
    };
    let (second, first) = (shard(1), shard(0));
    first.set_streams(Some(2));
    let mut scene = LimiterScene::new(1);
    let held = scene.limiter.enter(&object(&share, 1)).await;
    scene.add("second", 2, &second).await;
    scene.add("first", 3, &first).await;
    drop(held);
    // One at a time: the first shard never has two requests.
    assert_eq!(scene.order(5).await, ["first", "first", "first", "second", "second"]);

    let mut scene = LimiterScene::new(8);
    let mut permits = Vec::new();
    for _ in 0..8 {
        permits.push(scene.limiter.enter(&object(&share, 1)).await);
    }
    scene.add("second", 2, &second).await;
    scene.add("first", 3, &first).await;
    drop(permits);
    let mut order = Vec::new();
    let mut held = Vec::new();
    for _ in 0..5 {
        let (name, permit) = scene.next().await;
        order.push(name);
        held.push(permit);
    }
    order.truncate(4);
    order.sort_unstable();
    assert_eq!(order, ["first", "first", "second", "second"], "two streams of the first");
}

#[tokio::test]
async fn a_request_takes_a_part_of_the_rest_only_where_no_other_object_could_use_the_connection() {
    let limiter = fixed(2);
    let (mine, other) = (object(&FairShare::urgent(), 1), object(&FairShare::urgent(), 1));
    let size = |share| RequestSize { ranges: 1, share };
    assert_eq!(limiter.request_size(&mine, 1 << 20), size(Some(2)));
    let held = [limiter.enter(&mine).await, limiter.enter(&mine).await];
    let waiting = limiter.enter(&other);
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(Duration::from_millis(1), &mut waiting).await.is_err());
    assert_eq!(limiter.request_size(&mine, 1 << 20), size(None));
    drop(held);
    drop(waiting.await);
    assert_eq!(limiter.request_size(&mine, 1 << 20), size(Some(2)));
    limiter.throttled(&mine);
    assert_eq!(limiter.request_size(&mine, 1 << 20), size(None), "its bucket is throttled");
}
