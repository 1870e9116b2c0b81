//! Faults under load; `cargo stack drill` runs longer drills of the same kind.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use stack::{
    drill::machine::{Fault, Machine, Part, Store},
    drill::{Course, Drill, Incident, Schedule, Settings},
    packages::Packages,
    programs::Programs,
    progress::Progress,
};

/// A seed that covers its faults in two minutes. Other drills can be longer and have any seed.
const SEED: u64 = 1;
const RATE: u32 = 50;

async fn start() -> Drill<Machine> {
    let packages = Packages::find().expect("RabbitMQ and Postgres are installed");
    let programs = Programs::find().expect("the services are built");
    let settings = Settings {
        seed: SEED,
        rate: RATE,
    };
    let machine = Machine::start(&packages, programs, None)
        .await
        .expect("everything comes up");
    Drill::start(machine, settings, Progress::Silent).expect("the addresses are right")
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_goes_wrong_for_two_minutes_nothing_is_lost_or_stored_twice() {
    let mut drill = start().await;
    // With all faults, two minutes would be too short for the most informative ones.
    let faults = vec![
        Fault::Kill(Part::Ingest1),
        Fault::Kill(Part::VendorWorker1),
        Fault::Kill(Part::OtherWorker),
        Fault::Kill(Part::Console),
        Fault::Kill(Part::RabbitMq),
        Fault::Kill(Part::Postgres),
        Fault::Stop(Part::Ingest2),
        Fault::Stop(Part::ExportJobWorker),
        Fault::Pause(Part::VendorWorker2),
        Fault::HalfOpen(Store::RabbitMq),
        Fault::HalfOpen(Store::Postgres),
        Fault::NoConnections,
        Fault::DiskFull,
    ];
    drill
        .run(Schedule::new(SEED, faults), Duration::from_secs(120))
        .await
        .expect("the stores come up again");
    let report = drill.finish().await.expect("the stores can be asked");
    assert!(report.sent.accepted.len() > 1_000, "{report}");
    assert!(report.recoveries.len() > 3, "{report}");
    assert!(report.verdict().is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_one_store_nothing_is_refused_and_without_both_the_answer_is_an_honest_503() {
    const OUTAGE: Duration = Duration::from_secs(15);
    let mut drill = start().await;
    let outage = async |drill: &mut Drill<Machine>, parts: &[Part]| -> Course {
        let faults: Vec<Fault> = parts.iter().copied().map(Fault::Kill).collect();
        drill
            .incident(&Incident::together(&faults, OUTAGE))
            .await
            .expect("the stores come up again")
    };

    let course = outage(&mut drill, &[Part::RabbitMq]).await;
    assert_eq!(course.refused, 0, "without RabbitMQ events are spooled");
    let settled = course.began_at + TimeDelta::seconds(5);
    let end = course.began_at + TimeDelta::from_std(OUTAGE).expect("short");
    let stored = stored_between(drill.pool(), settled, end).await;
    assert!(stored > 0, "the workers go on with the spool");

    let course = outage(&mut drill, &[Part::Postgres]).await;
    assert_eq!(course.refused, 0, "without Postgres events are published");

    let course = outage(&mut drill, &[Part::RabbitMq, Part::Postgres]).await;
    assert!(course.refused > 0, "without both nothing can be promised");

    let attempts: i64 = sqlx::query_scalar("select count(*) from events where attempts > 1")
        .fetch_one(drill.pool())
        .await
        .expect("a count");
    assert_eq!(attempts, 0, "no outage costs an event an attempt");
    let report = drill.finish().await.expect("the stores can be asked");
    for (service, mib) in &report.memory_mib {
        assert!(*mib < 128, "{service} took {mib} MiB");
    }
    assert!(report.verdict().is_empty(), "{report}");
}

async fn stored_between(pool: &PgPool, start: DateTime<Utc>, end: DateTime<Utc>) -> i64 {
    sqlx::query_scalar("select count(*) from events where stored_at between $1 and $2")
        .bind(start)
        .bind(end)
        .fetch_one(pool)
        .await
        .expect("a count")
}
