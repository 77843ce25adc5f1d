//! Pods that read with the API keys in their Secrets.

use std::collections::BTreeMap;
use std::path::Path;

use localstore::{LocalStore, UserKey};

use super::driver::Setup;
use super::kubelet::{Kubelet, Volume};

/// The configuration that lets pods read with their Secrets.
pub(crate) const ALLOWED: &str = "objectStorage: {podSecrets: true}\n";

/// A driver that takes Secrets, and has a key of its own.
pub(crate) fn setup(scratch: &Path, store: &LocalStore) -> Setup {
    Setup::new(scratch, store).with_config(ALLOWED)
}

/// A new user's key.
pub(crate) fn key(store: &LocalStore, user: &str) -> UserKey {
    store.make_api_key(user).expect("a key")
}

/// The Secret of a key, as docs/identities.md describes it.
pub(crate) fn secret(key: &UserKey) -> BTreeMap<String, String> {
    let UserKey { tenancy, user, fingerprint, pem } = key;
    let pairs = [("user", user), ("tenancy", tenancy), ("fingerprint", fingerprint), ("key", pem)];
    pairs.map(|(name, value)| (name.to_owned(), value.clone())).into()
}

/// A pod as kubelet presents it, with the Secret of a pre-authenticated request.
pub(crate) fn pod_with_par(
    kubelet: &Kubelet,
    url: &str,
    n: u32,
    attributes: &[(&str, &str)],
) -> Volume {
    let mut volume = kubelet.inline(&n.to_string(), attributes);
    volume.secrets.insert("par".to_owned(), url.to_owned());
    volume
}

/// The token in the URL of a pre-authenticated request.
pub(crate) fn token(url: &str) -> &str {
    let (_, rest) = url.split_once("/p/").expect("a pre-authenticated request");
    rest.split_once("/n/").expect("a namespace").0
}

/// A pod as kubelet presents it, with the Secret of a key.
pub(crate) fn pod(kubelet: &Kubelet, key: &UserKey, n: u32, attributes: &[(&str, &str)]) -> Volume {
    let mut volume = kubelet.inline(&n.to_string(), attributes);
    volume.secrets = secret(key);
    volume
}
