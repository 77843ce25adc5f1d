//! Where an object's bytes are, and reading any range of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::synthetic::Synthetic;

/// A file of uploaded bytes: the whole object, or one part of it.
///
/// Once `discard`ed it is removed with its last user, so that a download of an
/// object that is replaced meanwhile ends with the bytes it began with.
#[derive(Debug)]
pub(crate) struct DataFile {
    pub(crate) path: PathBuf,
    pub(crate) len: u64,
    discarded: AtomicBool,
}

impl DataFile {
    pub(crate) fn new(path: PathBuf, len: u64) -> Self {
        Self { path, len, discarded: AtomicBool::new(false) }
    }

    pub(crate) fn discard(&self) {
        self.discarded.store(true, Ordering::Release);
    }
}

impl Drop for DataFile {
    fn drop(&mut self) {
        if *self.discarded.get_mut() {
            remove(&self.path);
        }
    }
}

/// Removes a file; a missing file is not an error.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "could not remove a data file");
    }
}

/// The bytes of an object.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// Uploaded: files in a row.
    Files(Vec<Arc<DataFile>>),
    /// A file that was found in the bucket's directory.
    Plain { path: PathBuf, modified_nanos: u128 },
    /// Computed.
    Synthetic { seed: u64 },
}

impl Content {
    /// Removes the bytes once current readers are done.
    pub(crate) fn discard(&self) {
        match self {
            Self::Files(files) => files.iter().for_each(|file| file.discard()),
            Self::Plain { path, .. } => remove(path),
            Self::Synthetic { .. } => {}
        }
    }

    pub(crate) fn reader(&self) -> io::Result<Reader> {
        Ok(match self {
            Self::Files(files) => {
                let mut start = 0;
                let mut segments = Vec::with_capacity(files.len());
                for file in files {
                    segments.push((start, Arc::clone(file)));
                    start += file.len;
                }
                Reader::Files { segments, open: None }
            }
            Self::Plain { path, .. } => Reader::Plain(File::open(path)?),
            Self::Synthetic { seed } => Reader::Synthetic(Synthetic::new(*seed)),
        })
    }
}

/// Reads ranges; holds at most one file open.
#[derive(Debug)]
pub(crate) enum Reader {
    Files { segments: Vec<(u64, Arc<DataFile>)>, open: Option<(usize, File)> },
    Plain(File),
    Synthetic(Synthetic),
}

impl Reader {
    /// Reads at `offset` into `buffer`, as much as one file gives; never 0 before the end.
    pub(crate) fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read_at(buffer, offset),
            Self::Synthetic(synthetic) => {
                synthetic.fill(offset, buffer);
                Ok(buffer.len())
            }
            Self::Files { segments, open } => {
                // The last segment that starts at or before the offset; empty
                // ones before it share its start and are passed over.
                let index = segments.partition_point(|(start, _)| *start <= offset);
                let Some(index) = index.checked_sub(1) else { return Ok(0) };
                let (start, file) = &segments[index];
                if open.as_ref().is_none_or(|(opened, _)| *opened != index) {
                    *open = Some((index, File::open(&file.path)?));
                }
                let Some((_, opened)) = open else { return Ok(0) };
                opened.read_at(buffer, offset - start)
            }
        }
    }

    /// Fills `buffer` from `offset` on, or fails.
    pub(crate) fn read_exact_at(
        &mut self,
        mut offset: u64,
        mut buffer: &mut [u8],
    ) -> io::Result<()> {
        while !buffer.is_empty() {
            let count = self.read_at(offset, buffer)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += count as u64;
            buffer = &mut buffer[count..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cross_the_borders_of_parts() {
        let dir = tempfile::tempdir().unwrap();
        let files = [&b"abc"[..], b"", b"defg"].into_iter().enumerate().map(|(index, bytes)| {
            let path = dir.path().join(index.to_string());
            std::fs::write(&path, bytes).unwrap();
            Arc::new(DataFile::new(path, bytes.len() as u64))
        });
        let content = Content::Files(files.collect());
        let mut reader = content.reader().unwrap();
        let mut buffer = [0; 5];
        reader.read_exact_at(1, &mut buffer).unwrap();
        assert_eq!(&buffer, b"bcdef");
        assert!(reader.read_exact_at(3, &mut buffer).is_err(), "past the end");
    }

    #[test]
    fn a_discarded_file_lives_until_its_last_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, b"old").unwrap();
        let content = Content::Files(vec![Arc::new(DataFile::new(path.clone(), 3))]);
        let mut reader = content.reader().unwrap();
        content.discard();
        drop(content);
        let mut buffer = [0; 3];
        reader.read_exact_at(0, &mut buffer).unwrap();
        assert_eq!(&buffer, b"old");
        drop(reader);
        assert!(!path.exists());
    }
}
