//! `hookctl reconcile`, with a real ingest and real workers.

use std::{collections::BTreeSet, process::Output, time::Duration};

use chrono::Utc;
use clap::Parser;
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{
        BasicConsumeOptions, BasicQosOptions, ExchangeDeleteOptions, QueueDeleteOptions,
        QueuePurgeOptions,
    },
    types::FieldTable,
};
use serde_json::Value;
use shared::{
    AcceptedEvent, Family,
    message::Receipt,
    topology::{Declare, Sight, Topology},
};
use sqlx::{ConnectOptions, PgPool};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::place::{
    SOON, event, forge, hookctl, is, job_at, lines, nameless, spool, sql, store, store_events,
    text, until, vendor, vendor_at, work,
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Makes everything that was accepted an hour older.
const AN_HOUR_LATER: &str =
    "update webhook_receipts set received_at = received_at - interval '1 hour'";

/// The stores, with names of this test's own.
struct Site {
    pool: PgPool,
    prefix: String,
    stop: CancellationToken,
    _connection: Connection,
    channel: Channel,
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("set {name}, or use `cargo stack test`"))
}

impl Site {
    async fn new(pool: &PgPool) -> Self {
        let connection =
            Connection::connect(&variable("AMQP_URL"), ConnectionProperties::default())
                .await
                .expect("RabbitMQ at AMQP_URL");
        let site = Self {
            pool: pool.clone(),
            prefix: format!("test-{:016x}", rand::random::<u64>()),
            stop: CancellationToken::new(),
            channel: connection.create_channel().await.expect("a channel"),
            _connection: connection,
        };
        let drifts = site
            .topology()
            .declare(&site._connection, Declare::Active, Sight::All)
            .await;
        assert!(drifts.expect("a connection").is_empty());
        site
    }

    fn topology(&self) -> Topology {
        Topology::new(&self.prefix)
    }

    fn settings(&self) -> Vec<String> {
        let database = self.pool.connect_options().to_url_lossy();
        [
            "--database-url",
            database.as_str(),
            "--amqp-url",
            &variable("AMQP_URL"),
            "--topology-prefix",
            &self.prefix,
            "--private-listen=127.0.0.1:0",
        ]
        .map(str::to_owned)
        .into()
    }

    /// Lets a real ingest accept these.
    async fn accept(&self, events: &[AcceptedEvent]) {
        let secrets = format!("--webhook-secrets=current={SECRET}");
        let own = ["ingest", "--listen=127.0.0.1:0", &secrets].map(str::to_owned);
        let config = ingest::config::Config::parse_from(own.into_iter().chain(self.settings()));
        let service = ingest::service::Service::bind(&config).expect("good settings");
        let url = format!("http://{}/webhooks/pleo", service.address());
        let readiness = format!("http://{}/readyz", service.private_address());
        let stop = CancellationToken::new();
        let running = tokio::spawn(service.run(stop.clone()));
        // Before that it would spool them.
        let deadline = Instant::now() + SOON;
        while !has_both_stores(readiness.clone()).await {
            assert!(Instant::now() < deadline, "ingest has no store");
            sleep(Duration::from_millis(50)).await;
        }
        for event in events {
            assert_eq!(post(url.clone(), event.clone()).await, 202);
        }
        stop.cancel();
        running.await.expect("no panic").expect("a stop in order");
    }

    /// Lets real workers store what is queued, until the test is over.
    fn start_workers(&self) {
        for family in Family::ALL {
            let own = ["worker", "--migrate=false"].map(str::to_owned);
            let config = worker::config::Config::parse_from(own.into_iter().chain(self.settings()));
            let stop = self.stop.clone();
            tokio::spawn(async move { worker::service::run(family, &config, stop).await });
        }
    }

    fn hookctl(&self, flags: &[&str]) -> Command {
        let mut command = hookctl(&self.pool, &[&["reconcile"], flags].concat());
        command
            .env("AMQP_URL", variable("AMQP_URL"))
            .env("TOPOLOGY_PREFIX", &self.prefix);
        command
    }

    async fn reconcile(&self, flags: &[&str], code: i32) -> Output {
        let output = self.hookctl(flags).output().await.expect("hookctl runs");
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        output
    }

    /// The report, as JSON.
    async fn report(&self, flags: &[&str], code: i32) -> Value {
        let output = self.reconcile(&[flags, &["--json"]].concat(), code).await;
        let [report] = &lines(&output)[..] else {
            panic!("one line: {}", text(&output));
        };
        report.clone()
    }

    /// The report, whatever the verdict is.
    async fn look(&self, flags: &[&str]) -> Value {
        let mut command = self.hookctl(&[flags, &["--json"]].concat());
        lines(&command.output().await.expect("hookctl runs")).swap_remove(0)
    }

    async fn clean_up(self) {
        self.stop.cancel();
        let topology = self.topology();
        for queue in topology.queues() {
            self.channel
                .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
                .await
                .expect("the queue, or none");
        }
        for exchange in topology.exchanges() {
            self.channel
                .exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default())
                .await
                .expect("the exchange");
        }
    }
}

/// Whether a service is ready and none of its checks fails.
async fn has_both_stores(readiness: String) -> bool {
    let body = tokio::task::spawn_blocking(move || {
        let mut response = ureq::get(&readiness).call().ok()?;
        response.body_mut().read_json::<Value>().ok()
    });
    let body = body.await.expect("no panic").unwrap_or_default();
    let checks = body["checks"].as_array();
    checks.is_some_and(|checks| checks.iter().all(|check| check["ok"] == true))
}

/// Sends a webhook; the answer's status.
async fn post(url: String, event: AcceptedEvent) -> u16 {
    let now = Utc::now().timestamp();
    let signature = ingest::signature::sign(SECRET, &event.webhook_id, now, &event.body)
        .expect("a good secret");
    tokio::task::spawn_blocking(move || {
        ureq::post(&url)
            .config()
            .http_status_as_error(false)
            .build()
            .header("webhook-id", &event.webhook_id)
            .header("webhook-timestamp", now.to_string())
            .header("webhook-signature", signature)
            .send(&event.body[..])
            .map_or(0, |response| response.status().as_u16())
    })
    .await
    .expect("no panic")
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_sound_pipeline_is_fine_and_every_figure_is_told(pool: PgPool) {
    let site = Site::new(&pool).await;
    site.start_workers();
    site.accept(&[vendor("m1"), vendor("m2"), nameless("m3")])
        .await;
    until(&pool, "select count(*) = 3 from events").await;
    sql(&pool, AN_HOUR_LATER).await;
    let management = variable("RABBITMQ_MANAGEMENT_URL");
    for flags in [vec![], vec!["--rabbitmq-management-url", &management]] {
        let report = site.report(&flags, 0).await;
        let fields: BTreeSet<_> = report
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            fields,
            BTreeSet::from([
                "events",
                "late",
                "late_receipts",
                "missing",
                "missing_after_s",
                "queues",
                "receipts",
                "second_bodies",
                "spooled",
                "typed_tables",
                "unstored",
                "unstored_by_age",
                "verdict",
                "written_off",
                "written_off_receipts"
            ])
        );
        assert_eq!(report["verdict"], "fine");
        assert_eq!(
            (&report["receipts"], &report["unstored"]),
            (&3.into(), &0.into())
        );
        let events = &report["events"];
        assert_eq!(
            (
                &events["stored"],
                &events["healthy"],
                &events["dead_letters"]
            ),
            (&3.into(), &2.into(), &1.into())
        );
        assert_eq!(
            report["queues"][1]["name"],
            site.topology().queue(Family::Vendor)
        );
        assert_eq!(report["queues"][1]["exists"], true);
        assert_eq!(
            report["queues"][1]["unacknowledged"].is_null(),
            flags.is_empty(),
            "only the management knows"
        );
        let page = text(&site.reconcile(&flags, 0).await);
        assert!(page.contains("fine: whatever was accepted"), "{page}");
    }
    site.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_purged_queue_is_a_loss_and_its_events_are_named(pool: PgPool) {
    let site = Site::new(&pool).await;
    let events: Vec<_> = (1..=40).map(|i| vendor(&format!("m{i}"))).collect();
    site.accept(&events).await;
    until(&pool, "select count(*) = 40 from unstored_receipts").await;

    let report = site.report(&[], 0).await;
    assert_eq!(
        (&report["unstored"], &report["late"]),
        (&40.into(), &0.into())
    );
    assert_eq!(report["unstored_by_age"][0]["count"], 40, "just accepted");
    sql(&pool, AN_HOUR_LATER).await;
    let report = site.report(&[], 0).await;
    assert_eq!(report["late"], 40, "late, and in the queue");
    assert_eq!(report["missing"], 0);
    assert_eq!(report["unstored_by_age"][4]["age"], "1h to 1d");
    assert_eq!(report["unstored_by_age"][4]["count"], 40);

    let queue = site.topology().queue(Family::Vendor);
    site.channel
        .queue_purge(queue.as_str().into(), QueuePurgeOptions::default())
        .await
        .expect("the queue");
    let report = site.report(&["--limit", "2"], 3).await;
    assert_eq!(report["verdict"], "missing");
    assert_eq!(report["missing"], 40);
    let late = report["late_receipts"].as_array().expect("a list");
    assert_eq!(late.len(), 2);
    assert!(late[0]["age_s"].as_f64().expect("seconds") > 3_600.0);
    let page = text(&site.reconcile(&["--limit", "2"], 3).await);
    for expected in ["40 accepted events are missing", "and 38 more", "m1"] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }

    // Published less than RECEIPT_TRUST ago: ingest would call a repetition a duplicate.
    assert!(late[0]["duplicate_until"].is_string(), "{}", late[0]);
    assert!(
        page.contains("a repetition counts as a duplicate until 20"),
        "{page}"
    );
    sql(
        &pool,
        "update webhook_receipts set published_at = published_at - interval '1 hour'",
    )
    .await;
    let report = site.report(&["--limit", "2"], 3).await;
    assert_eq!(report["late_receipts"][0]["duplicate_until"], Value::Null);
    let page = text(&site.reconcile(&["--limit", "2"], 3).await);
    assert!(!page.contains("duplicate"), "{page}");
    assert_eq!(site.report(&["--missing-after", "2h"], 0).await["late"], 0);

    // What is young may be on its way, and one message can hold only 32 of the late ones.
    site.accept(&[vendor("young")]).await;
    let report = site.report(&[], 3).await;
    assert_eq!(
        (&report["late"], &report["missing"]),
        (&40.into(), &8.into())
    );

    site.channel
        .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
        .await
        .expect("the queue");
    let report = site.report(&[], 3).await;
    assert_eq!(report["queues"][1]["exists"], false);
    assert_eq!(report["missing"], 40);
    site.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_a_worker_has_in_hand_is_not_missing(pool: PgPool) {
    let site = Site::new(&pool).await;
    site.accept(&["m1", "m2"].map(vendor)).await;
    until(&pool, "select count(*) = 2 from unstored_receipts").await;
    sql(&pool, AN_HOUR_LATER).await;
    let queue = site.topology().queue(Family::Vendor);
    site.channel
        .basic_qos(10, BasicQosOptions::default())
        .await
        .expect("a prefetch");
    let _consumer = site
        .channel
        .basic_consume(
            queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("a subscription");
    let management = variable("RABBITMQ_MANAGEMENT_URL");
    let flags = ["--rabbitmq-management-url", &management];
    // The management samples every five seconds.
    let deadline = Instant::now() + SOON;
    while site.look(&flags).await["queues"][1]["unacknowledged"] != 2 {
        assert!(Instant::now() < deadline, "never in hand");
        sleep(Duration::from_millis(200)).await;
    }
    let report = site.report(&flags, 0).await;
    assert_eq!(
        (&report["late"], &report["missing"]),
        (&2.into(), &0.into())
    );
    site.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_spooled_event_is_not_missing(pool: PgPool) {
    let site = Site::new(&pool).await;
    spool(&pool, &vendor("m1"), 0, 0).await;
    sql(
        &pool,
        "insert into webhook_receipts
         select webhook_id, body_sha256, now() - interval '1 hour', null from webhook_spool",
    )
    .await;
    let report = site.report(&[], 0).await;
    assert_eq!(
        (&report["spooled"], &report["unstored"]),
        (&1.into(), &0.into())
    );
    site.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn events_that_were_accepted_while_postgres_was_away_are_counted_apart(pool: PgPool) {
    let site = Site::new(&pool).await;
    let mut without_receipt = work(vendor("m1"));
    without_receipt.receipt = Receipt::Missing;
    store(&pool, [without_receipt, work(vendor("m2"))]).await;
    store_events(&pool, [vendor_at("m1", "m1", "Second", 2)]).await;
    let report = site.report(&[], 0).await;
    let events = &report["events"];
    assert_eq!(events["without_dedup"], 1);
    assert_eq!(events["receipt_swept"], 1, "m2, which never had one here");
    assert_eq!(events["second_bodies"], 1);
    let second = report["second_bodies"][0].as_str().expect("an id");
    assert!(second.starts_with("m1#conflict-"), "{second}");
    site.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_typed_table_that_does_not_agree_with_the_events_is_found(pool: PgPool) {
    let site = Site::new(&pool).await;
    store_events(&pool, ["m1", "m2", "m3"].map(vendor)).await;
    site.reconcile(&[], 0).await;
    sql(
        &pool,
        "delete from vendors where id = 'm1'; delete from events where webhook_id = 'm2'",
    )
    .await;
    let report = site.report(&[], 3).await;
    assert_eq!(report["verdict"], "disagreement");
    let vendors = &report["typed_tables"][1];
    assert_eq!(vendors["table"], "vendors");
    assert_eq!(vendors["such_events"], serde_json::json!(["m1"]));
    assert_eq!(vendors["such_rows"], serde_json::json!(["m2"]));
    let page = text(&site.reconcile(&[], 3).await);
    assert!(page.contains("have no row in vendors"), "{page}");

    // Where events are kept for some time only, an old row may outlive its event.
    sql(
        &pool,
        "update vendors set stored_at = now() - interval '50 days' where id = 'm2';
         delete from events where webhook_id = 'm1'",
    )
    .await;
    site.reconcile(&["--event-retention", "60d"], 0).await;
    site.reconcile(&["--event-retention", "120d"], 3).await;
    // If the event is there and not healthy, that is no matter of age.
    sql(
        &pool,
        "update vendors set stored_at = now() - interval '50 days' where id = 'm3';
         update events set problem = 'distrusted: stolen', problem_kind = 'distrusted',
                stored_at = now() - interval '50 days'
          where webhook_id = 'm3'",
    )
    .await;
    let report = site.report(&["--event-retention", "60d"], 3).await;
    let rows = &report["typed_tables"][1]["such_rows"];
    assert_eq!(*rows, serde_json::json!(["m3"]));
    assert!(is(&pool, "select count(*) = 2 from vendors").await);
    site.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_under_another_family_than_its_body_is_of_says_nothing_of_a_row(pool: PgPool) {
    let site = Site::new(&pool).await;
    store_events(&pool, [job_at("m1", "j1", 1)]).await;
    let newer = job_at("f1", "j1", 2);
    forge(&pool, &newer, "v1.vendor.created", None).await;
    let report = site.report(&[], 3).await;
    let [jobs, vendors] = [0, 1].map(|i| &report["typed_tables"][i]);
    assert_eq!(vendors["such_events"], serde_json::json!(["f1"]));
    assert_eq!(jobs["outdated_rows"], 0);
    sql(&pool, "update export_jobs set webhook_id = 'f1'").await;
    let report = site.report(&[], 3).await;
    let jobs = &report["typed_tables"][0];
    assert_eq!(jobs["such_rows"], serde_json::json!(["j1"]));
    site.clean_up().await;
}

/// Vendors and a job as their events say.
async fn fill(pool: &PgPool) {
    // Times with more digits than a column keeps, before the year 1, and around Postgres' epoch.
    let times = r#"{"eventType":"v1.vendor.created","data":{"id":"v4","companyId":"c1","name":"n",
        "state":"DRAFT","createdAt":"0000-01-02T00:00:00.1234567Z",
        "updatedAt":"1999-12-31T23:59:59.9999995Z","deletedAt":"2025-02-21T10:05:43.530450712Z"}}"#;
    store_events(
        pool,
        [
            vendor_at("m1", "v1", "old", 1),
            vendor_at("m2", "v2", "right", 1),
            vendor_at("m3", "v3", "right", 1),
            event("m4", times),
            event("m5", hookctl::sample::EXPORT_JOB.body),
        ],
    )
    .await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_row_that_is_not_what_its_event_says_is_named(pool: PgPool) {
    let site = Site::new(&pool).await;
    fill(&pool).await;
    sql(&pool, "create table before as select * from vendors").await;
    store_events(&pool, [vendor_at("m6", "v1", "new", 2)]).await;
    // A newer state of another company, as is left where a row of that company was erased.
    let body = vendor_at("m7", "v2", "another", 9).body;
    let body = String::from_utf8(body.to_vec()).expect("text");
    store_events(&pool, [event("m7", body.replace(r#""c1""#, r#""c2""#))]).await;
    sql(
        &pool,
        "update events set problem = null where webhook_id = 'm7'",
    )
    .await;
    site.reconcile(&[], 0).await;

    sql(
        &pool,
        "update vendors set name = 'by hand', country = 'DE' where id = 'v2';
         delete from vendors where id = 'v1';
         insert into vendors select * from before where id = 'v1';
         update events set problem = 'x' where webhook_id = 'm3'",
    )
    .await;
    let report = site.report(&[], 3).await;
    assert_eq!(report["verdict"], "disagreement");
    let vendors = &report["typed_tables"][1];
    assert_eq!(
        vendors["such_differing_rows"],
        serde_json::json!([{
            "id": "v2", "webhook_id": "m2", "columns": ["country", "name"], "problem": null
        }])
    );
    assert_eq!(vendors["such_outdated_rows"], serde_json::json!(["v1"]));
    assert_eq!(vendors["such_rows"], serde_json::json!(["v3"]));
    let page = text(&site.reconcile(&[], 3).await);
    assert!(page.contains("v2  event m2: country, name"), "{page}");
    assert!(!page.contains("by hand"), "a value: {page}");

    // Every event of this test was received long ago.
    let report = site.report(&["--newer-states-within", "1h"], 3).await;
    let vendors = &report["typed_tables"][1];
    assert_eq!(
        (&vendors["outdated_rows"], &vendors["differing_rows"]),
        (&0.into(), &1.into())
    );
    site.clean_up().await;
}

/// Runs `hookctl receipts …`, which must end with this code.
async fn receipts(pool: &PgPool, arguments: &[&str], code: i32) -> Output {
    let mut command = hookctl(pool, &[&["receipts"], arguments].concat());
    let output = command.output().await.expect("hookctl runs");
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    output
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_receipt_that_is_written_off_counts_no_more_until_that_is_taken_back(pool: PgPool) {
    let site = Site::new(&pool).await;
    sql(
        &pool,
        "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         select id, '', now() - interval '1 day', now() - interval '1 day'
           from unnest(array['gone', 'kept']) id",
    )
    .await;
    store_events(&pool, [vendor("stored")]).await;
    sql(
        &pool,
        "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         select webhook_id, body_sha256, now() - interval '1 day', now() - interval '1 day' from events",
    )
    .await;
    assert_eq!(site.report(&[], 3).await["missing"], 2);

    let write_off = ["write-off", "--id", "gone", "--id", "stored", "--reason"];
    receipts(&pool, &["write-off", "--reason", "x", "--yes"], 2).await;
    receipts(&pool, &[&write_off[..], &[""]].concat(), 2).await;
    let reason = "Pleo cannot send it\u{1b}[2J";
    let trial = receipts(&pool, &[&write_off[..], &[reason]].concat(), 0).await;
    assert!(
        text(&trial).contains("1 would be written off"),
        "{}",
        text(&trial)
    );
    assert_eq!(site.report(&[], 3).await["missing"], 2);
    let done = receipts(&pool, &[&write_off[..], &[reason, "--yes"]].concat(), 0).await;
    assert!(text(&done).contains("1 written off"), "{}", text(&done));

    let report = site.report(&[], 3).await;
    assert_eq!(
        (&report["missing"], &report["unstored"]),
        (&1.into(), &1.into())
    );
    assert_eq!(report["written_off"], 1);
    let receipt = &report["written_off_receipts"][0];
    assert_eq!(receipt["webhook_id"], "gone");
    assert_eq!(receipt["write_off_reason"], reason);
    assert!(receipt["written_off_by"].is_string() && receipt["written_off_at"].is_string());
    let page = text(&site.reconcile(&[], 3).await);
    for expected in [
        "1 receipts were written off:",
        "  gone  accepted",
        "Pleo cannot send it",
    ] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }
    assert!(!page.contains('\u{1b}'), "{page}");
    let unstored = lines(&receipts(&pool, &["list", "--json"], 0).await);
    assert_eq!(unstored.len(), 1);
    assert_eq!(unstored[0]["webhook_id"], "kept");
    let listed = lines(&receipts(&pool, &["list", "--written-off", "--json"], 0).await);
    assert_eq!(listed[0]["write_off_reason"], reason);

    // Accepted again, and lost again.
    sql(
        &pool,
        "update webhook_receipts set published_at = now() where webhook_id = 'gone'",
    )
    .await;
    assert_eq!(site.report(&[], 3).await["unstored"], 2);
    sql(
        &pool,
        "update webhook_receipts set published_at = written_off_at where webhook_id = 'gone'",
    )
    .await;
    assert_eq!(site.report(&[], 3).await["unstored"], 1);

    receipts(&pool, &["restore", "--id", "gone", "--yes"], 0).await;
    let report = site.report(&[], 3).await;
    assert_eq!(
        (&report["unstored"], &report["written_off"]),
        (&2.into(), &0.into())
    );
    site.clean_up().await;
}

/// Both find the receipt before either of them has written it off.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn of_two_write_offs_at_once_the_second_leaves_the_reason_of_the_first(pool: PgPool) {
    sql(
        &pool,
        "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         values ('m1', '', now() - interval '1 day', now() - interval '1 day')",
    )
    .await;
    let mut holding = pool.begin().await.expect("a transaction");
    sqlx::query("select from webhook_receipts for update")
        .execute(&mut *holding)
        .await
        .expect("a lock");
    let releasing = async {
        until(
            &pool,
            "select count(*) = 2 from pg_stat_activity
              where datname = current_database() and application_name = 'hookctl'
                and wait_event_type = 'Lock'",
        )
        .await;
        holding.rollback().await.expect("a rollback");
    };
    let write_off = |reason: &'static str| {
        let mut command = hookctl(
            &pool,
            &[
                "receipts",
                "write-off",
                "--id=m1",
                "--yes",
                "--reason",
                reason,
            ],
        );
        async move { command.output().await.expect("it runs") }
    };
    let (one, other, ()) = tokio::join!(write_off("one"), write_off("other"), releasing);
    let (done, late) = match text(&one).contains("1 written off") {
        true => ("one", text(&other)),
        false => ("other", text(&one)),
    };
    assert!(late.contains("0 written off"), "{late}");
    assert!(
        late.contains("m1: somebody else has written it off"),
        "{late}"
    );
    let kept = format!(
        "select write_off_reason = '{done}' and (select count(*) = 1 from operator_actions)
           from webhook_receipts"
    );
    assert!(is(&pool, &kept).await);
}
