//! Writes `proto/csi.v1.rs` from `proto/csi.proto`, without protoc; with
//! `--check` compares them instead.
//!
//! The result is committed: the compiler of protobuf and what it depends on are
//! sixty crates that a build of the driver does not need.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

/// Requests that carry credentials: without `Debug`, nothing can print them.
const WITH_SECRETS: &[&str] = &[
    "CreateVolumeRequest",
    "DeleteVolumeRequest",
    "ControllerPublishVolumeRequest",
    "ControllerUnpublishVolumeRequest",
    "ValidateVolumeCapabilitiesRequest",
    "ControllerModifyVolumeRequest",
    "CreateSnapshotRequest",
    "DeleteSnapshotRequest",
    "ListSnapshotsRequest",
    "GetSnapshotRequest",
    "ControllerExpandVolumeRequest",
    "NodeStageVolumeRequest",
    "NodePublishVolumeRequest",
    "NodeExpandVolumeRequest",
    "CreateVolumeGroupSnapshotRequest",
    "DeleteVolumeGroupSnapshotRequest",
    "GetVolumeGroupSnapshotRequest",
    "GetMetadataAllocatedRequest",
    "GetMetadataDeltaRequest",
];

fn main() -> anyhow::Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = root.join("proto/csi.v1.rs");
    let generated = generate(&root)?;
    if std::env::args().any(|argument| argument == "--check") {
        let committed = std::fs::read_to_string(&target).context("reading proto/csi.v1.rs")?;
        if committed != generated {
            let text = "proto/csi.v1.rs is not what proto/csi.proto gives: run `make proto`";
            anyhow::bail!(text);
        }
    } else {
        std::fs::write(&target, generated).context("writing proto/csi.v1.rs")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn generate(root: &Path) -> anyhow::Result<String> {
    let descriptors = protox::compile(["csi.proto"], [root.join("proto")])?;
    let scratch = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .out_dir(scratch.path())
        .skip_debug(WITH_SECRETS.iter().map(|message| format!(".csi.v1.{message}")))
        .compile_fds(descriptors)?;
    Ok(std::fs::read_to_string(scratch.path().join("csi.v1.rs"))?)
}
