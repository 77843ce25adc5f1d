//! TCP connections: to any address of the host that answers, from the chosen addresses of this
//! machine.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::addresses::{AddressBook, Lookup};
use super::failure::HopFailure;

/// How long an address has to answer until the next one is tried beside it (RFC 8305, 8).
const STAGGER: Duration = Duration::from_millis(250);

/// How long sent bytes may stay unacknowledged: as long as a body may pause. A connection of the
/// pool that a router has forgotten ends then, and not when an answer is due.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// A connection on its way.
type Attempt = BoxFuture<'static, (IpAddr, Result<TokioIo<TcpStream>, HopFailure>)>;

/// Connects to hosts; cheap to clone.
#[derive(Clone)]
pub(super) struct TcpConnector(Arc<TcpShared>);

struct TcpShared {
    book: AddressBook,
    /// Binds to no address of this machine.
    unbound: HttpConnector,
    /// Those that bind, with the address that each has.
    bound: Vec<(IpAddr, HttpConnector)>,
    /// Which of them is next.
    turn: AtomicUsize,
}

impl TcpConnector {
    /// Connections take turns over `sources`, if there are any.
    pub(super) fn new(timeout: Duration, sources: &[IpAddr], lookup: Lookup) -> Self {
        let connector = |source: Option<IpAddr>| {
            let mut tcp = HttpConnector::new();
            tcp.enforce_http(false);
            tcp.set_nodelay(true);
            tcp.set_keepalive(Some(Duration::from_secs(60)));
            tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
            tcp.set_connect_timeout(Some(timeout));
            tcp.set_local_address(source);
            tcp
        };
        let bound = sources.iter().map(|source| (*source, connector(Some(*source)))).collect();
        // As long as the system asks two name servers.
        let book = AddressBook::new(lookup, timeout * 2);
        let (unbound, turn) = (connector(None), AtomicUsize::new(0));
        Self(Arc::new(TcpShared { book, unbound, bound, turn }))
    }
}

impl TcpShared {
    /// Whether there is a source for an address of this family, where there are any sources.
    fn can_bind(&self, address: IpAddr) -> bool {
        self.bound.is_empty()
            || self.bound.iter().any(|(source, _)| source.is_ipv4() == address.is_ipv4())
    }

    /// The connector whose turn it is for an address of this family.
    fn connector(&self, address: IpAddr) -> HttpConnector {
        let of_family: Vec<&HttpConnector> = self
            .bound
            .iter()
            .filter(|(source, _)| source.is_ipv4() == address.is_ipv4())
            .map(|(_, connector)| connector)
            .collect();
        let Some(last) = of_family.len().checked_sub(1) else { return self.unbound.clone() };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % (last + 1);
        of_family[turn].clone()
    }

    fn attempt(&self, address: IpAddr, port: u16) -> Attempt {
        let mut connector = self.connector(address);
        let target = Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(SocketAddr::new(address, port).to_string())
            .path_and_query("/")
            .build();
        async move {
            let failed = |what: String| HopFailure::new(what, None);
            let connected = match target {
                Ok(target) => connector.call(target).await,
                Err(error) => return (address, Err(failed(error.to_string()))),
            };
            let named = |error| failed(format!("{error} to {address}")).caused_by(error);
            (address, connected.map_err(named))
        }
        .boxed()
    }

    /// Connects to the first address that answers. While one is silent, the next ones are tried
    /// beside it.
    async fn connect(&self, host: &str, port: u16) -> Result<TokioIo<TcpStream>, HopFailure> {
        let found = self.book.of(host, |address| self.can_bind(address)).await;
        let found = found
            .map_err(|error| HopFailure::new("dns error".to_owned(), None).caused_by(error))?;
        let mut next = found.into_iter();
        let mut running = FuturesUnordered::new();
        let mut silent: Vec<IpAddr> = Vec::new();
        let mut first_failure = None;
        loop {
            if let Some(address) = next.next() {
                silent.push(address);
                running.push(self.attempt(address, port));
            } else if running.is_empty() {
                let none =
                    || HopFailure::new("dns error: the name has no address".to_owned(), None);
                return Err(first_failure.unwrap_or_else(none));
            }
            let patience = async {
                match next.len() {
                    0 => std::future::pending().await,
                    _ => tokio::time::sleep(STAGGER).await,
                }
            };
            let ended = tokio::select! {
                biased;
                ended = running.next() => ended,
                () = patience => None,
            };
            match ended {
                Some((address, Ok(stream))) => {
                    self.book.answered(address);
                    let slower = silent.into_iter().take_while(|other| *other != address);
                    slower.for_each(|slower| self.book.failed(slower));
                    return Ok(stream);
                }
                Some((address, Err(failure))) => {
                    silent.retain(|other| *other != address);
                    self.book.failed(address);
                    first_failure.get_or_insert(failure);
                }
                None => {}
            }
        }
    }
}

impl Service<Uri> for TcpConnector {
    type Response = TokioIo<TcpStream>;
    type Error = HopFailure;
    type Future = BoxFuture<'static, Result<Self::Response, HopFailure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), HopFailure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let shared = Arc::clone(&self.0);
        async move {
            let host = server.host().unwrap_or_default();
            shared.connect(host, port_of(&server)).await
        }
        .boxed()
    }
}

/// The port of a URI, else that of its scheme.
pub(super) fn port_of(uri: &Uri) -> u16 {
    let default = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    uri.port_u16().unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{getsockopt, sockopt::TcpUserTimeout};
    use tokio::net::TcpListener;

    use super::super::addresses::system_lookup;
    use super::*;

    #[tokio::test]
    async fn a_connection_ends_when_what_it_sends_is_acknowledged_by_no_host() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        for sources in [&[][..], &["127.0.0.2".parse().unwrap()]] {
            let timeout = Duration::from_secs(5);
            let mut tcp = TcpConnector::new(timeout, sources, system_lookup());
            let stream = tcp.call(Uri::clone(&server)).await.unwrap().into_inner();
            // In milliseconds (tcp(7)).
            assert_eq!(getsockopt(&stream, TcpUserTimeout).unwrap(), 30_000);
        }
    }
}
