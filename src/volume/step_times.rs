//! Where the time of a publish goes, for the log.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// The steps of one publish, with the time that each took. Shown as milliseconds: `lease=1.204`.
#[derive(Debug)]
pub(super) struct StepTimes(Mutex<TimedSteps>);

#[derive(Debug)]
struct TimedSteps {
    last: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl StepTimes {
    /// The first step began then.
    pub(super) fn since(began: Instant) -> Self {
        Self(Mutex::new(TimedSteps { last: began, steps: Vec::new() }))
    }

    /// Records that a step has ended, which began when the one before ended. The times of a step
    /// that is repeated add up.
    pub(super) fn ended(&self, step: &'static str) {
        let (mut timed, now) = (lock(&self.0), Instant::now());
        let took = now - std::mem::replace(&mut timed.last, now);
        match timed.steps.iter_mut().find(|(name, _)| *name == step) {
            Some((_, before)) => *before += took,
            None => timed.steps.push((step, took)),
        }
    }
}

impl fmt::Display for StepTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (step, took)) in lock(&self.0).steps.iter().enumerate() {
            let blank = if position == 0 { "" } else { " " };
            write!(f, "{blank}{step}={:.3}", took.as_secs_f64() * 1000.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_step_lasts_from_the_end_of_the_one_before_and_repetitions_add_up() {
        let times = StepTimes::since(Instant::now());
        for (step, micros) in [("permit", 1500), ("lease", 250), ("permit", 2000)] {
            tokio::time::advance(Duration::from_micros(micros)).await;
            times.ended(step);
        }
        assert_eq!(times.to_string(), "permit=3.500 lease=0.250");
    }
}
