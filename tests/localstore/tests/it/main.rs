//! The server over the wire, with a client without retries. `tests/clients` of the
//! repository tests it with the official clients.

mod client;
mod faults;
mod identity;
mod lifecycle;
mod multipart;
mod objects;
mod signer;
