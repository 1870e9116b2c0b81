//! The console's pages in a real Chromium: with scripts and without, on a desk and on a telephone.

#[expect(dead_code, reason = "the other suite needs more of it")]
#[path = "../pages/app.rs"]
mod app;
mod chromium;
#[path = "../pages/sample.rs"]
mod sample;
mod scene;

use std::time::Duration;

use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use crate::{
    app::{App, SOON},
    chromium::{Browser, Kind},
    sample::{nameless, store, vendor},
    scene::{Scene, operators},
};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn every_page_is_free_of_errors_and_of_barriers(pool: PgPool) {
    let Some(browser) = Browser::start(Kind::Desk).await else {
        return;
    };
    let scene = Scene::new(&pool).await;
    for path in scene.paths() {
        browser.open(&scene.app, &path).await;
        assert_eq!(browser.barriers().await, Vec::<String>::new(), "{path}");
        assert_eq!(browser.errors().await, Vec::<String>::new(), "{path}");
    }
    browser.close().await;
    scene.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn no_page_is_wider_than_a_telephone(pool: PgPool) {
    let Some(browser) = Browser::start(Kind::Telephone).await else {
        return;
    };
    let scene = Scene::new(&pool).await;
    for path in scene.paths() {
        browser.open(&scene.app, &path).await;
        let wide = browser
            .run(
                "const width = document.documentElement.clientWidth;
                 return [width, document.documentElement.scrollWidth,
                     [...document.querySelectorAll('body *')]
                         .filter(e => e.getBoundingClientRect().right > width + 1 && !e.closest('.skip'))
                         .slice(0, 5).map(e => e.outerHTML.slice(0, 120))];",
            )
            .await;
        assert_eq!(wide[0], 375, "{path}: {wide}");
        assert_eq!(wide[1], 375, "{path}: {wide}");
        assert_eq!(browser.barriers().await, Vec::<String>::new(), "{path}");
    }
    browser.close().await;
    scene.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn everything_can_be_reached_without_scripts(pool: PgPool) {
    let Some(browser) = Browser::start(Kind::WithoutScripts).await else {
        return;
    };
    let scene = Scene::new(&pool).await;
    browser.open(&scene.app, "/dead-letters").await;
    assert!(
        !browser.is_displayed("button[data-copy]").await,
        "it would do nothing"
    );
    for (link, heading) in [
        ("Overview", "Does it flow?"),
        ("Events", "Events"),
        ("Dead letters", "Dead letters"),
        ("Replays", "Replays"),
        ("Receipts", "Receipts that are not stored"),
    ] {
        browser.follow(link).await;
        browser.until_heading(heading).await;
    }
    browser.follow("Events").await;
    browser.until_heading("Events").await;
    browser.fill("company", "c1").await;
    browser.click("button.main").await;
    browser.until_text("Clear").await;
    assert!(browser.address().await.contains("company=c1"));
    browser.click("a[href^='/event?']").await;
    browser.until_text("Stored by a worker").await;
    browser.fill("id", "v-1").await;
    browser.click(".find button").await;
    browser.until_heading("Vendor").await;
    browser.close().await;
    scene.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_overview_refreshes_itself_and_says_when_it_cannot(pool: PgPool) {
    let Some(browser) = Browser::start(Kind::Desk).await else {
        return;
    };
    let scene = Scene::new(&pool).await;
    browser.open(&scene.app, "/").await;
    let before = browser.text("main .lead").await;
    let deadline = Instant::now() + SOON;
    while browser.text("main .lead").await == before {
        assert!(Instant::now() < deadline, "it stays as it is: {before}");
        sleep(Duration::from_millis(300)).await;
    }
    assert!(!browser.is_displayed("#unreachable").await);
    scene.app.stop().await;
    let deadline = Instant::now() + SOON;
    while !browser.is_displayed("#unreachable").await {
        assert!(Instant::now() < deadline, "it does not say so");
        sleep(Duration::from_millis(300)).await;
    }
    browser.close().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_list_follows_what_is_stored_until_it_is_paused(pool: PgPool) {
    let Some(browser) = Browser::start(Kind::Desk).await else {
        return;
    };
    let scene = Scene::new(&pool).await;
    let live = |id| vendor(id, "v-1", "Acme", "ACTIVE", 9);
    browser.open(&scene.app, "/events?company=c1").await;
    browser.click("#follow").await;
    store(&pool, [live("msg_live_1")]).await;
    browser.until_text("msg_live_1").await;
    let state = browser.text("#follow-state").await;
    assert_eq!(state, "Following: 1 new");
    browser.click("#follow").await;
    browser.until_text("Paused: 1 new").await;
    store(&pool, [live("msg_live_2")]).await;
    // A view that begins with the page, of an address that was sent to somebody.
    browser.open(&scene.app, "/").await;
    browser.open(&scene.app, "/events?company=c1#live").await;
    browser.until_text("Following").await;
    store(&pool, [live("msg_live_3")]).await;
    browser.until_text("msg_live_3").await;
    let times = "return [...document.querySelectorAll('table.list tbody tr')]
        .map(row => row.querySelector('a').textContent).filter(id => id.startsWith('msg_live'));";
    let shown = browser.run(times).await;
    assert_eq!(
        shown,
        serde_json::json!(["msg_live_3", "msg_live_2", "msg_live_1"])
    );
    assert_eq!(browser.barriers().await, Vec::<String>::new());
    assert_eq!(browser.errors().await, Vec::<String>::new());
    browser.close().await;
    scene.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_user_signs_in_and_out_with_the_keyboard(pool: PgPool) {
    use sqlx::ConnectOptions;
    let Some(browser) = Browser::start(Kind::Desk).await else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    let line = web_console::access::users::line(
        "ada",
        web_console::access::Role::Viewer,
        "correct horse battery",
    );
    std::fs::write(&file, line.expect("a line")).expect("a file");
    let url = pool.connect_options().to_url_lossy();
    let app = App::with(
        url.as_str(),
        &["--users-file", file.to_str().expect("a path")],
    )
    .await;
    browser.open(&app, "/events?company=c1").await;
    assert_eq!(browser.barriers().await, Vec::<String>::new());
    // The name has the focus, tab leads on to the password, and enter signs in.
    browser.press("ada\u{e004}").await;
    browser.press("correct horse battery\u{e007}").await;
    browser.until_text("No event is like that").await;
    let address = browser.address().await;
    assert!(address.ends_with("/events?company=c1"), "{address}");
    browser.click(".who button").await;
    browser.until_heading("Sign in").await;
    browser.close().await;
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_operator_dismisses_and_restores_without_scripts(pool: PgPool) {
    let Some(browser) = Browser::start(Kind::WithoutScripts).await else {
        return;
    };
    store(&pool, [nameless("msg_1", "c1")]).await;
    let app = operators(&pool).await;
    browser.open(&app, "/dead-letters").await;
    browser.click("a.act").await;
    browser.until_heading("Dismiss dead letters").await;
    browser.fill("note", "a test").await;
    browser.click("button.main").await;
    browser.until_text("1 dismissed.").await;
    browser.open(&app, "/event?id=msg_1").await;
    browser.until_text("a test").await;
    browser.click("a.act").await;
    browser.until_heading("Restore dead letters").await;
    browser.click("button.main").await;
    browser.until_text("Dismiss it").await;
    browser.close().await;
    app.stop().await;
}

/// A console on loopback where everybody is an operator, with dead letters that a replay mends.
async fn desk_with_letters(pool: &PgPool) -> App {
    use sqlx::ConnectOptions;
    for n in 0..6 {
        let id = format!("msg_{n}");
        store(pool, [vendor(&id, &format!("v-{n}"), "Acme", "DRAFT", 1)]).await;
    }
    sample::sql(
        pool,
        "update events set problem = '`data` is not that of the vendor its type names: older',
                problem_kind = 'wrong-data',
                raw = convert_to(payload::text, 'utf8');
         delete from vendors",
    )
    .await;
    sample::store(pool, [sample::nameless("msg_nameless", &"W".repeat(300))]).await;
    let url = pool.connect_options().to_url_lossy();
    let arguments = [
        "--operator-database-url",
        url.as_str(),
        "--loopback-role",
        "operator",
    ];
    App::with(url.as_str(), &arguments).await
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_operator_tries_a_replay_and_follows_it_to_its_end(pool: PgPool) {
    for kind in [Kind::Telephone, Kind::WithoutScripts] {
        let Some(browser) = Browser::start(kind).await else {
            return;
        };
        let app = desk_with_letters(&pool).await;
        let looks = async || {
            if kind == Kind::Telephone {
                let wide = browser
                    .run("return document.documentElement.scrollWidth;")
                    .await;
                assert_eq!(wide, 375);
                assert_eq!(browser.barriers().await, Vec::<String>::new());
                assert_eq!(browser.errors().await, Vec::<String>::new());
            }
        };
        browser.open(&app, "/dead-letters").await;
        browser.follow("Try or replay these").await;
        browser.until_heading("Replay dead letters").await;
        looks().await;
        browser.click("button[formaction]").await;
        browser.until_heading("What a replay would do").await;
        browser.until_text("stored, as the newest state").await;
        looks().await;
        browser.refill("rate", "1").await;
        browser.click("button.main").await;
        browser.until_text(": running").await;
        looks().await;
        browser.until_text("7 of 7: done").await;
        assert!(!browser.is_displayed("#unreachable").await);
        looks().await;
        browser.open(&app, "/replays").await;
        browser.until_text("7 of 7").await;
        looks().await;
        browser.close().await;
        app.stop().await;
        sample::sql(
            &pool,
            "truncate events, vendors, replay_jobs, replay_job_letters",
        )
        .await;
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_operator_dismisses_and_restores_with_the_keyboard_alone(pool: PgPool) {
    const ENTER: &str = "\u{e007}";
    let Some(browser) = Browser::start(Kind::Desk).await else {
        return;
    };
    store(&pool, [nameless("msg_1", "c1")]).await;
    let app = operators(&pool).await;
    browser.open(&app, "/dead-letters").await;
    browser.tab_to("a.act").await;
    browser.type_keys(ENTER).await;
    browser.until_heading("Dismiss dead letters").await;
    browser.tab_to("input[name=note]").await;
    browser.type_keys(ENTER).await;
    browser.until_heading("Dismiss dead letters").await;
    browser.type_keys("a test").await;
    browser.type_keys(ENTER).await;
    browser.until_text("1 dismissed.").await;
    browser.open(&app, "/dead-letters?state=dismissed").await;
    browser.tab_to("a.act").await;
    browser.type_keys(ENTER).await;
    browser.until_heading("Restore dead letters").await;
    browser.tab_to("button.main").await;
    browser.type_keys(ENTER).await;
    browser.until_text("1 restored.").await;
    browser.close().await;
    app.stop().await;
}
