//! The events of a drill. The seed determines all of them, so a drill can be repeated.

use chrono::{DateTime, TimeDelta, Utc};

/// How many events are states of one resource.
const STATES: u64 = 8;

/// A vendor that gets new states for as long as the drill lasts.
pub(super) const BUSY_VENDOR: &str = "busy";

/// How an event must be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A state in `vendors`.
    Vendor,
    /// A state in `export_jobs`.
    ExportJob,
    /// A row in `events` only.
    Other,
    /// A row in `events` with a problem.
    Malformed,
}

/// One event, signed again whenever it is sent.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// `webhook-id`, unique in the drill and, because of the seed, among drills.
    pub(super) webhook_id: String,
    /// The request body, unique like the id.
    pub(super) body: String,
}

/// The properties that an event's number determines.
pub fn kind(number: u64) -> Kind {
    match number / STATES % 10 {
        0..4 => Kind::Vendor,
        4..8 => Kind::ExportJob,
        8 => Kind::Other,
        _ => Kind::Malformed,
    }
}

/// The `number`th event of the drill with this seed.
///
/// Eight consecutive events are states of one resource, and the newest of them is sent first. So a worker
/// that trusted the order of arrival would end with the wrong state. Of eight states of a vendor the oldest
/// is replaced by one of [`BUSY_VENDOR`].
pub(super) fn event(seed: u64, number: u64) -> Event {
    let newest_first = number ^ (STATES - 1);
    let resource = if kind(number) == Kind::Vendor && newest_first.is_multiple_of(STATES) {
        BUSY_VENDOR.to_owned()
    } else {
        format!("{seed:x}-{}", number / STATES)
    };
    let time = time(newest_first);
    let body = match kind(number) {
        Kind::Vendor => format!(
            r#"{{"eventId":"{seed:x}-{number}","eventType":"v1.vendor.updated","data":{{"id":"{resource}","companyId":"c","name":"n {number}","state":"ACTIVE","updatedAt":"{time}"}}}}"#
        ),
        Kind::ExportJob => format!(
            r#"{{"eventId":"{seed:x}-{number}","eventType":"v1.export-job.created","data":{{"id":"{resource}","companyId":"c","status":"pending","numberOfItems":{number},"lastUpdatedAt":"{time}"}}}}"#
        ),
        Kind::Other => format!(
            r#"{{"eventId":"{seed:x}-{number}","eventType":"v1.card.updated","data":{{"id":"{resource}"}}}}"#
        ),
        Kind::Malformed if number.is_multiple_of(2) => format!("neither JSON nor lost: {number}"),
        Kind::Malformed => format!(
            r#"{{"eventId":"{seed:x}-{number}","eventType":"v1.vendor.created","data":{{"id":{number}}}}}"#
        ),
    };
    Event {
        webhook_id: format!("{}{number}", prefix(seed)),
        body,
    }
}

/// The number of the event with this id, if it is one of the drill with this seed.
pub(super) fn number_of(seed: u64, webhook_id: &str) -> Option<u64> {
    webhook_id.strip_prefix(&prefix(seed))?.parse().ok()
}

fn prefix(seed: u64) -> String {
    format!("msg_{seed:x}_")
}

fn time(second: u64) -> String {
    let seconds = TimeDelta::seconds(i64::try_from(second).unwrap_or(i64::MAX));
    let start = DateTime::<Utc>::from_timestamp(1_767_225_600, 0).expect("a time in this epoch");
    (start + seconds).to_rfc3339()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{event, number_of};

    #[test]
    fn ids_and_bodies_are_unique_and_numbers_come_back() {
        let events: Vec<_> = (0..1_000).map(|number| event(7, number)).collect();
        let ids: HashSet<_> = events.iter().map(|event| &event.webhook_id).collect();
        let bodies: HashSet<_> = events.iter().map(|event| &event.body).collect();
        assert_eq!((ids.len(), bodies.len()), (1_000, 1_000));
        assert_eq!(number_of(7, &events[412].webhook_id), Some(412));
        assert_eq!(number_of(8, &events[412].webhook_id), None);
    }
}
