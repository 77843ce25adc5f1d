//! The names of identities.

use std::fmt;
use std::str::FromStr;

use super::StorageError;

/// The authentication methods: the oci CLI's `--auth` values, and two more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AuthMethod {
    /// `OCI_CLI_AUTH`, else an API key where one is configured, else the instance principal.
    #[default]
    Auto,
    /// A user's API key, from the oci CLI's config file and variables.
    ApiKey,
    /// A session token of `oci session authenticate`.
    SecurityToken,
    /// The compute instance itself: no keys on the node.
    InstancePrincipal,
    /// The resource principal of a function or a data science job.
    ResourcePrincipal,
    /// A pod's service account in an enhanced OKE cluster.
    OkeWorkloadIdentity,
    /// Unsigned requests: public buckets.
    None,
}

impl AuthMethod {
    const NAMES: [(&'static str, Self); 7] = [
        ("auto", Self::Auto),
        ("api_key", Self::ApiKey),
        ("security_token", Self::SecurityToken),
        ("instance_principal", Self::InstancePrincipal),
        ("resource_principal", Self::ResourcePrincipal),
        ("oke_workload_identity", Self::OkeWorkloadIdentity),
        ("none", Self::None),
    ];

    /// All names, as users write them.
    pub fn names() -> [&'static str; Self::NAMES.len()] {
        Self::NAMES.map(|(name, _)| name)
    }

    /// The name on the command line.
    pub fn as_str(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(_, method)| *method == self)
            .map(|(name, _)| *name)
            .expect("every method is in the table, which a test checks")
    }
}

impl fmt::Display for AuthMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AuthMethod {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<Self, StorageError> {
        Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, method)| *method).ok_or_else(
            || {
                StorageError::config(
                    format!("reading the authentication method {text:?}"),
                    format!("it must be one of {}", Self::names().join(", ")),
                )
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_parsed_by_its_name() {
        for (name, method) in AuthMethod::NAMES {
            assert_eq!(name.parse::<AuthMethod>().unwrap(), method);
            assert_eq!(method.to_string(), name);
        }
        let error = "apikey".parse::<AuthMethod>().unwrap_err().to_string();
        assert!(error.contains("api_key, security_token, instance_principal"), "{error}");
    }
}
