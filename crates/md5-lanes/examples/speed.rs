//! Measures GB/s on one core, per instruction set and number of streams:
//!
//! ```text
//! cargo run --release -p oci-model-csi-md5-lanes --example speed
//! ```

// A report for people, in numbers that need no 52 bits.
#![allow(clippy::print_stdout, clippy::cast_precision_loss)]

use std::time::{Duration, Instant};

use oci_model_csi_md5_lanes::md5_lanes::{Lanes, Md5Stream, Piece};

/// Bytes of each stream at a time: what the download engine reads.
const PIECE: usize = 64 << 10;

fn main() {
    println!("{:<8} {:>7} {:>7}", "lanes", "streams", "GB/s");
    for lanes in Lanes::available() {
        for count in [1, 2, 4, 8, 12, 16, 32, 48] {
            println!("{:<8} {count:>7} {:>7.2}", lanes.name(), speed(lanes, count));
        }
    }
}

/// The best of five.
fn speed(lanes: Lanes, count: usize) -> f64 {
    let content = vec![vec![0x5a; PIECE]; count];
    let mut best: f64 = 0.0;
    for _ in 0..5 {
        let mut streams = vec![Md5Stream::new(); count];
        let (started, mut bytes) = (Instant::now(), 0);
        while started.elapsed() < Duration::from_millis(100) {
            let mut pieces: Vec<_> =
                streams.iter_mut().zip(&content).map(|(s, c)| Piece::new(s, c)).collect();
            lanes.update(&mut pieces);
            bytes += count * PIECE;
        }
        std::hint::black_box(&streams);
        best = best.max(bytes as f64 / started.elapsed().as_secs_f64() / 1e9);
    }
    best
}
