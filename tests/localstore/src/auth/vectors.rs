//! The signing vectors of the official Python signer, shared with the driver's tests.

use serde_json::Value;

pub(crate) fn load() -> Value {
    serde_json::from_str(include_str!("../../../vectors/oci-signing.json"))
        .expect("the vectors are JSON")
}
