//! A session of `oci session authenticate`: a token and a key in files, which the oci CLI
//! renews. They are only read here, again and again: each renewal gives another token.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::profile::ProfileSource;
use super::token::Lifetime;
use super::{Credential, CredentialSource, blocking_credential};
use crate::oci::clock::Clock;
use crate::oci::error::{StorageError, StorageErrorKind};
use crate::text;

/// The session of a profile.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) profile: ProfileSource,
    pub(crate) clock: Clock,
}

impl Session {
    fn credential(&self) -> Result<Credential, StorageError> {
        let (variable, key) = ("OCI_CLI_SECURITY_TOKEN_FILE", "security_token_file");
        let profile = self.profile.read()?;
        let path = self.profile.value(&profile, variable, key);
        let path = path.ok_or_else(|| self.profile.missing(&profile, variable, key))?;
        let path = self.profile.environment.expand(&path);
        let attempted = format!("reading the session's token {}", path.display());
        let renew = format!(
            "renew the session with `oci session refresh --profile {name}`, or begin another with \
             `oci session authenticate --profile-name {name}`",
            name = self.profile.name()
        );
        let token = text::read(&path).map_err(|why| {
            StorageError::config(attempted.clone(), why).with_remedy(renew.clone())
        })?;
        let lifetime = Lifetime::of_renewed(token.trim(), self.clock.now()).map_err(|why| {
            StorageError::new(StorageErrorKind::Unauthenticated, attempted, why).with_remedy(renew)
        })?;
        let (key, _) = self.profile.key_pair(&profile)?;
        Ok(Credential::of_token(token.trim(), key, lifetime))
    }
}

impl CredentialSource for Session {
    fn fetch(&self) -> BoxFuture<'_, Result<Credential, StorageError>> {
        let source = self.clone();
        blocking_credential("reading the session", move || source.credential()).boxed()
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
pub(crate) mod tests;
