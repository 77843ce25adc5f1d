use super::*;
use crate::model::{BucketName, ModelRequest, NamespaceName, PodIdentity, Prefix};
use crate::policy::{PolicyDecision, Subject};

/// Rules in braces, at every position in a file.
const IN_BRACES: &str = r#"cache: {dir: /var/lib/oci-model-csi}
policy:
  rules:
  - {namespaces: ["team-a", "ml-*"], serviceAccounts: [trainer], buckets: [models], prefixes: [m/secret/], allow: false}
  - {namespaces: ["team-a", "ml-*"], serviceAccounts: [trainer], objectStorageNamespaces: [other], buckets: ["*"], prefixes: ["m/"], allow: true}
  - allow: true
    namespaces: [all]
    buckets: [models]
    prefixes: [m/open/]
    serviceAccounts: [trainer]
objectStorage:
  auth: oke_workload_identity
  buckets:
  - name: far
    auth: api_key
serveStaleOnOutage: true
...
"#;

/// Without braces, with lists on separate lines; the file ends with the last rule.
const LAST_KEY: &str = "\
objectStorage:
  auth: api_key
prefetch: []
policy:
  rules:
  - namespaces:
    - team-a
    - ml-*
    serviceAccounts: [trainer]
    buckets:
    - models
    prefixes:
    - m/secret/x/
    allow: no
  - namespaces: [team-a]
    serviceAccounts:
    - trainer
    objectStorageNamespaces: [other, mytenancy]
    buckets: [models]
    prefixes:
    - m/open/deep/
    - n/
    allow: yes";

/// As Helm writes a chart's values: keys are sorted.
const SORTED: &str = "\
objectStorage: {auth: none}
policy:
  rules:
  - allow: true
    buckets:
    - models
    namespaces:
    - team-a
    - ml-x
    prefixes:
    - m/open/deep/
    serviceAccounts:
    - trainer
  - allow: true
    buckets:
    - other
    namespaces:
    - all
    objectStorageNamespaces:
    - other
    prefixes:
    - m/
    serviceAccounts:
    - trainer
prefetch: []
...
";

const JSON: &str = r#"{"policy": {"rules": [{"allow": true, "namespaces": ["team-a"],
"buckets": ["models"], "prefixes": ["m/open/deep/"], "serviceAccounts": ["trainer"]}]},
"objectStorage": {"auth": "api_key"}}
"#;

/// A decision that a merge key supplies while the rest of the rule is missing.
const MERGED: &str = "\
policy:
  rules:
  - &first
    namespaces: [team-a]
    buckets: [models]
    prefixes: [m/open/]
    serviceAccounts: [trainer]
    allow: true
  - namespaces: [all]
    buckets: [models]
    prefixes: [m/open/]
    serviceAccounts: [trainer]
    <<: *first
    allow: false
";

/// Like [`MERGED`], in braces, where an alias is allowed.
const ALIASED: &str = "\
policy:
  rules:
  - {namespaces: [team-a], buckets: [models], prefixes: [m/open/], allow: &n true}
  - {namespaces: [ml-x], buckets: [models], prefixes: [m/open/], allow: &no false}
  - {namespaces: [all], buckets: [models], prefixes: [m/open/], allow: *no}
";

/// The allowed queries among those that distinguish the rules above from any
/// truncation of them.
fn allowed(config: &Config) -> Vec<String> {
    let policy = Policy::new(config.policy.rules.clone());
    let own = NamespaceName::parse("mytenancy").unwrap();
    let mut allowed = Vec::new();
    for namespace in ["team-a", "team", "t", "ml-x", "ml-", "all", "a", "none"] {
        for account in ["trainer", "train", "other"] {
            for bucket in ["models", "model", "m", "other"] {
                for tenancy in [None, Some("other"), Some("mytenancy"), Some("oth")] {
                    for prefix in
                        ["", "m", "m/o", "m/open", "m/open/de", "m/open/deep", "m/secret/x", "n"]
                    {
                        let pod = PodIdentity {
                            namespace: namespace.to_owned(),
                            name: "p".to_owned(),
                            uid: "u".to_owned(),
                            service_account: account.to_owned(),
                        };
                        let request = ModelRequest::of(
                            tenancy.map(|name| NamespaceName::parse(name).unwrap()),
                            BucketName::parse(bucket).unwrap(),
                            Prefix::parse(prefix).unwrap(),
                        );
                        let who = Subject::Pod(Some(&pod));
                        if policy.check(who, &request, Some(&own)) == Ok(PolicyDecision::Allowed) {
                            allowed.push(format!(
                                "{namespace} {account} {bucket} {tenancy:?} {prefix}"
                            ));
                        }
                    }
                }
            }
        }
    }
    allowed
}

/// Counts the beginnings of this file that are accepted after it. Asserts that
/// none of them allows more than the whole file.
fn accepted_beginnings(whole: &str) -> usize {
    let config = Config::parse(whole, "whole").unwrap();
    let in_force = RecordedConfig::new(&config, whole);
    in_force.check(&config, whole, "whole").unwrap();
    let may = allowed(&config);
    assert!(!may.is_empty());
    let mut accepted = 0;
    // Most beginnings have the rules of the one before, and each comparison is thousands of questions.
    let mut last = config.policy.clone();
    for at in 0..whole.len() {
        let part = &whole[..at];
        let Ok(of_part) = Config::parse(part, "part") else { continue };
        // Rules must hold whatever was in force before: a new file can be truncated, too.
        let new = of_part.policy.rules.is_empty();
        if new && in_force.check(&of_part, part, "part").is_err() {
            continue;
        }
        if of_part.policy != last {
            for question in allowed(&of_part) {
                assert!(may.contains(&question), "the first {at} bytes allow {question}:\n{part}");
            }
            last.clone_from(&of_part.policy);
        }
        if in_force.check(&of_part, part, "part").is_ok() {
            assert_eq!(of_part.object_storage, config.object_storage, "of {at} bytes:\n{part}");
            accepted += 1;
        }
    }
    accepted
}

#[test]
fn no_beginning_of_a_valid_file_allows_more_than_the_whole() {
    let files = [(IN_BRACES, 0), (LAST_KEY, 2), (SORTED, 0), (JSON, 1), (MERGED, 0), (ALIASED, 1)];
    for (whole, least) in files {
        for text in [whole.to_owned(), whole.replace('\n', "\r\n")] {
            let accepted = accepted_beginnings(&text);
            assert!(accepted >= least, "{accepted} beginnings of:\n{text}");
        }
    }
}
