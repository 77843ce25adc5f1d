//! The CRC-32C of two runs of bytes, from the CRC-32C of each.
//!
//! The first CRC is multiplied by x to the number of bits that follow, modulo the polynomial; zlib
//! does the same for CRC-32. The powers for bytes in powers of two are a table, so a span of 1 MiB
//! costs one multiplication.

/// Castagnoli's polynomial, with the bits in reverse order (RFC 3720, section 12.1).
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The polynomial 1: bit 31 is the coefficient of x to the power of 0.
const ONE: u32 = 1 << 31;

/// x to the number of bits in 1, 2, 4, 8, … bytes.
const POWERS: [u32; 64] = powers();

const fn powers() -> [u32; 64] {
    let mut powers = [ONE >> 8; 64];
    let mut n = 1;
    while n < powers.len() {
        powers[n] = multiply(powers[n - 1], powers[n - 1]);
        n += 1;
    }
    powers
}

/// The product of two polynomials.
const fn multiply(a: u32, b: u32) -> u32 {
    let (mut product, mut shifted, mut bit) = (0, b, ONE);
    while bit > 0 {
        if a & bit > 0 {
            product ^= shifted;
        }
        shifted = if shifted & 1 == 1 { (shifted >> 1) ^ POLYNOMIAL } else { shifted >> 1 };
        bit >>= 1;
    }
    product
}

/// The CRC-32C of bytes with the CRC `first`, followed by `len` bytes with the CRC `second`.
pub fn crc32c_of_both(first: u32, second: u32, len: u64) -> u32 {
    let bits = (0..64).filter(|bit| len >> bit & 1 == 1);
    bits.fold(first, |crc, bit| multiply(crc, POWERS[bit])) ^ second
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn long_runs_are_combined_as_the_crc32c_crate_does() {
        for len in [1, 64, 1 << 20, (1 << 20) + 1, (1 << 40) + 12_345, usize::MAX >> 1] {
            let expected = crc32c::crc32c_combine(0x1234_5678, 0x9abc_def0, len);
            assert_eq!(crc32c_of_both(0x1234_5678, 0x9abc_def0, len as u64), expected, "{len}");
        }
    }

    proptest! {
        #![proptest_config(seeded::cases(256))]

        #[test]
        fn two_runs_have_the_crc_of_their_bytes(
            first in proptest::collection::vec(any::<u8>(), 0..300),
            second in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let both = [first.clone(), second.clone()].concat();
            let (one, other) = (crc32c::crc32c(&first), crc32c::crc32c(&second));
            prop_assert_eq!(crc32c_of_both(one, other, second.len() as u64), crc32c::crc32c(&both));
        }
    }
}
