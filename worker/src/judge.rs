//! Decides what to do after a failed transaction. Pure: the input is the error, the number of
//! events and the group's history; the output is the next step.
//!
//! The SQLSTATE alone proves little, because a trigger may raise any SQLSTATE over one row. So the
//! worker stores a harmless event of the same family and rolls it back: a *rehearsal*. If the
//! rehearsal fails too, all events are affected and the worker waits. If it succeeds, single events
//! are at fault, and halving finds them. An event is blamed only when it is alone.

use shared::database::TransactionError;

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A row's data or a constraint.
    Row,
    /// A lock was not available in time.
    Locked,
    /// A deadlock or a serialization failure, which can be retried.
    Contention,
    /// A statement timeout.
    Slow,
    /// Usually a row's fault: an exception of a trigger, a limit, an unsupported feature.
    Suspect,
    /// Usually the database's fault: a missing grant, an older schema, a full disk.
    Environment,
    /// The connection was lost during the transaction. A row may have crashed Postgres, but usually
    /// Postgres or the network failed for another reason.
    Lost,
    /// Postgres was not available, or the outcome of the commit is unknown. This says nothing about
    /// rows.
    Away,
}

impl Class {
    /// The class of an error, by its SQLSTATE (Postgres manual, appendix A).
    pub fn of(error: &TransactionError) -> Self {
        match error {
            TransactionError::Deadline
            | TransactionError::CommitDeadline
            | TransactionError::NotBegun(_)
            | TransactionError::NotConnected(_) => Self::Away,
            TransactionError::Database(sqlx::Error::Database(database)) => {
                Self::of_sqlstate(database.code().as_deref().unwrap_or_default())
            }
            TransactionError::Database(sqlx::Error::Encode(_)) => Self::Row,
            TransactionError::Database(sqlx::Error::InvalidArgument(_)) => Self::Suspect,
            TransactionError::Database(sqlx::Error::Io(_)) => Self::Lost,
            TransactionError::Database(_) => Self::Environment,
        }
    }

    /// As [`Class::of`], for a SQLSTATE.
    pub fn of_sqlstate(sqlstate: &str) -> Self {
        match sqlstate {
            // lock_not_available
            "55P03" => return Self::Locked,
            // serialization_failure, deadlock_detected
            "40001" | "40P01" => return Self::Contention,
            // query_canceled
            "57014" => return Self::Slow,
            _ => {}
        }
        match sqlstate.get(..2) {
            // Data exception; integrity constraint violation.
            Some("22" | "23") => Self::Row,
            // Feature not supported; program limit exceeded; PL/pgSQL; internal error.
            Some("0A" | "54" | "P0" | "XX") => Self::Suspect,
            // Connection exception: a pooler reports this way that it lost the server.
            Some("08") => Self::Lost,
            _ => Self::Environment,
        }
    }
}

/// The number of events in the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// One, which can be blamed.
    One,
    /// Several, one of which may be at fault.
    Many,
}

/// The result of a rehearsal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rehearsal {
    /// A harmless event could be stored.
    Passed,
    /// A harmless event could not be stored either.
    Failed,
}

/// What is known of a group of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The number of failures, including the last one.
    pub failures: u32,
    /// The number of failures that each followed a successful rehearsal.
    pub confirmed: u32,
    /// The rehearsal since the last failure.
    pub rehearsal: Option<Rehearsal>,
    /// Whether its locked events have been looked for.
    pub locks_known: bool,
}

impl History {
    /// Records a failure. The rehearsal before it counts for it.
    pub fn failed(&mut self) {
        self.failures += 1;
        match self.rehearsal.take() {
            Some(Rehearsal::Passed) => self.confirmed += 1,
            Some(Rehearsal::Failed) => self.confirmed = 0,
            None => {}
        }
    }
}

/// What to do with a group that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try it again immediately.
    Retry,
    /// Rehearse and judge again.
    Rehearse,
    /// Find the events with locked rows, and continue with the others.
    FindLocked,
    /// Try each half separately.
    Halve,
    /// Try small groups, and in the end single events, with short timeouts.
    Scatter,
    /// Wait a moment, rehearse, and if that succeeds, try it again.
    RehearseLater,
    /// All events are affected: wait and try again. No attempt is spent.
    Hold,
    /// Defer the event without spending an attempt.
    Defer,
    /// The event is at fault: an attempt is spent.
    Blame,
}

/// The number of retries of one event after contention, before it is treated like other failures.
const RETRIES: u32 = 3;

/// The same for a group: each half has its own retries, which adds up.
const GROUP_RETRIES: u32 = 1;

/// An event is blamed for a failure that is usually the database's fault only after this many
/// failures, each right after a successful rehearsal.
const CONFIRMATIONS: u32 = 3;

/// The next step for a group that has just failed; `history` includes that failure.
///
/// ```
/// use worker::judge::{Class, History, Size, Verdict, judge};
///
/// let mut history = History::default();
/// history.failed();
/// // A constraint is violated: halve until the event at fault is alone, and blame it.
/// let class = Class::of_sqlstate("23514");
/// assert_eq!(judge(class, Size::Many, &history), Verdict::Halve);
/// assert_eq!(judge(class, Size::One, &history), Verdict::Blame);
/// // Postgres is not available: no event is at fault.
/// assert_eq!(judge(Class::Away, Size::One, &history), Verdict::Hold);
/// ```
pub fn judge(class: Class, size: Size, history: &History) -> Verdict {
    let confirmed = history.confirmed;
    match (class, size) {
        (Class::Away, _) => Verdict::Hold,
        // Halving blames no event, so it needs no rehearsal.
        (Class::Row | Class::Lost, Size::Many) => Verdict::Halve,
        (Class::Row, Size::One) => Verdict::Blame,
        (Class::Contention, Size::One) if history.failures <= RETRIES => Verdict::Retry,
        (Class::Contention, Size::Many) if history.failures <= GROUP_RETRIES => Verdict::Retry,
        // A random disconnect rarely hits only the real event three times in a row.
        (Class::Lost | Class::Environment | Class::Contention, Size::One) => {
            if confirmed < CONFIRMATIONS {
                Verdict::RehearseLater
            } else {
                Verdict::Blame
            }
        }
        (Class::Suspect, Size::One) if confirmed > 0 => Verdict::Blame,
        (Class::Locked, _) if !history.locks_known => Verdict::FindLocked,
        // No known row is locked, and yet only this event meets a lock.
        (Class::Locked, Size::One) if confirmed > 0 => Verdict::Defer,
        (_, size) => match (history.rehearsal, size) {
            (None, _) => Verdict::Rehearse,
            (Some(Rehearsal::Failed), _) => Verdict::Hold,
            (Some(Rehearsal::Passed), Size::Many) if class == Class::Slow => Verdict::Scatter,
            (Some(Rehearsal::Passed), Size::Many) => Verdict::Halve,
            // Its next attempt, from the spool, has more time.
            (Some(Rehearsal::Passed), Size::One) if class == Class::Slow => Verdict::Blame,
            (Some(Rehearsal::Passed), Size::One) => Verdict::Retry,
        },
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("22P05", Class::Row)]
    #[case("22003", Class::Row)]
    #[case("23514", Class::Row)]
    #[case("54001", Class::Suspect)]
    #[case("P0001", Class::Suspect)]
    #[case("XX000", Class::Suspect)]
    #[case("57014", Class::Slow)]
    #[case("55P03", Class::Locked)]
    #[case("40001", Class::Contention)]
    #[case("40P01", Class::Contention)]
    #[case("08006", Class::Lost)]
    #[case("08P01", Class::Lost)]
    #[case("25006", Class::Environment)]
    #[case("42501", Class::Environment)]
    #[case("42P01", Class::Environment)]
    #[case("53100", Class::Environment)]
    #[case("53300", Class::Environment)]
    #[case("57P01", Class::Environment)]
    #[case("57P02", Class::Environment)]
    #[case("", Class::Environment)]
    fn the_class_follows_the_sqlstate(#[case] sqlstate: &str, #[case] expected: Class) {
        assert_eq!(Class::of_sqlstate(sqlstate), expected);
    }

    #[test]
    fn a_lost_connection_says_something_only_in_the_middle_of_a_transaction() {
        let lost = || sqlx::Error::Io(std::io::ErrorKind::UnexpectedEof.into());
        assert_eq!(Class::of(&TransactionError::Database(lost())), Class::Lost);
        assert_eq!(Class::of(&TransactionError::NotBegun(lost())), Class::Away);
        assert_eq!(Class::of(&TransactionError::CommitDeadline), Class::Away);
    }

    const FIRST: History = History {
        failures: 1,
        confirmed: 0,
        rehearsal: None,
        locks_known: false,
    };
    const PASSED: History = History {
        rehearsal: Some(Rehearsal::Passed),
        ..FIRST
    };
    const FAILED: History = History {
        rehearsal: Some(Rehearsal::Failed),
        ..FIRST
    };
    const CONFIRMED: History = History {
        failures: 2,
        confirmed: 1,
        ..FIRST
    };
    const TWICE: History = History {
        confirmed: 2,
        ..CONFIRMED
    };
    const THRICE: History = History {
        confirmed: 3,
        ..CONFIRMED
    };
    const EXHAUSTED: History = History {
        failures: RETRIES + 1,
        ..FIRST
    };
    const LOCKS_KNOWN: History = History {
        locks_known: true,
        ..FIRST
    };
    const LOCKS_KNOWN_AND_CONFIRMED: History = History {
        locks_known: true,
        ..CONFIRMED
    };
    const LOCKS_KNOWN_AND_FAILED: History = History {
        locks_known: true,
        ..FAILED
    };
    const LOCKS_KNOWN_AND_PASSED: History = History {
        locks_known: true,
        ..PASSED
    };

    #[rstest]
    #[case(Class::Row, Size::Many, FIRST, Verdict::Halve)]
    #[case(Class::Row, Size::One, FIRST, Verdict::Blame)]
    #[case(Class::Away, Size::Many, THRICE, Verdict::Hold)]
    #[case(Class::Away, Size::One, THRICE, Verdict::Hold)]
    #[case(Class::Locked, Size::Many, FIRST, Verdict::FindLocked)]
    #[case(Class::Locked, Size::Many, LOCKS_KNOWN, Verdict::Rehearse)]
    #[case(Class::Locked, Size::Many, LOCKS_KNOWN_AND_PASSED, Verdict::Halve)]
    #[case(Class::Locked, Size::One, FIRST, Verdict::FindLocked)]
    #[case(Class::Locked, Size::One, LOCKS_KNOWN, Verdict::Rehearse)]
    #[case(Class::Locked, Size::One, LOCKS_KNOWN_AND_PASSED, Verdict::Retry)]
    #[case(Class::Locked, Size::One, LOCKS_KNOWN_AND_CONFIRMED, Verdict::Defer)]
    #[case(Class::Locked, Size::One, LOCKS_KNOWN_AND_FAILED, Verdict::Hold)]
    #[case(Class::Contention, Size::Many, FIRST, Verdict::Retry)]
    #[case(Class::Contention, Size::Many, EXHAUSTED, Verdict::Rehearse)]
    #[case(Class::Contention, Size::One, FIRST, Verdict::Retry)]
    #[case(Class::Contention, Size::One, EXHAUSTED, Verdict::RehearseLater)]
    #[case(Class::Slow, Size::Many, FIRST, Verdict::Rehearse)]
    #[case(Class::Slow, Size::Many, PASSED, Verdict::Scatter)]
    #[case(Class::Slow, Size::Many, FAILED, Verdict::Hold)]
    #[case(Class::Slow, Size::One, FIRST, Verdict::Rehearse)]
    #[case(Class::Slow, Size::One, PASSED, Verdict::Blame)]
    #[case(Class::Slow, Size::One, FAILED, Verdict::Hold)]
    #[case(Class::Suspect, Size::Many, FIRST, Verdict::Rehearse)]
    #[case(Class::Suspect, Size::Many, PASSED, Verdict::Halve)]
    #[case(Class::Suspect, Size::Many, FAILED, Verdict::Hold)]
    #[case(Class::Suspect, Size::One, FIRST, Verdict::Rehearse)]
    #[case(Class::Suspect, Size::One, PASSED, Verdict::Retry)]
    #[case(Class::Suspect, Size::One, FAILED, Verdict::Hold)]
    #[case(Class::Suspect, Size::One, CONFIRMED, Verdict::Blame)]
    #[case(Class::Environment, Size::Many, FIRST, Verdict::Rehearse)]
    #[case(Class::Environment, Size::Many, PASSED, Verdict::Halve)]
    #[case(Class::Environment, Size::Many, FAILED, Verdict::Hold)]
    #[case(Class::Environment, Size::One, FIRST, Verdict::RehearseLater)]
    #[case(Class::Environment, Size::One, TWICE, Verdict::RehearseLater)]
    #[case(Class::Environment, Size::One, THRICE, Verdict::Blame)]
    #[case(Class::Lost, Size::Many, FIRST, Verdict::Halve)]
    #[case(Class::Lost, Size::One, FIRST, Verdict::RehearseLater)]
    #[case(Class::Lost, Size::One, TWICE, Verdict::RehearseLater)]
    #[case(Class::Lost, Size::One, THRICE, Verdict::Blame)]
    fn a_verdict_follows_from_class_size_and_history(
        #[case] class: Class,
        #[case] size: Size,
        #[case] history: History,
        #[case] expected: Verdict,
    ) {
        assert_eq!(judge(class, size, &history), expected);
    }

    #[test]
    fn a_rehearsal_counts_for_the_failure_that_follows_it() {
        let mut history = History::default();
        for (rehearsal, confirmed) in [
            (None, 0),
            (Some(Rehearsal::Passed), 1),
            (None, 1),
            (Some(Rehearsal::Passed), 2),
            (Some(Rehearsal::Failed), 0),
        ] {
            history.rehearsal = rehearsal;
            history.failed();
            assert_eq!(history.confirmed, confirmed, "{rehearsal:?}");
            assert_eq!(history.rehearsal, None);
        }
        assert_eq!(history.failures, 5);
    }

    /// If rehearsals succeed, an event that is alone is always judged in the end, and a group is
    /// always divided. If they fail, neither happens.
    #[rstest]
    #[case(Rehearsal::Passed)]
    #[case(Rehearsal::Failed)]
    fn the_end_depends_on_the_rehearsals(
        #[values(
            Class::Locked,
            Class::Contention,
            Class::Slow,
            Class::Suspect,
            Class::Environment
        )]
        class: Class,
        #[values(Size::One, Size::Many)] size: Size,
        #[case] rehearsal: Rehearsal,
    ) {
        let mut history = History::default();
        let mut last = Verdict::Hold;
        for _ in 0..20 {
            history.failed();
            last = judge(class, size, &history);
            while matches!(last, Verdict::Rehearse | Verdict::FindLocked) {
                history.locks_known = true;
                history.rehearsal = Some(rehearsal);
                last = judge(class, size, &history);
            }
            match last {
                Verdict::RehearseLater => history.rehearsal = Some(rehearsal),
                Verdict::Retry | Verdict::Hold => {}
                _ => break,
            }
        }
        let is_settled = matches!(
            last,
            Verdict::Defer | Verdict::Blame | Verdict::Halve | Verdict::Scatter
        );
        assert_eq!(is_settled, rehearsal == Rehearsal::Passed, "{last:?}");
    }
}
