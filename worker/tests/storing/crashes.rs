//! Lost connections: whether an event is blamed for them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use shared::{Family, database::Pool};
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    failures::{batch_with_poison, spend_all_attempts},
    sample::{SOON, count, persistence, sql, start_spool_reader, until_count, vendor, work},
};

/// A proxy between a worker and Postgres. If Postgres reports that a backend was terminated, the
/// proxy closes the connection without passing that on. This looks like a crash of the backend,
/// which a test must not cause in a shared Postgres.
struct CrashingProxy {
    pool: Pool,
    lost: Arc<AtomicUsize>,
}

impl CrashingProxy {
    /// Each connection also ends after `lives` answers of Postgres.
    async fn new(pool: &PgPool, lives: impl Fn() -> usize + Send + 'static) -> Self {
        let options = (*pool.connect_options()).clone();
        let upstream = (options.get_host().to_owned(), options.get_port());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let lost = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&lost);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let forward = forward(client, upstream.clone(), lives(), Arc::clone(&counter));
                tokio::spawn(forward);
            }
        });
        let options = options.host("127.0.0.1").port(address.port());
        Self {
            pool: shared::database::pool(options, "test", 4),
            lost,
        }
    }

    fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }
}

async fn forward(
    mut client: TcpStream,
    upstream: (String, u16),
    lives: usize,
    lost: Arc<AtomicUsize>,
) {
    let mut server = TcpStream::connect(upstream).await.expect("postgres");
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let requests = async { drop(tokio::io::copy(&mut from_client, &mut to_server).await) };
    let answers = async {
        let mut buffer = vec![0; 64 * 1024];
        for _ in 0..lives {
            let Ok(length @ 1..) = from_server.read(&mut buffer).await else {
                return;
            };
            if buffer[..length].windows(5).any(|code| code == b"57P01") {
                break;
            }
            if to_client.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
        lost.fetch_add(1, Ordering::Relaxed);
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_that_crashes_postgres_ends_as_a_dead_letter_and_its_neighbours_are_stored(
    pool: PgPool,
) {
    sql(
        &pool,
        "create function crash() returns trigger language plpgsql as
           $$ begin
                if new.id = 'poison' then
                  perform pg_terminate_backend(pg_backend_pid()), pg_sleep(10);
                end if;
                return new;
              end $$;
         create trigger crash before insert on vendors for each row execute function crash()",
    )
    .await;
    let proxy = CrashingProxy::new(&pool, || usize::MAX).await;
    let batch = batch_with_poison().into_iter().map(work).collect();
    persistence(&proxy.pool, Family::Vendor)
        .persist(batch, &CancellationToken::new())
        .await
        .expect("not abandoned");
    assert_eq!(count(&pool, "select count(*) from vendors").await, 499);
    assert_eq!(
        count(
            &pool,
            "select count(*) from webhook_spool where webhook_id = 'poison' and attempts = 1"
        )
        .await,
        1
    );
    let stop = start_spool_reader(&proxy.pool, Family::Vendor);
    spend_all_attempts(&pool).await;
    until_count(
        &pool,
        "select count(*) from dead_letters where webhook_id = 'poison' and attempts = 6",
        1,
    )
    .await;
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    assert_eq!(count(&pool, "select count(*) from events").await, 500);
    stop.cancel();
}

/// Postgres answers probes, but crashes on every event.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn crashes_that_spare_no_event_are_held_against_none(pool: PgPool) {
    sql(
        &pool,
        "create table outage as select;
         create function crash() returns trigger language plpgsql as
           $$ begin
                if exists (select from outage) then
                  perform pg_terminate_backend(pg_backend_pid()), pg_sleep(10);
                end if;
                return new;
              end $$;
         create trigger crash before insert on vendors for each row execute function crash()",
    )
    .await;
    let proxy = CrashingProxy::new(&pool, || usize::MAX).await;
    let batch: Vec<_> = (0..10).map(|i| work(vendor(&format!("m{i}")))).collect();
    let persistence = persistence(&proxy.pool, Family::Vendor);
    let task =
        tokio::spawn(async move { persistence.persist(batch, &CancellationToken::new()).await });
    // Three failures until an event is alone, and then more than are needed to blame one.
    let deadline = Instant::now() + SOON;
    while proxy.lost() < 9 {
        assert!(Instant::now() < deadline, "tried again and again");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(!task.is_finished(), "held");
    assert_eq!(count(&pool, "select count(*) from webhook_spool").await, 0);
    sql(&pool, "delete from outage").await;
    task.await.expect("no panic").expect("not abandoned");
    assert_eq!(count(&pool, "select count(*) from vendors").await, 10);
    assert_eq!(
        count(
            &pool,
            "select count(*) from events where problem is null and attempts = 1"
        )
        .await,
        10
    );
    assert_eq!(count(&pool, "select count(*) from webhook_spool").await, 0);
}

/// Most transactions succeed, and so do probes right after a lost connection.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_postgres_that_is_lost_again_and_again_blames_no_event(pool: PgPool) {
    let proxy = CrashingProxy::new(&pool, || rand::random_range(5..200)).await;
    let persistence = persistence(&proxy.pool, Family::Vendor);
    let mut expected = 0;
    for round in 0..100 {
        let size = if round % 2 == 0 { 50 } else { 1 };
        expected += size;
        let batch = (0..size)
            .map(|i| work(vendor(&format!("m{round}-{i}"))))
            .collect();
        persistence
            .persist(batch, &CancellationToken::new())
            .await
            .expect("not abandoned");
    }
    assert!(proxy.lost() > 0, "no connection was lost");
    assert_eq!(
        count(
            &pool,
            "select count(*) from events where problem is null and attempts = 1"
        )
        .await,
        expected
    );
    assert_eq!(count(&pool, "select count(*) from webhook_spool").await, 0);
}
