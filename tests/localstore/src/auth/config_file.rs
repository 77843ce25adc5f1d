//! Config files of the oci CLI: read to register keys, written so that clients
//! can be pointed at this server.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use md5::{Digest as _, Md5};

use super::der;
use crate::objects::hex;

/// An API key: what a config file names, and its public half.
#[derive(Debug, Clone)]
pub(crate) struct ApiKey {
    pub(crate) tenancy: String,
    pub(crate) user: String,
    pub(crate) fingerprint: String,
    /// DER of the SubjectPublicKeyInfo.
    pub(crate) public: Vec<u8>,
}

impl ApiKey {
    pub(crate) fn key_id(&self) -> String {
        format!("{}/{}/{}", self.tenancy, self.user, self.fingerprint)
    }

    /// `tenancy/user/fingerprint=public.pem`, the form of the command line.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let form = "an API key is given as tenancy/user/fingerprint=public.pem";
        let (key_id, path) = text.split_once('=').context(form)?;
        let [tenancy, user, fingerprint] = key_id.split('/').collect::<Vec<_>>()[..] else {
            bail!("{form}");
        };
        let pem = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        let Some(("PUBLIC KEY", public)) = der::from_pem(&pem) else {
            bail!("{path} holds no 'BEGIN PUBLIC KEY': openssl rsa -in key.pem -pubout writes it");
        };
        Ok(Self {
            tenancy: tenancy.to_owned(),
            user: user.to_owned(),
            fingerprint: fingerprint.to_owned(),
            public,
        })
    }
}

/// The API keys of all profiles in a config file that name one. A profile's
/// missing values are those of `[DEFAULT]`.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<ApiKey>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let profiles = parse_profiles(&text);
    let defaults = profiles.get("DEFAULT").cloned().unwrap_or_default();
    let mut keys = Vec::new();
    for (name, profile) in &profiles {
        let value = |key: &str| profile.get(key).or_else(|| defaults.get(key)).cloned();
        let (Some(tenancy), Some(user), Some(fingerprint), Some(key_file)) =
            (value("tenancy"), value("user"), value("fingerprint"), value("key_file"))
        else {
            continue;
        };
        let public = public_half(&expand_home(&key_file)).with_context(|| {
            format!("profile {name} of {}: key_file {key_file}", path.display())
        })?;
        keys.push(ApiKey { tenancy, user, fingerprint, public });
    }
    if keys.is_empty() {
        bail!("no profile of {} has tenancy, user, fingerprint and key_file", path.display());
    }
    Ok(keys)
}

fn parse_profiles(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut profiles: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            name.clone_into(&mut current);
        } else if let Some((key, value)) = line.split_once('=')
            && !line.starts_with(['#', ';'])
        {
            let profile = profiles.entry(current.clone()).or_default();
            profile.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    profiles
}

fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

fn public_half(key_file: &Path) -> anyhow::Result<Vec<u8>> {
    let pem = fs::read_to_string(key_file).context("reading the key")?;
    let (label, bytes) = der::from_pem(&pem).context("no PEM block")?;
    let key = match label {
        "PRIVATE KEY" => KeyPair::from_pkcs8(&bytes),
        "RSA PRIVATE KEY" if !pem.contains("ENCRYPTED") => KeyPair::from_der(&bytes),
        _ => bail!("{label} is not read here; give the public key with --api-key"),
    };
    let key = key.map_err(|error| anyhow::anyhow!("not an RSA key: {error}"))?;
    public_der(&key)
}

fn public_der(key: &KeyPair) -> anyhow::Result<Vec<u8>> {
    let public: PublicKeyX509Der<'_> =
        key.public_key().as_der().ok().context("encoding the public key")?;
    Ok(public.as_ref().to_vec())
}

/// A new RSA key: its PKCS#8 PEM and the DER of its public half.
pub(crate) fn generate_key() -> anyhow::Result<(String, Vec<u8>)> {
    let key = KeyPair::generate(KeySize::Rsa2048).ok().context("generating an RSA key")?;
    let pkcs8: Pkcs8V1Der<'_> = key.as_der().ok().context("encoding a generated key")?;
    Ok((der::to_pem("PRIVATE KEY", pkcs8.as_ref()), public_der(&key)?))
}

/// MD5 of the public key, as OCI names API keys.
pub(crate) fn fingerprint(public: &[u8]) -> String {
    hex(&Md5::digest(public), ":")
}

/// Writes a config file for a key, and the key; returns the config file's path.
///
/// `session` is a token for the same key, offered as the profile `SESSION`.
pub(crate) fn write(
    dir: &Path,
    key: &ApiKey,
    key_pem: &str,
    region: &str,
    session: &str,
) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let (config, key_file, token) =
        (dir.join("config"), dir.join("api_key.pem"), dir.join("token"));
    let profile = format!(
        "user={}\nfingerprint={}\ntenancy={}\nregion={region}\nkey_file={}\n",
        key.user,
        key.fingerprint,
        key.tenancy,
        key_file.display()
    );
    write_private(&key_file, key_pem)?;
    write_private(&token, session)?;
    let session = format!("security_token_file={}\n", token.display());
    write_private(&config, &format!("[DEFAULT]\n{profile}\n[SESSION]\n{session}"))?;
    Ok(config)
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::vectors;

    #[test]
    fn the_fingerprint_is_the_md5_of_the_public_key() {
        let vectors = vectors::load();
        let (_, public) = der::from_pem(vectors["public_key_spki"].as_str().unwrap()).unwrap();
        assert_eq!(fingerprint(&public), vectors["fingerprint_md5_of_spki_der"].as_str().unwrap());
    }

    #[test]
    fn both_unencrypted_key_forms_of_a_profile_are_read() {
        let vectors = vectors::load();
        let (_, public) = der::from_pem(vectors["public_key_spki"].as_str().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for form in ["private_key_pkcs8", "private_key_pkcs1"] {
            let key_file = dir.path().join(form);
            fs::write(&key_file, vectors[form].as_str().unwrap()).unwrap();
            let config = dir.path().join("config");
            let text = format!(
                "[DEFAULT]\ntenancy=t\n# a comment\n[P]\nuser = u\nfingerprint=f\nkey_file={}\n",
                key_file.display()
            );
            fs::write(&config, text).unwrap();
            let keys = read(&config).unwrap();
            assert_eq!(keys.len(), 1);
            assert_eq!((keys[0].key_id().as_str(), &keys[0].public), ("t/u/f", &public));
        }
    }

    #[test]
    fn a_written_config_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let (pem, public) = generate_key().unwrap();
        let key = ApiKey {
            tenancy: "t".to_owned(),
            user: "u".to_owned(),
            fingerprint: fingerprint(&public),
            public,
        };
        let config = write(dir.path(), &key, &pem, "us-ashburn-1", "a.b.c").unwrap();
        let keys = read(&config).unwrap();
        assert!(keys.iter().all(|read| read.public == key.public && read.key_id() == key.key_id()));
    }
}
