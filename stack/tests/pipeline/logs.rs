//! Bodies and secrets never appear in logs, at any level.

use hookctl::delivery::{self, Outcome};
use ingest::secrets::DEVELOPMENT_SECRET;
use shared::Program;

use crate::pipeline::{Pipeline, SOON, post, until_count};

/// A marker in every body that is sent.
const MARKER: &str = "m4rk3r";

/// Postgres refuses one event once, with an error that quotes its body.
const REFUSE_ONCE: &str = "
    create function refuse_once() returns trigger language plpgsql as
        $$ begin raise '%', new.payload; end $$;
    create trigger refuse_once before insert on events
        for each row when (new.webhook_id = 'msg_3' and new.attempts = 1)
        execute function refuse_once()";

#[tokio::test(flavor = "multi_thread")]
async fn neither_bodies_nor_secrets_are_logged_at_any_level() {
    let mut pipeline = Pipeline::new().await;
    pipeline.launcher = pipeline.launcher.clone().env("LOG", "trace");
    let services: Vec<_> = Program::ALL
        .into_iter()
        .map(|program| pipeline.start(program, program.name()))
        .collect();
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    let pool = pipeline.pool().await;
    sqlx::raw_sql(REFUSE_ONCE)
        .execute(&pool)
        .await
        .expect("good SQL");
    let url = services[0].webhook_url();
    let wrong_secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let bodies = [
        format!(
            r#"{{"eventType":"v1.vendor.created","data":{{"id":"{MARKER}","companyId":"c","name":"{MARKER}","state":"DRAFT"}}}}"#
        ),
        // Parsers often quote input that they cannot read.
        format!(r#"{{"eventType":"v1.vendor.created","data":{{"id":5,"createdAt":"{MARKER}"}}}}"#),
        format!(r#"{{"eventType":"v1.export-job.created","data":"{MARKER}"}}"#),
        format!(r#"{{"eventType":"v1.x.y","data":"{MARKER}"}}"#),
        format!("{MARKER}\0"),
    ];
    for (number, body) in bodies.iter().enumerate() {
        let id = format!("msg_{number}");
        for (secret, expected) in [
            (wrong_secret, Outcome::Refused(401)),
            (DEVELOPMENT_SECRET, Outcome::Accepted),
        ] {
            let answer = delivery::post(&url, secret, &id, body)
                .await
                .expect("signed");
            assert_eq!(answer.outcome, expected, "{answer:?}");
        }
    }
    // A message that the broker returns.
    pipeline
        .stores
        .rabbitmq
        .ctl(&["delete_queue", "pleo.other"])
        .await
        .expect("deleted");
    let body = format!(r#"{{"eventType":"v1.x.y","data":"{MARKER}"}}"#);
    let answer = post(&url, "msg_returned", &body).await;
    assert_eq!(answer.outcome, Outcome::Accepted, "{answer:?}");

    until_count(
        &pool,
        "select count(*) from events where webhook_id <> 'msg_returned'",
        i64::try_from(bodies.len()).expect("few"),
    )
    .await;
    // Postgres refuses it once, and the second attempt stores it.
    until_count(&pool, "select count(*) from events where attempts = 2", 1).await;

    let secret = DEVELOPMENT_SECRET.trim_start_matches("whsec_");
    let marker_bytes = format!("{:?}", MARKER.as_bytes());
    let marker_bytes = marker_bytes.trim_matches(['[', ']']);
    for service in &services {
        service.stop(SOON).await.expect("stopped in time");
        let log = std::fs::read_to_string(service.process().log().expect("a log")).expect("text");
        assert!(log.contains("TRACE"), "the level was asked for");
        assert!(log.contains("stopping signal"), "no line is lost");
        let login = pipeline.accounts().login(service.program());
        for hidden in [
            MARKER,
            marker_bytes,
            secret,
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            &login.password,
        ] {
            let line = log.lines().find(|line| line.contains(hidden));
            assert_eq!(line, None, "{} logged {hidden}", service.process().name());
        }
    }
}
