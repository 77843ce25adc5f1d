//! Randomness for tests. Every random test takes its seed from here, so that a failed one prints
//! it, and `OCI_MODEL_CSI_TEST_SEED` repeats the run.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::test_runner::{Config, RngSeed};

/// The variable with the seed of an earlier run.
const SEED: &str = "OCI_MODEL_CSI_TEST_SEED";

/// Returns the seed of this run: that of the variable, or of the time. Prints it, which the test
/// harness shows if the test fails.
///
/// # Panics
/// If the variable is not a number.
#[expect(clippy::print_stderr, reason = "the seed repeats a failure")]
pub fn seed() -> u64 {
    static OF_THIS_RUN: OnceLock<u64> = OnceLock::new();
    let seed = *OF_THIS_RUN.get_or_init(|| match std::env::var(SEED) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{SEED} is not a number: {text:?}")),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
            u64::from(now.subsec_nanos())
        }
    });
    eprintln!("{SEED}={seed}");
    seed
}

/// The configuration of a proptest with this seed and this number of cases. A seed repeats a
/// failure, so proptest writes no files of failed cases.
pub fn cases(cases: u32) -> Config {
    let rng_seed = RngSeed::Fixed(seed());
    Config { cases, rng_seed, failure_persistence: None, ..Config::default() }
}

/// A generator of random numbers, SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator with the seed of this run.
    pub fn seeded() -> Self {
        Self(seed())
    }

    /// An independent generator, for a task beside this one.
    #[must_use]
    pub fn split(&mut self) -> Self {
        Self(self.next())
    }

    /// Returns any number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from 0 to `end`, without it.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Returns one of the choices.
    pub fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        let end = u64::try_from(choices.len()).expect("a small number");
        &choices[usize::try_from(self.below(end)).expect("a small number")]
    }

    /// Returns a duration up to this one, in whole milliseconds.
    pub fn up_to(&mut self, longest: Duration) -> Duration {
        let end = u64::try_from(longest.as_millis()).expect("a short time");
        Duration::from_millis(self.below(end))
    }
}
