//! Which streams are in which lanes.

use md5::block_api::compress;

use super::{Block, Md5Stream, State};

/// The most lanes of any instruction set.
const MOST: usize = 16;

/// How streams are hashed on this CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lanes(Instructions);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instructions {
    /// One stream after the other, with the `md-5` crate.
    Single,
    #[cfg(target_arch = "x86_64")]
    Avx2(super::x86::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(super::x86::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(super::neon::Neon),
}

/// Bytes that a stream gets.
#[derive(Debug)]
pub struct Piece<'a> {
    stream: &'a mut Md5Stream,
    bytes: &'a [u8],
}

impl<'a> Piece<'a> {
    /// The next bytes of a stream.
    pub fn new(stream: &'a mut Md5Stream, bytes: &'a [u8]) -> Self {
        Self { stream, bytes }
    }
}

impl Lanes {
    /// One stream after the other, with the `md-5` crate.
    pub const SINGLE: Self = Self(Instructions::Single);

    /// The widest lanes that this CPU has.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::SINGLE)
    }

    /// What this CPU has, the widest last.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::SINGLE];
        #[cfg(target_arch = "x86_64")]
        all.extend(
            [
                super::x86::Avx2::detect().map(Instructions::Avx2),
                super::x86::Avx512::detect().map(Instructions::Avx512),
            ]
            .into_iter()
            .flatten()
            .map(Self),
        );
        #[cfg(target_arch = "aarch64")]
        all.extend(super::neon::Neon::detect().map(Instructions::Neon).map(Self));
        all
    }

    /// The name of the instruction set.
    pub fn name(self) -> &'static str {
        match self.0 {
            Instructions::Single => "single",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512(_) => "AVX-512",
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon(_) => "NEON",
        }
    }

    /// How many streams are hashed together.
    pub fn count(self) -> usize {
        match self.0 {
            Instructions::Single => 1,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2(_) => super::x86::Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512(_) => super::x86::Avx512::LANES,
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon(_) => super::neon::Neon::LANES,
        }
    }

    /// Adds to each stream its bytes. The pieces may have any lengths and alignments; equal
    /// lengths, or many more pieces than lanes, use the lanes best.
    pub fn update(self, pieces: &mut [Piece<'_>]) {
        let mut queue = pieces.iter_mut().map(|piece| {
            let (blocks, rest) = piece.stream.align(piece.bytes);
            piece.stream.keep(blocks, rest);
            Lane { state: &mut piece.stream.state, blocks }
        });
        let mut queue = queue.by_ref().filter(|lane| !lane.blocks.is_empty());
        let mut lanes: Vec<Lane<'_>> = Vec::with_capacity(self.count());
        loop {
            lanes.extend(queue.by_ref().take(self.count() - lanes.len()));
            match &mut lanes[..] {
                [] => return,
                [only] => {
                    compress(only.state, only.blocks);
                    lanes.clear();
                }
                lanes => self.advance(lanes),
            }
            lanes.retain(|lane| !lane.blocks.is_empty());
        }
    }

    /// Hashes as many blocks as all these lanes have.
    fn advance(self, lanes: &mut [Lane<'_>]) {
        let count = lanes.iter().map(|lane| lane.blocks.len()).min().unwrap_or_default();
        let mut states: [State; MOST] = [[0; 4]; MOST];
        // Lanes without a stream repeat the first one's work.
        let mut blocks: [&[Block]; MOST] = [&lanes[0].blocks[..count]; MOST];
        for ((lane, state), blocks) in lanes.iter_mut().zip(&mut states).zip(&mut blocks) {
            *state = *lane.state;
            (*blocks, lane.blocks) = lane.blocks.split_at(count);
        }
        match self.0 {
            Instructions::Single => {
                for (state, blocks) in states.iter_mut().zip(blocks).take(lanes.len()) {
                    compress(state, blocks);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2(proof) => {
                super::x86::Avx2::compress(proof, &mut states, &blocks, lanes.len());
            }
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512(proof) => {
                super::x86::Avx512::compress(proof, &mut states, &blocks);
            }
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon(proof) => {
                super::neon::Neon::compress(proof, &mut states, &blocks, lanes.len());
            }
        }
        for (lane, state) in lanes.iter_mut().zip(states) {
            *lane.state = state;
        }
    }
}

/// A stream in a lane: its state, and the blocks that it still has.
struct Lane<'a> {
    state: &'a mut State,
    blocks: &'a [Block],
}
