//! Servers that bear few connections: they reset further ones, or slow down for all.

use std::path::Path;

use crate::support::driver::Setup;
use crate::support::fetch::{Fetch, Fetched};
use crate::support::models::{MIB, PHI3, assert_synthetic, put_large};
use crate::support::run::{end_to_end, figure};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};

/// What the store bears, between two numbers that `auto` tries: 32 and 64.
const CAP: usize = 40;

/// A connection's bytes in a second: all that the cap allows are of use.
const RATE: u64 = MIB / 2;

/// Enough for the search of `auto`, which takes some seconds.
const OBJECTS: u64 = 160;
const SIZE: u64 = MIB;

/// A store with a model of so many objects, which bears little.
fn store_under(faults: &[Action], objects: u64, size: u64) -> LocalStore {
    let store = LocalStore::builder().start().unwrap();
    for object in 0..objects {
        let options = PutOptions { crc32c: true, ..PutOptions::default() };
        put_large(&store, &format!("{object}.bin"), size, object, options);
    }
    for action in faults {
        store.faults().add(Rule::new(action.clone()).operation(Operation::Get));
    }
    store
}

/// Fetches a model of many objects, and checks that it is complete.
async fn fetch_under(scratch: &Path, faults: &[Action]) -> (LocalStore, Fetched) {
    let store = store_under(faults, OBJECTS, SIZE);
    let arguments = ["--concurrency", "auto", "--log-level", "debug"];
    let fetch = Fetch::new(scratch, &store).with(&arguments);
    let fetched = fetch.run().await;
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    for object in 0..OBJECTS {
        assert_synthetic(&fetch.directory.join(format!("{object}.bin")), object, SIZE);
    }
    (store, fetched)
}

/// The numbers of requests that `auto` tried, and those that it kept, in this order.
fn numbers(log: &str) -> (Vec<usize>, Vec<usize>) {
    let of = |statement: &str, field: &str| {
        let lines = log.lines().filter(|line| line.contains(statement));
        let values = lines.filter_map(|line| line.split(field).nth(1)?.split(' ').next());
        values.map(|value| value.parse().expect("a number")).collect()
    };
    (of("concurrency changes", " to="), of("concurrency is kept", " requests="))
}

/// The numbers to which resets lowered the requests for the bucket.
fn lowered(log: &str) -> Vec<usize> {
    let lines = log.lines().filter(|line| line.contains("connections are reset beyond"));
    let values = lines.filter_map(|line| line.split("requests=").nth(1)?.split(' ').next());
    values.map(|value| value.parse().expect("a number")).collect()
}

/// Asserts that `auto` tried more requests than the store bears, and returned to fewer.
fn assert_settled_below_the_cap(what: &str, log: &str) {
    let (tried, kept) = numbers(log);
    figure(format_args!("auto where a store {what}: tried {tried:?}, kept {kept:?}"));
    assert!(tried.iter().any(|number| *number > CAP), "{tried:?}");
    assert!(!kept.is_empty() && kept.iter().all(|number| *number <= CAP), "{kept:?}");
    assert!(tried.last().is_some_and(|number| *number <= CAP), "{tried:?}");
}

#[tokio::test]
async fn auto_stays_below_the_number_of_connections_beyond_which_they_are_reset() {
    let scratch = tempfile::tempdir().unwrap();
    let faults = [
        Action::ConnectionBandwidth { bytes_per_sec: RATE },
        Action::ConnectionLimit { connections: CAP },
    ];
    let (store, fetched) = fetch_under(scratch.path(), &faults).await;
    assert_settled_below_the_cap("resets connections beyond 40", &fetched.stderr);
    let reset = store.faults().list()[1].hits;
    assert!(reset > 0, "no connection was reset");
    let lowered = lowered(&fetched.stderr);
    assert!(lowered.iter().all(|number| *number >= CAP / 2), "{lowered:?}");
}

#[test]
fn auto_stays_below_the_number_of_connections_beyond_which_all_slow_down() {
    let bodies = u64::try_from(CAP).unwrap();
    let faults = [
        Action::ConnectionBandwidth { bytes_per_sec: RATE },
        Action::Crowding { bytes_per_sec: bodies * RATE, bodies },
    ];
    let (objects, size) = (8, OBJECTS * SIZE / 8);
    end_to_end(async |scratch| {
        let store = store_under(&faults, objects, size);
        let mut setup = Setup::new(scratch, &store).with_config("download: {rangeSize: 1MiB}\n");
        setup.arguments = ["--log-level", "debug"].map(str::to_owned).into();
        let driver = setup.start().await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        for object in 0..objects {
            assert_synthetic(&volume.target().join(format!("{object}.bin")), object, size);
        }
        assert_settled_below_the_cap("slows down beyond 40 connections", &driver.log());
        assert!(driver.metric("download_concurrency").await <= bodies);
    });
}

#[tokio::test]
async fn a_store_that_bears_fewer_connections_than_auto_begins_with_serves_a_model_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let faults = [
        Action::ConnectionBandwidth { bytes_per_sec: 8 * RATE },
        Action::ConnectionLimit { connections: 6 },
    ];
    let (store, fetched) = fetch_under(scratch.path(), &faults).await;
    let (tried, kept) = numbers(&fetched.stderr);
    let reset = store.faults().list()[1].hits;
    let lowered = lowered(&fetched.stderr);
    figure(format_args!("reset where 6 connections may be: {reset}, lowered to {lowered:?}"));
    assert!(lowered.last().is_some_and(|number| (3..=8).contains(number)), "{lowered:?}");
    assert!(tried.iter().chain(&kept).all(|number| *number <= 16), "{tried:?}, {kept:?}");
    // Without a limit for this bucket there are more than objects, and downloads that fail.
    assert!((1..=OBJECTS / 2).contains(&reset), "{reset} requests were reset");
}
