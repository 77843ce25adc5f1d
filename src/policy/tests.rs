use proptest::prelude::*;

use super::*;
use crate::error::{Error, ErrorKind};
use crate::model::BucketName;

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::parse(text).unwrap()).collect()
}

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    texts.iter().map(|text| Prefix::parse(text).unwrap()).collect()
}

/// A rule for all pods and the bucket `b` of the driver's own tenancy.
fn rule(of: &[&str], allow: bool) -> Rule {
    Rule {
        namespaces: patterns(&["*"]),
        service_accounts: patterns(&["*"]),
        object_storage_namespaces: Vec::new(),
        buckets: patterns(&["b"]),
        prefixes: prefixes(of),
        allow,
    }
}

fn pod(namespace: &str, service_account: &str) -> PodIdentity {
    PodIdentity {
        namespace: namespace.to_owned(),
        name: "p".to_owned(),
        uid: "u".to_owned(),
        service_account: service_account.to_owned(),
    }
}

fn request(prefix: &str) -> ModelRequest {
    ModelRequest::of(None, BucketName::parse("b").unwrap(), Prefix::parse(prefix).unwrap())
}

fn of_namespace(namespace: &str) -> ModelRequest {
    ModelRequest { namespace: Some(NamespaceName::parse(namespace).unwrap()), ..request("m/") }
}

fn own() -> NamespaceName {
    NamespaceName::parse("mytenancy").unwrap()
}

fn may(rules: &[Rule], who: Subject<'_>, request: &ModelRequest) -> bool {
    match Policy::new(rules.to_vec()).check(who, request, Some(&own())) {
        Ok(verdict) => {
            assert_eq!(verdict, PolicyDecision::Allowed);
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Denied);
            false
        }
    }
}

fn refused(rules: Vec<Rule>, who: Subject<'_>, request: &ModelRequest) -> Error {
    Policy::new(rules).check(who, request, Some(&own())).unwrap_err()
}

#[test]
fn without_rules_everything_is_allowed_even_to_unknown_pods_and_claims() {
    for who in [Subject::Pod(None), Subject::Claim(None), Subject::Pod(Some(&pod("a", "s")))] {
        let verdict = Policy::default().check(who, &of_namespace("other"), None).unwrap();
        assert_eq!(verdict, PolicyDecision::Allowed);
    }
}

#[test]
fn any_rule_refuses_pods_and_claims_of_unknown_identity() {
    let rules = vec![rule(&[""], true)];
    for (who, remedy) in [
        (Subject::Pod(None), "podInfoOnMount: true"),
        (Subject::Pod(Some(&pod("a", ""))), "podInfoOnMount: true"),
        (Subject::Claim(None), "--extra-create-metadata"),
    ] {
        let error = refused(rules.clone(), who, &request("m/"));
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.message().contains(remedy), "{error}");
    }
}

#[test]
fn prefixes_match_at_the_slash() {
    for (of, asked, expected) in [
        ("models/", "models/x/", true),
        ("models", "models/x", true),
        ("models/", "models/", true),
        ("models/phi3", "models/phi3-mini/", false),
        ("models/phi3/", "models/phi3", true),
        ("models/phi3-mini", "models/phi3", false),
        ("models/x/", "models/", false),
        ("models/", "", false),
        ("", "", true),
        ("", "models/x/", true),
        ("Models/", "models/", false),
    ] {
        let identity = pod("a", "s");
        let allowed = may(&[rule(&[of], true)], Subject::Pod(Some(&identity)), &request(asked));
        assert_eq!(allowed, expected, "{asked:?} under {of:?}");
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let identity = pod("a", "s");
    let who = Subject::Pod(Some(&identity));
    let (no, yes) = (rule(&["m/secret/"], false), rule(&["m/"], true));
    assert!(!may(&[no.clone(), yes.clone()], who, &request("m/secret/x/")));
    assert!(may(&[yes, no], who, &request("m/secret/x/")));
}

#[test]
fn a_prefix_that_contains_a_denied_directory_is_denied() {
    let identity = pod("a", "s");
    let who = Subject::Pod(Some(&identity));
    let rules = [rule(&["m/secret/"], false), rule(&[""], true)];
    for (asked, expected) in [("", false), ("m/", false), ("m/open/", true), ("m/secrets/", true)] {
        assert_eq!(may(&rules, who, &request(asked)), expected, "{asked:?}");
    }
}

#[test]
fn a_refusal_quotes_no_directory_that_only_a_rule_names() {
    let identity = pod("a", "s");
    let who = Subject::Pod(Some(&identity));
    let denied = [rule(&["m/secret-acquisition-2027/"], false), rule(&[""], true)];
    let unnamed = [rule(&["m/open/"], true), rule(&["m/secret-acquisition-2027/"], false)];
    for (rules, asked, said) in [
        (&denied, "m/", "rule 1 of policy.rules denies a part of it; name a prefix that leaves"),
        (&denied, "", "rule 1 of policy.rules denies a part of it; name a prefix that leaves"),
        (&unnamed, "m/", "no rule of policy.rules allows it"),
    ] {
        let error = refused(rules.to_vec(), who, &request(asked));
        assert!(error.message().contains(said), "{error}");
        assert!(!error.message().contains("acquisition"), "{error}");
    }
}

#[test]
fn an_empty_list_of_tenancies_is_the_own_one() {
    let identity = pod("a", "s");
    let who = Subject::Pod(Some(&identity));
    let with =
        |of: &[&str]| vec![Rule { object_storage_namespaces: patterns(of), ..rule(&["m/"], true) }];
    for (of, named, expected) in [
        (&[][..], None, true),
        (&[], Some("mytenancy"), true),
        (&[], Some("other"), false),
        (&["other"], None, false),
        (&["other"], Some("other"), true),
        (&["other", "mytenancy"], None, true),
        (&["*"], None, true),
        (&["*"], Some("other"), true),
    ] {
        let asked = named.map_or_else(|| request("m/"), of_namespace);
        assert_eq!(may(&with(of), who, &asked), expected, "{named:?} of {of:?}");
    }
}

#[test]
fn the_own_namespace_is_needed_only_where_the_answer_depends_on_it() {
    let identity = pod("a", "s");
    let other = Rule { object_storage_namespaces: patterns(&["other"]), ..rule(&["m/"], true) };
    let any = Rule { object_storage_namespaces: patterns(&["*"]), ..rule(&["m/"], true) };
    let verdict = |rules: &[&Rule], request: &ModelRequest| {
        let rules = rules.iter().map(|&rule| rule.clone()).collect();
        Policy::new(rules).check(Subject::Pod(Some(&identity)), request, None).ok()
    };
    let own = rule(&["m/"], true);
    let (allowed, needed) =
        (Some(PolicyDecision::Allowed), Some(PolicyDecision::NeedsOwnNamespace));
    assert_eq!(verdict(&[&own, &other], &request("m/")), allowed);
    assert_eq!(verdict(&[&any], &request("m/")), allowed);
    assert_eq!(verdict(&[&other], &of_namespace("other")), allowed);
    assert_eq!(verdict(&[&other, &own], &request("m/")), needed);
    assert_eq!(verdict(&[&own], &of_namespace("other")), needed);
    assert_eq!(verdict(&[&other], &request("n/")), None, "no rule matches it");
}

#[test]
fn a_claim_is_allowed_if_any_service_account_is() {
    let of = |account: &str, allow| Rule {
        service_accounts: patterns(&[account]),
        namespaces: patterns(&["team-*"]),
        ..rule(&["m/"], allow)
    };
    let may =
        |rules: &[Rule], namespace| may(rules, Subject::Claim(Some(namespace)), &request("m/x"));
    assert!(may(&[of("trainer", true)], "team-a"));
    assert!(!may(&[of("trainer", true)], "other"));
    assert!(may(&[of("intern", false), of("*", true)], "team-a"), "others may");
    assert!(!may(&[of("*", false), of("trainer", true)], "team-a"));
    assert!(!may(&[of("intern", false)], "team-a"));
}

#[test]
fn a_refusal_says_who_what_and_a_rule_that_allows_it() {
    let identity = pod("team-a", "trainer");
    let who = Subject::Pod(Some(&identity));
    let text = refused(vec![rule(&["n/"], true)], who, &request("m/x\"")).to_string();
    assert_eq!(
        text,
        "Kubernetes namespace team-a, service account trainer, may not mount m/x\"/ from b: no \
         rule of policy.rules allows it; to allow it, the administrator adds to the driver's \
         policy.rules: - {namespaces: [\"team-a\"], serviceAccounts: [\"trainer\"], \
         objectStorageNamespaces: [], buckets: [\"b\"], prefixes: [\"m/x\\\"/\"], allow: true}"
    );
    let denied = vec![rule(&["n/"], true), rule(&[""], false)];
    let text = refused(denied.clone(), Subject::Claim(Some("team-a")), &of_namespace("other"));
    assert!(text.message().contains("no rule"), "the rules are of the own tenancy: {text}");
    assert!(text.message().contains("of namespace other: "), "{text}");
    assert!(
        text.message().contains("serviceAccounts: [\"*\"], objectStorageNamespaces: [\"other\"]")
    );
    let text = refused(denied, who, &of_namespace("mytenancy")).to_string();
    assert!(text.contains("rule 2 of policy.rules denies it"), "{text}");
    assert!(text.contains("adds before rule 2 of the driver's policy.rules: - {"), "{text}");
    assert!(text.contains("objectStorageNamespaces: []"), "{text}");
}

#[test]
fn the_longest_refusal_is_not_cut() {
    let identity = pod(&"n".repeat(63), &"s".repeat(63));
    let long = ModelRequest {
        bucket: BucketName::parse(&"b".repeat(63)).unwrap(),
        ..request(&"p".repeat(900))
    };
    let text = refused(vec![rule(&["m/"], true)], Subject::Pod(Some(&identity)), &long).to_string();
    assert!(text.chars().count() <= 800, "{}: {text}", text.len());
    assert!(text.contains("prefixes: [\"<the prefix>\"]"), "{text}");
}

const DIRECTORIES: [&str; 6] = ["", "m/", "m/a/", "m/a/b/", "m/ab/", "n/"];

fn some(of: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(of, 1..=2)
}

#[derive(Debug, Clone)]
struct Plain {
    namespaces: Vec<&'static str>,
    accounts: Vec<&'static str>,
    tenancies: Vec<&'static str>,
    buckets: Vec<&'static str>,
    directories: Vec<&'static str>,
    allow: bool,
}

impl Plain {
    fn rule(&self) -> Rule {
        Rule {
            namespaces: patterns(&self.namespaces),
            service_accounts: patterns(&self.accounts),
            object_storage_namespaces: patterns(&self.tenancies),
            buckets: patterns(&self.buckets),
            prefixes: prefixes(&self.directories),
            allow: self.allow,
        }
    }

    fn matches(&self, namespace: &str, account: &str, tenancy: &str, object: &str) -> bool {
        let has = |list: &[&str], name: &str| list.contains(&"*") || list.contains(&name);
        has(&self.namespaces, namespace)
            && has(&self.accounts, account)
            && (has(&self.tenancies, tenancy)
                || self.tenancies.is_empty() && tenancy == "mytenancy")
            && has(&self.buckets, "b")
            && self.directories.iter().any(|directory| object.starts_with(directory))
    }
}

prop_compose! {
    fn plain()(
        namespaces in some(&["a", "other", "*"]),
        accounts in some(&["s", "other", "*"]),
        tenancies in prop_oneof![Just(Vec::new()), some(&["mytenancy", "foreign", "*"])],
        buckets in some(&["b", "other", "*"]),
        directories in some(&DIRECTORIES),
        allow in any::<bool>(),
    ) -> Plain {
        Plain { namespaces, accounts, tenancies, buckets, directories, allow }
    }
}

proptest! {
    #![proptest_config(seeded::cases(2000))]
    #[test]
    fn a_model_is_allowed_exactly_if_each_of_its_objects_is(
        rules in proptest::collection::vec(plain(), 1..5),
        asked in proptest::sample::select(&DIRECTORIES),
        named in proptest::sample::select(&[None, Some("mytenancy"), Some("foreign")]),
    ) {
        let tenancy = named.unwrap_or("mytenancy");
        // One object in each directory, and one deeper.
        let objects = DIRECTORIES.iter().flat_map(|d| [format!("{d}file"), format!("{d}z/file")]);
        let expected = objects.filter(|object| object.starts_with(asked)).all(|object| {
            let first = rules.iter().find(|rule| rule.matches("a", "s", tenancy, &object));
            first.is_some_and(|rule| rule.allow)
        });

        let policy = Policy::new(rules.iter().map(Plain::rule).collect());
        let request = ModelRequest {
            namespace: named.map(|name| NamespaceName::parse(name).unwrap()),
            ..request(asked)
        };
        let identity = pod("a", "s");
        let own = own();
        let check = |own| policy.check(Subject::Pod(Some(&identity)), &request, own);
        let answer = check(Some(&own));
        prop_assert_eq!(answer == Ok(PolicyDecision::Allowed), expected);
        // An answer without the own namespace is the same as the answer with it.
        let early = check(None);
        if early != Ok(PolicyDecision::NeedsOwnNamespace) {
            prop_assert_eq!(early.is_ok(), expected);
        }
        // A claim may mount whatever a pod of its namespace may.
        if expected {
            let claim = policy.check(Subject::Claim(Some("a")), &request, Some(&own));
            prop_assert_eq!(claim, Ok(PolicyDecision::Allowed));
        }
    }
}
