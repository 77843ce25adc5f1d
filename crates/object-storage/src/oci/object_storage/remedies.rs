//! What to do about a refusal of the service.

use crate::oci::error::StorageErrorKind;
use crate::oci::identity::own_account::ServiceAccount;
use crate::oci::par::how_to_create;
use crate::source::{AuthMethod, Bucket, PodPrincipal, Workload};

/// What to do when there is no room for more objects.
const FULL: &str = "raise the compartment's quota or the tenancy's service limit of Object Storage, \
                    or delete objects and unfinished uploads that are not needed";

/// As whom a bucket is read or written.
pub(super) struct Reader<'a> {
    /// How requests are signed.
    pub(super) method: AuthMethod,
    /// The pod whose own identity it is.
    pub(super) principal: Option<&'a PodPrincipal>,
    /// The service account of this process, where it is that.
    pub(super) own_account: Option<ServiceAccount>,
    /// Whether it is a pre-authenticated request.
    pub(super) has_par: bool,
}

impl Reader<'_> {
    /// What lets it read a bucket, for the kind of its identity: mostly a policy statement, with the
    /// OCID of the bucket's compartment where that is known. Shown whole in errors, so that it can
    /// be copied.
    pub(super) fn statement(&self, bucket: &str, compartment: Option<&str>) -> String {
        match self.method {
            _ if self.has_par => how_to_create(bucket),
            AuthMethod::None => format!(
                "choose another --auth, or make it public with oci os bucket update --bucket-name \
                 {bucket} --public-access-type ObjectRead"
            ),
            _ => self.allowing("read", bucket, compartment),
        }
    }

    /// What to do about a 401 that is not the clock's fault.
    pub(super) fn unauthenticated(&self) -> String {
        if let Some(account) = &self.own_account {
            return format!("the cluster of {account} has to be of this tenancy");
        }
        match self.principal {
            _ if self.has_par => {
                return "check that the pre-authenticated request still exists, has not expired, and \
                        permits this: the key par of the Secret, or --par-file, has its URL"
                    .to_owned();
            }
            Some(PodPrincipal::Account(workload)) => {
                return format!("the cluster of {workload} has to be of this tenancy");
            }
            Some(PodPrincipal::ApiKey(key)) => {
                return format!(
                    "check that user, tenancy and key of the volume's Secret belong together, and \
                     that the key {} still is one of this user's API keys",
                    key.fingerprint
                );
            }
            Some(PodPrincipal::Par(_)) | None => {}
        }
        let remedy = match self.method {
            AuthMethod::None => {
                "the request was not signed: choose another --auth, or make the bucket public"
            }
            AuthMethod::SecurityToken => {
                "the session was ended, or is of another tenancy or key: begin another with `oci \
                 session authenticate`, and check security_token_file and key_file of the profile"
            }
            AuthMethod::ResourcePrincipal => {
                "the resource principal's token was revoked, or is of another tenancy or key: \
                 restart the process, whose platform sets it"
            }
            _ => "check that the key or the dynamic group still exists in this tenancy and region",
        };
        remedy.to_owned()
    }

    /// The policy statement that lets a command write to a bucket.
    fn statement_for_writing(&self, bucket: &str) -> String {
        match self.method {
            AuthMethod::None => "choose another --auth: a push has to be signed".to_owned(),
            _ => self.allowing("manage", bucket, None),
        }
    }

    fn allowing(&self, verb: &str, bucket: &str, compartment: Option<&str>) -> String {
        let id = compartment.map(|ocid| format!("id {ocid}"));
        if let Some((namespace, name)) = self.service_account() {
            let place = id.as_deref().unwrap_or("…");
            return format!(
                "Allow any-user to {verb} objects in compartment {place} where all \
                 {{request.principal.type='workload', request.principal.cluster_id='…', \
                 request.principal.namespace='{namespace}', \
                 request.principal.service_account='{name}', target.bucket.name='{bucket}'}}"
            );
        }
        let whose = match self.method {
            AuthMethod::ApiKey | AuthMethod::SecurityToken => "group <the user's group>",
            AuthMethod::ResourcePrincipal => "dynamic-group <the resource's group>",
            _ => "dynamic-group <the nodes' group>",
        };
        let place = id.as_deref().unwrap_or("<the bucket's>");
        format!(
            "Allow {whose} to {verb} objects in compartment {place} where \
             target.bucket.name='{bucket}'"
        )
    }

    /// Namespace and name of the service account, a pod's or this process's.
    fn service_account(&self) -> Option<(&str, &str)> {
        if let Some(PodPrincipal::Account(Workload { namespace, service_account, .. })) =
            self.principal
        {
            return Some((namespace, service_account));
        }
        let ServiceAccount { namespace, name } = self.own_account.as_ref()?;
        Some((namespace, name))
    }

    /// It in words.
    fn named(&self) -> String {
        match (self.principal, &self.own_account) {
            (Some(principal), _) => principal.to_string(),
            (None, Some(account)) => account.to_string(),
            (None, None) if self.has_par => "the pre-authenticated request".to_owned(),
            (None, None) => "the driver".to_owned(),
        }
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
    let who = reader.named();
    let statement = match writes {
        true => reader.statement_for_writing(&bucket.name),
        false => reader.statement(&bucket.name, None),
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
        Reader { method, principal: None, own_account: None, has_par: false }
    }

    #[test]
    fn a_404_names_the_missing_policy_unless_the_bucket_was_visible() {
        let bucket = Bucket::new("ns", "models");
        let not_found = |code| {
            let reader = driver(AuthMethod::InstancePrincipal);
            remedy(StorageErrorKind::NotFound, Some(code), Some(&bucket), false, &reader)
        };
        let text = not_found("BucketNotFound").unwrap();
        assert!(text.contains("target.bucket.name='models'"), "{text}");
        assert_eq!(not_found("ObjectNotFound"), None);
    }

    #[test]
    fn a_refusal_has_the_policy_for_the_kind_of_identity() {
        let bucket = Bucket::new("ns", "ai");
        for (method, whose) in [
            (AuthMethod::InstancePrincipal, "Allow dynamic-group <the nodes' group> to"),
            (AuthMethod::ApiKey, "Allow group <the user's group> to"),
            (AuthMethod::SecurityToken, "Allow group <the user's group> to"),
            (AuthMethod::ResourcePrincipal, "Allow dynamic-group <the resource's group> to"),
        ] {
            for (writes, verb) in [(false, "read"), (true, "manage")] {
                let kind = StorageErrorKind::Forbidden;
                let text = remedy(kind, None, Some(&bucket), writes, &driver(method)).unwrap();
                let words = format!("{whose} {verb} objects in");
                assert!(text.contains(&words), "{method}, {writes}: {text}");
            }
        }
        let text = driver(AuthMethod::None).statement("ai", None);
        assert!(text.contains("--bucket-name ai --public-access-type ObjectRead"), "{text}");
    }

    #[test]
    fn a_service_account_gets_a_policy_of_its_own_for_reading_and_writing() {
        let [namespace, name] = ["team-a", "vllm"].map(str::to_owned);
        let reader = Reader {
            own_account: Some(ServiceAccount { namespace, name }),
            ..driver(AuthMethod::OkeWorkloadIdentity)
        };
        let bucket = Bucket::new("ns", "ai");
        for (writes, verb) in [(false, "read"), (true, "manage")] {
            let kind = StorageErrorKind::NotFound;
            let code = Some("BucketNotFound");
            let text = remedy(kind, code, Some(&bucket), writes, &reader).unwrap();
            assert!(text.contains(&format!("Allow any-user to {verb} objects")), "{text}");
            assert!(text.contains("service_account='vllm'"), "{text}");
            assert!(text.contains("service account team-a/vllm may not see it"), "{text}");
        }
        let text = reader.statement("ai", Some("ocid1.compartment.oc1..c"));
        assert!(text.contains("in compartment id ocid1.compartment.oc1..c where all"), "{text}");
    }

    #[test]
    fn a_refused_write_names_the_policy_for_writing() {
        let bucket = Bucket::new("ns", "models");
        let (forbidden, unsigned) = (StorageErrorKind::Forbidden, driver(AuthMethod::None));
        let text = remedy(forbidden, None, Some(&bucket), true, &unsigned).unwrap();
        assert!(text.contains("has to be signed"));
        let (kind, code) = (StorageErrorKind::NotFound, Some("ObjectNotFound"));
        let text = remedy(kind, code, Some(&bucket), true, &driver(AuthMethod::ApiKey)).unwrap();
        assert!(text.contains("to manage objects in"), "{text}");
    }
}
