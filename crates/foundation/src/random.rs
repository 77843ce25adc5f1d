//! The one source of randomness: for ids, and to spread work over time. Keys come from the
//! functions that generate them.

use std::time::Duration;

/// Returns random bytes. If the system has none, they are zero: an id is useless then, and
/// what it is for works anyway.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        return [0; N];
    }
    bytes
}

/// Returns a duration that is evenly spread over all from zero to `most`. If the system has
/// no randomness it is half of that: only the spread is lost, and a pause stays a pause.
pub fn up_to(most: Duration) -> Duration {
    let mut bytes = [0; 4];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        return most / 2;
    }
    let numerator = u32::from_le_bytes(bytes);
    most.mul_f64(f64::from(numerator) / (f64::from(u32::MAX) + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_spread_over_the_whole_and_never_longer() {
        let most = Duration::from_secs(10);
        let draws: Vec<_> = (0..256).map(|_| up_to(most)).collect();
        assert!(draws.iter().all(|draw| *draw <= most));
        assert!(draws.iter().any(|draw| *draw < most / 4));
        assert!(draws.iter().any(|draw| *draw > most / 4 * 3));
    }

    #[test]
    fn bytes_differ() {
        assert_ne!(bytes::<16>(), bytes::<16>());
    }
}
