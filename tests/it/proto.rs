//! `proto/csi.proto` against the table of wire facts, and the generated types:
//! messages that carry secrets cannot be printed.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::marker::PhantomData;

use crate::support::protobuf;
use oci_model_csi::csi::proto;

const PROTO: &str = include_str!("../../proto/csi.proto");
const WIRE_FACTS: &str = include_str!("../vectors/csi-v1.12.0-wire.tsv");

#[test]
fn every_service_message_and_enum_matches_the_specification() {
    let expected: Vec<&str> =
        WIRE_FACTS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let found = protobuf::wire_facts(PROTO);
    let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    let wanted: BTreeSet<&str> = expected.iter().copied().collect();
    assert_eq!(wanted.len(), expected.len(), "the table says something twice");
    let missing: Vec<_> = wanted.difference(&found).collect();
    let unknown: Vec<_> = found.difference(&wanted).collect();
    assert!(missing.is_empty(), "not in csi.proto: {missing:#?}");
    assert!(unknown.is_empty(), "only in csi.proto: {unknown:#?}");
    assert!(wanted.len() > 250, "the table is cut off: {} lines", wanted.len());
}

#[test]
fn a_difference_in_any_column_would_be_found() {
    let changes = [
        ("string volume_id = 1;", "string volume_id = 9;"),
        ("string volume_id = 1;", "bytes volume_id = 1;"),
        ("string volume_id = 1;", "repeated string volume_id = 1;"),
        ("string volume_id = 1;", "string volume_id = 1 [(csi_secret) = true];"),
        ("INODES = 2;", "INODES = 3;"),
        ("oneof access_type {", "oneof access {"),
        ("rpc Probe(ProbeRequest)", "rpc Probe(GetPluginInfoRequest)"),
        ("message ProbeRequest {}", "message ProbeRequest { string more = 1; }"),
        ("map<string, string> secrets = 5 [(csi_secret) = true];", "bytes secrets = 5;"),
    ];
    let facts: BTreeSet<String> = protobuf::wire_facts(PROTO).into_iter().collect();
    for (line, changed) in changes {
        assert!(PROTO.contains(line), "{line}");
        let other: BTreeSet<String> =
            protobuf::wire_facts(&PROTO.replacen(line, changed, 1)).into_iter().collect();
        assert_ne!(facts, other, "{changed}");
    }
}

/// Whether a type has `Debug`, as a constant: the inherent one is taken where
/// its bound holds, else the trait's.
struct Of<T>(PhantomData<T>);

trait WithoutDebug {
    const HAS_DEBUG: bool = false;
}

impl<T> WithoutDebug for Of<T> {}

impl<T: Debug> Of<T> {
    const HAS_DEBUG: bool = true;
}

macro_rules! has_debug {
    ($($message:ident),* $(,)?) => {
        [$((stringify!($message), Of::<proto::$message>::HAS_DEBUG)),*]
    };
}

#[test]
fn no_message_that_carries_secrets_can_be_printed() {
    let checked = has_debug![
        CreateVolumeRequest,
        DeleteVolumeRequest,
        ControllerPublishVolumeRequest,
        ControllerUnpublishVolumeRequest,
        ValidateVolumeCapabilitiesRequest,
        ControllerModifyVolumeRequest,
        CreateSnapshotRequest,
        DeleteSnapshotRequest,
        ListSnapshotsRequest,
        GetSnapshotRequest,
        ControllerExpandVolumeRequest,
        NodeStageVolumeRequest,
        NodePublishVolumeRequest,
        NodeExpandVolumeRequest,
        CreateVolumeGroupSnapshotRequest,
        DeleteVolumeGroupSnapshotRequest,
        GetVolumeGroupSnapshotRequest,
        GetMetadataAllocatedRequest,
        GetMetadataDeltaRequest,
    ];
    for (message, has_debug) in checked {
        assert!(
            !has_debug,
            "{message} has Debug: add it to WITH_SECRETS in proto/generate/src/main.rs"
        );
    }
    let names: BTreeSet<&str> = checked.iter().map(|(message, _)| *message).collect();
    let secret: BTreeSet<&str> = WIRE_FACTS
        .lines()
        .filter(|line| line.starts_with("field\t"))
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .filter(|columns| columns.last().is_some_and(|marks| marks.contains("secret")))
        .map(|columns| columns[1])
        .collect();
    assert_eq!(names, secret);
}

#[test]
fn the_check_for_debug_finds_a_derived_debug() {
    let of_others = has_debug![ProbeRequest, NodeGetInfoResponse, VolumeCapability];
    assert!(of_others.iter().all(|(_, has_debug)| *has_debug));
}
