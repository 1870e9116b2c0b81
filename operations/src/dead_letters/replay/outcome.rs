//! What became of a dead letter, or would.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How a replay of one event went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// No problem any more: it is its resource's newest state.
    Newest,
    /// No problem any more: a newer state of its resource is there, and stays.
    Superseded,
    /// No problem any more: its type has no table.
    Untyped,
    /// Somebody replayed or dismissed it meanwhile.
    Gone,
    /// This version finds a problem as well.
    StillWrong,
    /// Postgres refuses it.
    Refused,
    /// Somebody holds a lock on its row, or on that of its resource.
    Locked,
    /// It is not replayed without being asked for by its id.
    Withheld,
    /// It stops the replay as it stopped the workers.
    Stopped,
}

impl Outcome {
    /// All outcomes, the good ones first.
    pub const ALL: [Self; 9] = [
        Self::Newest,
        Self::Superseded,
        Self::Untyped,
        Self::Gone,
        Self::StillWrong,
        Self::Refused,
        Self::Locked,
        Self::Withheld,
        Self::Stopped,
    ];

    /// The name in JSON and in `replay_job_letters`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Superseded => "superseded",
            Self::Untyped => "untyped",
            Self::Gone => "gone",
            Self::StillWrong => "still-wrong",
            Self::Refused => "refused",
            Self::Locked => "locked",
            Self::Withheld => "withheld",
            Self::Stopped => "stopped",
        }
    }

    /// The outcome with this name, or `None` if a newer version has written it.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.name() == name)
    }

    /// Whether it is no dead letter any more.
    pub fn is_good(self) -> bool {
        match self {
            Self::Newest | Self::Superseded | Self::Untyped | Self::Gone => true,
            Self::StillWrong | Self::Refused | Self::Locked | Self::Withheld | Self::Stopped => {
                false
            }
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Newest => "stored, as the newest state",
            Self::Superseded => "stored, under a newer state",
            Self::Untyped => "stored, its type has no table",
            Self::Gone => "no dead letter any more",
            Self::StillWrong => "still wrong",
            Self::Refused => "refused by postgres",
            Self::Locked => "locked, and left as it was",
            Self::Withheld => "withheld",
            Self::Stopped => "stops the replay",
        }
    }
}

/// An event and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// Which event.
    pub webhook_id: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it is left as it is.
    pub reason: Option<String>,
    /// Whether it was done, and not only tried.
    pub kept: bool,
}

/// How many events fared alike.
#[derive(Debug, Default)]
pub struct Totals(BTreeMap<(Outcome, Option<String>), Total>);

/// Events that fared alike.
#[derive(Debug, Default)]
pub struct Total {
    /// How many.
    pub count: u64,
    /// One of them, to look at.
    pub example: String,
}

impl Totals {
    /// Adds one.
    pub fn count(&mut self, replayed: &Replayed) {
        let reason = replayed
            .reason
            .as_deref()
            .map(|r| without_position(r).to_owned());
        let total = self.0.entry((replayed.outcome, reason)).or_default();
        total.count += 1;
        total.example.clone_from(&replayed.webhook_id);
    }

    /// Whether no problem is left.
    pub fn is_clean(&self) -> bool {
        self.0.keys().all(|(outcome, _)| outcome.is_good())
    }

    /// Those that fared alike, and how many there are.
    pub fn iter(&self) -> impl Iterator<Item = (Outcome, Option<&str>, &Total)> {
        self.0
            .iter()
            .map(|((outcome, reason), total)| (*outcome, reason.as_deref(), total))
    }
}

/// Where in the body a parser stopped tells equal reasons apart.
fn without_position(reason: &str) -> &str {
    reason
        .rsplit_once(" at line ")
        .map_or(reason, |(what, _)| what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_is_found_by_its_serialized_name() {
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::parse(outcome.name()), Some(outcome));
            let json = serde_json::to_value(outcome).expect("JSON");
            assert_eq!(json, outcome.name());
        }
        assert_eq!(Outcome::parse("of-a-newer-version"), None);
    }
}
