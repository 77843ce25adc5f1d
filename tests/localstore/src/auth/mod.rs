//! Who calls: API keys, security tokens, and the certificates that are exchanged for tokens.

mod cluster;
pub(crate) mod config_file;
mod der;
mod identity;
mod keys;
mod pars;
mod signature;
mod token;
#[cfg(test)]
pub(crate) mod vectors;

pub(crate) use cluster::{AccountToken, Cluster};
pub(crate) use der::from_pem;
pub(crate) use identity::{Identity, Instance};
pub(crate) use keys::{Access, Keys};
pub(crate) use pars::{AccessType, Par, Pars, WantedPar};
pub(crate) use signature::{READING, Refusal, SignedRequest, WITH_BODY, content_sha256};
pub(crate) use token::Subject;
