//! The server over the wire, by a client without retries. What official clients
//! make of it is tested in `tests/clients` of the repository.

mod client;
mod faults;
mod identity;
mod lifecycle;
mod multipart;
mod objects;
mod signer;
