//! The overview's figures.

use sqlx::PgPool;

use crate::{
    app::App,
    sample::{fill, nameless, sql, store},
};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_overview_counts_what_is_there(pool: PgPool) {
    fill(&pool, 2_000).await;
    store(&pool, [nameless("msg_1", "c1"), nameless("msg_2", "c1")]).await;
    let in_hour: i64 = sqlx::query_scalar(
        "select count(*) from events where received_at > date_trunc('minute', now()) - interval '59 minutes'",
    )
    .fetch_one(&pool)
    .await
    .expect("a count");
    let app = App::start(&pool).await;
    app.until("/", "Last day").await;
    app.until("/", &format!("<p class=\"figure\">{in_hour}</p>"))
        .await;
    let page = app.until("/", "wrong-data").await;
    assert!(page.contains("data-label=\"events\">2</td>"), "{page}");
    assert!(
        page.contains("class=\"family-0\"") && page.contains("<desc"),
        "{page}"
    );
    assert!(page.contains("From (UTC)"), "the chart as a table: {page}");
    let part = app.page("/overview/figures").await;
    assert!(
        !part.contains("<html") && part.contains("Last day"),
        "{part}"
    );
    // What comes now is counted with the next look.
    sql(&pool, "delete from events where problem is not null").await;
    app.until("/", "Every event that was stored is in its table")
        .await;
    app.stop().await;
}
