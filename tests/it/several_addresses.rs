//! A service whose name has several addresses, of IPv4 and of IPv6, as the system's own lookup finds
//! them: a name server answers in a network of the test's own.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use localstore::{LocalStore, Operation, PutOptions};

use crate::support::driver::Setup;
use crate::support::fetch::Fetch;
use crate::support::models::{MIB, PHI3, assert_synthetic, content_of, put, put_large};
use crate::support::names::{NameServer, ServiceAddress};
use crate::support::run::{end_to_end_in_a_network, figure};

const NAME: &str = "storage.example.test";
const OBJECTS: u64 = 24;
const IPV6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn ip(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

/// An encrypted store with a model of several objects, which has a name.
fn store_with_name() -> (LocalStore, String) {
    let store = LocalStore::builder().tls(true).tls_name(NAME).start().unwrap();
    for n in 0..OBJECTS {
        put_large(&store, &format!("{n}.bin"), MIB, n, PutOptions::default());
    }
    let endpoint = format!("https://{NAME}:{}", store.address().port());
    (store, endpoint)
}

/// A fetch of this store with 12 requests at once, which logs what it repeats.
fn fetch_of(scratch: &Path, store: &LocalStore, endpoint: &str) -> Fetch {
    let ca_file = store.ca_file().unwrap().to_str().unwrap();
    let arguments = ["--ca-file", ca_file, "--concurrency", "12", "--log-level", "debug"];
    let mut fetch = Fetch::new(scratch, store).with(&arguments);
    endpoint.clone_into(&mut fetch.access.endpoint);
    fetch
}

/// Fetches the model; no request may fail or be repeated.
async fn fetch_without_a_failure(fetch: &Fetch, store: &LocalStore) {
    store.reset_stats();
    let fetched = fetch.run().await;
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    for n in 0..OBJECTS {
        assert_synthetic(&fetch.directory.join(format!("{n}.bin")), n, MIB);
    }
    for words in ["repeating a request", "range interrupted"] {
        let line = fetched.stderr.lines().find(|line| line.contains(words));
        assert!(line.is_none(), "{line:?}");
    }
    assert_eq!(store.stats().requests_of(Operation::Get), OBJECTS);
}

#[test]
fn connections_are_spread_over_the_addresses_of_a_name_and_a_dead_one_costs_no_request() {
    end_to_end_in_a_network(async |scratch| {
        let (store, endpoint) = store_with_name();
        // Nothing listens at the address of IPv6, which the system prefers, and at one of IPv4.
        let names = NameServer::start(scratch, &[IPV6, ip(2), ip(3), ip(4)]).await;
        let one = ServiceAddress::start(ip(2), store.address()).await;
        let other = ServiceAddress::start(ip(3), store.address()).await;
        fetch_without_a_failure(&fetch_of(scratch, &store, &endpoint), &store).await;
        let (ones, others) = (one.connections(), other.connections());
        let questions = names.questions();
        figure(format_args!(
            "{ones} and {others} connections to two addresses beside two dead ones, {questions} \
             questions for their name"
        ));
        assert!(ones >= 3 && others >= 3, "{ones} and {others}");
        // Two for each lookup, and a lookup for all connections that are opened together.
        assert!(questions >= 2 && questions < 2 * (ones + others), "{questions}");
    });
}

#[test]
fn a_host_with_addresses_of_ipv6_only_is_read_by_its_name_and_by_its_address() {
    end_to_end_in_a_network(async |scratch| {
        let (store, endpoint) = store_with_name();
        let names = NameServer::start(scratch, &[IPV6]).await;
        let only = ServiceAddress::start(IPV6, store.address()).await;
        fetch_without_a_failure(&fetch_of(scratch, &store, &endpoint), &store).await;
        let by_name = only.connections();
        assert!(by_name > 0 && names.questions() >= 2, "{by_name}");
        let asked = names.questions();
        let endpoint = format!("https://[::1]:{}", store.address().port());
        let mut fetch = fetch_of(scratch, &store, &endpoint);
        fetch.directory = scratch.join("again");
        fetch_without_a_failure(&fetch, &store).await;
        assert!(only.connections() > by_name);
        assert_eq!(names.questions(), asked, "an address is no name");
    });
}

#[test]
fn a_service_that_moves_to_another_address_is_found_by_a_running_driver() {
    end_to_end_in_a_network(async |scratch| {
        let (store, endpoint) = store_with_name();
        let names = NameServer::start(scratch, &[ip(2)]).await;
        let before = ServiceAddress::start(ip(2), store.address()).await;
        let ca_file = store.ca_file().unwrap().display();
        let mut setup = Setup::new(scratch, &store)
            .with_config(&format!("objectStorage:\n  caFile: {ca_file}\n"));
        setup.endpoint = endpoint;
        let driver = setup.start().await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        assert!(before.connections() > 0, "the premise");
        let after = ServiceAddress::start(ip(3), store.address()).await;
        names.becomes(&[ip(3)]);
        before.end().await;
        put(&store, "config.json", "{}");
        let volume = kubelet.inline("2", &PHI3);
        volume.publish().await.unwrap();
        assert!(after.connections() > 0);
        assert_eq!(content_of(&volume.target()).len(), usize::try_from(OBJECTS).unwrap() + 1);
    });
}
