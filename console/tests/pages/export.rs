//! Events of a view as a file.

use std::collections::BTreeSet;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use sqlx::PgPool;

use crate::{
    app::{App, link},
    sample::{event, sql, store, vendor},
};

/// More than an export looks at together.
const MANY: usize = 250;

const FORMULA: &str = "=HYPERLINK(\"http://example.com\")";

async fn filled(pool: &PgPool) -> App {
    let vendors = (0..MANY).map(|n| {
        vendor(
            &format!("msg_{n}"),
            &format!("v-{n}"),
            "A, \"b\"\nc",
            "DRAFT",
            1,
        )
    });
    store(pool, vendors).await;
    store(
        pool,
        [
            event(
                "msg_card",
                r#"{"eventType":"v1.card.created","data":{"id":"k-1","limit":1.50}}"#,
            ),
            event("msg_nothing", "no JSON\0"),
            event(FORMULA, r#"{"eventType":"v1.card.created","data":{}}"#),
        ],
    )
    .await;
    App::start(pool).await
}

fn ids(lines: &[Value]) -> BTreeSet<&str> {
    let ids = lines.iter().map(|line| line["webhook_id"].as_str());
    ids.map(|id| id.expect("an id")).collect()
}

async fn json_lines(app: &App, address: &str) -> Vec<Value> {
    let text = app.page(address).await;
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn json_lines_have_every_event_of_a_view_with_its_exact_body(pool: PgPool) {
    let app = filled(&pool).await;
    let page = app.page("/events").await;
    let address = link(&page, "JSON lines").expect("a link");
    let text = app.page(&address).await;
    assert!(
        text.contains(r#""limit": 1.50"#),
        "numbers as they were sent"
    );
    let all = json_lines(&app, &address).await;
    assert_eq!(
        (all.len(), ids(&all).len()),
        (MANY + 3, MANY + 3),
        "each once"
    );
    let nothing = all.iter().find(|line| line["webhook_id"] == "msg_nothing");
    let nothing = nothing.expect("dead letters too");
    assert_eq!(nothing["payload"], Value::Null);
    let raw = nothing["raw_base64"].as_str().expect("its bytes");
    assert_eq!(BASE64_STANDARD.decode(raw).expect("base64"), b"no JSON\0");
    let times: Vec<_> = all
        .iter()
        .map(|line| line["received_at"].as_str())
        .collect();
    assert!(times.is_sorted_by(|newer, older| newer >= older));

    let page = app.page("/events?type=v1.card.created").await;
    let address = link(&page, "JSON lines").expect("a link");
    let cards = json_lines(&app, &address).await;
    assert_eq!(ids(&cards), BTreeSet::from(["msg_card", FORMULA]));
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_csv_file_has_the_same_rows_and_no_formula(pool: PgPool) {
    let app = filled(&pool).await;
    let page = app.page("/events").await;
    let answer = app.get(&link(&page, "CSV").expect("a link")).await;
    let name = answer.headers()["content-disposition"].to_str();
    assert!(name.is_ok_and(|name| name.starts_with("attachment; filename=\"events-")));
    let text = answer.text().await.expect("text");
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let columns = reader.headers().expect("a head").clone();
    assert_eq!(
        (columns.get(0), columns.get(9)),
        (Some("webhook_id"), Some("payload"))
    );
    let rows: Vec<_> = reader.records().map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len(), MANY + 3);
    let row = |id: &str| {
        rows.iter()
            .find(|row| row.get(0) == Some(id))
            .expect("a row")
    };
    let payload: Value = serde_json::from_str(row("msg_7").get(9).expect("a cell")).expect("JSON");
    assert_eq!(payload["data"]["name"], "A, \"b\"\nc");
    row(&format!("'{FORMULA}"));

    let none = app.page("/events/export?format=csv&company=nobody").await;
    assert_eq!(none.lines().count(), 1, "{none}");
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn more_events_of_one_time_than_are_looked_at_together_are_all_found(pool: PgPool) {
    sql(
        &pool,
        "insert into events (webhook_id, event_type, company_id, received_at, raw, body_sha256)
         select 'msg_' || n, 'unknown', case when n % 1000 = 0 then 'c1' end,
                '2026-01-01'::timestamptz + interval '1 second' * (n / 4500), '', ''
           from generate_series(1, 9000) n",
    )
    .await;
    let app = App::start(&pool).await;
    let found = json_lines(&app, "/events/export?format=jsonl&company=c1").await;
    assert_eq!((found.len(), ids(&found).len()), (9, 9));
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_cannot_be_exported_is_no_file(pool: PgPool) {
    let app = App::start(&pool).await;
    for address in [
        "/events/export",
        "/events/export?format=xml",
        "/events/export?format=csv&from=x",
    ] {
        app.page_with(address, 400).await;
    }
    sql(&pool, "alter table events rename to gone").await;
    let page = app.page_with("/events/export?format=csv", 503).await;
    assert!(page.contains("hookctl setup"), "{page}");
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_export_that_cannot_go_on_breaks_off(pool: PgPool) {
    const EACH: usize = 64 * 1024;
    // More than connections hold that nobody reads from.
    sql(
        &pool,
        &format!(
            "insert into events (webhook_id, event_type, received_at, stored_at, payload, body_sha256)
             select 'msg_' || n, 'v1.card.created', now(), now(),
                    jsonb_build_object('filling', repeat(md5(n::text), {EACH} / 32)), '\\x00'
               from generate_series(1, 1000) n"
        ),
    )
    .await;
    let app = App::start(&pool).await;
    let mut answer = app.get("/events/export?format=jsonl").await;
    assert_eq!(answer.status(), 200);
    answer.chunk().await.expect("it begins");
    sql(&pool, "alter table events rename to gone").await;
    let mut size = 0;
    let end = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => size += chunk.len(),
            end => break end,
        }
    };
    assert!(end.is_err(), "{size} bytes look like the whole");
    assert!(size < 1000 * EACH, "{size}");
    app.stop().await;
}
