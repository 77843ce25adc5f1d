use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;

use super::*;
use crate::oci::ObjectStorage;
use crate::oci::sign::tests::{parameters, vectors};
use crate::oci::test_server::{AfterCut, ScriptedAnswer, Seen, TestServer};
use crate::source::{AuthMethod, Bucket, ObjectSink as _, Replaces, RetryPolicy, UploadBody};
use crate::text::pem;

const RSA: &UnparsedParameters = &RSA_PKCS1_2048_8192_SHA256;
type UnparsedParameters = aws_lc_rs::signature::RsaParameters;

/// Metadata service, federation endpoint and Object Storage in one, as strict as the real ones.
struct OracleServices {
    server: TestServer,
    world: Arc<World>,
}

#[derive(Default)]
struct World {
    tokens: AtomicU64,
    /// The valid token and the session key that was posted for it.
    valid: Mutex<(String, Vec<u8>)>,
    /// Answers that come before the regular ones, by path.
    first: Mutex<Vec<(&'static str, ScriptedAnswer)>>,
}

impl World {
    fn answer(&self, seen: &Seen) -> ScriptedAnswer {
        let mut first = self.first.lock().unwrap();
        if let Some(at) = first.iter().position(|(path, _)| *path == seen.target) {
            return first.remove(at).1;
        }
        let file = vectors();
        let text = |name: &str| ScriptedAnswer::new(200, file[name].as_str().unwrap());
        if seen.target.starts_with("/opc/v2/")
            && seen.header("authorization") != Some("Bearer Oracle")
        {
            return ScriptedAnswer::new(401, "");
        }
        match seen.target.as_str() {
            "/opc/v2/instance/region" => ScriptedAnswer::new(200, "iad\n"),
            "/opc/v2/identity/cert.pem" | "/opc/v2/identity/intermediate.pem" => {
                text("leaf_certificate_pem")
            }
            "/opc/v2/identity/key.pem" => text("private_key_pkcs1"),
            "/v1/x509" => self.federate(seen, &file),
            _ => self.serve(seen),
        }
    }

    fn federate(&self, seen: &Seen, file: &Value) -> ScriptedAnswer {
        let parameters = parameters(seen.header("authorization").unwrap());
        let (tenancy, fingerprint) =
            (file["tenancy"].as_str().unwrap(), file["leaf_fingerprint_sha256"].as_str().unwrap());
        assert_eq!(parameters["keyId"], format!("{tenancy}/fed-x509-sha256/{fingerprint}"));
        assert_eq!(
            parameters["headers"],
            "date (request-target) content-length content-type x-content-sha256"
        );
        let spki = pem::blocks(file["public_key_spki"].as_str().unwrap())[0].der().unwrap();
        verify(seen, &spki);
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        let leaf =
            pem::blocks(file["leaf_certificate_pem"].as_str().unwrap())[0].base64.to_string();
        assert_eq!(body["certificate"], leaf);
        assert_eq!(body["intermediateCertificates"], serde_json::json!([leaf]));
        assert_eq!(body["fingerprintAlgorithm"], "SHA256");
        let session = STANDARD.decode(body["publicKey"].as_str().unwrap()).unwrap();

        let number = self.tokens.fetch_add(1, Ordering::SeqCst);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = serde_json::json!({"iat": now, "exp": now + 3600, "n": number}).to_string();
        let jwt = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        *self.valid.lock().unwrap() = (jwt.clone(), session);
        ScriptedAnswer::new(200, serde_json::json!({"token": jwt}).to_string())
    }

    fn serve(&self, seen: &Seen) -> ScriptedAnswer {
        let (jwt, session) = self.valid.lock().unwrap().clone();
        if parameters(seen.header("authorization").unwrap())["keyId"] != format!("ST${jwt}") {
            return ScriptedAnswer::refusal(401, "NotAuthenticated");
        }
        verify(seen, &session);
        ScriptedAnswer::new(200, "\"ns\"")
    }
}

/// Panics in the server if the signature does not match the request.
fn verify(seen: &Seen, public: &[u8]) {
    let parameters = parameters(seen.header("authorization").unwrap());
    let lines: Vec<_> = parameters["headers"]
        .split(' ')
        .map(|name| match name {
            "(request-target)" => {
                format!("{name}: {} {}", seen.method.to_lowercase(), seen.target)
            }
            _ => format!("{name}: {}", seen.header(name).unwrap()),
        })
        .collect();
    let signature = STANDARD.decode(&parameters["signature"]).unwrap();
    UnparsedPublicKey::new(RSA, public).verify(lines.join("\n").as_bytes(), &signature).unwrap();
}

impl OracleServices {
    async fn start() -> Self {
        let world = Arc::<World>::default();
        let script = Arc::clone(&world);
        let server = TestServer::start(move |_, seen| script.answer(seen)).await;
        Self { server, world }
    }

    fn first(&self, path: &'static str, answer: ScriptedAnswer) {
        self.world.first.lock().unwrap().push((path, answer));
    }

    async fn client(&self) -> ObjectStorage {
        let settings =
            Settings { endpoint: Some(self.server.url.clone()), ..settings(&self.server.url) };
        ObjectStorage::connect(settings).await.unwrap()
    }

    fn asked(&self, path: &str) -> usize {
        self.server.seen().iter().filter(|seen| seen.target == path).count()
    }
}

fn settings(url: &str) -> Settings {
    let (initial, max) = (Duration::from_millis(1), Duration::from_millis(5));
    Settings {
        metadata_base: Some(format!("{url}/opc/v2")),
        federation_endpoint: Some(format!("{url}/v1/x509")),
        retry: RetryPolicy::new(4, initial, max, Duration::from_secs(20)).unwrap(),
        environment: Environment::empty(),
        ..Settings::new(AuthMethod::InstancePrincipal)
    }
}

fn bucket() -> Arc<Bucket> {
    Arc::new(Bucket::new("ns", "models"))
}

#[tokio::test]
async fn certificate_and_session_key_become_a_token_that_requests_are_signed_with() {
    let oracle = OracleServices::start().await;
    let client = oracle.client().await;
    assert!(oracle.server.seen().is_empty(), "nothing is asked before the first request");
    assert_eq!(client.namespace().await.unwrap(), "ns");
    client.head_object(&bucket().object("a"), None).await.unwrap();
    assert_eq!(oracle.asked("/v1/x509"), 1);
    let identity = client.identity().unwrap();
    assert_eq!((identity.refreshes(), identity.refresh_failures()), (1, 0));
    let left = identity.expires_at().unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3601), "{left:?}");
}

#[tokio::test]
async fn a_401_leads_to_a_new_token_and_the_caller_does_not_notice() {
    let oracle = OracleServices::start().await;
    let client = oracle.client().await;
    client.head_object(&bucket().object("a"), None).await.unwrap();
    // The service forgets the token, as when a dynamic group is changed.
    oracle.world.valid.lock().unwrap().0 = "revoked".into();
    let object = bucket().object("a");
    let calls = (0..8).map(|_| client.head_object(&object, None));
    assert!(futures_util::future::join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(oracle.asked("/v1/x509"), 2, "eight refusals, one refresh");
    assert_eq!(oracle.asked("/opc/v2/identity/cert.pem"), 2, "the certificate is read again");
}

#[tokio::test]
async fn a_401_is_no_refusal_while_a_portal_answers_for_the_identity_service() {
    let oracle = OracleServices::start().await;
    let client = oracle.client().await;
    let object = bucket().object("a");
    client.head_object(&object, None).await.unwrap();
    let refusal = || ScriptedAnswer::refusal(401, "NotAuthenticated");
    let portal = || ScriptedAnswer::new(302, "").header("location", "http://portal.example/");
    oracle.first("/n/ns/b/models/o/a", refusal());
    oracle.first("/v1/x509", portal());
    let error = client.head_object(&object, None).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("a redirect to http://portal.example/"), "{error}");
    // The same for bytes that cannot be sent twice.
    oracle.first("/n/ns/b/models/o/a", refusal());
    oracle.first("/v1/x509", portal());
    let bytes = bytes::Bytes::from_static(b"x");
    let chunks = Box::pin(futures_util::stream::iter([Ok(bytes)]));
    let body = UploadBody { length: 1, chunks };
    let error = client.put(&object, body, [0; 16], &Replaces::Nothing).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn a_401_that_a_new_token_does_not_fix_is_reported() {
    let oracle = OracleServices::start().await;
    let client = oracle.client().await;
    for _ in 0..2 {
        oracle.first("/n/ns/b/models/o/a", ScriptedAnswer::refusal(401, "NotAuthenticated"));
    }
    let error = client.head_object(&bucket().object("a"), None).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unauthenticated);
    assert!(error.to_string().contains("dynamic group"), "{error}");
}

#[tokio::test]
async fn certificate_and_key_that_do_not_belong_together_are_read_again() {
    let oracle = OracleServices::start().await;
    let rotated = KeyPair::generate().unwrap().to_pkcs8_pem().unwrap();
    oracle.first("/opc/v2/identity/key.pem", ScriptedAnswer::new(200, rotated));
    oracle.client().await.namespace().await.unwrap();
    assert_eq!(oracle.asked("/opc/v2/identity/cert.pem"), 2);
    assert_eq!(oracle.asked("/v1/x509"), 1);
}

#[tokio::test]
async fn an_exchange_that_is_refused_is_repeated_once_with_documents_read_again() {
    let oracle = OracleServices::start().await;
    oracle.first("/v1/x509", ScriptedAnswer::refusal(401, "NotAuthenticated"));
    oracle.client().await.namespace().await.unwrap();
    assert_eq!(oracle.asked("/opc/v2/identity/cert.pem"), 2);

    let skewed = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(600));
    for _ in 0..2 {
        let answer = ScriptedAnswer::refusal(401, "NotAuthenticated").header("date", &skewed);
        oracle.first("/v1/x509", answer);
    }
    let error = oracle.client().await.namespace().await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unauthenticated);
    assert!(error.to_string().contains("behind the identity service"), "{error}");
}

#[tokio::test]
async fn temporary_errors_are_repeated_and_permanent_ones_are_reported_at_once() {
    let oracle = OracleServices::start().await;
    oracle.first("/opc/v2/identity/cert.pem", ScriptedAnswer::new(404, "not yet"));
    oracle.first("/opc/v2/identity/key.pem", ScriptedAnswer::new(503, ""));
    oracle.first("/v1/x509", ScriptedAnswer::new(500, ""));
    oracle.client().await.namespace().await.unwrap();
    assert_eq!(oracle.asked("/v1/x509"), 2);

    oracle.first("/v1/x509", ScriptedAnswer::refusal(400, "InvalidParameter"));
    let error = oracle.client().await.namespace().await.unwrap_err();
    assert_eq!((error.kind(), oracle.asked("/v1/x509")), (StorageErrorKind::Forbidden, 3));
    assert!(error.to_string().contains("does not accept this instance's certificate"), "{error}");
}

#[tokio::test]
async fn an_instance_that_moves_to_another_tenancy_is_not_followed() {
    let oracle = OracleServices::start().await;
    let client = oracle.client().await;
    client.namespace().await.unwrap();
    let file = vectors();
    let mut der = pem::blocks(file["leaf_certificate_pem"].as_str().unwrap())[0].der().unwrap();
    let tenancy = file["tenancy"].as_str().unwrap().as_bytes();
    // The issuer's certificate is first.
    let at = der.windows(tenancy.len()).rposition(|window| window == tenancy).unwrap();
    der[at + tenancy.len() - 1] = b'X';
    let moved = pem::encode("CERTIFICATE", &der);
    oracle.first("/opc/v2/identity/cert.pem", ScriptedAnswer::new(200, moved));
    oracle.world.valid.lock().unwrap().0 = "revoked".into();
    let error = client.head_object(&bucket().object("a"), None).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unauthenticated);
    assert!(error.to_string().contains("tenancy changed"), "{error}");
}

#[tokio::test]
async fn where_there_is_no_metadata_service_the_error_says_that_this_is_no_instance() {
    let gone = OracleServices::start().await.server.url.clone();
    let client = ObjectStorage::connect(settings(&gone)).await.unwrap();
    for error in [client.namespace().await.unwrap_err(), client.location().await.unwrap_err()] {
        assert_eq!(error.kind(), StorageErrorKind::Identity);
        assert!(error.to_string().contains("on OCI compute instances only"), "{error}");
    }
}

#[tokio::test]
async fn a_metadata_service_that_stops_in_an_answer_is_asked_again_soon() {
    let oracle = OracleServices::start().await;
    let stuck = ScriptedAnswer::new(200, "-----BEGIN").cut(3, AfterCut::Hang);
    oracle.first("/opc/v2/identity/cert.pem", stuck);
    let mut settings = settings(&oracle.server.url);
    settings.endpoint = Some(oracle.server.url.clone());
    settings.timeouts.response_head = Duration::from_secs(1);
    let client = ObjectStorage::connect(settings).await.unwrap();
    let soon = Duration::from_secs(15);
    tokio::time::timeout(soon, client.namespace()).await.expect("it waits for seconds").unwrap();
    assert_eq!(oracle.asked("/opc/v2/identity/cert.pem"), 2);
}

#[tokio::test]
async fn a_metadata_service_that_refuses_is_not_asked_again() {
    let oracle = OracleServices::start().await;
    oracle.first("/opc/v2/identity/cert.pem", ScriptedAnswer::new(403, "no"));
    let error = oracle.client().await.namespace().await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (StorageErrorKind::Config, Some(403)));
    assert_eq!(oracle.asked("/opc/v2/identity/cert.pem"), 1);
}

#[tokio::test]
async fn the_region_is_the_instances_own_even_when_it_is_newer_than_the_table() {
    let oracle = OracleServices::start().await;
    let location = async || {
        ObjectStorage::connect(settings(&oracle.server.url)).await.unwrap().location().await
    };
    assert_eq!(location().await.unwrap(), "us-ashburn-1");
    oracle.first("/opc/v2/instance/region", ScriptedAnswer::new(200, "xx-new-1"));
    let info = r#"{"realmKey":"OC99","realmDomainComponent":"example.cloud",
        "regionKey":"NEW","regionIdentifier":"xx-new-1"}"#;
    oracle.first("/opc/v2/instance/regionInfo", ScriptedAnswer::new(200, info));
    let imds = Arc::new(Imds::new(&settings(&oracle.server.url)).unwrap());
    let region = InstanceRegion::new(None, Environment::empty(), imds);
    assert_eq!(
        region.get().await.unwrap().federation_url(),
        "https://auth.xx-new-1.example.cloud/v1/x509"
    );
}
