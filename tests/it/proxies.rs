//! Proxies, other hosts of a region, and the addresses that requests come from: what the driver and
//! its commands do behind them, and what they say when they fail.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use localstore::{LocalStore, Operation, PutOptions};
use tonic::Code;

use crate::support::api_server::ApiServer;
use crate::support::driver::Setup;
use crate::support::fetch::{Fetch, Fetched};
use crate::support::models::{
    BUCKET, MIB, PHI3, assert_synthetic, content_of, put, put_large, store_with_phi3,
};
use crate::support::proxy::{Behaviour, TestProxy};
use crate::support::push::{Push, prepared};
use crate::support::run::{end_to_end, eventually};
use crate::support::workloads;

/// A password with characters that a URL cannot have as they are.
const LOGIN: &str = "me:s3cret%40%23pass";

/// `me:s3cret@#pass` in base64, and the words that no output may have.
const AUTHORIZATION: &str = "Basic bWU6czNjcmV0QCNwYXNz";
const SECRETS: [&str; 3] = ["s3cret", "bWU6czNj", "#pass"];

/// What answers without waiting takes; a repeated request takes longer.
const AT_ONCE: Duration = Duration::from_secs(8);

fn encrypted_store() -> LocalStore {
    let store = LocalStore::builder().tls(true).start().unwrap();
    put(&store, "config.json", "{}");
    store
}

#[track_caller]
fn assert_fails(fetched: &Fetched, words: &[&str]) {
    let output = format!("{}{}", fetched.stdout, fetched.stderr);
    assert_eq!(fetched.code, 1, "{output}");
    for word in words {
        assert!(output.contains(word), "{word:?} is not in {output}");
    }
    for secret in SECRETS {
        assert!(!output.contains(secret), "{secret:?} is in {output}");
    }
}

/// A fetch of an encrypted store that trusts it.
fn fetch_of(scratch: &Path, store: &LocalStore) -> Fetch {
    Fetch::new(scratch, store).with(&["--ca-file", store.ca_file().unwrap().to_str().unwrap()])
}

/// What a diagnosis says in place of a fetch, which may repeat its requests.
async fn doctor(fetch: &Fetch) -> String {
    let mut command = fetch.access.command("doctor");
    let ran = command.args(&fetch.arguments).arg(&fetch.uri).output().await.unwrap();
    String::from_utf8(ran.stdout).unwrap()
}

#[tokio::test]
async fn https_goes_through_a_tunnel_with_the_login_and_the_metadata_service_goes_directly() {
    let (scratch, store) = (tempfile::tempdir().unwrap(), encrypted_store());
    let proxy = TestProxy::start(Behaviour::Forward, None);
    let url = proxy.url_with(LOGIN);
    let mut fetch = fetch_of(scratch.path(), &store)
        .with(&["--auth", "instance_principal", "--log-level", "trace"])
        .and_variable("OCI_METADATA_BASE_URL", &store.imds_base())
        .and_variable("OCI_CLI_FEDERATION_ENDPOINT", &store.federation_endpoint());
    for name in ["https_proxy", "http_proxy", "ALL_PROXY"] {
        fetch = fetch.and_variable(name, &url);
    }
    let fetched = fetch.run().await;
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    assert_eq!(content_of(&fetch.directory).len(), 1);
    let seen = proxy.seen();
    let server = store.address().to_string();
    assert!(!seen.is_empty());
    for request in &seen {
        assert_eq!((request.method.as_str(), &request.target), ("CONNECT", &server), "{seen:?}");
        assert_eq!(request.login.as_deref(), Some(AUTHORIZATION));
    }
    // All bytes of Object Storage and of the identity service came through the tunnels.
    let stats = store.stats();
    assert!(stats.requests_of(Operation::Imds) > 0 && stats.requests_of(Operation::Get) > 0);
    assert!(fetched.stderr.contains("TRACE"), "the premise: everything is logged");
    for secret in SECRETS {
        let line = fetched.stderr.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret:?}: {line:?}");
    }
}

#[tokio::test]
async fn plain_http_goes_through_its_proxy_and_past_it_where_no_proxy_says_so() {
    let (scratch, store) = (tempfile::tempdir().unwrap(), store_with_phi3());
    let proxy = TestProxy::start(Behaviour::Forward, None);
    let url = proxy.url_with(LOGIN);
    let fetch = Fetch::new(scratch.path(), &store).and_variable("http_proxy", &url);
    let exempt = fetch.clone().and_variable("NO_PROXY", "10.0.0.0/8, 127.0.0.0/8");
    assert_eq!(exempt.run().await.code, 0);
    assert!(proxy.seen().is_empty(), "NO_PROXY exempts the endpoint");
    fs::remove_dir_all(&fetch.directory).unwrap();
    let fetched = fetch.run().await;
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    let seen = proxy.seen();
    let origin = format!("{}/", store.endpoint());
    assert!(!seen.is_empty());
    for request in &seen {
        assert!(request.method == "GET" && request.target.starts_with(&origin), "{seen:?}");
        assert_eq!(request.login.as_deref(), Some(AUTHORIZATION));
    }
}

#[tokio::test]
async fn a_model_is_pushed_through_a_proxy() {
    let (_scratch, store, mut push) = prepared();
    let proxy = TestProxy::start(Behaviour::Forward, None);
    push.environment.push(("http_proxy", proxy.url()));
    push.small_model();
    push.succeeds().await;
    let puts = proxy.seen().iter().filter(|request| request.method == "PUT").count();
    assert_eq!(
        u64::try_from(puts).unwrap(),
        store.stats().requests_of(Operation::Put)
            + store.stats().requests_of(Operation::UploadPart)
    );
}

#[tokio::test]
async fn each_way_in_which_a_proxy_fails_names_the_proxy_and_the_remedy() {
    let store = encrypted_store();
    let server = store.address().to_string();
    for (name, answer, words, is_final) in [
        (
            "login",
            "HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic \
             realm=\"corp\"\r\ncontent-length: 0\r\n\r\n",
            &[
                "answers 407 Proxy Authentication Required (Basic realm=\"corp\")",
                "correct user and password of the proxy in HTTPS_PROXY",
            ][..],
            true,
        ),
        (
            "forbidden",
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
            &["answers 403 Forbidden to CONNECT", "let the proxy connect to", "NO_PROXY"],
            true,
        ),
        (
            "portal",
            "HTTP/1.1 302 Found\r\nlocation: http://portal/?s3cret\r\n\r\n<html>s3cret</html>",
            &["answers 302 Found to CONNECT"],
            true,
        ),
        ("html", "<html>s3cret</html>", &["broke off while it opened a tunnel"], false),
        (
            "gone",
            "",
            &["broke off while it opened a tunnel", "check the proxy in HTTPS_PROXY"],
            false,
        ),
        (
            "bad-gateway",
            "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 6\r\n\r\ns3cret",
            &["answers 502 Bad Gateway to CONNECT"],
            false,
        ),
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let proxy = TestProxy::start(Behaviour::Answer(answer), None);
        let fetch =
            fetch_of(scratch.path(), &store).and_variable("HTTPS_PROXY", &proxy.url_with(LOGIN));
        if !is_final {
            // The command repeats its requests for a minute, and a diagnosis only once.
            let said = doctor(&fetch).await;
            for word in words.iter().chain(&[proxy.address().to_string().as_str()]) {
                assert!(said.contains(word), "{name}: {word:?} is not in {said}");
            }
            assert!(!said.contains("s3cret"), "{name}: {said}");
            continue;
        }
        let started = Instant::now();
        let fetched = fetch.run().await;
        assert!(started.elapsed() < AT_ONCE, "{name}: {:?}", started.elapsed());
        assert_eq!(proxy.seen().len(), 1, "{name}");
        let address = proxy.address().to_string();
        assert_fails(&fetched, &[words, &[&server, &format!("the proxy {address}")]].concat());
    }
}

#[tokio::test]
async fn a_proxy_that_wants_a_login_and_gets_none_says_where_to_write_it() {
    let (scratch, store) = (tempfile::tempdir().unwrap(), encrypted_store());
    let answer = "HTTP/1.1 407 X\r\ncontent-length: 0\r\n\r\n";
    let proxy = TestProxy::start(Behaviour::Answer(answer), None);
    let fetch = fetch_of(scratch.path(), &store).and_variable("HTTPS_PROXY", &proxy.url());
    assert_fails(
        &fetch.run().await,
        &["write user and password into the proxy in HTTPS_PROXY: http://USER:PASSWORD@HOST:PORT"],
    );
    // The same where the proxy reads the request.
    let store = store_with_phi3();
    let scratch = tempfile::tempdir().unwrap();
    let fetch = Fetch::new(scratch.path(), &store).and_variable("HTTP_PROXY", &proxy.url());
    assert_fails(&fetch.run().await, &["write user and password into the proxy in HTTP_PROXY"]);
}

#[tokio::test]
async fn a_proxy_that_is_no_url_is_refused_before_anything_is_sent() {
    let (scratch, store) = (tempfile::tempdir().unwrap(), encrypted_store());
    let fetch = fetch_of(scratch.path(), &store)
        .and_variable("HTTPS_PROXY", "socks5://me:s3cret@proxy.example:1080");
    let fetched = fetch.run().await;
    assert_eq!(fetched.code, 2, "{}", fetched.stderr);
    assert!(fetched.stderr.contains("the proxy of HTTPS_PROXY"), "{}", fetched.stderr);
    assert!(!fetched.stderr.contains("s3cret"), "{}", fetched.stderr);
    assert_eq!(store.stats().requests_of(Operation::List), 0);
}

#[tokio::test]
async fn a_proxy_that_dies_within_a_body_costs_no_byte() {
    const SIZE: u64 = 48 * MIB;
    let (scratch, store) = (tempfile::tempdir().unwrap(), LocalStore::builder().tls(true));
    let store = store.start().unwrap();
    put_large(&store, "model.bin", SIZE, 7, PutOptions { crc32c: true, ..PutOptions::default() });
    let dies = i64::try_from(20 * MIB).unwrap();
    let proxy = TestProxy::start(Behaviour::DieAfter(dies), None);
    let fetch = fetch_of(scratch.path(), &store).and_variable("HTTPS_PROXY", &proxy.url());
    let fetched = fetch.run().await;
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    assert!(proxy.has_died(), "the premise");
    assert_synthetic(&fetch.directory.join("model.bin"), 7, SIZE);
}

#[tokio::test]
async fn a_redirect_names_its_target_without_its_query_and_is_not_repeated() {
    let (scratch, store) = (tempfile::tempdir().unwrap(), store_with_phi3());
    // An address that would show whether it is followed.
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    target.set_nonblocking(true).unwrap();
    let at = target.local_addr().unwrap();
    let answer = format!(
        "HTTP/1.1 302 Found\r\nlocation: http://{at}/login?token=s3cret\r\ncontent-length: 0\r\n\r\n"
    );
    let portal = TestProxy::start(Behaviour::Answer(answer.leak()), None);
    let fetch = Fetch::new(scratch.path(), &store).and_variable("http_proxy", &portal.url());
    let fetched = fetch.run().await;
    let named = format!("302 Found, a redirect to http://{at}/login, which is not followed");
    assert_fails(&fetched, &[&named, "answers in place of Object Storage"]);
    assert_eq!(portal.seen().len(), 1);
    assert!(target.accept().is_err(), "the redirect was followed");
}

#[tokio::test]
async fn a_certificate_that_is_no_good_ends_every_command_at_once_and_is_named_with_its_remedy() {
    let (scratch, store) = (tempfile::tempdir().unwrap(), encrypted_store());
    let years = |first, last| LocalStore::builder().tls(true).certificate_years(first, last);
    let (old, future) = (years(2001, 2002).start().unwrap(), years(2101, 2102).start().unwrap());
    let to_push = scratch.path().join("to-push");
    fs::create_dir(&to_push).unwrap();
    fs::write(to_push.join("config.json"), "{}").unwrap();
    for (name, store, host, trusts, words) in [
        (
            "name",
            &store,
            "storage.example.com",
            true,
            &[
                "not valid for name \"storage.example.com\"",
                "DnsName(\"localhost\")",
                "write it with a name that is in its certificate",
            ][..],
        ),
        (
            "ca",
            &store,
            "localhost",
            false,
            &[
                "UnknownIssuer",
                "--ca-file or objectStorage.caFile, or that of a proxy that inspects TLS with \
                 objectStorage.proxyCaFile",
            ],
        ),
        ("expired", &old, "localhost", true, &["or the certificate was not renewed"]),
        ("not-yet", &future, "localhost", true, &["or the certificate was made for later"]),
    ] {
        let mut fetch = Fetch::new(scratch.path(), store);
        fetch.access.endpoint = format!("https://{host}");
        fetch.directory = scratch.path().join(name);
        let directories = [&fetch.directory, &to_push].map(|path| path.to_str().unwrap());
        for (command, arguments) in [
            ("fetch", vec![&*fetch.uri, directories[0]]),
            ("ls", vec![&*fetch.uri]),
            ("push", vec![directories[1], &*fetch.uri]),
        ] {
            let proxy = TestProxy::start(Behaviour::Forward, Some(store.address()));
            let access = fetch.clone().and_variable("HTTPS_PROXY", &proxy.url()).access;
            let mut process = access.command(command);
            process.args(arguments);
            if trusts {
                process.arg("--ca-file").arg(store.ca_file().unwrap());
            }
            let started = Instant::now();
            let ran = Fetched::of(process.spawn().unwrap()).await;
            assert!(started.elapsed() < AT_ONCE, "{name}, {command}: {:?}", started.elapsed());
            assert_fails(&ran, words);
            assert_eq!(proxy.seen().len(), 1, "{name}, {command}: {}", ran.stderr);
        }
    }
}

/// The hosts of a namespace and of its region.
fn hosts(namespace: &str) -> [String; 2] {
    [
        format!("{namespace}.objectstorage.us-ashburn-1.oci.customer-oci.com"),
        "objectstorage.us-ashburn-1.oraclecloud.com".to_owned(),
    ]
}

#[test]
fn the_driver_reads_at_the_dedicated_host_of_a_namespace_through_its_configured_proxy() {
    end_to_end(async |scratch| {
        let [dedicated, regional] = hosts(localstore::DEFAULT_NAMESPACE);
        let builder = LocalStore::builder().tls(true).tls_name(&dedicated).tls_name(&regional);
        let store = builder.start().unwrap();
        put(&store, "config.json", "{}");
        let proxy = TestProxy::start(Behaviour::Forward, Some(store.address()));
        let mut setup = Setup::new(scratch, &store).with_config(&format!(
            "objectStorage:\n  proxy: {}\n  proxyCaFile: {}\n",
            proxy.url_with(LOGIN),
            store.ca_file().unwrap().display()
        ));
        setup.endpoint = "dedicated".to_owned();
        setup.arguments =
            ["--region", "us-ashburn-1", "--log-level", "trace"].map(str::to_owned).into();
        // What the file names wins.
        setup.environment.push(("HTTPS_PROXY", "http://127.0.0.1:9".to_owned()));
        setup.environment.push(("NO_PROXY", "*".to_owned()));
        let mut driver = setup.start().await;
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        let seen = proxy.seen();
        let targets: BTreeSet<String> = seen.iter().map(|one| one.target.clone()).collect();
        // The tenancy's namespace is asked for at the region's host.
        assert_eq!(targets, [format!("{dedicated}:443"), format!("{regional}:443")].into());
        assert!(seen.iter().all(|one| one.login.as_deref() == Some(AUTHORIZATION)), "{seen:?}");
        driver.terminate().await;
        driver.ended().await;
        let log = driver.log();
        assert!(log.contains("TRACE"), "the premise: everything is logged");
        let files = content_of(&driver.setup.cache).into_values().flatten();
        let files: String = files.map(|file| String::from_utf8_lossy(&file).into_owned()).collect();
        for secret in SECRETS {
            assert!(!log.contains(secret), "{secret:?} is in the log");
            assert!(!files.contains(secret), "{secret:?} is in the cache");
        }
    });
}

#[tokio::test]
async fn a_push_that_creates_its_bucket_asks_the_dedicated_host_of_the_namespace_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let [dedicated, regional] = hosts(localstore::DEFAULT_NAMESPACE);
    let builder = LocalStore::builder().tls(true).tls_name(&dedicated).tls_name(&regional);
    let store = builder.start().unwrap();
    let proxy = TestProxy::start(Behaviour::Forward, Some(store.address()));
    let ca_file = store.ca_file().unwrap().to_str().unwrap();
    let mut push = Push::new(scratch.path(), &store).with(&[
        "--create-bucket",
        "--compartment-id",
        "ocid1.compartment.x",
        "--region",
        "us-ashburn-1",
        "--ca-file",
        ca_file,
    ]);
    push.access.endpoint = "dedicated".to_owned();
    push.uri = format!("oci://{BUCKET}@{}/m/", localstore::DEFAULT_NAMESPACE);
    push.environment.push(("HTTPS_PROXY", proxy.url()));
    push.small_model();
    push.succeeds().await;
    assert_eq!(store.stats().requests_of(Operation::CreateBucket), 1, "the premise");
    let targets: BTreeSet<String> = proxy.seen().into_iter().map(|one| one.target).collect();
    assert_eq!(targets, [format!("{dedicated}:443")].into());
}

#[test]
fn requests_come_from_the_chosen_addresses_of_the_node_and_others_are_an_error_at_the_start() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        for n in 0..24 {
            put_large(&store, &format!("{n}.bin"), MIB, n, PutOptions::default());
        }
        let proxy = TestProxy::start(Behaviour::Forward, None);
        let mut setup = Setup::new(scratch, &store);
        setup.environment.push(("http_proxy", proxy.url()));
        let absent = "download: {sourceAddresses: [127.0.0.2, 203.0.113.7]}\n";
        let (status, log) = setup.clone().with_config(absent).refuses().await;
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains("binding connections to 203.0.113.7"), "{log}");
        assert!(log.contains("correct download.sourceAddresses"), "{log}");
        let own = "download: {sourceAddresses: [127.0.0.2, 127.0.0.3]}\n";
        let driver = setup.with_config(own).start().await;
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        let seen = proxy.seen();
        let from =
            |last: u8| seen.iter().filter(move |one| one.peer == IpAddr::from([127, 0, 0, last]));
        let (two, three) = (from(2).count(), from(3).count());
        assert_eq!(two + three, seen.len(), "{seen:?}");
        assert!(two.abs_diff(three) <= 1, "{two} and {three}");
    });
}

#[test]
fn a_proxy_that_refuses_without_a_cached_revision_fails_at_once() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put(&store, "config.json", "{}");
        let answer = "HTTP/1.1 407 X\r\ncontent-length: 0\r\n\r\n";
        let proxy = TestProxy::start(Behaviour::Answer(answer), None);
        let mut setup = Setup::new(scratch, &store);
        setup.environment.push(("http_proxy", proxy.url_with(LOGIN)));
        let driver = setup.start().await;
        let kubelet = driver.kubelet();
        let volume =
            kubelet.inline("1", &[("bucket", BUCKET), ("prefix", "m/"), ("namespace", "n")]);
        let (code, message) = volume.refused().await;
        assert_eq!(code, Code::Unavailable, "{message}");
        let through = format!("through the proxy {}", proxy.address());
        assert!(message.contains(&through), "{message}");
        assert!(
            message.contains("correct user and password of the proxy in http_proxy"),
            "{message}"
        );
        assert!(volume.calls()[0].took < AT_ONCE, "{:?}", volume.calls());
        for secret in SECRETS {
            assert!(!message.contains(secret) && !driver.log().contains(secret), "{message}");
        }
    });
}

/// The flags for an API server, with a service account.
fn access_to(api: &ApiServer, scratch: &Path) -> Vec<String> {
    let account = scratch.join("account");
    fs::create_dir(&account).unwrap();
    fs::write(account.join("token"), "a-token").unwrap();
    let account = account.to_str().unwrap();
    let flags = ["--kubernetes-api", &*api.url, "--service-account-dir", account];
    flags.map(str::to_owned).into()
}

#[test]
fn the_services_of_node_and_cluster_are_never_behind_a_proxy() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put(&store, "config.json", "{}");
        store.allow(&workloads::caller("team-a"), BUCKET);
        let api = ApiServer::start().await;
        let proxy = TestProxy::start(Behaviour::Forward, None);
        let access = access_to(&api, scratch);
        let behind = |mut setup: Setup| {
            setup.arguments.extend(access.clone());
            for name in ["http_proxy", "HTTPS_PROXY", "ALL_PROXY"] {
                setup.environment.push((name, proxy.url()));
            }
            setup
        };
        // As pods, whose tokens OKE's identity service exchanges.
        let mut driver = behind(workloads::setup(scratch, &store)).start().await;
        let kubelet = driver.kubelet();
        workloads::pod(&kubelet, &store, 1, "team-a", &PHI3).publish().await.unwrap();
        assert!(store.stats().requests_of(Operation::WorkloadIdentity) > 0, "the premise");
        driver.kill().await;
        // As the instance, whose metadata service is as near.
        let setup = behind(Setup::new(scratch, &store).with_instance_principal(&store));
        let driver = setup.start().await;
        put(&store, "config.json", "{ }");
        driver.kubelet().inline("2", &PHI3).publish().await.unwrap();
        assert!(store.stats().requests_of(Operation::Imds) > 0, "the premise");
        eventually("an event arrives", Duration::from_secs(20), async || {
            (!api.events().is_empty()).then_some(())
        })
        .await;
        let targets: Vec<String> = proxy.seen().into_iter().map(|one| one.target).collect();
        let through = |words: &str| targets.iter().any(|target| target.contains(words));
        assert!(through("/b/ai-model-cache/o") && through("/v1/x509"), "{targets:?}");
        for words in ["resourcePrincipalSessionTokens", "/opc/v2", api.url.as_str()] {
            assert!(!through(words), "{words} in {targets:?}");
        }
    });
}
