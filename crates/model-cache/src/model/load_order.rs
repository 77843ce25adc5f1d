//! The order in which a loader opens the files of a model.

use std::cmp::Ordering;

use super::{Manifest, ManifestFile};

/// Files up to this size come first: configuration, tokenizer, indexes.
pub const SMALL_FILE: u64 = 16 << 20;

impl ManifestFile {
    /// Small files before large ones. Small ones by size, large ones by path: that is the order
    /// in which Transformers and vLLM open the shards of `model.safetensors.index.json`, whose
    /// names they sort (`get_checkpoint_shard_files`).
    pub fn in_load_order(&self, other: &Self) -> Ordering {
        let key = |file: &Self| match file.size {
            small if small <= SMALL_FILE => (false, small),
            _ => (true, 0),
        };
        key(self).cmp(&key(other)).then_with(|| self.path.cmp(&other.path))
    }
}

impl Manifest {
    /// The place of a file in the order of paths.
    pub fn position(&self, file: &ManifestFile) -> usize {
        self.files.partition_point(|other| other.path < file.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BlobId;

    #[test]
    fn small_files_come_by_size_and_shards_by_name() {
        let file = |path: &str, size: u64| ManifestFile {
            path: path.to_owned(),
            size,
            etag: "e".to_owned(),
            md5: None,
            blob: BlobId::parse(&"a".repeat(64)).unwrap(),
        };
        let mut files = [
            file("model-00002-of-00003.safetensors", 5 << 30),
            file("model-00003-of-00003.safetensors", 1 << 30),
            file("model-00001-of-00003.safetensors", 5 << 30),
            file("tokenizer.json", 9 << 20),
            file("model.safetensors.index.json", 70 << 10),
            file("config.json", 700),
        ];
        files.sort_by(ManifestFile::in_load_order);
        let order: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            order,
            [
                "config.json",
                "model.safetensors.index.json",
                "tokenizer.json",
                "model-00001-of-00003.safetensors",
                "model-00002-of-00003.safetensors",
                "model-00003-of-00003.safetensors"
            ]
        );
    }
}
