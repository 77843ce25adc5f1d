//! What one client, and all of them together, may take of an HTTP listener.
//!
//! Whoever can reach a pod can reach `--metrics-address`, so every connection
//! there is limited in number, header bytes and time. The admin socket belongs
//! to the node's administrator: connections and headers are limited, and a
//! command runs as long as it runs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;

/// A client that sends no complete header for this long is disconnected.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest header: request line and fields. Prometheus sends about 300 bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Most fields of a header.
const MAX_HEADERS: usize = 64;

/// What a listener allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionLimits {
    /// Open connections at once. Further ones are closed as soon as they are accepted.
    pub(super) total: usize,
    /// Of these, the ones of one client address.
    pub(super) per_address: usize,
    /// From accepting a connection to its end. Where it is set, a connection
    /// serves one request.
    pub(super) lifetime: Option<Duration>,
}

impl ConnectionLimits {
    /// For `--metrics-address`. A scrape and a probe take milliseconds; Prometheus gives
    /// up after 10 s. With the limit per address, kubelet's probe is answered while a
    /// pod holds all connections that it can get.
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
    total: usize,
    of_address: HashMap<Option<IpAddr>, usize>,
}

impl Connections {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { limits, open: Arc::default() }
    }

    pub(super) fn limits(&self) -> ConnectionLimits {
        self.limits
    }

    /// Counts a connection until the permit is dropped. `None` at a limit.
    pub(super) fn admit(&self, address: Option<IpAddr>) -> Option<Permit> {
        // The same IPv4 client must not count twice on a dual-stack listener.
        let address = address.map(|address| address.to_canonical());
        let mut open = self.lock();
        if open.total >= self.limits.total {
            return None;
        }
        let of_address = open.of_address.entry(address).or_default();
        if *of_address >= self.limits.per_address {
            return None;
        }
        *of_address += 1;
        open.total += 1;
        Some(Permit { connections: self.clone(), address })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One counted connection.
#[derive(Debug)]
pub(super) struct Permit {
    connections: Connections,
    address: Option<IpAddr>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.total = open.total.saturating_sub(1);
        if let Some(count) = open.of_address.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.of_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(connections: &Connections, address: &str) -> Option<Permit> {
        connections.admit(Some(address.parse().unwrap()))
    }

    #[test]
    fn one_address_leaves_connections_for_others_and_all_of_them_are_bounded() {
        let limits = ConnectionLimits { total: 4, per_address: 2, lifetime: None };
        let connections = Connections::new(limits);
        let first = admit(&connections, "10.0.0.1").unwrap();
        // The same client through the IPv6 side of a dual-stack listener.
        let second = admit(&connections, "::ffff:10.0.0.1").unwrap();
        assert!(admit(&connections, "10.0.0.1").is_none(), "the limit of one address");
        let others: Vec<_> =
            ["10.0.0.2", "10.0.0.3"].map(|one| admit(&connections, one).unwrap()).into();
        assert!(admit(&connections, "10.0.0.4").is_none(), "the limit of all");

        drop(first);
        let again = admit(&connections, "10.0.0.1").unwrap();
        drop((second, again, others));
        let open = connections.lock();
        assert_eq!((open.total, open.of_address.len()), (0, 0), "nothing is remembered");
    }

    #[test]
    fn the_limits_leave_room_for_probes_while_addresses_are_at_theirs() {
        let ConnectionLimits { total, per_address, lifetime } = ConnectionLimits::METRICS;
        assert!(per_address * 4 <= total);
        assert!(lifetime.is_some());
        assert_eq!(ConnectionLimits::ADMIN.lifetime, None, "a working call is never cut");
    }
}
