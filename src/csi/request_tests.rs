//! Which requests are accepted, which are refused, and which are the same.

use super::super::capability::tests::mount_capability;
use super::super::proto::volume_capability::access_mode::Mode;
use super::super::proto::{VolumeContentSource, volume_content_source};
use super::*;
use crate::error::ErrorKind;
use crate::model::CacheScope;

const UID: &str = "8a3c1f6e-0000-4000-8000-000000000001";

fn context(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn target_of(uid: &str) -> String {
    format!("/nowhere/kubelet/pods/{uid}/volumes/kubernetes.io~csi/model/mount")
}

/// As kubelet sends it with podInfoOnMount.
fn from_kubelet(ephemeral: &str, more: &[(&str, &str)]) -> NodePublishVolumeRequest {
    let mut volume_context = context(&[
        ("bucket", "ai-model-cache"),
        ("prefix", "models/phi3-mini/"),
        ("csi.storage.k8s.io/pod.name", "vllm-0"),
        ("csi.storage.k8s.io/pod.namespace", "team-a"),
        ("csi.storage.k8s.io/pod.uid", UID),
        ("csi.storage.k8s.io/serviceAccount.name", "default"),
        (EPHEMERAL, ephemeral),
    ]);
    volume_context.extend(context(more));
    NodePublishVolumeRequest {
        volume_id: "volume".to_owned(),
        target_path: target_of(UID),
        volume_capability: Some(mount_capability(Mode::SingleNodeWriter, &[])),
        readonly: ephemeral == "true",
        volume_context,
        ..NodePublishVolumeRequest::default()
    }
}

fn incoming(request: &NodePublishVolumeRequest) -> Result<IncomingPublish> {
    publish(request, Path::new("/nowhere/kubelet"), true)
}

fn parse(request: &NodePublishVolumeRequest) -> Result<PublishRequest> {
    incoming(request)?.request
}

#[track_caller]
fn refused(request: &NodePublishVolumeRequest) -> String {
    let error = parse(request).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    error.message().to_owned()
}

#[test]
fn the_refusals_of_attributes_are_reviewed() {
    let of_pods = [
        ("bucket", ""),
        ("bucket", "a/b"),
        ("namespace", "My Tenancy"),
        ("prefix", "/models"),
        ("prefix", "models/../x"),
        ("include", "["),
        ("exclude", "a//b"),
        ("pullPolicy", "always"),
        ("revision", "latest"),
        ("region", "us-ashburn-1"),
        ("readOnly", "false"),
        ("pullpolicy", "Always"),
    ];
    let of_administrators = [
        ("region", "Frankfurt"),
        ("auth", "instance"),
        ("cacheScope", "node"),
        ("endpoint", "https://objectstorage.example"),
    ];
    let refusal = |ephemeral: &str, (key, value): (&str, &str)| {
        let request = from_kubelet(ephemeral, &[(key, value)]);
        let text =
            parse(&request).map_or_else(|error| error.to_string(), |_| "accepted".to_owned());
        format!("{key}: {value:?}\n    {text}")
    };
    let mut texts = Vec::from(of_pods.map(|one| refusal("true", one)));
    texts.extend(of_administrators.map(|one| refusal("false", one)));
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn an_inline_volume_of_kubelet_is_accepted() {
    let IncomingPublish { key, pod, request } = incoming(&from_kubelet("true", &[])).unwrap();
    assert_eq!(request.unwrap().model.title(), "models/phi3-mini/ from ai-model-cache");
    assert_eq!(key.target, Path::new(&target_of(UID)));
    let pod = pod.unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("team-a", "vllm-0"));
    assert_eq!((pod.uid.as_str(), pod.service_account.as_str()), (UID, "default"));
}

#[test]
fn an_inline_volume_without_read_only_is_refused_with_the_fix() {
    let mut request = from_kubelet("true", &[]);
    request.readonly = false;
    assert!(refused(&request).contains("readOnly: true"));
    let mut of_a_pv = from_kubelet("false", &[]);
    of_a_pv.readonly = false;
    parse(&of_a_pv).unwrap();
}

#[test]
fn an_inline_volume_may_not_set_administrator_attributes_or_mount_options() {
    for key in ["region", "auth", "cacheScope"] {
        let message = refused(&from_kubelet("true", &[(key, "cluster")]));
        assert!(message.contains("administrators only"), "{message}");
    }
    let mut request = from_kubelet("true", &[]);
    request.volume_capability = Some(mount_capability(Mode::SingleNodeWriter, &["noexec"]));
    assert!(refused(&request).contains("mount options"));
}

#[test]
fn a_persistent_volume_may_set_administrator_attributes_and_mount_options() {
    let mut request = from_kubelet("false", &[("cacheScope", "namespace")]);
    request.volume_capability = Some(mount_capability(Mode::SingleNodeWriter, &["noexec"]));
    let parsed = parse(&request).unwrap();
    assert_eq!(parsed.model.scope, CacheScope::Namespace);
    assert!(parsed.options.noexec);
}

#[test]
fn without_trusted_pod_information_only_pod_attributes_are_allowed() {
    let mut request = from_kubelet("false", &[("cacheScope", "cluster")]);
    request.volume_context.remove("csi.storage.k8s.io/pod.uid");
    let message = refused(&request);
    assert!(message.contains("podInfoOnMount"), "{message}");

    request.volume_context.remove("cacheScope");
    let pod = |request: &NodePublishVolumeRequest| incoming(request).unwrap().pod;
    assert_eq!(pod(&request), None, "name and namespace alone prove nothing");
    request.volume_context.retain(|key, _| !key.starts_with("csi.storage.k8s.io/"));
    parse(&request).unwrap();
    assert_eq!(pod(&request), None);
}

#[test]
fn a_pod_uid_that_differs_from_the_path_is_refused_and_both_are_named() {
    let mut request = from_kubelet("false", &[]);
    request.target_path = target_of("another-pod");
    let message = refused(&request);
    assert!(message.contains(UID) && message.contains("another-pod"), "{message}");
    assert_eq!(incoming(&request).unwrap().pod, None);
}

#[test]
fn a_refused_request_still_has_its_key_and_pod() {
    let request = from_kubelet("true", &[("prefix", "/models/")]);
    let refused = incoming(&request).unwrap();
    assert_eq!(refused.request.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(refused.key.target, Path::new(&target_of(UID)));
    assert_eq!(refused.pod.unwrap().name, "vllm-0");
}

#[test]
fn missing_and_broken_fields_are_refused() {
    type Break = fn(&mut NodePublishVolumeRequest);
    let cases: [(Break, &str); 9] = [
        (|r| r.volume_id.clear(), "volume_id is missing"),
        (|r| r.volume_id = "x".repeat(257), "volume_id is 257 bytes"),
        (|r| r.volume_id = "a\nb".to_owned(), "control character"),
        (|r| r.target_path.clear(), "target_path is missing"),
        (|r| r.target_path = "/etc".to_owned(), "/etc"),
        (|r| r.volume_capability = None, "volume_capability is missing"),
        (|r| r.volume_context.clear(), "bucket is missing"),
        (|r| drop(r.volume_context.remove("prefix")), "prefix is missing"),
        (
            |r| drop(r.volume_context.insert("Prefix".to_owned(), String::new())),
            "did you mean prefix?",
        ),
    ];
    for (break_it, expected) in cases {
        let mut request = from_kubelet("false", &[]);
        break_it(&mut request);
        let message = refused(&request);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn bad_values_of_attributes_are_refused() {
    for (key, value) in [
        ("bucket", "a/b"),
        ("prefix", "/models/"),
        ("prefix", "models/../x"),
        ("prefix", "models//x"),
        ("namespace", "a.b"),
        ("include", "[a"),
        ("pullPolicy", "always"),
        ("revision", "sha256:1234"),
        ("endpoint", "http://127.0.0.1"),
    ] {
        refused(&from_kubelet("true", &[(key, value)]));
    }
}

#[test]
fn the_digest_covers_only_the_drivers_keys_options_and_kind() {
    let digest = |request: &NodePublishVolumeRequest| incoming(request).unwrap().key.digest;
    let base = from_kubelet("false", &[]);
    let with_token = from_kubelet(
        "false",
        &[
            ("csi.storage.k8s.io/serviceAccount.tokens", "{\"\":{\"token\":\"secret\"}}"),
            ("storage.kubernetes.io/csiProvisionerIdentity", "1-2-x"),
            ("csi.storage.k8s.io/serviceAccount.name", "other"),
        ],
    );
    assert_eq!(digest(&base), digest(&with_token));
    let [slash, no_slash] = ["models/phi3/", "models/phi3"]
        .map(|prefix| incoming(&from_kubelet("false", &[("prefix", prefix)])).unwrap().key);
    assert_eq!(slash.digest, no_slash.digest, "a prefix with and without its slash");
    assert_eq!(slash.as_written, slash.digest);
    assert_ne!(no_slash.as_written, no_slash.digest, "as leases of earlier versions have it");

    let mut with_options = from_kubelet("false", &[]);
    with_options.volume_capability = Some(mount_capability(Mode::SingleNodeWriter, &["noexec"]));
    let others = [
        from_kubelet("true", &[]),
        from_kubelet("false", &[("prefix", "models/llama3-8b/")]),
        from_kubelet("false", &[("pullPolicy", "Never")]),
        with_options,
    ];
    for other in &others {
        assert_ne!(digest(&base), digest(other));
    }
}

fn create() -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: "pvc-1".to_owned(),
        volume_capabilities: vec![mount_capability(Mode::MultiNodeReaderOnly, &["noexec"])],
        capacity_range: Some(CapacityRange { required_bytes: 5, limit_bytes: 0 }),
        ..CreateVolumeRequest::default()
    }
}

#[test]
fn a_capacity_limit_of_zero_means_no_limit() {
    let parsed = provision(&create()).unwrap();
    assert_eq!(parsed.name, "pvc-1");
    assert_eq!(parsed.capacity, Capacity { required_bytes: 5, limit_bytes: None });
    let mut without = create();
    without.capacity_range = None;
    assert_eq!(provision(&without).unwrap().capacity, Capacity::default());
    let mut exact = create();
    exact.capacity_range = Some(CapacityRange { required_bytes: 5, limit_bytes: 5 });
    assert_eq!(provision(&exact).unwrap().capacity.limit_bytes, Some(5));
}

#[test]
fn missing_and_unsupported_fields_of_a_new_volume_are_refused() {
    type Break = fn(&mut CreateVolumeRequest);
    let range = |required_bytes, limit_bytes| Some(CapacityRange { required_bytes, limit_bytes });
    let cases: [(Break, &str); 7] = [
        (|r| r.name.clear(), "name is missing"),
        (|r| r.name = "x".repeat(129), "name is 129 bytes"),
        (|r| r.volume_capabilities.clear(), "volume_capabilities are missing"),
        (
            |r| r.volume_capabilities.push(mount_capability(Mode::MultiNodeMultiWriter, &[])),
            "MULTI_NODE_MULTI_WRITER",
        ),
        (
            |r| r.volume_capabilities = vec![mount_capability(Mode::SingleNodeWriter, &["rw"])],
            "mountOptions",
        ),
        (
            |r| {
                let volume = volume_content_source::VolumeSource { volume_id: "v".to_owned() };
                let source = volume_content_source::Type::Volume(volume);
                r.volume_content_source = Some(VolumeContentSource { r#type: Some(source) });
            },
            "dataSource",
        ),
        (
            |r| drop(r.mutable_parameters.insert("a".to_owned(), "b".to_owned())),
            "volumeAttributesClassName",
        ),
    ];
    for (break_it, expected) in cases {
        let mut request = create();
        break_it(&mut request);
        let error = provision(&request).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().contains(expected), "{error}");
    }
    for bad in [range(-1, 0), range(0, -1), range(6, 5)] {
        let request = CreateVolumeRequest { capacity_range: bad, ..create() };
        assert_eq!(provision(&request).map(drop).unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn tokens_come_from_the_secrets_or_the_context_and_are_never_printed() {
    let mut request = from_kubelet("true", &[]);
    assert_eq!(parse(&request).unwrap().tokens, None);
    let key = incoming(&request).unwrap().key;
    request.volume_context.insert(TOKENS.to_owned(), "of the context".to_owned());
    let parsed = parse(&request).unwrap();
    assert_eq!(parsed.tokens, Some(PodTokens::new("of the context")));
    request.secrets.insert(TOKENS.to_owned(), "of the secrets".to_owned());
    let with_both = parse(&request).unwrap();
    assert_eq!(with_both.tokens, Some(PodTokens::new("of the secrets")));
    assert_eq!(incoming(&request).unwrap().key, key, "tokens do not change the request");
    assert!(!format!("{with_both:?}").contains("of the"));
}

#[test]
fn a_secret_and_tokens_are_wiped_when_a_request_is_dropped_and_nothing_else_is() {
    fn assert_wiped_on_drop(_: &impl ZeroizeOnDrop) {}
    let mut request = from_kubelet("true", &[(TOKENS, "of the context")]);
    request.secrets = context(&[(TOKENS, "of the secrets"), ("key", "pem"), ("user", "u")]);
    assert_wiped_on_drop(&WipedRequest::new(request.clone()));
    wipe(&mut request);
    assert!(request.secrets.values().all(String::is_empty), "{:?}", request.secrets);
    assert_eq!(request.volume_context[TOKENS], "");
    assert_eq!(request.volume_context["bucket"], "ai-model-cache");
}
