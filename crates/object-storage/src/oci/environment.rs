//! The variables of the process environment that Oracle's tools define, and those of proxies.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::transport::ProxyRules;

/// The variables of the process environment that Oracle's tools define, and those of proxies;
/// injectable.
///
/// Values may be secrets (`OCI_CLI_PASSPHRASE`, the login of `HTTPS_PROXY`), so `Debug` shows names only.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables `OCI_*`, `HOME`, `KUBERNETES_SERVICE_HOST` and those of proxies of this process;
    /// non-Unicode ones are absent.
    pub fn process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| {
                name.starts_with("OCI_")
                    || matches!(name.as_str(), "HOME" | "KUBERNETES_SERVICE_HOST")
                    || ProxyRules::is_variable(name)
            })
            .collect()
    }

    /// No variables at all.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A variable that is set and not blank.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// As [`get`](Self::get), but byte for byte: passphrases may begin with a blank.
    pub(crate) fn get_exact(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Expands `~` and `~/…` with `HOME`; anything else as it is.
    pub(crate) fn expand(&self, path: &str) -> PathBuf {
        match (path.strip_prefix('~'), self.get("HOME")) {
            (Some(""), Some(home)) => PathBuf::from(home),
            (Some(rest), Some(home)) if rest.starts_with('/') => {
                Path::new(home).join(rest.trim_start_matches('/'))
            }
            _ => PathBuf::from(path),
        }
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(variables: T) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_is_the_home_directory_only_on_its_own() {
        let environment: Environment = [("HOME", "/home/me")].into_iter().collect();
        assert_eq!(environment.expand("~/.oci/k.pem"), Path::new("/home/me/.oci/k.pem"));
        assert_eq!(environment.expand("~"), Path::new("/home/me"));
        assert_eq!(environment.expand("~other/k"), Path::new("~other/k"));
        assert_eq!(environment.expand("/a/~"), Path::new("/a/~"));
    }
}
