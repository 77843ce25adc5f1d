//! `objectStorage.buckets`, and the region and identity of a StorageClass.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use crate::support::commands::Commands;
use crate::support::driver::Setup;
use crate::support::kubelet::{Volume, mount_capability};
use crate::support::models::{BUCKET, PHI3, PREFIX, content_of, store_with_phi3};
use crate::support::run::{end_to_end, eventually};
use localstore::{LocalStore, PublicAccess, RequestRecord};
use oci_model_csi::csi::proto::CreateVolumeRequest;
use oci_model_csi::csi::proto::volume_capability::access_mode::Mode;
use tonic::Code;

/// The second tenancy, and its bucket.
const OTHER: &str = "othertenancy";
const SHARED: &str = "shared-models";

/// A model of the second tenancy.
const THEIRS: [(&str, &str); 3] = [("bucket", SHARED), ("namespace", OTHER), ("prefix", "m/")];

fn other_at(scratch: &Path, address: Option<SocketAddr>) -> LocalStore {
    let builder = LocalStore::builder().namespace(OTHER);
    let builder = match address {
        Some(address) => builder.listen(address),
        None => builder,
    };
    // The key of the driver, as it is of both tenancies' users.
    let other = builder.cli_config(scratch.join("oci/config")).start().unwrap();
    other.put(SHARED, "m/config.json", b"theirs").unwrap();
    other
}

/// The configuration of the other store's bucket.
fn listing(name: &str, endpoint: &str, more: &str) -> String {
    format!(
        "objectStorage: {{buckets: [{{name: {name}, namespace: {OTHER}, endpoint: \"{endpoint}\"{more}}}]}}\n"
    )
}

#[track_caller]
fn shown(volume: &Volume, name: &str) -> Vec<u8> {
    content_of(&volume.target())[name].clone().unwrap()
}

fn requests_about(store: &LocalStore, bucket: &str) -> Vec<RequestRecord> {
    let about = format!("/b/{bucket}/");
    store.requests().into_iter().filter(|one| one.target.contains(&about)).collect()
}

#[track_caller]
fn assert_unsigned(store: &LocalStore, bucket: &str) {
    let requests = requests_about(store, bucket);
    assert!(
        !requests.is_empty() && requests.iter().all(|one| one.caller.is_none()),
        "{requests:?}"
    );
}

#[test]
fn a_listed_bucket_is_read_at_its_endpoint_and_all_others_at_the_drivers() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let setup = Setup::new(scratch, &store);
        let other = other_at(scratch, None);
        // The same name in both tenancies; theirs is listed.
        other.put(BUCKET, &format!("{PREFIX}config.json"), b"theirs").unwrap();
        let driver = setup.with_config(&listing(BUCKET, &other.endpoint(), "")).start().await;
        let kubelet = driver.kubelet();
        let ours = kubelet.inline("1", &PHI3);
        ours.publish().await.unwrap();
        assert!(other.requests().is_empty());
        store.reset_stats();
        let theirs = kubelet.inline("2", &[&PHI3[..], &[("namespace", OTHER)]].concat());
        theirs.publish().await.unwrap();
        assert_eq!(shown(&theirs, "config.json"), b"theirs");
        assert_ne!(shown(&ours, "config.json"), b"theirs");
        assert_eq!(requests_about(&store, BUCKET), []);
        // The Controller looks there too.
        let parameters = [&PHI3[..], &[("namespace", OTHER)]].concat().into_iter();
        let claim = CreateVolumeRequest {
            name: "pvc-1".to_owned(),
            parameters: parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            volume_capabilities: vec![mount_capability(Mode::MultiNodeReaderOnly)],
            ..CreateVolumeRequest::default()
        };
        let made = kubelet.controller().await.create_volume(claim).await.unwrap().into_inner();
        assert_eq!(made.volume.unwrap().capacity_bytes, 6, "the size of theirs");
        // A bucket that is not listed is looked for in the driver's own region and tenancy.
        let unlisted = kubelet.inline("3", &THEIRS);
        let (code, message) = unlisted.refused().await;
        assert_eq!(code, Code::NotFound);
        assert!(message.contains(SHARED), "{message}");
    });
}

#[test]
fn a_listed_bucket_is_read_with_the_identity_that_the_administrator_names() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let setup = Setup::new(scratch, &store);
        let other = other_at(scratch, None);
        other.set_public_access(SHARED, PublicAccess::ObjectRead).unwrap();
        let config = listing(SHARED, &other.endpoint(), ", auth: none");
        let driver = setup.with_config(&config).start().await;
        let volume = driver.kubelet().inline("1", &THEIRS);
        volume.publish().await.unwrap();
        assert_unsigned(&other, SHARED);
        assert_eq!(requests_about(&store, SHARED), []);
    });
}

#[test]
fn an_unreachable_second_tenancy_fails_only_its_own_pods_and_is_retried() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let setup = Setup::new(scratch, &store);
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let lists = format!(
            "{{name: {SHARED}, namespace: {OTHER}, endpoint: \"http://{address}\"}}, \
             {{name: sessions, auth: security_token}}, \
             {{name: instances, auth: instance_principal}}"
        );
        let mut setup = setup.with_config(&format!("objectStorage: {{buckets: [{lists}]}}\n"));
        setup.environment.push(("OCI_METADATA_BASE_URL", format!("http://{address}/opc/v2")));
        let driver = setup.start().await;
        let kubelet = driver.kubelet();
        let theirs = kubelet.inline("1", &THEIRS);
        let asked = async {
            let (code, message) = theirs.refused().await;
            assert_eq!(code, Code::Unavailable, "{message}");
            assert!(message.contains(&address.to_string()), "{message}");
        };
        let others = async {
            kubelet.inline("2", &PHI3).publish().await.unwrap();
            let sessions = kubelet.inline("3", &[("bucket", "sessions"), ("prefix", "")]);
            let (code, message) = sessions.refused().await;
            assert_eq!(code, Code::FailedPrecondition, "{message}");
            assert!(message.contains("security_token"), "{message}");
        };
        tokio::join!(asked, others);
        let _other = other_at(scratch, Some(address));
        eventually("the other tenancy serves", Duration::from_secs(60), async || {
            theirs.publish().await.ok()
        })
        .await;
        assert_eq!(shown(&theirs, "config.json"), b"theirs");
    });
}

#[test]
fn a_model_that_a_class_reads_with_another_identity_is_refused_to_pods_that_may_not_read_it() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Setup::new(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        store.set_public_access(BUCKET, PublicAccess::ObjectRead).unwrap();
        let attributes = [&PHI3[..], &[("auth", "none")]].concat();
        let class = kubelet.persistent("volume-1", "1", &attributes);
        class.publish().await.unwrap();
        assert_unsigned(&store, BUCKET);
        // The driver's own identity loses its permission.
        store.hide("*", BUCKET);
        for (pod, policy) in [("2", "IfNotPresent"), ("3", "Never"), ("4", "Always")] {
            let inline = kubelet.inline(pod, &[&PHI3[..], &[("pullPolicy", policy)]].concat());
            assert_eq!(inline.refused().await.0, Code::NotFound, "{policy}");
        }
        let again = [&attributes[..], &[("pullPolicy", "IfNotPresent")]].concat();
        kubelet.persistent("volume-2", "5", &again).publish().await.unwrap();
    });
}

#[test]
fn a_listed_bucket_is_prefetched_by_the_list_and_by_the_command() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let setup = Setup::new(scratch, &store);
        let other = other_at(scratch, None);
        other.put(SHARED, "n/config.json", b"theirs too").unwrap();
        let listed = listing(SHARED, &other.endpoint(), "");
        let prefetch = format!("prefetch: [\"oci://{SHARED}@{OTHER}/m/\"]\n");
        let mut driver = setup.with_config(&format!("{listed}{prefetch}")).start().await;
        let commands = Commands::of(&driver.setup);
        eventually("the list is downloaded", Duration::from_secs(30), async || {
            (driver.in_cache("models").len() == 1).then_some(())
        })
        .await;
        other.reset_stats();
        let volume = driver.kubelet().inline("1", &THEIRS);
        volume.publish().await.unwrap();
        assert!(other.stats().object_bytes.is_empty(), "it was there");
        // Without a driver, the command reads the same configuration.
        driver.kill().await;
        let uri = format!("oci://{SHARED}@{OTHER}/n/");
        assert!(commands.text(&["prefetch", &uri]).await.contains("downloaded"));
    });
}
