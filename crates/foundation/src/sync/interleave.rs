//! Runs threads one at a time in a random order that a seed repeats, and switches between them
//! wherever a lock is taken ([`crate::sync::lock`]) or a future waits.
//!
//! Races that a test on real threads meets once in a million runs are met here within some
//! hundred seeds. Tests only: release builds do not have this module.

use std::cell::RefCell;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker};
use std::thread;

/// Switches after which a run counts as a deadlock.
const MOST_SWITCHES: u32 = 100_000;

thread_local! {
    static MEMBER: RefCell<Option<Member>> = const { RefCell::new(None) };
}

/// A thread of a run.
#[derive(Clone)]
struct Member {
    run: Arc<Run>,
    number: usize,
}

struct Run {
    state: Mutex<RunState>,
    switched: Condvar,
}

struct RunState {
    /// Whose turn it is.
    current: usize,
    /// Which threads have not ended.
    alive: Vec<bool>,
    random: u64,
    switches: u32,
}

/// One thread of a run.
pub type Work<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Runs each piece of work on a thread of its own, one thread at a time.
///
/// # Panics
/// If one of them panics, or if none of them ends.
pub fn run(seed: u64, threads: Vec<Work<'_>>) {
    let alive = vec![true; threads.len()];
    // A state of zero would stay zero.
    let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let state = Mutex::new(RunState { current: 0, alive, random, switches: 0 });
    let run = Arc::new(Run { state, switched: Condvar::new() });
    thread::scope(|scope| {
        for (number, work) in threads.into_iter().enumerate() {
            let member = Member { run: Arc::clone(&run), number };
            scope.spawn(move || {
                MEMBER.set(Some(member.clone()));
                let _end = EndOfThread(&member);
                member.wait_for_turn(member.run.lock());
                work();
            });
        }
    });
}

/// As [`run`], on a tokio runtime: a thread more runs the tasks that the others spawn. The seed
/// does not repeat tokio's own choices, such as the branch that `select!` polls first.
///
/// # Panics
/// As [`run`], or if no runtime can be made.
pub fn run_on_tokio(seed: u64, threads: Vec<Work<'_>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let mut threads: Vec<Work<'_>> =
        threads.into_iter().map(|work| entered(runtime.handle().clone(), work)).collect();
    threads.push(Box::new(|| {
        while others_run() {
            runtime.block_on(tokio::task::yield_now());
            switch();
        }
    }));
    run(seed, threads);
}

/// The same work, which may spawn tasks of this runtime.
fn entered(runtime: tokio::runtime::Handle, work: Work<'_>) -> Work<'_> {
    Box::new(move || {
        let _entered = runtime.enter();
        work();
    })
}

/// Whether this thread belongs to a run.
pub(crate) fn is_running() -> bool {
    MEMBER.with_borrow(Option::is_some)
}

/// Lets a thread of the run continue, perhaps this one. Does nothing outside of a run.
pub fn switch() {
    let Some(member) = MEMBER.with_borrow(Clone::clone) else { return };
    let mut state = member.run.lock();
    state.switches += 1;
    assert!(state.switches < MOST_SWITCHES, "no thread ends: a deadlock");
    state.choose();
    member.wait_for_turn(state);
}

/// Whether other threads of the run have not ended.
pub fn others_run() -> bool {
    let member = MEMBER.with_borrow(Clone::clone).expect("a thread of a run");
    member.run.lock().alive.iter().filter(|alive| **alive).count() > 1
}

/// A random number below `bound`, from the run's seed.
pub fn random(bound: u64) -> u64 {
    let member = MEMBER.with_borrow(Clone::clone).expect("a thread of a run");
    member.run.lock().next_random() % bound
}

/// Waits for a future; other threads run while it is pending.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => return value,
            Poll::Pending => switch(),
        }
    }
}

/// Polls a future at most this often; `None` if it is dropped before its end.
pub fn poll_for<T>(polls: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..polls {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => return Some(value),
            Poll::Pending => switch(),
        }
    }
    None
}

/// Takes a lock; other threads run before, and while another one has it.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    loop {
        switch();
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(error)) => return error.into_inner(),
            Err(TryLockError::WouldBlock) => {}
        }
    }
}

impl Run {
    fn lock(&self) -> MutexGuard<'_, RunState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RunState {
    /// Chooses whose turn is next.
    fn choose(&mut self) {
        let alive: Vec<usize> =
            (0..self.alive.len()).filter(|number| self.alive[*number]).collect();
        if let Ok(count @ 1..) = u64::try_from(alive.len()) {
            let chosen = usize::try_from(self.next_random() % count).unwrap_or_default();
            self.current = alive[chosen];
        }
    }

    /// xorshift64*: few lines, and good enough to choose among threads.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }
}

impl Member {
    fn wait_for_turn(&self, state: MutexGuard<'_, RunState>) {
        self.run.switched.notify_all();
        let waited = self.run.switched.wait_while(state, |state| state.current != self.number);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Ends a thread's part in the run, even if it panics.
struct EndOfThread<'a>(&'a Member);

impl Drop for EndOfThread<'_> {
    fn drop(&mut self) {
        MEMBER.set(None);
        let mut state = self.0.run.lock();
        state.alive[self.0.number] = false;
        state.choose();
        drop(state);
        self.0.run.switched.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Adds to a counter without holding its lock between reading and writing.
    fn racy(counter: &Mutex<u32>) {
        let read = *crate::sync::lock(counter);
        *crate::sync::lock(counter) = read + 1;
    }

    fn sum_of_two(seed: u64) -> u32 {
        let counter = Mutex::new(0);
        run(seed, vec![Box::new(|| racy(&counter)), Box::new(|| racy(&counter))]);
        counter.into_inner().unwrap()
    }

    #[test]
    fn a_lost_update_is_found_and_its_seed_repeats_it() {
        let lost = (0..100).find(|seed| sum_of_two(*seed) == 1).expect("a seed that loses one");
        for _ in 0..10 {
            assert_eq!(sum_of_two(lost), 1);
        }
        assert!((0..100).any(|seed| sum_of_two(seed) == 2), "not every order loses one");
    }

    #[test]
    fn a_deadlock_ends_the_run_with_a_panic() {
        let (a, b) = (Mutex::new(()), Mutex::new(()));
        let both = |first, second| {
            let _first = crate::sync::lock(first);
            let _second = crate::sync::lock(second);
        };
        let deadlocks = (0..50).any(|seed| {
            let threads: Vec<Work<'_>> = vec![Box::new(|| both(&a, &b)), Box::new(|| both(&b, &a))];
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed, threads))).is_err()
        });
        assert!(deadlocks, "opposite orders of two locks");
    }

    #[test]
    fn a_future_that_waits_lets_the_others_run() {
        let turns = AtomicU32::new(0);
        let until_three = std::future::poll_fn(|_| match turns.load(Ordering::Relaxed) {
            3 => Poll::Ready(()),
            _ => Poll::Pending,
        });
        let count = || {
            for _ in 0..3 {
                turns.fetch_add(1, Ordering::Relaxed);
                switch();
            }
        };
        run(1, vec![Box::new(|| block_on(until_three)), Box::new(count)]);
        assert_eq!(turns.into_inner(), 3);
    }
}
