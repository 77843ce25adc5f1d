//! Parses the Secret of a volume (`nodePublishSecretRef`). Hostile input: only known keys, of a
//! bounded length. No message has a value of it.

use std::collections::HashMap;

use super::attributes::is_from_kubernetes;
use crate::error::{Error, Result};
use crate::source::{ApiKeySecret, ParSecret, PodSecret};
use crate::text::shown;

/// The keys, the oci CLI's name for each where that differs, and the most bytes of its value. OCIDs
/// end at 255; a key of 4,096 bits in PEM has 3.3 KiB.
const KEYS: [(&str, Option<&str>, usize); 7] = [
    ("user", None, 255),
    ("tenancy", None, 255),
    ("fingerprint", None, 100),
    ("key", Some("key_content"), 16 * 1024),
    ("passphrase", Some("pass_phrase"), 1024),
    ("region", None, 255),
    (PAR, None, 4096),
];

/// The key of a pre-authenticated request, in place of all others.
const PAR: &str = "par";

/// The content of a volume's Secret, without what Kubernetes adds; `None` if there is no Secret.
///
/// # Errors
/// `Invalid` for an unknown, missing or malformed key, which the message names.
pub fn parse_pod_secret(secrets: &HashMap<String, String>) -> Result<Option<PodSecret>> {
    let own: HashMap<&str, &str> = secrets
        .iter()
        .filter(|(key, _)| !is_from_kubernetes(key))
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    if own.is_empty() {
        return Ok(None);
    }
    let mut names: Vec<&str> = own.keys().copied().collect();
    names.sort_unstable();
    names.into_iter().try_for_each(check_key)?;
    if own.contains_key(PAR) {
        return par(&own).map(PodSecret::Par).map(Some);
    }
    api_key(&own).map(PodSecret::ApiKey).map(Some)
}

fn par(own: &HashMap<&str, &str>) -> Result<ParSecret> {
    if own.len() > 1 {
        return Err(Error::invalid(
            "the volume's Secret has par and other keys: a pre-authenticated request needs no API \
             key, so leave one of the two out",
        ));
    }
    let url = value(own, PAR)?.ok_or_else(|| {
        Error::invalid(
            "par in the volume's Secret is empty: it has the URL of a pre-authenticated request",
        )
    })?;
    Ok(ParSecret(url.trim().to_owned().into()))
}

/// Whether a volume has a Secret at all.
pub fn has_pod_secret(secrets: &HashMap<String, String>) -> bool {
    secrets.keys().any(|key| !is_from_kubernetes(key))
}

fn check_key(key: &str) -> Result<()> {
    if KEYS.iter().any(|(name, alias, _)| *name == key || *alias == Some(key)) {
        return Ok(());
    }
    let what = format!("the volume's Secret has the key \"{}\"", shown(key, 100));
    Err(Error::invalid(match key {
        "key_file" => {
            format!("{what}, but no file of a pod is read: put the text of the key into key")
        }
        _ => format!(
            "{what}, which it may not have: it takes user, tenancy, fingerprint, key, passphrase \
             and region, or par alone"
        ),
    }))
}

fn api_key(own: &HashMap<&str, &str>) -> Result<ApiKeySecret> {
    let required = |key: &str| {
        value(own, key)?.ok_or_else(|| {
            Error::invalid(format!(
                "the volume's Secret has no {key}: an API key needs user, tenancy, fingerprint and \
                 key"
            ))
        })
    };
    let plain = |key: &str| Ok::<_, Error>(required(key)?.trim().to_owned());
    let (user, tenancy) = (plain("user")?, plain("tenancy")?);
    check_ocid("user", &user)?;
    check_ocid("tenancy", &tenancy)?;
    let fingerprint = plain("fingerprint")?.to_ascii_lowercase();
    if !is_fingerprint(&fingerprint) {
        return Err(Error::invalid(
            "fingerprint in the volume's Secret is not one: 16 pairs of hex digits with colons \
             between them, as the OCI Console shows it",
        ));
    }
    let key = required("key")?.to_owned().into();
    // A file that an editor saved ends with a line break, which no passphrase has.
    let passphrase = value(own, "passphrase")?;
    let passphrase = passphrase.map(|text| text.trim_end_matches(['\r', '\n']).to_owned().into());
    let region = value(own, "region")?.map(|text| text.trim().parse());
    let region = region.transpose().map_err(|_| {
        Error::invalid(
            "region in the volume's Secret is not a region: write an identifier such as \
             eu-frankfurt-1, or leave it out",
        )
    })?;
    Ok(ApiKeySecret { user, tenancy, fingerprint, key, passphrase, region })
}

/// The value of a key under either name, if it is there and not blank.
fn value<'a>(own: &HashMap<&str, &'a str>, key: &str) -> Result<Option<&'a str>> {
    let Some((name, alias, most)) = KEYS.iter().find(|(name, ..)| *name == key) else {
        return Ok(None);
    };
    let given = |key: &str| own.get(key).copied().filter(|text| !text.trim().is_empty());
    let other = alias.and_then(given);
    if let (Some(_), Some(_), Some(alias)) = (given(name), other, alias) {
        return Err(Error::invalid(format!(
            "the volume's Secret has both {name} and {alias}: leave {alias} out"
        )));
    }
    let value = given(name).or(other);
    match value.map(str::len) {
        Some(length) if length > *most => Err(Error::invalid(format!(
            "{name} in the volume's Secret is {length} bytes long; {most} is the most"
        ))),
        _ => Ok(value),
    }
}

/// Checks what becomes a part of each signature.
fn check_ocid(kind: &str, ocid: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if ocid.starts_with(&format!("ocid1.{kind}.")) && ocid.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{kind} in the volume's Secret is not the OCID of a {kind}: it begins with ocid1.{kind}."
    )))
}

fn is_fingerprint(text: &str) -> bool {
    let pairs: Vec<&str> = text.split(':').collect();
    let is_pair = |pair: &&str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
    pairs.len() == 16 && pairs.iter().all(is_pair)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const FINGERPRINT: &str = "00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:FF";

    /// A whole Secret, with these keys replaced, or left out where the value is empty.
    fn secret(changed: &[(&str, &str)]) -> HashMap<String, String> {
        let mut secret: HashMap<String, String> = [
            ("user", "ocid1.user.oc1..u"),
            ("tenancy", "ocid1.tenancy.oc1..t\n"),
            ("fingerprint", FINGERPRINT),
            ("key", "s3cret-pem"),
        ]
        .into_iter()
        .chain(changed.iter().copied())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
        secret.retain(|_, value| !value.is_empty());
        secret
    }

    fn parse(changed: &[(&str, &str)]) -> Result<ApiKeySecret> {
        match parse_pod_secret(&secret(changed))?.unwrap() {
            PodSecret::ApiKey(key) => Ok(key),
            PodSecret::Par(_) => panic!("it is a key"),
        }
    }

    #[test]
    fn a_pre_authenticated_request_is_alone_in_its_secret() {
        let of = |url: &str| parse_pod_secret(&[("par".to_owned(), url.to_owned())].into());
        assert!(
            matches!(of(" https://x\n"), Ok(Some(PodSecret::Par(url))) if *url.0 == "https://x")
        );
        for (error, named) in [
            (of(" \n").unwrap_err(), "par in the volume's Secret is empty"),
            (of(&"s3cret".repeat(1000)).unwrap_err(), "6000 bytes long; 4096 is the most"),
            (parse(&[("par", "s3cret")]).unwrap_err(), "leave one of the two out"),
        ] {
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.message().contains(named), "{error}");
            assert!(!error.message().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn the_documented_keys_and_the_oci_clis_names_are_accepted() {
        let key = parse(&[("passphrase", " s3cret\r\n"), ("region", " IAD\n")]).unwrap();
        assert_eq!(key.tenancy, "ocid1.tenancy.oc1..t");
        assert_eq!(key.fingerprint, FINGERPRINT.to_lowercase());
        let passphrase = key.passphrase.as_ref().map(|text| text.as_str());
        assert_eq!(passphrase, Some(" s3cret"), "blanks may be meant");
        assert_eq!(key.region.unwrap().as_str(), "iad");
        let of_cli = [("key", ""), ("key_content", "pem"), ("pass_phrase", "word")];
        let key = parse(&of_cli).unwrap();
        let passphrase = key.passphrase.as_ref().map(|text| text.as_str());
        assert_eq!((key.key.as_str(), passphrase), ("pem", Some("word")));
    }

    #[test]
    fn what_kubernetes_adds_is_no_secret() {
        let tokens = [("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), "{}".to_owned())];
        let tokens: HashMap<_, _> = tokens.into();
        assert_eq!(parse_pod_secret(&tokens).unwrap(), None);
        assert!(!has_pod_secret(&tokens) && has_pod_secret(&secret(&[])));
        let both: HashMap<_, _> = tokens.into_iter().chain(secret(&[])).collect();
        assert!(parse_pod_secret(&both).unwrap().is_some());
    }

    #[test]
    fn anything_else_is_refused_by_the_name_of_its_key_and_never_quoted() {
        let long = "s3cret".repeat(4000);
        for (changed, named) in [
            (&[("key_file", "/s3cret")][..], "\"key_file\", but no file"),
            (&[("endpoint", "http://s3cret")], "\"endpoint\", which it may not have"),
            (&[("auth", "s3cret")], "\"auth\""),
            (&[("Key", "s3cret")], "\"Key\""),
            (&[("config", "s3cret")], "\"config\""),
            (&[("user", "")], "has no user"),
            (&[("tenancy", " \n")], "has no tenancy"),
            (&[("fingerprint", "")], "has no fingerprint"),
            (&[("key", "")], "has no key"),
            (&[("key_content", "s3cret")], "both key and key_content"),
            (&[("passphrase", "s3cret"), ("pass_phrase", "s3cret")], "leave pass_phrase out"),
            (&[("key", &long)], "key in the volume's Secret is 24000 bytes long"),
            (&[("passphrase", &long)], "passphrase in the volume's Secret is 24000 bytes"),
            (&[("user", &long)], "user in the volume's Secret is 24000 bytes"),
            (&[("user", "s3cret")], "not the OCID of a user"),
            (&[("user", "ocid1.user.oc1..s3cret\",x=\"")], "not the OCID of a user"),
            (&[("tenancy", "ocid1.user.oc1..s3cret")], "not the OCID of a tenancy"),
            (&[("tenancy", "ocid1.tenancy.s3cret/x")], "not the OCID of a tenancy"),
            (&[("fingerprint", "s3cret")], "16 pairs"),
            (&[("fingerprint", "00:11")], "16 pairs"),
            (&[("region", "s3cret")], "region in the volume's Secret"),
            (&[("region", "eu-s3cret-1/x")], "region in the volume's Secret"),
        ] {
            let error = parse(changed).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.message().contains(named), "{error}");
            assert!(!error.message().contains("s3cret"), "{error}");
        }
    }
}
