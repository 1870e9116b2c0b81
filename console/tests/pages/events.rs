//! The list of events, its filters and pages, and one event.

use std::{collections::BTreeSet, time::Duration};

use chrono::{TimeDelta, Utc};
use shared::database::DatabaseUrl;
use sqlx::{ConnectOptions, PgPool};
use web_console::{
    search::{self, End, Filter, Problem},
    store::Store,
    text,
};
use worker::problem::Kind;

use crate::{
    app::{App, SOON, link, links},
    sample::{event, nameless, received, sql, store, vendor},
};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_empty_console_says_what_to_do_next(pool: PgPool) {
    let app = App::start(&pool).await;
    assert!(app.page("/events").await.contains("hookctl send"));
    assert!(
        app.page("/dead-letters")
            .await
            .contains("no open dead letter")
    );
    assert!(app.page("/receipts").await.contains("In the spool"));
    assert!(
        app.page("/events?company=nobody")
            .await
            .contains("No event is like that")
    );
    app.page_with("/event?id=nowhere", 404).await;
    app.page_with("/resource?id=nowhere", 404).await;
    app.page_with("/nowhere", 404).await;
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn each_filter_finds_its_events_and_no_others(pool: PgPool) {
    let old = Utc::now() - TimeDelta::days(3);
    store(
        &pool,
        [
            vendor("msg_vendor", "v-1", "Acme", "DRAFT", 1),
            nameless("msg_nameless", "c2"),
            received(
                event(
                    "msg_card",
                    r#"{"eventType":"v1.card.created","data":{"id":"k-1","limit":1.50}}"#,
                ),
                old,
            ),
            event("msg_nothing", "no JSON"),
        ],
    )
    .await;
    sql(
        &pool,
        "update events set secret_name = 'previous' where webhook_id = 'msg_card'",
    )
    .await;
    let app = App::start(&pool).await;
    let yesterday = (Utc::now() - TimeDelta::days(1)).format("%Y-%m-%dT%H:%M");
    let all = ["msg_vendor", "msg_nameless", "msg_card", "msg_nothing"];
    for (query, expected) in [
        ("", &all[..]),
        ("type=v1.vendor.created", &["msg_vendor", "msg_nameless"]),
        ("company=c2", &["msg_nameless"]),
        ("resource=k-1", &["msg_card"]),
        ("secret=previous", &["msg_card"]),
        ("problem=none", &["msg_vendor", "msg_card"]),
        ("problem=any", &["msg_nameless", "msg_nothing"]),
        ("problem=not-an-event", &["msg_nothing"]),
        ("problem=wrong-data", &["msg_nameless"]),
        ("problem=refused", &[]),
        ("field=data.name&value=Acme", &["msg_vendor"]),
        ("field=data.limit&value=1.50", &["msg_card"]),
        (
            &format!("from={yesterday}"),
            &["msg_vendor", "msg_nameless", "msg_nothing"],
        ),
        (&format!("to={yesterday}"), &["msg_card"]),
        ("type=v1.vendor.created&company=c1", &["msg_vendor"]),
    ] {
        let page = app.page(&format!("/events?{query}")).await;
        let shown: BTreeSet<_> = all
            .into_iter()
            .filter(|id| page.contains(&format!("id={id}\"")))
            .collect();
        assert_eq!(shown, expected.iter().copied().collect(), "{query}");
    }
    for bad in [
        "from=yesterday",
        "problem=great",
        "value=x",
        "before=edited",
        "before=2026-13-01T00:00:00Z~x",
        "company=%00",
        "company=a&company=b",
    ] {
        app.page_with(&format!("/events?{bad}"), 400).await;
    }
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn pages_show_each_event_once_the_newest_first(pool: PgPool) {
    // Many of one time, as a batch may have.
    sql(
        &pool,
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
         select 'msg_' || n, 'unknown', '2026-01-01'::timestamptz + interval '1 second' * (n / 40), '', ''
           from generate_series(0, 129) n",
    )
    .await;
    let app = App::start(&pool).await;
    let (mut next, mut seen) = (Some("/events".to_owned()), Vec::new());
    while let Some(path) = next {
        let page = app.page(&path).await;
        let ids = links(&page)
            .into_iter()
            .filter_map(|l| l.strip_prefix("/event?id=").map(str::to_owned));
        seen.extend(ids);
        // What comes in between is on no later page.
        sql(
            &pool,
            "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
                    select 'new_' || gen_random_uuid(), 'unknown', now(), '', ''",
        )
        .await;
        next = link(&page, "Older");
    }
    assert_eq!(seen.len(), 130);
    assert_eq!(BTreeSet::from_iter(&seen).len(), 130);
    let batch = |id: &String| id["msg_".len()..].parse::<i32>().expect("a number") / 40;
    assert!(seen.is_sorted_by(|a, b| batch(a) >= batch(b)), "{seen:?}");
    app.stop().await;
}

/// What pages and files show of a resource with many events, some of one time.
async fn of_resource(app: &App) -> Vec<Vec<String>> {
    let mut shown = Vec::new();
    for filters in [
        "",
        "&type=v1.card.created",
        "&company=c1&problem=none",
        "&problem=any",
        "&from=2026-01-01T00:00:02&to=2026-01-01T00:00:03",
    ] {
        let (mut next, mut ids) = (Some(format!("/events?resource=r-1{filters}")), Vec::new());
        while let Some(path) = next {
            let page = app.page(&path).await;
            let links = links(&page).into_iter();
            ids.extend(links.filter_map(|l| l.strip_prefix("/event?id=").map(str::to_owned)));
            next = link(&page, "Older");
        }
        shown.push(ids);
        let file = format!("/events/export?format=jsonl&resource=r-1{filters}");
        shown.push(app.page(&file).await.lines().map(str::to_owned).collect());
    }
    shown
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_index_on_resources_is_used_and_changes_no_answer(pool: PgPool) {
    sql(
        &pool,
        "insert into events (webhook_id, event_type, company_id, resource_id, received_at, problem, raw,
                             body_sha256)
         select 'msg_' || n, (array['v1.card.created', 'v1.card.frozen'])[1 + n % 2],
                (array['c1', 'c2'])[1 + n / 2 % 2], (array['r-1', 'r-2', null])[1 + n / 4 % 3],
                '2026-01-01'::timestamptz + interval '1 second' * (n / 80),
                case when n % 7 = 0 then 'not JSON' end, '', ''
           from generate_series(0, 1199) n",
    )
    .await;
    let app = App::start(&pool).await;
    let by_time = of_resource(&app).await;
    assert_eq!(by_time[0].len(), 400);
    assert!(by_time.iter().all(|shown| shown.len() > 20));
    sql(&pool, "create index of_resources on events (resource_id)").await;
    assert_eq!(of_resource(&app).await, by_time);
    app.stop().await;
    // Sessions report what they have read when they end.
    let is_used =
        "select idx_scan > 0 from pg_stat_user_indexes where indexrelname = 'of_resources'";
    tokio::time::timeout(SOON, async {
        while !sqlx::query_scalar::<_, bool>(is_used)
            .fetch_one(&pool)
            .await
            .expect("a look")
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the index is used");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_search_that_takes_long_stops_and_goes_on_from_there(pool: PgPool) {
    sql(
        &pool,
        "insert into events (webhook_id, event_type, company_id, received_at, raw, body_sha256)
         select 'msg_' || n, 'unknown', case when n = 1 then 'wanted' end,
                '2026-01-01'::timestamptz + interval '1 second' * n, '', ''
           from generate_series(1, 5000) n",
    )
    .await;
    let store = searched(&pool);
    let filter = Filter {
        company: Some("wanted".to_owned()),
        ..Filter::default()
    };
    let found = search::find(&store, &filter, None, 10, Duration::ZERO)
        .await
        .expect("a search");
    let End::Spent(key) = found.end else {
        panic!("{:?}", found.end)
    };
    assert!(found.rows.is_empty());
    let found = search::find(&store, &filter, Some(key), 10, Duration::from_secs(60))
        .await
        .expect("a search");
    assert_eq!(found.rows.len(), 1);
    assert_eq!(found.end, End::All);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_search_by_problem_looks_at_no_healthy_event(pool: PgPool) {
    sql(
        &pool,
        "insert into events (webhook_id, event_type, problem, problem_kind, received_at, raw, body_sha256)
         select 'msg_' || n, 'unknown', case when n = 1 then 'the body is empty' end,
                case when n = 1 then 'not-an-event' end,
                '2026-01-01'::timestamptz + interval '1 second' * n, '', ''
           from generate_series(1, 5000) n",
    )
    .await;
    for problem in [Problem::Any, Problem::Of(Kind::NotAnEvent)] {
        let filter = Filter {
            problem: Some(problem),
            ..Filter::default()
        };
        // With no time for a second slice.
        let found = search::find(&searched(&pool), &filter, None, 10, Duration::ZERO)
            .await
            .expect("a search");
        assert_eq!((found.rows.len(), found.end), (1, End::All), "{problem:?}");
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_page_searches_for_a_moment_and_for_longer_when_it_is_asked_to(pool: PgPool) {
    // More than can be read in the time of a page.
    sql(
        &pool,
        "insert into events (webhook_id, event_type, company_id, received_at, raw, body_sha256)
         select 'msg_' || n, 'unknown', case when n = 1 then 'wanted' end,
                '2026-01-01'::timestamptz + interval '1 second' * n, '', ''
           from generate_series(1, 600000) n",
    )
    .await;
    let app = App::start(&pool).await;
    let mut page = app.page("/events?company=wanted").await;
    assert!(page.contains("Nothing found so far"), "{page}");
    while let Some(further) = link(&page, "Search further back") {
        assert!(further.contains("search=longer"), "{further}");
        page = app.page(&further).await;
    }
    assert!(page.contains("id=msg_1\""), "{page}");
    app.page_with("/events?search=forever", 400).await;
    app.stop().await;
}

/// The database as the console searches it.
fn searched(pool: &PgPool) -> Store {
    let url = pool.connect_options().to_url_lossy();
    Store::new(DatabaseUrl::parse(url.as_str()).expect("an address"))
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_shows_its_body_exactly_and_gives_it_away(pool: PgPool) {
    let healthy = r#"{"eventType":"v1.card.created","data":{"id":"k-1","a":1.10,"b":12345678901234567890123456789.5}}"#;
    let broken = "{\"eventType\": \"v1.vendor.created\",  \"data\": {\"n\": 1e2}}";
    let first = Utc::now() - TimeDelta::minutes(5);
    store(
        &pool,
        [
            received(event("msg_1", healthy), first),
            event(
                "msg_2",
                r#"{"eventType":"v1.card.frozen","data":{"id":"k-1"}}"#,
            ),
            event("msg_3", broken),
            event("msg_4", b"\xff\x00<script>".to_vec()),
        ],
    )
    .await;
    let app = App::start(&pool).await;
    let page = app.page("/event?id=msg_1").await;
    for expected in [
        "&quot;a&quot;: 1.10",
        "12345678901234567890123456789.5",
        "current",
        "after the attempt",
        "after the receipt",
    ] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    assert!(
        page.contains("/event?id=msg_2"),
        "the other event of its resource"
    );
    assert!(page.contains("<title>Event msg_1"), "{page}");
    let page = app.page("/event?id=msg_3").await;
    assert!(
        page.contains("1e2") && page.contains("The bytes as they were received"),
        "{page}"
    );
    assert!(
        page.contains("hookctl dead-letters replay --id msg_3 --yes"),
        "{page}"
    );
    let bytes = app.get("/event/body?id=msg_3").await;
    assert_eq!(
        bytes.headers()["content-disposition"],
        "attachment; filename=\"msg_3.json\""
    );
    assert_eq!(bytes.bytes().await.expect("bytes"), broken);
    let bytes = app.get("/event/body?id=msg_4").await;
    assert_eq!(bytes.headers()["content-type"], "application/octet-stream");
    assert_eq!(
        &bytes.bytes().await.expect("bytes")[..],
        b"\xff\x00<script>"
    );
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_id_leads_to_whatever_has_it(pool: PgPool) {
    store(&pool, [vendor("msg_1", "v-1", "Acme", "DRAFT", 1)]).await;
    sql(&pool, "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at) values ('msg_2', '', now(), now())").await;
    let app = App::start(&pool).await;
    for (id, place) in [
        ("msg_1", "/event?id=msg_1"),
        ("v-1", "/resource?id=v-1"),
        ("msg_2", "/event?id=msg_2"),
    ] {
        let answer = app.get(&text::href("/find", &[("id", id)])).await;
        assert_eq!(answer.headers()["location"], place);
    }
    let page = app.page("/event?id=msg_2").await;
    assert!(page.contains("Accepted, and not stored yet"), "{page}");
    app.stop().await;
}
