//! `hookctl` on events of companies that their secrets do not speak for, and on resources of two
//! companies.

use serde_json::Value;
use shared::{AcceptedEvent, Companies};
use sqlx::PgPool;

use crate::place::{
    hookctl, is, json, lines, run, sql, stop_worker, store_events, text, vendor, vendor_at,
};

fn tied_to(companies: &str, event: AcceptedEvent) -> AcceptedEvent {
    AcceptedEvent {
        secret_companies: Some(Companies::read(companies)),
        ..event
    }
}

/// A vendor of the company `c2`, and else as [`vendor_at`].
fn of_c2(id: &str, vendor: &str, minute: u8) -> AcceptedEvent {
    let event = vendor_at(id, vendor, "Other", minute);
    let body = String::from_utf8(event.body.to_vec()).expect("text");
    crate::place::event(
        id,
        body.replace(r#""companyId":"c1""#, r#""companyId":"c2""#),
    )
}

fn outcome<'r>(replayed: &'r [Value], id: &str) -> &'r str {
    let found = replayed.iter().find(|r| r["webhook_id"] == id);
    found.expect("it is there")["outcome"]
        .as_str()
        .expect("text")
}

async fn rebuild(pool: &PgPool, code: i32) -> Vec<Value> {
    let arguments = ["rebuild", "--family=vendor", "--json", "--yes"];
    let output = hookctl(pool, &arguments).output().await;
    let output = output.expect("hookctl runs");
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    lines(&output)
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_judges_by_the_companies_again_unless_any_is_to_be_believed(pool: PgPool) {
    store_events(&pool, [tied_to("c2", vendor("foreign"))]).await;
    // This one was stored unread, so only a replay can know.
    stop_worker(&pool, &tied_to("c2", vendor("stopped"))).await;
    let listed = json(&pool, &["list", "--problem", "foreign-company"], 0).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["company_id"], "c1");
    let shown = text(&run(&pool, &["show", "foreign"], 0).await);
    assert!(shown.contains("secret is for"), "{shown}");

    let replayed = json(&pool, &["replay", "--yes"], 3).await;
    for id in ["foreign", "stopped"] {
        assert_eq!(outcome(&replayed, id), "still-wrong");
    }
    let trial = text(&run(&pool, &["replay"], 3).await);
    assert!(
        trial.contains("as if the other events were not replayed"),
        "{trial}"
    );
    let unfiltered = run(&pool, &["replay", "--any-company", "--yes"], 2).await;
    assert!(
        text(&unfiltered).contains("--company"),
        "{}",
        text(&unfiltered)
    );
    assert!(is(&pool, "select not exists (select from vendors)").await);

    let corrected = [
        "replay",
        "--any-company",
        "--id=foreign",
        "--id=stopped",
        "--yes",
    ];
    let replayed = json(&pool, &corrected, 0).await;
    for id in ["foreign", "stopped"] {
        assert_eq!(outcome(&replayed, id), "newest");
    }
    // It stays believed.
    sql(&pool, "truncate vendors").await;
    rebuild(&pool, 0).await;
    assert!(is(&pool, "select count(*) = 2 from vendors").await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_leaves_a_resource_with_its_company(pool: PgPool) {
    store_events(&pool, [vendor_at("own", "v1", "Own", 1)]).await;
    store_events(&pool, [of_c2("other", "v1", 2)]).await;
    for flags in [
        vec!["replay", "--yes"],
        vec!["replay", "--any-company", "--company=c2", "--yes"],
    ] {
        let replayed = json(&pool, &flags, 3).await;
        assert_eq!(outcome(&replayed, "other"), "still-wrong");
    }
    let listed = json(&pool, &["list", "--problem", "company-change"], 0).await;
    assert_eq!(listed.len(), 1);
    // The row of the other company is gone: now it is the first one.
    sql(
        &pool,
        "delete from events where webhook_id = 'own'; delete from vendors",
    )
    .await;
    let replayed = json(&pool, &["replay", "--yes"], 0).await;
    assert_eq!(outcome(&replayed, "other"), "newest");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_rebuild_leaves_a_resource_with_its_company(pool: PgPool) {
    store_events(
        &pool,
        [
            vendor_at("m1", "v1", "Old", 1),
            vendor_at("m3", "v1", "Own", 3),
        ],
    )
    .await;
    // The row of another company that came from outside; its own event says whose it is.
    sql(&pool, "update vendors set company_id = 'c2'").await;
    let report = rebuild(&pool, 0).await;
    assert_eq!(report[0]["wrong"], 1, "{report:?}");
    let is_own = "select company_id = 'c1' and webhook_id = 'm3' from vendors";
    assert!(is(&pool, is_own).await);

    // Two companies, as versions stored them that took the newest state of any company.
    store_events(&pool, [of_c2("m2", "v1", 4)]).await;
    sql(&pool, "update events set problem = null").await;
    let output = hookctl(&pool, &["rebuild", "--yes"]).output().await;
    let output = output.expect("hookctl runs");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let shown = text(&output);
    assert!(
        shown.contains("m2") && shown.contains("another company"),
        "{shown}"
    );
    assert!(is(&pool, is_own).await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_trial_says_of_two_companies_what_the_run_does(pool: PgPool) {
    // In the order of their storing, which is not that of their ids.
    store_events(&pool, [vendor_at("m2", "v1", "Own", 1)]).await;
    store_events(&pool, [of_c2("m1", "v1", 2)]).await;
    store_events(&pool, [vendor_at("m3", "v1", "Older", 0)]).await;
    let make_dead_letters = "
        update events set problem = '`data` is not that of the vendor its type names: older',
               problem_kind = 'wrong-data',
               raw = convert_to(payload::text, 'utf8');
        delete from vendors";
    for rate in ["1", "1000"] {
        sql(&pool, make_dead_letters).await;
        for flags in [&["--rate", rate][..], &["--rate", rate, "--yes"]] {
            let replayed = json(&pool, &[&["replay"], flags].concat(), 3).await;
            let outcomes = ["m1", "m2", "m3"].map(|id| outcome(&replayed, id));
            let expected = ["still-wrong", "newest", "superseded"];
            assert_eq!(outcomes, expected, "{flags:?}");
        }
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replayed_event_keeps_the_companies_of_its_secret(pool: PgPool) {
    stop_worker(&pool, &tied_to("c1 c3", vendor("own"))).await;
    let replayed = json(&pool, &["replay", "--yes"], 0).await;
    assert_eq!(outcome(&replayed, "own"), "newest");
    assert!(is(&pool, "select secret_companies = '{c1,c3}' from events").await);
}

/// As a version stored it that did not compare the companies yet.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn no_row_is_computed_of_an_event_of_a_company_that_its_secret_does_not_speak_for(
    pool: PgPool,
) {
    let stolen = AcceptedEvent {
        secret_name: Some("stolen".to_owned()),
        ..vendor_at("stolen", "v1", "Forged", 9)
    };
    store_events(&pool, [vendor_at("foreign", "v1", "Foreign", 1), stolen]).await;
    store_events(&pool, [vendor_at("own", "v2", "Own", 1)]).await;
    sql(
        &pool,
        "update events set secret_companies = '{c2}' where webhook_id = 'foreign';
         update events set secret_companies = '{c1}' where webhook_id = 'own'",
    )
    .await;
    let distrust = [
        "secrets",
        "distrust",
        "--secret=stolen",
        "--since=2025-01-01T00:00:00Z",
        "--yes",
    ];
    let output = hookctl(&pool, &distrust).output().await;
    let output = output.expect("hookctl runs");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let only_own = "select array_agg(webhook_id) = array['own'] from vendors";
    assert!(is(&pool, only_own).await);

    sql(&pool, "truncate vendors").await;
    let report = rebuild(&pool, 3).await;
    assert_eq!(report[0]["problems"], 1, "{report:?}");
    assert!(is(&pool, only_own).await);
}
