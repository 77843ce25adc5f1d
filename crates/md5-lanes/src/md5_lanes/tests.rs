//! Every instruction set of this CPU, compared with the `md-5` crate.

use md5::{Digest as _, Md5};
use proptest::prelude::*;

use super::*;

fn expected(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n.wrapping_mul(31) ^ (n >> 7) ^ seed.wrapping_mul(97)).to_le_bytes()[0])
        .collect()
}

/// The digests of the contents, each in pieces of the given lengths in turn, until all have
/// ended: those that end first get empty pieces.
fn digests(lanes: Lanes, contents: &[&[u8]], pieces: &[usize]) -> Vec<[u8; 16]> {
    let mut streams = vec![Md5Stream::new(); contents.len()];
    let mut left: Vec<&[u8]> = contents.to_vec();
    let mut turn = 0;
    while left.iter().any(|bytes| !bytes.is_empty()) {
        let mut now = Vec::new();
        for (stream, bytes) in streams.iter_mut().zip(&mut left) {
            let len = pieces[turn % pieces.len()].min(bytes.len());
            turn += 1;
            let (piece, rest) = bytes.split_at(len);
            *bytes = rest;
            now.push(Piece::new(stream, piece));
        }
        lanes.update(&mut now);
    }
    streams.into_iter().map(Md5Stream::finish).collect()
}

#[test]
fn the_examples_of_rfc_1321_give_its_digests() {
    for (text, digest) in [
        ("", 0xd41d_8cd9_8f00_b204_e980_0998_ecf8_427e_u128),
        ("a", 0x0cc1_75b9_c0f1_b6a8_31c3_99e2_6977_2661),
        ("abc", 0x9001_5098_3cd2_4fb0_d696_3f7d_28e1_7f72),
        ("message digest", 0xf96b_697d_7cb7_938d_525a_2f31_aaf1_61d0),
        ("abcdefghijklmnopqrstuvwxyz", 0xc3fc_d3d7_6192_e400_7dfb_496c_ca67_e13b),
    ] {
        let mut stream = Md5Stream::new();
        stream.update(text.as_bytes());
        assert_eq!(u128::from_be_bytes(stream.finish()), digest, "{text:?}");
    }
}

#[test]
fn every_length_up_to_three_blocks_is_padded_as_the_md_5_crate_does() {
    let content = bytes(200, 1);
    for len in 0..content.len() {
        let mut stream = Md5Stream::new();
        stream.update(&content[..len]);
        assert_eq!(stream.finish(), expected(&content[..len]), "{len} bytes");
    }
}

#[test]
fn any_number_of_streams_fits_any_number_of_lanes() {
    for lanes in Lanes::available() {
        for count in 0..=2 * lanes.count() + 3 {
            let contents: Vec<Vec<u8>> = (0..count).map(|n| bytes(64 * 5 + n, n)).collect();
            let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
            let whole: Vec<_> = contents.iter().map(|content| expected(content)).collect();
            assert_eq!(digests(lanes, &contents, &[1 << 20]), whole, "{count}, {}", lanes.name());
        }
    }
}

#[test]
fn the_widest_instruction_set_of_this_cpu_is_detected() {
    let names: Vec<_> = Lanes::available().into_iter().map(Lanes::name).collect();
    assert_eq!(names[0], "single");
    assert_eq!(Lanes::detect().name(), names[names.len() - 1]);
    #[cfg(target_arch = "x86_64")]
    assert_eq!(names.contains(&"AVX2"), std::arch::is_x86_feature_detected!("avx2"));
    #[cfg(target_arch = "aarch64")]
    assert!(names.contains(&"NEON"));
}

proptest! {
    #![proptest_config(seeded::cases(300))]

    #[test]
    fn streams_of_any_lengths_and_alignments_in_any_pieces_give_the_md_5_crates_digests(
        lengths in proptest::collection::vec(0usize..3000, 0..40),
        offset in 0usize..64,
        pieces in proptest::collection::vec(prop_oneof![1usize..200, (1usize..20).prop_map(|n| n * 64)], 1..8),
    ) {
        // The pieces of a stream start at any address.
        let contents: Vec<Vec<u8>> =
            lengths.iter().enumerate().map(|(n, len)| bytes(offset + len, n)).collect();
        let contents: Vec<&[u8]> = contents.iter().map(|content| &content[offset..]).collect();
        let whole: Vec<_> = contents.iter().map(|content| expected(content)).collect();
        for lanes in Lanes::available() {
            prop_assert_eq!(&digests(lanes, &contents, &pieces), &whole, "{}", lanes.name());
        }
    }
}
