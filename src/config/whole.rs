//! Protects against a truncated configuration file.
//!
//! A file that was cut off (a full disk, a copy that was interrupted, an editor
//! that writes in place) is often still valid YAML. What is missing would get
//! its default, and three defaults allow more than was written: no rules,
//! any service account, the driver's own identity. These rules ensure that no
//! beginning of a valid file allows more than the file:
//!
//! - An empty document is refused; `{}` means the default everywhere.
//! - A rule without braces names `allow` last, so that a beginning of it has no
//!   decision; or it names `allow` first, and the file ends with a line `...`,
//!   which a beginning does not have. (Helm sorts keys.) Its decision is written
//!   out: neither an alias nor a merge key (`<<`) provides it.
//! - A list of rules with nothing behind it can only lose rules at its end,
//!   and what no rule allows is denied.
//! - Only `policy: {rules: []}` drops rules that were in force, and no default
//!   replaces an identity that was written; see [`RecordedConfig`].

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_saphyr::{Location, Spanned};

use super::{Config, ObjectStorageSection};
use crate::resolve::ListedBucket;
use crate::{Error, Result};

/// Marks the end of a document (YAML 1.2.2, 9.1.2).
const END: &str = "...";

/// Which keys a document has, and where; the values are parsed elsewhere.
#[derive(Deserialize)]
struct WrittenKeys {
    policy: Option<WrittenPolicy>,
    #[serde(rename = "objectStorage")]
    object_storage: Option<WrittenObjectStorage>,
}

#[derive(Deserialize)]
struct WrittenObjectStorage {
    auth: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct WrittenPolicy {
    rules: Option<Vec<Spanned<WrittenRule>>>,
}

type WrittenRule = BTreeMap<String, Spanned<IgnoredAny>>;

/// Refuses an empty document.
pub(super) fn check_not_empty(text: &str, file: &str) -> Result<()> {
    let says_nothing = |line: &str| {
        let line = line.trim();
        let marker = line.strip_prefix("---").or_else(|| line.strip_prefix(END));
        let rest = marker.unwrap_or(line).trim();
        rest.is_empty() || rest.starts_with('#') || matches!(rest, "~" | "null")
    };
    if !text.lines().all(says_nothing) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{file}: the document is empty, as if the file was cut off; write {{}} for the defaults"
    )))
}

/// Refuses a text that parses and may be a truncated one.
pub(super) fn check_rules(text: &str, file: &str) -> Result<()> {
    let policy = written(text).and_then(|written| written.policy);
    let rules = policy.and_then(|policy| policy.rules).unwrap_or_default();
    let unsafe_rule = rules.iter().find(|rule| !can_be_cut(rule, text));
    let Some(rule) = unsafe_rule else { return Ok(()) };
    let line = rule.defined.line();
    Err(Error::invalid(format!(
        "{file}, line {line}: a file that was cut off within this rule would allow more than the \
         whole; write the rule in braces, or `allow` as its last key, or `allow` as its first key \
         and a line `{END}` at the end of the file, and its value without alias and `<<`"
    )))
}

/// Refuses a proxy whose login cannot be kept out of the record of this text.
pub(super) fn check_login(text: &str, config: &Config, file: &str) -> Result<()> {
    match login_of(config) {
        Some(login) if !text.contains(&login) => Err(Error::invalid(format!(
            "{file}: objectStorage.proxy has a login and is written with line breaks or escapes of \
             YAML; write the URL as it is on one line"
        ))),
        _ => Ok(()),
    }
}

/// The login of the proxy, with the characters around it.
fn login_of(config: &Config) -> Option<String> {
    Some(format!("//{}@", config.object_storage.proxy.as_ref()?.secret()?))
}

/// The text without the login of the proxy. It stays a valid configuration.
fn without_login(text: &str, config: &Config) -> String {
    match login_of(config) {
        Some(login) => text.replace(&login, "//LOGIN@"),
        None => text.to_owned(),
    }
}

/// The keys of a document. A text that does not parse was refused before.
fn written(text: &str) -> Option<WrittenKeys> {
    serde_saphyr::from_str::<Option<WrittenKeys>>(text).ok().flatten()
}

/// Whether no beginning of this rule allows more than all of it.
fn can_be_cut(rule: &Spanned<WrittenRule>, text: &str) -> bool {
    if is_in_braces(text, &rule.defined) {
        return true;
    }
    let place = |at: &Location| (at.line(), at.column());
    let Some(allow) = rule.value.get("allow") else { return true };
    // A decision from elsewhere may have been overridden, and the beginning of an
    // alias may be another alias.
    if allow.referenced != allow.defined {
        return false;
    }
    let allow = place(&allow.referenced);
    let mut others = rule.value.iter().filter(|(key, _)| *key != "allow");
    let mut places = others.by_ref().map(|(_, value)| place(&value.referenced));
    let (mut before, mut after) = (false, false);
    places.by_ref().for_each(|other| if other < allow { before = true } else { after = true });
    !after || (!before && ends(text))
}

/// Whether the rule is a flow mapping: a truncated one is not valid YAML.
fn is_in_braces(text: &str, at: &Location) -> bool {
    let index = |number: u64| usize::try_from(number.saturating_sub(1)).ok();
    let line = index(at.line()).and_then(|line| text.lines().nth(line));
    let first = line.zip(index(at.column())).and_then(|(line, column)| line.chars().nth(column));
    first == Some('{')
}

/// Whether the last line with content is the end marker.
fn ends(text: &str) -> bool {
    let said = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let last = text.lines().rev().find(said).unwrap_or_default();
    last.strip_prefix(END).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
}

/// A record of the configuration in use, so that the next one does
/// not lose what this one restricted, not even across a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedConfig {
    /// How many rules there are.
    rules: usize,
    /// The whole text but the login of a proxy, so it contains no secret: an endpoint with a
    /// password is refused.
    text: String,
}

impl RecordedConfig {
    /// Records a configuration and the text that it was parsed from.
    pub fn new(config: &Config, text: &str) -> Self {
        Self { rules: config.policy.rules.len(), text: without_login(text, config) }
    }

    /// The text that the configuration was parsed from, without the login of a proxy.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a truncated file could lose any restriction of this configuration.
    pub fn restricts(&self) -> bool {
        self.rules > 0 || self.identities() != Config::default().object_storage
    }

    /// Checks that `next`, parsed from `text`, may replace this configuration; `file`
    /// is its name in errors. Without a file the text is empty.
    ///
    /// # Errors
    /// `Invalid` where it lacks the policy that is in force, or an identity without
    /// an end marker; the message says what to write if that is meant.
    pub fn check(&self, next: &Config, text: &str, file: &str) -> Result<()> {
        let written = written(text);
        let of_policy = written.as_ref().and_then(|it| it.policy.as_ref());
        let names_rules = of_policy.is_some_and(|it| it.rules.is_some());
        if self.rules > 0 && !names_rules {
            return Err(Error::invalid(format!(
                "{file} has no policy.rules, and {} rules are in force; to drop them write \
                 policy: {{rules: []}}, to keep them write them again",
                self.rules
            )));
        }
        // Without --config nothing can be truncated.
        let whole = text.is_empty() || ends(text);
        let of_store = written.as_ref().and_then(|it| it.object_storage.as_ref());
        let names_auth = of_store.is_some_and(|it| it.auth.is_some());
        if let Some(lost) = self.lost_auth(next, names_auth).filter(|_| !whole) {
            return Err(Error::invalid(format!(
                "{file} has no auth of {lost}, which the configuration in force has, as if it was \
                 cut off; write it again, or end the file with a line `{END}` if that is meant"
            )));
        }
        let next = Self::new(next, text);
        let is_part = !text.is_empty() && next.text.len() < self.text.len();
        let is_cut = is_part && self.text.starts_with(&next.text) && !ends(text);
        if is_cut && next.identities() != self.identities() {
            return Err(Error::invalid(format!(
                "{file} is the beginning of the configuration in force and lacks some of its \
                 objectStorage, as if it was cut off; if that is meant, end it with a line `{END}`"
            )));
        }
        Ok(())
    }

    /// The first section whose `auth` is no longer written, so that a default would
    /// replace it.
    fn lost_auth(&self, next: &Config, names_auth: bool) -> Option<String> {
        let (now, next) = (self.identities(), &next.object_storage);
        if !names_auth && now.auth != next.auth {
            return Some("objectStorage".to_owned());
        }
        let has_auth = |one: &ListedBucket| {
            next.buckets.iter().any(|it| it.is_same_bucket(one) && it.auth.is_some())
        };
        let mut lost = now.buckets.iter().filter(|one| one.auth.is_some() && !has_auth(one));
        lost.next().map(|one| format!("the bucket {}", one.name))
    }

    /// The identities that read buckets. A text of another version may not parse; then
    /// none are known.
    fn identities(&self) -> ObjectStorageSection {
        let config = serde_saphyr::from_str::<Config>(&self.text);
        config.map(|config| config.object_storage).unwrap_or_default()
    }
}
