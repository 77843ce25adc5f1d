//! Who may call: API keys, the metadata service, the token exchange, permissions.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use aws_lc_rs::rsa::KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use localstore::{Action, LocalStore, Operation, PublicAccess, Rule};
use serde_json::json;

use crate::client::{Answer, Client, at};
use crate::signer::{Signer, borrowed};

const KEY_ID: &str = "t/u/aa:bb";

fn store_and_signer() -> (LocalStore, Signer) {
    let store = LocalStore::builder().start().unwrap();
    let signer = Signer::generate(KEY_ID);
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        BASE64.encode(signer.public())
    );
    store.register_api_key("t", "u", "aa:bb", &pem).unwrap();
    store.put("b", "x", b"bytes").unwrap();
    (store, signer)
}

fn signed_get(client: &mut Client, signer: &Signer, target: &str) -> Answer {
    let headers = signer.sign("GET", target, client.host());
    client.call("GET", target, &borrowed(&headers), b"")
}

#[test]
fn a_signed_request_passes_and_an_unsigned_or_changed_one_does_not() {
    let (store, mut signer) = store_and_signer();
    let mut client = Client::new(&store);
    let target = at(&store, "b/o/x");
    assert_eq!(signed_get(&mut client, &signer, &target).body, b"bytes");
    let unsigned = client.get(&target);
    assert_eq!((unsigned.status, unsigned.code().as_str()), (401, "NotAuthenticated"));
    let headers = signer.sign("GET", &at(&store, "b/o/y"), client.host());
    assert_eq!(client.call("GET", &target, &borrowed(&headers), b"").status, 401);
    signer.key_id = "t/u/cc:dd".to_owned();
    assert_eq!(signed_get(&mut client, &signer, &target).status, 401);
    let refusals = store.stats().refusals;
    assert_eq!(refusals["no_authorization"], 1);
    assert_eq!(refusals["wrong_signature"], 1);
    assert_eq!(refusals["unknown_key"], 1);
    assert_eq!(store.requests()[0].caller.as_deref(), Some(KEY_ID));
}

#[test]
fn a_date_too_far_off_is_refused_and_the_answer_shows_the_clock() {
    let (store, mut signer) = store_and_signer();
    let mut client = Client::new(&store);
    signer.date = SystemTime::now() - Duration::from_secs(600);
    assert_eq!(signed_get(&mut client, &signer, "/n").status, 401);
    store.faults().add(Rule::new(Action::DateOffset { secs: -600 }));
    let answer = signed_get(&mut client, &signer, "/n");
    assert_eq!(answer.status, 200);
    let date = httpdate::parse_http_date(answer.header("date").unwrap()).unwrap();
    assert!(SystemTime::now().duration_since(date).unwrap() >= Duration::from_secs(599));
    signer.date = SystemTime::now();
    assert_eq!(signed_get(&mut client, &signer, "/n").status, 401);
    assert_eq!(store.stats().refusals["clock_skew"], 2);
}

#[test]
fn a_body_must_be_signed_and_match_its_signature() {
    let (store, signer) = store_and_signer();
    let mut client = Client::new(&store);
    let target = at(&store, "b/u");
    let body = br#"{"object": "new"}"#;
    let host = client.host().to_owned();
    let headers = signer.sign_body("POST", &target, &host, body);
    assert_eq!(client.call("POST", &target, &borrowed(&headers), body).status, 200);
    let other = br#"{"object": "NEW"}"#;
    assert_eq!(client.call("POST", &target, &borrowed(&headers), other).status, 401);
    let without_body = signer.sign("POST", &target, &host);
    assert_eq!(client.call("POST", &target, &borrowed(&without_body), body).status, 401);

    // An object's bytes need no signature; a signed digest is held to.
    let put = at(&store, "b/o/new");
    let headers = signer.sign("PUT", &put, &host);
    assert_eq!(client.call("PUT", &put, &borrowed(&headers), body).status, 200);
    let headers = signer.sign_body("PUT", &put, &host, body);
    assert_eq!(client.call("PUT", &put, &borrowed(&headers), body).status, 200);
    assert_eq!(client.call("PUT", &put, &borrowed(&headers), other).status, 401);
}

#[test]
fn the_metadata_service_needs_its_header() {
    let (store, _) = store_and_signer();
    let mut client = Client::new(&store);
    assert_eq!(client.get("/opc/v2/instance/region").status, 401);
    let oracle = [("authorization", "Bearer Oracle")];
    let mut get = |path: &str| client.call("GET", &format!("/opc/v2/{path}"), &oracle, b"");
    assert_eq!(get("instance/region").body, b"iad");
    assert_eq!(get("instance/regionInfo").json()["regionIdentifier"], "us-ashburn-1");
    assert_eq!(get("instance/nothing").status, 404);
}

/// Gets a token as an instance does.
struct Instance {
    client: Client,
    session: Signer,
    leaf: Signer,
    certificate: Vec<u8>,
    intermediate: Vec<u8>,
}

impl Instance {
    fn new(store: &LocalStore) -> Self {
        let mut client = Client::new(store);
        let mut fetch = |name: &str| {
            let oracle = [("authorization", "Bearer Oracle")];
            let answer = client.call("GET", &format!("/opc/v2/identity/{name}"), &oracle, b"");
            let pem = String::from_utf8(answer.body).unwrap();
            let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
            BASE64.decode(body).unwrap()
        };
        let (certificate, key, intermediate) =
            (fetch("cert.pem"), fetch("key.pem"), fetch("intermediate.pem"));
        // from_der is PKCS#1, which is what the service gives.
        let leaf = Signer::new(KeyPair::from_der(&key).unwrap(), "");
        Self { client, session: Signer::generate(""), leaf, certificate, intermediate }
    }

    fn sha1_key_id(&self, tenancy: &str) -> String {
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &self.certificate);
        let hex: Vec<String> = hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        format!("{tenancy}/fed-x509/{}", hex.join(":"))
    }

    fn exchange(&mut self, key_id: &str, extra: &serde_json::Value) -> Answer {
        let mut body = json!({
            "certificate": BASE64.encode(&self.certificate),
            "publicKey": BASE64.encode(self.session.public()),
            "intermediateCertificates": [BASE64.encode(&self.intermediate)],
        });
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        let body = body.to_string();
        key_id.clone_into(&mut self.leaf.key_id);
        let headers = self.leaf.sign_body("POST", "/v1/x509", "", body.as_bytes());
        self.client.call("POST", "/v1/x509", &borrowed(&headers), body.as_bytes())
    }

    fn get(&mut self, target: &str) -> Answer {
        signed_get(&mut self.client, &self.session, target)
    }
}

#[test]
fn a_certificate_is_exchanged_for_a_token_that_expires() {
    let store = LocalStore::builder().token_ttl(Duration::from_secs(1)).start().unwrap();
    let mut instance = Instance::new(&store);
    let key_id = instance.sha1_key_id(store.tenancy());
    let token = instance.exchange(&key_id, &json!({})).json()["token"].as_str().unwrap().to_owned();
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 1);
    assert_eq!(
        (&claims["ptype"], &claims["opc-tenant"]),
        (&"instance".into(), &store.tenancy().into())
    );
    assert!(claims["jwk"].as_str().unwrap().contains("\"kty\":\"RSA\""));

    instance.session.key_id = format!("ST${token}");
    assert_eq!(instance.get("/n").status, 200);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while instance.get("/n").status == 200 {
        assert!(std::time::Instant::now() < deadline, "the token does not expire");
        // Each round is a signature and a request: a pause of its own.
    }
    assert_eq!(instance.get("/n").code(), "NotAuthenticated");
    assert!(store.stats().expired_token_refusals >= 2);
    assert_eq!(store.stats().tokens_issued, 1);
    let refreshed = instance.exchange(&key_id, &json!({}));
    instance.session.key_id = format!("ST${}", refreshed.json()["token"].as_str().unwrap());
    assert_eq!(instance.get("/n").status, 200);
}

#[test]
fn the_go_form_of_the_exchange_is_accepted_too() {
    let store = LocalStore::builder().start().unwrap();
    let mut instance = Instance::new(&store);
    let hash = digest(&SHA256, &instance.certificate);
    let hex: Vec<String> = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let key_id = format!("{}/fed-x509-sha256/{}", store.tenancy(), hex.join(":"));
    assert_eq!(instance.exchange(&key_id, &json!({})).status, 401, "without fingerprintAlgorithm");
    let answer = instance.exchange(&key_id, &json!({"fingerprintAlgorithm": "SHA256"}));
    assert_eq!(answer.status, 200);
}

#[test]
fn every_invalid_exchange_is_refused() {
    let store = LocalStore::builder().start().unwrap();
    let other = LocalStore::builder().start().unwrap();
    let mut instance = Instance::new(&store);
    let key_id = instance.sha1_key_id(store.tenancy());
    let other_tenancy = instance.sha1_key_id("ocid1.tenancy.oc1..other");
    for (key_id, extra) in [
        (other_tenancy.as_str(), json!({})),
        (&key_id.to_lowercase(), json!({})),
        (KEY_ID, json!({})),
        (&key_id, json!({"intermediateCertificates": []})),
        (&key_id, json!({"publicKey": "AAAA"})),
    ] {
        assert_eq!(instance.exchange(key_id, &extra).status, 401, "{key_id} {extra}");
    }
    // A rotation between the fetches of certificate and key: they do not belong together.
    let certificate = Instance::new(&store);
    store.rotate_leaf().unwrap();
    let mut mixed = Instance::new(&store);
    mixed.certificate = certificate.certificate.clone();
    let mixed_id = mixed.sha1_key_id(store.tenancy());
    assert_eq!(mixed.exchange(&mixed_id, &json!({})).status, 401);
    // The certificate of another authority.
    let mut foreign = Instance::new(&other);
    foreign.client = Client::new(&store);
    let foreign_id = foreign.sha1_key_id(store.tenancy());
    assert_eq!(foreign.exchange(&foreign_id, &json!({})).status, 401);
    assert_eq!(store.stats().tokens_issued, 0);
    assert_eq!(instance.exchange(&key_id, &json!({})).status, 200, "an earlier leaf stays valid");
}

#[test]
fn tokens_can_be_registered_and_revoked_by_hand() {
    let (store, _) = store_and_signer();
    let mut signer = Signer::generate("");
    let token = store.issue_token("pod", &signer.public(), Duration::from_secs(60)).unwrap();
    signer.key_id = format!("ST${token}");
    let mut client = Client::new(&store);
    assert_eq!(signed_get(&mut client, &signer, "/n").status, 200);
    assert_eq!(store.requests().last().unwrap().caller.as_deref(), Some("pod"));
    store.expire_tokens();
    assert_eq!(signed_get(&mut client, &signer, "/n").status, 401);
    assert_eq!(store.stats().expired_token_refusals, 1);
}

#[test]
fn a_hidden_bucket_looks_like_a_missing_one() {
    let (store, signer) = store_and_signer();
    store.put("secret", "x", b"").unwrap();
    store.hide("t/*", "sec*");
    let mut client = Client::new(&store);
    assert_eq!(signed_get(&mut client, &signer, &at(&store, "b/o/x")).status, 200);
    let hidden = signed_get(&mut client, &signer, &at(&store, "secret/o/x"));
    assert_eq!((hidden.status, hidden.code().as_str()), (404, "BucketNotFound"));
    store.faults().add(Rule::new(Action::status(403)).operation(Operation::List));
    let refused = signed_get(&mut client, &signer, &at(&store, "b/o"));
    assert_eq!((refused.status, refused.code().as_str()), (403, "NotAuthorized"));
}

#[test]
fn a_public_bucket_is_read_without_a_signature() {
    let (store, _) = store_and_signer();
    let mut client = Client::new(&store);
    let (object, list) = (at(&store, "b/o/x"), at(&store, "b/o"));
    for (access, read, listed) in [
        (PublicAccess::ObjectRead, 200, 200),
        (PublicAccess::ObjectReadWithoutList, 200, 401),
        (PublicAccess::NoPublicAccess, 401, 401),
    ] {
        store.set_public_access("b", access).unwrap();
        assert_eq!((client.get(&object).status, client.get(&list).status), (read, listed));
        assert_eq!(client.call("PUT", &object, &[], b"").status, 401, "{access:?}");
    }
}

/// The session token for a service account's token, as OKE answers.
fn workload_token(client: &mut Client, token: &str, pod_key: &str) -> Answer {
    let body = json!({ "podKey": pod_key }).to_string();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    client.call("POST", "/resourcePrincipalSessionTokens", &headers, body.as_bytes())
}

#[test]
fn a_service_account_gets_a_token_for_its_session_key_and_sees_what_is_granted() {
    let store = LocalStore::builder().allow("system:serviceaccount:team-a:*", "b").start().unwrap();
    for bucket in ["b", "listed", "c"] {
        store.put(bucket, "x", b"bytes").unwrap();
    }
    store.allow_inspect("system:serviceaccount:team-a:*", "listed");
    let mut client = Client::new(&store);
    let hour = Duration::from_secs(3600);
    let token = store.service_account_token("team-a", "vllm", Some("uid"), hour).unwrap();
    let mut signer = Signer::generate("");
    let bare = BASE64.encode(signer.public());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{bare}\n-----END PUBLIC KEY-----\n");
    for pod_key in [&bare, &pem] {
        let answer = workload_token(&mut client, &token, pod_key);
        assert_eq!(answer.status, 200);
        let inner = BASE64.decode(answer.json().as_str().unwrap()).unwrap();
        let inner: serde_json::Value = serde_json::from_slice(&inner).unwrap();
        signer.key_id = inner["token"].as_str().unwrap().to_owned();
        assert!(signer.key_id.starts_with("ST$"));
        for (target, status) in
            [("b/o/x", 200), ("b/o", 200), ("listed/o", 200), ("listed/o/x", 404), ("c/o", 404)]
        {
            let answer = signed_get(&mut client, &signer, &at(&store, target));
            assert_eq!(answer.status, status, "{target}");
        }
    }
    let caller = store.requests().pop().unwrap().caller;
    assert_eq!(caller.as_deref(), Some("system:serviceaccount:team-a:vllm"));
    store.expire_tokens();
    assert_eq!(signed_get(&mut client, &signer, &at(&store, "b/o/x")).status, 401);
}

#[test]
fn a_foreign_or_expired_service_account_token_is_refused() {
    let store = LocalStore::builder().cluster_token("opaque", "team-a", "a").start().unwrap();
    let other = LocalStore::builder().start().unwrap();
    let mut client = Client::new(&store);
    let pod_key = BASE64.encode(Signer::generate("").public());
    let hour = Duration::from_secs(3600);
    let ours = |ttl| store.service_account_token("team-a", "a", None, ttl).unwrap();
    let foreign = other.service_account_token("team-a", "a", None, hour).unwrap();
    let for_vault = store.service_account_token_for("vault", "team-a", "a", None).unwrap();
    for bad in [&foreign, &ours(Duration::ZERO), &for_vault, "", "a.b.c"] {
        assert_eq!(workload_token(&mut client, bad, &pod_key).status, 401, "{bad}");
    }
    for (key, status) in [(pod_key.as_str(), 200), ("AAAA", 401), ("no base64", 401)] {
        assert_eq!(workload_token(&mut client, "opaque", key).status, status, "{key}");
    }
    assert_eq!(workload_token(&mut client, &ours(hour), &pod_key).status, 200);
    assert_eq!(store.stats().refusals["wrong_audience"], 1);
}
