//! A name server and hosts with several addresses, in a network of the test's own
//! ([`end_to_end_in_a_network`](super::run::end_to_end_in_a_network)).

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};

use super::namespace::replace_file;

/// Types of records (RFC 1035, 3.2.2; RFC 3596, 2.1).
const A: u16 = 1;
const AAAA: u16 = 28;

/// A name server for which every name has the same addresses. It ends when it is dropped.
pub(crate) struct NameServer {
    addresses: Arc<Mutex<Vec<IpAddr>>>,
    questions: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl NameServer {
    /// Starts it, and has all programs of the namespace ask it.
    pub(crate) async fn start(scratch: &Path, addresses: &[IpAddr]) -> Self {
        for (place, text) in [
            ("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:5 attempts:2\n"),
            ("/etc/nsswitch.conf", "hosts: files dns\n"),
        ] {
            let file = scratch.join(place.replace('/', "_"));
            fs::write(&file, text).expect("a file");
            replace_file(place, &file);
        }
        let socket = UdpSocket::bind("127.0.0.1:53").await.expect("the port of name servers");
        let addresses = Arc::new(Mutex::new(addresses.to_vec()));
        let questions = Arc::new(AtomicUsize::new(0));
        let (known, asked) = (Arc::clone(&addresses), Arc::clone(&questions));
        let task = tokio::spawn(async move {
            let mut packet = [0; 512];
            loop {
                let (length, client) = socket.recv_from(&mut packet).await.expect("a question");
                asked.fetch_add(1, Ordering::Relaxed);
                let known = known.lock().expect("no panic").clone();
                let answer = answer(&packet[..length], &known).expect("a question of one name");
                socket.send_to(&answer, client).await.expect("an answer");
            }
        });
        Self { addresses, questions, task }
    }

    /// Changes the addresses of all names.
    pub(crate) fn becomes(&self, addresses: &[IpAddr]) {
        *self.addresses.lock().expect("no panic") = addresses.to_vec();
    }

    /// The questions so far: a lookup is one for addresses of IPv4 and one for those of IPv6.
    pub(crate) fn questions(&self) -> usize {
        self.questions.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The answer to a question of one name (RFC 1035, 4); `None` for another packet.
fn answer(question: &[u8], addresses: &[IpAddr]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let labels = question.get(HEADER..)?;
    let end = HEADER + labels.iter().position(|byte| *byte == 0)? + 1;
    let kind = u16::from_be_bytes(question.get(end..end + 2)?.try_into().ok()?);
    let records: Vec<Vec<u8>> = addresses
        .iter()
        .filter_map(|address| match (address, kind) {
            (IpAddr::V4(address), A) => Some(address.octets().to_vec()),
            (IpAddr::V6(address), AAAA) => Some(address.octets().to_vec()),
            _ => None,
        })
        .collect();
    let count = u16::try_from(records.len()).ok()?.to_be_bytes();
    let mut answer = question[..2].to_vec();
    // A response, recursion available; one question, its answers, nothing else.
    answer.extend([0x81, 0x80, 0, 1]);
    answer.extend(count);
    answer.extend([0; 4]);
    answer.extend(&question[HEADER..end + 4]);
    for record in records {
        // The question's name, its type, class IN, no second in a cache.
        answer.extend([0xC0, 0x0C]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 0]);
        answer.extend(u16::try_from(record.len()).ok()?.to_be_bytes());
        answer.extend(record);
    }
    Some(answer)
}

/// An address of a service: forwards its connections. When it is dropped, they end, and the address
/// refuses further ones.
pub(crate) struct ServiceAddress {
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl ServiceAddress {
    /// Forwards connections of `address`, at the port of `service`.
    pub(crate) async fn start(address: IpAddr, service: SocketAddr) -> Self {
        let listener = TcpListener::bind((address, service.port())).await.expect("a free port");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut forwarded = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.expect("a connection");
                counter.fetch_add(1, Ordering::Relaxed);
                forwarded.spawn(async move {
                    let mut server = TcpStream::connect(service).await.expect("the service");
                    // A client that goes away is no failure of a test.
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { connections, task }
    }

    /// The connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Ends it, with all its connections.
    pub(crate) async fn end(mut self) {
        self.task.abort();
        // Its listener and connections are dropped with it.
        let _ = (&mut self.task).await;
    }
}

impl Drop for ServiceAddress {
    fn drop(&mut self) {
        self.task.abort();
    }
}
