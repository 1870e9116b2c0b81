//! The kinds of problems of events. A kind is recognised by the beginning of the problem's text,
//! because the text is what all versions have stored.

use std::fmt;

use shared::{AcceptedEvent, Family, database::TransactionError};
use sqlx::{Postgres, QueryBuilder};

/// The problem of a second body under one id.
pub const CONFLICT: &str = "another body was accepted under this webhook id before";

/// The problem of a message that ingest did not publish.
pub const UNIDENTIFIED: &str =
    "the message had no id that ingest gives, so it did not come from there";

/// The beginning of the problem of an event that came on another family's queue.
pub const MISROUTED: &str = "it came by the queue of";

/// The problem of an event that came on the queue of `family`, which is not its own family.
pub fn misrouted(family: Family) -> String {
    format!("{MISROUTED} {family}, whose worker has no right to store it as an event of its type")
}

/// A problem that is known before the body is parsed.
pub fn known_of(event: &AcceptedEvent) -> Option<String> {
    if event.is_unidentified() {
        Some(UNIDENTIFIED.to_owned())
    } else if event.is_conflict() {
        Some(CONFLICT.to_owned())
    } else {
        None
    }
}

/// The beginning of the problem of an event whose secret was stolen, so that an operator distrusts
/// it.
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

/// The beginning of the problem of an event that kept stopping its worker.
pub const STOPPED_WORKER: &str = "stopped the worker";

/// The problem of a typed event without `data`.
pub const NO_DATA: &str = "the event has no `data`";

/// The beginning of the problem of an event whose `data` its family's parser refuses.
pub const WRONG_DATA: &str = "`data` is not that of the";

/// The problem of an event whose company its secret is not tied to.
pub const FOREIGN_COMPANY: &str = "the secret that verified it does not speak for its company";

/// The problem of an event whose resource belongs to another company in the typed table.
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

    /// The beginnings of its problems. Empty for [`Kind::Refused`], which has all problems that
    /// match no other kind.
    pub const fn beginnings(self) -> &'static [&'static str] {
        match self {
            Self::NotAnEvent => &["the body is ", "the body has ", "`eventType` is "],
            Self::WrongData => &[WRONG_DATA, NO_DATA],
            Self::Refused => &[],
            Self::StoppedWorker => &[STOPPED_WORKER],
            Self::Conflict => &[CONFLICT],
            // This also matches the text of an earlier version.
            Self::Unidentified => &["the message had no id"],
            Self::Distrusted => &[DISTRUSTED],
            Self::ForeignCompany => &[FOREIGN_COMPANY],
            Self::CompanyChange => &[COMPANY_CHANGE],
            Self::Misrouted => &[MISROUTED],
        }
    }

    /// Appends to a query on `events` the condition that the problem is of this kind, by the same
    /// rule as [`Kind::of`].
    pub fn push_condition(self, query: &mut QueryBuilder<Postgres>) {
        let (verb, kinds) = match self {
            Self::Refused => (" and problem is not null and not ", &Self::ALL[..]),
            _ => (" and ", std::slice::from_ref(&self)),
        };
        let beginnings: Vec<&str> = kinds
            .iter()
            .flat_map(|kind| kind.beginnings())
            .copied()
            .collect();
        // The operator is `starts_with`. A subquery instead would be run for each row.
        query.push(verb).push("(problem ^@ any(");
        query.push_bind(beginnings).push("::text[]))");
    }

    /// The kind of a problem.
    pub fn of(problem: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|kind| kind.beginnings().iter().any(|b| problem.starts_with(b)))
            .unwrap_or(Self::Refused)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use rstest::rstest;
    use shared::{Family, envelope::Envelope};

    use super::*;
    use crate::families::Typed;

    #[rstest]
    #[case("")]
    #[case("[]")]
    #[case("{}")]
    #[case("{")]
    #[case(r#"{"eventType":"no type"}"#)]
    #[case(r#"{"eventType":5}"#)]
    #[case(r#"{"payload":5}"#)]
    #[case(r#"{"data":1,"data":2}"#)]
    fn every_reason_not_to_be_an_event_is_of_that_kind(#[case] body: &str) {
        let reason = Envelope::parse(body.as_bytes()).expect_err("no event");
        assert_eq!(Kind::of(&reason.to_string()), Kind::NotAnEvent);
    }

    #[rstest]
    #[case(
        "the body is not a JSON object: duplicate field `data` at line 1 column 17",
        Kind::NotAnEvent
    )]
    #[case(
        "`data` is not that of the vendor its type names: it is not an object",
        Kind::WrongData
    )]
    fn problems_of_earlier_versions_keep_their_kind(#[case] problem: &str, #[case] kind: Kind) {
        assert_eq!(Kind::of(problem), kind);
    }

    #[rstest]
    #[case(None)]
    #[case(Some("[]"))]
    #[case(Some("{}"))]
    #[case(Some(r#"{"id":"v","companyId":"c","name":"n","state":"DRAFT","updatedAt":"1970-01-02T00:00:01Z"}"#))]
    fn every_reason_not_to_be_typed_is_of_that_kind(#[case] data: Option<&str>) {
        let data = data.map(|json| serde_json::from_str(json).expect("JSON"));
        let reason = Typed::parse(Family::Vendor, data, "msg_1", DateTime::UNIX_EPOCH)
            .expect_err("no vendor");
        assert_eq!(Kind::of(&reason), Kind::WrongData);
    }

    #[rstest]
    #[case(r#"for type integer: "Acme""#, r#"for type integer: "…""#)]
    #[case(r#"value "47"11" is out of range"#, r#"value "…" is out of range"#)]
    #[case("value too long", "value too long")]
    #[case(r#"one " alone"#, r#"one " alone"#)]
    fn what_postgres_quotes_is_left_out(#[case] words: &str, #[case] expected: &str) {
        assert_eq!(without_quoted(words), expected);
    }

    #[test]
    fn an_event_of_another_queue_is_misrouted() {
        assert_eq!(Kind::of(&misrouted(Family::Vendor)), Kind::Misrouted);
    }

    #[test]
    fn what_postgres_says_is_a_refusal() {
        let words = "error returned from database: new row for relation \"vendors\" violates";
        assert_eq!(Kind::of(words), Kind::Refused);
    }
}
