//! What is on the disk: layout, blobs, models, leases, damage, trash. Knows neither
//! [`super::space`] nor [`super::fill`].

pub(super) mod blobs;
pub(super) mod check;
pub(super) mod content;
pub(super) mod disk_usage;
pub(super) mod durability;
pub(super) mod files;
pub(super) mod foreign;
pub(super) mod holds;
pub(super) mod in_force;
pub(super) mod layout;
pub(super) mod leases;
pub(super) mod models;
pub(super) mod open;
pub(super) mod pins;
pub(super) mod quarantine;
pub(super) mod recover;
pub(super) mod reread;
pub(super) mod selinux;
pub(super) mod set_aside;
pub(super) mod sys;
pub(super) mod trash;
pub(super) mod verify;
