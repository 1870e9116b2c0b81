//! Operators try and start replays, which finish after restarts and outages.

use std::time::Duration;

use sqlx::{ConnectOptions, PgPool};
use stack::proxy::Mode;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use crate::{
    app::{App, SOON},
    desk::{Desk, Headers, OPERATORS, open, post, shown},
    outage::proxy,
    sample::{event, nameless, sql, store, vendor},
};

/// Stores dead letters that an older version could not read and this one can.
async fn letters(pool: &PgPool, ids: &[&str]) {
    for id in ids {
        store(pool, [vendor(id, &format!("v-{id}"), "Acme", "DRAFT", 1)]).await;
    }
    let ids = ids.join("', '");
    sql(
        pool,
        &format!(
            "update events set problem = '`data` is not that of the vendor its type names: older',
                    problem_kind = 'wrong-data',
                    raw = convert_to(payload::text, 'utf8')
              where webhook_id in ('{ids}');
             delete from vendors where webhook_id in ('{ids}')"
        ),
    )
    .await;
}

/// A console on loopback where everybody is an operator.
async fn operator(url: &str) -> App {
    App::with(url, &[OPERATORS, url, "--loopback-role", "operator"]).await
}

async fn operator_of(pool: &PgPool) -> App {
    operator(pool.connect_options().to_url_lossy().as_str()).await
}

/// The form for a replay of these.
async fn form(app: &App, choice: &str) -> String {
    let page = app.page(&format!("/dead-letters/replay?{choice}")).await;
    format!("{choice}&{}", shown(&page))
}

/// Starts a replay and returns its path.
async fn begin(app: &App, form: &str) -> String {
    let answer = post(app, "/dead-letters/replay", form, &[]).await;
    assert_eq!(answer.status(), 303);
    let address = answer.headers()["location"].to_str().expect("text");
    address.to_owned()
}

/// The replayed ids, each as often as it was replayed.
async fn replayed(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "select change ->> 'webhook_id'
           from operator_actions, jsonb_array_elements(changes) change
          where action = 'dead-letters replay' order by 1",
    )
    .fetch_all(pool)
    .await
    .expect("the record")
}

async fn until(pool: &PgPool, condition: &str) {
    until_within(pool, condition, SOON).await;
}

async fn until_within(pool: &PgPool, condition: &str, limit: Duration) {
    let deadline = Instant::now() + limit;
    while !is(pool, condition).await {
        assert!(Instant::now() < deadline, "still waiting for {condition}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn is(pool: &PgPool, condition: &str) -> bool {
    let truth: Option<bool> = sqlx::query_scalar(sqlx::AssertSqlSafe(condition.to_owned()))
        .fetch_one(pool)
        .await
        .expect("good SQL");
    truth.unwrap_or(false)
}

const SOME_DONE: &str = "select exists (select from replay_job_letters where outcome is not null)";

/// No outcome is lost or written by a second replay, which would find no dead letter any more.
const ALL_NEWEST: &str = "select bool_and(outcome = 'newest') from replay_job_letters";

const TEN: [&str; 10] = ["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9"];

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_takes_exactly_what_was_shown_and_says_what_became_of_it(pool: PgPool) {
    letters(&pool, &["m1", "m2", "poison"]).await;
    store(
        &pool,
        [nameless("nameless", "c1"), nameless("unrelated", "c2")],
    )
    .await;
    sql(&pool, "alter table vendors add check (id <> 'v-poison')").await;
    let desk = Desk::new(&pool, true).await;
    let operator = desk.sign_in("grace").await;
    let headers = [("cookie", &*operator), ("origin", &*desk.app.url)];
    let (_, page) = desk.page("/dead-letters?company=c1", &operator).await;
    assert!(page.contains("/dead-letters/replay?company=c1"), "{page}");
    let (_, page) = desk
        .page("/dead-letters/replay?company=c1", &operator)
        .await;
    assert!(
        page.contains("Replay 4") && !page.contains("unrelated"),
        "{page}"
    );
    let form = format!("company=c1&rate=1000&{}", shown(&page));
    letters(&pool, &["late"]).await;
    let answer = post(&desk.app, "/dead-letters/replay", &form, &headers).await;
    assert_eq!(answer.headers()["location"], "/replays/1");
    until(&pool, "select ended = 'done' from replay_jobs").await;
    assert_eq!(
        open(&pool).await,
        ["late", "nameless", "poison", "unrelated"]
    );
    assert_eq!(replayed(&pool).await, ["m1", "m2"]);
    let viewer = desk.sign_in("ada").await;
    let (_, page) = desk.page("/replays/1", &viewer).await;
    for expected in [
        "4 of 4: done",
        "by <bdi>grace</bdi>",
        "<bdi>company</bdi>: <bdi>c1</bdi>",
        "stored, as the newest state",
        "`data.name` is missing",
        "refused by postgres",
        "violates check constraint",
    ] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }
    let (_, page) = desk.page("/replays", &viewer).await;
    for expected in ["4 of 4", "grace", "<bdi>company</bdi>: <bdi>c1</bdi>"] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }
    let (_, page) = desk.page("/record?who=grace", &viewer).await;
    assert!(page.contains(r#""job": 1"#), "{page}");
    let by = "select bool_and(person = 'grace' and run = (select run from replay_jobs)
                              and filter ->> 'company' = 'c1') from operator_actions";
    assert!(is(&pool, by).await);
    desk.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_trial_shows_what_a_replay_would_do_and_changes_nothing(pool: PgPool) {
    letters(&pool, &["m1", "m2"]).await;
    store(
        &pool,
        [nameless("nameless", "c1"), event("text", "no JSON")],
    )
    .await;
    sql(
        &pool,
        "update events set problem = 'stopped the worker', problem_kind = 'stopped-worker'
          where webhook_id = 'm2'",
    )
    .await;
    let all = "select string_agg(e::text, ' ' order by webhook_id) from events e";
    let before: String = sqlx::query_scalar(all)
        .fetch_one(&pool)
        .await
        .expect("events");
    let app = operator_of(&pool).await;
    let form = form(&app, "").await;
    let answer = post(&app, "/dead-letters/try", &form, &[]).await;
    assert_eq!(answer.status(), 200);
    let page = answer.text().await.expect("text");
    for expected in [
        "4 of 4 tried",
        "stored, as the newest state",
        "still wrong",
        "use hookctl dead-letters replay",
        "Nothing was changed",
        "Replay 4",
    ] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }
    let after: String = sqlx::query_scalar(all)
        .fetch_one(&pool)
        .await
        .expect("events");
    assert_eq!(after, before);
    let nothing =
        "select not exists (select from vendors) and not exists (select from operator_actions)
                      and not exists (select from replay_jobs)";
    assert!(is(&pool, nothing).await);
    // Its button replays the same ones, even if more have arrived.
    letters(&pool, &["late"]).await;
    begin(&app, &shown(&page)).await;
    until(&pool, "select ended = 'done' from replay_jobs").await;
    assert_eq!(replayed(&pool).await, ["m1"]);
    // The one that stops workers was not read here.
    let left = app.page("/replays/1").await;
    assert!(left.contains("use hookctl dead-letters replay"), "{left}");
    assert_eq!(open(&pool).await, ["late", "m2", "nameless", "text"]);
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_trial_of_too_many_says_how_many_it_left_out(pool: PgPool) {
    store(&pool, [event("msg_1", "no JSON")]).await;
    sql(
        &pool,
        "insert into events (webhook_id, event_type, received_at, raw, body_sha256, problem,
                             problem_kind, attempts)
         select 'many_' || n, event_type, received_at, raw, body_sha256, problem, problem_kind,
                attempts
           from events, generate_series(1, 520) n where webhook_id = 'msg_1'",
    )
    .await;
    let app = operator_of(&pool).await;
    let form = form(&app, "").await;
    let answer = post(&app, "/dead-letters/try", &form, &[]).await;
    let page = answer.text().await.expect("text");
    assert!(page.contains("500 of 521 tried"), "{page}");
    assert!(page.contains("21 were not tried"), "{page}");
    app.stop().await;
}

/// A console as a process of its own, which runs replays.
fn process(pool: &PgPool) -> Child {
    let url = pool.connect_options().to_url_lossy();
    Command::new(env!("CARGO_BIN_EXE_console"))
        .env_clear()
        .args(["--database-url", url.as_str(), OPERATORS, url.as_str()])
        .args(["--listen", "127.0.0.1:0", "--private-listen", "127.0.0.1:0"])
        .kill_on_drop(true)
        .spawn()
        .expect("it starts")
}

async fn signal(process: &Child, signal: &str) {
    let pid = process.id().expect("it runs").to_string();
    let sent = Command::new("kill").args([signal, &pid]).status().await;
    assert!(sent.expect("it can be sent").success());
}

/// The first console is stopped, the second is killed, and the third finishes when the lease of the second has
/// ended.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_goes_on_after_a_restart_of_the_console(pool: PgPool) {
    letters(&pool, &TEN).await;
    let app = operator_of(&pool).await;
    begin(&app, &format!("{}&rate=1", form(&app, "").await)).await;
    until(&pool, SOME_DONE).await;
    app.stop().await;
    assert!(is(&pool, "select ended is null from replay_jobs").await);
    let done = TEN.len() - open(&pool).await.len();
    assert!(done < TEN.len(), "it stops in the middle");
    let mut console = process(&pool);
    let more = format!("select count(outcome) > {done} from replay_job_letters");
    until(&pool, &more).await;
    console.kill().await.expect("it runs");
    assert!(is(&pool, "select ended is null from replay_jobs").await);
    let app = operator_of(&pool).await;
    until_within(&pool, "select ended = 'done' from replay_jobs", 3 * SOON).await;
    assert_eq!(replayed(&pool).await, TEN);
    assert!(is(&pool, ALL_NEWEST).await);
    assert!(open(&pool).await.is_empty());
    app.stop().await;
}

/// It freezes in the middle of a batch, and wakes while the other one is in the middle of the rest.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn another_console_takes_over_from_one_that_is_frozen(pool: PgPool) {
    letters(&pool, &TEN).await;
    sql(
        &pool,
        "create function wait() returns trigger language plpgsql as
             'begin perform pg_sleep(3); return new; end';
         create trigger wait before insert on vendors
             for each row when (new.id = 'v-m3') execute function wait()",
    )
    .await;
    let app = operator_of(&pool).await;
    begin(&app, &format!("{}&rate=1", form(&app, "").await)).await;
    until(&pool, SOME_DONE).await;
    app.stop().await;
    let mut console = process(&pool);
    let in_a_batch = "select exists (select from pg_stat_activity
                                      where datname = current_database() and wait_event = 'PgSleep')";
    until(&pool, in_a_batch).await;
    signal(&console, "-STOP").await;
    let done = "select count(outcome) from replay_job_letters";
    let done: i64 = sqlx::query_scalar(done)
        .fetch_one(&pool)
        .await
        .expect("a count");
    let app = operator_of(&pool).await;
    let more = format!("select count(outcome) > {done} from replay_job_letters");
    until_within(&pool, &more, 3 * SOON).await;
    assert!(is(&pool, "select ended is null from replay_jobs").await);
    signal(&console, "-CONT").await;
    until(&pool, "select ended = 'done' from replay_jobs").await;
    // It looks for jobs meanwhile.
    sleep(Duration::from_secs(4)).await;
    assert!(console.try_wait().expect("its state").is_none(), "it runs");
    assert_eq!(replayed(&pool).await, TEN);
    assert!(is(&pool, ALL_NEWEST).await);
    assert!(open(&pool).await.is_empty());
    // It was interrupted once, and nothing was counted twice.
    assert!(is(&pool, "select tries = 0 and error is null from replay_jobs").await);
    console.kill().await.expect("it runs");
    app.stop().await;
}

/// No single statement takes too long, but all together do.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_dead_letter_that_takes_too_long_is_left_and_the_others_are_replayed(pool: PgPool) {
    letters(&pool, &["m1", "slow", "m2"]).await;
    sql(
        &pool,
        "create function wait() returns trigger language plpgsql as
             'begin perform pg_sleep(15); return new; end';
         create trigger wait before insert on vendors
             for each row when (new.id = 'v-slow') execute function wait();
         create trigger wait before update on events
             for each row when (new.webhook_id = 'slow') execute function wait();
         create trigger wait before update on replay_job_letters
             for each row when (new.webhook_id = 'slow' and new.outcome = 'newest')
             execute function wait()",
    )
    .await;
    let app = operator_of(&pool).await;
    let replay = begin(&app, &format!("{}&rate=1", form(&app, "").await)).await;
    until_within(&pool, "select ended = 'done' from replay_jobs", 4 * SOON).await;
    assert_eq!(replayed(&pool).await, ["m1", "m2"]);
    assert_eq!(open(&pool).await, ["slow"]);
    let page = app.page(&replay).await;
    for expected in ["refused by postgres", "took longer than 40 s"] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }
    app.stop().await;
}

/// The batch would be halved until each letter is alone, for twenty seconds each time.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_stops_in_the_middle_of_a_batch_that_is_slow(pool: PgPool) {
    letters(&pool, &TEN).await;
    sql(
        &pool,
        "create function wait() returns trigger language plpgsql as
             'begin perform pg_sleep(30); return new; end';
         create trigger wait before insert on vendors for each row execute function wait()",
    )
    .await;
    let app = operator_of(&pool).await;
    let replay = begin(&app, &format!("{}&rate=100", form(&app, "").await)).await;
    let sleeps = "select exists (select from pg_stat_activity
                                  where datname = current_database() and wait_event = 'PgSleep')";
    until(&pool, sleeps).await;
    post(&app, &format!("{replay}/stop"), "", &[]).await;
    until_within(&pool, "select ended = 'stopped' from replay_jobs", 4 * SOON).await;
    assert_eq!(replayed(&pool).await, [""; 0]);
    assert_eq!(open(&pool).await.len(), TEN.len());
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn two_operators_on_two_consoles_replay_each_letter_once(pool: PgPool) {
    letters(&pool, &TEN).await;
    let (one, other) = tokio::join!(operator_of(&pool), operator_of(&pool));
    let rate = "&rate=20";
    let all = form(&one, "").await + rate;
    let (first, second, part) = tokio::join!(begin(&one, &all), begin(&other, &all), async {
        begin(&other, &(form(&other, "id=m7").await + rate)).await
    },);
    assert_eq!(first, second, "one set has one replay");
    assert_ne!(first, part);
    until(
        &pool,
        "select count(*) = 2 from replay_jobs where ended = 'done'",
    )
    .await;
    assert_eq!(replayed(&pool).await, TEN);
    let gone =
        "select count(*) = 1 from replay_job_letters where webhook_id = 'm7' and outcome = 'gone'";
    assert!(is(&pool, gone).await);
    one.stop().await;
    other.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_can_be_stopped_and_shows_how_many_are_left(pool: PgPool) {
    letters(&pool, &TEN).await;
    let app = operator_of(&pool).await;
    let replay = begin(&app, &format!("{}&rate=1", form(&app, "").await)).await;
    until(&pool, SOME_DONE).await;
    assert!(app.page(&replay).await.contains("Stop it"));
    let stop = format!("{replay}/stop");
    for _ in 0..2 {
        let answer = post(&app, &stop, "", &[]).await;
        assert_eq!(answer.headers()["location"].to_str().expect("text"), replay);
    }
    until(&pool, "select ended = 'stopped' from replay_jobs").await;
    let left = open(&pool).await.len();
    assert!(left > 0);
    let page = app.page(&replay).await;
    assert!(
        page.contains(&format!("{left} were not replayed.")),
        "{page}"
    );
    assert!(!page.contains("Stop it"), "{page}");
    let stops =
        "select count(*) = 1 from operator_actions where action = 'dead-letters replay stop'";
    assert!(is(&pool, stops).await);
    assert_eq!(replayed(&pool).await.len() + left, TEN.len());
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_waits_for_postgres_and_does_nothing_twice(pool: PgPool) {
    letters(&pool, &TEN).await;
    let (url, proxy) = proxy(&pool).await;
    let app = operator(&url).await;
    begin(&app, &format!("{}&rate=1", form(&app, "").await)).await;
    until(&pool, SOME_DONE).await;
    proxy.set(Mode::Cut).await;
    let page = app.page_with("/replays/1", 503).await;
    assert!(page.contains("Postgres is away"), "{page}");
    assert!(!open(&pool).await.is_empty(), "it is cut in the middle");
    // Longer than the pause before the next try, so that one fails.
    sleep(Duration::from_secs(4)).await;
    proxy.set(Mode::Pass).await;
    until(&pool, "select ended = 'done' from replay_jobs").await;
    assert_eq!(replayed(&pool).await, TEN);
    assert!(is(&pool, ALL_NEWEST).await);
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_that_fails_again_and_again_ends(pool: PgPool) {
    letters(&pool, &["m1"]).await;
    let app = operator_of(&pool).await;
    sql(&pool, "alter table vendors rename to others").await;
    let replay = begin(&app, &form(&app, "").await).await;
    until(&pool, "select ended = 'failed' from replay_jobs").await;
    let page = app.page(&replay).await;
    for expected in ["0 of 1: failed", "does not exist", "1 were not replayed"] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }
    sql(&pool, "alter table others rename to vendors").await;
    begin(&app, &form(&app, "").await).await;
    until(
        &pool,
        "select count(*) = 1 from replay_jobs where ended = 'done'",
    )
    .await;
    assert!(open(&pool).await.is_empty());
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn only_operators_replay_and_a_session_that_ends_stops_no_replay(pool: PgPool) {
    letters(&pool, &TEN).await;
    let desk = Desk::new(&pool, true).await;
    let (viewer, operator) = (desk.sign_in("ada").await, desk.sign_in("grace").await);
    let (_, page) = desk.page("/dead-letters/replay", &operator).await;
    let form = format!("rate=1&{}", shown(&page));
    let ours = desk.app.url.clone();
    let refused: [(&str, Headers<'_>, u16); 3] = [
        ("nobody", &[("sec-fetch-site", "same-origin")], 303),
        ("a viewer", &[("cookie", &viewer), ("origin", &ours)], 403),
        (
            "another site",
            &[("cookie", &operator), ("origin", "https://evil.example")],
            403,
        ),
    ];
    for (who, headers, status) in refused {
        for path in [
            "/dead-letters/replay",
            "/dead-letters/try",
            "/replays/1/stop",
        ] {
            let answer = post(&desk.app, path, &form, headers).await;
            assert_eq!(answer.status().as_u16(), status, "{who}: {path}");
        }
    }
    assert!(is(&pool, "select not exists (select from replay_jobs)").await);
    for path in ["/dead-letters/replay", "/dead-letters/try"] {
        assert_eq!(desk.page(path, &viewer).await.0, 403, "{path}");
    }
    let ours = [("cookie", &*operator), ("origin", &*desk.app.url)];
    for rate in ["0", "1001", "x"] {
        let form = form.replace("rate=1", &format!("rate={rate}"));
        let answer = post(&desk.app, "/dead-letters/replay", &form, &ours).await;
        assert_eq!(answer.status(), 400, "{rate}");
    }
    let answer = post(&desk.app, "/dead-letters/replay", &form, &ours).await;
    assert_eq!(answer.headers()["location"], "/replays/1");
    until(&pool, SOME_DONE).await;
    post(&desk.app, "/sign-out", "", &ours).await;
    assert_eq!(desk.page("/replays/1", &operator).await.0, 303);
    // A page that refreshes itself is loaded again, which leads to the sign-in.
    let part = desk
        .app
        .client
        .get(format!("{}/replays/1/progress", desk.app.url));
    let part = part
        .header("hx-request", "true")
        .send()
        .await
        .expect("an answer");
    assert_eq!(
        (part.status().as_u16(), &part.headers()["hx-refresh"]),
        (401, &"true".parse().expect("text"))
    );
    assert!(!open(&pool).await.is_empty(), "it is in the middle");
    until(&pool, "select ended = 'done' from replay_jobs").await;
    assert_eq!(replayed(&pool).await, TEN);
    assert!(is(&pool, ALL_NEWEST).await);
    desk.app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_is_deleted_a_month_after_its_end_and_not_before(pool: PgPool) {
    letters(&pool, &["m1", "m2"]).await;
    let app = operator_of(&pool).await;
    begin(&app, &form(&app, "id=m1").await).await;
    until(&pool, "select ended = 'done' from replay_jobs").await;
    for refused in [
        "delete from replay_jobs",
        "update replay_jobs set ended = 'failed'",
        "update replay_job_letters set outcome = 'gone'",
        "insert into replay_job_letters (job, webhook_id, position) values (1, 'm9', 9)",
        "delete from replay_job_letters",
    ] {
        let refused = sqlx::query(refused).execute(&pool).await;
        refused.expect_err("it has just ended");
    }
    sql(
        &pool,
        "alter table replay_jobs disable trigger user;
         update replay_jobs set ended_at = now() - interval '721 hours';
         alter table replay_jobs enable trigger user",
    )
    .await;
    begin(&app, &form(&app, "id=m2").await).await;
    until(
        &pool,
        "select bool_and(ended = 'done') and min(id) = 2 from replay_jobs",
    )
    .await;
    assert!(is(&pool, "select bool_and(job = 2) from replay_job_letters").await);
    assert_eq!(app.get("/replays/1").await.status(), 404);
    assert_eq!(app.get("/replays/x").await.status(), 404);
    app.stop().await;
}
