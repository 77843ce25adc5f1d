//! Which certificates are trusted.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use super::Unusable;
use crate::text::{self, pem};

/// TLS that trusts these roots.
pub(super) fn client_config(roots: RootCertStore) -> Result<ClientConfig, Unusable> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = versions.map_err(|error| Unusable {
        attempted: "setting up TLS".to_owned(),
        why: error.to_string(),
        remedy: None,
    })?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The system's roots.
pub(super) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "reading the system's CA certificates");
    }
    // Systems have certificates that rustls refuses; the others are enough.
    roots.add_parsable_certificates(system.certs);
    roots
}

/// Trusts the certificates of this file, too.
pub(super) fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), Unusable> {
    trust(roots, path).map_err(|why| Unusable {
        attempted: format!("reading the CA file {}", path.display()),
        why,
        remedy: Some("it must hold one or more PEM certificates"),
    })
}

/// Trusts all certificates of a PEM bundle, or says which block of it is not a certificate.
fn trust(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    // The tag of a SEQUENCE: no text begins with it.
    if bytes.starts_with(b"\x30\x82") {
        return Err("it is DER; convert it with openssl x509 -inform der".to_owned());
    }
    let text = text::decode(bytes)?;
    let blocks = pem::all_blocks(&text)?;
    let mut others = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let at = |why: String| format!("block {} (line {}): {why}", index + 1, block.line);
        match block.label {
            "CERTIFICATE" | "X509 CERTIFICATE" => {
                let certificate = CertificateDer::from(block.der().map_err(at)?);
                roots.add(certificate).map_err(|error| at(error.to_string()))?;
            }
            "TRUSTED CERTIFICATE" => {
                return Err(at("it is in openssl's own form; convert it with openssl x509".into()));
            }
            "PKCS7" | "CMS" => {
                let how = "convert it with openssl pkcs7 -print_certs";
                return Err(at(format!("it is a {} container; {how}", block.label)));
            }
            other => others.push(other),
        }
    }
    let certificates = blocks.len() - others.len();
    if certificates == 0 {
        let found =
            if others.is_empty() { String::new() } else { format!(": {}", others.join(", ")) };
        return Err(format!("no certificate in it{found}"));
    }
    tracing::info!(file = %path.display(), certificates, ?others, "trusting the CA file");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> String {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/vectors/oci-signing.json"))
                .unwrap();
        vectors["leaf_certificate_pem"].as_str().unwrap().trim_end().to_owned()
    }

    fn read(content: &[u8]) -> Result<usize, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, content).unwrap();
        let mut roots = RootCertStore::empty();
        trust(&mut roots, &path).map(|()| roots.len())
    }

    #[test]
    fn a_bundle_as_windows_tools_save_it_is_read_whole() {
        let one = certificate();
        let crlf = one.replace('\n', "\r\n");
        for (content, certificates) in [
            (format!("{one}\n"), 1),
            (one.clone(), 1),
            (format!("\u{feff}{crlf}\r\n{crlf}"), 2),
            (format!("# roots\n{one}{one}\n\u{feff}{one}\n"), 3),
            (format!("-----BEGIN DH PARAMETERS-----\nYQ==\n-----END DH PARAMETERS-----\n{one}"), 1),
        ] {
            assert_eq!(read(content.as_bytes()), Ok(certificates), "{content}");
        }
    }

    #[test]
    fn a_part_of_a_bundle_that_cannot_be_read_is_an_error_with_its_place() {
        let one = certificate();
        let lines = one.lines().count();
        let utf16: Vec<u8> = one.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let broken = one.replacen('M', "!", 1);
        let second = |block: &str| format!("{one}\n{block}\n").into_bytes();
        for (content, said) in [
            (second(&broken), format!("block 2 (line {}): the text between", lines + 1)),
            (second(&one[..one.len() / 2]), format!("begins in line {} has no end", lines + 1)),
            (second(&pem::encode("CERTIFICATE", b"garbage")), "block 2 (line".to_owned()),
            (second(&pem::encode("TRUSTED CERTIFICATE", b"x")), "openssl's own form".to_owned()),
            (second(&pem::encode("PKCS7", b"x")), "-print_certs".to_owned()),
            (
                pem::encode("PRIVATE KEY", b"x").into(),
                "no certificate in it: PRIVATE KEY".to_owned(),
            ),
            (b"\x30\x82\x01\x00".to_vec(), "it is DER".to_owned()),
            (utf16, "UTF-16".to_owned()),
            (Vec::new(), "no certificate in it".to_owned()),
        ] {
            let error = read(&content).unwrap_err();
            assert!(error.contains(&said), "{said:?} is not in {error:?}");
        }
    }
}
