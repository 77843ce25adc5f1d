//! Reproducible randomness: it is seeded, and the seed is reported.

pub(crate) use seeded::Random;

use super::run::figure;

/// The number of rounds, in place of each test's own number.
const ROUNDS: &str = "OCI_MODEL_CSI_TEST_ROUNDS";

/// The rounds of a test: those of the variable, or `short`.
pub(crate) fn rounds(short: u64) -> u64 {
    number(ROUNDS).unwrap_or(short)
}

/// A number in a variable of the environment.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text:?}")))
}

/// A generator with the seed of this run, which is reported even if the test passes.
pub(crate) fn random_for(test: &str) -> Random {
    figure(format_args!("{test}: seed {}", seeded::seed()));
    Random::seeded()
}
