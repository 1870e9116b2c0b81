//! Turns an accepted event into its rows. Pure: the same event always gives the same rows.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use shared::{Companies, EventType, Family, envelope::Envelope};

use crate::{
    families::{Text, Typed},
    jsonb,
    problem::{self, Kind, Problem},
    work::Work,
};

/// The body, by the column that can hold it.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// `events.payload`
    Json(String),
    /// `events.raw`
    Raw(Bytes),
}

/// The rows of an event: one of `events`, and one of a typed table unless there is a problem.
#[derive(Clone, Debug)]
pub struct Record {
    /// The event's id, which is its row's key.
    pub webhook_id: String,
    /// The type that the body names.
    pub event_type: EventType,
    /// Pleo's id of the event.
    pub event_id: Option<Text>,
    /// `data.companyId`
    pub company_id: Option<Text>,
    /// `data.companyId` exists but is not an id, or occurs twice.
    company_is_unclear: bool,
    /// `data.id`
    pub resource_id: Option<Text>,
    /// The body.
    pub body: Body,
    /// Why there is no typed row.
    pub problem: Option<Problem>,
    /// The typed row.
    pub typed: Option<Typed>,
}

impl Record {
    /// Parses the event. What cannot be parsed becomes the record's problem; no event is refused.
    pub fn new(work: &Work) -> Self {
        let record = Self::of_any_company(work);
        match &work.event.secret_companies {
            Some(companies) if !record.may_be_of(companies) => Self {
                problem: Some(Problem::new(Kind::ForeignCompany, problem::FOREIGN_COMPANY)),
                typed: None,
                ..record
            },
            Some(_) | None => record,
        }
    }

    /// Whether it names one of these companies, or no company at all.
    fn may_be_of(&self, companies: &Companies) -> bool {
        match &self.company_id {
            Some(company) => companies.include(company.as_str()),
            None => !self.company_is_unclear,
        }
    }

    /// The record without regard to the companies of its secret.
    fn of_any_company(work: &Work) -> Self {
        match &work.problem {
            None => Self::read(work),
            Some(problem) if problem.kind == Kind::Conflict => Self {
                problem: Some(problem.clone()),
                typed: None,
                ..Self::read(work)
            },
            // Parsing may be what stopped the worker, so the body is not parsed.
            Some(problem) => {
                let raw = Body::Raw(work.event.body.clone());
                Self::unread(work, raw, problem.clone())
            }
        }
    }

    fn read(work: &Work) -> Self {
        let body = match jsonb::as_jsonb(&work.event.body) {
            Some(text) => Body::Json(text.to_owned()),
            None => Body::Raw(work.event.body.clone()),
        };
        let envelope = match Envelope::parse(&work.event.body) {
            Ok(envelope) => envelope,
            Err(error) => {
                let problem = Problem::new(Kind::NotAnEvent, error.to_string());
                return Self::unread(work, body, problem);
            }
        };
        let ids = envelope.data.map_or_else(Ids::default, Ids::of);
        let typed = Typed::parse(
            envelope.event_type.family(),
            envelope.data,
            &work.event.webhook_id,
            work.event.received_at,
        );
        let (typed, problem) = match typed {
            Ok(typed) => (typed, None),
            Err(reason) => (None, Some(Problem::new(Kind::WrongData, reason))),
        };
        Self {
            webhook_id: work.event.webhook_id.clone(),
            event_id: envelope.event_id.and_then(|id| id_of(id.into_owned())),
            event_type: envelope.event_type,
            company_id: ids.company,
            company_is_unclear: ids.company_is_unclear,
            resource_id: ids.resource,
            body,
            problem: problem.map(storable),
            typed,
        }
    }

    /// The record that the worker of `family` may store. An event of another family gets a problem
    /// that withholds it from replays.
    pub fn taken_by(self, family: Family) -> Self {
        if self.is_withheld() || self.event_type.family() == family {
            return self;
        }
        let misrouted = problem::misrouted(family);
        Self {
            problem: Some(match self.problem {
                Some(problem) => storable(besides(&misrouted, &problem.text)),
                None => misrouted,
            }),
            typed: None,
            ..self
        }
    }

    fn is_withheld(&self) -> bool {
        self.withholding().is_some()
    }

    /// The problem that withholds the event from replays.
    fn withholding(&self) -> Option<&Problem> {
        let problem = self.problem.as_ref();
        problem.filter(|problem| problem.kind.is_withheld())
    }

    /// Keeps the body as bytes, because Postgres does not accept it as JSON.
    pub fn as_bytes(self, work: &Work) -> Self {
        Self {
            body: Body::Raw(work.event.body.clone()),
            ..self
        }
    }

    /// Drops what Postgres may have refused, the typed row and the body as JSON, and records the
    /// reason. A problem that withholds the event is kept too.
    pub fn with_refusal(self, work: &Work, reason: &str) -> Self {
        let problem = match self.withholding() {
            Some(known) => besides(known, reason),
            None => Problem::new(Kind::Refused, reason),
        };
        Self {
            problem: Some(storable(problem)),
            typed: None,
            ..self.as_bytes(work)
        }
    }

    /// Drops the typed row, because its resource belongs to another company in the table.
    pub fn of_another_company(self) -> Self {
        Self {
            problem: Some(Problem::new(Kind::CompanyChange, problem::COMPANY_CHANGE)),
            typed: None,
            ..self
        }
    }

    fn unread(work: &Work, body: Body, problem: Problem) -> Self {
        Self {
            webhook_id: work.event.webhook_id.clone(),
            event_type: work.event.event_type.clone(),
            event_id: None,
            company_id: None,
            company_is_unclear: false,
            resource_id: None,
            body,
            problem: Some(storable(problem)),
            typed: None,
        }
    }
}

/// A problem with a second reason. The kind stays.
fn besides(problem: &Problem, reason: &str) -> Problem {
    Problem::new(problem.kind, format!("{}; besides: {reason}", problem.text))
}

/// Makes a problem storable: a parser's message may quote the body, with NUL and at any length.
fn storable(problem: Problem) -> Problem {
    const LONGEST: usize = 1_000;
    let mut text = problem.text.replace('\0', "\u{fffd}");
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    Problem { text, ..problem }
}

/// The id, unless it is blank or Postgres cannot store it.
fn id_of(text: String) -> Option<Text> {
    Text::new(text).filter(|text| !text.is_blank())
}

/// The ids by which events of every type can be found.
#[derive(Default)]
struct Ids {
    company: Option<Text>,
    company_is_unclear: bool,
    resource: Option<Text>,
}

impl Ids {
    /// `companyId` and `id` of `data`, if they are ids.
    fn of(data: &RawValue) -> Self {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields<'a> {
            #[serde(borrow)]
            company_id: Option<&'a RawValue>,
            #[serde(borrow)]
            id: Option<&'a RawValue>,
        }
        let id = |value: Option<&RawValue>| id_of(serde_json::from_str(value?.get()).ok()?);
        // Only an object has fields; serde would accept an array as well.
        if !data.get().starts_with('{') {
            return Self::default();
        }
        // A duplicate key is an error here; other JSON readers use its last value.
        let Ok(fields) = serde_json::from_str::<Fields<'_>>(data.get()) else {
            return Self {
                company_is_unclear: true,
                ..Self::default()
            };
        };
        let company = id(fields.company_id);
        Self {
            company_is_unclear: company.is_none() && fields.company_id.is_some(),
            company,
            resource: id(fields.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::{TimeZone, Utc};
    use proptest::prelude::*;
    use rstest::rstest;
    use shared::{AcceptedEvent, message::Receipt};

    use super::*;
    use crate::work::Source;

    const VENDOR: &str = r#"{"id":"v1","companyId":"c1","name":"Acme","state":"DRAFT"}"#;
    const EXPORT_JOB: &str = r#"{"id":"j1","companyId":"c1","status":"pending"}"#;

    fn work(body: impl Into<Bytes>) -> Work {
        let body = body.into();
        Work {
            event: AcceptedEvent {
                webhook_id: "msg_1".to_owned(),
                event_type: EventType::unknown(),
                body_sha256: shared::message::body_sha256(&body),
                body,
                received_at: Utc.timestamp_opt(1_750_000_000, 0).unwrap(),
                attempted_at: None,
                secret_name: None,
                secret_companies: None,
            },
            receipt: Receipt::Recorded,
            attempts: 0,
            problem: None,
            source: Source::Queue,
        }
    }

    fn event(event_type: &str, data: &str) -> Record {
        Record::new(&work(format!(
            r#"{{"data":{data},"eventType":"{event_type}","eventId":"e1"}}"#
        )))
    }

    #[test]
    fn a_vendor_event_becomes_a_vendor() {
        let record = event("v1.vendor.created", VENDOR);
        assert_eq!(record.problem, None);
        assert!(matches!(record.typed, Some(Typed::Vendor(_))));
        assert_eq!(record.company_id.as_ref().map(Text::as_str), Some("c1"));
        assert_eq!(record.resource_id.as_ref().map(Text::as_str), Some("v1"));
        assert_eq!(record.event_id.as_ref().map(Text::as_str), Some("e1"));
        assert!(matches!(record.body, Body::Json(_)));
    }

    #[rstest]
    #[case("v1.export.job-created")]
    #[case("v2.export-job.updated")]
    fn every_spelling_and_version_of_an_export_job_becomes_one(#[case] event_type: &str) {
        let record = event(event_type, EXPORT_JOB);
        assert!(
            matches!(record.typed, Some(Typed::ExportJob(_))),
            "{record:?}"
        );
    }

    #[test]
    fn unknown_types_are_healthy_events_without_a_typed_row() {
        let record = event("v1.receipt.created", r#"{"id":"r1"}"#);
        assert_eq!(record.problem, None);
        assert!(record.typed.is_none());
        assert_eq!(record.resource_id.as_ref().map(Text::as_str), Some("r1"));
    }

    #[test]
    fn unknown_states_and_fields_are_stored() {
        let data = r#"{"id":"v1","companyId":"c1","name":"","state":"FROZEN","new":[1]}"#;
        let record = event("v1.vendor.created", data);
        assert!(matches!(record.typed, Some(Typed::Vendor(_))), "{record:?}");
    }

    /// The event was received at 2025-06-15T15:06:40Z.
    #[rstest]
    #[case("updatedAt", "2025-06-16T15:06:40Z", false)]
    #[case("updatedAt", "2025-06-16T15:06:40.000000001Z", true)]
    #[case("deletedAt", "+262142-12-31T23:59:59Z", true)]
    #[case("createdAt", "-004712-01-01T00:00:00Z", false)]
    fn a_state_of_the_future_is_a_problem(
        #[case] field: &str,
        #[case] time: &str,
        #[case] is_problem: bool,
    ) {
        let record = event(
            "v1.vendor.created",
            &format!(
                r#"{{"id":"v1","companyId":"c1","name":"n","state":"DRAFT","{field}":"{time}"}}"#
            ),
        );
        assert_eq!(record.typed.is_none(), is_problem, "{record:?}");
        let problem = text(record.problem);
        assert_eq!(problem.contains(&format!("`data.{field}`")), is_problem);
        assert!(!problem.contains(time), "{problem}");
    }

    #[rstest]
    #[case("v1.export-job.created", VENDOR, "`data.status` is missing")]
    #[case("v1.vendor.created", EXPORT_JOB, "`data.name` is missing")]
    #[case("v1.vendor.created", "null", "no `data`")]
    #[case("v1.vendor.created", "[]", "`data` is not that of the vendor")]
    #[case(
        "v1.export-job.created",
        r#"["j1","c1","pending",1,1,true,true,"","",null,null,null,null,null,null]"#,
        "`data`: expected an object, found an array"
    )]
    #[case(
        "v1.vendor.created",
        r#"{"id":"v1","companyId":"c1","name":"a\u0000","state":"DRAFT"}"#,
        "\\u0000"
    )]
    fn data_that_disagrees_with_its_type_is_a_problem(
        #[case] event_type: &str,
        #[case] data: &str,
        #[case] expected: &str,
    ) {
        let record = event(event_type, data);
        let problem = record.problem.expect("a problem");
        assert!(problem.text.contains(expected), "{problem:?}");
        assert_eq!(problem.kind, Kind::WrongData);
        assert!(record.typed.is_none());
        assert_eq!(record.event_type.as_str(), event_type);
    }

    #[rstest]
    #[case(r#""id":"""#, "`data.id`: expected an id, found a blank string")]
    #[case(r#""id":"  ""#, "`data.id`: expected an id, found a blank string")]
    #[case(
        r#""companyId":"""#,
        "`data.companyId`: expected an id, found a blank string"
    )]
    #[case(r#""id":4711"#, "`data.id`: expected a string, found an integer")]
    #[case(r#""id":null"#, "`data.id`: expected a string, found null")]
    #[case(
        r#""companyId":["4711"]"#,
        "`data.companyId`: expected a string, found an array"
    )]
    #[case(
        r#""name":{"secret":"4711"}"#,
        "`data.name`: expected a string, found an object"
    )]
    #[case(r#""state":true"#, "`data.state`: expected a string, found a boolean")]
    #[case(
        r#""createdAt":"4711""#,
        "`data.createdAt`: expected an RFC 3339 formatted date and time string, found a string"
    )]
    #[case(r#""deletedAt":4711.5"#, "`data.deletedAt`: expected an RFC 3339")]
    #[case(r#""code":"4711","code":5"#, "duplicate field `data.code`")]
    fn a_problem_names_the_field_and_the_kinds_and_no_value(
        #[case] field: &str,
        #[case] expected: &str,
    ) {
        let name = field.split_once(':').expect("a field").0;
        let others = [
            r#""id":"v1""#,
            r#""companyId":"c1""#,
            r#""name":"Acme""#,
            r#""state":"DRAFT""#,
        ];
        let others = others.into_iter().filter(|other| !other.starts_with(name));
        let fields: Vec<_> = others.chain([field]).collect();
        let record = event("v1.vendor.created", &format!("{{{}}}", fields.join(",")));
        let problem = record.problem.expect("a problem").text;
        assert!(problem.contains(expected), "{problem}");
        for quoted in ["4711", "secret", "Acme", "line 1"] {
            assert!(!problem.contains(quoted), "{problem}");
        }
        assert!(record.typed.is_none());
    }

    #[rstest]
    #[case(
        r#"{"id":"j1","companyId":"c1","status":"pending","numberOfItems":"4711"}"#,
        "`data.numberOfItems`: expected i64, found a string"
    )]
    #[case(
        r#"{"id":"j1","companyId":"c1","status":"pending","expiresIn":1.5}"#,
        "`data.expiresIn`: expected i64, found a number with a fraction"
    )]
    #[case(
        r#"{"id":"j1","companyId":"c1","status":"pending","isInteractive":"4711"}"#,
        "`data.isInteractive`: expected a boolean, found a string"
    )]
    fn so_does_the_problem_of_an_export_job(#[case] data: &str, #[case] expected: &str) {
        let problem = event("v1.export-job.created", data).problem;
        let problem = problem.expect("a problem").text;
        assert!(problem.contains(expected), "{problem}");
        assert!(!problem.contains("4711"), "{problem}");
    }

    #[test]
    fn a_problem_is_found_also_beside_what_is_nested_deeply() {
        let nested = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
        let data = format!(r#"{{"id":"","companyId":"c1","status":"pending","x":{nested}}}"#);
        let problem = event("v1.export-job.created", &data).problem;
        let problem = problem.expect("a problem").text;
        assert!(
            problem.ends_with("`data.x`: expected at most 127 levels, found more"),
            "{problem}"
        );
        let data = r#"{"id":"","companyId":"c1","status":"pending","y":[1],"n":1e999}"#;
        let problem = event("v1.export-job.created", data).problem;
        let problem = problem.expect("a problem").text;
        assert!(
            problem.ends_with("`data.n`: expected numbers up to 1.8e308, found a larger one"),
            "{problem}"
        );
    }

    #[test]
    fn a_blank_id_is_no_id_of_an_event() {
        let record = event("v1.card.created", r#"{"id":"","companyId":" "}"#);
        assert_eq!(record.problem, None);
        assert_eq!((record.resource_id, record.company_id), (None, None));
    }

    #[rstest]
    #[case(b"", "the body is empty")]
    #[case(b"hello", "the body is not a JSON object")]
    #[case(b"\xff\x00", "the body is not a JSON object")]
    #[case(b"{}", "no `eventType`")]
    fn what_is_no_event_is_kept_with_a_problem(
        #[case] body: &'static [u8],
        #[case] expected: &str,
    ) {
        let record = Record::new(&work(body));
        let problem = record.problem.expect("a problem");
        assert!(problem.text.contains(expected), "{problem:?}");
        assert_eq!(problem.kind, Kind::NotAnEvent);
        assert_eq!(record.event_type, EventType::unknown());
    }

    #[test]
    fn a_body_that_jsonb_cannot_hold_is_kept_as_bytes() {
        let data = r#"{"id":"v1","companyId":"c1","name":"a","state":"DRAFT","note":"\u0000"}"#;
        let record = event("v1.vendor.created", data);
        assert!(matches!(record.body, Body::Raw(_)));
        assert!(matches!(record.typed, Some(Typed::Vendor(_))), "{record:?}");
    }

    fn text(problem: Option<Problem>) -> String {
        problem.map(|problem| problem.text).unwrap_or_default()
    }

    fn foreign_company() -> Problem {
        Problem::new(Kind::ForeignCompany, problem::FOREIGN_COMPANY)
    }

    /// `c1` is the company of all these events.
    #[rstest]
    #[case("v1.vendor.created", VENDOR)]
    #[case("v1.export-job.created", EXPORT_JOB)]
    #[case("v1.card.created", r#"{"companyId":"c1"}"#)]
    // Without the secret's companies, this would be another problem.
    #[case("v1.vendor.created", r#"{"companyId":"c1"}"#)]
    fn an_event_of_a_company_that_its_secret_does_not_speak_for_is_a_problem(
        #[case] event_type: &str,
        #[case] data: &str,
        #[values(false, true)] is_conflict: bool,
    ) {
        let mut work = work(format!(
            r#"{{"data":{data},"eventType":"{event_type}","eventId":"e1"}}"#
        ));
        work.problem = is_conflict.then(|| Problem::new(Kind::Conflict, problem::CONFLICT));
        for companies in ["c2", "c2 c11", ""] {
            work.event.secret_companies = Some(Companies::read(companies));
            let record = Record::new(&work);
            assert_eq!(record.problem, Some(foreign_company()));
            assert!(record.typed.is_none());
            assert_eq!(record.company_id.as_ref().map(Text::as_str), Some("c1"));
        }
        let alone = Record::new(&Work {
            event: AcceptedEvent {
                secret_companies: None,
                ..work.event.clone()
            },
            ..work.clone()
        });
        work.event.secret_companies = Some(Companies::read("c2 c1"));
        assert_eq!(Record::new(&work).problem, alone.problem);
    }

    #[rstest]
    #[case("v1.card.created", r#"{"id":"r1"}"#, None)]
    #[case("v1.card.created", r#"{"companyId":null}"#, None)]
    #[case(
        "v1.vendor.created",
        r#"{"id":"v1","name":"n","state":"DRAFT"}"#,
        Some("`data.companyId` is missing")
    )]
    fn an_event_without_a_company_is_judged_as_ever(
        #[case] event_type: &str,
        #[case] data: &str,
        #[case] expected: Option<&str>,
    ) {
        let mut work = work(format!(r#"{{"data":{data},"eventType":"{event_type}"}}"#));
        work.event.secret_companies = Some(Companies::read("c1"));
        let record = Record::new(&work);
        assert_eq!(record.problem.is_some(), expected.is_some(), "{record:?}");
        assert!(text(record.problem).contains(expected.unwrap_or_default()));
        assert!(record.typed.is_none());
    }

    #[rstest]
    #[case(r#"{"companyId":"c1","companyId":"c2"}"#)]
    #[case(r#"{"companyId":"c1","company\u0049d":"c2"}"#)]
    #[case(r#"{"id":"r1","id":"r1","companyId":"c2"}"#)]
    #[case(r#"{"companyId":["c1"]}"#)]
    #[case(r#"{"companyId":""}"#)]
    fn an_event_whose_company_is_unclear_is_not_of_its_secret(
        #[case] data: &str,
        #[values("v1.card.created", "v1.vendor.created")] event_type: &str,
    ) {
        let mut work = work(format!(r#"{{"data":{data},"eventType":"{event_type}"}}"#));
        work.event.secret_companies = Some(Companies::read("c1"));
        let record = Record::new(&work);
        assert_eq!(record.problem, Some(foreign_company()));
        assert!(record.typed.is_none());
    }

    #[test]
    fn a_worker_takes_events_of_another_family_only_with_a_problem() {
        let vendor = || event("v1.vendor.created", VENDOR);
        let own = vendor().taken_by(Family::Vendor);
        assert!(own.problem.is_none() && own.typed.is_some(), "{own:?}");
        for family in [Family::ExportJob, Family::Other] {
            let taken = vendor().taken_by(family);
            assert_eq!(taken.problem, Some(problem::misrouted(family)));
            assert!(taken.typed.is_none(), "{taken:?}");
        }
        let no_vendor = event("v1.vendor.created", "{}").taken_by(Family::Other);
        let problem = no_vendor.problem.expect("both problems");
        assert_eq!(problem.kind, Kind::Misrouted);
        assert!(problem.text.contains("`data.id` is missing"), "{problem:?}");
    }

    #[test]
    fn a_refusal_is_a_problem_of_its_own_unless_another_one_withholds_the_event() {
        let mut work = work(format!(
            r#"{{"eventType":"v1.vendor.created","data":{VENDOR}}}"#
        ));
        let refused = Record::new(&work).with_refusal(&work, "too long").problem;
        assert_eq!(refused, Some(Problem::new(Kind::Refused, "too long")));
        work.problem = Some(Problem::new(Kind::Conflict, problem::CONFLICT));
        let refused = Record::new(&work).with_refusal(&work, "too long").problem;
        let refused = refused.expect("both problems");
        assert_eq!(refused.kind, Kind::Conflict);
        assert!(refused.text.ends_with("; besides: too long"), "{refused:?}");
    }

    #[test]
    fn what_stopped_the_worker_is_not_read_again() {
        let mut work = work(format!(
            r#"{{"eventType":"v1.vendor.created","data":{VENDOR}}}"#
        ));
        work.problem = Some(Problem::new(Kind::StoppedWorker, "stopped the worker"));
        let record = Record::new(&work);
        assert!(matches!(record.body, Body::Raw(_)));
        assert!(record.typed.is_none());
    }

    proptest! {
        #[test]
        fn no_body_panics_and_each_can_be_stored(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let record = Record::new(&work(body));
            prop_assert!(!text(record.problem).contains('\0'));
        }

        #[test]
        fn no_json_panics(json in json_text()) {
            let record = event("v1.vendor.created", &json);
            prop_assert!(record.typed.is_some() || record.problem.is_some());
        }
    }

    fn json_text() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            any::<String>().prop_map(|s| serde_json::to_string(&s).expect("a string")),
            Just(r#""2025-02-21T10:05:43.530450712Z""#.to_owned()),
        ];
        leaf.prop_recursive(3, 16, 6, |inner| {
            let key = prop_oneof![
                Just("id".to_owned()),
                Just("companyId".to_owned()),
                Just("name".to_owned()),
                Just("state".to_owned()),
                Just("createdAt".to_owned()),
                "[a-z]{1,4}",
            ];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4)
                    .prop_map(|items| format!("[{}]", items.join(","))),
                proptest::collection::hash_map(key, inner, 0..6).prop_map(|fields| {
                    let fields: Vec<_> = fields
                        .iter()
                        .map(|(k, v)| format!(r#""{k}":{v}"#))
                        .collect();
                    format!("{{{}}}", fields.join(","))
                }),
            ]
        })
    }
}
