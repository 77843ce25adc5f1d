//! How fast one CPU computes the checksum that every download computes.

use std::time::{Duration, Instant};

/// Bytes of one call, as they arrive from a connection.
const CHUNK: usize = 256 << 10;

/// Long enough for the CPU to reach its clock rate.
const TIME: Duration = Duration::from_millis(200);

/// Bytes in a second whose CRC-32C one CPU computes. Blocks for as long as it measures.
pub(super) fn measure() -> u64 {
    let chunk = vec![0x5a; CHUNK];
    let (started, mut bytes, mut crc32c) = (Instant::now(), 0_u128, 0);
    while started.elapsed() < TIME {
        crc32c = crc32c::crc32c_append(crc32c, std::hint::black_box(&chunk));
        bytes += CHUNK as u128;
    }
    std::hint::black_box(crc32c);
    u64::try_from(bytes * 1_000_000 / started.elapsed().as_micros().max(1)).unwrap_or(u64::MAX)
}
