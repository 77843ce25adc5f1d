//! Bad credentials, and services that refuse them or do not answer: the exit code, and what is
//! said. docs/identities.md has a row for each set-up.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use localstore::{Action, LocalStore, Operation, Rule};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tonic::Code;

use crate::support::access::Access;
use crate::support::documents::{read, table};
use crate::support::driver::Setup;
use crate::support::fetch::Fetched;
use crate::support::models::{PHI3, store_with_phi3};
use crate::support::run::end_to_end;
use crate::support::workloads::HOUR;

const URI: &str = "oci://ai-model-cache/models/phi3-mini/";

/// The header of the table of bad credentials.
const SETUPS: &str = "| Set-up | Identity | Exit code |";

/// A token of which only the expiry can be read.
fn unsigned(expiry: u64) -> String {
    let claims = serde_json::json!({ "exp": expiry }).to_string();
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

/// A `fetch` with an identity; the files of the oci CLI are in `scratch/oci`.
struct Attempt {
    scratch: tempfile::TempDir,
    store: LocalStore,
    access: Access,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl Attempt {
    fn of(auth: &str) -> Self {
        Self::at(store_with_phi3(), auth)
    }

    fn at(store: LocalStore, auth: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let access = Access::new(scratch.path(), &store);
        let arguments = ["--auth", auth, "--region", "us-ashburn-1"].map(str::to_owned).to_vec();
        Self { scratch, store, access, arguments, environment: Vec::new() }
    }

    /// A session of the oci CLI, in a file of its own.
    fn of_session() -> Self {
        let mut attempt = Self::of("security_token");
        attempt.arguments.extend(["--profile", "SESSION"].map(str::to_owned));
        attempt
    }

    fn of_resource() -> Self {
        let mut attempt = Self::of("resource_principal");
        let file = |name: &str| attempt.file(name).to_str().unwrap().to_owned();
        let variables = [
            ("OCI_RESOURCE_PRINCIPAL_VERSION", "2.2".to_owned()),
            ("OCI_RESOURCE_PRINCIPAL_RPST", file("token")),
            ("OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM", file("api_key.pem")),
        ];
        attempt.environment.extend(variables);
        attempt
    }

    fn of_instance() -> Self {
        let mut attempt = Self::of("instance_principal");
        let (imds, federation) = (attempt.store.imds_base(), attempt.store.federation_endpoint());
        attempt.environment.push(("OCI_METADATA_BASE_URL", imds));
        attempt.environment.push(("OCI_CLI_FEDERATION_ENDPOINT", federation));
        attempt
    }

    fn of_account(token: impl AsRef<[u8]>) -> Self {
        let mut attempt = Self::of("oke_workload_identity");
        attempt.write("token", token);
        let file = attempt.file("token").to_str().unwrap().to_owned();
        let endpoint = attempt.store.endpoint();
        let flags = ["--oke-endpoint".to_owned(), endpoint, "--oke-token-file".to_owned(), file];
        attempt.arguments.extend(flags);
        attempt
    }

    /// The account of a pod, whose token the service accepts.
    fn of_good_account() -> Self {
        let attempt = Self::of_account("");
        let token = attempt.store.service_account_token("team-a", "default", None, HOUR);
        attempt.write("token", token.unwrap());
        attempt
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join("oci").join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.file(name), content).unwrap();
    }

    /// With this fault of one operation, or of all.
    fn with(self, action: Action, operation: Option<Operation>) -> Self {
        let rule = Rule::new(action);
        self.store.faults().add(match operation {
            Some(operation) => rule.operation(operation),
            None => rule,
        });
        self
    }

    /// Replaces a line of the oci CLI's file.
    fn edit(self, key: &str, line: &str) -> Self {
        let text = fs::read_to_string(self.file("config")).unwrap();
        let own = |one: &&str| one.starts_with(&format!("{key}="));
        let lines = text.lines().map(|one| if own(&one) { line } else { one });
        self.write("config", lines.collect::<Vec<_>>().join("\n"));
        self
    }

    /// With the key of the file encrypted.
    fn with_locked_key(self) -> Self {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../vectors/oci-signing.json")).unwrap();
        let locked = vectors["private_key_pkcs8_encrypted_passphrase_hunter2"].as_str().unwrap();
        self.write("api_key.pem", locked);
        let fingerprint = vectors["fingerprint_md5_of_spki_der"].as_str().unwrap();
        self.edit("fingerprint", &format!("fingerprint={fingerprint}"))
    }

    fn with_variable(mut self, name: &'static str, value: &str) -> Self {
        self.environment.retain(|(known, _)| *known != name);
        self.environment.push((name, value.to_owned()));
        self
    }

    async fn fetch(&self) -> Fetched {
        let mut command = self.access.command("fetch");
        command
            .args(&self.arguments)
            .arg(URI)
            .arg(self.scratch.path().join("model"))
            .env("HOME", self.scratch.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        Fetched::of(command.spawn().unwrap()).await
    }

    /// Runs it and checks that it ends as the table says of this set-up.
    async fn ends_as_documented(self, setup: &str) {
        let fetched = self.fetch().await;
        let rows = table("docs/identities.md", SETUPS);
        let row = rows.iter().find(|row| row[0] == setup);
        let row = row.unwrap_or_else(|| panic!("docs/identities.md has no set-up {setup:?}"));
        let said = &fetched.stderr;
        assert_eq!(fetched.code.to_string(), row[2], "{setup}: {said}");
        let mut rest = said.as_str();
        for part in row[3].trim_matches('`').split('…').map(str::trim) {
            let at = rest.find(part);
            let at = at.unwrap_or_else(|| panic!("{setup}: {part:?} is not in {rest:?} of {said}"));
            rest = &rest[at + part.len()..];
        }
        for secret in ["eyJ", "ST$", "PRIVATE KEY", "hunter2"] {
            assert!(!said.contains(secret), "{setup}: {said}");
        }
        assert!(said.chars().count() < 1000, "{setup}: {said}");
    }
}

#[tokio::test]
async fn a_bad_session_ends_with_the_way_to_another_one() {
    let expired = Attempt::of_session();
    expired.write("token", unsigned(1));
    expired.ends_as_documented("a session that has expired").await;
    let cut = Attempt::of_session();
    cut.write("token", "eyJhbGciOiJSUzI1NiJ9");
    cut.ends_as_documented("a session's token that was cut short").await;
    let empty = Attempt::of_session();
    fs::remove_file(empty.file("token")).unwrap();
    empty.ends_as_documented("a session's token that is not there").await;
    let revoked = Attempt::of_session();
    revoked.store.expire_tokens();
    revoked.ends_as_documented("a session that was ended").await;
    let (foreign, other) = (Attempt::of_session(), Attempt::of_session());
    for name in ["token", "api_key.pem"] {
        fs::copy(other.file(name), foreign.file(name)).unwrap();
    }
    foreign.ends_as_documented("a session of another tenancy").await;
    let mixed = Attempt::of_session();
    fs::copy(other.file("api_key.pem"), mixed.file("api_key.pem")).unwrap();
    mixed.ends_as_documented("a session's token with another session's key").await;
}

#[tokio::test]
async fn a_bad_resource_principal_names_the_variable() {
    let expired = Attempt::of_resource();
    expired.write("token", unsigned(1));
    expired.ends_as_documented("a resource principal that has expired").await;
    let cut = Attempt::of_resource().with_variable("OCI_RESOURCE_PRINCIPAL_RPST", "eyJhbGci");
    cut.ends_as_documented("a resource principal's token that was cut short").await;
    let revoked = Attempt::of_resource();
    revoked.store.expire_tokens();
    revoked.ends_as_documented("a resource principal that was revoked").await;
    let (foreign, other) = (Attempt::of_resource(), Attempt::of_resource());
    for name in ["token", "api_key.pem"] {
        fs::copy(other.file(name), foreign.file(name)).unwrap();
    }
    foreign.ends_as_documented("a resource principal of another tenancy").await;
    let nowhere = Attempt::of("resource_principal");
    nowhere.ends_as_documented("no resource principal").await;
    Attempt::of_resource()
        .with_locked_key()
        .ends_as_documented("a resource principal without passphrase")
        .await;
    let wrong = Attempt::of_resource().with_locked_key();
    let wrong = wrong.with_variable("OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM_PASSPHRASE", "sesame");
    wrong.ends_as_documented("a resource principal with a wrong passphrase").await;
}

#[tokio::test]
async fn a_bad_api_key_names_what_to_correct() {
    let other = format!("fingerprint={}", ["00"; 16].join(":"));
    Attempt::of("api_key")
        .edit("fingerprint", &other)
        .ends_as_documented("a wrong fingerprint")
        .await;
    Attempt::of("api_key")
        .with_locked_key()
        .ends_as_documented("a key without its passphrase")
        .await;
    let wrong = Attempt::of("api_key").with_locked_key();
    wrong
        .with_variable("OCI_CLI_PASSPHRASE", "sesame")
        .ends_as_documented("a wrong passphrase")
        .await;
    let removed = Attempt::of("api_key").edit("user", "user=ocid1.user.oc1..another");
    removed.ends_as_documented("a key that was removed").await;
}

/// An address that accepts no connection and refuses none, as a host that drops packets; the other
/// values keep it so.
async fn silent_address() -> (String, TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let limit = Duration::from_millis(300);
    while let Ok(connected) = tokio::time::timeout(limit, TcpStream::connect(address)).await {
        waiting.push(connected.unwrap());
        assert!(waiting.len() < 64, "the kernel drops no connection here");
    }
    (format!("http://{address}/opc/v2"), listener, waiting)
}

#[tokio::test]
async fn a_machine_without_a_metadata_service_gets_advice_within_seconds() {
    let (silent, _listener, _waiting) = silent_address().await;
    let started = Instant::now();
    let nowhere = Attempt::of_instance().with_variable("OCI_METADATA_BASE_URL", &silent);
    nowhere.ends_as_documented("no metadata service").await;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_metadata_service_that_is_slow_busy_or_something_else_is_named() {
    let imds = Some(Operation::Imds);
    let of = |action| Attempt::of_instance().with(action, imds);
    tokio::join!(
        of(Action::Latency { ms: 40_000 }).ends_as_documented("a slow metadata service"),
        of(Action::status(404)).ends_as_documented("a metadata service that is not ready"),
        of(Action::status(429)).ends_as_documented("a metadata service that is asked too often"),
        of(Action::Page { code: 200 })
            .ends_as_documented("a page in place of the metadata service"),
        of(Action::status(403)).ends_as_documented("a metadata service that is switched off"),
    );
}

#[tokio::test]
async fn a_federation_that_refuses_or_is_down_is_named() {
    let federation = Some(Operation::Federation);
    let of = |action| Attempt::of_instance().with(action, federation);
    tokio::join!(
        of(Action::status(401))
            .ends_as_documented("a certificate that the identity service refuses"),
        of(Action::status(400))
            .ends_as_documented("an exchange that the identity service does not understand"),
        of(Action::status(429)).ends_as_documented("an identity service that limits requests"),
        of(Action::status(500)).ends_as_documented("an identity service that is down"),
    );
}

#[tokio::test]
async fn a_clock_that_is_ten_minutes_off_is_named_for_every_identity() {
    let off = || Action::DateOffset { secs: -600 };
    let mut attempts = vec![Attempt::of("api_key"), Attempt::of_session(), Attempt::of_resource()];
    attempts.extend([Attempt::of_instance(), Attempt::of_good_account()]);
    for attempt in attempts {
        attempt.with(off(), None).ends_as_documented("a clock that is too fast").await;
    }
}

#[tokio::test]
async fn a_clock_that_is_months_off_is_named_where_tls_fails() {
    for (setup, years) in [
        ("a clock that is months fast", (2001, 2002)),
        ("a clock that is months slow", (2900, 2901)),
    ] {
        let (first, last) = years;
        let builder = LocalStore::builder().tls(true).certificate_years(first, last);
        let mut attempt = Attempt::at(builder.start().unwrap(), "api_key");
        let ca = attempt.store.ca_file().unwrap().to_str().unwrap().to_owned();
        attempt.arguments.extend(["--ca-file".to_owned(), ca]);
        attempt.ends_as_documented(setup).await;
    }
}

#[tokio::test]
async fn a_bad_service_account_names_what_to_correct() {
    Attempt::of_account(unsigned(1))
        .ends_as_documented("a service account's token that has expired")
        .await;
    Attempt::of_account("eyJhbGciOi")
        .ends_as_documented("a service account's token that was cut short")
        .await;
    let other = LocalStore::builder().start().unwrap();
    let foreign = other.service_account_token("team-a", "default", None, HOUR).unwrap();
    Attempt::of_account(foreign).ends_as_documented("a service account of another cluster").await;
    let exchange = Some(Operation::WorkloadIdentity);
    let of = |action| Attempt::of_good_account().with(action, exchange);
    tokio::join!(
        of(Action::status(403)).ends_as_documented("a basic cluster"),
        of(Action::status(500)).ends_as_documented("a cluster's identity service that is down"),
    );
    let revoked = Attempt::of_good_account().with(Action::status(401), Some(Operation::List));
    revoked.ends_as_documented("a cluster of another tenancy").await;
}

#[tokio::test]
async fn the_oci_clis_variable_replaces_the_default_and_gives_way_to_flag_and_own_variable() {
    let unsigned = [("OCI_CLI_AUTH", "none")];
    let own = [("OCI_CLI_AUTH", "none"), ("OCI_MODEL_CSI_AUTH", "api_key")];
    let misspelt = [("OCI_CLI_AUTH", "apikey")];
    let session = [("OCI_CLI_AUTH", "security_token"), ("OCI_CLI_PROFILE", "SESSION")];
    for (flag, variables, code, said) in [
        (None, &[][..], 0, ""),
        (None, &unsigned[..], 4, "the request was not signed"),
        (None, &own[..], 0, ""),
        (Some("api_key"), &unsigned[..], 0, ""),
        (None, &session[..], 0, ""),
        (None, &misspelt[..], 2, "it must be one of auto, api_key"),
    ] {
        let mut attempt = Attempt::of("api_key");
        attempt.arguments.drain(..2);
        attempt.arguments.extend(flag.iter().flat_map(|flag| ["--auth", *flag]).map(str::to_owned));
        for (name, value) in variables {
            attempt = attempt.with_variable(name, value);
        }
        let fetched = attempt.fetch().await;
        assert_eq!(fetched.code, code, "{flag:?} {variables:?}: {}", fetched.stderr);
        assert!(fetched.stderr.contains(said), "{flag:?} {variables:?}: {}", fetched.stderr);
    }
}

#[test]
fn a_driver_answers_kubelet_with_the_code_of_the_bad_credential() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Setup::new(scratch, &store).with_instance_principal(&store).start().await;
        let kubelet = driver.kubelet();
        let words = "does not accept this instance's certificate";
        for (n, status, code) in
            [("1", 401, Code::Unauthenticated), ("2", 400, Code::PermissionDenied)]
        {
            let rule = Rule::new(Action::status(status)).operation(Operation::Federation);
            let rule = store.faults().add(rule);
            let (answered, message) = kubelet.inline(n, &PHI3).refused().await;
            assert_eq!(answered, code, "{status}: {message}");
            assert!(message.contains(words), "{status}: {message}");
            store.faults().remove(rule);
        }
        kubelet.inline("3", &PHI3).publish().await.unwrap();
    });
}

#[test]
fn every_row_of_the_table_of_bad_credentials_has_a_test() {
    let rows = table("docs/identities.md", SETUPS);
    let documented: BTreeSet<String> = rows.iter().map(|row| row[0].clone()).collect();
    assert_eq!(documented.len(), rows.len(), "a set-up is there twice");
    let text = read("tests/it/identities.rs");
    let quoted: BTreeSet<&str> = text.split('"').skip(1).step_by(2).collect();
    let untested: Vec<_> =
        documented.iter().filter(|setup| !quoted.contains(setup.as_str())).collect();
    assert!(untested.is_empty(), "{untested:?}");
    assert!(rows.len() >= 30, "{} set-ups", rows.len());
}
