//! MD5 of many streams side by side, for the download engine of oci-model-csi: see [`md5_lanes`].

pub mod md5_lanes;
