//! No credential is found in the log, an error, an event, a page or a file, whatever the identity
//! and whatever fails.
//!
//! Another secret needs a line in [`Secrets::of`], another identity one in [`IDENTITIES`], another
//! failure one in [`failures`].

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use localstore::{Action, LocalStore, Operation, Rule};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::support::access::Access;
use crate::support::api_server::ApiServer;
use crate::support::commands::Commands;
use crate::support::driver::{Driver, Setup};
use crate::support::fetch::Fetched;
use crate::support::models::{BUCKET, PHI3, content_of, put};
use crate::support::run::{end_to_end_within, eventually, figure};
use crate::support::workloads::{HOUR, TOKENS};

/// The token of a pod, which the store accepts whatever its content.
const POD_TOKEN: &str = "pods-own-token-5e0f9c";

/// What begins every token (a JWT) and every signature, and ends every key.
const MARKS: [&str; 4] = ["eyJ", "ST$", "Signature version=", "PRIVATE KEY"];

/// Each token has to be replaced in each failure.
const LIMIT: Duration = Duration::from_secs(300);

const URI: &str = "oci://ai-model-cache/models/phi3-mini/";

/// Who reads, by the names of `--auth`.
const IDENTITIES: [&str; 6] = [
    "api_key",
    "security_token",
    "resource_principal",
    "instance_principal",
    "oke_workload_identity",
    "none",
];

/// The services that give an identity its tokens.
fn services_of(auth: &str) -> &'static [Operation] {
    match auth {
        "instance_principal" => &[Operation::Imds, Operation::Federation],
        "oke_workload_identity" => &[Operation::WorkloadIdentity],
        _ => &[],
    }
}

/// What goes wrong, one after the other; each with an operation of the store.
fn failures(auth: &str) -> Vec<(&'static str, Rule)> {
    let of = |name, action, operation| (name, Rule::new(action).operation(operation));
    let once = |(name, rule): (&'static str, Rule)| (name, rule.times(1));
    let (list, get) = (Operation::List, Operation::Get);
    let mut found = vec![
        of("listing: 401", Action::status(401), list),
        of("listing: 403", Action::status(403), list),
        of("listing: 404", Action::status(404), list),
        once(of("listing: 429", Action::status(429), list)),
        once(of("listing: 500", Action::status(500), list)),
        once(of("listing: reset", Action::Disconnect, list)),
        of("listing: a page", Action::Page { code: 200 }, list),
        of("listing: a redirect", Action::Page { code: 302 }, list),
        of("listing: another clock", Action::DateOffset { secs: -600 }, list),
        of("read: 401", Action::status(401), get),
        of("read: 403", Action::status(403), get),
        once(of("read: 500", Action::status(500), get)),
        once(of("read: reset", Action::ResetAfter { bytes: 3 }, get)),
        once(of("read: a flipped byte", Action::FlipByte { offset: 1 }, get)),
    ];
    for &service in services_of(auth) {
        found.extend([
            of("identity: 401", Action::status(401), service),
            of("identity: 403", Action::status(403), service),
            once(of("identity: 429", Action::status(429), service)),
            once(of("identity: 500", Action::status(500), service)),
            once(of("identity: reset", Action::Disconnect, service)),
            once(of("identity: a page", Action::Page { code: 200 }, service)),
        ]);
    }
    found
}

/// What must not be found.
struct Secrets(Vec<String>);

impl Secrets {
    /// The marks of all secrets, and the words of those in these files: of keys each line, since a
    /// log could leave out the marks.
    fn of(scratch: &Path) -> Self {
        let mut secrets: Vec<String> = MARKS.map(str::to_owned).to_vec();
        secrets.push(POD_TOKEN.to_owned());
        for name in ["oci/api_key.pem", "oci/token", "account/token"] {
            let text = fs::read_to_string(scratch.join(name)).unwrap();
            secrets.extend(text.lines().filter(|line| line.len() > 60).map(str::to_owned));
            // The signature of a token, and a part of it.
            secrets.extend(text.trim().rsplit_once('.').map(|(_, end)| end[..40].to_owned()));
        }
        assert!(secrets.len() > 25, "the premise: a key in PEM and tokens: {}", secrets.len());
        Self(secrets)
    }
}

/// What was looked through.
#[derive(Debug, Default)]
struct Search {
    lines: AtomicUsize,
    pages: AtomicUsize,
    scenarios: AtomicUsize,
}

impl Search {
    /// Counts the lines of a page and looks for secrets in them.
    #[track_caller]
    fn look(&self, what: &str, text: &str, secrets: &Secrets) {
        assert!(!text.is_empty(), "there is nothing in {what}");
        self.pages.fetch_add(1, Ordering::Relaxed);
        for line in text.lines() {
            self.lines.fetch_add(1, Ordering::Relaxed);
            let found = secrets.0.iter().find(|secret| line.contains(secret.as_str()));
            assert_eq!(found, None, "in {what}: {line:?}");
        }
    }
}

/// A driver and commands with one identity, all at trace level.
struct Subject<'a> {
    scratch: &'a Path,
    store: &'a LocalStore,
    auth: &'static str,
}

impl Subject<'_> {
    fn path(&self, name: &str) -> String {
        self.scratch.join(name).to_str().unwrap().to_owned()
    }

    /// The flags of this identity.
    fn flags(&self) -> Vec<String> {
        let mut flags = vec!["--region".to_owned(), "us-ashburn-1".to_owned()];
        match self.auth {
            "security_token" => flags.extend(["--profile", "SESSION"].map(str::to_owned)),
            "oke_workload_identity" => {
                flags.extend(["--oke-endpoint".to_owned(), self.store.endpoint()]);
                flags.extend(["--oke-token-file".to_owned(), self.path("account/token")]);
            }
            _ => {}
        }
        flags
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        match self.auth {
            "resource_principal" => vec![
                ("OCI_RESOURCE_PRINCIPAL_VERSION", "2.2".to_owned()),
                ("OCI_RESOURCE_PRINCIPAL_RPST", self.path("oci/token")),
                ("OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM", self.path("oci/api_key.pem")),
            ],
            "instance_principal" => vec![
                ("OCI_METADATA_BASE_URL", self.store.imds_base()),
                ("OCI_CLI_FEDERATION_ENDPOINT", self.store.federation_endpoint()),
            ],
            _ => Vec::new(),
        }
    }

    async fn driver(&self, api: &ApiServer) -> Driver {
        let mut setup = Setup::new(self.scratch, self.store);
        setup.auth = self.auth;
        setup.environment = self.environment();
        setup.arguments = self.flags();
        setup.arguments.extend(["--kubernetes-api", &api.url].map(str::to_owned));
        setup.arguments.extend(["--service-account-dir".to_owned(), self.path("account")]);
        setup.arguments.extend(["--log-level", "trace"].map(str::to_owned));
        setup.with_config(&format!("prefetch: [\"{URI}\"]\n")).start().await
    }

    /// A command with this identity, and all that it printed.
    async fn command(&self, words: &[&str]) -> String {
        let mut command = Access::new(self.scratch, self.store).command(words[0]);
        command.args(&words[1..]).args(["--auth", self.auth, "--log-level", "trace"]);
        command.args(self.flags()).envs(self.environment());
        let ran = Fetched::of(command.spawn().unwrap()).await;
        format!("exit code {}\n{}{}", ran.code, ran.stdout, ran.stderr)
    }
}

/// The answer to a GET over the driver's socket for the administrator.
async fn page(driver: &Driver, path: &str) -> String {
    let socket = driver.setup.cache.join("admin.sock");
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    answer
}

/// A store that knows the pod's token, and the files of all identities.
fn prepared(scratch: &Path, auth: &str) -> LocalStore {
    // Tokens are replaced again and again, so that their services are asked in each failure.
    let builder = LocalStore::builder().token_ttl(Duration::from_secs(4));
    let store = builder.cluster_token(POD_TOKEN, "team-a", "default").start().unwrap();
    for name in ["config.json", "tokenizer/vocab.txt", "model.safetensors"] {
        put(&store, name, name);
    }
    if auth == "none" {
        store.set_public_access(BUCKET, localstore::PublicAccess::ObjectRead).unwrap();
    }
    let account = scratch.join("account");
    fs::create_dir(&account).unwrap();
    let token = store.service_account_token("kube-system", "driver", None, HOUR).unwrap();
    fs::write(account.join("token"), token).unwrap();
    store
}

async fn assert_discreet(scratch: &Path, auth: &'static str) {
    let store = prepared(scratch, auth);
    let subject = Subject { scratch, store: &store, auth };
    let (api, search) = (ApiServer::start().await, Search::default());
    let mut driver = subject.driver(&api).await;
    let secrets = Secrets::of(scratch);
    let kubelet = driver.kubelet();
    let tokens = format!("{{\"\":{{\"token\":\"{POD_TOKEN}\"}}}}");
    let namespace = ("namespace", store.namespace().to_owned());
    let volume = |pod: &str, prefix: &str| {
        let attributes = [("bucket", BUCKET), ("prefix", prefix), (TOKENS, tokens.as_str())];
        kubelet.inline(pod, &[&attributes[..], &[(namespace.0, namespace.1.as_str())]].concat())
    };
    volume("0", PHI3[1].1).publish().await.unwrap();
    let (mut answers, mut pods) = (String::new(), 0);
    for (number, (name, rule)) in (1..).zip(failures(auth)) {
        search.scenarios.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("m{number}/");
        store.put(BUCKET, &format!("{prefix}config.json"), name).unwrap();
        let rule = store.faults().add(rule);
        eventually(name, Duration::from_secs(30), async || {
            pods += 1;
            if let Err(status) = volume(&pods.to_string(), &prefix).publish().await {
                let _ = writeln!(answers, "{name}: {}", status.message());
            }
            let rules = store.faults().list();
            rules.iter().any(|one| one.id == rule && one.hits > 0).then_some(())
        })
        .await;
        store.faults().remove(rule);
    }
    search.look("the answers", &answers, &secrets);
    let commands = Commands::of(&driver.setup);
    for words in [&["ls"][..], &["inspect", URI], &["ls", "--output", "json"]] {
        search.look("cache", &commands.run(words).await.stdout, &secrets);
    }
    for path in ["/status", "/metrics"] {
        search.look(path, &page(&driver, path).await, &secrets);
    }
    search.look("/metrics of the cluster", &driver.metrics().await, &secrets);
    let events: Vec<String> = api.events().iter().map(ToString::to_string).collect();
    assert!(events.len() > 5, "the premise: events are sent: {events:?}");
    search.look("the events", &events.join("\n"), &secrets);
    commands_are_discreet(&subject, &search, &secrets).await;
    assert!(driver.log().contains("TRACE"), "the premise: everything is logged");
    search.look("the log", &driver.log(), &secrets);
    // A running driver has a socket in the cache, which is neither file nor directory.
    driver.terminate().await;
    driver.ended().await;
    let cached = content_of(&driver.setup.cache).into_values().flatten();
    let cached: String = cached.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
    search.look("the cache", &cached, &secrets);
    let Search { lines, pages, scenarios } = search;
    let [lines, pages, scenarios] = [lines, pages, scenarios].map(AtomicUsize::into_inner);
    assert!(lines > 1000 && pages > 20, "{lines} lines, {pages} pages");
    figure(format_args!(
        "secrets found, {auth}: 0 of {lines} lines and {pages} pages over {scenarios} scenarios"
    ));
}

/// What commands print of this identity, in good times and in bad ones.
async fn commands_are_discreet(subject: &Subject<'_>, search: &Search, secrets: &Secrets) {
    let source = subject.scratch.join("local");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("config.json"), "{}").unwrap();
    let (source, target) = (source.to_str().unwrap().to_owned(), subject.path("fetched"));
    let uri = format!("oci://{BUCKET}@{}/models/", subject.store.namespace());
    let model = format!("{uri}phi3-mini/");
    let pushed = format!("{uri}pushed/");
    let all: [&[&str]; 4] = [
        &["fetch", &model, &target],
        &["ls", &uri],
        &["push", &source, &pushed],
        &["doctor", &model, "--kubelet-dir", "/absent", "--cache-dir", "/absent"],
    ];
    for status in [None, Some(401), Some(403), Some(404)] {
        search.scenarios.fetch_add(all.len(), Ordering::Relaxed);
        let rule = status.map(|status| {
            let operations = [Operation::List, Operation::Get, Operation::Put, Operation::Head];
            operations.map(|one| {
                subject.store.faults().add(Rule::new(Action::status(status)).operation(one))
            })
        });
        for words in all {
            search.look(words[0], &subject.command(words).await, secrets);
        }
        for rule in rule.into_iter().flatten() {
            subject.store.faults().remove(rule);
        }
    }
}

#[test]
fn no_secret_of_an_api_key_is_found_anywhere() {
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, IDENTITIES[0]).await);
}

#[test]
fn no_secret_of_a_session_is_found_anywhere() {
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, IDENTITIES[1]).await);
}

#[test]
fn no_secret_of_a_resource_principal_is_found_anywhere() {
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, IDENTITIES[2]).await);
}

#[test]
fn no_secret_of_an_instance_is_found_anywhere() {
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, IDENTITIES[3]).await);
}

#[test]
fn no_secret_of_a_pod_or_of_the_drivers_own_account_is_found_anywhere() {
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, IDENTITIES[4]).await);
}

#[test]
fn no_secret_is_found_where_requests_are_unsigned() {
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, IDENTITIES[5]).await);
}
