//! The states of one resource.

use chrono::{TimeDelta, Utc};
use sqlx::PgPool;

use crate::{
    app::{App, SOON, link},
    sample::{received, sql, store, vendor},
};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn states_are_in_their_own_order_with_what_changed(pool: PgPool) {
    let ago = |minutes| Utc::now() - TimeDelta::minutes(minutes);
    // The second state arrives last.
    store(
        &pool,
        [received(
            vendor("msg_1", "v-1", "Acme", "DRAFT", 1),
            ago(30),
        )],
    )
    .await;
    store(
        &pool,
        [received(
            vendor("msg_3", "v-1", "Acme Ltd", "ACTIVE", 3),
            ago(20),
        )],
    )
    .await;
    store(
        &pool,
        [received(
            vendor("msg_2", "v-1", "Acme", "ACTIVE", 2),
            ago(10),
        )],
    )
    .await;
    let app = App::start(&pool).await;
    let page = app.page("/resource?id=v-1").await;
    let at = |text: &str| {
        page.find(text)
            .unwrap_or_else(|| panic!("no {text}: {page}"))
    };
    assert!(
        at("id=msg_3") < at("id=msg_2") && at("id=msg_2") < at("id=msg_1"),
        "{page}"
    );
    let states = page.split_once("Its states").expect("states").1;
    let states: Vec<&str> = states
        .split("<li")
        .filter(|state| state.contains("/event?id="))
        .collect();
    assert!(
        states[0].contains("the row&#39;s state") || states[0].contains("the row's state"),
        "{}",
        states[0]
    );
    assert!(
        page.contains("<del><bdi>&quot;Acme&quot;</bdi></del>"),
        "{page}"
    );
    assert!(
        page.contains("<ins><bdi>&quot;Acme Ltd&quot;</bdi></ins>"),
        "{page}"
    );
    assert!(
        page.contains("<del><bdi>&quot;DRAFT&quot;</bdi></del>"),
        "{page}"
    );
    assert_eq!(page.matches("came after a newer one").count(), 1);
    assert!(page.contains("Vendor v-1"), "{page}");
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_resource_of_long_ago_is_found_at_once(pool: PgPool) {
    let old = Utc::now() - TimeDelta::days(400);
    store(
        &pool,
        [received(vendor("msg_1", "v-1", "Acme", "DRAFT", 1), old)],
    )
    .await;
    sql(
        &pool,
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
                select 'other_' || n, 'unknown', now(), '', '' from generate_series(1, 3000) n",
    )
    .await;
    let app = App::start(&pool).await;
    let page = tokio::time::timeout(SOON, app.page("/resource?id=v-1"))
        .await
        .expect("in time");
    assert!(page.contains("/event?id=msg_1"), "{page}");
    assert!(page.contains("were not looked at"), "{page}");
    let all = link(&page, "Look from now on back").expect("a link");
    assert!(app.page(&all).await.contains("/event?id=msg_1"));
    app.stop().await;
}

/// Without an index the search begins at the state that the row shows.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn with_an_index_on_resources_all_states_are_looked_at(pool: PgPool) {
    let ago = |hours| Utc::now() - TimeDelta::hours(hours);
    for (id, minute, at) in [("msg_2", 2, ago(400)), ("msg_1", 1, ago(1))] {
        let state = vendor(id, "v-1", "Acme", "DRAFT", minute);
        store(&pool, [received(state, at)]).await;
    }
    let app = App::start(&pool).await;
    let page = app.page("/resource?id=v-1").await;
    assert!(page.contains("were not looked at"), "{page}");
    assert!(!page.contains("/event?id=msg_1"), "{page}");
    sql(&pool, "create index on events (resource_id)").await;
    let page = app.page("/resource?id=v-1").await;
    assert!(!page.contains("were not looked at"), "{page}");
    assert!(page.contains("/event?id=msg_1"), "{page}");
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_state_of_the_row_is_there_however_many_events_came_after_it(pool: PgPool) {
    let ago = |minutes| Utc::now() - TimeDelta::minutes(minutes);
    for (id, name, minute, at) in [
        ("msg_1", "Acme", 1, ago(50)),
        ("msg_2", "Acme Ltd", 2, ago(40)),
    ] {
        let state = vendor(id, "v-1", name, "DRAFT", minute);
        store(&pool, [received(state, at)]).await;
    }
    // The search begins with them, and its time is over before it has seen all.
    sql(
        &pool,
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
                select 'other_' || n, 'unknown', now() - interval '30 minutes', '', ''
                  from generate_series(1, 200000) n",
    )
    .await;
    let app = App::start(&pool).await;
    let page = app.page("/resource?id=v-1").await;
    assert!(page.contains("the row's state"), "{page}");
    assert!(page.contains("/event?id=msg_2"), "{page}");
    // It is compared only with a state that is known to be the one before.
    assert_eq!(
        page.contains("/event?id=msg_1"),
        page.contains("<ins>"),
        "{page}"
    );
    app.stop().await;
}

/// Each page would sort all of them.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_resource_of_thousands_of_events_is_searched_from_its_state_in_spite_of_an_index(
    pool: PgPool,
) {
    let at = Utc::now() - TimeDelta::hours(400);
    let state = vendor("msg_1", "v-1", "Acme", "DRAFT", 1);
    store(&pool, [received(state, at)]).await;
    sql(
        &pool,
        "insert into events (webhook_id, event_type, resource_id, received_at, raw, body_sha256)
                select 'old_' || n, 'unknown', 'v-1', now() - interval '401 hours', '', ''
                  from generate_series(1, 2500) n;
         create index on events (resource_id)",
    )
    .await;
    let app = App::start(&pool).await;
    let page = app.page("/resource?id=v-1").await;
    assert!(page.contains("were not looked at"), "{page}");
    assert!(page.contains("/event?id=msg_1"), "{page}");
    assert!(link(&page, "Older states").is_some(), "{page}");
    app.stop().await;
}
