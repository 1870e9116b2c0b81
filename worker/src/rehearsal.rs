//! Rehearsals: a harmless event is stored and rolled back. If that succeeds every time and storing
//! a real event never does, the real event is at fault.

use bytes::Bytes;
use chrono::Utc;
use shared::{
    AcceptedEvent, EventType, Family,
    database::{Pool, TransactionError},
    message::{Receipt, body_sha256},
};

use crate::{
    families,
    record::Record,
    store,
    work::{Source, Work},
};

/// Fails unless an event of this family and size could be stored now.
pub async fn rehearse(pool: &Pool, family: Family, size: usize) -> Result<(), TransactionError> {
    let harmless = harmless(family, size);
    store::rehearse(pool, &harmless, &Record::new(&harmless)).await
}

fn harmless(family: Family, size: usize) -> Work {
    let (event_type, data) = families::harmless(family);
    let padding = "x".repeat(size);
    let body = Bytes::from(format!(
        r#"{{"eventType":"{event_type}","data":{data},"padding":"{padding}"}}"#
    ));
    Work {
        event: AcceptedEvent {
            webhook_id: "rehearsal".to_owned(),
            event_type: EventType::unknown(),
            body_sha256: body_sha256(&body),
            body,
            received_at: Utc::now(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rehearsal_takes_what_its_family_takes() {
        for family in Family::ALL {
            let record = Record::new(&harmless(family, 1_000));
            assert_eq!(record.problem, None);
            assert_eq!(record.event_type.family(), family);
            assert_eq!(record.typed.is_some(), family != Family::Other);
        }
    }
}
