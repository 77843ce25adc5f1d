//! MD5 of many streams side by side, in the lanes of vector registers.
//!
//! MD5 of one stream is a chain of dependent steps: no CPU core does more than about
//! 0.8 GB/s of it. The parts of a multipart object are independent streams, and one core
//! hashes 8 or 16 of them together, several times as fast as one after the other.
//!
//! ```
//! use oci_model_csi_md5_lanes::md5_lanes::{Lanes, Md5Stream, Piece};
//!
//! let mut streams = [Md5Stream::new(), Md5Stream::new()];
//! let [first, second] = &mut streams;
//! Lanes::detect().update(&mut [Piece::new(first, b"abc"), Piece::new(second, b"")]);
//! let [first, second] = streams;
//! assert_eq!(first.finish()[..4], [0x90, 0x01, 0x50, 0x98]);
//! assert_eq!(second.finish()[..4], [0xd4, 0x1d, 0x8c, 0xd9]);
//! ```
//!
//! Streams of any lengths may be mixed: when one ends, the next one takes its lane. The
//! [`Lanes`] are chosen at run time: AVX-512, AVX2 or NEON, and the `md-5` crate's code where
//! the CPU has no such instructions, or where there is only one stream.

mod lanes;
mod stream;
#[macro_use]
mod steps;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use lanes::{Lanes, Piece};
pub use stream::Md5Stream;

/// Bytes that MD5 takes at once.
type Block = [u8; 64];

/// The chaining value: A, B, C and D of RFC 1321.
type State = [u32; 4];

#[cfg(test)]
mod tests;
