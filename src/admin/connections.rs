//! Limits what one client, and all of them together, may use of an HTTP listener.
//!
//! Any pod of the cluster may reach `--metrics-address`, so every connection
//! there is limited in number, header bytes and time. The admin socket belongs
//! to the node's administrator: connections and headers are limited, but a
//! command may take as long as it needs.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use tokio_util::sync::CancellationToken;

use crate::sync::lock;

/// A client that sends no complete header for this long is disconnected.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest header: request line and fields. Prometheus sends about 300 bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Most fields of a header.
const MAX_HEADERS: usize = 64;

/// The limits of a listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionLimits {
    /// Open connections at once. A further one displaces the oldest one of the addresses
    /// that have most.
    pub(super) total: usize,
    /// Open connections of one client address. Further ones are closed as soon as they are
    /// accepted.
    pub(super) per_address: usize,
    /// The longest life of a connection. If it is set, a connection serves one request.
    pub(super) lifetime: Option<Duration>,
}

impl ConnectionLimits {
    /// For `--metrics-address`. A scrape and a probe take milliseconds; Prometheus gives
    /// up after 10 s. Even when others take all they can, kubelet's probes are answered:
    /// each displaces an older connection.
    pub(super) const METRICS: Self =
        Self { total: 64, per_address: 8, lifetime: Some(Duration::from_secs(15)) };

    /// For `--admin-endpoint`, whose clients have no address.
    pub(super) const ADMIN: Self = Self { total: 64, per_address: 64, lifetime: None };

    /// hyper's settings for a connection.
    pub(super) fn http(&self) -> http1::Builder {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES)
            .max_header_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADERS)
            .keep_alive(self.lifetime.is_none());
        http
    }
}

/// The open connections of a listener. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    limits: ConnectionLimits,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    /// Oldest first, without those that were asked to close.
    all: VecDeque<ConnectionEntry>,
    of_address: HashMap<Option<IpAddr>, usize>,
    next: u64,
}

/// A connection that is open.
#[derive(Debug)]
struct ConnectionEntry {
    number: u64,
    address: Option<IpAddr>,
    ends: CloseHandle,
}

/// Asks a connection to close, and reports when it has.
#[derive(Debug, Clone, Default)]
struct CloseHandle {
    closing: CancellationToken,
    closed: CancellationToken,
}

impl Open {
    fn count(&self, address: Option<IpAddr>) -> usize {
        self.of_address.get(&address).copied().unwrap_or_default()
    }

    fn add(&mut self, address: Option<IpAddr>) -> (u64, CloseHandle) {
        let (number, ends) = (self.next, CloseHandle::default());
        self.next += 1;
        *self.of_address.entry(address).or_default() += 1;
        self.all.push_back(ConnectionEntry { number, address, ends: ends.clone() });
        (number, ends)
    }

    fn remove(&mut self, number: u64) -> Option<ConnectionEntry> {
        let place = self.all.iter().position(|entry| entry.number == number)?;
        let entry = self.all.remove(place)?;
        if let Some(count) = self.of_address.get_mut(&entry.address) {
            *count -= 1;
            if *count == 0 {
                self.of_address.remove(&entry.address);
            }
        }
        Some(entry)
    }

    /// Displaces the oldest connection of the addresses that have most.
    ///
    /// An address that has as many itself gets room, too: kubelet asks for liveness and
    /// readiness at the same time, and a probe that was answered a moment ago may still
    /// count, while each of many strangers holds one connection.
    fn displace(&mut self) -> Option<ConnectionEntry> {
        let most = self.of_address.values().copied().max().unwrap_or_default();
        let oldest = self.all.iter().find(|entry| self.count(entry.address) == most)?;
        self.remove(oldest.number)
    }
}

impl Connections {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { limits, open: Arc::default() }
    }

    pub(super) fn limits(&self) -> ConnectionLimits {
        self.limits
    }

    /// Counts a connection until the permit is dropped. `None` at a limit. If another
    /// connection is displaced, waits until that is closed, so that no more are open.
    pub(super) async fn admit(&self, address: Option<IpAddr>) -> Option<ConnectionPermit> {
        let (permit, displaced) = self.admit_now(address)?;
        if let Some(displaced) = displaced {
            displaced.ends.closing.cancel();
            displaced.ends.closed.cancelled().await;
        }
        Some(permit)
    }

    fn admit_now(
        &self,
        address: Option<IpAddr>,
    ) -> Option<(ConnectionPermit, Option<ConnectionEntry>)> {
        // The same IPv4 client must not count twice on a dual-stack listener.
        let address = address.map(|address| address.to_canonical());
        let mut open = self.lock();
        if open.count(address) >= self.limits.per_address {
            return None;
        }
        let displaced = match open.all.len() < self.limits.total {
            true => None,
            false => Some(open.displace()?),
        };
        let (number, ends) = open.add(address);
        Some((ConnectionPermit { connections: self.clone(), number, ends }, displaced))
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }
}

/// One counted connection.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    connections: Connections,
    number: u64,
    ends: CloseHandle,
}

impl ConnectionPermit {
    /// Completes when another connection displaces this one.
    pub(super) async fn displaced(&self) {
        self.ends.closing.cancelled().await;
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.connections.lock().remove(self.number);
        self.ends.closed.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(
        connections: &Connections,
        address: &str,
    ) -> Option<(ConnectionPermit, Option<ConnectionEntry>)> {
        connections.admit_now(Some(address.parse().unwrap()))
    }

    #[test]
    fn one_address_leaves_connections_for_others_and_all_of_them_are_bounded() {
        let limits = ConnectionLimits { total: 4, per_address: 2, lifetime: None };
        let connections = Connections::new(limits);
        let first = admit(&connections, "10.0.0.1").unwrap();
        // The same client through the IPv6 side of a dual-stack listener.
        let second = admit(&connections, "::ffff:10.0.0.1").unwrap();
        assert!(admit(&connections, "10.0.0.1").is_none(), "the limit of one address");
        let others = ["10.0.0.2", "10.0.0.2"].map(|one| admit(&connections, one).unwrap());
        assert_eq!(connections.lock().all.len(), 4);

        drop(first);
        let again = admit(&connections, "10.0.0.1").unwrap();
        assert!(again.1.is_none(), "there was room");
        drop((second, again, others));
        let open = connections.lock();
        assert_eq!((open.all.len(), open.of_address.len()), (0, 0), "nothing is remembered");
    }

    #[test]
    fn a_newcomer_displaces_the_oldest_of_the_addresses_with_most() {
        let limits = ConnectionLimits { total: 4, per_address: 2, lifetime: None };
        let connections = Connections::new(limits);
        let held = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.2"]
            .map(|one| admit(&connections, one).unwrap().0);
        let (newcomer, displaced) = admit(&connections, "10.0.0.4").unwrap();
        assert_eq!(displaced.unwrap().number, held[1].number, "the older one of 10.0.0.2");
        // Now all four addresses have one each.
        let (_second, displaced) = admit(&connections, "10.0.0.4").unwrap();
        assert_eq!(displaced.unwrap().number, held[0].number, "the oldest of all");
        let (_fifth, displaced) = admit(&connections, "10.0.0.5").unwrap();
        assert_eq!(displaced.unwrap().number, newcomer.number, "10.0.0.4 has two");
        // What was displaced is not counted twice when it ends.
        drop(held);
        assert_eq!(connections.lock().all.len(), 2);
    }

    #[tokio::test]
    async fn a_newcomer_waits_until_the_connection_that_makes_room_is_closed() {
        let limits = ConnectionLimits { total: 2, per_address: 2, lifetime: None };
        let connections = Connections::new(limits);
        let [older, _younger] =
            ["10.0.0.1", "10.0.0.1"].map(|one| admit(&connections, one).unwrap().0);
        let address = Some("10.0.0.2".parse().unwrap());
        let mut newcomer = Box::pin(connections.admit(address));
        assert!(futures_util::poll!(&mut newcomer).is_pending());
        older.displaced().await;
        assert!(futures_util::poll!(&mut newcomer).is_pending(), "it was only asked to close");
        drop(older);
        newcomer.await.unwrap();
    }

    #[test]
    fn the_limits_leave_room_for_probes_while_addresses_are_at_theirs() {
        let ConnectionLimits { total, per_address, lifetime } = ConnectionLimits::METRICS;
        assert!(per_address * 4 <= total);
        assert!(lifetime.is_some());
        assert_eq!(ConnectionLimits::ADMIN.lifetime, None, "a working call is never cut");
    }
}
