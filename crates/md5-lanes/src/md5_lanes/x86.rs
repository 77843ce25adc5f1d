//! AVX2 and AVX-512.
//!
//! The `unsafe` code is sound for two reasons:
//! - The functions that need instructions of the CPU are called by the methods of [`Avx2`] and
//!   [`Avx512`] only, and those values exist only where the CPU has the instructions.
//! - Loads and stores go through references to arrays of exactly the bytes of the vector, and use
//!   the instructions for unaligned addresses.
#![allow(unsafe_code)]
// The names of intrinsics say what they are, and `n` is a block, not an index of `blocks`.
#![allow(clippy::wildcard_imports, clippy::needless_range_loop)]

use super::{Block, State};

/// Proof that the CPU has AVX2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2(());

/// Proof that the CPU has AVX-512 F.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx2 {
    /// Two vectors of 8.
    pub(crate) const LANES: usize = 16;

    pub(crate) fn detect() -> Option<Self> {
        std::arch::is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    /// Hashes all blocks of each lane; all lanes have equally many. The results of lanes
    /// from `used` on are not needed.
    pub(crate) fn compress(
        _proof: Self,
        states: &mut [State; 16],
        blocks: &[&[Block]; 16],
        used: usize,
    ) {
        // SAFETY: the proof exists, so the CPU has AVX2.
        unsafe {
            if used <= 8 {
                avx2::compress::<1>(states, blocks);
            } else {
                avx2::compress::<2>(states, blocks);
            }
        }
    }
}

impl Avx512 {
    /// One vector.
    pub(crate) const LANES: usize = 16;

    pub(crate) fn detect() -> Option<Self> {
        std::arch::is_x86_feature_detected!("avx512f").then_some(Self(()))
    }

    /// Hashes all blocks of each lane; all lanes have equally many.
    pub(crate) fn compress(_proof: Self, states: &mut [State; 16], blocks: &[&[Block]; 16]) {
        // SAFETY: the proof exists, so the CPU has AVX-512 F.
        unsafe { avx512::compress(states, blocks) }
    }
}

mod avx2 {
    use std::arch::x86_64::*;

    use crate::md5_lanes::{Block, State};

    type V = __m256i;

    #[target_feature(enable = "avx2")]
    pub(super) fn compress<const GROUPS: usize>(states: &mut [State; 16], blocks: &[&[Block]; 16]) {
        let mut state = [[splat(0); 4]; GROUPS];
        for (group, state) in state.iter_mut().enumerate() {
            for (n, vector) in state.iter_mut().enumerate() {
                *vector = load(std::array::from_fn(|lane| states[group * 8 + lane][n]));
            }
        }
        for n in 0..blocks[0].len() {
            let mut words = [[splat(0); 16]; GROUPS];
            for (group, words) in words.iter_mut().enumerate() {
                let block = |lane: usize| &blocks[group * 8 + lane][n];
                let (low, high) = words.split_at_mut(8);
                low.copy_from_slice(&transpose(std::array::from_fn(|lane| row(block(lane), 0))));
                high.copy_from_slice(&transpose(std::array::from_fn(|lane| row(block(lane), 1))));
            }
            steps!(state, words, GROUPS);
        }
        for (group, state) in state.iter().enumerate() {
            for (n, vector) in state.iter().enumerate() {
                for (lane, word) in store(*vector).into_iter().enumerate() {
                    states[group * 8 + lane][n] = word;
                }
            }
        }
    }

    /// Half of a block.
    #[target_feature(enable = "avx2")]
    fn row(block: &Block, half: usize) -> V {
        let (halves, _) = block.as_chunks::<32>();
        // SAFETY: 32 bytes are read from a reference to 32 bytes.
        unsafe { _mm256_loadu_si256(halves[half].as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn load(words: [u32; 8]) -> V {
        // SAFETY: 32 bytes are read from an array of 32 bytes.
        unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn store(vector: V) -> [u32; 8] {
        let mut words = [0; 8];
        // SAFETY: 32 bytes are written to an array of 32 bytes.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) };
        words
    }

    /// From eight words of each lane to the lanes of each word.
    #[target_feature(enable = "avx2")]
    fn transpose(r: [V; 8]) -> [V; 8] {
        let mut pairs = r;
        for n in (0..8).step_by(2) {
            pairs[n] = _mm256_unpacklo_epi32(r[n], r[n + 1]);
            pairs[n + 1] = _mm256_unpackhi_epi32(r[n], r[n + 1]);
        }
        let p = pairs;
        let mut fours = p;
        for n in [0, 4] {
            fours[n] = _mm256_unpacklo_epi64(p[n], p[n + 2]);
            fours[n + 1] = _mm256_unpackhi_epi64(p[n], p[n + 2]);
            fours[n + 2] = _mm256_unpacklo_epi64(p[n + 1], p[n + 3]);
            fours[n + 3] = _mm256_unpackhi_epi64(p[n + 1], p[n + 3]);
        }
        let f = fours;
        let mut words = f;
        for n in 0..4 {
            words[n] = _mm256_permute2x128_si256::<0x20>(f[n], f[n + 4]);
            words[n + 4] = _mm256_permute2x128_si256::<0x31>(f[n], f[n + 4]);
        }
        words
    }

    #[target_feature(enable = "avx2")]
    fn splat(word: u32) -> V {
        _mm256_set1_epi32(word.cast_signed())
    }

    #[target_feature(enable = "avx2")]
    fn add(x: V, y: V) -> V {
        _mm256_add_epi32(x, y)
    }

    #[target_feature(enable = "avx2")]
    fn rotate<const LEFT: i32, const RIGHT: i32>(x: V) -> V {
        _mm256_or_si256(_mm256_slli_epi32::<LEFT>(x), _mm256_srli_epi32::<RIGHT>(x))
    }

    #[target_feature(enable = "avx2")]
    fn f(x: V, y: V, z: V) -> V {
        _mm256_xor_si256(_mm256_and_si256(_mm256_xor_si256(y, z), x), z)
    }

    #[target_feature(enable = "avx2")]
    fn g(x: V, y: V, z: V) -> V {
        f(z, x, y)
    }

    #[target_feature(enable = "avx2")]
    fn h(x: V, y: V, z: V) -> V {
        _mm256_xor_si256(_mm256_xor_si256(y, z), x)
    }

    #[target_feature(enable = "avx2")]
    fn i(x: V, y: V, z: V) -> V {
        let not_z = _mm256_xor_si256(z, _mm256_set1_epi32(-1));
        _mm256_xor_si256(_mm256_or_si256(x, not_z), y)
    }
}

mod avx512 {
    use std::arch::x86_64::*;

    use crate::md5_lanes::{Block, State};

    type V = __m512i;

    #[target_feature(enable = "avx512f")]
    pub(super) fn compress(states: &mut [State; 16], blocks: &[&[Block]; 16]) {
        let mut state = [[splat(0); 4]; 1];
        for (n, vector) in state[0].iter_mut().enumerate() {
            *vector = load(std::array::from_fn(|lane| states[lane][n]));
        }
        for n in 0..blocks[0].len() {
            let words = [transpose(&std::array::from_fn(|lane| row(&blocks[lane][n])))];
            steps!(state, words, 1);
        }
        for (n, vector) in state[0].iter().enumerate() {
            for (lane, word) in store(*vector).into_iter().enumerate() {
                states[lane][n] = word;
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    fn row(block: &Block) -> V {
        // SAFETY: 64 bytes are read from a reference to 64 bytes.
        unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx512f")]
    fn load(words: [u32; 16]) -> V {
        // SAFETY: 64 bytes are read from an array of 64 bytes.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx512f")]
    fn store(vector: V) -> [u32; 16] {
        let mut words = [0; 16];
        // SAFETY: 64 bytes are written to an array of 64 bytes.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) };
        words
    }

    /// From sixteen words of each lane to the lanes of each word.
    #[target_feature(enable = "avx512f")]
    fn transpose(r: &[V; 16]) -> [V; 16] {
        let mut pairs = *r;
        for n in (0..16).step_by(2) {
            pairs[n] = _mm512_unpacklo_epi32(r[n], r[n + 1]);
            pairs[n + 1] = _mm512_unpackhi_epi32(r[n], r[n + 1]);
        }
        let p = pairs;
        let mut fours = p;
        for n in (0..16).step_by(4) {
            fours[n] = _mm512_unpacklo_epi64(p[n], p[n + 2]);
            fours[n + 1] = _mm512_unpackhi_epi64(p[n], p[n + 2]);
            fours[n + 2] = _mm512_unpacklo_epi64(p[n + 1], p[n + 3]);
            fours[n + 3] = _mm512_unpackhi_epi64(p[n + 1], p[n + 3]);
        }
        // Now quarters: the quarter q of fours[4 * g + w] has word 4 * q + w of the lanes
        // 4 * g to 4 * g + 3.
        let f = fours;
        let mut words = f;
        for w in 0..4 {
            let even = _mm512_shuffle_i32x4::<0x88>(f[w], f[w + 4]);
            let odd = _mm512_shuffle_i32x4::<0xdd>(f[w], f[w + 4]);
            let even_high = _mm512_shuffle_i32x4::<0x88>(f[w + 8], f[w + 12]);
            let odd_high = _mm512_shuffle_i32x4::<0xdd>(f[w + 8], f[w + 12]);
            words[w] = _mm512_shuffle_i32x4::<0x88>(even, even_high);
            words[w + 4] = _mm512_shuffle_i32x4::<0x88>(odd, odd_high);
            words[w + 8] = _mm512_shuffle_i32x4::<0xdd>(even, even_high);
            words[w + 12] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_high);
        }
        words
    }

    #[target_feature(enable = "avx512f")]
    fn splat(word: u32) -> V {
        _mm512_set1_epi32(word.cast_signed())
    }

    #[target_feature(enable = "avx512f")]
    fn add(x: V, y: V) -> V {
        _mm512_add_epi32(x, y)
    }

    #[target_feature(enable = "avx512f")]
    fn rotate<const LEFT: i32, const RIGHT: i32>(x: V) -> V {
        _mm512_rol_epi32::<LEFT>(x)
    }

    // The functions of RFC 1321 as truth tables: the bit at index 4 * x + 2 * y + z.

    #[target_feature(enable = "avx512f")]
    fn f(x: V, y: V, z: V) -> V {
        _mm512_ternarylogic_epi32::<0b1100_1010>(x, y, z)
    }

    #[target_feature(enable = "avx512f")]
    fn g(x: V, y: V, z: V) -> V {
        _mm512_ternarylogic_epi32::<0b1110_0100>(x, y, z)
    }

    #[target_feature(enable = "avx512f")]
    fn h(x: V, y: V, z: V) -> V {
        _mm512_ternarylogic_epi32::<0b1001_0110>(x, y, z)
    }

    #[target_feature(enable = "avx512f")]
    fn i(x: V, y: V, z: V) -> V {
        _mm512_ternarylogic_epi32::<0b0011_1001>(x, y, z)
    }
}
