//! No credential is found in the log, an error, an event, a trace, a page or a file, whatever the
//! identity and whatever fails: of the driver, of its commands, of pods, and of a proxy.
//!
//! Another secret needs a line in [`Secrets::of`], another reader one in [`Reads`]
//! (`secrets/subject.rs`), another failure one in [`failures`].

mod subject;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use localstore::{Action, Operation, Rule};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use self::subject::{PASSPHRASE, POD_TOKEN, Reads, Subject, broken_key, broken_secrets, prepared};
use crate::support::api_server::ApiServer;
use crate::support::commands::Commands;
use crate::support::driver::Driver;
use crate::support::models::{BUCKET, PHI3, content_of};
use crate::support::pod_keys;
use crate::support::proxy::Behaviour;
use crate::support::run::{end_to_end_within, eventually, figure};
use crate::support::workloads::TOKENS;

/// What begins every token (a JWT) and every signature, and ends every key; what the tests know of
/// other secrets, and that login in base64.
const MARKS: [&str; 8] = [
    "eyJ",
    "ST$",
    "Signature version=",
    "PRIVATE KEY",
    POD_TOKEN,
    PASSPHRASE,
    "proxys-own-5c1e",
    "bWU6cHJveHlz",
];

/// Each token has to be replaced in each failure.
const LIMIT: Duration = Duration::from_secs(300);

const URI: &str = "oci://ai-model-cache/models/phi3-mini/";

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
    fn of(subject: &Subject<'_>) -> Self {
        let mut secrets: Vec<String> = MARKS.map(str::to_owned).to_vec();
        let files = ["oci/api_key.pem", "oci/token", "account/token"];
        let texts = files.map(|name| fs::read_to_string(subject.scratch.join(name)).unwrap());
        let of_pod = ["key", "par"].into_iter().filter_map(|key| subject.secret.get(key).cloned());
        // And what is broken on purpose.
        let broken = subject.secret.get("key").map(|key| broken_key(key));
        for text in texts.into_iter().chain(of_pod).chain(broken) {
            secrets.extend(text.lines().filter(|line| line.len() > 60).map(str::to_owned));
            secrets.extend(text.contains("://").then(|| pod_keys::token(&text)[..20].to_owned()));
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

async fn assert_discreet(scratch: &Path, reads: Reads) {
    let store = prepared(scratch, reads);
    let subject = Subject::new(scratch, &store, reads).await;
    let (api, search) = (ApiServer::start().await, Search::default());
    let mut driver = subject.driver(&api).await;
    let secrets = Secrets::of(&subject);
    let kubelet = driver.kubelet();
    let tokens = format!("{{\"\":{{\"token\":\"{POD_TOKEN}\"}}}}");
    let namespace = ("namespace", store.namespace().to_owned());
    let volume = |pod: &str, prefix: &str| {
        let attributes = [("bucket", BUCKET), ("prefix", prefix), (TOKENS, tokens.as_str())];
        let attributes = [&attributes[..], &[(namespace.0, namespace.1.as_str())]].concat();
        let mut volume = kubelet.inline(pod, &attributes);
        volume.secrets.clone_from(&subject.secret);
        volume
    };
    volume("0", PHI3[1].1).publish().await.unwrap();
    let (mut answers, mut pods) = (String::new(), 0);
    for (number, (name, rule)) in (1..).zip(failures(reads.auth())) {
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
    for (number, secret) in (900..).zip(broken_secrets(&subject.secret)) {
        search.scenarios.fetch_add(1, Ordering::Relaxed);
        let mut broken = volume(&number.to_string(), PHI3[1].1);
        broken.secrets = secret;
        let _ = writeln!(answers, "a broken Secret: {}", broken.refused().await.1);
    }
    if reads == Reads::ThroughProxy {
        let ask = async |pod: &str| volume(pod, &format!("{pod}/")).refused().await.1;
        answers += &refused_by_proxy(&subject, &search, ask).await;
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
    // A running driver has a socket in the cache, which is neither file nor directory; and it
    // exports the rest of its spans when it ends.
    driver.terminate().await;
    driver.ended().await;
    let spans = subject.collector.text();
    assert!(spans.contains(PHI3[1].1), "the premise: spans of publishes are exported: {spans}");
    search.look("the traces", &spans, &secrets);
    let cached = content_of(&driver.setup.cache).into_values().flatten();
    let cached: String = cached.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
    search.look("the cache", &cached, &secrets);
    let Search { lines, pages, scenarios } = search;
    let [lines, pages, scenarios] = [lines, pages, scenarios].map(AtomicUsize::into_inner);
    assert!(lines > 1000 && pages > 20, "{lines} lines, {pages} pages");
    figure(format_args!(
        "secrets found, {}: 0 of {lines} lines and {pages} pages over {scenarios} scenarios",
        reads.name()
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
    let file = subject.path("oci/par");
    fs::write(&file, subject.secret.get("par").map_or("", String::as_str)).unwrap();
    let own: [&[&str]; 4] = [
        &["fetch", &model, &target],
        &["ls", &uri],
        &["push", &source, &pushed],
        &["doctor", &model, "--kubelet-dir", "/absent", "--cache-dir", "/absent"],
    ];
    let with_par: [&[&str]; 4] = [
        &["fetch", "--par-file", &file, &model, &target],
        &["ls", "--par-file", &file, &uri],
        &["ls", "--par-file", &file, "--objects", &model],
        &["fetch", "--par-file", &file, "oci://another-bucket/models/", &target],
    ];
    let all = if subject.reads == Reads::WithPar { with_par } else { own };
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

/// The answers to pods while the proxy refuses. Returns them.
async fn refused_by_proxy(
    subject: &Subject<'_>,
    search: &Search,
    ask: impl AsyncFn(&str) -> String,
) -> String {
    let seen = subject.proxy.seen();
    assert!(seen.iter().all(|one| one.login.is_some()), "the premise: it gets the login");
    assert!(seen.len() > 5, "the premise: it is used: {seen:?}");
    let mut answers = String::new();
    for (pod, answer) in [
        ("800", "HTTP/1.1 407 X\r\ncontent-length: 0\r\n\r\n"),
        ("801", "HTTP/1.1 403 X\r\ncontent-length: 6\r\n\r\n<html>"),
    ] {
        search.scenarios.fetch_add(1, Ordering::Relaxed);
        subject.proxy.becomes(Behaviour::Answer(answer));
        let _ = writeln!(answers, "{}", ask(pod).await);
    }
    subject.proxy.becomes(Behaviour::Forward);
    answers
}

#[test]
fn no_secret_of_an_api_key_is_found_anywhere() {
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, Reads::As("api_key")).await);
}

#[test]
fn no_secret_of_a_session_is_found_anywhere() {
    let reads = Reads::As("security_token");
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, reads).await);
}

#[test]
fn no_secret_of_a_resource_principal_is_found_anywhere() {
    let reads = Reads::As("resource_principal");
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, reads).await);
}

#[test]
fn no_secret_of_an_instance_is_found_anywhere() {
    let reads = Reads::As("instance_principal");
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, reads).await);
}

#[test]
fn no_secret_of_a_pod_or_of_the_drivers_own_account_is_found_anywhere() {
    let reads = Reads::As("oke_workload_identity");
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, reads).await);
}

#[test]
fn no_secret_is_found_where_requests_are_unsigned() {
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, Reads::As("none")).await);
}

#[test]
fn no_password_of_a_proxy_is_found_anywhere() {
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, Reads::ThroughProxy).await);
}

#[test]
fn neither_the_key_in_a_pods_secret_nor_its_passphrase_is_found_anywhere() {
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, Reads::AsKeyOfPod).await);
}

#[test]
fn no_pre_authenticated_request_is_found_anywhere() {
    end_to_end_within(LIMIT, async |scratch| assert_discreet(scratch, Reads::WithPar).await);
}
