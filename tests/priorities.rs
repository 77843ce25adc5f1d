//! How much of the network downloads take.

mod support;

use std::time::Instant;

use localstore::{LocalStore, PutOptions};
use support::driver::Setup;
use support::models::{BUCKET, MIB, PREFIX, assert_synthetic, put_large};
use support::run::{end_to_end, figure, ratio};

/// The attributes of a volume of a model under [`PREFIX`].
fn model(name: &str) -> [(&'static str, String); 2] {
    [("bucket", BUCKET.to_owned()), ("prefix", format!("{PREFIX}{name}/"))]
}

fn borrowed<'a>(attributes: &'a [(&'static str, String); 2]) -> [(&'a str, &'a str); 2] {
    attributes.each_ref().map(|(key, value)| (*key, value.as_str()))
}

/// A model of so many objects of this size.
fn put_model(store: &LocalStore, name: &str, objects: u64, size: u64) {
    for n in 0..objects {
        let options = PutOptions { crc32c: true, ..PutOptions::default() };
        put_large(store, &format!("{name}/{n}.bin"), size, n, options);
    }
}

#[test]
fn all_downloads_together_keep_the_bandwidth_limit_and_come_to_an_end() {
    const LIMIT: u64 = 8 * MIB;
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_model(&store, "one", 1, 20 * MIB);
        put_model(&store, "two", 20, MIB);
        let config = format!("download: {{bandwidthLimit: {LIMIT}}}\n");
        let driver = Setup::new(scratch, &store).with_config(&config).start().await;
        let (kubelet, one, two) = (driver.kubelet(), model("one"), model("two"));
        let volumes = [kubelet.inline("1", &borrowed(&one)), kubelet.inline("2", &borrowed(&two))];
        let started = Instant::now();
        tokio::join!(volumes[0].mount(), volumes[1].mount());
        let millis = u64::try_from(started.elapsed().as_millis()).unwrap();
        let bytes = driver.metric("download_bytes_total").await;
        assert_eq!(bytes, 40 * MIB);
        let share = ratio(bytes * 1000 / millis, LIMIT);
        figure(format_args!("40 MiB in {millis} ms under a limit of 8 MiB/s: {share} of it"));
        assert!(share <= 1.3, "{share} of the limit");
        assert!(!driver.log().contains("bandwidthLimit"), "{}", driver.log());
        assert_synthetic(&volumes[0].target().join("0.bin"), 0, 20 * MIB);
    });
}
