//! What to do about a refusal of the service.

use crate::oci::error::StorageErrorKind;
use crate::oci::par::how_to_create;
use crate::source::{AuthMethod, Bucket, PodPrincipal, Workload};

/// What to do when there is no room for more objects.
const FULL: &str = "raise the compartment's quota or the tenancy's service limit of Object Storage, \
                    or delete objects and unfinished uploads that are not needed";

/// As whom a bucket is read.
pub(super) struct Reader<'a> {
    /// How requests are signed.
    pub(super) method: AuthMethod,
    /// The pod whose own identity it is.
    pub(super) principal: Option<&'a PodPrincipal>,
    /// Whether it is a pre-authenticated request.
    pub(super) has_par: bool,
}

/// What lets the driver, or a pod, read a bucket, for the kind of its identity: mostly a policy
/// statement. Shown whole in errors, so that it can be copied.
pub(super) fn statement(bucket: &str, reader: &Reader<'_>) -> String {
    match reader.principal {
        _ if reader.has_par => how_to_create(bucket),
        Some(PodPrincipal::Account(Workload { namespace, service_account, .. })) => format!(
            "Allow any-user to read objects in compartment … where all \
             {{request.principal.type='workload', request.principal.cluster_id='…', \
             request.principal.namespace='{namespace}', \
             request.principal.service_account='{service_account}', \
             target.bucket.name='{bucket}'}}"
        ),
        _ => statement_in(bucket, None, reader.method),
    }
}

/// As [`statement`] for the driver's own identity, with the OCID of the bucket's compartment
/// where that is known.
pub(crate) fn statement_in(bucket: &str, compartment: Option<&str>, method: AuthMethod) -> String {
    let whose = match method {
        AuthMethod::None => {
            return format!(
                "choose another --auth, or make it public with oci os bucket update --bucket-name \
                 {bucket} --public-access-type ObjectRead"
            );
        }
        AuthMethod::ApiKey | AuthMethod::SecurityToken => "group <the user's group>",
        AuthMethod::ResourcePrincipal => "dynamic-group <the resource's group>",
        _ => "dynamic-group <the nodes' group>",
    };
    let place =
        compartment.map_or_else(|| "<the bucket's>".to_owned(), |ocid| format!("id {ocid}"));
    format!(
        "Allow {whose} to read objects in compartment {place} where target.bucket.name='{bucket}'"
    )
}

/// The policy statement that lets a user's command write to a bucket.
fn statement_for_writing(bucket: &str, method: AuthMethod) -> String {
    match method {
        AuthMethod::ApiKey | AuthMethod::SecurityToken => format!(
            "Allow group <the user's group> to manage objects in compartment <the bucket's> where \
             target.bucket.name='{bucket}'"
        ),
        AuthMethod::None => "choose another --auth: a push has to be signed".to_owned(),
        _ => format!(
            "Allow dynamic-group <the nodes' group> to manage objects in compartment <the bucket's> \
             where target.bucket.name='{bucket}'"
        ),
    }
}

/// What to do about a refusal by the service; `writes` is whether the request changes something.
pub(super) fn remedy(
    kind: StorageErrorKind,
    code: Option<&str>,
    bucket: Option<&Bucket>,
    writes: bool,
    reader: &Reader<'_>,
) -> Option<String> {
    let bucket = bucket?;
    let who = match reader.principal {
        Some(principal) => principal.to_string(),
        None if reader.has_par => "the pre-authenticated request".to_owned(),
        None => "the driver".to_owned(),
    };
    let statement = match writes {
        true => statement_for_writing(&bucket.name, reader.method),
        false => statement(&bucket.name, reader),
    };
    match kind {
        // The bucket was visible, so the permission to read exists; that to write need not.
        StorageErrorKind::NotFound if !writes && code == Some("ObjectNotFound") => None,
        StorageErrorKind::NotFound if code == Some("UploadNotFound") => None,
        StorageErrorKind::NotFound => {
            Some(format!("it does not exist, or {who} may not see it; to allow it: {statement}"))
        }
        StorageErrorKind::Forbidden => Some(format!("to allow it: {statement}")),
        StorageErrorKind::Archived => Some(format!(
            "restore it first: oci os object restore --bucket-name {} --name NAME",
            bucket.name
        )),
        StorageErrorKind::Invalid if matches!(code, Some("QuotaExceeded" | "LimitExceeded")) => {
            Some(FULL.to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(method: AuthMethod) -> Reader<'static> {
        Reader { method, principal: None, has_par: false }
    }

    #[test]
    fn a_404_names_the_missing_policy_unless_the_bucket_was_visible() {
        let bucket = Bucket::new("ns", "models");
        let not_found = |code| {
            let method = AuthMethod::InstancePrincipal;
            remedy(StorageErrorKind::NotFound, Some(code), Some(&bucket), false, &driver(method))
        };
        let text = not_found("BucketNotFound").unwrap();
        assert!(text.contains("target.bucket.name='models'"), "{text}");
        assert_eq!(not_found("ObjectNotFound"), None);
    }

    #[test]
    fn a_refusal_has_the_policy_for_the_kind_of_identity() {
        for (method, remedy) in [
            (AuthMethod::InstancePrincipal, "Allow dynamic-group <the nodes' group> to read"),
            (AuthMethod::ApiKey, "Allow group <the user's group> to read objects in"),
            (AuthMethod::SecurityToken, "Allow group <the user's group> to read objects in"),
            (AuthMethod::ResourcePrincipal, "Allow dynamic-group <the resource's group> to read"),
            (AuthMethod::None, "--bucket-name ai --public-access-type ObjectRead"),
        ] {
            let text = statement("ai", &driver(method));
            assert!(text.contains(remedy), "{method}: {text}");
        }
    }

    #[test]
    fn a_refused_write_names_the_policy_for_writing() {
        let bucket = Bucket::new("ns", "models");
        let forbidden = |method| {
            remedy(StorageErrorKind::Forbidden, None, Some(&bucket), true, &driver(method)).unwrap()
        };
        let text = forbidden(AuthMethod::ApiKey);
        assert!(text.contains("Allow group <the user's group> to manage objects in"), "{text}");
        assert!(forbidden(AuthMethod::None).contains("has to be signed"));
        let (kind, code) = (StorageErrorKind::NotFound, Some("ObjectNotFound"));
        let text = remedy(kind, code, Some(&bucket), true, &driver(AuthMethod::ApiKey)).unwrap();
        assert!(text.contains("to manage objects in"), "{text}");
    }
}
