use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oci_model_csi_foundation::sync::interleave::{Work, poll_for, random, run_on_tokio, switch};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;
use crate::source::Bucket;

const BOUND: Duration = Duration::from_secs(20);

/// Models that wait for a slot, and report when they get it.
struct SlotsScene {
    slots: Slots,
    started: mpsc::UnboundedReceiver<(&'static str, DownloadSlot)>,
    report: mpsc::UnboundedSender<(&'static str, DownloadSlot)>,
    tasks: JoinSet<()>,
}

impl SlotsScene {
    fn new(most: usize) -> Self {
        let (report, started) = mpsc::unbounded_channel();
        Self { slots: Slots::new(most), started, report, tasks: JoinSet::new() }
    }

    async fn request(&mut self, name: &'static str, priority: Priority) -> FairShare {
        self.request_from("bucket", name, priority).await
    }

    async fn request_from(
        &mut self,
        bucket: &str,
        name: &'static str,
        priority: Priority,
    ) -> FairShare {
        self.request_with(bucket, name, priority, false).await
    }

    /// Requests a slot for a large model.
    async fn request_large(&mut self, name: &'static str, priority: Priority) -> FairShare {
        self.request_with("bucket", name, priority, true).await
    }

    async fn request_with(
        &mut self,
        bucket: &str,
        name: &'static str,
        priority: Priority,
        large: bool,
    ) -> FairShare {
        let share = priority.share();
        let (slots, report) = (self.slots.clone(), self.report.clone());
        let bucket = Bucket::new("ns", bucket);
        let origin = Arc::new(Origin { location: "here".to_owned(), bucket });
        let model = Candidate { share: share.clone(), origin, large };
        self.tasks.spawn(async move {
            let slot = slots.take(&model).await;
            let _ = report.send((name, slot));
        });
        run_pending_tasks().await;
        share
    }

    async fn next(&mut self) -> (&'static str, DownloadSlot) {
        tokio::time::timeout(BOUND, self.started.recv()).await.unwrap().unwrap()
    }

    /// Whether no further model has got a slot.
    async fn none_started(&self) -> bool {
        run_pending_tasks().await;
        self.started.is_empty()
    }
}

fn pod() -> Priority {
    Priority::Pod(Tenant::Unknown)
}

fn pod_of(namespace: &str) -> Priority {
    Priority::Pod(Tenant::of_namespace(namespace))
}

/// Waits until the slot must be yielded.
async fn wait_until_asked_to_yield(slot: &DownloadSlot) {
    tokio::time::timeout(2 * LARGE_TURN, slot.asked_to_yield()).await.expect("it must yield");
}

/// Lets all tasks run until they wait.
async fn run_pending_tasks() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn models_beyond_the_limit_wait_in_order_of_arrival() {
    let mut scene = SlotsScene::new(2);
    for name in ["1", "2", "3", "4"] {
        scene.request(name, pod()).await;
    }
    let (first, second) = (scene.next().await, scene.next().await);
    assert_eq!((first.0, second.0), ("1", "2"));
    assert!(scene.none_started().await);
    drop(second);
    let third = scene.next().await;
    assert!(third.0 == "3" && scene.none_started().await);
    drop((first, third));
    assert_eq!(scene.next().await.0, "4");
}

#[tokio::test]
async fn pods_do_not_wait_for_prefetches_but_prefetches_wait_for_all() {
    let mut scene = SlotsScene::new(2);
    for name in ["prefetch 1", "prefetch 2", "prefetch 3"] {
        scene.request(name, Priority::Prefetch).await;
    }
    let prefetches = [scene.next().await, scene.next().await];
    assert!(scene.none_started().await);
    for name in ["pod 1", "pod 2", "pod 3"] {
        scene.request(name, pod()).await;
    }
    let pods = [scene.next().await, scene.next().await];
    assert_eq!((pods[0].0, pods[1].0), ("pod 1", "pod 2"), "beside both prefetches");
    assert!(scene.none_started().await, "as many pods' models as configured");
    drop(prefetches);
    assert!(scene.none_started().await, "the slots belong to the pods now");
    let [first, second] = pods;
    drop(first);
    assert_eq!(scene.next().await.0, "pod 3");
    drop(second);
    assert_eq!(scene.next().await.0, "prefetch 3");
}

#[tokio::test]
async fn a_prefetch_that_a_pod_joins_does_not_wait_for_other_prefetches() {
    let mut scene = SlotsScene::new(1);
    scene.request("running", Priority::Prefetch).await;
    let running = scene.next().await;
    scene.request("other", Priority::Prefetch).await;
    let joined = scene.request("joined", Priority::Prefetch).await;
    assert!(scene.none_started().await);
    joined.make_urgent();
    let started = scene.next().await;
    assert!(started.0 == "joined" && scene.none_started().await);
    drop((running, started));
    assert_eq!(scene.next().await.0, "other");
}

#[tokio::test]
async fn a_running_prefetch_that_a_pod_joins_counts_as_a_pods_model() {
    let mut scene = SlotsScene::new(1);
    let running = scene.request("running", Priority::Prefetch).await;
    let slot = scene.next().await;
    running.make_urgent();
    scene.request("pod", pod()).await;
    assert!(scene.none_started().await);
    drop(slot);
    assert_eq!(scene.next().await.0, "pod");
}

#[tokio::test]
async fn a_caller_that_leaves_keeps_no_slot() {
    let mut scene = SlotsScene::new(1);
    scene.request("1", pod()).await;
    let first = scene.next().await;
    for _ in 0..3 {
        scene.request("gone", pod()).await;
        scene.request("gone", Priority::Prefetch).await;
    }
    scene.tasks.abort_all();
    while scene.tasks.join_next().await.is_some() {}
    scene.request("2", pod()).await;
    drop(first);
    assert_eq!(scene.next().await.0, "2");
    // Its slot was dropped with the result of `next`.
    assert!(scene.slots.lock().holders.is_empty() && scene.slots.lock().waiting.is_empty());
}

#[tokio::test]
async fn tenants_and_within_them_buckets_take_turns() {
    let mut scene = SlotsScene::new(1);
    scene.request("a1", pod_of("a")).await;
    let (_, mut slot) = scene.next().await;
    for (bucket, name, namespace) in
        [("x", "a2", "a"), ("x", "a3", "a"), ("y", "a4 of another bucket", "a"), ("z", "b1", "b")]
    {
        scene.request_from(bucket, name, pod_of(namespace)).await;
    }
    let mut order = Vec::new();
    for _ in 0..4 {
        drop(slot);
        let next = scene.next().await;
        order.push(next.0);
        slot = next.1;
    }
    assert_eq!(order[0], "b1");
    assert!(order[1] == "a2" && order[2] == "a4 of another bucket", "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_cannot_keep_all_slots_while_another_one_waits() {
    let mut scene = SlotsScene::new(4);
    let mut held = Vec::new();
    for name in ["1", "2", "3", "4"] {
        let share = scene.request(name, pod_of("many")).await;
        // It counts as making progress.
        held.push((scene.next().await, share.own_work()));
    }
    scene.request("5", pod_of("many")).await;
    let started = Instant::now();
    let must_yield = tokio::time::timeout(2 * PATIENCE, held[3].0.1.asked_to_yield());
    assert!(must_yield.await.is_err(), "no other tenant waits");
    scene.request("one", pod_of("one")).await;
    held[3].0.1.asked_to_yield().await;
    assert!(started.elapsed() <= 5 * PATIENCE, "{:?}", started.elapsed());
    held.pop();
    let (name, _slot) = scene.next().await;
    assert_eq!(name, "one");
    scene.request("another", pod_of("another")).await;
    held[2].0.1.asked_to_yield().await;
    held.pop();
    assert_eq!(scene.next().await.0, "another");
}

#[tokio::test(start_paused = true)]
async fn a_stalled_model_yields_its_slot_and_a_paced_one_does_not() {
    let mut scene = SlotsScene::new(2);
    scene.request("stalled", pod()).await;
    let (_, stalled) = scene.next().await;
    let paced = scene.request("paced", pod()).await;
    let (_, slot) = scene.next().await;
    let pacing = paced.own_work();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let started = Instant::now();
    scene.request("waits", pod()).await;
    stalled.asked_to_yield().await;
    assert!(started.elapsed() <= Duration::from_secs(1), "{:?}", started.elapsed());
    drop(stalled);
    let (name, waited) = scene.next().await;
    assert_eq!(name, "waits");
    scene.request("next", pod()).await;
    let waiting = tokio::time::timeout(Duration::from_secs(60), slot.asked_to_yield());
    waited.asked_to_yield().await;
    assert!(waiting.await.is_err(), "our own pacing is progress");
    drop(pacing);
}

#[tokio::test(start_paused = true)]
async fn stalled_models_do_not_yield_to_each_other_all_the_time() {
    let slots = Slots::new(1);
    let yields = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..3 {
        let (slots, yields) = (slots.clone(), Arc::clone(&yields));
        let origin = Arc::new(Origin { location: String::new(), bucket: Bucket::new("n", "b") });
        tasks.spawn(async move {
            let model = Candidate { share: pod().share(), origin, large: false };
            let mut slot = slots.take(&model).await;
            loop {
                slot.asked_to_yield().await;
                yields.fetch_add(1, Ordering::Relaxed);
                slot = slots.take_again(&model, slot).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    let yields = yields.load(Ordering::Relaxed);
    assert!((6..=24).contains(&yields), "{yields} turns in five minutes");
}

#[tokio::test(start_paused = true)]
async fn only_one_large_model_downloads_at_a_time_and_small_ones_use_the_other_slots() {
    let mut scene = SlotsScene::new(4);
    let first = scene.request_large("large", pod_of("a")).await.own_work();
    let (_, slot) = scene.next().await;
    scene.request_large("large too", pod_of("a")).await;
    scene.request("small", pod_of("a")).await;
    let (name, _small) = scene.next().await;
    assert!(name == "small" && scene.none_started().await);
    drop((slot, first));
    assert_eq!(scene.next().await.0, "large too");
}

#[tokio::test(start_paused = true)]
async fn tenants_take_turns_with_large_models() {
    let mut scene = SlotsScene::new(4);
    // They count as making progress.
    let mut working = vec![scene.request_large("many", pod_of("many")).await.own_work()];
    let (_, first) = scene.next().await;
    for name in ["many 2", "many 3"] {
        working.push(scene.request_large(name, pod_of("many")).await.own_work());
    }
    tokio::time::sleep(LARGE_TURN).await;
    assert!(scene.none_started().await);
    let one = scene.request_large("one", pod_of("one")).await;
    working.push(one.own_work());
    let started = Instant::now();
    wait_until_asked_to_yield(&first).await;
    assert!(started.elapsed() <= 3 * PATIENCE, "{:?}", started.elapsed());
    drop(first);
    let (name, slot) = scene.next().await;
    assert_eq!(name, "one");
    // It has its turn, and another one after that of the other tenant.
    wait_until_asked_to_yield(&slot).await;
    assert!(started.elapsed() >= LARGE_TURN);
    let (slots, origin) = (
        scene.slots.clone(),
        Arc::new(Origin { location: String::new(), bucket: Bucket::new("n", "b") }),
    );
    let model = Candidate { share: one, origin, large: true };
    let again = tokio::spawn(async move { slots.take_again(&model, slot).await });
    let (name, second) = scene.next().await;
    assert_eq!(name, "many 2");
    wait_until_asked_to_yield(&second).await;
    drop(second);
    let again = tokio::time::timeout(BOUND, again).await.unwrap().unwrap();
    assert!(scene.none_started().await && started.elapsed() < 3 * LARGE_TURN);
    drop(again);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_or_prefetched_large_model_yields_to_a_pods() {
    let mut scene = SlotsScene::new(4);
    scene.request_large("prefetch", Priority::Prefetch).await;
    let (_, prefetch) = scene.next().await;
    scene.request_large("stalls", pod_of("a")).await;
    wait_until_asked_to_yield(&prefetch).await;
    drop(prefetch);
    let (name, stalled) = scene.next().await;
    assert_eq!(name, "stalls");
    scene.request_large("waits", pod_of("a")).await;
    wait_until_asked_to_yield(&stalled).await;
    drop(stalled);
    assert_eq!(scene.next().await.0, "waits");
}

#[test]
fn in_any_order_no_slot_is_granted_twice_or_lost() {
    for seed in 0..300 {
        let (slots, running) = (Slots::new(2), AtomicUsize::new(0));
        let wants = || {
            let origin =
                Origin { location: "here".to_owned(), bucket: Bucket::new("ns", "bucket") };
            let share = Priority::Pod(Tenant::of_namespace("a")).share();
            let model = Candidate { share, origin: Arc::new(origin), large: false };
            for _ in 0..3 {
                // Some callers leave before they get a slot.
                let polls = [1, 2, u64::MAX][usize::try_from(random(3)).unwrap()];
                let Some(slot) = poll_for(polls, slots.take(&model)) else { continue };
                let others = running.fetch_add(1, Ordering::Relaxed);
                assert!(others < 2, "seed {seed}: {others} others have a slot");
                (0..20).for_each(|_| switch());
                running.fetch_sub(1, Ordering::Relaxed);
                drop(slot);
            }
        };
        run_on_tokio(seed, (0..4).map(|_| -> Work<'_> { Box::new(wants) }).collect());
        assert!(slots.lock().holders.is_empty(), "seed {seed}: a slot was lost");
    }
}
