//! One stream, and what it has between two updates.

use md5::block_api::compress;

use super::{Block, State};

/// A, B, C and D before the first block (RFC 1321, section 3.3).
const START: State = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// Where the length is in the last block (RFC 1321, section 3.2).
const LENGTH_AT: usize = 56;

/// The MD5 of a stream of bytes, up to what has come so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Md5Stream {
    pub(crate) state: State,
    /// Bytes so far.
    len: u64,
    /// The bytes behind the last whole block: `len % 64` of them.
    rest: Block,
}

impl Default for Md5Stream {
    fn default() -> Self {
        Self::new()
    }
}

impl Md5Stream {
    /// A stream without bytes.
    pub fn new() -> Self {
        Self { state: START, len: 0, rest: [0; 64] }
    }

    /// Adds bytes to this stream alone. Where several streams have bytes,
    /// [`Lanes::update`](super::Lanes::update) is faster.
    pub fn update(&mut self, bytes: &[u8]) {
        let (blocks, rest) = self.align(bytes);
        compress(&mut self.state, blocks);
        self.keep(blocks, rest);
    }

    /// The digest.
    pub fn finish(mut self) -> [u8; 16] {
        let bits = self.len.wrapping_mul(8).to_le_bytes();
        let used = self.used();
        let mut last = [[0; 64]; 2];
        last[0][..used].copy_from_slice(&self.rest[..used]);
        last[0][used] = 0x80;
        let blocks = if used < LENGTH_AT { 1 } else { 2 };
        last[blocks - 1][LENGTH_AT..].copy_from_slice(&bits);
        compress(&mut self.state, &last[..blocks]);
        let mut digest = [0; 16];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        digest
    }

    /// Completes the unfinished block with the beginning of `bytes`. Returns the whole blocks
    /// that follow, whose turn is next, and the bytes behind those.
    pub(crate) fn align<'a>(&mut self, bytes: &'a [u8]) -> (&'a [Block], &'a [u8]) {
        let used = self.used();
        let missing = if used == 0 { 0 } else { (64 - used).min(bytes.len()) };
        let (first, bytes) = bytes.split_at(missing);
        self.rest[used..used + missing].copy_from_slice(first);
        self.len = self.len.wrapping_add(missing as u64);
        if missing > 0 && used + missing == 64 {
            compress(&mut self.state, &[self.rest]);
        }
        bytes.as_chunks()
    }

    /// Counts blocks that have been hashed, and keeps the bytes behind them.
    pub(crate) fn keep(&mut self, blocks: &[Block], rest: &[u8]) {
        let used = self.used();
        self.rest[used..used + rest.len()].copy_from_slice(rest);
        self.len = self.len.wrapping_add((blocks.len() * 64 + rest.len()) as u64);
    }

    fn used(&self) -> usize {
        // Less than 64.
        (self.len % 64) as usize
    }
}
