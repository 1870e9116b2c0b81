//! `hookctl dead-letters show`

use sqlx::PgPool;

use crate::place::{event, json, nameless, run, spool, sql, store_events, text, vendor, vendor_at};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_is_shown_with_its_history_its_body_and_its_resources_row(pool: PgPool) {
    let broken = r#"{"eventType":"v1.vendor.created", "data":{"id":"v","companyId":"c1","name":12345678901234567890123}}"#;
    store_events(
        &pool,
        [vendor_at("good", "v", "Acme", 1), event("bad", broken)],
    )
    .await;
    sql(
        &pool,
        "insert into webhook_receipts values ('bad', '', now(), now())",
    )
    .await;
    let [shown] = &json(&pool, &["show", "bad"], 0).await[..] else {
        panic!("one object");
    };
    assert_eq!(shown["kind"], "wrong-data");
    assert_eq!(shown["raw_text"], broken, "byte for byte");
    assert_eq!(shown["raw_hex"], serde_json::Value::Null);
    assert_eq!(shown["typed_row"]["name"], "Acme");
    assert_eq!(shown["typed_row"]["webhook_id"], "good");
    let history = shown["history"].as_array().expect("a list");
    let whats: Vec<_> = history.iter().filter_map(|m| m["what"].as_str()).collect();
    assert_eq!(whats[0], "sent by Pleo");
    assert_eq!(whats[1], "received by ingest, verified by secret current");
    assert!(whats.contains(&"confirmed by RabbitMQ"), "{whats:?}");
    assert!(
        whats.contains(&"stored by a worker, at attempt 1"),
        "{whats:?}"
    );

    let output = run(&pool, &["show", "bad", "--json"], 0).await;
    assert!(
        text(&output).contains(r#""name": 12345678901234567890123"#),
        "numbers stay exact"
    );
    let page = text(&run(&pool, &["show", "bad"], 0).await);
    for expected in [
        "`data.name`: expected a string, found",
        "\"name\": 12345678901234567890123",
        "Acme",
    ] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }
    let raw = run(&pool, &["show", "bad", "--raw"], 0).await;
    assert_eq!(raw.stdout, broken.as_bytes());
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_body_that_is_no_text_is_shown_in_hexadecimal_and_given_out_as_it_was(pool: PgPool) {
    store_events(&pool, [event("m1", b"\xff\x00\x1b[2J".to_vec())]).await;
    let [shown] = &json(&pool, &["show", "m1"], 0).await[..] else {
        panic!("one object");
    };
    assert_eq!(shown["raw_hex"], "ff001b5b324a");
    assert_eq!(shown["raw_text"], serde_json::Value::Null);
    assert_eq!(shown["payload"], serde_json::Value::Null);
    assert!(text(&run(&pool, &["show", "m1"], 0).await).contains("ff001b5b324a"));
    let raw = run(&pool, &["show", "m1", "--raw"], 0).await;
    assert_eq!(raw.stdout, b"\xff\x00\x1b[2J");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_second_body_is_shown_with_the_event_that_has_its_id(pool: PgPool) {
    let spaced = String::from_utf8(vendor("m1").body.to_vec())
        .expect("text")
        .replace("\":", "\": ");
    store_events(&pool, [vendor("m1")]).await;
    store_events(&pool, [event("m1", spaced), nameless("m1")]).await;
    let letters = json(&pool, &["list", "--problem", "conflict"], 0).await;
    let mut same = Vec::new();
    for letter in &letters {
        let id = letter["webhook_id"].as_str().expect("an id");
        let [shown] = &json(&pool, &["show", id], 0).await[..] else {
            panic!("one object");
        };
        assert_eq!(shown["conflicts_with"], "m1");
        same.push(shown["same_json"].as_bool().expect("it is known"));
    }
    same.sort_unstable();
    assert_eq!(same, [false, true]);
    let [shown] = &json(&pool, &["show", "m1"], 0).await[..] else {
        panic!("one object");
    };
    assert_eq!(shown["conflicts_with"], serde_json::Value::Null);
    assert_eq!(shown["problem"], serde_json::Value::Null, "it is healthy");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_is_not_stored_is_an_error_that_says_where_it_is(pool: PgPool) {
    spool(&pool, &vendor("spooled"), 0, 0).await;
    sql(
        &pool,
        "insert into webhook_receipts values ('queued', '', now(), now())",
    )
    .await;
    for (id, expected) in [
        ("spooled", "webhook_spool"),
        (
            "queued",
            "neither stored nor spooled: it should still be in RabbitMQ's queue",
        ),
        ("nobody", "nobody has accepted it"),
    ] {
        let output = run(&pool, &["show", id], 1).await;
        assert!(text(&output).contains(expected), "{}", text(&output));
        assert!(output.stdout.is_empty());
    }
}
