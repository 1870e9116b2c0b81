//! The kinds of problems that an event can have, told by how the problem's text begins: the text is
//! what every version has stored.

use std::fmt;

use shared::{AcceptedEvent, Family, database::TransactionError};
use sqlx::{Postgres, QueryBuilder};

/// Of a second body under an id that is taken.
pub const CONFLICT: &str = "another body was accepted under this webhook id before";

/// Of a message that somebody else than ingest published.
pub const UNIDENTIFIED: &str =
    "the message had no id that ingest gives, so it did not come from there";

/// Begins that of an event that came by the queue of another family.
pub const MISROUTED: &str = "it came by the queue of";

/// The problem of an event that came to the worker of `family`, which is not its own.
pub fn misrouted(family: Family) -> String {
    format!("{MISROUTED} {family}, whose worker has no right to store it as an event of its type")
}

/// The problem that an event has before its body is looked at.
pub fn known_of(event: &AcceptedEvent) -> Option<String> {
    if event.is_unidentified() {
        Some(UNIDENTIFIED.to_owned())
    } else if event.is_conflict() {
        Some(CONFLICT.to_owned())
    } else {
        None
    }
}

/// Begins that of an event that an operator distrusts because its secret was stolen.
pub const DISTRUSTED: &str = "signed with a secret that is distrusted";

/// Why Postgres refuses an event, in its words. Its data exceptions quote values, as in `invalid input
/// syntax for type integer: "…"`, and a value of a body is nothing for a list or a log. All other errors
/// quote names of tables, columns and constraints.
pub fn refusal(error: &TransactionError) -> String {
    let words = error.to_string();
    match error.sqlstate() {
        Some(state) if state.starts_with(DATA_EXCEPTION) => without_quoted(&words),
        Some(_) | None => words,
    }
}

/// The class of SQLSTATEs that are about a value.
const DATA_EXCEPTION: &str = "22";

/// A value may have quotation marks itself, so all between the first and the last one goes.
fn without_quoted(words: &str) -> String {
    match (words.find('"'), words.rfind('"')) {
        (Some(first), Some(last)) if first < last => {
            format!("{}…{}", &words[..=first], &words[last..])
        }
        _ => words.to_owned(),
    }
}

/// Begins that of an event that kept stopping its worker.
pub const STOPPED_WORKER: &str = "stopped the worker";

/// That of a typed event without `data`.
pub const NO_DATA: &str = "the event has no `data`";

/// Begins that of an event whose `data` its family's parser refuses.
pub const WRONG_DATA: &str = "`data` is not that of the";

/// That of an event whose company its secret does not speak for.
pub const FOREIGN_COMPANY: &str = "the secret that verified it does not speak for its company";

/// That of an event whose resource is in its table as another company's.
pub const COMPANY_CHANGE: &str = "its resource belongs to another company";

/// A kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The body is no Pleo event.
    NotAnEvent,
    /// `data` is not what the event's type promises.
    WrongData,
    /// Postgres refused the row; the problem has its words.
    Refused,
    /// It stopped the worker again and again, so nobody has read it.
    StoppedWorker,
    /// Another body had been accepted under the same webhook id.
    Conflict,
    /// It did not come from ingest, so nobody has verified it.
    Unidentified,
    /// An operator distrusts the secret that it was signed with.
    Distrusted,
    /// Its secret is tied to other companies than the event's.
    ForeignCompany,
    /// Its resource belongs to another company, and never changes that.
    CompanyChange,
    /// It came by the queue of another family.
    Misrouted,
}

impl Kind {
    /// All of them.
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

    /// Whether more may be wrong than the body shows: a replay takes such events only one by one, as
    /// somebody has to decide about each.
    pub const fn is_withheld(self) -> bool {
        matches!(
            self,
            Self::Conflict | Self::Unidentified | Self::Distrusted | Self::Misrouted
        )
    }

    /// What its problems begin with. Nothing for [`Kind::Refused`]: its problems are all that begin
    /// like no other kind's.
    pub const fn beginnings(self) -> &'static [&'static str] {
        match self {
            Self::NotAnEvent => &["the body is ", "the body has ", "`eventType` is "],
            Self::WrongData => &[WRONG_DATA, NO_DATA],
            Self::Refused => &[],
            Self::StoppedWorker => &[STOPPED_WORKER],
            Self::Conflict => &[CONFLICT],
            // As well as an earlier version's words.
            Self::Unidentified => &["the message had no id"],
            Self::Distrusted => &[DISTRUSTED],
            Self::ForeignCompany => &[FOREIGN_COMPANY],
            Self::CompanyChange => &[COMPANY_CHANGE],
            Self::Misrouted => &[MISROUTED],
        }
    }

    /// Appends to a query on `events` that the problem is of this kind, as [`Kind::of`] tells it.
    pub fn push_condition(self, query: &mut QueryBuilder<Postgres>) {
        let (verb, kinds) = match self {
            Self::Refused => (" and problem is not null and not exists", &Self::ALL[..]),
            _ => (" and exists", std::slice::from_ref(&self)),
        };
        let beginnings: Vec<&str> = kinds
            .iter()
            .flat_map(|kind| kind.beginnings())
            .copied()
            .collect();
        query.push(verb).push(" (select from unnest(");
        query.push_bind(beginnings);
        query.push("::text[]) as beginning where starts_with(problem, beginning))");
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
