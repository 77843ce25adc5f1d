//! The CSI services: the only code that knows protobuf and gRPC codes.
//!
//! A handler parses, delegates and maps. It never downloads, mounts or waits for
//! a disk itself. The path of a call, top to bottom:
//!
//! | step | module |
//! |---|---|
//! | the socket, and who may connect | [`crate::socket`] |
//! | the limit on connections | `connections` |
//! | the services on the socket, and their shutdown | [`services`](Services) |
//! | one function per method | `identity`, `node`, `controller` |
//! | metrics and logs of each call | `rpc` |
//! | one trace for all calls of a publish | `publish_traces` |
//! | calls that failed lately | [`CallHistory`] |
//! | refusal until recovery is done | [`Readiness`] |
//! | from protobuf to validated types | `request`, `target`, `capability` |
//! | how long a call may wait | `deadline` |
//! | from error kinds to gRPC codes | [`status`] |

mod capability;
mod connections;
mod controller;
mod deadline;
mod history;
mod identity;
mod node;
mod probe;
mod publish_traces;
mod readiness;
mod request;
mod rpc;
mod services;
pub mod status;
mod target;

pub use controller::ControllerService;
pub use history::{CallHistory, FailedCall};
pub use identity::IdentityService;
pub use node::{NodeOptions, NodeService};
pub use probe::plugin_name;
pub use readiness::Readiness;
pub use services::{Services, serve};

/// CSI v1.12.0, generated from `proto/csi.proto` by `make proto`. Requests that carry
/// secrets have no `Debug`, so they cannot be printed.
pub mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        reason = "generated code"
    )]
    include!("../../proto/csi.v1.rs");
}
