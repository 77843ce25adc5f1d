//! The lifetime of a token: its JWT claims, read without verifying them.
//!
//! The service verifies them; here they only say when to fetch the next token.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// The longest time before its expiry that a token is replaced.
const MARGIN: Duration = Duration::from_secs(5 * 60);

/// How often a token that another process renews is read again, and at half of its life if that
/// is earlier.
pub(super) const REREAD: Duration = Duration::from_secs(30);

/// When a token expires and when to replace it, by the local clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime {
    pub(crate) expires_at: SystemTime,
    pub(crate) refresh_at: SystemTime,
}

#[derive(Deserialize)]
struct JwtClaims {
    exp: u64,
}

/// What a token says of its owner; nothing for anything but a JWT.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Claims {
    #[serde(rename = "opc-tenant", default)]
    instance_tenancy: Option<String>,
    #[serde(rename = "res_tenant", default)]
    resource_tenancy: Option<String>,
    #[serde(default)]
    sub: Option<String>,
}

impl Claims {
    pub(crate) fn of_jwt(jwt: &str) -> Self {
        let payload = jwt.split('.').nth(1).unwrap_or_default();
        let json = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).unwrap_or_default();
        serde_json::from_slice(&json).unwrap_or_default()
    }

    /// OCID of the tenancy.
    pub(crate) fn tenancy(self) -> Option<String> {
        self.instance_tenancy.or(self.resource_tenancy)
    }

    /// Whom the token is of.
    pub(crate) fn subject(self) -> Option<String> {
        self.sub
    }
}

impl Lifetime {
    /// The `exp` of a JWT; `None` for anything else.
    pub(crate) fn expiry(jwt: &str) -> Option<SystemTime> {
        let payload = jwt.split('.').nth(1)?;
        let json = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
        let claims: JwtClaims = serde_json::from_slice(&json).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp))
    }

    /// The same lifetime, whose second half is the time to get a successor.
    pub(crate) fn replaced_at_half(self, now: SystemTime) -> Self {
        let left = self.expires_at.duration_since(now).unwrap_or_default();
        Self { refresh_at: self.expires_at - left / 2, ..self }
    }

    /// The lifetime of a JWT that another process replaces: the time to read it again comes soon.
    ///
    /// # Errors
    /// As [`Lifetime::of_jwt`].
    pub(super) fn of_renewed(jwt: &str, now: SystemTime) -> Result<Self, &'static str> {
        let lifetime = Self::of_jwt(jwt, now, None)?;
        let left = lifetime.expires_at.duration_since(now).unwrap_or_default();
        let pause = REREAD.min(left / 2).max(Duration::from_secs(1));
        Ok(Self { refresh_at: now + pause, ..lifetime })
    }

    /// The lifetime of a JWT received at `now` from a service whose clock said `theirs`.
    ///
    /// `exp` is in the service's time, so a local clock that is off does not
    /// make every token look expired. It is replaced five minutes before its
    /// end, or after two thirds of what is left of it where that is later.
    pub(crate) fn of_jwt(
        jwt: &str,
        now: SystemTime,
        theirs: Option<SystemTime>,
    ) -> Result<Self, &'static str> {
        let is_of_jwt = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '=');
        // With a line break or a quote in it, no request could be sent.
        let payload = jwt.split('.').nth(1).filter(|_| jwt.chars().all(is_of_jwt));
        let payload = payload.ok_or("the token is not a JWT")?;
        let json = URL_SAFE_NO_PAD
            .decode(payload.trim_end_matches('='))
            .map_err(|_| "the token's payload is not base64url")?;
        let claims: JwtClaims =
            serde_json::from_slice(&json).map_err(|_| "the token's payload has no valid exp")?;
        let expiry = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(claims.exp))
            .ok_or("the token's exp is beyond all time")?;
        // A `Date` header omits the fraction: their clock may be almost a second further.
        let theirs = theirs.map_or(now, |theirs| theirs + Duration::from_secs(1));
        let left = expiry
            .duration_since(theirs)
            .ok()
            .filter(|left| !left.is_zero())
            .ok_or("the token has expired already")?;
        let expires_at = now.checked_add(left).ok_or("the token's exp is beyond all time")?;
        Ok(Self { expires_at, refresh_at: expires_at - MARGIN.min(left / 3) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn jwt(payload: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
    }

    #[test]
    fn a_long_token_is_replaced_five_minutes_early_and_a_short_one_at_two_thirds() {
        for (left, refresh) in [(3600, 3300), (900, 600), (90, 60), (3, 2)] {
            let token = jwt(&format!(r#"{{"exp":{},"iat":1000}}"#, 1000 + left));
            let lifetime = Lifetime::of_jwt(&token, at(1000), None).unwrap();
            assert_eq!(lifetime.expires_at, at(1000 + left));
            assert_eq!(lifetime.refresh_at, at(1000 + refresh));
        }
    }

    #[test]
    fn a_clock_that_is_off_does_not_shorten_the_life() {
        let token = jwt(r#"{"exp":4600}"#);
        let lifetime = Lifetime::of_jwt(&token, at(9000), Some(at(1000))).unwrap();
        assert_eq!(lifetime.expires_at, at(9000 + 3599));
    }

    #[test]
    fn a_malformed_or_expired_token_is_refused() {
        let good = jwt(r#"{"exp":4600}"#);
        assert!(Lifetime::of_jwt(&good, at(1000), None).is_ok());
        let [broken, twice] = [format!("{good}\""), format!("{good}\n{good}")];
        let short = [jwt("{}"), jwt(r#"{"exp":1000}"#)];
        for token in ["", "x", "e30.!!.x", &short[0], &short[1], &broken, &twice] {
            assert!(Lifetime::of_jwt(token, at(1000), None).is_err(), "{token}");
        }
    }
}
