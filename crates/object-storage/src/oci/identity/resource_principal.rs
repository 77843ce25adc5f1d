//! The resource principal of a function, a job or a container instance, version 2.2: a token and
//! a key in variables, or in files that variables name and that the platform renews.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::token::Lifetime;
use super::{Credential, CredentialSource, blocking_credential};
use crate::oci::clock::Clock;
use crate::oci::environment::Environment;
use crate::oci::error::{StorageError, StorageErrorKind};
use crate::oci::key::{KeyError, KeyPair};
use crate::text;

/// The variable that platforms with resource principals set.
pub(crate) const VERSION: &str = "OCI_RESOURCE_PRINCIPAL_VERSION";

/// The token, or the file that has it.
pub(crate) const TOKEN: &str = "OCI_RESOURCE_PRINCIPAL_RPST";
const KEY: &str = "OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM";
const PASSPHRASE: &str = "OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM_PASSPHRASE";

const ELSEWHERE: &str = "resource_principal works where OCI sets its variables, such as in Functions, \
    Data Science jobs and Container Instances: elsewhere use another --auth";

/// The resource principal of this process.
#[derive(Clone)]
pub(crate) struct ResourcePrincipal {
    pub(crate) environment: Environment,
    pub(crate) clock: Clock,
}

impl ResourcePrincipal {
    fn credential(&self) -> Result<Credential, StorageError> {
        let attempted = "reading the resource principal";
        match self.environment.get(VERSION) {
            Some("2.2") => {}
            Some(other) => {
                let why = format!("{VERSION} is {other}, and only 2.2 is supported");
                return Err(StorageError::config(attempted, why));
            }
            None => {
                let why = format!("{VERSION} is not set");
                return Err(StorageError::config(attempted, why).with_remedy(ELSEWHERE));
            }
        }
        let need = |variable: &str| {
            self.value(variable)?.ok_or_else(|| {
                let why = format!("{variable} is not set");
                StorageError::config(attempted, why).with_remedy(ELSEWHERE)
            })
        };
        let token = need(TOKEN)?.trim().to_owned();
        let passphrase = self.value(PASSPHRASE)?;
        // A file ends with a line break, and a passphrase does not.
        let passphrase = passphrase.as_deref().map(|text| text.trim_end_matches(['\r', '\n']));
        let key = KeyPair::from_pem(&need(KEY)?, passphrase).map_err(unusable_key)?;
        let lifetime = Lifetime::of_renewed(&token, self.clock.now()).map_err(|why| {
            let attempted = format!("reading {TOKEN}");
            // A function that was idle for long has its old value.
            let remedy = format!(
                "restart the process, whose platform sets it; in a file the platform renews it: \
                 let {TOKEN} name that file"
            );
            StorageError::new(StorageErrorKind::Unauthenticated, attempted, why).with_remedy(remedy)
        })?;
        Ok(Credential::of_token(&token, key, lifetime))
    }

    /// The variable's value, or the content of the file that it names with an absolute path.
    fn value(&self, variable: &str) -> Result<Option<String>, StorageError> {
        let Some(value) = self.environment.get_exact(variable) else { return Ok(None) };
        if !value.starts_with('/') {
            return Ok(Some(value.to_owned()));
        }
        let read = text::read(value.as_ref());
        // A passphrase may begin with a slash, too.
        let named = if variable == PASSPHRASE { "the file" } else { value };
        read.map(Some).map_err(|why| {
            StorageError::config(format!("reading {named}, which {variable} names"), why)
        })
    }
}

/// The error for a key that does not open, in the words of these variables.
fn unusable_key(error: KeyError) -> StorageError {
    let attempted = format!("reading {KEY}");
    match error {
        KeyError::PassphraseMissing => {
            let why = "the key is encrypted and no passphrase is given";
            StorageError::config(attempted, why).with_remedy(format!("set {PASSPHRASE}"))
        }
        KeyError::PassphraseWrong => {
            let why = "the passphrase does not open the key";
            StorageError::config(attempted, why).with_remedy(format!("correct {PASSPHRASE}"))
        }
        KeyError::Public => {
            let why = "this is a public key, and the private key that belongs to it is needed";
            StorageError::config(attempted, why)
        }
        other => StorageError::config(attempted, other.to_string()),
    }
}

impl CredentialSource for ResourcePrincipal {
    fn fetch(&self) -> BoxFuture<'_, Result<Credential, StorageError>> {
        let source = self.clone();
        blocking_credential("reading the resource principal", move || source.credential()).boxed()
    }
}

#[cfg(test)]
#[path = "resource_principal_tests.rs"]
mod tests;
