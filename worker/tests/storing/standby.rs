//! A synchronous standby that is down: no event counts as safe before the standby has it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use shared::{
    AcceptedEvent, Family,
    database::{self, DatabaseUrl},
};
use sqlx::{PgPool, postgres::PgPoolOptions};
use stack::{
    data_folder::DataFolder,
    packages::Packages,
    ports,
    postgres::{Durability, Postgres},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use worker::{
    persistence::{Abandoned, Persistence},
    work::Work,
};

use crate::sample::{count, persist, persistence, until_count, vendor, work};

/// Enough time for a commit that does not wait, even on a busy machine.
const A_WHILE: Duration = Duration::from_secs(3);

const WAITING: &str = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";

/// A server with a synchronous standby that the test can stop.
struct Pair {
    primary: Postgres,
    standby: Postgres,
    pool: PgPool,
    _base: DataFolder,
}

impl Pair {
    async fn start() -> Self {
        let packages = Packages::find().expect("the packages");
        let base = DataFolder::temporary().expect("a folder");
        let folder = |name: &str| -> PathBuf { base.path().join(name) };
        let address = || ports::free().expect("a port");
        let primary = Postgres::start(
            &packages,
            &folder("primary"),
            address(),
            Durability::ProcessOnly,
        )
        .await
        .expect("a primary");
        primary.create_database("pleo").await.expect("a database");
        let pool = pool(&primary);
        migrations::MIGRATOR.run(&pool).await.expect("the schema");
        let standby = primary
            .standby(&folder("standby"), address())
            .await
            .expect("a standby");
        primary
            .wait_for_standby(true)
            .await
            .expect("it is synchronous");
        Self {
            primary,
            standby,
            pool,
            _base: base,
        }
    }

    /// Crashes and restarts the primary. Afterwards its writes are visible, including those that
    /// the standby does not have.
    async fn restart_primary(&mut self) {
        self.primary.restart().await.expect("it starts again");
        self.pool = pool(&self.primary);
    }
}

fn pool(server: &Postgres) -> PgPool {
    let pool = PgPoolOptions::new().max_connections(4);
    pool.connect_lazy(&server.url("pleo")).expect("an address")
}

fn storing(
    persistence: &Arc<Persistence>,
    events: &[AcceptedEvent],
) -> JoinHandle<Result<(), Abandoned>> {
    let persistence = Arc::clone(persistence);
    let batch: Vec<Work> = events.iter().cloned().map(work).collect();
    tokio::spawn(async move { persistence.persist(batch, &CancellationToken::new()).await })
}

fn isolating(
    persistence: &Arc<Persistence>,
    events: &[AcceptedEvent],
) -> JoinHandle<Result<(), Abandoned>> {
    let persistence = Arc::clone(persistence);
    let batch: Vec<Work> = events.iter().cloned().map(work).collect();
    tokio::spawn(async move { persistence.isolate(&batch, &CancellationToken::new()).await })
}

/// The case of a primary that is lost after a restart: events that the standby does not have were
/// not acknowledged, so they are redelivered.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_found_stored_is_acknowledged_only_once_the_standby_has_it() {
    let mut pair = Pair::start().await;
    let events: Vec<_> = (0..60).map(|i| vendor(&format!("m{i}"))).collect();
    pair.standby.kill();
    let first = storing(&persistence(&pair.pool, Family::Vendor), &events);
    until_count(&pair.pool, WAITING, 1).await;
    assert!(!first.is_finished());
    first.abort();
    pair.restart_primary().await;
    until_count(&pair.pool, "select count(*) from events", 60).await;

    let (some, one) = (&events[..30], &events[30..31]);
    let again = [
        storing(&persistence(&pair.pool, Family::Vendor), some),
        storing(&persistence(&pair.pool, Family::Vendor), one),
    ];
    until_count(&pair.pool, WAITING, 2).await;
    sleep(A_WHILE).await;
    for again in &again {
        assert!(!again.is_finished(), "no standby has them");
    }

    pair.primary.kill();
    pair.standby.restart().await.expect("it starts again");
    pair.standby.promote().await.expect("it is a primary now");
    pair.standby
        .wait_for_standby(false)
        .await
        .expect("it has none");
    let promoted = pool(&pair.standby);
    assert_eq!(count(&promoted, "select count(*) from events").await, 0);
    persist(&promoted, events).await;
    assert_eq!(count(&promoted, "select count(*) from vendors").await, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_found_spooled_is_acknowledged_only_once_the_standby_has_it() {
    let mut pair = Pair::start().await;
    let events: Vec<_> = (0..10).map(|i| vendor(&format!("m{i}"))).collect();
    let refuse = "alter table vendors add constraint none check (false)";
    crate::sample::sql(&pair.pool, refuse).await;
    pair.standby.kill();
    // One event is refused and deferred, the others are isolated.
    let first = [
        storing(&persistence(&pair.pool, Family::Vendor), &events[..1]),
        isolating(&persistence(&pair.pool, Family::Vendor), &events[1..]),
    ];
    until_count(&pair.pool, WAITING, 2).await;
    for first in first {
        first.abort();
    }
    pair.restart_primary().await;
    until_count(&pair.pool, "select count(*) from webhook_spool", 10).await;

    let again = [
        storing(&persistence(&pair.pool, Family::Vendor), &events[..1]),
        isolating(&persistence(&pair.pool, Family::Vendor), &events[1..]),
    ];
    until_count(&pair.pool, WAITING, 2).await;
    sleep(A_WHILE).await;
    for again in &again {
        assert!(!again.is_finished(), "no standby has them");
    }

    // When the standby is back, everything continues.
    pair.standby.restart().await.expect("it starts again");
    for again in again {
        again.await.expect("no panic").expect("not abandoned");
    }
}

/// The backend of a waiting commit outlives its connection, and keeps its place in the pool.
#[tokio::test(flavor = "multi_thread")]
async fn commits_that_wait_for_a_standby_take_no_more_connections_than_the_pool_has() {
    const PLACES: u32 = 2;
    // One more watches hanging commits.
    const MOST_BACKENDS: i64 = 3;
    const BACKENDS: &str =
        "select count(*) from pg_stat_activity where application_name = 'worker-of-this-test'";
    let mut pair = Pair::start().await;
    let url = DatabaseUrl::parse(&pair.primary.url("pleo")).expect("valid");
    let ours = database::pool(url, "worker-of-this-test", PLACES);
    let persistence = persistence(&ours, Family::Vendor);
    pair.standby.kill();
    let mut waiting = 0;
    for round in 0..12 {
        let batch = [vendor(&format!("m{round}"))];
        let given_up = storing(&persistence, &batch);
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until {
            let backends = count(&pair.pool, BACKENDS).await;
            assert!(backends <= MOST_BACKENDS, "{backends} backends");
            sleep(Duration::from_millis(20)).await;
        }
        waiting = count(&pair.pool, WAITING).await;
        assert!(!given_up.is_finished(), "no standby has it");
        given_up.abort();
    }
    assert_eq!(
        waiting,
        i64::from(PLACES),
        "each place has a commit that waits"
    );

    pair.standby.restart().await.expect("it starts again");
    let later = storing(&persistence, &[vendor("later")]);
    later.await.expect("no panic").expect("not abandoned");
    until_count(&pair.pool, WAITING, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_with_both_addresses_finds_the_primary_and_follows_it() {
    let pair = Pair::start().await;
    let url = pair.primary.url("pleo");
    let (scheme, rest) = url.split_once("://").expect("an address");
    let (owner, place) = rest.split_once('@').expect("an address");
    let both = format!("{scheme}://{owner}@{},{place}", pair.standby.address());
    let ours = database::pool(DatabaseUrl::parse(&both).expect("valid"), "test", 2);
    let writes = "delete from events where false";
    for _ in 0..5 {
        database::probe(&ours, writes).await.expect("the primary");
    }

    pair.primary.kill();
    pair.standby.promote().await.expect("it is a primary now");
    let started = Instant::now();
    while let Err(error) = database::probe(&ours, writes).await {
        assert!(started.elapsed() < Duration::from_secs(10), "{error}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_alone_is_refused_with_the_reason() {
    let pair = Pair::start().await;
    let url = DatabaseUrl::parse(&pair.standby.url("pleo")).expect("valid");
    let ours = database::pool(url, "test", 1);
    let error = database::probe(&ours, "select 1")
        .await
        .expect_err("refused");
    assert!(error.to_string().contains("is a standby"), "{error}");
}
