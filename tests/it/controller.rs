//! Volumes of a StorageClass: made, validated, published, deleted.

use std::collections::HashMap;

use crate::support::driver::Driver;
use crate::support::kubelet::{Kubelet, mount_capability};
use crate::support::models::{BUCKET, MIB, store_with_phi3};
use crate::support::run::end_to_end;
use localstore::{Action, LocalStore, Operation, Rule};
use oci_model_csi::csi::proto::volume_capability::access_mode::Mode;
use oci_model_csi::csi::proto::{
    CapacityRange, CreateVolumeRequest, DeleteVolumeRequest, ValidateVolumeCapabilitiesRequest,
    Volume,
};
use tonic::{Code, Status};

const GIB: i64 = 1 << 30;

fn strings(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A claim named `phi3-mini` of a class whose models lie under `models/`.
fn claim(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![mount_capability(Mode::MultiNodeReaderOnly)],
        parameters: strings(&[
            ("bucket", BUCKET),
            ("prefix", "models/${pvc.name}/"),
            ("csi.storage.k8s.io/pvc/name", "phi3-mini"),
            ("csi.storage.k8s.io/pvc/namespace", "team-a"),
            ("csi.storage.k8s.io/pv/name", name),
        ]),
        ..CreateVolumeRequest::default()
    }
}

fn with_capacity(required_bytes: i64, limit_bytes: i64) -> CreateVolumeRequest {
    let capacity_range = Some(CapacityRange { required_bytes, limit_bytes });
    CreateVolumeRequest { capacity_range, ..claim("pvc-1") }
}

async fn create(kubelet: &Kubelet, request: CreateVolumeRequest) -> Result<Volume, Status> {
    let response = kubelet.controller().await.create_volume(request).await?;
    Ok(response.into_inner().volume.expect("a volume"))
}

async fn refused(kubelet: &Kubelet, request: CreateVolumeRequest, code: Code, words: &[&str]) {
    let status = create(kubelet, request).await.expect_err("was made");
    assert_eq!(status.code(), code, "{}", status.message());
    for word in words {
        assert!(status.message().contains(word), "{word:?} is not in {:?}", status.message());
    }
}

async fn delete(kubelet: &Kubelet, volume_id: &str) -> Result<(), Status> {
    let request =
        DeleteVolumeRequest { volume_id: volume_id.to_owned(), ..DeleteVolumeRequest::default() };
    kubelet.controller().await.delete_volume(request).await.map(drop)
}

#[test]
fn a_claim_names_a_model_that_pods_can_mount() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let volume = create(&kubelet, claim("pvc-1")).await.unwrap();
        assert!(volume.volume_id.len() <= 128);
        let expected = strings(&[("bucket", BUCKET), ("prefix", "models/phi3-mini/")]);
        assert_eq!(volume.volume_context, expected);
        assert_eq!(store.stats().body_bytes, 0, "provisioning downloads nothing");

        let context: Vec<(&str, &str)> =
            volume.volume_context.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let pods = [
            kubelet.persistent(&volume.volume_id, "1", &context),
            kubelet.persistent(&volume.volume_id, "2", &context),
        ];
        for pod in &pods {
            pod.publish().await.unwrap();
            assert!(pod.target().join("tokenizer/vocab.txt").is_file());
        }
        for pod in &pods {
            pod.unpublish().await.unwrap();
        }
        assert_eq!(driver.leases(), 0);
    });
}

#[test]
fn the_capacity_is_the_size_of_the_model_or_the_requested_one() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let size = i64::try_from(3 * MIB + 7 + 22 + 8).unwrap();
        let mut made = Vec::new();
        for (required, limit, expected) in
            [(0, 0, size), (1, 0, size), (50 * GIB, 0, 50 * GIB), (0, size, size)]
        {
            let mut request = with_capacity(required, limit);
            request.name = format!("pvc-{required}-{limit}");
            let volume = create(&kubelet, request).await.unwrap();
            assert_eq!(volume.capacity_bytes, expected);
            made.push(volume.volume_id);
        }
        made.sort();
        made.dedup();
        assert_eq!(made.len(), 4, "each name is a volume of its own");
        let mut small = with_capacity(0, size - 1);
        small.name = "pvc-small".to_owned();
        refused(&kubelet, small, Code::OutOfRange, &["3 MiB", "limit"]).await;
        refused(&kubelet, with_capacity(2, 1), Code::InvalidArgument, &["limit"]).await;
        refused(&kubelet, with_capacity(-1, 0), Code::InvalidArgument, &["required"]).await;
    });
}

#[test]
fn the_same_name_is_the_same_volume_and_nothing_else() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        store.put(BUCKET, "models/other/config.json", b"{}").unwrap();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let first = create(&kubelet, claim("pvc-1")).await.unwrap();
        assert_eq!(create(&kubelet, claim("pvc-1")).await.unwrap(), first);

        let mut other = claim("pvc-1");
        other.parameters.insert("csi.storage.k8s.io/pvc/name".to_owned(), "other".to_owned());
        refused(&kubelet, other, Code::AlreadyExists, &["pvc-1", "parameters"]).await;
        let larger = with_capacity(10 * GIB, 0);
        refused(&kubelet, larger, Code::AlreadyExists, &["pvc-1"]).await;

        delete(&kubelet, &first.volume_id).await.unwrap();
        let again = create(&kubelet, with_capacity(10 * GIB, 0)).await.unwrap();
        assert_eq!(again.volume_id, first.volume_id);
    });
}

#[test]
fn templates_are_filled_from_the_claim_and_by_nothing_that_leaves_a_segment() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        store.put(BUCKET, "team-a/phi3-mini/config.json", b"{}").unwrap();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let templated = |prefix: &str, extra: &[(&str, &str)]| {
            let mut request = claim("pvc-template");
            request.parameters.insert("prefix".to_owned(), prefix.to_owned());
            request.parameters.extend(strings(extra));
            request
        };
        let both = templated("${pvc.namespace}/${pvc.name}", &[]);
        let volume = create(&kubelet, both).await.unwrap();
        assert_eq!(volume.volume_context["prefix"], "team-a/phi3-mini");
        delete(&kubelet, &volume.volume_id).await.unwrap();
        for name in ["..", ".", "a/b", "a b", ""] {
            let hostile =
                templated("models/${pvc.name}/", &[("csi.storage.k8s.io/pvc/name", name)]);
            refused(&kubelet, hostile, Code::InvalidArgument, &["pvc.name"]).await;
        }
        for prefix in ["models/${pvc.uid}/", "models/${pvc.name", "${}"] {
            refused(&kubelet, templated(prefix, &[]), Code::InvalidArgument, &["${"]).await;
        }
    });
}

#[test]
fn parameters_capabilities_and_models_that_are_wrong_make_no_volume() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let with = |key: &str, value: &str| {
            let mut request = claim("pvc-1");
            request.parameters.insert(key.to_owned(), value.to_owned());
            request
        };
        let invalid = Code::InvalidArgument;
        refused(&kubelet, with("bukcet", "x"), invalid, &["did you mean bucket"]).await;
        refused(&kubelet, with("auth", "apikey"), invalid, &["authentication", "apikey"]).await;
        refused(&kubelet, with("cacheScope", "pod"), invalid, &["cacheScope"]).await;
        refused(&kubelet, with("prefix", "models/phi4"), Code::NotFound, &["models/phi4/"]).await;
        refused(&kubelet, with("bucket", "nobodys"), Code::NotFound, &["nobodys"]).await;
        let elsewhere = format!("sha256:{}", "ab".repeat(32));
        let pinned = with("revision", &elsewhere);
        refused(&kubelet, pinned, Code::FailedPrecondition, &[&elsewhere]).await;

        let nameless = CreateVolumeRequest { name: String::new(), ..claim("pvc-1") };
        refused(&kubelet, nameless, invalid, &["name"]).await;
        let without = CreateVolumeRequest { volume_capabilities: Vec::new(), ..claim("pvc-1") };
        refused(&kubelet, without, invalid, &["volume_capabilities"]).await;
        // ReadWriteMany, ReadWriteOncePod, and one that Kubernetes has no name for.
        for mode in
            [Mode::MultiNodeMultiWriter, Mode::SingleNodeSingleWriter, Mode::MultiNodeSingleWriter]
        {
            let capabilities =
                vec![mount_capability(Mode::MultiNodeReaderOnly), mount_capability(mode)];
            let writers =
                CreateVolumeRequest { volume_capabilities: capabilities, ..claim("pvc-1") };
            refused(&kubelet, writers, invalid, &[mode.as_str_name(), "read-only"]).await;
        }
    });
}

#[test]
fn unknown_parameters_are_ignored_where_they_are_kubernetes_own_and_refused_elsewhere() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let with = |key: &str| {
            let mut request = claim("pvc-1");
            request.parameters.insert(key.to_owned(), "x".to_owned());
            request
        };
        for key in ["csi.storage.k8s.io/of-tomorrow", "storage.kubernetes.io/other"] {
            let volume = create(&kubelet, with(key)).await.unwrap();
            assert!(!volume.volume_context.contains_key(key), "{:?}", volume.volume_context);
        }
        for key in ["fsType", "type", "Bucket", "endpoint", "csi.storage.k8s.io", "", "ä\n"] {
            refused(&kubelet, with(key), Code::InvalidArgument, &["unknown attribute"]).await;
        }
        let long = |key: &str| {
            let mut request = claim("pvc-1");
            request.parameters.insert(key.to_owned(), "x".repeat(100_000));
            request
        };
        for key in ["prefix", "bucket", "include", "revision", "cacheScope"] {
            refused(&kubelet, long(key), Code::InvalidArgument, &[key]).await;
        }
    });
}

#[test]
fn a_class_whose_bucket_vanished_makes_no_volume_and_running_ones_are_unaffected() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let volume = create(&kubelet, claim("pvc-1")).await.unwrap();
        let context: Vec<(&str, &str)> =
            volume.volume_context.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let running = kubelet.persistent(&volume.volume_id, "1", &context);
        running.publish().await.unwrap();
        store.hide("*", BUCKET);

        let words = [BUCKET, "it does not exist, or the driver may not see it"];
        refused(&kubelet, claim("pvc-2"), Code::NotFound, &words).await;
        let (code, message) = kubelet.persistent(&volume.volume_id, "2", &context).refused().await;
        assert_eq!(code, Code::NotFound, "{message}");
        running.publish().await.unwrap();
        assert!(running.target().join("config.json").is_file());
        assert_eq!(create(&kubelet, claim("pvc-1")).await.unwrap(), volume, "it is made already");
        delete(&kubelet, &volume.volume_id).await.unwrap();
        running.unpublish().await.unwrap();
        assert_eq!(driver.leases(), 0);
    });
}

#[test]
fn a_wrong_parameter_neither_spoils_another_volume_nor_passes_with_it() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let slow = Rule::new(Action::Latency { ms: 500 }).operation(Operation::List);
        store.faults().add(slow);
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let mut wrong = claim("pvc-wrong");
        wrong.parameters.insert("auth".to_owned(), "none".to_owned());
        for name in ["pvc-1", "pvc-2"] {
            let refusal = refused(&kubelet, wrong.clone(), Code::Unauthenticated, &["not signed"]);
            let (made, ()) = tokio::join!(create(&kubelet, claim(name)), refusal);
            made.unwrap();
        }
    });
}

#[test]
fn capabilities_are_confirmed_only_for_our_volumes() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let volume = create(&kubelet, claim("pvc-1")).await.unwrap();
        let validate = async |volume_id: &str, mode: Mode| {
            let request = ValidateVolumeCapabilitiesRequest {
                volume_id: volume_id.to_owned(),
                volume_context: volume.volume_context.clone(),
                volume_capabilities: vec![mount_capability(mode)],
                ..ValidateVolumeCapabilitiesRequest::default()
            };
            let mut controller = kubelet.controller().await;
            controller.validate_volume_capabilities(request).await.map(tonic::Response::into_inner)
        };
        for mode in [Mode::SingleNodeWriter, Mode::SingleNodeReaderOnly, Mode::MultiNodeReaderOnly]
        {
            let confirmed = validate(&volume.volume_id, mode).await.unwrap().confirmed.unwrap();
            assert_eq!(confirmed.volume_capabilities, [mount_capability(mode)]);
        }
        let refused = validate(&volume.volume_id, Mode::MultiNodeMultiWriter).await.unwrap();
        assert!(refused.confirmed.is_none() && refused.message.contains("MULTI_NODE_MULTI_WRITER"));
        let status = validate("vol-of-another-driver", Mode::SingleNodeWriter).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        let status = validate("", Mode::SingleNodeWriter).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    });
}

/// Requests that change something in Object Storage.
fn changes(store: &LocalStore) -> u64 {
    let stats = store.stats();
    [Operation::Delete, Operation::Put, Operation::DeleteBucket, Operation::CreateBucket]
        .map(|operation| stats.requests_of(operation))
        .iter()
        .sum()
}

#[test]
fn deleting_a_volume_never_deletes_an_object() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let volume = create(&kubelet, claim("pvc-1")).await.unwrap();
        for _ in 0..2 {
            delete(&kubelet, &volume.volume_id).await.unwrap();
        }
        delete(&kubelet, "vol-of-another-driver").await.unwrap();
        assert_eq!(delete(&kubelet, "").await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(changes(&store), 0);
        store.etag(BUCKET, "models/phi3-mini/config.json").unwrap();
        create(&kubelet, claim("pvc-1")).await.unwrap();
    });
}

#[test]
fn a_controller_alone_provisions_and_serves_no_node() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut setup = crate::support::driver::Setup::new(scratch, &store);
        setup.mode = "controller";
        let driver = setup.start().await;
        let kubelet = driver.kubelet();
        create(&kubelet, claim("pvc-1")).await.unwrap();
        let volume = kubelet.inline("1", &[("bucket", BUCKET), ("prefix", "models/phi3-mini")]);
        assert_eq!(volume.refused().await.0, Code::Unimplemented);
        assert!(!driver.setup.cache.exists(), "a controller needs no cache");
    });
}
