//! What somebody reads who may not mount a model: who, what, and the rule that
//! the administrator would have to add.

use std::fmt::Write as _;

use super::PolicyQuery;
use crate::error::{Error, ErrorKind};
use crate::model::{ModelRequest, shown};

/// A longer prefix does not fit into a message together with its rule.
const PREFIX: usize = 120;

/// Refused by the rule of this index, or by none; `inside` when what is refused
/// is a directory below the model's prefix. It is not named: that a rule speaks
/// of it is for those to know who may read the rules.
pub(super) fn of(asked: &PolicyQuery<'_>, inside: bool, by: Option<usize>) -> Error {
    let mut text = format!("Kubernetes namespace {}", shown(asked.namespace, 63));
    if let Some(name) = asked.service_account {
        let _ = write!(text, ", service account {}", shown(name, 100));
    }
    let _ = write!(text, ", may not mount {}: ", place(asked.request));
    let what = if inside { "a part of it" } else { "it" };
    let (cause, position) = match by {
        Some(index) => {
            let number = index + 1;
            let position = format!("before rule {number} of");
            (format!("rule {number} of policy.rules denies {what}"), position)
        }
        None => (format!("no rule of policy.rules allows {what}"), "to".to_owned()),
    };
    text.push_str(&cause);
    if inside {
        text.push_str("; name a prefix that leaves that part out, or");
    } else {
        text.push(';');
    }
    let _ = write!(
        text,
        " to allow it, the administrator adds {position} the driver's policy.rules: {}",
        rule(asked)
    );
    Error::new(ErrorKind::Denied, text)
}

/// A pod that kubelet says nothing of.
pub(super) fn of_nobody(request: &ModelRequest) -> Error {
    Error::new(
        ErrorKind::Denied,
        format!(
            "nobody may mount {} as long as kubelet does not say which pod it is for: the \
             administrator has set policy.rules, and they need podInfoOnMount: true in the \
             CSIDriver object",
            place(request)
        ),
    )
}

/// A claim that external-provisioner says nothing of.
pub(super) fn of_no_claim(request: &ModelRequest) -> Error {
    Error::new(
        ErrorKind::Denied,
        format!(
            "no volume is made of {} as long as the claim's namespace is not known: the \
             administrator has set policy.rules, and they need external-provisioner to run with \
             --extra-create-metadata",
            place(request)
        ),
    )
}

fn place(request: &ModelRequest) -> String {
    let bucket = &request.bucket;
    let mut place = match request.prefix.as_str() {
        "" => format!("the whole bucket {bucket}"),
        prefix => format!("{} from {bucket}", shown(prefix, PREFIX)),
    };
    if let Some(namespace) = &request.namespace {
        let _ = write!(place, " of namespace {namespace}");
    }
    place
}

/// The rule that allows just this, as a line to paste.
fn rule(asked: &PolicyQuery<'_>) -> String {
    let request = asked.request;
    let elsewhere = request.namespace.as_ref().filter(|named| asked.own != Some(named));
    let prefix = match request.prefix.as_str() {
        long if long.len() > PREFIX => "<the prefix>",
        prefix => prefix,
    };
    // JSON's strings are YAML's.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "- {{namespaces: [{}], serviceAccounts: [{}], objectStorageNamespaces: [{}], buckets: \
         [{}], prefixes: [{}], allow: true}}",
        quoted(asked.namespace),
        quoted(asked.service_account.unwrap_or("*")),
        elsewhere.map(|named| quoted(named.as_str())).unwrap_or_default(),
        quoted(request.bucket.as_str()),
        quoted(prefix),
    )
}
