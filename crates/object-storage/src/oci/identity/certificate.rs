//! The certificate of an instance: its tenancy, its fingerprint, its bytes.

use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};

use crate::oci::key::{hex_colons, sha256};
use crate::text::pem;

/// One certificate from PEM text.
pub(crate) struct InstanceCertificate {
    der: Vec<u8>,
    base64: String,
    parsed: Certificate,
}

impl InstanceCertificate {
    /// Parses the first certificate of `text`.
    pub(crate) fn from_pem(text: &str) -> Result<Self, String> {
        let blocks = pem::blocks(text);
        let block = blocks
            .iter()
            .find(|block| block.label == "CERTIFICATE")
            .ok_or("no PEM certificate in the answer")?;
        let der = block.der()?;
        let parsed = Certificate::from_der(&der)
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        Ok(Self { der, base64: block.base64.to_string(), parsed })
    }

    /// Base64 of the DER, in one line, as the federation endpoint expects it.
    pub(crate) fn base64(&self) -> &str {
        &self.base64
    }

    /// SHA-256 of the DER in lower-case hex with colons.
    pub(crate) fn fingerprint(&self) -> String {
        hex_colons(sha256(&self.der).as_ref())
    }

    /// The OCID behind `opc-tenant:`, else behind `opc-identity:`, in the subject.
    pub(crate) fn tenancy(&self) -> Option<String> {
        let values = || {
            self.parsed
                .tbs_certificate()
                .subject()
                .iter()
                .filter_map(|attribute| std::str::from_utf8(attribute.value.value()).ok())
        };
        ["opc-tenant:", "opc-identity:"].into_iter().find_map(|prefix| {
            values().find_map(|value| value.strip_prefix(prefix)).map(str::to_owned)
        })
    }

    /// SubjectPublicKeyInfo DER, to compare with that of the key.
    pub(crate) fn public_der(&self) -> Option<Vec<u8>> {
        self.parsed.tbs_certificate().subject_public_key_info().to_der().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::key::KeyPair;
    use crate::oci::sign::tests::vectors;

    #[test]
    fn tenancy_fingerprint_and_public_key_are_those_of_the_vectors() {
        let vectors = vectors();
        let leaf = vectors["leaf_certificate_pem"].as_str().unwrap();
        let certificate = InstanceCertificate::from_pem(leaf).unwrap();
        assert_eq!(certificate.tenancy().as_deref(), vectors["tenancy"].as_str());
        assert_eq!(certificate.fingerprint(), vectors["leaf_fingerprint_sha256"]);
        let key = KeyPair::from_pem(vectors["private_key_pkcs1"].as_str().unwrap(), None).unwrap();
        assert_eq!(certificate.public_der().unwrap(), key.public_der().unwrap());
    }

    #[test]
    fn text_without_a_certificate_is_reported() {
        assert!(InstanceCertificate::from_pem("<html>").is_err());
        let garbage = pem::encode("CERTIFICATE", b"garbage");
        assert!(InstanceCertificate::from_pem(&garbage).is_err());
    }
}
