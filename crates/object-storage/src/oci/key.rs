//! RSA keys: read from every form that Oracle's tools write, signing, fingerprints.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
#[cfg(any(test, feature = "oci-rust-sdk"))]
use aws_lc_rs::encoding::Pkcs8V1Der;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use md5::{Digest as _, Md5};
use pkcs8::pkcs5::pbes2::Kdf;
use zeroize::Zeroizing;

use super::legacy_pem as legacy;
use crate::text::pem;

/// Why a key could not be used. Never reveals anything about the key itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Other markers only, or none at all.
    #[error(
        "no private key in it: expected -----BEGIN PRIVATE KEY----- or a related marker{found}"
    )]
    Missing {
        /// The markers that were found, for the reader.
        found: String,
    },
    /// A public key.
    #[error("this is a public key: key_file must name the private key that belongs to it")]
    Public,
    /// Encrypted, and there is no passphrase.
    #[error(
        "the key is encrypted and no passphrase is given: set pass_phrase in the profile or \
             OCI_CLI_PASSPHRASE"
    )]
    PassphraseMissing,
    /// Encrypted with another passphrase.
    #[error("the passphrase does not open the key: check pass_phrase or OCI_CLI_PASSPHRASE")]
    PassphraseWrong,
    /// A form or cipher that is not supported.
    #[error(
        "{what} is not supported; convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in \
             OLD.pem -out NEW.pem"
    )]
    Unsupported {
        /// The form or cipher.
        what: String,
    },
    /// Reading it, or signing with it, takes more of the CPU than is allowed.
    #[error(
        "the key is too costly: {what}; encrypt it with fewer iterations (openssl pkcs8 -topk8 \
             -v2 aes-256-cbc -in OLD.pem -out NEW.pem), or create a shorter one"
    )]
    Costly {
        /// What there is too much of.
        what: String,
    },
    /// Malformed, or not RSA of 2048 to 8192 bits.
    #[error("the key cannot be read: {why}")]
    Malformed {
        /// The parser's message.
        why: String,
    },
}

/// How much of the CPU a key may take: a key of a pod's author may be made to cost as much as it can.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyCost {
    /// Iterations of PBKDF2.
    pub(crate) iterations: u32,
    /// Cost, block size and parallelization of scrypt multiplied: units of 128 bytes that are mixed.
    pub(crate) scrypt: u64,
    /// Bits of the modulus.
    pub(crate) bits: usize,
}

impl KeyCost {
    /// For keys of the administrator.
    const ANY: Self = Self { iterations: u32::MAX, scrypt: u64::MAX, bits: usize::MAX };

    /// For keys of pods: some tenths of a second to read, and some milliseconds for a signature.
    /// openssl takes 2,048 iterations, or scrypt with 131,072.
    pub(crate) const OF_PODS: Self = Self { iterations: 200_000, scrypt: 1 << 18, bits: 4096 };

    /// Checks what it takes to derive the key of this encryption.
    fn check_encryption(&self, scheme: &pkcs8::pkcs5::EncryptionScheme) -> Result<(), KeyError> {
        // The older schemes are not supported at all.
        let Some(parameters) = scheme.pbes2() else { return Ok(()) };
        let (taken, most) = match &parameters.kdf {
            Kdf::Pbkdf2(kdf) => (u64::from(kdf.iteration_count), u64::from(self.iterations)),
            Kdf::Scrypt(kdf) => {
                let blocks = u64::from(kdf.block_size).saturating_mul(kdf.parallelization.into());
                (kdf.cost_parameter.saturating_mul(blocks), self.scrypt)
            }
            _ => return Ok(()),
        };
        if taken <= most {
            return Ok(());
        }
        Err(KeyError::Costly { what: format!("its encryption takes {taken} iterations") })
    }

    fn check_length(&self, key: &KeyPair) -> Result<(), KeyError> {
        let bits = key.0.public_modulus_len() * 8;
        if bits <= self.bits {
            return Ok(());
        }
        Err(KeyError::Costly { what: format!("it has {bits} bits") })
    }
}

/// An RSA key pair that signs; cheap to clone, and `Debug` does not print it.
#[derive(Clone)]
pub struct KeyPair(Arc<RsaKeyPair>);

impl KeyPair {
    /// Reads PKCS#8, PKCS#1, encrypted PKCS#8 (PBES2) and PKCS#1 with `DEK-Info`
    /// (AES-128/192/256-CBC, DES-EDE3-CBC). A passphrase that is not needed is
    /// ignored, since it may be inherited from `[DEFAULT]`.
    pub fn from_pem(text: &str, passphrase: Option<&str>) -> Result<Self, KeyError> {
        Self::from_pem_within(text, passphrase, &KeyCost::ANY)
    }

    /// As [`from_pem`](Self::from_pem), for a key that may cost no more than this.
    pub(crate) fn from_pem_within(
        text: &str,
        passphrase: Option<&str>,
        cost: &KeyCost,
    ) -> Result<Self, KeyError> {
        let blocks = pem::blocks(text);
        let Some(block) = blocks.iter().find(|block| block.label.ends_with("PRIVATE KEY")) else {
            if blocks.iter().any(|block| block.label.ends_with("PUBLIC KEY")) {
                return Err(KeyError::Public);
            }
            let labels: Vec<_> = blocks.iter().map(|block| block.label).collect();
            let found = match labels.as_slice() {
                [] => String::new(),
                _ => format!(", found {}", labels.join(", ")),
            };
            return Err(KeyError::Missing { found });
        };
        let der = Zeroizing::new(block.der().map_err(|why| KeyError::Malformed { why })?);
        let key = match block.label {
            "PRIVATE KEY" => Self::from_pkcs8(&der)?,
            "ENCRYPTED PRIVATE KEY" => Self::from_encrypted_pkcs8(&der, passphrase, cost)?,
            "RSA PRIVATE KEY" => match block.header("DEK-Info") {
                Some(info) => Self::from_encrypted_pkcs1(info, &der, passphrase)?,
                None => Self::from_pkcs1(&der)?,
            },
            other => {
                return Err(KeyError::Unsupported { what: format!("the key form {other}") });
            }
        };
        cost.check_length(&key)?;
        Ok(key)
    }

    /// Generates a pair of 2048 bits. Takes at least 60 ms of a core: not for async threads.
    pub fn generate() -> Result<Self, KeyError> {
        RsaKeyPair::generate(KeySize::Rsa2048)
            .map(|pair| Self(Arc::new(pair)))
            .map_err(|_| KeyError::Malformed { why: "generating a key pair failed".into() })
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        RsaKeyPair::from_pkcs8(der).map(|pair| Self(Arc::new(pair))).map_err(rejected)
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, KeyError> {
        RsaKeyPair::from_der(der).map(|pair| Self(Arc::new(pair))).map_err(rejected)
    }

    fn from_encrypted_pkcs8(
        der: &[u8],
        passphrase: Option<&str>,
        cost: &KeyCost,
    ) -> Result<Self, KeyError> {
        let passphrase = passphrase.ok_or(KeyError::PassphraseMissing)?;
        let unsupported = |cause: &dyn fmt::Display| KeyError::Unsupported {
            what: format!("the key's encryption ({cause})"),
        };
        // Schemes older than PBES2 already fail here.
        let info = pkcs8::EncryptedPrivateKeyInfoRef::try_from(der)
            .map_err(|error| unsupported(&error))?;
        cost.check_encryption(&info.encryption_algorithm)?;
        let plain = info.decrypt(passphrase).map_err(|error| match error {
            pkcs8::Error::EncryptedPrivateKey(
                cause @ (pkcs8::pkcs5::Error::UnsupportedAlgorithm { .. }
                | pkcs8::pkcs5::Error::AlgorithmParametersInvalid { .. }
                | pkcs8::pkcs5::Error::NoPbes1CryptSupport),
            ) => unsupported(&cause),
            _ => KeyError::PassphraseWrong,
        })?;
        // A wrong passphrase can give valid padding by chance; then the key is garbage.
        Self::from_pkcs8(plain.as_bytes()).map_err(|_| KeyError::PassphraseWrong)
    }

    fn from_encrypted_pkcs1(
        info: &str,
        der: &[u8],
        passphrase: Option<&str>,
    ) -> Result<Self, KeyError> {
        let passphrase = passphrase.ok_or(KeyError::PassphraseMissing)?;
        let plain =
            legacy::decrypt(info, der, passphrase.as_bytes()).map_err(|error| match error {
                legacy::LegacyError::WrongPassphrase => KeyError::PassphraseWrong,
                legacy::LegacyError::Unsupported(what) => KeyError::Unsupported { what },
            })?;
        Self::from_pkcs1(&plain).map_err(|_| KeyError::PassphraseWrong)
    }

    /// RSASSA-PKCS1-v1_5 over SHA-256, deterministic; about 0.3 ms with 2048 bits.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .map_err(|_| KeyError::Malformed { why: "it does not sign".into() })?;
        Ok(signature)
    }

    /// Whether both are one key.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let public = |pair: &Self| pair.0.public_key().as_ref().to_vec();
        Arc::ptr_eq(&self.0, &other.0) || public(self) == public(other)
    }

    /// The public half as SubjectPublicKeyInfo DER.
    pub fn public_der(&self) -> Result<Vec<u8>, KeyError> {
        let der: PublicKeyX509Der<'_> =
            self.0.public_key().as_der().map_err(|_| KeyError::Malformed {
                why: "its public half cannot be written".into(),
            })?;
        Ok(der.as_ref().to_vec())
    }

    /// The fingerprint as the console shows it: MD5 of the public half, in hex with colons.
    pub fn fingerprint(&self) -> Result<String, KeyError> {
        Ok(hex_colons(&Md5::digest(self.public_der()?)))
    }

    /// The pair as unencrypted PKCS#8 PEM, for a signer that reads nothing else.
    #[cfg(any(test, feature = "oci-rust-sdk"))]
    pub(crate) fn to_pkcs8_pem(&self) -> Result<String, KeyError> {
        let der: Pkcs8V1Der<'_> = self
            .0
            .as_der()
            .map_err(|_| KeyError::Malformed { why: "it cannot be written".into() })?;
        Ok(pem::encode("PRIVATE KEY", der.as_ref()))
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(..)")
    }
}

fn rejected(error: aws_lc_rs::error::KeyRejected) -> KeyError {
    KeyError::Malformed { why: format!("not an RSA key of 2048 to 8192 bits ({error})") }
}

/// These bytes as `ab:cd:…`.
pub(crate) fn hex_colons(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// These bytes in hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> digest::Digest {
    digest::digest(&digest::SHA256, bytes)
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
