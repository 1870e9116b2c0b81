//! Postgres goes away and comes back.

use sqlx::{ConnectOptions, PgPool};
use stack::{
    ports,
    proxy::{Mode, Proxy},
};

use crate::{
    app::App,
    live::View,
    sample::{store, vendor},
};

/// An address of the database by a way that can be cut.
pub(crate) async fn proxy(pool: &PgPool) -> (String, Proxy) {
    let options = pool.connect_options();
    let target = format!("{}:{}", options.get_host(), options.get_port());
    let proxy = Proxy::start(target.parse().expect("an address"))
        .await
        .expect("a proxy");
    let through = (*options)
        .clone()
        .host("127.0.0.1")
        .port(proxy.address().port());
    (through.to_url_lossy().to_string(), proxy)
}

/// A console whose way to Postgres can be cut.
async fn behind_proxy(pool: &PgPool) -> (App, Proxy) {
    let (url, proxy) = proxy(pool).await;
    (App::with(&url, &[]).await, proxy)
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_live_view_says_when_postgres_is_away_and_goes_on_afterwards(pool: PgPool) {
    store(&pool, [vendor("msg_1", "v-1", "Acme", "DRAFT", 1)]).await;
    let (app, proxy) = behind_proxy(&pool).await;
    let mut view = View::open(&app, "/events/live").await;
    view.until("msg_1").await;
    proxy.set(Mode::Cut).await;
    view.until("event: away\ndata: Postgres is away").await;
    proxy.set(Mode::Pass).await;
    view.until("event: back").await;
    store(&pool, [vendor("msg_2", "v-1", "Acme", "DRAFT", 1)]).await;
    view.until("msg_2").await;
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn while_postgres_is_away_the_overview_shows_what_was_known(pool: PgPool) {
    store(&pool, [vendor("msg_1", "v-1", "Acme", "DRAFT", 1)]).await;
    let (app, proxy) = behind_proxy(&pool).await;
    app.until("/", "Open dead letters").await;
    app.until("/", "Last day").await;
    proxy.set(Mode::Cut).await;
    let page = app.until("/", "These figures are not fresh").await;
    assert!(
        page.contains("Postgres is away") && page.contains("Last day"),
        "{page}"
    );
    for path in [
        "/events",
        "/event?id=msg_1",
        "/resource?id=v-1",
        "/dead-letters",
        "/receipts",
        "/record",
        "/replays",
        "/replays/1",
        "/events/export?format=csv",
    ] {
        let page = app.page_with(path, 503).await;
        assert!(
            page.contains("Postgres is away") && page.contains("aria-label=\"Main\""),
            "{page}"
        );
    }
    let ready = app
        .client
        .get(format!("{}/readyz", app.private_url))
        .send()
        .await
        .expect("an answer");
    assert_eq!(ready.status(), 503);
    proxy.set(Mode::Pass).await;
    app.until_gone("/", "These figures are not fresh").await;
    assert!(app.page("/events").await.contains("msg_1"));
    app.stop().await;
}

#[tokio::test]
async fn without_postgres_it_starts_and_says_so() {
    let nowhere = format!(
        "postgres://nobody:secret-password@{}/x",
        ports::free().expect("a port")
    );
    let app = App::with(&nowhere, &[]).await;
    let page = app.until("/", "Postgres is away").await;
    assert!(
        page.contains("Nothing is known yet") && !page.contains("secret-password"),
        "{page}"
    );
    app.stop().await;
}
