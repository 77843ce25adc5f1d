//! Callers that join, leave and meet the end of a flight, in many orders.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::sync::interleave::{Work, block_on, poll_for, random, run_on_tokio, switch};

const SEEDS: std::ops::Range<u64> = 0..300;

/// The runs of a flight's work.
#[derive(Default)]
struct Runs {
    started: AtomicU32,
    running: AtomicU32,
}

impl Runs {
    fn begin(self: &Arc<Self>) -> RunningWork {
        self.started.fetch_add(1, Ordering::Relaxed);
        assert_eq!(self.running.fetch_add(1, Ordering::Relaxed), 0, "two runs at once");
        RunningWork(Arc::clone(self))
    }
}

struct RunningWork(Arc<Runs>);

impl Drop for RunningWork {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

fn flights(grace: Duration) -> Flights<&'static str, (), u32> {
    Flights::new(grace, TaskTracker::new(), CancellationToken::new())
}

#[test]
fn in_any_order_a_result_that_is_stored_is_never_computed_again() {
    for seed in SEEDS {
        let (flights, runs) = (flights(Duration::from_secs(600)), Arc::new(Runs::default()));
        let stored: Arc<Mutex<Option<u32>>> = Arc::default();
        let caller = || {
            let (runs, result) = (Arc::clone(&runs), Arc::clone(&stored));
            let work = |_| async move {
                let _running = runs.begin();
                tokio::task::yield_now().await;
                *lock(&result) = Some(7);
                switch();
                Ok(7)
            };
            match flights.join_unless("key", (), || *lock(&stored), work) {
                Joined::Known(result) => assert_eq!(result, 7),
                Joined::Flight(mut waiter) => assert_eq!(block_on(waiter.completed()), Ok(7)),
            }
        };
        run_on_tokio(seed, (0..4).map(|_| -> Work<'_> { Box::new(caller) }).collect());
        assert_eq!(runs.started.load(Ordering::Relaxed), 1, "seed {seed}");
    }
}

#[test]
fn in_any_order_callers_that_leave_neither_double_nor_lose_the_work_of_others() {
    for seed in SEEDS {
        let (flights, runs) = (flights(Duration::ZERO), Arc::new(Runs::default()));
        let join = || {
            let runs = Arc::clone(&runs);
            flights.join("key", (), |_| async move {
                let _running = runs.begin();
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                    switch();
                }
                Ok(7)
            })
        };
        let comes_again = || {
            for _ in 0..3 {
                // Some leave before the end.
                let polls = [0, 1, 3, u64::MAX][usize::try_from(random(4)).unwrap()];
                let outcome = poll_for(polls, async { join().completed().await });
                match outcome {
                    Some(result) => assert_eq!(result, Ok(7), "seed {seed}"),
                    None => assert_ne!(polls, u64::MAX),
                }
            }
        };
        run_on_tokio(seed, (0..4).map(|_| -> Work<'_> { Box::new(comes_again) }).collect());
        assert!(flights.running().is_empty(), "seed {seed}");
    }
}
