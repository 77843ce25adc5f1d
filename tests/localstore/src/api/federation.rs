//! The identity service: a certificate for a token.

use http::StatusCode;
use serde_json::json;

use crate::server::Call;
use crate::server::reply::{self, Handled};

pub(crate) async fn exchange(call: &mut Call) -> Handled {
    let body = call.read_body().await?;
    let state = &call.state;
    let token = state
        .identity
        .exchange(&call.signed_request(), &body, call.now(), &state.keys)
        .map_err(|refusal| call.refuse(&refusal))?;
    state.counters.token_issued();
    Ok(reply::json(StatusCode::OK, &json!({ "token": token })))
}
