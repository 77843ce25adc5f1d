use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;
use crate::oci::Bucket;

const BOUND: Duration = Duration::from_secs(20);

/// Models that wait for a slot, and report when they have it.
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

    async fn come(&mut self, name: &'static str, asker: Priority) -> FairShare {
        self.come_from("bucket", name, asker).await
    }

    async fn come_from(&mut self, bucket: &str, name: &'static str, asker: Priority) -> FairShare {
        self.come_with(bucket, name, asker, false).await
    }

    /// Of very many files.
    async fn come_large(&mut self, name: &'static str, asker: Priority) -> FairShare {
        self.come_with("bucket", name, asker, true).await
    }

    async fn come_with(
        &mut self,
        bucket: &str,
        name: &'static str,
        asker: Priority,
        large: bool,
    ) -> FairShare {
        let share = asker.share();
        let (slots, report) = (self.slots.clone(), self.report.clone());
        let bucket = Bucket::new("ns", bucket);
        let origin = Arc::new(Origin { location: "here".to_owned(), bucket });
        let model = Candidate { share: share.clone(), origin, large };
        self.tasks.spawn(async move {
            let slot = slots.take(&model).await;
            let _ = report.send((name, slot));
        });
        settle().await;
        share
    }

    async fn next(&mut self) -> (&'static str, DownloadSlot) {
        tokio::time::timeout(BOUND, self.started.recv()).await.unwrap().unwrap()
    }

    /// Whether nobody else has a slot now.
    async fn nobody(&self) -> bool {
        settle().await;
        self.started.is_empty()
    }
}

fn pod() -> Priority {
    Priority::Pod(Tenant::Unknown)
}

fn pod_of(namespace: &str) -> Priority {
    Priority::Pod(Tenant::of_namespace(namespace))
}

/// Until the slot is to be given back.
async fn is_asked_back(slot: &DownloadSlot) {
    tokio::time::timeout(2 * LARGE_TURN, slot.asked_back()).await.expect("it has to give way");
}

/// Until every task waits.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn more_than_the_configured_models_wait_in_the_order_in_which_they_came() {
    let mut scene = SlotsScene::new(2);
    for name in ["1", "2", "3", "4"] {
        scene.come(name, pod()).await;
    }
    let (first, second) = (scene.next().await, scene.next().await);
    assert_eq!((first.0, second.0), ("1", "2"));
    assert!(scene.nobody().await);
    drop(second);
    let third = scene.next().await;
    assert!(third.0 == "3" && scene.nobody().await);
    drop((first, third));
    assert_eq!(scene.next().await.0, "4");
}

#[tokio::test]
async fn a_pod_waits_for_no_prefetch_and_a_prefetch_for_everybody() {
    let mut scene = SlotsScene::new(2);
    for name in ["prefetch 1", "prefetch 2", "prefetch 3"] {
        scene.come(name, Priority::Prefetch).await;
    }
    let prefetches = [scene.next().await, scene.next().await];
    assert!(scene.nobody().await);
    for name in ["pod 1", "pod 2", "pod 3"] {
        scene.come(name, pod()).await;
    }
    let pods = [scene.next().await, scene.next().await];
    assert_eq!((pods[0].0, pods[1].0), ("pod 1", "pod 2"), "beside both prefetches");
    assert!(scene.nobody().await, "as many pods' models as are configured");
    drop(prefetches);
    assert!(scene.nobody().await, "the slots are the pods' now");
    let [first, second] = pods;
    drop(first);
    assert_eq!(scene.next().await.0, "pod 3");
    drop(second);
    assert_eq!(scene.next().await.0, "prefetch 3");
}

#[tokio::test]
async fn a_prefetch_that_a_pod_joins_waits_for_no_other_prefetch() {
    let mut scene = SlotsScene::new(1);
    scene.come("running", Priority::Prefetch).await;
    let running = scene.next().await;
    scene.come("other", Priority::Prefetch).await;
    let joined = scene.come("joined", Priority::Prefetch).await;
    assert!(scene.nobody().await);
    joined.raise();
    let started = scene.next().await;
    assert!(started.0 == "joined" && scene.nobody().await);
    drop((running, started));
    assert_eq!(scene.next().await.0, "other");
}

#[tokio::test]
async fn a_running_prefetch_that_a_pod_joins_counts_as_the_pods() {
    let mut scene = SlotsScene::new(1);
    let running = scene.come("running", Priority::Prefetch).await;
    let slot = scene.next().await;
    running.raise();
    scene.come("pod", pod()).await;
    assert!(scene.nobody().await);
    drop(slot);
    assert_eq!(scene.next().await.0, "pod");
}

#[tokio::test]
async fn whoever_goes_away_takes_no_slot_along() {
    let mut scene = SlotsScene::new(1);
    scene.come("1", pod()).await;
    let first = scene.next().await;
    for _ in 0..3 {
        scene.come("gone", pod()).await;
        scene.come("gone", Priority::Prefetch).await;
    }
    scene.tasks.abort_all();
    while scene.tasks.join_next().await.is_some() {}
    scene.come("2", pod()).await;
    drop(first);
    assert_eq!(scene.next().await.0, "2");
    // Its slot was dropped with the answer.
    assert!(scene.slots.lock().holders.is_empty() && scene.slots.lock().waiting.is_empty());
}

#[tokio::test]
async fn tenants_and_within_them_buckets_take_turns() {
    let mut scene = SlotsScene::new(1);
    scene.come("a1", pod_of("a")).await;
    let (_, mut slot) = scene.next().await;
    for (bucket, name, namespace) in
        [("x", "a2", "a"), ("x", "a3", "a"), ("y", "a4 of another bucket", "a"), ("z", "b1", "b")]
    {
        scene.come_from(bucket, name, pod_of(namespace)).await;
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
async fn a_tenant_cannot_hold_all_slots_while_another_one_waits() {
    let mut scene = SlotsScene::new(4);
    let mut held = Vec::new();
    for name in ["1", "2", "3", "4"] {
        let share = scene.come(name, pod_of("many")).await;
        // It makes progress, as much as anybody wants.
        held.push((scene.next().await, share.own_work()));
    }
    scene.come("5", pod_of("many")).await;
    let started = Instant::now();
    let gives_way = tokio::time::timeout(2 * PATIENCE, held[3].0.1.asked_back());
    assert!(gives_way.await.is_err(), "nobody of another tenant waits");
    scene.come("one", pod_of("one")).await;
    held[3].0.1.asked_back().await;
    assert!(started.elapsed() <= 5 * PATIENCE, "{:?}", started.elapsed());
    held.pop();
    let (name, _slot) = scene.next().await;
    assert_eq!(name, "one");
    scene.come("another", pod_of("another")).await;
    held[2].0.1.asked_back().await;
    held.pop();
    assert_eq!(scene.next().await.0, "another");
}

#[tokio::test(start_paused = true)]
async fn a_model_without_progress_gives_its_slot_back_and_one_that_is_paced_does_not() {
    let mut scene = SlotsScene::new(2);
    scene.come("stalled", pod()).await;
    let (_, stalled) = scene.next().await;
    let paced = scene.come("paced", pod()).await;
    let (_, slot) = scene.next().await;
    let pacing = paced.own_work();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let started = Instant::now();
    scene.come("waits", pod()).await;
    stalled.asked_back().await;
    assert!(started.elapsed() <= Duration::from_secs(1), "{:?}", started.elapsed());
    drop(stalled);
    let (name, waited) = scene.next().await;
    assert_eq!(name, "waits");
    scene.come("next", pod()).await;
    let waiting = tokio::time::timeout(Duration::from_secs(60), slot.asked_back());
    waited.asked_back().await;
    assert!(waiting.await.is_err(), "our own pacing is progress");
    drop(pacing);
}

#[tokio::test(start_paused = true)]
async fn models_without_progress_do_not_push_each_other_out_all_the_time() {
    let slots = Slots::new(1);
    let gave_way = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..3 {
        let (slots, gave_way) = (slots.clone(), Arc::clone(&gave_way));
        let origin = Arc::new(Origin { location: String::new(), bucket: Bucket::new("n", "b") });
        tasks.spawn(async move {
            let model = Candidate { share: pod().share(), origin, large: false };
            let mut slot = slots.take(&model).await;
            loop {
                slot.asked_back().await;
                gave_way.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                slot = slots.take_again(&model, slot).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    let gave_way = gave_way.load(std::sync::atomic::Ordering::Relaxed);
    assert!((6..=24).contains(&gave_way), "{gave_way} turns in five minutes");
}

#[tokio::test(start_paused = true)]
async fn one_model_of_very_many_files_downloads_at_once_and_leaves_the_others_their_slots() {
    let mut scene = SlotsScene::new(4);
    let first = scene.come_large("large", pod_of("a")).await.own_work();
    let (_, slot) = scene.next().await;
    scene.come_large("large too", pod_of("a")).await;
    scene.come("small", pod_of("a")).await;
    let (name, _small) = scene.next().await;
    assert!(name == "small" && scene.nobody().await);
    drop((slot, first));
    assert_eq!(scene.next().await.0, "large too");
}

#[tokio::test(start_paused = true)]
async fn models_of_very_many_files_keep_no_tenant_from_its_own() {
    let mut scene = SlotsScene::new(4);
    // They make progress, if as little as they want.
    let mut working = vec![scene.come_large("many", pod_of("many")).await.own_work()];
    let (_, first) = scene.next().await;
    for name in ["many 2", "many 3"] {
        working.push(scene.come_large(name, pod_of("many")).await.own_work());
    }
    tokio::time::sleep(LARGE_TURN).await;
    assert!(scene.nobody().await);
    let one = scene.come_large("one", pod_of("one")).await;
    working.push(one.own_work());
    let started = Instant::now();
    is_asked_back(&first).await;
    assert!(started.elapsed() <= 3 * PATIENCE, "{:?}", started.elapsed());
    drop(first);
    let (name, slot) = scene.next().await;
    assert_eq!(name, "one");
    // It has its turn, and comes back after that of another.
    is_asked_back(&slot).await;
    assert!(started.elapsed() >= LARGE_TURN);
    let (slots, origin) = (
        scene.slots.clone(),
        Arc::new(Origin { location: String::new(), bucket: Bucket::new("n", "b") }),
    );
    let model = Candidate { share: one, origin, large: true };
    let again = tokio::spawn(async move { slots.take_again(&model, slot).await });
    let (name, second) = scene.next().await;
    assert_eq!(name, "many 2");
    is_asked_back(&second).await;
    drop(second);
    let again = tokio::time::timeout(BOUND, again).await.unwrap().unwrap();
    assert!(scene.nobody().await && started.elapsed() < 3 * LARGE_TURN);
    drop(again);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_model_of_very_many_files_and_a_prefetched_one_give_way_to_a_pods() {
    let mut scene = SlotsScene::new(4);
    scene.come_large("prefetch", Priority::Prefetch).await;
    let (_, prefetch) = scene.next().await;
    scene.come_large("stalls", pod_of("a")).await;
    is_asked_back(&prefetch).await;
    drop(prefetch);
    let (name, stalled) = scene.next().await;
    assert_eq!(name, "stalls");
    scene.come_large("waits", pod_of("a")).await;
    is_asked_back(&stalled).await;
    drop(stalled);
    assert_eq!(scene.next().await.0, "waits");
}
