//! Provisioning with a fake store.

use super::*;
use crate::resolve::Resolver;
use oci_model_csi_fake_source::FakeSource;

const MODEL: u64 = 7_500_000_000;

fn store() -> FakeSource {
    FakeSource::new(&[("models/llama3-8b/weights", MODEL), ("models/phi3/weights", 10)])
}

fn provisioner(store: &FakeSource) -> Provisioner {
    provisioner_of(store, "oci-model-csi.dev")
}

fn provisioner_of(store: &FakeSource, driver: &str) -> Provisioner {
    let policy = watch::channel(Policy::default()).1;
    let (claims, events) = (ClaimReader::default(), Events::default());
    Provisioner::new(Resolver::of_fake(store), policy, claims, events, driver)
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn claim(name: &str, claim: &str) -> ProvisionRequest {
    let parameters = map(&[
        ("bucket", "ai-model-cache"),
        ("prefix", "models/${pvc.name}/"),
        ("csi.storage.k8s.io/pvc/name", claim),
        ("csi.storage.k8s.io/pvc/namespace", "team-a"),
        ("csi.storage.k8s.io/pv/name", name),
    ]);
    ProvisionRequest { name: name.to_owned(), parameters, capacity: Capacity::default() }
}

fn with_capacity(
    request: ProvisionRequest,
    required_bytes: u64,
    limit_bytes: Option<u64>,
) -> ProvisionRequest {
    ProvisionRequest { capacity: Capacity { required_bytes, limit_bytes }, ..request }
}

fn with_parameter(mut request: ProvisionRequest, key: &str, value: &str) -> ProvisionRequest {
    request.parameters.insert(key.to_owned(), value.to_owned());
    request
}

#[tokio::test]
async fn a_claims_name_selects_the_model_and_kubernetes_keys_are_dropped() {
    let provisioner = provisioner(&store());
    let volume = provisioner.create(claim("pvc-1", "llama3-8b")).await.unwrap();
    assert!(is_volume_id(&volume.id) && volume.id.len() <= 128, "{}", volume.id);
    assert_eq!(volume.capacity_bytes, MODEL);
    let context: Vec<_> = volume.context.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(context, [("bucket", "ai-model-cache"), ("prefix", "models/llama3-8b/")]);
}

#[tokio::test]
async fn a_claim_may_be_larger_than_its_model_but_its_limit_may_not_be_smaller() {
    let provisioner = provisioner(&store());
    let of = |name: &str| claim(name, "llama3-8b");
    let fifty = 50 << 30;
    let large = provisioner.create(with_capacity(of("a"), fifty, None)).await.unwrap();
    assert_eq!(large.capacity_bytes, fifty);
    let exact = provisioner.create(with_capacity(of("b"), 1, Some(MODEL))).await.unwrap();
    assert_eq!(exact.capacity_bytes, MODEL);
    let error = provisioner.create(with_capacity(of("c"), 1, Some(MODEL - 1))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    assert!(error.message().contains("7500000000 bytes"), "{error}");
}

#[tokio::test]
async fn a_repeated_name_gives_the_same_volume_without_another_listing() {
    let store = store();
    let provisioner = provisioner(&store);
    let first = provisioner.create(claim("pvc-1", "phi3")).await.unwrap();
    let asked = store.listings();
    assert_eq!(provisioner.create(claim("pvc-1", "phi3")).await.unwrap(), first);
    assert_eq!(store.listings(), asked);

    let other = provisioner.create(claim("pvc-2", "phi3")).await.unwrap();
    assert_ne!(other.id, first.id);
    let of_another_driver = provisioner_of(&store, "other.dev");
    assert_ne!(of_another_driver.create(claim("pvc-1", "phi3")).await.unwrap().id, first.id);
}

#[tokio::test]
async fn the_same_name_with_other_parameters_or_capacity_is_a_conflict() {
    let provisioner = provisioner(&store());
    let created = with_capacity(claim("pvc-1", "phi3"), 100, Some(100));
    let created = provisioner.create(created).await.unwrap();
    for (different, says) in [
        (with_capacity(claim("pvc-1", "phi3"), 200, Some(200)), "created with 100 bytes"),
        (with_capacity(claim("pvc-1", "phi3"), 0, Some(99)), "created with 100 bytes"),
        (claim("pvc-1", "llama3-8b"), "other parameters"),
        (with_parameter(claim("pvc-1", "phi3"), "pullPolicy", "Never"), "other parameters"),
    ] {
        let error = provisioner.create(different).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.message().contains(says), "{error}");
    }
    let fitting = with_capacity(claim("pvc-1", "phi3"), 50, None);
    assert_eq!(provisioner.create(fitting).await.unwrap(), created);
    let no_slash = with_parameter(claim("pvc-1", "phi3"), "prefix", "models/${pvc.name}");
    assert_eq!(provisioner.create(no_slash).await.unwrap().id, created.id, "the same directory");

    provisioner.delete(&created.id).unwrap();
    provisioner.create(claim("pvc-1", "llama3-8b")).await.unwrap();
}

#[tokio::test]
async fn a_missing_model_or_pinned_revision_gives_no_volume() {
    let provisioner = provisioner(&store());
    let error = provisioner.create(claim("pvc-1", "phi4")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("models/phi4/"), "{error}");

    let pinned = format!("sha256:{}", "0".repeat(64));
    let request = with_parameter(claim("pvc-1", "phi3"), "revision", &pinned);
    let error = provisioner.create(request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition);
    assert!(error.message().contains(&pinned), "{error}");
    assert_eq!(error.message().matches("sha256:").count(), 2, "{error}");
    provisioner.create(claim("pvc-1", "phi3")).await.unwrap();
}

#[tokio::test]
async fn wrong_parameters_are_refused_before_any_listing() {
    let store = store();
    let provisioner = provisioner(&store);
    for (key, value, says) in [
        ("prefix", "models/${claim}/", "unknown variable"),
        (
            "prefix",
            "models/${pvc.annotations['oci-model-csi.dev/model']}/",
            "this driver knows none",
        ),
        ("bucket", "${pvc.namespace}", "in prefix only"),
        ("include", "${pvc.name}", "in prefix only"),
        ("buckets", "x", "did you mean bucket?"),
        ("csi.storage.k8s.io/pvc/name", "", "--extra-create-metadata"),
        ("csi.storage.k8s.io/pvc/name", "..", "one segment"),
    ] {
        let request = with_parameter(claim("pvc-1", "phi3"), key, value);
        let error = provisioner.create(request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.message().contains(says), "{error}");
    }
    assert_eq!(store.listings(), 0);
}

#[tokio::test]
async fn a_second_call_for_a_name_is_in_progress() {
    let store = store();
    let provisioner = provisioner(&store);
    store.set_open(false);
    let first = provisioner.create(claim("pvc-1", "phi3"));
    tokio::pin!(first);
    assert!(futures_util::poll!(&mut first).is_pending());
    let error = provisioner.create(claim("pvc-1", "phi3")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InProgress);
    store.set_open(true);
    let created = first.await.unwrap();
    assert_eq!(provisioner.create(claim("pvc-1", "phi3")).await.unwrap(), created);
}

#[tokio::test]
async fn a_cancelled_call_does_not_block_the_next_one() {
    let store = store();
    let provisioner = provisioner(&store);
    store.set_open(false);
    {
        let first = provisioner.create(claim("pvc-1", "phi3"));
        tokio::pin!(first);
        assert!(futures_util::poll!(&mut first).is_pending());
    }
    store.set_open(true);
    provisioner.create(claim("pvc-1", "phi3")).await.unwrap();
}

#[tokio::test]
async fn delete_accepts_every_id_without_a_listing() {
    let store = store();
    let provisioner = provisioner(&store);
    let own_form = format!("{ID_FORM}{}", "0".repeat(ID_DIGITS));
    for id in ["csi-sanity", own_form.as_str(), "../.."] {
        provisioner.delete(id).unwrap();
    }
    assert_eq!(store.listings(), 0);
}

#[test]
fn volume_ids_of_this_driver_are_recognized_by_their_form() {
    let digits = "0a".repeat(20);
    assert!(is_volume_id(&format!("ocimodel-v1-{digits}")));
    for other in [
        String::new(),
        digits.clone(),
        format!("ocimodel-v2-{digits}"),
        format!("ocimodel-v1-{}", digits.to_uppercase()),
        format!("ocimodel-v1-{digits}0"),
        format!("csi-{digits}"),
    ] {
        assert!(!is_volume_id(&other), "{other}");
    }
}

#[tokio::test]
async fn the_context_of_a_created_volume_is_valid_and_an_impossible_one_is_not() {
    let provisioner = provisioner(&store());
    let request = claim("pvc-1", "phi3");
    let parameters = request.parameters.clone();
    let created = provisioner.create(request).await.unwrap();
    let context: HashMap<_, _> = created.context.clone().into_iter().collect();
    let none = HashMap::new();

    assert_eq!(provisioner.find("foreign").unwrap_err().kind(), ErrorKind::NotFound);
    provisioner.find(&created.id).unwrap();
    provisioner.validate(&created.id, &parameters, &context).unwrap();
    provisioner.validate(&created.id, &none, &none).unwrap();
    // Parameters of a caller that does not know the claim.
    let plain = map(&[("bucket", "b"), ("prefix", "models/${pvc.name}/")]);
    provisioner.validate(&created.id, &plain, &none).unwrap();

    let other = map(&[("bucket", "b"), ("prefix", "x")]);
    for (parameters, context, says) in [
        (&none, &other, "differs from the one"),
        (&none, &map(&[("bucket", "b")]), "volume_context: attribute prefix is missing"),
        (&map(&[("prefix", "${x}")]), &none, "parameters: unknown variable"),
    ] {
        let error = provisioner.validate(&created.id, parameters, context).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().contains(says), "{error}");
    }
    provisioner.delete(&created.id).unwrap();
    provisioner.validate(&created.id, &none, &other).unwrap();
}
