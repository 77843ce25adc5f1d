//! The integration tests, in one program: the built driver over its sockets,
//! with real mounts. `cargo test --test it publish::` runs those of one file.

mod support;

mod architecture;
mod bad_input;
mod cache_commands;
mod cache_life;
mod checksums;
mod claims;
mod controller;
mod crash;
mod damage;
mod deadline;
mod disks;
mod docs;
mod events;
mod faults;
mod fetch;
mod import;
mod kill_points;
mod listeners;
mod logs;
mod memory;
mod mounts;
mod neighbours;
mod node;
mod oci_client;
mod other_buckets;
mod outage;
mod permission;
mod policy;
mod power_loss;
mod prefetch_list;
mod priorities;
mod proto;
mod publish;
mod revisions;
mod safetensors;
mod scale;
mod secrets;
mod single_flight;
mod soak;
mod space;
mod targets;
mod tree;
mod workload_identity;
