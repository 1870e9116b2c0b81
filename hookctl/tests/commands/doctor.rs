//! `hookctl doctor`.

use std::collections::BTreeMap;

use lapin::{
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use serde_json::Value;
use shared::{Family, Program};
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::place::{Ended, Place, until};

/// Of a private broker and Postgres: one node each.
const ALONE: [&str; 2] = ["cluster", "standby"];

const GOOD_SECRET: &str = "current=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Each check's verdict and what was found.
pub(crate) type Findings = BTreeMap<String, (String, String)>;

pub(crate) fn findings(ended: &Ended) -> Findings {
    let text = |row: &Value, key: &str| row[key].as_str().expect("text").to_owned();
    ended
        .json()
        .iter()
        .map(|row| {
            let verdict = text(row, "verdict");
            let lacks_remedy = text(row, "remedy").is_empty();
            assert_eq!(lacks_remedy, matches!(&*verdict, "ok" | "skipped"), "{row}");
            (text(row, "check"), (verdict, text(row, "found")))
        })
        .collect()
}

fn with(findings: &Findings, verdict: &str) -> Vec<String> {
    let of_it = findings.iter().filter(|(_, (v, _))| v == verdict);
    of_it.map(|(check, _)| check.clone()).collect()
}

impl Place {
    /// Runs doctor. The stores of tests are not made to outlive a crash of the machine, which it
    /// has to see and which is left out here.
    pub(crate) async fn examine(&self, flags: &[&str]) -> Findings {
        let mut command = self.hookctl(&[&["doctor", "--json"], flags].concat());
        command.env("WEBHOOK_SECRETS", GOOD_SECRET);
        let ended = Ended::new(command.output().await.expect("hookctl runs"));
        let mut findings = findings(&ended);
        let has_problem = !with(&findings, "problem").is_empty();
        assert_eq!(ended.code, if has_problem { 3 } else { 0 }, "{ended:?}");
        let fsync: String = sqlx::query_scalar("show fsync")
            .fetch_one(&self.pool)
            .await
            .expect("a setting");
        if let Some((verdict, found)) = findings.remove("durability") {
            assert_eq!(verdict == "problem", fsync == "off", "{found}");
        }
        findings
    }

    /// All workers, running in this process.
    pub(crate) fn workers(&self, stop: &CancellationToken) -> Vec<JoinHandle<anyhow::Result<()>>> {
        let workers = Family::ALL.map(|family| {
            let config = self.worker_config();
            let stop = stop.clone();
            tokio::spawn(async move { worker::service::run(family, &config, stop).await })
        });
        workers.into()
    }

    pub(crate) fn name(&self, kind: &str, of: &str) -> String {
        format!("{kind} {}.{of}", self.prefix)
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_sound_set_up_has_no_problem(pool: PgPool) {
    let place = Place::new(&pool).await;
    place.set_up_accounts().await;
    let ingest = place.ingest().await;
    let stop = CancellationToken::new();
    let workers = place.workers(&stop);

    let url = ["--url", &ingest.private_url];
    // RabbitMQ's management counts consumers every few seconds.
    until("all queues have consumers", async || {
        let findings = place.examine(&url).await;
        let consumers = findings
            .iter()
            .filter(|(check, _)| check.starts_with("consumers"));
        consumers
            .filter(|(_, (verdict, _))| verdict == "ok")
            .count()
            == 3
    })
    .await;
    let found = place.examine(&url).await;
    assert_eq!(with(&found, "problem"), [""; 0], "{found:#?}");
    assert_eq!(with(&found, "skipped"), [""; 0], "{found:#?}");
    let mut warnings = with(&found, "warning");
    warnings.retain(|check| !ALONE.contains(&&**check) && !check.starts_with("members of"));
    assert_eq!(warnings, [""; 0], "{found:#?}");
    let place_of_ingest = ingest.private_url.trim_start_matches("http://");
    for check in [
        "postgres",
        "rabbitmq",
        "schema",
        "secrets",
        "spool",
        "dead letters",
        "clock of postgres",
        &format!("clock of {place_of_ingest}"),
        &format!("service at {place_of_ingest}"),
        &place.name("queue", "vendor"),
        &place.name("binding of", "vendor"),
        &place.name("exchange", "events"),
        &format!("account {}-ingest", place.prefix),
    ] {
        assert_eq!(
            found.get(check).map(|f| &*f.0),
            Some("ok"),
            "{check}: {found:#?}"
        );
    }

    stop.cancel();
    for worker in workers {
        worker.await.expect("no panic").expect("a stop in order");
    }
    ingest.stop().await;
    place.remove_accounts().await;
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn drift_on_the_broker_is_named_with_both_values(pool: PgPool) {
    let place = Place::new(&pool).await;
    let topology = place.topology();
    let channel = &place.channel;
    let vendors = topology.queue(Family::Vendor);
    channel
        .queue_delete(vendors.as_str().into(), QueueDeleteOptions::default())
        .await
        .expect("the queue");
    channel
        .queue_declare(
            vendors.as_str().into(),
            QueueDeclareOptions::durable(),
            FieldTable::default(),
        )
        .await
        .expect("another queue");
    let other = topology.queue(Family::Other);
    channel
        .queue_delete(other.as_str().into(), QueueDeleteOptions::default())
        .await
        .expect("the queue");
    let jobs = topology.queue(Family::ExportJob);
    let key = Family::ExportJob.resource().expect("it has one");
    channel
        .queue_unbind(
            jobs.as_str().into(),
            topology.events_exchange().as_str().into(),
            key.into(),
            FieldTable::default(),
        )
        .await
        .expect("a binding");

    let found = place.examine(&[]).await;
    let queue = &found[&place.name("queue", "vendor")];
    assert_eq!(queue.0, "problem");
    // RabbitMQ 4 notes the type of every queue.
    let types = [
        r#"x-queue-type is not set, not "quorum""#,
        r#"x-queue-type is "classic", not "quorum""#,
    ];
    assert!(
        types.iter().any(|words| queue.1.contains(words)),
        "{queue:?}"
    );
    assert!(
        queue.1.contains("x-delivery-limit is not set, not 1000000"),
        "{queue:?}"
    );
    for check in [
        place.name("members of", "vendor"),
        place.name("queue", "other"),
        place.name("binding of", "vendor"),
        place.name("binding of", "export-job"),
        place.name("binding of", "other"),
        place.name("consumers of", "vendor"),
    ] {
        assert_eq!(found[&check].0, "problem", "{check}: {found:#?}");
    }
    for check in [
        place.name("queue", "export-job"),
        place.name("exchange", "events"),
    ] {
        assert_eq!(found[&check].0, "ok", "{check}: {found:#?}");
    }
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_is_wrong_in_postgres_is_found(pool: PgPool) {
    let place = Place::new(&pool).await;
    place.set_up_accounts().await;
    place
        .sql(&format!(
            r#"revoke insert (payload) on events from "{0}-vendor-worker";
               revoke update on vendors from "{0}-vendor-worker";
               insert into events (webhook_id, event_type, received_at, raw, body_sha256, problem)
               values ('msg_dead', 'unknown', now(), '', '', 'a test');
               insert into webhook_spool (webhook_id, body_sha256, family, event_type, body,
                                          received_at, has_receipt, due_at)
               values ('msg_late', '', 'vendor', 'v1.vendor.created', '', now(), false,
                       now() - interval '1 hour'),
                      ('msg_due', '', 'other', 'unknown', '', now(), false, now());
               delete from _sqlx_migrations
                where version = (select max(version) from _sqlx_migrations)"#,
            place.prefix
        ))
        .await;
    let found = place.examine(&[]).await;
    let account = &found[&format!("account {}-vendor-worker", place.prefix)];
    assert_eq!(account.0, "problem");
    assert!(
        account.1.contains("insert on events (payload)"),
        "{account:?}"
    );
    assert!(account.1.contains("update on vendors"), "{account:?}");
    assert_eq!(found[&format!("account {}-ingest", place.prefix)].0, "ok");
    assert_eq!(found["schema"].0, "problem");
    assert!(found["schema"].1.starts_with("behind"), "{found:#?}");
    assert_eq!(found["dead letters"].0, "warning");
    assert_eq!(found["spool of vendor"].0, "warning");
    assert!(!found.contains_key("spool of other"), "it is only just due");

    place
        .sql("update _sqlx_migrations set checksum = 'x' where version = 1")
        .await;
    let found = place.examine(&[]).await;
    assert!(found["schema"].1.contains("another text"), "{found:#?}");
    place
        .sql("drop view dead_letters cascade; drop table _sqlx_migrations")
        .await;
    let found = place.examine(&[]).await;
    assert_eq!(found["schema"].0, "problem");
    assert_eq!(found["dead letters"].0, "problem");
    place.remove_accounts().await;
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_store_or_a_service_that_is_away_is_a_problem_and_the_rest_is_examined(pool: PgPool) {
    let place = Place::new(&pool).await;
    let examine = async |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = place.hookctl(&[&["doctor", "--json"], flags].concat());
        command.envs(variables.iter().copied());
        let ended = Ended::new(command.output().await.expect("hookctl runs"));
        assert_eq!(ended.code, 3, "{ended:?}");
        assert!(!format!("{ended:?}").contains("hunter2"), "{ended:?}");
        findings(&ended)
    };
    let found = examine(
        &[("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/d")],
        &[],
    )
    .await;
    assert_eq!(found["postgres"].0, "problem");
    assert_eq!(found[&place.name("queue", "vendor")].0, "ok");

    let found = examine(&[("AMQP_URL", "amqp://u:hunter2@127.0.0.1:1/")], &[]).await;
    assert_eq!(found["rabbitmq"].0, "problem");
    assert_eq!(found["schema"].0, "ok");

    let found = examine(&[("RABBITMQ_MANAGEMENT_URL", "http://127.0.0.1:1")], &[]).await;
    assert_eq!(found["rabbitmq"].0, "problem");

    let found = examine(&[], &["--url=http://127.0.0.1:1"]).await;
    assert_eq!(found["service at 127.0.0.1:1"].0, "problem");
    // Of the secret that `hookctl` has from this place.
    assert_eq!(found["secrets"].0, "problem");
    assert!(
        found["secrets"].1.contains("development secret"),
        "{found:#?}"
    );

    let short = [("WEBHOOK_SECRETS", "current=whsec_c2hvcnQ=")];
    let found = examine(&short, &[]).await;
    assert!(found["secrets"].1.contains("5 bytes"), "{found:#?}");
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn without_the_management_it_says_what_was_not_looked_at(pool: PgPool) {
    let place = Place::new(&pool).await;
    let examine = async || {
        let mut command = place.hookctl(&["doctor", "--json"]);
        command.env_remove("RABBITMQ_MANAGEMENT_URL");
        findings(&Ended::new(command.output().await.expect("hookctl runs")))
    };
    let found = examine().await;
    assert_eq!(found["rabbitmq"].0, "ok");
    let skipped = with(&found, "skipped");
    assert!(
        skipped.iter().any(|check| check.contains("bindings")),
        "{found:#?}"
    );
    let queue = place.topology().queue(Family::Vendor);
    place
        .channel
        .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
        .await
        .expect("the queue");
    let found = examine().await;
    assert_eq!(found["rabbitmq"].0, "problem");
    assert!(found["rabbitmq"].1.contains(&queue), "{found:#?}");
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn rights_on_the_broker_that_differ_are_named_with_their_remedy(pool: PgPool) {
    let place = Place::new(&pool).await;
    let check = |program: &str| format!("rabbitmq account {}-{program}", place.prefix);
    let found = place.examine(&[]).await;
    assert_eq!(found["rabbitmq accounts"].0, "skipped", "{found:#?}");

    place.set_up_accounts().await;
    let found = place.examine(&[]).await;
    for program in Program::ALL {
        assert_eq!(found[&check(program.name())].0, "ok", "{found:#?}");
    }
    place.permit("ingest", "", "", "").await;
    place.permit("vendor-worker", "", ".*", ".*").await;
    place.permit("other-worker", "", "", "other").await;
    let user = format!("/api/users/{}-export-job-worker", place.prefix);
    place.management().delete(&user).await.expect("the user");
    let found = place.examine(&[]).await;
    for (program, verdict, words) in [
        ("ingest", "problem", "may not write to {}.events, {}.probe"),
        ("export-job-worker", "problem", "does not exist"),
        (
            "vendor-worker",
            "warning",
            "more than it needs: write .*, read .*",
        ),
        // It is no anchored pattern, so that it matches the queue and others.
        ("other-worker", "warning", "more than it needs: read other"),
    ] {
        let (found, said) = &found[&check(program)];
        assert_eq!(found, verdict, "{program}: {said}");
        let words = words.replace("{}", &place.prefix);
        assert!(said.contains(&words), "{program}: {said}");
    }
    let shown = place.run(&["doctor"]).await;
    let remedy = format!(
        "rabbitmqctl set_permissions -p '/' '{}-ingest'",
        place.prefix
    );
    assert!(shown.out.contains(&remedy), "{shown:?}");

    // What is named as a remedy is one.
    place.set_up_accounts().await;
    let found = place.examine(&[]).await;
    for program in Program::ALL {
        assert_eq!(found[&check(program.name())].0, "ok", "{found:#?}");
    }
    let limit = format!("/api/user-limits/{}-ingest/max-connections", place.prefix);
    place.management().delete(&limit).await.expect("its limit");
    let found = place.examine(&[]).await;
    let (verdict, said) = &found[&check("ingest")];
    assert_eq!(verdict, "warning", "{said}");
    assert!(said.contains("any number of connections"), "{said}");
    place.remove_accounts().await;
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_an_account_can_do_beyond_its_work_is_found(pool: PgPool) {
    const CHECK: &str = "bounds of accounts";
    let place = Place::new(&pool).await;
    place.set_up_accounts().await;
    assert_eq!(place.examine(&[]).await[CHECK].0, "ok");
    let swept = place.examine(&["--event-retention", "400d"]).await;
    assert_eq!(swept[CHECK].0, "problem", "{swept:#?}");
    for (change, words) in [
        (
            r#"drop policy "{0}-vendor-worker" on events"#,
            "{0}-vendor-worker: may touch rows of other families",
        ),
        (
            "alter table webhook_spool disable row level security",
            "may touch rows of other families",
        ),
        (
            r#"grant temporary on database {1} to "{0}-ingest""#,
            "{0}-ingest: may make temporary tables",
        ),
        (
            "grant execute on function pg_catalog.lo_create(oid) to public",
            "may make large objects",
        ),
        (
            r#"alter role "{0}-ingest" connection limit -1"#,
            "{0}-ingest: may take every connection",
        ),
        (
            r#"grant execute on function sweep_events(timestamptz, integer) to "{0}-other-worker""#,
            "{0}-other-worker: may sweep old events",
        ),
        (
            r#"grant execute on function sweep_typed_rows(text, timestamptz, timestamptz, integer)
                  to "{0}-other-worker""#,
            "{0}-other-worker: may sweep old typed rows",
        ),
    ] {
        let database: String = sqlx::query_scalar("select quote_ident(current_database())")
            .fetch_one(&pool)
            .await
            .expect("a name");
        let filled = |text: &str| text.replace("{0}", &place.prefix).replace("{1}", &database);
        place.sql(&filled(change)).await;
        let (verdict, found) = &place.examine(&[]).await[CHECK];
        assert_eq!(verdict, "warning", "{change}: {found}");
        assert!(found.contains(&filled(words)), "{change}: {found}");
        place.set_up_accounts().await;
        let after = place.examine(&[]).await;
        assert_eq!(after[CHECK].0, "ok", "{change}: {after:#?}");
    }
    place.remove_accounts().await;
    place.clean_up().await;
}
