//! Which identity signs requests, and whether it can.

use std::time::{Duration, SystemTime};

use crate::doctor::{CheckId, Finding};
use crate::model::duration_text;
use crate::oci::{ObjectStorage, Principal, Settings, own_instance};
use crate::source::{AuthMethod, StorageError};

/// Gets a credential. The principal has what is known of it, also if that failed.
pub(super) async fn look(client: &ObjectStorage, settings: &Settings) -> (Finding, Principal) {
    let method = client.method();
    let why = client.why_chosen().map_or_else(String::new, |why| format!(" ({why})"));
    match method {
        AuthMethod::None => {
            let what = format!("none{why}: requests are not signed, so only public buckets answer");
            return (Finding::fine(CheckId::Identity, what), Principal::default());
        }
        AuthMethod::OkeWorkloadIdentity if client.identity().is_none() => {
            let what = format!("oke_workload_identity{why}: each pod reads as its service account");
            return (Finding::fine(CheckId::Identity, what), Principal::default());
        }
        _ => {}
    }
    let mut principal = match client.principal().await {
        Ok(principal) => principal,
        Err(error) => {
            let mut finding = super::of_storage(CheckId::Identity, &error);
            finding.what = format!("{method}{why}: {}", finding.what);
            return (finding, Principal::default());
        }
    };
    if method == AuthMethod::InstancePrincipal
        && let Ok(instance) = own_instance(settings).await
    {
        principal.instance = instance.instance;
        principal.compartment = instance.compartment;
        principal.shape = instance.shape;
    }
    let what = format!("{method}{why}: {}", described(&principal, method, SystemTime::now()));
    (Finding::fine(CheckId::Identity, what), principal)
}

/// The fault of a signature that the service refuses.
pub(super) fn refused(check: CheckId, client: &ObjectStorage, error: &StorageError) -> Finding {
    let mut finding = super::of_storage(check, error);
    if client.method() == AuthMethod::ApiKey {
        let fix = "compare user, tenancy and fingerprint of the profile with the user's API keys in \
                   the OCI Console: the key was removed, never uploaded, or belongs to another user; \
                   a new one is accepted after some minutes";
        finding.fix = Some(fix.to_owned());
    }
    finding
}

/// The principal in words.
fn described(principal: &Principal, method: AuthMethod, now: SystemTime) -> String {
    let Principal {
        tenancy,
        user,
        fingerprint,
        instance,
        compartment,
        shape,
        service_account,
        expires_at,
    } = principal;
    let named = [
        ("service account", service_account),
        ("user", user),
        ("key", fingerprint),
        ("instance", instance),
        ("shape", shape),
        ("compartment", compartment),
        ("tenancy", tenancy),
    ];
    let mut parts: Vec<String> = named
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?)))
        .collect();
    if let Some(end) = expires_at {
        let left = end.duration_since(now).unwrap_or(Duration::ZERO);
        let renewed = match method {
            AuthMethod::SecurityToken => "and `oci session refresh` renews it",
            AuthMethod::ResourcePrincipal => "and the platform renews it",
            _ => "and is renewed",
        };
        parts.push(format!("its token is good for {} {renewed}", duration_text(left)));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_is_described_by_what_is_known_of_it() {
        let now = SystemTime::now();
        let principal = Principal {
            tenancy: Some("ocid1.tenancy.a".into()),
            instance: Some("ocid1.instance.b".into()),
            expires_at: Some(now + Duration::from_secs(1200)),
            ..Principal::default()
        };
        assert_eq!(
            described(&principal, AuthMethod::InstancePrincipal, now),
            "instance ocid1.instance.b, tenancy ocid1.tenancy.a, its token is good for 20m00s and is \
             renewed"
        );
        assert_eq!(described(&Principal::default(), AuthMethod::ApiKey, now), "");
        let session = described(&principal, AuthMethod::SecurityToken, now);
        assert!(session.ends_with("`oci session refresh` renews it"), "{session}");
    }
}
