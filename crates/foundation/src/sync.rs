//! Locks: how they are taken, and in which order.

#[cfg(debug_assertions)]
pub mod interleave;

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Locks a mutex, even if a thread panicked while it held the lock. All values behind this
/// crate's mutexes are consistent at every instant, so such a panic does them no harm.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    #[cfg(debug_assertions)]
    if interleave::is_running() {
        return interleave::lock(mutex);
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The place of a lock in the order of locks. A thread that holds a lock takes only locks of
/// a greater rank, so no two threads wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    order: u8,
    name: &'static str,
}

impl Rank {
    /// Creates the rank `order` of the lock with this name.
    pub const fn new(order: u8, name: &'static str) -> Self {
        Self { order, name }
    }
}

/// A mutex with a rank. Debug builds panic when a thread takes it out of order.
#[derive(Debug)]
pub struct OrderedMutex<T> {
    rank: Rank,
    mutex: Mutex<T>,
}

/// The lock of an [`OrderedMutex`], until dropped.
#[derive(Debug)]
pub struct OrderedGuard<'a, T> {
    guard: MutexGuard<'a, T>,
    #[cfg(debug_assertions)]
    mutex: &'a Mutex<T>,
    #[expect(dead_code, reason = "held for its end")]
    held: HeldRank,
}

impl<T> OrderedMutex<T> {
    /// Creates a mutex of this rank.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, mutex: Mutex::new(value) }
    }

    /// Takes the lock, as [`lock`] does.
    pub fn lock(&self) -> OrderedGuard<'_, T> {
        let held = HeldRank::begin(self.rank);
        OrderedGuard {
            guard: lock(&self.mutex),
            #[cfg(debug_assertions)]
            mutex: &self.mutex,
            held,
        }
    }
}

impl<T> OrderedGuard<'_, T> {
    /// Releases the lock while `condition` holds, and waits for notifications meanwhile.
    pub fn wait_while(
        mut self,
        condvar: &Condvar,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> Self {
        #[cfg(debug_assertions)]
        if interleave::is_running() {
            while condition(&mut self.guard) {
                drop(self.guard);
                self.guard = lock(self.mutex);
            }
            return self;
        }
        let guard = condvar.wait_while(self.guard, &mut condition);
        self.guard = guard.unwrap_or_else(PoisonError::into_inner);
        self
    }
}

impl<T> Deref for OrderedGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for OrderedGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

thread_local! {
    /// The ranks of the locks that this thread holds, in the order in which it took them.
    static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
}

/// The entry of a lock in [`HELD`], until dropped. Without debug assertions there is none.
#[derive(Debug)]
struct HeldRank(Rank);

impl HeldRank {
    fn begin(rank: Rank) -> Self {
        if cfg!(debug_assertions) {
            HELD.with_borrow_mut(|held| {
                if let Some(last) = held.last().filter(|last| last.order >= rank.order) {
                    panic!("the lock {:?} was taken while {:?} was held", rank.name, last.name);
                }
                held.push(rank);
            });
        }
        Self(rank)
    }
}

impl Drop for HeldRank {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            HELD.with_borrow_mut(|held| held.retain(|rank| *rank != self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Rank = Rank::new(1, "first");
    const SECOND: Rank = Rank::new(2, "second");

    #[test]
    fn a_panic_under_the_lock_does_not_lock_out_others() {
        let mutex = Mutex::new(1);
        let panicked = std::thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let _guard = lock(&mutex);
                panic!("while the lock is held");
            });
            panics.join().is_err()
        });
        assert!(panicked && mutex.is_poisoned());
        assert_eq!(*lock(&mutex), 1);
    }

    #[test]
    fn locks_may_be_taken_in_order_and_released_in_any() {
        let (first, second) = (OrderedMutex::new(FIRST, 1), OrderedMutex::new(SECOND, 2));
        let (one, mut two) = (first.lock(), second.lock());
        *two += *one;
        drop(one);
        drop(two);
        assert_eq!(*second.lock(), 3);
        assert_eq!(*first.lock(), 1);
    }

    #[test]
    fn a_lock_that_is_taken_out_of_order_or_twice_panics() {
        let (first, second) = (OrderedMutex::new(FIRST, ()), OrderedMutex::new(SECOND, ()));
        for (held, taken) in [(&second, &first), (&first, &first)] {
            let panicked = std::thread::scope(|scope| {
                let panics = scope.spawn(|| {
                    let _held = held.lock();
                    let _taken = taken.lock();
                });
                panics.join().is_err()
            });
            assert!(panicked);
        }
        // Each thread has its own order.
        let _second = second.lock();
        std::thread::scope(|scope| scope.spawn(|| drop(first.lock())).join().unwrap());
    }

    #[test]
    fn a_lock_is_free_while_its_holder_waits_for_a_condition() {
        let (mutex, changed) = (OrderedMutex::new(FIRST, 0), Condvar::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                *mutex.lock() = 1;
                changed.notify_all();
            });
            assert_eq!(*mutex.lock().wait_while(&changed, |value| *value == 0), 1);
        });
    }
}
