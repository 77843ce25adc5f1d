//! The messages of refusals: who may not mount what, and the rule that the
//! administrator would have to add.

use std::fmt::Write as _;

use super::PolicyQuery;
use crate::error::{Error, ErrorKind};
use crate::model::ModelRequest;
use crate::text::shown;

/// The longest prefix that fits into a message together with its rule.
const PREFIX: usize = 120;

/// A refusal by the rule of this index, or because no rule matches. `inside` means
/// that a directory below the model's prefix is refused. The message does not name
/// it: only readers of the rules may learn that a rule names it.
pub(super) fn denied(query: &PolicyQuery<'_>, inside: bool, by: Option<usize>) -> Error {
    let mut text = format!("Kubernetes namespace {}", shown(query.namespace, 63));
    if let Some(name) = query.service_account {
        let _ = write!(text, ", service account {}", shown(name, 100));
    }
    let _ = write!(text, ", may not mount {}: ", place(query.request));
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
        rule(query)
    );
    Error::new(ErrorKind::Denied, text)
}

/// The refusal of a pod whose identity kubelet does not send.
pub(super) fn unknown_pod(request: &ModelRequest) -> Error {
    Error::new(
        ErrorKind::Denied,
        format!(
            "an unknown pod may not mount {}: the administrator has set policy.rules, and kubelet \
             does not send the pod's identity; set podInfoOnMount: true in the CSIDriver object",
            place(request)
        ),
    )
}

/// The refusal of a claim whose namespace external-provisioner does not send.
pub(super) fn unknown_claim(request: &ModelRequest) -> Error {
    Error::new(
        ErrorKind::Denied,
        format!(
            "an unknown claim may not get a volume of {}: the administrator has set policy.rules, \
             and external-provisioner does not send the claim's namespace; run it with \
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

/// The rule that allows exactly this request, as a line to paste.
fn rule(query: &PolicyQuery<'_>) -> String {
    let request = query.request;
    let elsewhere = request.namespace.as_ref().filter(|named| query.own != Some(named));
    let prefix = match request.prefix.as_str() {
        long if long.len() > PREFIX => "<the prefix>",
        prefix => prefix,
    };
    // JSON's strings are YAML's.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "- {{namespaces: [{}], serviceAccounts: [{}], objectStorageNamespaces: [{}], buckets: \
         [{}], prefixes: [{}], allow: true}}",
        quoted(query.namespace),
        quoted(query.service_account.unwrap_or("*")),
        elsewhere.map(|named| quoted(named.as_str())).unwrap_or_default(),
        quoted(request.bucket.as_str()),
        quoted(prefix),
    )
}
