//! As much of DER and PEM as RSA keys need.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// Takes one element with this tag off `input`; its content.
fn take<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&found, rest) = input.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let len = if first < 0x80 {
        usize::from(first)
    } else {
        let count = usize::from(first & 0x7f);
        let bytes = rest.get(..count).filter(|_| (1..=4).contains(&count))?;
        rest = &rest[count..];
        bytes.iter().fold(0, |len, &byte| len << 8 | usize::from(byte))
    };
    let content = rest.get(..len).filter(|_| found == tag)?;
    *input = &rest[len..];
    Some(content)
}

/// The PKCS#1 key inside a PKCS#8 one.
pub(crate) fn pkcs1_of_pkcs8(pkcs8: &[u8]) -> Option<&[u8]> {
    let mut outer = pkcs8;
    let mut key = take(&mut outer, SEQUENCE)?;
    take(&mut key, INTEGER)?;
    take(&mut key, SEQUENCE)?;
    take(&mut key, OCTET_STRING)
}

/// Modulus and exponent, big-endian without leading zeros, of an RSA key's
/// SubjectPublicKeyInfo.
pub(crate) fn rsa_components(spki: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut outer = spki;
    let mut info = take(&mut outer, SEQUENCE)?;
    take(&mut info, SEQUENCE)?;
    let bits = take(&mut info, BIT_STRING)?;
    let mut bits = bits.strip_prefix(&[0])?;
    let mut key = take(&mut bits, SEQUENCE)?;
    let modulus = take(&mut key, INTEGER)?;
    let exponent = take(&mut key, INTEGER)?;
    Some((modulus.strip_prefix(&[0]).unwrap_or(modulus), exponent))
}

/// PEM with lines of 64 characters.
pub(crate) fn to_pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}

/// The first PEM block: its label and bytes. Text around the markers is ignored.
pub(crate) fn from_pem(pem: &str) -> Option<(&str, Vec<u8>)> {
    let (_, rest) = pem.split_once("-----BEGIN ")?;
    let (label, rest) = rest.split_once("-----")?;
    let (body, _) = rest.split_once("-----END ")?;
    let body: String = body.split_whitespace().collect();
    Some((label, BASE64.decode(body).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::vectors;

    #[test]
    fn the_pkcs1_key_is_found_inside_pkcs8() {
        let vectors = vectors::load();
        let (_, pkcs8) = from_pem(vectors["private_key_pkcs8"].as_str().unwrap()).unwrap();
        let pkcs1 = vectors["private_key_pkcs1"].as_str().unwrap();
        assert_eq!(to_pem("RSA PRIVATE KEY", pkcs1_of_pkcs8(&pkcs8).unwrap()), pkcs1);
    }

    #[test]
    fn modulus_and_exponent_are_read_from_a_public_key() {
        let vectors = vectors::load();
        let (label, spki) = from_pem(vectors["public_key_spki"].as_str().unwrap()).unwrap();
        assert_eq!(label, "PUBLIC KEY");
        let (modulus, exponent) = rsa_components(&spki).unwrap();
        assert_eq!((modulus.len(), exponent), (256, &[1, 0, 1][..]));
    }

    #[test]
    fn truncated_input_is_none() {
        let vectors = vectors::load();
        let (_, spki) = from_pem(vectors["public_key_spki"].as_str().unwrap()).unwrap();
        for len in 0..spki.len() {
            assert_eq!(rsa_components(&spki[..len]), None, "{len} bytes");
        }
        assert_eq!(from_pem("-----BEGIN X-----\nAAAA"), None);
    }
}
