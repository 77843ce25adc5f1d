//! Growth against servers that the tests describe by what they give to a number of connections.

use super::*;

/// What a server gives to this many requests at once.
struct Served {
    bytes_per_second: u64,
    wait: Duration,
    failures_per_second: u64,
}

fn given(mib_per_second: usize) -> Served {
    let bytes_per_second = (mib_per_second as u64) << 20;
    Served { bytes_per_second, wait: Duration::from_millis(20), failures_per_second: 0 }
}

/// A download in virtual time.
struct SimulatedDownload {
    growth: ConcurrencyGrowth,
    now: Instant,
    received: TransferTotals,
}

impl SimulatedDownload {
    fn new() -> Self {
        Self {
            growth: ConcurrencyGrowth::beginning_with(Concurrency::LEAST),
            now: Instant::now(),
            received: TransferTotals::default(),
        }
    }

    /// Downloads for so long; returns the most requests at once meanwhile.
    fn download(&mut self, seconds: u32, server: impl Fn(usize) -> Served) -> usize {
        let tick = Duration::from_millis(250);
        let mut most = 0;
        for _ in 0..seconds * 4 {
            let now = server(self.growth.most());
            self.received.bytes += now.bytes_per_second / 4;
            self.received.answers += 10;
            self.received.waited += now.wait * 10;
            self.received.failures += now.failures_per_second / 4;
            self.now += tick;
            self.growth.sample(self.now, self.received, true);
            most = most.max(self.growth.most());
        }
        most
    }
}

#[tokio::test(start_paused = true)]
async fn connections_that_each_give_little_are_used_up_to_the_limit_within_seconds() {
    let mut run = SimulatedDownload::new();
    run.download(5, |requests| given(2 * requests));
    assert_eq!(run.growth.most(), Concurrency::MOST);
    run.download(600, |requests| given(2 * requests));
    assert_eq!(run.growth.most(), Concurrency::MOST);
}

#[tokio::test(start_paused = true)]
async fn a_server_with_a_limit_of_its_own_gets_no_more_connections_than_it_serves() {
    let mut run = SimulatedDownload::new();
    run.download(10, |requests| given(100 * requests.min(24)));
    assert_eq!(run.growth.most(), 32);
    let most = run.download(600, |requests| given(100 * requests.min(24)));
    assert!(most <= 40, "it tries {most} later");
    assert_eq!(run.growth.most(), 32);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_slows_down_as_connections_grow_keeps_the_first_number() {
    let mut run = SimulatedDownload::new();
    run.download(30, |requests| given(16_000 / requests));
    assert_eq!(run.growth.most(), 16);
}

#[tokio::test(start_paused = true)]
async fn connections_above_a_number_that_are_reset_are_given_up() {
    let mut run = SimulatedDownload::new();
    let reset = |requests: usize| Served {
        failures_per_second: if requests > 40 { 100 } else { 0 },
        ..given(2 * requests)
    };
    let most = run.download(10, reset);
    assert_eq!((most, run.growth.most()), (64, 32));
}

#[tokio::test(start_paused = true)]
async fn a_network_that_becomes_faster_is_noticed_after_a_while() {
    let mut run = SimulatedDownload::new();
    run.download(10, |_| given(1000));
    assert_eq!(run.growth.most(), 16);
    run.download(120, |requests| given(100 * requests));
    assert!(run.growth.most() > 100, "{}", run.growth.most());
}

#[tokio::test(start_paused = true)]
async fn late_answers_lower_the_number_where_that_costs_no_throughput() {
    let mut run = SimulatedDownload::new();
    run.download(10, |requests| given(10 * requests));
    let before = run.growth.most();
    let late =
        |requests: usize| Served { wait: Duration::from_millis(requests as u64 * 4), ..given(640) };
    run.download(60, late);
    assert!(run.growth.most() < before, "{}", run.growth.most());
}

#[tokio::test(start_paused = true)]
async fn a_service_farther_away_keeps_its_connections() {
    let mut run = SimulatedDownload::new();
    run.download(10, |requests| given(2 * requests));
    assert_eq!(run.growth.most(), Concurrency::MOST);
    let far = |requests: usize| Served { wait: Duration::from_millis(400), ..given(requests) };
    for _ in 0..60 {
        run.download(10, far);
        assert!(run.growth.most() >= Concurrency::MOST * 3 / 4, "{}", run.growth.most());
    }
    run.download(120, |requests| given(2 * requests));
    assert_eq!(run.growth.most(), Concurrency::MOST);

    let mut run = SimulatedDownload::new();
    run.download(10, |_| given(1000));
    assert_eq!(run.growth.most(), Concurrency::LEAST);
    run.download(300, far);
    assert!(run.growth.most() > 200, "{}", run.growth.most());
}

#[tokio::test(start_paused = true)]
async fn connections_that_begin_to_break_are_given_up_and_tried_again_later() {
    let mut run = SimulatedDownload::new();
    run.download(10, |requests| given(2 * requests));
    let capped = |requests: usize| Served {
        failures_per_second: if requests > 64 { 100 } else { 0 },
        ..given(2 * requests.min(64))
    };
    run.download(60, capped);
    assert!(run.growth.most() <= 64, "{}", run.growth.most());
    run.download(300, |requests| given(2 * requests));
    assert!(run.growth.most() > 200, "{}", run.growth.most());
}

#[tokio::test(start_paused = true)]
async fn throttling_ends_an_attempt_with_more_and_changes_nothing_else() {
    let mut run = SimulatedDownload::new();
    run.download(1, |requests| given(2 * requests));
    assert_eq!(run.growth.most(), 32);
    run.growth.throttled(run.now);
    assert_eq!(run.growth.most(), 16);
    run.download(10, |requests| given(2 * requests));
    assert_eq!(run.growth.most(), 16, "for a while");
    run.download(300, |requests| given(2 * requests));
    run.growth.throttled(run.now);
    assert_eq!(run.growth.most(), Concurrency::MOST, "the bucket has a limit of its own");
}

#[tokio::test(start_paused = true)]
async fn time_in_which_nothing_waits_is_not_measured() {
    let mut run = SimulatedDownload::new();
    for _ in 0..100 {
        run.now += Duration::from_millis(250);
        run.received.bytes += 1 << 30;
        run.growth.sample(run.now, run.received, false);
    }
    assert_eq!(run.growth.most(), 16);
}

#[tokio::test(start_paused = true)]
async fn requests_take_more_ranges_where_one_would_be_short() {
    let mut run = SimulatedDownload::new();
    assert_eq!(run.growth.ranges_at_once(16 << 20), 1, "nothing is measured yet");
    run.download(10, |_| given(100));
    assert_eq!(run.growth.ranges_at_once(16 << 20), 1);
    run.download(10, |_| given(16 * 100));
    assert_eq!(run.growth.ranges_at_once(16 << 20), 3);
    run.download(10, |_| given(16 * 1000));
    assert_eq!(run.growth.ranges_at_once(16 << 20), MOST_RANGES);
}
