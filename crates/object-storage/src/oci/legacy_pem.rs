//! Keys that openssl encrypted before PKCS#8: `Proc-Type: 4,ENCRYPTED` and `DEK-Info`.
//!
//! The key is derived from the passphrase by openssl's `EVP_BytesToKey` with MD5,
//! one iteration, and the first eight bytes of the IV as the salt. Weak, but
//! many of today's API keys were written this way.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt, KeyIvInit};
use md5::{Digest, Md5};
use zeroize::Zeroizing;

/// Why a block could not be decrypted.
pub(crate) enum LegacyError {
    /// The padding is wrong, so the passphrase is.
    WrongPassphrase,
    /// The header cannot be parsed, or names an unsupported cipher.
    Unsupported(String),
}

/// Decrypts the bytes of a block whose `DEK-Info` header is `info`.
pub(crate) fn decrypt(
    info: &str,
    encrypted: &[u8],
    passphrase: &[u8],
) -> Result<Zeroizing<Vec<u8>>, LegacyError> {
    let unsupported = || LegacyError::Unsupported(format!("DEK-Info {info:?}"));
    let (cipher, iv) = info.split_once(',').ok_or_else(unsupported)?;
    let iv = hex(iv.trim()).ok_or_else(unsupported)?;
    let plain = match cipher.trim().to_ascii_uppercase().as_str() {
        "AES-128-CBC" => cbc::<cbc::Decryptor<aes::Aes128>>(encrypted, passphrase, &iv),
        "AES-192-CBC" => cbc::<cbc::Decryptor<aes::Aes192>>(encrypted, passphrase, &iv),
        "AES-256-CBC" => cbc::<cbc::Decryptor<aes::Aes256>>(encrypted, passphrase, &iv),
        "DES-EDE3-CBC" => cbc::<cbc::Decryptor<des::TdesEde3>>(encrypted, passphrase, &iv),
        _ => None,
    };
    plain.ok_or_else(unsupported)?.map_err(|_| LegacyError::WrongPassphrase)
}

/// `None` where the IV does not have the cipher's length.
fn cbc<Cipher: BlockModeDecrypt + KeyIvInit>(
    encrypted: &[u8],
    passphrase: &[u8],
    iv: &[u8],
) -> Option<Result<Zeroizing<Vec<u8>>, aes::cipher::block_padding::Error>> {
    let salt = iv.get(..8)?;
    let key = bytes_to_key(passphrase, salt, Cipher::key_size());
    let cipher = Cipher::new_from_slices(&key, iv).ok()?;
    let mut buffer = Zeroizing::new(encrypted.to_vec());
    Some(cipher.decrypt_padded::<Pkcs7>(&mut buffer).map(|plain| plain.to_vec().into()))
}

fn bytes_to_key(passphrase: &[u8], salt: &[u8], length: usize) -> Zeroizing<Vec<u8>> {
    // With room for the last digest: what grows leaves copies.
    let mut key = Zeroizing::new(Vec::with_capacity(length + Md5::output_size()));
    let mut last = Zeroizing::new(Vec::new());
    while key.len() < length {
        last = Md5::new()
            .chain_update(&*last)
            .chain_update(passphrase)
            .chain_update(salt)
            .finalize()
            .to_vec()
            .into();
        key.extend_from_slice(&last);
    }
    key.truncate(length);
    key
}

fn hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
