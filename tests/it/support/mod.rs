//! What several integration tests need.
//!
//! An end-to-end test ([`run::end_to_end`]) is the built program over its
//! socket ([`driver`]), a client that behaves like kubelet ([`kubelet`]), real
//! mounts in a namespace of the test's own ([`namespace`]), and a local Object
//! Storage that counts its requests (`localstore`). Everything
//! a test makes is its own, so that tests run side by side.
//!
//! Where neither root nor user namespaces are available, such a test says
//! SKIPPED and fails, unless `OCI_MODEL_CSI_TEST_MAY_SKIP=1` lets it pass.
//! What a test measures it reports on stderr as a line `figure: …`.

pub(crate) mod access;
pub(crate) mod answers;
pub(crate) mod api_server;
pub(crate) mod collector;
pub(crate) mod commands;
pub(crate) mod disk;
pub(crate) mod doctor;
pub(crate) mod documents;
pub(crate) mod driver;
pub(crate) mod fetch;
pub(crate) mod fuse;
pub(crate) mod help;
pub(crate) mod invariants;
pub(crate) mod kubelet;
pub(crate) mod literals;
pub(crate) mod load;
pub(crate) mod loopfs;
pub(crate) mod models;
pub(crate) mod names;
pub(crate) mod namespace;
pub(crate) mod pod_keys;
pub(crate) mod pods;
pub(crate) mod protobuf;
pub(crate) mod proxy;
pub(crate) mod push;
pub(crate) mod random;
pub(crate) mod run;
pub(crate) mod steps;
pub(crate) mod terminal;
pub(crate) mod workloads;
