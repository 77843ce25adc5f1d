//! Reproducible randomness: it is seeded, and the seed is reported.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::run::figure;

/// The number of rounds, in place of each test's own number.
const ROUNDS: &str = "OCI_MODEL_CSI_TEST_ROUNDS";

/// The seed of an earlier run.
const SEED: &str = "OCI_MODEL_CSI_TEST_SEED";

/// The rounds of a test: those of the variable, or `short`.
pub(crate) fn rounds(short: u64) -> u64 {
    number(ROUNDS).unwrap_or(short)
}

/// A number in a variable of the environment.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text:?}")))
}

/// SplitMix64.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Seeded by the variable, or by the time.
    pub(crate) fn of(test: &str) -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
        let seed = number(SEED).unwrap_or_else(|| u64::from(now().subsec_nanos()));
        figure(format_args!("{test}: seed {seed}"));
        Self(seed)
    }

    /// An independent generator, for a task beside this one.
    pub(crate) fn split(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `end`, without it.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        let end = u64::try_from(choices.len()).expect("a small number");
        &choices[usize::try_from(self.below(end)).expect("a small number")]
    }

    /// A duration up to this one, in whole milliseconds.
    pub(crate) fn up_to(&mut self, longest: Duration) -> Duration {
        let end = u64::try_from(longest.as_millis()).expect("a short time");
        Duration::from_millis(self.below(end))
    }
}
