//! Messages that ingest did not publish: each is stored in rows that say what it is. They are
//! checked by the properties of the fuzzer for messages (see `fuzz/`).

#[path = "../../../fuzz/properties/messages.rs"]
mod messages;

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use proptest::{
    collection::vec,
    prelude::{Strategy, any},
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use shared::{Family, bundle, message::body_sha256};
use sqlx::PgPool;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use worker::{problem::UNIDENTIFIED, work::Work};

use self::messages::{Message, check, message, now};
use crate::sample::{SOON, persistence, start_spool_reader, until_count, vendor_body};

/// A MessagePack bundle with these ids and bodies.
fn bundle_of(events: &[(&str, &str)]) -> Message {
    let mut body = vec![0x90 | u8::try_from(events.len()).expect("a few")];
    let text = |body: &mut Vec<u8>, text: &str| {
        body.push(0xda);
        body.extend(u16::try_from(text.len()).expect("short").to_be_bytes());
        body.extend(text.as_bytes());
    };
    for (id, event) in events {
        body.push(0x82);
        text(&mut body, "webhook_id");
        text(&mut body, id);
        text(&mut body, "body");
        body.push(0xc5);
        body.extend(u16::try_from(event.len()).expect("short").to_be_bytes());
        body.extend(event.as_bytes());
    }
    Message {
        properties: BasicProperties::default().with_content_type(bundle::CONTENT_TYPE.into()),
        redelivered: false,
        body,
    }
}

fn plain(properties: BasicProperties, body: impl Into<Vec<u8>>) -> Message {
    Message {
        properties,
        redelivered: false,
        body: body.into(),
    }
}

/// Messages that were written by hand.
fn known() -> Vec<Message> {
    let none = BasicProperties::default;
    let vendor = vendor_body("v1", "Acme", "DRAFT", "2025-02-21T10:05:43Z");
    // Without repetition, so that Postgres cannot compress it.
    let long: String = (0..188).map(|i| hex::encode(body_sha256(&[i]))).collect();
    assert!(long.len() > 12_000);
    let wrong_types = [
        ("received-at-ms", AMQPValue::LongString("yesterday".into())),
        ("attempted-at-s", AMQPValue::LongLongInt(i64::MIN)),
        ("secret-name", AMQPValue::LongString("a\0b".into())),
        ("secret-companies", AMQPValue::LongString("a\0b".into())),
        ("receipt", AMQPValue::LongLongInt(1)),
        ("events", AMQPValue::LongLongInt(i64::MAX)),
    ];
    // The year 300000.
    let far = [
        (
            "received-at-ms",
            AMQPValue::LongLongInt(9_404_995_536_000_000),
        ),
        ("attempted-at-s", AMQPValue::LongLongInt(9_404_995_536_000)),
    ];
    let [wrong_types, far] = [&wrong_types[..], &far].map(|pairs| {
        let mut headers = FieldTable::default();
        for (name, value) in pairs {
            headers.insert((*name).into(), value.clone());
        }
        headers
    });
    vec![
        plain(none(), vendor.clone()),
        plain(none(), ""),
        plain(none(), "no JSON \0"),
        plain(none().with_message_id("".into()), "{}"),
        plain(none().with_message_id("a\0b".into()), "[]"),
        plain(none().with_type("t".repeat(255).as_str().into()), "[1]"),
        plain(none().with_headers(wrong_types), "[2]"),
        plain(none().with_headers(far), "[7]"),
        plain(none(), vec![b'x'; 5 << 20]),
        plain(
            none(),
            format!(
                "{{\"eventType\":\"v1.vendor.created\",\"data\":{}",
                "[".repeat(100_000)
            ),
        ),
        bundle_of(&[]),
        bundle_of(&[(&long, &vendor), ("after-a-long-id", "{}")]),
        bundle_of(&[("", "[3]"), ("a\0b", "[4]")]),
        bundle_of(&[("twice", "[5]"), ("twice", "[6]"), ("twice", "[5]")]),
        plain(
            none().with_content_type(bundle::CONTENT_TYPE.into()),
            [&b"\x91\x81\xa3new"[..], &[0x91; 5_000]].concat(),
        ),
    ]
}

/// Asserts that each event has a row with its body, under its id or as a conflict, with a problem
/// if ingest cannot have published it.
async fn assert_stored(pool: &PgPool, works: &[Work]) {
    for work in works {
        let event = &work.event;
        let problem: Option<Option<String>> = sqlx::query_scalar(
            "select problem from events
              where body_sha256 = $1 and (webhook_id = $2 or starts_with(webhook_id, $2 || '#conflict-'))",
        )
        .bind(&event.body_sha256[..])
        .bind(&event.webhook_id)
        .fetch_optional(pool)
        .await
        .expect("an answer");
        let Some(problem) = problem else {
            panic!("not stored: {event:?}");
        };
        assert_eq!(
            problem.as_deref() == Some(UNIDENTIFIED),
            event.is_unidentified(),
            "{event:?}"
        );
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn every_message_ends_in_a_row_that_says_what_it_is(pool: PgPool) {
    let mut runner = TestRunner::new(Config::default());
    let bytes = vec(any::<u8>(), 0..300);
    let made = (0..400).map(|_| {
        let input = bytes.new_tree(&mut runner).expect("an input").current();
        message(&input)
    });
    let messages: Vec<Message> = known().into_iter().chain(made).collect();
    let works: Vec<Work> = messages
        .iter()
        .flat_map(|message| check(message, now()))
        .collect();
    let persistence = persistence(&pool, Family::Other);
    let stop = CancellationToken::new();
    for batch in works.chunks(200) {
        let stored = timeout(SOON, persistence.persist(batch.to_vec(), &stop)).await;
        let stored = stored.expect("nothing holds the family up");
        stored.expect("not abandoned");
    }
    assert_stored(&pool, &works).await;
}

/// A message that is redelivered repeatedly is isolated without being parsed, and stored from the
/// spool.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_message_that_was_set_aside_keeps_what_is_known_of_it(pool: PgPool) {
    let works: Vec<Work> = known()
        .iter()
        .flat_map(|message| check(message, now()))
        .collect();
    let isolated = persistence(&pool, Family::Other);
    let stop = CancellationToken::new();
    let isolated = timeout(SOON, isolated.isolate(&works, &stop)).await;
    isolated
        .expect("nothing holds the family up")
        .expect("not abandoned");
    let readers = Family::ALL.map(|family| start_spool_reader(&pool, family));
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    assert_stored(&pool, &works).await;
    for reader in readers {
        reader.cancel();
    }
}
