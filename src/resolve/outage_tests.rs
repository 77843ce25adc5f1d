//! Outages in virtual time, with the flights and retries of a real listing. The faults
//! are random; the tests measure how long a volume waits for its older revision.

use std::sync::Mutex;

use futures_util::FutureExt as _;
use seeded::Random;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::flight::Flights;
use crate::source::{RetryPolicy, StorageError, StorageErrorKind};

const TRIALS: u64 = 1000;

/// How an attempt fails.
#[derive(Debug, Clone, Copy)]
enum AttemptFault {
    /// No packet comes back until a timeout after this many seconds.
    Silent(u64),
    Refused,
    Unavailable,
    /// With this `Retry-After`, in seconds.
    Throttled(u64),
    /// A redirect, 501, or a proxy's page, which the client itself does not retry.
    NoAnswer,
}

const FAULTS: [AttemptFault; 8] = [
    AttemptFault::Silent(10),
    AttemptFault::Silent(60),
    AttemptFault::Refused,
    AttemptFault::Unavailable,
    AttemptFault::Throttled(1),
    AttemptFault::Throttled(30),
    AttemptFault::Throttled(600),
    AttemptFault::NoAnswer,
];

async fn fails(fault: AttemptFault) -> StorageError {
    let error = |kind| StorageError::new(kind, "listing", format!("{fault:?}"));
    let (kind, after) = match fault {
        AttemptFault::Silent(seconds) => {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            (StorageErrorKind::Unavailable, None)
        }
        AttemptFault::Refused | AttemptFault::Unavailable => (StorageErrorKind::Unavailable, None),
        AttemptFault::Throttled(seconds) => (StorageErrorKind::Throttled, Some(seconds)),
        AttemptFault::NoAnswer => (StorageErrorKind::Protocol, None),
    };
    tokio::time::sleep(Duration::from_millis(20)).await;
    error(kind).with_retry_after(after.map(Duration::from_secs))
}

/// A service that answers some pages and then fails, forever or for a while.
struct Service {
    flights: Flights<(), LastAnswer, &'static str>,
    random: Arc<Mutex<Random>>,
    faults: Vec<AttemptFault>,
    /// The number of pages, and the seconds that each of them takes.
    pages: (u64, u64),
    /// When the service answers again.
    back: Option<Instant>,
}

impl Service {
    fn new(random: Random, faults: &[AttemptFault]) -> Self {
        let grace = Duration::from_secs(30);
        let flights = Flights::new(grace, TaskTracker::new(), CancellationToken::new());
        let (random, faults) = (Arc::new(Mutex::new(random)), faults.to_vec());
        Self { flights, random, faults, pages: (0, 0), back: None }
    }

    fn attempt(&self) -> WatchedAttempt<'_, &'static str> {
        let (random, faults) = (Arc::clone(&self.random), self.faults.clone());
        let (pages, back) = (self.pages, self.back);
        let mut waiter = self.flights.join((), LastAnswer::default(), move |pulse| async move {
            for _ in 0..pages.0 {
                tokio::time::sleep(Duration::from_secs(pages.1)).await;
                pulse.beat();
            }
            if faults.is_empty() {
                return Ok("current");
            }
            let mut attempts = RetryPolicy::default().start();
            loop {
                if back.is_some_and(|back| Instant::now() >= back) {
                    return Ok("current");
                }
                let fault = *random.lock().unwrap().one_of(&faults);
                attempts.again(fails(fault).await).await?;
            }
        });
        let pulse = waiter.shared_progress();
        WatchedAttempt { pulse, answer: async move { waiter.completed().await }.boxed() }
    }

    async fn ask(
        &self,
        silence: &UnansweredSince,
        cached: bool,
    ) -> Result<AttemptOutcome<&'static str, ()>> {
        ask(silence, || self.attempt(), || async move { cached.then_some(()) }.boxed()).await
    }
}

/// Repeats kubelet's call for one volume until it gets its older revision. Returns the
/// time since the first unanswered attempt.
async fn time_to_stale(service: &Service, wait: Duration) -> Duration {
    let silence = UnansweredSince::default();
    let start = Instant::now();
    let mut backoff = Duration::from_millis(500);
    loop {
        match tokio::time::timeout(wait, service.ask(&silence, true)).await {
            Ok(Ok(AttemptOutcome::Instead((), _))) => break,
            Ok(other) => panic!("{other:?}"),
            Err(_) => tokio::time::sleep(backoff).await,
        }
        backoff *= 2;
    }
    let (pages, each) = service.pages;
    start.elapsed().checked_sub(Duration::from_secs(pages * each)).unwrap()
}

#[expect(clippy::print_stderr, reason = "the figure")]
#[tokio::test(start_paused = true)]
async fn in_a_thousand_outages_an_older_revision_is_mounted_after_10_to_12_seconds() {
    let mut random = Random::seeded();
    let mut took = Vec::new();
    for trial in 0..TRIALS {
        // One fault for all attempts, or a random one per attempt.
        let faults = match trial % 3 {
            0 => FAULTS.to_vec(),
            _ => vec![*random.one_of(&FAULTS)],
        };
        let mut service = Service::new(random.split(), &faults);
        service.pages = *random.one_of(&[(0, 0), (0, 0), (1, 1), (5, 4), (3, 9)]);
        // Each new listing returns its pages again, which count as answers.
        let wait = match service.pages.0 {
            0 => *random.one_of(&[4, 5, 9, 25, 110]),
            _ => 110,
        };
        if service.pages.0 > 0 {
            service.faults = vec![AttemptFault::Silent(60)];
        }
        let time = time_to_stale(&service, Duration::from_secs(wait)).await;
        let right = (10.0..=12.0).contains(&time.as_secs_f64());
        assert!(right, "trial {trial}: {time:?}, {faults:?}, {:?}", service.pages);
        took.push(time);
    }
    took.sort();
    let (median, max) = (took[took.len() / 2], took[took.len() - 1]);
    eprintln!("figure: {TRIALS} outages in virtual time: p50 {median:?}, max {max:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_listing_that_makes_progress_is_not_an_outage() {
    let mut service = Service::new(Random::seeded(), &[]);
    service.pages = (30, 9);
    let start = Instant::now();
    let outcome = service.ask(&UnansweredSince::default(), true).await;
    assert_eq!(outcome, Ok(AttemptOutcome::Answered("current")));
    assert_eq!(start.elapsed(), Duration::from_secs(270));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_recovers_soon_is_used_and_ends_the_outage() {
    for fault in [AttemptFault::Refused, AttemptFault::NoAnswer, AttemptFault::Throttled(1)] {
        let mut service = Service::new(Random::seeded(), &[fault]);
        // With a later time, the client's backoff could exceed the ten seconds.
        service.back = Some(Instant::now() + Duration::from_millis(1500));
        let silence = UnansweredSince::default();
        let outcome = service.ask(&silence, true).await;
        assert_eq!(outcome, Ok(AttemptOutcome::Answered("current")), "{fault:?}");
        // The next outage starts a new count.
        service.back = None;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        let outcome = service.ask(&silence, true).await.unwrap();
        assert!(matches!(outcome, AttemptOutcome::Instead((), _)));
        assert!(start.elapsed() >= OUTAGE, "{fault:?}: {:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_older_revision_an_unusable_answer_fails_at_once() {
    let service = Service::new(Random::seeded(), &[AttemptFault::NoAnswer]);
    let start = Instant::now();
    let error = service.ask(&UnansweredSince::default(), false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(1));
    // A fault that the client retries fails after its last attempt.
    let service = Service::new(Random::seeded(), &[AttemptFault::Unavailable]);
    let error = service.ask(&UnansweredSince::default(), false).await.unwrap_err();
    assert!(error.message().contains("8 attempts"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(61));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_an_answer_and_ends_the_count() {
    let silence = UnansweredSince::default();
    let refused = || WatchedAttempt::<()> {
        pulse: Arc::default(),
        answer: async { Err(Error::new(ErrorKind::Denied, "no")) }.boxed(),
    };
    silence.begin();
    tokio::time::sleep(2 * OUTAGE).await;
    let asked = ask(&silence, refused, || async { Some(()) }.boxed()).await;
    assert_eq!(asked.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(silence.begin(), Instant::now());
}
