use std::fs;

use bytesize::ByteSize;

use super::*;
use crate::ErrorKind;
use crate::model::{Pattern, Prefix};

/// The documented sample, word for word.
const SAMPLE: &str = r#"cache:
  dir: /var/lib/oci-model-csi
  requireMount: false     # true: refuse to start unless dir is a mount point of its own
  maxSize: 100%           # bytes (IEC units) or percent of the file system
  minFree: auto           # 20 % on a file system shared with kubelet or root (kubelet acts at 10-15 %), else 5 %
  minFreeInodes: 10%
  warmPageCache: never    # onHit: read the model's files ahead after a hit, as far as memory is free
download: {concurrency: auto, rangeSize: 16MiB, bandwidthLimit: 0, maxModels: 4, verify: always, abandonAfter: 10m}
limits: {maxObjects: 100000, maxModelSize: 0}
objectStorage:
  auth: instance_principal
  region: ""
  endpoint: ""
  podSecrets: false       # true: nodePublishSecretRef may name an API key
  namespace: ""
  caFile: ""
  buckets: []             # {name, namespace, region, auth}: others that pods may name
policy:                   # first match wins; no rules: everything the driver can read; with rules the default is deny
  rules:
  - {namespaces: ["team-a", "ml-*"], serviceAccounts: ["*"], objectStorageNamespaces: [], buckets: ["ai-model-cache"], prefixes: ["models/"], allow: true}
serveStaleOnOutage: true
"#;

fn parse(text: &str) -> Config {
    Config::parse(text, "config.yaml").unwrap()
}

fn error(text: &str) -> String {
    let error = Config::parse(text, "config.yaml").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    error.message().to_owned()
}

#[track_caller]
fn assert_all_in(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn the_documented_sample_is_the_defaults_and_one_rule() {
    let mut config = parse(SAMPLE);
    let rule = config.policy.rules.pop().unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(
        rule,
        Rule {
            namespaces: patterns(&["team-a", "ml-*"]),
            service_accounts: patterns(&["*"]),
            object_storage_namespaces: vec![],
            buckets: patterns(&["ai-model-cache"]),
            prefixes: vec![Prefix::parse("models/").unwrap()],
            allow: true,
        }
    );
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::parse(text).unwrap()).collect()
}

#[test]
fn every_default_is_the_documented_one() {
    let config = Config::default();
    assert_eq!(config.cache.dir, Path::new("/var/lib/oci-model-csi"));
    assert!(!config.cache.require_mount);
    assert_eq!(config.cache.max_size, "100%".parse().unwrap());
    assert_eq!(config.cache.min_free, MinFree::Auto);
    assert_eq!(config.cache.min_free_inodes, "10%".parse().unwrap());
    assert_eq!(config.download.concurrency, Concurrency::Auto);
    assert_eq!(config.download.range_size, 16 << 20);
    assert_eq!(config.download.bandwidth_limit, None);
    assert_eq!(config.download.max_models, 4);
    assert_eq!(config.download.verify, Verify::Always);
    assert_eq!(config.download.abandon_after, Duration::from_secs(600));
    assert_eq!(config.limits.max_objects, 100_000);
    assert_eq!(config.limits.max_model_size, None);
    assert_eq!(config.object_storage.auth, AuthMethod::InstancePrincipal);
    assert_eq!(config.object_storage.region, None);
    assert_eq!(config.object_storage.endpoint, None);
    assert_eq!(config.object_storage.namespace, None);
    assert_eq!(config.object_storage.ca_file, None);
    assert_eq!(config.object_storage.proxy, None);
    assert_eq!(config.object_storage.proxy_ca_file, None);
    assert_eq!(config.download.source_addresses, []);
    assert_eq!(config.object_storage.buckets, []);
    assert_eq!(config.policy.rules, []);
    assert!(config.serve_stale_on_outage);
}

#[test]
fn omitted_keys_have_their_defaults_and_an_empty_document_is_refused() {
    for text in ["{}", "cache: {}\n", "---\ncache: {}\n...\n", "policy: {rules: []}", "policy: {}"]
    {
        assert_eq!(parse(text), Config::default(), "{text:?}");
    }
    for text in
        ["", "\n", "# a comment\n", "---\n", "...\n", "---\n...\n", "null", "~\n", " \n\t\n"]
    {
        assert_all_in(&error(text), &["config.yaml", "empty", "{}"]);
    }
}

#[test]
fn a_rule_that_could_be_cut_short_is_refused_with_its_line() {
    const LISTS: [&str; 3] = ["namespaces: [a]", "buckets: [b]", "prefixes: [p]"];
    let rules = |lines: &[&str], end: &str| {
        let keys = lines.iter().enumerate().map(|(n, key)| match n {
            0 => format!("  - {key}\n"),
            _ => format!("    {key}\n"),
        });
        format!("policy:\n  rules:\n{}{end}", keys.collect::<String>())
    };
    let [namespaces, buckets, prefixes] = LISTS;
    let (allow, accounts) = ("allow: true", "serviceAccounts: [s]");
    for (lines, end) in [
        (&[namespaces, accounts, buckets, prefixes, allow][..], ""),
        (&[allow, buckets, namespaces, prefixes, accounts], "...\n"),
        (&[allow, buckets, namespaces, prefixes, accounts], "prefetch: []\n... # whole\n# bye\n\n"),
    ] {
        assert_eq!(parse(&rules(lines, end)).policy.rules.len(), 1, "{lines:?} {end:?}");
    }
    for (lines, end) in [
        (&[namespaces, buckets, prefixes, allow, accounts][..], ""),
        (&[namespaces, buckets, prefixes, allow, accounts], "...\n"),
        (&[allow, buckets, namespaces, prefixes, accounts], "prefetch: []\n"),
        (&[allow, buckets, namespaces, prefixes, accounts], "#...\n"),
    ] {
        let message = error(&rules(lines, end));
        assert_all_in(&message, &["config.yaml, line 3", "in braces", "`allow`", "`...`"]);
    }
    // A beginning of `*no` is `*n`, and what `<<` gives may be overridden after it.
    let anchors = "  - {namespaces: [a], buckets: [b], prefixes: [p], allow: &n true}";
    for decision in ["allow: *n", "<<: {allow: true}"] {
        let lines = [namespaces, buckets, prefixes, decision];
        let rule = rules(&lines, "").replace("rules:\n", &format!("rules:\n{anchors}\n"));
        assert_all_in(&error(&rule), &["config.yaml, line 4", "without alias and `<<`"]);
    }
    let text = format!("policy: {{rules: [{{{allow}, {namespaces}, {buckets}, {prefixes}}}]}}");
    assert_eq!(parse(&text).policy.rules.len(), 1, "in braces the order does not matter");
}

#[test]
fn a_policy_without_a_list_of_rules_does_not_mean_no_rules() {
    for text in
        ["policy:\n", "policy:\n  rules:\n", "policy:\n  rules: ~\n", "policy:\n  rules:\n  -\n"]
    {
        error(text);
    }
}

const RULE: &str = "{namespaces: [a], buckets: [b], prefixes: [p], allow: true}";

#[test]
fn rules_in_force_are_dropped_by_an_explicit_list_only() {
    let text = format!("cache: {{}}\npolicy: {{rules: [{RULE}]}}\n");
    let in_force = RecordedConfig::new(&parse(&text), &text);
    for next in ["{}", "cache: {}\n", "policy: {}\n", "cache: {}\n...\n"] {
        let refused = in_force.check(&parse(next), next, "c.yaml").unwrap_err();
        assert_all_in(
            refused.message(),
            &["c.yaml has no policy.rules", "1 rules", "policy: {rules: []}"],
        );
    }
    for next in ["policy: {rules: []}", &*text] {
        in_force.check(&parse(next), next, "c.yaml").unwrap();
    }
    let refused = in_force.check(&Config::default(), "", "the start without --config");
    assert_all_in(
        refused.unwrap_err().message(),
        &["the start without --config has no policy.rules"],
    );
    let none = RecordedConfig::new(&Config::default(), "cache: {}\n");
    none.check(&parse("{}"), "{}", "c.yaml").unwrap();
    assert!(in_force.restricts() && !none.restricts());
}

#[test]
fn a_beginning_of_the_file_in_force_changes_no_identity() {
    let first = "policy: {rules: []}\n";
    let text = format!("{first}objectStorage:\n  auth: oke_workload_identity\n");
    let in_force = RecordedConfig::new(&parse(&text), &text);
    assert!(in_force.restricts());
    let refused = in_force.check(&parse(first), first, "c.yaml").unwrap_err();
    assert_all_in(refused.message(), &["no auth of objectStorage", "cut off", "`...`"]);
    for meant in [format!("{first}...\n"), text.clone()] {
        in_force.check(&parse(&meant), &meant, "c.yaml").unwrap();
    }
}

#[test]
fn a_beginning_of_a_changed_file_replaces_no_identity_by_a_default() {
    let storage = "objectStorage:\n  auth: oke_workload_identity\n  buckets:\n  - name: far\n    \
                   namespace: n\n    auth: none\n";
    let text = format!("policy: {{rules: [{RULE}]}}\n{storage}");
    let in_force = RecordedConfig::new(&parse(&text), &text);
    // The whole begins with a line that the file in force does not have.
    let changed = format!("# changed\n{text}");
    let whole = parse(&changed);
    in_force.check(&whole, &changed, "c.yaml").unwrap();
    for at in 0..changed.len() {
        let part = &changed[..at];
        let Ok(config) = Config::parse(part, "c.yaml") else { continue };
        match in_force.check(&config, part, "c.yaml") {
            Ok(()) => assert_eq!(config.object_storage, whole.object_storage, "{part}"),
            Err(error) => assert_all_in(error.message(), &["c.yaml has no "]),
        }
    }
    let no_bucket = "policy: {rules: []}\nobjectStorage: {auth: oke_workload_identity}\n";
    let refused = in_force.check(&parse(no_bucket), no_bucket, "c.yaml").unwrap_err();
    assert_all_in(refused.message(), &["no auth of the bucket far", "`...`"]);
    for meant in [
        format!("{no_bucket}...\n"),
        "policy: {rules: []}\nobjectStorage: {auth: api_key, buckets: [{name: far, namespace: n, \
         auth: api_key}]}"
            .to_owned(),
    ] {
        in_force.check(&parse(&meant), &meant, "c.yaml").unwrap();
    }
}

#[test]
fn every_value_can_be_set() {
    let config = parse(
        "cache: {dir: /nvme/models, requireMount: true, maxSize: 2TiB, minFree: 50GiB, minFreeInodes: 5%}
download: {concurrency: 1024, rangeSize: 1GiB, bandwidthLimit: 100MiB, maxModels: 1, verify: cheap, abandonAfter: 1h 30m}
limits: {maxObjects: 7, maxModelSize: 1.5TiB}
objectStorage:
  auth: oke_workload_identity
  region: eu-frankfurt-1
  endpoint: http://127.0.0.1:8080/
  podSecrets: true
  namespace: mytenancy
  caFile: /etc/ca.pem
  buckets:
  - {name: shared}
  - {name: far, namespace: other, region: us-ashburn-1, auth: api_key}
serveStaleOnOutage: false
checkSafetensors: warn
prefetch: [oci://shared/models/a, oci://far@other/models/b/, oci://shared/models/a/]
",
    );
    let uris: Vec<String> = config.prefetch.iter().map(|model| model.uri.to_string()).collect();
    assert_eq!(uris, ["oci://shared/models/a/", "oci://far@other/models/b/"], "each once");
    assert_eq!(config.check_safetensors, SafetensorsCheck::Warn);
    assert_eq!(config.cache.dir, Path::new("/nvme/models"));
    assert!(config.cache.require_mount);
    assert_eq!(config.cache.max_size, Amount::Bytes(ByteSize::tib(2)));
    assert_eq!(config.cache.min_free, MinFree::Amount(Amount::Bytes(ByteSize::gib(50))));
    assert_eq!(config.cache.min_free_inodes.of(100), 5);
    assert_eq!(config.download.concurrency, Concurrency::Fixed(1024));
    assert_eq!(config.download.range_size, 1 << 30);
    assert_eq!(config.download.bandwidth_limit, Some(100 << 20));
    assert_eq!(config.download.max_models, 1);
    assert_eq!(config.download.verify, Verify::Cheap);
    assert_eq!(config.download.abandon_after, Duration::from_secs(5400));
    assert_eq!(config.limits.max_objects, 7);
    assert_eq!(config.limits.max_model_size, Some(1536 << 30));
    assert_eq!(config.object_storage.auth, AuthMethod::OkeWorkloadIdentity);
    assert_eq!(config.object_storage.region, Some("eu-frankfurt-1".parse().unwrap()));
    assert_eq!(config.object_storage.endpoint.as_deref(), Some("http://127.0.0.1:8080"));
    assert!(config.object_storage.pod_secrets);
    assert_eq!(config.object_storage.namespace.as_deref(), Some("mytenancy"));
    assert_eq!(config.object_storage.ca_file.as_deref(), Some(Path::new("/etc/ca.pem")));
    let [shared, far] = &config.object_storage.buckets[..] else { panic!("two buckets") };
    assert_eq!((shared.name.as_str(), &shared.region, &shared.auth), ("shared", &None, &None));
    assert_eq!(far.region, Some("us-ashburn-1".parse().unwrap()));
    assert_eq!(far.namespace.as_deref(), Some("other"));
    assert_eq!(far.auth, Some(AuthMethod::ApiKey));
    assert!(!config.serve_stale_on_outage);
}

#[test]
fn the_booleans_of_earlier_versions_are_still_accepted() {
    for (value, expected) in [
        ("true", SafetensorsCheck::Refuse),
        ("refuse", SafetensorsCheck::Refuse),
        ("\"warn\"", SafetensorsCheck::Warn),
        ("false", SafetensorsCheck::Ignore),
        ("ignore", SafetensorsCheck::Ignore),
    ] {
        let config = parse(&format!("checkSafetensors: {value}"));
        assert_eq!(config.check_safetensors, expected, "{value}");
    }
    let error = Config::parse("checkSafetensors: off", "c.yaml").unwrap_err();
    assert!(error.message().contains("expected `refuse`, `warn` or `ignore`"), "{error}");
}

#[test]
fn an_unknown_key_is_refused_with_file_line_and_the_nearest_key() {
    let message = error("cache:\n  dir: /x\n  maxSzie: 50%\n");
    assert_all_in(&message, &["config.yaml, line 3", "`maxSzie`", "did you mean `maxSize`?"]);
    let message = error("serveStale: true\n");
    assert_all_in(&message, &["line 1", "`serveStale`", "valid here: cache, download"]);
    let message = error("objectStorage:\n  buckets:\n  - {name: a, regoin: b}\n");
    assert_all_in(&message, &["line 3", "did you mean `region`?"]);
    let message = error("policy:\n  rules:\n  - {namespace: [a]}\n");
    assert_all_in(&message, &["line 3", "did you mean `namespaces`?"]);
    let message = error("prefetch:\n- oci://b/p\n- {uri: oci://b/p, nodeSelectors: {a: b}}\n");
    assert_all_in(&message, &["line 3", "did you mean `nodeSelector`?"]);
}

#[test]
fn a_wrong_value_is_refused_with_line_key_and_what_would_be_right() {
    let mut messages = Vec::new();
    for (line, key, right) in [
        ("cache: {dir: models}", "dir", "absolute path"),
        ("cache: {dir: }", "dir", "no value"),
        ("cache: {dir: [/a, /b]}", "dir", "single value"),
        ("cache: {requireMount: maybe}", "requireMount", "true nor false"),
        ("cache: {maxSize: 120%}", "maxSize", "0% to 100%"),
        ("cache: {maxSize: 0}", "maxSize", "holds no model"),
        ("cache: {maxSize: 500GB}", "maxSize", "500GiB"),
        ("cache: {minFree: 100%}", "minFree", "leaves nothing"),
        ("cache: {minFree: automatic}", "minFree", "`auto`"),
        ("cache: {minFreeInodes: 1000}", "minFreeInodes", "percentage"),
        ("download: {concurrency: 0}", "concurrency", "from 1 to 1024"),
        ("download: {concurrency: 1025}", "concurrency", "from 1 to 1024"),
        ("download: {concurrency: many}", "concurrency", "from 1 to 1024"),
        ("download: {rangeSize: 512KiB}", "rangeSize", "between 1MiB and 1GiB"),
        ("download: {rangeSize: 2GiB}", "rangeSize", "between 1MiB and 1GiB"),
        ("download: {bandwidthLimit: -1}", "bandwidthLimit", "not a size"),
        ("download: {maxModels: 0}", "maxModels", "from 1 to 1024"),
        ("download: {verify: never}", "verify", "`cheap` or `strict`"),
        ("download: {abandonAfter: 10}", "abandonAfter", "like 10m"),
        ("download: {abandonAfter: 0s}", "abandonAfter", "between 1s and 24h"),
        ("download: {abandonAfter: 2days}", "abandonAfter", "between 1s and 24h"),
        ("limits: {maxObjects: 0}", "maxObjects", "from 1 to 10000000"),
        ("limits: {maxModelSize: big}", "maxModelSize", "not a size"),
        ("objectStorage: {auth: instance_principals}", "auth", "`instance_principal`?"),
        ("objectStorage: {region: a b}", "region", "such as eu-frankfurt-1"),
        ("objectStorage: {endpoint: objectstorage.example}", "endpoint", "https://host"),
        ("objectStorage: {endpoint: 'ftp://host'}", "endpoint", "https://host"),
        ("objectStorage: {endpoint: 'https://host/n/x'}", "endpoint", "without path"),
        ("objectStorage: {proxy: 'proxy:3128'}", "proxy", "http://host:port"),
        ("objectStorage: {proxyCaFile: ca.pem}", "proxyCaFile", "absolute path"),
        ("download: {sourceAddresses: 10.0.0.1}", "sourceAddresses", "a list is expected"),
        ("objectStorage: {caFile: ca.pem}", "caFile", "absolute path"),
        ("objectStorage: {buckets: [{name: ''}]}", "name", "letters, digits"),
        ("objectStorage: {buckets: [{name: a, auth: key}]}", "auth", "api_key"),
        ("objectStorage: {buckets: shared}", "buckets", "list is expected"),
        ("prefetch: oci://b/p", "prefetch", "list is expected"),
    ] {
        let message = error(&format!("# a comment\n{line}\n"));
        assert_all_in(&message, &["config.yaml, line 2, column ", &format!(": {key}: "), right]);
        messages.push(format!("{line}\n    {message}"));
    }
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn hosts_of_a_region_proxies_and_source_addresses_are_read() {
    for endpoint in ["dedicated", "dual-stack"] {
        let config = parse(&format!("objectStorage: {{endpoint: {endpoint}}}\n"));
        assert_eq!(config.object_storage.endpoint.as_deref(), Some(endpoint));
    }
    let config = parse("objectStorage: {proxy: 'http://u:p@proxy:3128', proxyCaFile: /ca.pem}\n");
    let proxy = config.object_storage.proxy.unwrap();
    assert_eq!((proxy.address(), proxy.named_by()), ("proxy:3128", "objectStorage.proxy"));
    let config = parse("download: {sourceAddresses: [10.0.0.7, 10.1.0.0/16, 'fd00::/64']}\n");
    let ranges = config.download.source_addresses.iter().map(ToString::to_string);
    assert!(ranges.eq(["10.0.0.7", "10.1.0.0/16", "fd00::/64"]));
    for (address, why) in
        [("eth1", "an IP address or network"), ("0.0.0.0", "an address of a node")]
    {
        let message = error(&format!("download: {{sourceAddresses: [{address}]}}"));
        assert_all_in(&message, &["line 1", &format!("`{address}` is not {why}")]);
    }
}

#[test]
fn the_login_of_a_proxy_is_neither_repeated_nor_recorded() {
    for proxy in [
        "socks5://me:hunter2@p:1",
        "me:hunter2@p:1",
        "http://me:hunter2@p:1/x",
        "http://me:hunter2@p:x",
    ] {
        let message = error(&format!("objectStorage: {{proxy: '{proxy}'}}"));
        assert_all_in(&message, &["line 1", "proxy: ", "http://user:password@host:port"]);
        assert!(!message.contains("hunter"), "{message}");
    }
    let text = "objectStorage: {auth: none, proxy: 'http://me:hunter2@p:1'}\nprefetch: []\n";
    let config = parse(text);
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    let recorded = RecordedConfig::new(&config, text);
    let recorded_text = serde_json::to_string(&recorded).unwrap();
    assert!(!recorded_text.contains("hunter2") && recorded_text.contains("LOGIN@p:1"));
    assert!(recorded.restricts(), "its identity is known");
    recorded.check(&config, text, "config.yaml").unwrap();
    let cut = "objectStorage: {auth: none, proxy: 'http://me:hunter2@p:1'}\n";
    recorded.check(&parse(cut), cut, "config.yaml").unwrap();
    let cut = "download: {}\n";
    let message = recorded.check(&parse(cut), cut, "config.yaml").unwrap_err().to_string();
    assert!(message.contains("no auth of objectStorage"), "{message}");
    // A text in which the login cannot be found is refused.
    let message = error("objectStorage: {proxy: \"http://me:hunt\\u0065r2@p:1\"}");
    assert_all_in(&message, &["config.yaml", "on one line"]);
    assert!(!message.contains("hunt"), "{message}");
}

#[test]
fn a_password_in_the_endpoint_is_refused_and_not_repeated() {
    let message = error("objectStorage: {endpoint: 'https://me:hunter2@host'}");
    assert_all_in(&message, &["without path or credentials"]);
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn a_rule_says_what_it_decides() {
    let message = error("policy:\n  rules:\n  - {namespaces: [a], buckets: [b], prefixes: [c]}\n");
    assert_all_in(&message, &["line 3", "the key `allow` is missing"]);
}

#[test]
fn a_rule_that_could_match_nothing_is_refused_with_its_line() {
    let good = [
        ("namespaces", "[a]"),
        ("serviceAccounts", "[a]"),
        ("objectStorageNamespaces", "[a]"),
        ("buckets", "[a]"),
        ("prefixes", "[a]"),
        ("allow", "true"),
    ];
    let rules = |changed: &str, value: &str| {
        let lines = good.iter().enumerate().map(|(index, (key, good))| {
            let mark = if index == 0 { '-' } else { ' ' };
            format!("  {mark} {key}: {}\n", if *key == changed { value } else { good })
        });
        format!("policy:\n  rules:\n{}", lines.collect::<String>())
    };
    assert_eq!(parse(&rules("", "")).policy.rules.len(), 1);
    for (line, key, value, right) in [
        (3, "namespaces", "[]", "an empty list matches nothing"),
        (3, "namespaces", "[Team]", "`Team` matches no name"),
        (3, "namespaces", "['']", "`` matches no name"),
        (3, "namespaces", "[team?]", "`*` for any"),
        (3, "namespaces", "team-a", "list is expected"),
        (4, "serviceAccounts", "[]", "an empty list matches nothing"),
        (4, "serviceAccounts", "[a/b]", "`a/b` matches no name"),
        (5, "objectStorageNamespaces", "['a b']", "`a b` matches no name"),
        (6, "buckets", "[]", "an empty list matches nothing"),
        (6, "buckets", "['b[0-9]']", "`b[0-9]` matches no name"),
        (7, "prefixes", "[]", "an empty list matches nothing"),
        (7, "prefixes", "[/models]", "starts with '/'"),
        (7, "prefixes", "[a/../b]", "'..' segment"),
        (7, "prefixes", "['models/*']", "has a `*`"),
        (8, "allow", "perhaps", "true nor false"),
    ] {
        let message = error(&rules(key, value));
        assert_all_in(&message, &[&format!("config.yaml, line {line}, column "), right]);
    }
    assert_eq!(
        parse(
            "policy: {rules: [{namespaces: ['*'], buckets: ['*'], prefixes: [''], allow: false}]}"
        )
        .policy
        .rules[0]
            .service_accounts,
        patterns(&["*"])
    );
}

#[test]
fn malformed_yaml_is_refused_with_its_position() {
    assert_all_in(&error("cache: [\n"), &["config.yaml, line "]);
    assert_all_in(&error("cache:\n"), &["line 1", "section"]);
    assert_all_in(&error("- cache\n"), &["line 1"]);
    assert_all_in(&error("limits: {}\nlimits: {}\n"), &["line 2", "limits", "twice"]);
    assert_all_in(&error("cache: {}\n---\ncache: {}\n"), &["second YAML document"]);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absent.yaml");
    assert_all_in(Config::load(&path).unwrap_err().message(), &["absent.yaml", "No such file"]);

    let path = dir.path().join("config.yaml");
    fs::write(&path, "limits: {maxObjects: 3}\n").unwrap();
    assert_eq!(Config::load(&path).unwrap().limits.max_objects, 3);
    fs::write(&path, "\u{feff}cache:\r\n  dir: /x\r\nlimits: {maxObjects: 4}").unwrap();
    let config = Config::load(&path).unwrap();
    assert_eq!((config.limits.max_objects, &*config.cache.dir), (4, Path::new("/x")));
    let utf16: Vec<u8> = "cache: {}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(&path, utf16).unwrap();
    assert_all_in(Config::load(&path).unwrap_err().message(), &["config.yaml", "UTF-16"]);
    fs::write(&path, "limit: {}\n").unwrap();
    let message = Config::load(&path).unwrap_err().to_string();
    assert_all_in(&message, &[path.to_str().unwrap(), "line 1", "`limits`"]);
}

#[test]
fn a_bucket_that_is_listed_twice_is_refused() {
    for twice in ["{name: a}, {name: a}", "{name: a, namespace: n}, {name: a, namespace: n}"] {
        let message = error(&format!("objectStorage: {{buckets: [{twice}]}}"));
        assert_all_in(&message, &["line 1", "`a`", "twice"]);
    }
    let apart = parse("objectStorage: {buckets: [{name: a}, {name: a, namespace: n}]}");
    assert_eq!(apart.object_storage.buckets.len(), 2);
}
