//! OKE's identity service: a service account's token for a session token.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::StatusCode;
use serde_json::json;

use crate::server::Call;
use crate::server::reply::{self, Handled};

pub(crate) async fn exchange(call: &mut Call) -> Handled {
    let body = call.read_body().await?;
    let (state, authorization) = (&call.state, call.header("authorization"));
    let token = state
        .cluster
        .exchange(authorization, &body, call.now(), &state.identity, &state.keys)
        .map_err(|refusal| call.refuse(&refusal))?;
    state.counters.token_issued();
    // A JSON string of base64 of JSON: that is how the service answers.
    let inner = json!({ "token": format!("ST${token}") }).to_string();
    Ok(reply::json(StatusCode::OK, &json!(BASE64.encode(inner))))
}
