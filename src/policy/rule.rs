//! A rule of the policy. Each entry of its lists is checked when it is deserialized,
//! while the parser knows its line.

use serde::de::{Deserialize, Deserializer, Error};

use crate::model::{Pattern, Prefix};

/// One rule. It matches if all of its lists match: subjects the first two, objects the
/// others.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Patterns over the pod's Kubernetes namespace; at least one.
    #[serde(deserialize_with = "of_kubernetes")]
    pub namespaces: Vec<Pattern>,
    /// Patterns over the pod's service account; at least one.
    #[serde(default = "any_service_account", deserialize_with = "of_kubernetes")]
    pub service_accounts: Vec<Pattern>,
    /// Patterns over the Object Storage namespace; empty means the tenancy's own.
    #[serde(default, deserialize_with = "any_of_oracle")]
    pub object_storage_namespaces: Vec<Pattern>,
    /// Patterns over the bucket's name; at least one.
    #[serde(deserialize_with = "of_oracle")]
    pub buckets: Vec<Pattern>,
    /// Prefixes, which match up to a `/`; at least one.
    #[serde(deserialize_with = "prefixes")]
    pub prefixes: Vec<Prefix>,
    /// The decision.
    pub allow: bool,
}

fn any_service_account() -> Vec<Pattern> {
    Pattern::parse("*").into_iter().collect()
}

/// Parsed while the parser knows its line.
struct RuleValue<T>(T);

trait ParsedPattern: Sized {
    fn named(text: &str) -> Result<Self, String>;
}

/// Over names of Kubernetes objects.
struct KubernetesPattern(Pattern);

/// Over names of buckets and Object Storage namespaces.
struct OraclePattern(Pattern);

impl ParsedPattern for KubernetesPattern {
    fn named(text: &str) -> Result<Self, String> {
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
        pattern(text, known, "lower-case letters, digits, `-`, `.`").map(Self)
    }
}

impl ParsedPattern for OraclePattern {
    fn named(text: &str) -> Result<Self, String> {
        let known = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        pattern(text, known, "letters, digits, `-`, `_`, `.`").map(Self)
    }
}

impl ParsedPattern for Prefix {
    fn named(text: &str) -> Result<Self, String> {
        if text.contains('*') {
            return Err(format!("`{text}` has a `*`: a prefix is a directory, and all below it"));
        }
        Self::parse(text).map_err(|error| error.message().to_owned())
    }
}

/// A pattern that no name can match is refused: a rule that matches nothing is
/// a mistake.
fn pattern(text: &str, known: impl Fn(u8) -> bool, what: &str) -> Result<Pattern, String> {
    if text.is_empty() || !text.bytes().all(|b| b == b'*' || known(b)) {
        return Err(format!("`{text}` matches no name: {what}, and `*` for any of them"));
    }
    Pattern::parse(text).map_err(|error| error.message().to_owned())
}

impl<'de, T: ParsedPattern> Deserialize<'de> for RuleValue<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        T::named(&String::deserialize(input)?).map(Self).map_err(Error::custom)
    }
}

fn entries<'de, D: Deserializer<'de>, T: ParsedPattern>(input: D) -> Result<Vec<T>, D::Error> {
    let entries = Vec::<RuleValue<T>>::deserialize(input)?;
    Ok(entries.into_iter().map(|entry| entry.0).collect())
}

fn some<'de, D: Deserializer<'de>, T: ParsedPattern>(input: D) -> Result<Vec<T>, D::Error> {
    let entries = entries(input)?;
    if entries.is_empty() {
        return Err(Error::custom("an empty list matches nothing; write what is meant"));
    }
    Ok(entries)
}

fn of_kubernetes<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Pattern>, D::Error> {
    Ok(some(input)?.into_iter().map(|KubernetesPattern(pattern)| pattern).collect())
}

fn of_oracle<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Pattern>, D::Error> {
    Ok(some(input)?.into_iter().map(|OraclePattern(pattern)| pattern).collect())
}

fn any_of_oracle<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Pattern>, D::Error> {
    Ok(entries(input)?.into_iter().map(|OraclePattern(pattern)| pattern).collect())
}

fn prefixes<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Prefix>, D::Error> {
    some(input)
}
