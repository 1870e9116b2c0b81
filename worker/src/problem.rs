//! Problems of events: a kind for programs, and a text for people. Whoever writes a problem writes
//! its kind beside it, into `events.problem_kind`. No kind is recognised by a text.

use std::fmt;

use shared::{AcceptedEvent, Family, database::TransactionError};
use sqlx::{Postgres, QueryBuilder};

/// Why an event has no typed row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its kind.
    pub kind: Kind,
    /// The reason in words. It has no values of bodies.
    pub text: String,
}

impl Problem {
    /// A problem of this kind.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { kind, text }
    }
}

/// The text of a second body under one id.
pub const CONFLICT: &str = "another body was accepted under this webhook id before";

/// The text of a message that ingest did not publish.
pub const UNIDENTIFIED: &str =
    "the message had no id that ingest gives, so it did not come from there";

/// The problem of an event that came on the queue of `family`, which is not its own family.
pub fn misrouted(family: Family) -> Problem {
    let text = format!(
        "it came by the queue of {family}, whose worker has no right to store it as an event of its type"
    );
    Problem::new(Kind::Misrouted, text)
}

/// A problem that is known before the body is parsed.
pub fn known_of(event: &AcceptedEvent) -> Option<Problem> {
    if event.is_unidentified() {
        Some(Problem::new(Kind::Unidentified, UNIDENTIFIED))
    } else if event.is_conflict() {
        Some(Problem::new(Kind::Conflict, CONFLICT))
    } else {
        None
    }
}

/// The beginning of the text for an event whose secret was stolen, so that an operator distrusts it.
pub const DISTRUSTED: &str = "signed with a secret that is distrusted";

/// Postgres' reason for refusing an event. Its data exceptions quote values, as in `invalid input
/// syntax for type integer: "…"`, and values of bodies must not appear in lists or logs. All other
/// errors quote only names of tables, columns and constraints.
pub fn refusal(error: &TransactionError) -> String {
    let words = error.to_string();
    match error.sqlstate() {
        Some(state) if state.starts_with(DATA_EXCEPTION) => without_quoted(&words),
        Some(_) | None => words,
    }
}

/// The class of SQLSTATEs for data exceptions.
const DATA_EXCEPTION: &str = "22";

/// Removes everything between the first and the last quotation mark, because the value may contain
/// some.
fn without_quoted(words: &str) -> String {
    match (words.find('"'), words.rfind('"')) {
        (Some(first), Some(last)) if first < last => {
            format!("{}…{}", &words[..=first], &words[last..])
        }
        _ => words.to_owned(),
    }
}

/// The beginning of the text for an event that kept stopping its worker.
pub const STOPPED_WORKER: &str = "stopped the worker";

/// The text for a typed event without `data`.
pub const NO_DATA: &str = "the event has no `data`";

/// The beginning of the text for an event whose `data` its family's parser refuses.
pub const WRONG_DATA: &str = "`data` is not that of the";

/// The text for an event whose company its secret is not tied to.
pub const FOREIGN_COMPANY: &str = "the secret that verified it does not speak for its company";

/// The text for an event whose resource belongs to another company in the typed table.
pub const COMPANY_CHANGE: &str = "its resource belongs to another company";

/// A kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The body is no Pleo event.
    NotAnEvent,
    /// `data` does not match the event's type.
    WrongData,
    /// Postgres refused the row; the problem is its message.
    Refused,
    /// It stopped the worker repeatedly, so its body was not parsed.
    StoppedWorker,
    /// Another body was accepted before under the same webhook id.
    Conflict,
    /// Ingest did not publish it, so no signature was verified.
    Unidentified,
    /// An operator distrusts the secret that signed it.
    Distrusted,
    /// Its secret is tied to other companies.
    ForeignCompany,
    /// Its resource belongs to another company. A resource never changes its company.
    CompanyChange,
    /// It came on another family's queue.
    Misrouted,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::NotAnEvent,
        Self::WrongData,
        Self::Refused,
        Self::StoppedWorker,
        Self::Conflict,
        Self::Unidentified,
        Self::Distrusted,
        Self::ForeignCompany,
        Self::CompanyChange,
        Self::Misrouted,
    ];

    /// Its name for people and scripts, in kebab-case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotAnEvent => "not-an-event",
            Self::WrongData => "wrong-data",
            Self::Refused => "refused",
            Self::StoppedWorker => "stopped-worker",
            Self::Conflict => "conflict",
            Self::Unidentified => "unidentified",
            Self::Distrusted => "distrusted",
            Self::ForeignCompany => "foreign-company",
            Self::CompanyChange => "company-change",
            Self::Misrouted => "misrouted",
        }
    }

    /// Whether the event may be wrong beyond its body. A replay takes such events only one by one,
    /// after an operator's decision about each.
    pub const fn is_withheld(self) -> bool {
        matches!(
            self,
            Self::Conflict | Self::Unidentified | Self::Distrusted | Self::Misrouted
        )
    }

    /// The kind with this [`name`](Self::name).
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind to show for a problem with this `problem_kind`. An older version may have written
    /// none, and a newer one may have kinds that this one does not know.
    pub fn shown(stored: Option<&str>) -> Self {
        stored.and_then(Self::named).unwrap_or(Self::Refused)
    }

    /// Appends to a query on `events` the condition that the event has a problem, which
    /// [is shown](Self::shown) as one of this kind.
    pub fn push_condition(self, query: &mut QueryBuilder<Postgres>) {
        query.push(" and problem is not null and ");
        match self {
            Self::Refused => {
                let others = Self::ALL.into_iter().filter(|kind| *kind != self);
                let others: Vec<&str> = others.map(Self::name).collect();
                query.push("(problem_kind is null or problem_kind <> all(");
                query.push_bind(others).push("))");
            }
            _ => {
                query.push("problem_kind = ").push_bind(self.name());
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_kind_is_found_by_its_name() {
        for kind in Kind::ALL {
            assert_eq!(Kind::named(kind.name()), Some(kind));
            assert_eq!(Kind::shown(Some(kind.name())), kind);
        }
        assert_eq!(Kind::shown(Some("of-a-newer-version")), Kind::Refused);
        assert_eq!(Kind::shown(None), Kind::Refused);
    }

    #[rstest]
    #[case(r#"for type integer: "Acme""#, r#"for type integer: "…""#)]
    #[case(r#"value "47"11" is out of range"#, r#"value "…" is out of range"#)]
    #[case("value too long", "value too long")]
    #[case(r#"one " alone"#, r#"one " alone"#)]
    fn what_postgres_quotes_is_left_out(#[case] words: &str, #[case] expected: &str) {
        assert_eq!(without_quoted(words), expected);
    }
}
