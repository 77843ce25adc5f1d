//! NEON of 64-bit ARM.
//!
//! The `unsafe` code is sound for the reasons given in `x86.rs`.
#![allow(unsafe_code)]
// The names of intrinsics say what they are, and `n` is a block, not an index of `blocks`.
#![allow(clippy::wildcard_imports, clippy::needless_range_loop)]

use std::arch::aarch64::*;

use super::{Block, State};

/// Proof that the CPU has NEON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Neon(());

impl Neon {
    /// Four vectors of 4.
    pub(crate) const LANES: usize = 16;

    pub(crate) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    /// Hashes all blocks of each lane; all lanes have equally many. The results of lanes
    /// from `used` on are not needed.
    pub(crate) fn compress(
        _proof: Self,
        states: &mut [State; 16],
        blocks: &[&[Block]; 16],
        used: usize,
    ) {
        // SAFETY: the proof exists, so the CPU has NEON.
        unsafe {
            match used {
                0..=4 => compress::<1>(states, blocks),
                5..=8 => compress::<2>(states, blocks),
                _ => compress::<4>(states, blocks),
            }
        }
    }
}

type V = uint32x4_t;

#[target_feature(enable = "neon")]
fn compress<const GROUPS: usize>(states: &mut [State; 16], blocks: &[&[Block]; 16]) {
    let mut state = [[splat(0); 4]; GROUPS];
    for (group, state) in state.iter_mut().enumerate() {
        *state = transpose(std::array::from_fn(|lane| load(&states[group * 4 + lane])));
    }
    for n in 0..blocks[0].len() {
        let mut words = [[splat(0); 16]; GROUPS];
        for (group, words) in words.iter_mut().enumerate() {
            for (quarter, words) in words.chunks_exact_mut(4).enumerate() {
                let rows = |lane: usize| row(&blocks[group * 4 + lane][n], quarter);
                words.copy_from_slice(&transpose(std::array::from_fn(rows)));
            }
        }
        steps!(state, words, GROUPS);
    }
    for (group, state) in state.iter().enumerate() {
        for (lane, state) in transpose(*state).into_iter().enumerate() {
            states[group * 4 + lane] = store(state);
        }
    }
}

/// A quarter of a block.
#[target_feature(enable = "neon")]
fn row(block: &Block, quarter: usize) -> V {
    let (quarters, _) = block.as_chunks::<16>();
    // SAFETY: 16 bytes are read from a reference to 16 bytes.
    vreinterpretq_u32_u8(unsafe { vld1q_u8(quarters[quarter].as_ptr()) })
}

#[target_feature(enable = "neon")]
fn load(words: &[u32; 4]) -> V {
    // SAFETY: four words are read from a reference to four words.
    unsafe { vld1q_u32(words.as_ptr()) }
}

#[target_feature(enable = "neon")]
fn store(vector: V) -> [u32; 4] {
    let mut words = [0; 4];
    // SAFETY: four words are written to an array of four words.
    unsafe { vst1q_u32(words.as_mut_ptr(), vector) };
    words
}

/// From four words of each lane to the lanes of each word, and back.
#[target_feature(enable = "neon")]
fn transpose(rows: [V; 4]) -> [V; 4] {
    let pairs = |x: V, y: V| {
        (vreinterpretq_u64_u32(vtrn1q_u32(x, y)), vreinterpretq_u64_u32(vtrn2q_u32(x, y)))
    };
    let (even, odd) = pairs(rows[0], rows[1]);
    let (even_high, odd_high) = pairs(rows[2], rows[3]);
    [
        vreinterpretq_u32_u64(vtrn1q_u64(even, even_high)),
        vreinterpretq_u32_u64(vtrn1q_u64(odd, odd_high)),
        vreinterpretq_u32_u64(vtrn2q_u64(even, even_high)),
        vreinterpretq_u32_u64(vtrn2q_u64(odd, odd_high)),
    ]
}

#[target_feature(enable = "neon")]
fn splat(word: u32) -> V {
    vdupq_n_u32(word)
}

#[target_feature(enable = "neon")]
fn add(x: V, y: V) -> V {
    vaddq_u32(x, y)
}

#[target_feature(enable = "neon")]
fn rotate<const LEFT: i32, const RIGHT: i32>(x: V) -> V {
    vsriq_n_u32::<RIGHT>(vshlq_n_u32::<LEFT>(x), x)
}

#[target_feature(enable = "neon")]
fn f(x: V, y: V, z: V) -> V {
    vbslq_u32(x, y, z)
}

#[target_feature(enable = "neon")]
fn g(x: V, y: V, z: V) -> V {
    vbslq_u32(z, x, y)
}

#[target_feature(enable = "neon")]
fn h(x: V, y: V, z: V) -> V {
    veorq_u32(veorq_u32(y, z), x)
}

#[target_feature(enable = "neon")]
fn i(x: V, y: V, z: V) -> V {
    veorq_u32(vornq_u32(x, z), y)
}
