use std::collections::BTreeMap;

use serde_json::Value;

use super::*;

/// Computed with the official Python signer and a throwaway key.
pub(crate) fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../tests/vectors/oci-signing.json")).unwrap()
}

/// The parameters of an `Authorization: Signature …` header, which come in any order.
pub(crate) fn parameters(authorization: &str) -> BTreeMap<String, String> {
    authorization
        .strip_prefix("Signature ")
        .unwrap()
        .split("\",")
        .map(|parameter| {
            let (name, value) = parameter.split_once("=\"").unwrap();
            (name.to_owned(), value.trim_end_matches('"').to_owned())
        })
        .collect()
}

fn for_each_vector(mut check: impl FnMut(&str, &Value, Request<'_>)) {
    let vectors = vectors();
    let vectors = vectors["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 17);
    for vector in vectors {
        let name = vector["name"].as_str().unwrap();
        let (method, target) = vector["request_target"].as_str().unwrap().split_once(' ').unwrap();
        let names: Vec<_> = vector["signed_headers"].as_str().unwrap().split(' ').collect();
        let date_header =
            if names.contains(&"x-date") { DateHeader::XDate } else { DateHeader::Date };
        let headers = &vector["header_values"];
        let date = headers["date"].as_str().or_else(|| headers["x-date"].as_str()).unwrap();
        let host = names.contains(&"host").then(|| vector["host"].as_str().unwrap());
        let body = names.contains(&"x-content-sha256").then(|| Body {
            content_type: headers["content-type"].as_str().unwrap(),
            bytes: vector["body_utf8"].as_str().unwrap_or_default().as_bytes(),
        });
        check(name, vector, Request { method, target, host, date, date_header, body });
    }
}

#[test]
fn all_vectors_of_the_official_signer_are_reproduced_with_every_form_of_the_key() {
    let file = vectors();
    for form in [
        "private_key_pkcs8",
        "private_key_pkcs1",
        "private_key_pkcs8_encrypted_passphrase_hunter2",
        "private_key_pkcs1_dek_encrypted_passphrase_hunter2",
    ] {
        let key = KeyPair::from_pem(file[form].as_str().unwrap(), Some("hunter2")).unwrap();
        for_each_vector(|name, vector, request| {
            assert_eq!(request.signing_string().text, vector["signing_string"], "{name}");
            let key_id = vector["keyId"].as_str().unwrap();
            let signed = sign(&request, key_id, &key).unwrap();
            let ours = parameters(&signed.authorization);
            let theirs = parameters(vector["authorization"].as_str().unwrap());
            assert_eq!(ours, theirs, "{name} with {form}");
            assert_eq!(ours["signature"], vector["signature"], "{name}");
            assert_eq!(
                signed.content_sha256.as_deref(),
                vector["header_values"]["x-content-sha256"].as_str(),
                "{name}"
            );
        });
    }
}

#[test]
fn every_change_changes_the_signature() {
    let file = vectors();
    let key = KeyPair::from_pem(file["private_key_pkcs8"].as_str().unwrap(), None).unwrap();
    let body = Body { content_type: JSON, bytes: b"{}" };
    let request = Request {
        method: "POST",
        target: "/n/ns/b/bk/u",
        host: Some("h"),
        date: "Fri, 05 Jan 2024 21:31:40 GMT",
        date_header: DateHeader::Date,
        body: Some(body),
    };
    let signature = |request: &Request<'_>| {
        parameters(&sign(request, "k", &key).unwrap().authorization)["signature"].clone()
    };
    let original = signature(&request);
    for changed in [
        Request { method: "PUT", ..request },
        Request { target: "/n/ns/b/bk/v", ..request },
        Request { host: Some("i"), ..request },
        Request { host: None, ..request },
        Request { date: "Fri, 05 Jan 2024 21:31:41 GMT", ..request },
        Request { body: Some(Body { bytes: b"{ }", ..body }), ..request },
        Request { body: None, ..request },
    ] {
        assert_ne!(signature(&changed), original, "{changed:?}");
    }
}

#[cfg(feature = "oci-rust-sdk")]
mod sdk {
    use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    use super::*;
    use crate::oci::sdk_signer::SdkSigner;

    /// Checks a header against the request and the public half of `key`.
    fn verify(authorization: &str, request: &Request<'_>, hash: Option<&str>, key: &KeyPair) {
        let parameters = parameters(authorization);
        assert_eq!(parameters["algorithm"], "rsa-sha256");
        let lines: Vec<_> = parameters["headers"]
            .split(' ')
            .map(|name| {
                let value = match name {
                    "(request-target)" => {
                        format!("{} {}", request.method.to_lowercase(), request.target)
                    }
                    "date" | "x-date" => request.date.to_owned(),
                    "host" => request.host.unwrap().to_owned(),
                    "content-length" => request.body.unwrap().bytes.len().to_string(),
                    "content-type" => request.body.unwrap().content_type.to_owned(),
                    "x-content-sha256" => hash.unwrap().to_owned(),
                    other => panic!("{other} is signed"),
                };
                format!("{name}: {value}")
            })
            .collect();
        let signature = BASE64.decode(&parameters["signature"]).unwrap();
        let public = key.public_der().unwrap();
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public)
            .verify(lines.join("\n").as_bytes(), &signature)
            .unwrap_or_else(|_| panic!("{} {}", request.method, request.target));
    }

    #[test]
    fn its_signer_and_ours_agree_on_every_request_that_an_api_key_signs() {
        let file = vectors();
        let key = KeyPair::from_pem(file["private_key_pkcs1"].as_str().unwrap(), None).unwrap();
        let mut compared = 0;
        for_each_vector(|_, vector, request| {
            // It always signs host, and a body with every PUT: federation and uploads are not its.
            let (Some(host), Some(url)) = (request.host, vector["url"].as_str()) else { return };
            if request.method.eq_ignore_ascii_case("put") {
                return;
            }
            let origin = url.split_once(host).unwrap().0.to_owned() + host;
            let key_id = vector["keyId"].as_str().unwrap();
            let theirs = SdkSigner::new(key_id, &key).unwrap().sign(&request, &origin).unwrap();
            let ours = sign(&request, key_id, &key).unwrap();
            assert_eq!(theirs.content_sha256, ours.content_sha256);
            let (t, o) = (parameters(&theirs.authorization), parameters(&ours.authorization));
            assert_eq!((&t["keyId"], &t["version"]), (&o["keyId"], &o["version"]));
            let sorted = |names: &str| {
                let mut names: Vec<_> = names.split(' ').map(str::to_owned).collect();
                names.sort();
                names
            };
            assert_eq!(sorted(&t["headers"]), sorted(&o["headers"]));
            for signed in [&theirs, &ours] {
                let hash = signed.content_sha256.as_deref();
                verify(&signed.authorization, &request, hash, &key);
            }
            compared += 1;
        });
        assert_eq!(compared, 12);
    }

    #[test]
    fn a_name_that_its_url_parser_would_collapse_is_refused_instead_of_signed() {
        let file = vectors();
        let key = KeyPair::from_pem(file["private_key_pkcs8"].as_str().unwrap(), None).unwrap();
        let signer = SdkSigner::new("k", &key).unwrap();
        let request = |target| Request {
            method: "GET",
            target,
            host: Some("h"),
            date: "Fri, 05 Jan 2024 21:31:40 GMT",
            date_header: DateHeader::Date,
            body: None,
        };
        assert!(signer.sign(&request("/n/ns/b/bk/o/a%2F..%2Fx"), "https://h").is_ok());
        let error = signer.sign(&request("/n/ns/b/bk/o/.."), "https://h").unwrap_err();
        assert!(error.to_string().contains("instead of"), "{error}");
    }
}
