//! Pre-authenticated requests: of commands from a file, and of pods from their Secrets.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::support::driver::BINARY;
use crate::support::kubelet::{is_final, mount_capability};
use crate::support::models::{BUCKET, MIB, PHI3, PREFIX, content_of, store_with_phi3};
use crate::support::pod_keys::{pod_with_par, setup, token};
use crate::support::run::end_to_end;
use crate::support::workloads::{callers, sent};
use localstore::{Action, LocalStore, Operation, Rule};
use oci_model_csi::csi::proto::CreateVolumeRequest;
use oci_model_csi::csi::proto::volume_capability::access_mode::Mode;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tonic::Code;

const HOUR: Duration = Duration::from_secs(3600);

/// A request for everything under a prefix of the bucket, which may list.
fn par(store: &LocalStore, prefix: &str) -> String {
    store.make_par(BUCKET, prefix, true, HOUR).unwrap()
}

/// A command without any identity, file or variable; `input` is its standard input.
async fn run(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(BINARY);
    command.args(arguments).env_clear().stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut process = command.spawn().unwrap();
    process.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    process.wait_with_output().await.unwrap()
}

fn text(output: &Output) -> String {
    let bytes = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A file with this text, as a path for arguments.
fn file(scratch: &Path, text: &str) -> String {
    let path = scratch.join("url.txt");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn commands_read_with_the_url_of_a_file_or_of_standard_input_and_no_identity() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let url = par(&store, "models/");
        let below = format!("{url}{PREFIX}");
        let file = file(scratch, &format!("{below}\n"));
        let dir = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
        let uri = format!("oci://{BUCKET}@{}/{PREFIX}", store.namespace());
        for (name, arguments, input) in [
            ("from-file", vec!["--par-file", &file], ""),
            ("from-input", vec!["--par-file", "-"], &*below),
            ("with-uri", vec!["--par-file", "-", &uri], &url),
        ] {
            let target = dir(name);
            let mut arguments = [vec!["fetch", "--log-level", "trace"], arguments].concat();
            arguments.push(&target);
            let output = run(&arguments, input).await;
            let said = text(&output);
            assert!(output.status.success(), "{name}: {said}");
            assert!(said.contains("TRACE"), "the premise: everything is logged");
            assert!(!said.contains(token(&url)), "{name}");
            let content = content_of(Path::new(&target));
            assert_eq!(content["tokenizer/vocab.txt"], Some(b"one\ntwo\n".to_vec()));
            assert_eq!(content["model.safetensors"].as_ref().map(Vec::len), Some(3_145_735));
        }
        assert_eq!(callers(&store, Operation::Get), ["par/models/"]);
        for arguments in
            [&["ls", "--par-file", "-", "--output", "json"][..], &["ls", "--par-file", "-"]]
        {
            let output = run(arguments, &format!("{url}models/")).await;
            let said = text(&output);
            assert!(output.status.success(), "{said}");
            assert!(said.contains("phi3-mini") && !said.contains(token(&url)), "{said}");
        }
        assert_eq!(store.stats().requests_of(Operation::GetNamespace), 0);
    });
}

#[test]
fn a_request_that_does_not_permit_it_is_reported_with_the_command_that_creates_one() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let target = scratch.join("model").to_str().unwrap().to_owned();
        for (what, url) in [
            ("expired", store.make_par(BUCKET, "models/", true, Duration::ZERO).unwrap()),
            ("of another prefix", par(&store, "other/")),
            ("without the right to list", store.make_par(BUCKET, "", false, HOUR).unwrap()),
            ("unknown", par(&store, "").replace("/p/", "/p/x")),
        ] {
            let output =
                run(&["fetch", "--par-file", "-", &target], &format!("{url}{PREFIX}")).await;
            let said = text(&output);
            assert_eq!(output.status.code(), Some(3), "{what}: {said}");
            assert!(said.contains("--bucket-listing-action ListObjects"), "{what}: {said}");
            assert!(!said.contains(token(&url)), "{what}: {said}");
        }
        let rule = store.faults().add(Rule::new(Action::status(401)));
        let url = par(&store, "");
        let output = run(&["ls", "--par-file", "-"], &url).await;
        assert_eq!(output.status.code(), Some(4));
        assert!(text(&output).contains("has not expired"), "{}", text(&output));
        store.faults().remove(rule);
    });
}

#[test]
fn a_url_that_is_no_file_of_its_own_is_refused_before_it_is_sent_or_printed() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let url = format!("{}{PREFIX}", par(&store, "models/"));
        let target = scratch.join("model").to_str().unwrap().to_owned();
        let other = format!("oci://another-bucket@{}/{PREFIX}", store.namespace());
        let clear = url.replace("127.0.0.1", "192.0.2.1");
        for (arguments, input, named) in [
            (&["fetch", &url, &target][..], "", "--par-file"),
            (&["fetch", "--par-file", &url, &target], "", "--par-file"),
            (&["fetch", &url], "", "--par-file"),
            (&["ls", &url], "", "--par-file"),
            (&["ls", "--no-such-flag", &url], "", "--par-file"),
            (&["push", &target, &url], "", "--par-file"),
            (&["cache", "prefetch", &url], "", "--par-file"),
            (&["doctor", &url], "", "--par-file"),
            (&["fetch", "--par-file", "-", &target], "", "it has no /p/"),
            (&["fetch", "--par-file", "-", &target], &*clear, "write https://"),
            (&["fetch", "--par-file", "-", &other, &target], &*url, "leave URI out"),
            (&["fetch", "--par-file", "/no/such/file", &target], "", "/no/such/file"),
            (&["fetch", &target], "", "URI is missing"),
        ] {
            let output = run(arguments, input).await;
            let said = text(&output);
            assert_eq!(output.status.code(), Some(2), "{named}: {said}");
            assert!(said.contains(named), "{named}: {said}");
            assert!(!said.contains(token(&url)), "{named}: {said}");
        }
        assert_eq!(store.requests(), []);
    });
}

#[test]
fn a_pod_reads_with_its_request_and_a_hit_is_checked_with_it() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let (url, other) = (par(&store, "models/"), par(&store, PREFIX));
        let expired = store.make_par(BUCKET, "models/", true, Duration::ZERO).unwrap();
        let elsewhere = par(&store, "other/");
        let deaf = store.make_par(BUCKET, "models/", false, HOUR).unwrap();
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let first = pod_with_par(&kubelet, &url, 1, &PHI3);
        first.publish().await.unwrap();
        assert_eq!(
            content_of(&first.target())["tokenizer/vocab.txt"],
            Some(b"one\ntwo\n".to_vec())
        );
        assert_eq!(callers(&store, Operation::Get), ["par/models/"]);
        let mut pods = 10..;
        let mut texts = Vec::new();
        for policy in ["Always", "IfNotPresent", "Never"] {
            let policy = [("pullPolicy", policy)];
            store.reset_stats();
            let attributes = [&PHI3[..], &policy].concat();
            let again = pod_with_par(&kubelet, &other, pods.next().unwrap(), &attributes);
            again.publish().await.unwrap();
            assert_eq!(callers(&store, Operation::Get), [format!("par/{PREFIX}")]);
            assert_eq!(sent(&store), 2, "one byte for each directory");
            // What is cached and what is not there have one answer.
            for prefix in [PREFIX, "models/none/"] {
                for refused in [&expired, &elsewhere] {
                    let attributes =
                        [&[("bucket", BUCKET), ("prefix", prefix)], &policy[..]].concat();
                    let n = pods.next().unwrap();
                    let volume = pod_with_par(&kubelet, refused, n, &attributes);
                    let (code, message) = volume.refused().await;
                    assert_eq!(code, Code::NotFound, "{message}");
                    assert!(message.contains("--bucket-listing-action ListObjects"), "{message}");
                    assert!(!message.contains(token(refused)), "{message}");
                    texts.push(message.replace(prefix, "PREFIX"));
                }
            }
        }
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 1, "{texts:#?}");
        // One that reads and may not list gets what is cached, as with other identities.
        let cached = [&PHI3[..], &[("pullPolicy", "IfNotPresent")]].concat();
        pod_with_par(&kubelet, &deaf, 60, &cached).publish().await.unwrap();
        let (code, message) = pod_with_par(&kubelet, &deaf, 61, &PHI3).refused().await;
        assert_eq!(code, Code::NotFound, "{message}");
        assert!(driver.log().lines().count() > 10);
        for url in [&url, &other, &expired, &elsewhere, &deaf] {
            assert!(!driver.log().contains(token(url)));
        }
        // The driver's own identity has another copy: it proved nothing with a request.
        driver.kubelet().inline("70", &PHI3).publish().await.unwrap();
        assert_eq!(driver.in_cache("models").len(), 2);
    });
}

#[test]
fn during_an_outage_only_the_same_request_gets_the_cached_model() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let (url, other) = (par(&store, "models/"), par(&store, PREFIX));
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        pod_with_par(&kubelet, &url, 1, &PHI3).publish().await.unwrap();
        store.faults().add(Rule::new(Action::status(503)));
        let mut hasty = driver.kubelet();
        hasty.deadline = Duration::from_secs(30);
        let if_absent = [&PHI3[..], &[("pullPolicy", "IfNotPresent")]].concat();
        let proved = pod_with_par(&kubelet, &url, 2, &if_absent);
        let unproved = pod_with_par(&hasty, &other, 3, &if_absent);
        let (proved, unproved) = tokio::join!(proved.publish(), unproved.refused());
        proved.unwrap();
        assert!(!is_final(unproved.0), "{unproved:?}");
    });
}

#[test]
fn each_mistake_in_a_request_of_a_pod_is_invalid_and_sends_nothing_anywhere() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let trap = LocalStore::builder().start().unwrap();
        let url = par(&store, "models/");
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        store.reset_stats();
        let at = |host: &str| url.replace(&store.endpoint(), host);
        let dedicated = format!("https://{}.objectstorage", store.namespace());
        for (n, (url, named)) in (10..).zip([
            (at(&trap.endpoint()), "its host is not that of Object Storage"),
            (at("https://127.0.0.1"), "its host is not"),
            (at("http://169.254.169.254"), "its host is not"),
            (at("https://objectstorage.eu-frankfurt-1.oraclecloud.com"), "its host is not"),
            (at("https://objectstorage.us-ashburn-1.oraclecloud.com.example"), "its host is not"),
            (at("http://objectstorage.us-ashburn-1.oraclecloud.com"), "its host is not"),
            (at(&format!("{dedicated}.eu-frankfurt-1.oci.customer-oci.com")), "its host is not"),
            (
                at("https://other.objectstorage.us-ashburn-1.oci.customer-oci.com"),
                "its host is not",
            ),
            (at("https://user@127.0.0.1"), "does not begin with https:// and a host"),
            (url.replace(BUCKET, "another-bucket"), "and the volume names another one"),
            (url.replace(BUCKET, "a%0Ab%1b"), "of bucket a\\nb\\u{1b} in namespace"),
            (url.replace(store.namespace(), "othertenancy"), "of another bucket or namespace"),
            (format!("{url}other/"), "does not cover prefix"),
            (format!("{url}{PREFIX}config.json"), "does not cover prefix"),
            (format!("{url}?x=y"), "query"),
            ("not-a-url".to_owned(), "it has no /p/"),
        ]) {
            let volume = pod_with_par(&kubelet, &url, n, &PHI3);
            let (code, message) = volume.refused().await;
            assert_eq!(code, Code::InvalidArgument, "{named}: {message}");
            assert!(message.contains(named), "{named}: {message}");
            assert!(!url.contains("/p/") || !message.contains(token(&url)), "{message}");
            assert!(!message.contains(char::is_control), "{message:?}");
        }
        let mut both = pod_with_par(&kubelet, &url, 40, &PHI3);
        both.secrets.insert("user".to_owned(), "ocid1.user.oc1..x".to_owned());
        assert_eq!(both.refused().await.0, Code::InvalidArgument);
        assert_eq!(trap.requests(), []);
        assert_eq!(store.requests(), []);
        // The hosts of the region are right, and the administrator's endpoint is asked.
        for (n, host) in (50..).zip([
            "https://objectstorage.us-ashburn-1.oraclecloud.com".to_owned(),
            format!("{dedicated}.us-ashburn-1.oci.customer-oci.com"),
        ]) {
            pod_with_par(&kubelet, &at(&host), n, &PHI3).publish().await.unwrap();
        }
    });
}

#[test]
fn a_request_in_an_attribute_or_a_parameter_is_refused_and_not_repeated() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let url = par(&store, "models/");
        let path = url.replace(&store.endpoint(), "");
        let driver = setup(scratch, &store).start().await;
        let kubelet = driver.kubelet();
        let mut controller = kubelet.controller().await;
        for (n, (key, value)) in (1..).zip([
            ("bucket", &url),
            ("prefix", &url),
            ("prefix", &path),
            ("par", &url),
            ("url", &path),
            ("include", &url),
        ]) {
            let attributes = [&PHI3[..], &[(key, value.as_str())]].concat();
            let (code, message) = kubelet.inline(&n.to_string(), &attributes).refused().await;
            assert_eq!(code, Code::InvalidArgument, "{message}");
            assert!(message.contains("key par of a Secret"), "{message}");
            assert!(!message.contains(token(&url)), "{message}");
            let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            let claim = CreateVolumeRequest {
                name: format!("pvc-{n}"),
                parameters: attributes.iter().map(owned).collect(),
                volume_capabilities: vec![mount_capability(Mode::MultiNodeReaderOnly)],
                ..CreateVolumeRequest::default()
            };
            let refused = controller.create_volume(claim).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert!(!refused.message().contains(token(&url)), "{refused}");
        }
        assert!(!driver.log().contains(token(&url)));
        assert_eq!(store.requests(), []);
        let size = MIB * 3 + 7;
        assert_eq!(store.stats().body_bytes, 0, "of {size}");
    });
}
