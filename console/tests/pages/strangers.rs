//! Who may not look, and what every answer says to browsers.

use clap::Parser;
use sqlx::PgPool;
use web_console::{config::Config, service::Service};

use crate::app::{App, links};

#[test]
fn an_address_that_others_reach_is_refused_without_users() {
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8090"] {
        let config = Config::parse_from([
            "console",
            "--database-url",
            "postgres://x@localhost/x",
            "--listen",
            listen,
            "--private-listen",
            "127.0.0.1:0",
        ]);
        let error = Service::bind(&config).err().expect("refused").to_string();
        assert!(
            error.contains("USERS_FILE") && error.contains(listen),
            "{error}"
        );
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn another_hosts_name_is_refused(pool: PgPool) {
    let app = App::start(&pool).await;
    for (host, status) in [
        ("localhost:8090", 200),
        ("127.0.0.1", 200),
        ("[::1]:8090", 200),
        ("rebound.example", 403),
        ("localhost.example:8090", 403),
        ("127.0.0.1.example", 403),
    ] {
        let request = app
            .client
            .get(format!("{}/events", app.url))
            .header("host", host);
        assert_eq!(
            request.send().await.expect("an answer").status(),
            status,
            "{host}"
        );
    }
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn every_answer_forbids_what_pages_do_not_need(pool: PgPool) {
    let app = App::start(&pool).await;
    let css = links(&app.page("/").await)
        .into_iter()
        .find(|link| link.ends_with(".css"))
        .expect("styles");
    for (path, caching) in [
        ("/", "no-store"),
        ("/nowhere", "no-store"),
        ("/events?before=x", "no-store"),
        ("/event/body?id=x", "no-store"),
        (&css, "public, max-age=31536000, immutable"),
    ] {
        let answer = app.get(path).await;
        let header = |name: &str| {
            answer
                .headers()
                .get(name)
                .map(|value| value.to_str().expect("text"))
                .unwrap_or_default()
        };
        let policy = header("content-security-policy");
        assert!(
            policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{path}: {policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("referrer-policy"), "same-origin", "{path}");
        assert_eq!(header("cache-control"), caching, "{path}");
    }
    let page = app.page("/").await;
    assert!(
        !page.contains("style=") && !page.contains("onclick") && !page.contains("https://"),
        "{page}"
    );
    app.page_with("/assets/console.0000000000000000.css", 404)
        .await;
    let answer = app
        .client
        .post(format!("{}/events", app.url))
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 404);
    app.stop().await;
}
