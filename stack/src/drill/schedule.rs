//! When each fault begins: random, but the same for the same seed.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::system::AnyFault;

/// Incidents in a hundred in which a second fault starts during the first.
const DOUBLE: u32 = 40;
const PAUSE_MS: std::ops::Range<u64> = 500..3_000;

/// Overlapping faults, and the pause before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident<F> {
    /// The pause.
    pub after: Duration,
    /// The faults, with when each begins and how long it lasts.
    pub faults: Vec<(F, Duration, Duration)>,
}

/// One step of an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step<F> {
    Begin(F),
    End(F),
}

impl<F: AnyFault> Incident<F> {
    /// These faults together, all for the same time.
    pub fn together(faults: &[F], lasting: Duration) -> Self {
        Self {
            after: Duration::ZERO,
            faults: faults
                .iter()
                .map(|fault| (*fault, Duration::ZERO, lasting))
                .collect(),
        }
    }

    /// The steps in order, each with its time from the beginning of the incident.
    pub(super) fn steps(&self) -> Vec<(Duration, Step<F>)> {
        let mut steps: Vec<_> = self
            .faults
            .iter()
            .flat_map(|&(fault, begin, lasting)| {
                [
                    (begin, Step::Begin(fault)),
                    (begin + lasting, Step::End(fault)),
                ]
            })
            .collect();
        steps.sort_by_key(|(time, _)| *time);
        steps
    }
}

impl<F: AnyFault> fmt::Display for Incident<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (fault, _, lasting)) in self.faults.iter().enumerate() {
            let plus = if i == 0 { "" } else { " + " };
            write!(f, "{plus}{fault} {} s", lasting.as_secs())?;
        }
        Ok(())
    }
}

/// Endless incidents: every fault of `faults` occurs once, in random order, before any occurs again.
#[derive(Debug)]
pub struct Schedule<F> {
    rng: StdRng,
    faults: Vec<F>,
    deck: Vec<F>,
}

impl<F: AnyFault> Schedule<F> {
    /// The schedule of this seed.
    pub fn new(seed: u64, faults: Vec<F>) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            faults,
            deck: Vec::new(),
        }
    }

    fn deal(&mut self) -> Option<F> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.faults);
            self.deck.shuffle(&mut self.rng);
        }
        self.deck.pop()
    }
}

impl<F: AnyFault> Iterator for Schedule<F> {
    type Item = Incident<F>;

    fn next(&mut self) -> Option<Incident<F>> {
        let first = self.deal()?;
        let first_lasts = Duration::from_secs(self.rng.random_range(first.lasts_s()));
        let mut faults = vec![(first, Duration::ZERO, first_lasts)];
        if self.rng.random_ratio(DOUBLE, 100)
            && let Some(i) = self.deck.iter().rposition(|f| f.part() != first.part())
        {
            let second = self.deck.remove(i);
            let lasts = Duration::from_secs(self.rng.random_range(second.lasts_s()));
            let begin = self.rng.random_range(Duration::ZERO..=first_lasts);
            faults.push((second, begin, lasts));
        }
        let after = Duration::from_millis(self.rng.random_range(PAUSE_MS));
        Some(Incident { after, faults })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::machine::Fault;
    use super::{AnyFault, Incident, Schedule};

    fn incidents(seed: u64) -> Vec<Incident<Fault>> {
        Schedule::new(seed, Fault::all()).take(100).collect()
    }

    #[test]
    fn a_seed_always_gives_the_same_incidents() {
        assert_eq!(incidents(1), incidents(1));
        assert_ne!(incidents(1), incidents(2));
    }

    #[test]
    fn every_fault_comes_before_any_comes_again() {
        let all = Fault::all().len();
        let dealt: Vec<Fault> = incidents(3)
            .iter()
            .flat_map(|incident| incident.faults.iter().map(|(fault, ..)| *fault))
            .collect();
        let first: BTreeSet<Fault> = dealt[..all].iter().copied().collect();
        assert_eq!(first.len(), all);
    }

    #[test]
    fn overlapping_faults_hit_different_parts() {
        let doubles: Vec<_> = incidents(4)
            .into_iter()
            .filter(|incident| incident.faults.len() == 2)
            .collect();
        assert!(!doubles.is_empty());
        for incident in doubles {
            assert_ne!(incident.faults[0].0.part(), incident.faults[1].0.part());
        }
    }

    #[test]
    fn a_fault_is_named_as_it_is_shown() {
        for fault in Fault::all() {
            assert_eq!(fault.to_string().parse::<Fault>().expect("known"), fault);
        }
        let error = "kill:nobody".parse::<Fault>().expect_err("unknown");
        assert!(error.to_string().contains("kill:ingest-1"), "{error}");
    }
}
