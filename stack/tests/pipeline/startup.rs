//! The parts may start in any order, if the services have the right to create what they need.

use hookctl::{
    delivery::Outcome,
    sample::{EXPORT_JOB, VENDOR},
};
use shared::Program;

use crate::pipeline::{Pipeline, SOON, post, send, until_count};

#[tokio::test(flavor = "multi_thread")]
async fn services_that_start_before_their_stores_need_no_restart() {
    let mut pipeline = Pipeline::unprepared().await;
    pipeline.stores.stop().await.expect("a stop");
    let services: Vec<_> = Program::ALL
        .into_iter()
        .map(|program| pipeline.start(program, program.name()))
        .collect();

    // Without any store the answer is 503.
    let url = services[0].webhook_url();
    let refused = loop {
        let answer = post(&url, "msg_1", "{}").await.outcome;
        if answer != Outcome::NoAnswer {
            break answer;
        }
        assert!(
            services[0].process().is_running(),
            "{}",
            services[0].process().how_it_ended()
        );
    };
    assert_eq!(refused, Outcome::Refused(503));
    assert_eq!(pipeline.health(&services[0], "/livez").await.0, Some(0));
    let (code, reasons) = pipeline.health(&services[0], "/readyz").await;
    assert_eq!(code, Some(3), "{reasons}");
    assert!(reasons.contains(r#""ready":false"#), "{reasons}");

    pipeline
        .stores
        .postgres
        .restart()
        .await
        .expect("postgres comes up");
    pipeline
        .stores
        .rabbitmq
        .restart()
        .await
        .expect("the broker comes up");
    for service in &services {
        service.ready(SOON).await.expect("ready");
        let (code, reasons) = pipeline.health(service, "/readyz").await;
        assert_eq!(code, Some(0), "{reasons}");
    }
    send(&url, &EXPORT_JOB).await;
    send(&url, &VENDOR).await;
    let pool = pipeline.pool().await;
    until_count(&pool, "select count(*) from export_jobs", 1).await;
    until_count(&pool, "select count(*) from vendors", 1).await;
    for service in &services {
        let stopped = service.stop(SOON).await.expect("stopped in time");
        assert!(stopped.success(), "{}: {stopped}", service.process().name());
        let log = service.process().log_tail(100);
        assert!(log.contains("stopping signal"), "a line is lost: {log}");
    }
}
