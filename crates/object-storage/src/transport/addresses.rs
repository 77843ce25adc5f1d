//! The addresses of a host: in which order they are tried, and which failed lately.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::time::Instant;

use crate::random;
use crate::sync::lock;

/// How long an address that did not answer is tried last.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Addresses that are remembered at most; a service has a few.
const MOST_REMEMBERED: usize = 1024;

/// Finds the addresses of a name.
pub(super) type Lookup =
    Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Asks the system, as every program does: its answer is new for each connection.
pub(super) fn system_lookup() -> Lookup {
    Arc::new(|host| {
        async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        }
        .boxed()
    })
}

/// The addresses of a host, or why they are not known.
type LookupFuture = BoxFuture<'static, Result<Vec<IpAddr>, Arc<io::Error>>>;

/// A lookup that several connections wait for.
type SharedLookup = Shared<LookupFuture>;

/// The same, which ends when no connection waits for it any more.
type RunningLookup = WeakShared<LookupFuture>;

/// What is known of the addresses of hosts.
pub(super) struct AddressBook {
    lookup: Lookup,
    /// How long a lookup may take.
    patience: Duration,
    /// The lookups that connections wait for, by host.
    running: Mutex<HashMap<String, RunningLookup>>,
    /// Which address is the next connection's first. It begins at random, so that a fleet of
    /// nodes does not begin with the same address.
    turn: AtomicUsize,
    failed: Mutex<HashMap<IpAddr, Instant>>,
}

impl AddressBook {
    pub(super) fn new(lookup: Lookup, patience: Duration) -> Self {
        let [first] = random::bytes::<1>();
        let turn = AtomicUsize::new(usize::from(first));
        Self { lookup, patience, running: Mutex::default(), turn, failed: Mutex::default() }
    }

    /// The lookup of a host that is under way, else a new one. A download opens many connections at
    /// once, and the system's lookups take a thread and several questions each.
    fn look_up(&self, host: &str) -> SharedLookup {
        let mut running = lock(&self.running);
        running.retain(|_, one| one.upgrade().is_some_and(|one| one.peek().is_none()));
        if let Some(one) = running.get(host).and_then(WeakShared::upgrade) {
            return one;
        }
        let (looking, patience) = ((self.lookup)(host.to_owned()), self.patience);
        let new = async move {
            let found = tokio::time::timeout(patience, looking).await.unwrap_or_else(|_| {
                let what = format!("no answer within {} s", patience.as_secs_f64());
                Err(io::Error::new(io::ErrorKind::TimedOut, what))
            });
            found.map_err(Arc::new)
        };
        let new = new.boxed().shared();
        running.extend(new.downgrade().map(|weak| (host.to_owned(), weak)));
        new
    }

    /// The addresses of a host, in the order in which a new connection tries them. Those of a
    /// family that `is_preferred` refuses come last.
    pub(super) async fn of(
        &self,
        host: &str,
        is_preferred: impl Fn(IpAddr) -> bool,
    ) -> Result<Vec<IpAddr>, Arc<io::Error>> {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse() {
            return Ok(vec![address]);
        }
        let mut found = self.look_up(bare).await?;
        let mut seen = Vec::new();
        found.retain(|address| {
            let is_new = !seen.contains(address);
            seen.push(*address);
            is_new
        });
        let (preferred, others) = found.into_iter().partition(|address| is_preferred(*address));
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let failed = lock(&self.failed);
        let since = |address: &IpAddr| {
            failed.get(address).copied().filter(|at| now.duration_since(*at) < REMEMBERED)
        };
        Ok([in_turn(preferred, turn, since), in_turn(others, turn, since)].concat())
    }

    /// Remembers that an address did not answer.
    pub(super) fn failed(&self, address: IpAddr) {
        let now = Instant::now();
        let mut failed = lock(&self.failed);
        if failed.len() >= MOST_REMEMBERED {
            failed.retain(|_, at| now.duration_since(*at) < REMEMBERED);
        }
        if failed.len() < MOST_REMEMBERED {
            failed.insert(address, now);
        }
    }

    /// Forgets that an address did not answer.
    pub(super) fn answered(&self, address: IpAddr) {
        lock(&self.failed).remove(&address);
    }
}

/// The addresses from the one on whose turn it is: families take turns, that of the first address,
/// which the system prefers, begins (RFC 8305, 4). Those that failed are last, the oldest first.
fn in_turn(
    addresses: Vec<IpAddr>,
    turn: usize,
    failed: impl Fn(&IpAddr) -> Option<Instant>,
) -> Vec<IpAddr> {
    let (mut suspect, sound): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| failed(address).is_some());
    suspect.sort_by_key(&failed);
    let Some(first) = sound.first().copied() else { return suspect };
    let (mut one, mut other): (Vec<_>, Vec<_>) =
        sound.into_iter().partition(|address| address.is_ipv4() == first.is_ipv4());
    for family in [&mut one, &mut other] {
        let by = turn % family.len().max(1);
        family.rotate_left(by);
    }
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut order = Vec::new();
    loop {
        let pair = [one.next(), other.next()];
        if pair == [None, None] {
            order.extend(suspect);
            return order;
        }
        order.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|one| one.parse().unwrap()).collect()
    }

    fn book(found: &'static str) -> AddressBook {
        let lookup: Lookup = Arc::new(|_| async { Ok(ips(found)) }.boxed());
        let book = AddressBook::new(lookup, Duration::from_secs(1));
        book.turn.store(0, Ordering::Relaxed);
        book
    }

    #[tokio::test]
    async fn each_connection_begins_with_the_next_address_and_has_all_of_them() {
        let book = book("10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.2");
        for order in [
            "10.0.0.1 10.0.0.2 10.0.0.3",
            "10.0.0.2 10.0.0.3 10.0.0.1",
            "10.0.0.3 10.0.0.1 10.0.0.2",
        ] {
            assert_eq!(book.of("x", |_| true).await.unwrap(), ips(order));
        }
        assert_eq!(book.of("[::1]", |_| true).await.unwrap(), ips("::1"), "no lookup");
    }

    #[tokio::test]
    async fn families_take_turns_and_that_which_the_system_prefers_begins() {
        let book = book("fd00::1 fd00::2 10.0.0.1 10.0.0.2 10.0.0.3");
        let order = ips("fd00::1 10.0.0.1 fd00::2 10.0.0.2 10.0.0.3");
        assert_eq!(book.of("x", |_| true).await.unwrap(), order);
        let order = ips("10.0.0.2 10.0.0.3 10.0.0.1 fd00::2 fd00::1");
        assert_eq!(book.of("x", |address| address.is_ipv4()).await.unwrap(), order);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_failed_is_last_for_a_minute() {
        let book = book("10.0.0.1 10.0.0.2");
        book.failed("10.0.0.1".parse().unwrap());
        for _ in 0..3 {
            let order = book.of("x", |_| true).await.unwrap();
            assert_eq!(order, ips("10.0.0.2 10.0.0.1"));
        }
        tokio::time::advance(REMEMBERED).await;
        let firsts =
            [book.of("x", |_| true).await.unwrap()[0], book.of("x", |_| true).await.unwrap()[0]];
        assert!(firsts.contains(&"10.0.0.1".parse().unwrap()), "{firsts:?}");
        book.failed("10.0.0.1".parse().unwrap());
        book.answered("10.0.0.1".parse().unwrap());
        let firsts =
            [book.of("x", |_| true).await.unwrap()[0], book.of("x", |_| true).await.unwrap()[0]];
        assert!(firsts.contains(&"10.0.0.1".parse().unwrap()), "{firsts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_begin_together_share_a_lookup_and_later_ones_have_their_own() {
        let lookups = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&lookups);
        let lookup: Lookup = Arc::new(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(ips("10.0.0.1 10.0.0.2"))
            }
            .boxed()
        });
        let book = AddressBook::new(lookup, Duration::from_secs(1));
        let waiting = (0..100).map(|_| book.of("x", |_| true));
        let orders = futures_util::future::join_all(waiting).await;
        let first = ips("10.0.0.1");
        let with_first = orders.iter().filter(|order| order.as_ref().unwrap()[..1] == first[..]);
        assert_eq!((lookups.load(Ordering::Relaxed), with_first.count()), (1, 50));
        book.of("x", |_| true).await.unwrap();
        book.of("y", |_| true).await.unwrap();
        assert_eq!(lookups.load(Ordering::Relaxed), 3);
        // One that no connection waits for any more is not continued later.
        let given_up = tokio::time::timeout(Duration::from_millis(1), book.of("x", |_| true));
        assert!(given_up.await.is_err());
        book.of("x", |_| true).await.unwrap();
        assert_eq!(lookups.load(Ordering::Relaxed), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_without_an_answer_ends() {
        let lookup: Lookup = Arc::new(|_| std::future::pending().boxed());
        let book = AddressBook::new(lookup, Duration::from_secs(20));
        let asking = tokio::time::timeout(Duration::from_secs(60), book.of("x", |_| true));
        let error = asking.await.expect("an end").unwrap_err();
        assert_eq!(error.to_string(), "no answer within 20 s");
    }
}
