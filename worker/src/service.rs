//! Assembles a worker: start, work, shut down.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::bail;
use shared::{
    Family, Program, broker, config,
    database::{self, Pool},
    private_port::{self, Check, Readiness, ReadinessProbe},
    shutdown, systemd,
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::Config,
    consumer::Consumer,
    housekeeping::Housekeeping,
    ledger::Ledger,
    management::Management,
    metrics::Metrics,
    persistence::Persistence,
    queue_watch::{self, QueueWatch},
    spool_reader::SpoolReader,
    spool_state,
    subscription::Batching,
};

/// The time for one attempt to migrate the schema, which may rewrite a table.
const MIGRATION_DEADLINE: Duration = Duration::from_secs(3_600);

/// The time after the shutdown deadline to return unstored events to the spool and the broker.
const GIVE_BACK_DEADLINE: Duration = Duration::from_secs(3);

/// The `main` of a family's worker.
pub async fn main(family: Family) -> ExitCode {
    let config: Config = config::parse();
    config.process.init_logging();
    let outcome = match shutdown::on_signal() {
        Ok(stop) => run(family, &config, stop).await,
        Err(error) => Err(error),
    };
    shutdown::exit_code(outcome)
}

/// Works until `stop`, then finishes the events in progress. An error means that this took longer
/// than the shutdown deadline; no event is lost, because unstored ones come again.
pub async fn run(family: Family, config: &Config, stop: CancellationToken) -> anyhow::Result<()> {
    config.retention.check()?;
    let metrics = Metrics::new(family);
    let watch = queue_watch(family, config, &metrics)?;
    let name = Program::Worker(family).name();
    // One connection for each batch, and four for the spool reader, probes, measurements and
    // sweeps.
    let connections = u32::try_from(config.batches_in_flight + 4).unwrap_or(u32::MAX);
    let pool = database::pool(config.stores.postgres()?, name, connections);
    let persistence = Arc::new(Persistence::new(pool.clone(), family, metrics.clone()));
    let consumer = Consumer {
        url: config.stores.broker()?,
        topology: config.stores.topology(),
        declare: config.stores.declare(),
        family,
        persistence: Arc::clone(&persistence),
        metrics: metrics.clone(),
        batching: Batching {
            size: config.batch_size,
            in_flight: config.batches_in_flight,
            linger: config.batch_linger,
        },
    };
    let spool_reader = SpoolReader {
        pool: pool.clone(),
        persistence: Arc::clone(&persistence),
        family,
        batch_size: config.batch_size,
    };
    let (private, _) = private_port::serve(
        config.process.private_listen(Program::Worker(family)),
        metrics.service.registry.clone(),
        readiness(persistence, metrics.clone()),
    )?;
    let private_handle = private.handle();
    let mut private = tokio::spawn(private);
    info!(%family, "started");
    systemd::started();

    if config.migrate {
        migrate(&pool, &stop).await;
    }
    let abandon = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(consumer.run(stop.clone(), abandon.clone()));
    tasks.spawn(spool_reader.run(stop.clone(), abandon.clone()));
    let mut background = start_background_tasks(family, config, pool, &metrics, watch);
    // If one part ends, stop the whole worker: a restart is better than running without that part.
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        Some(ended) = tasks.join_next() => bail!("a part of the worker ended: {ended:?}"),
        Some(ended) = background.join_next() => bail!("a part of the worker ended: {ended:?}"),
        ended = &mut private => bail!("the private port failed: {ended:?}"),
    }
    let drained = timeout(config.process.shutdown_deadline, all(&mut tasks)).await;
    abandon.cancel();
    private_handle.stop(false).await;
    if drained.is_err() {
        timeout(GIVE_BACK_DEADLINE, all(&mut tasks)).await.ok();
        bail!("not everything was stored at the shutdown deadline; it will come again");
    }
    info!(%family, "stopped; what was in hand is stored or back where it came from");
    Ok(())
}

/// Starts the background tasks that measure and sweep. They hold no event, so they may be cancelled
/// at any point.
fn start_background_tasks(
    family: Family,
    config: &Config,
    pool: Pool,
    metrics: &Metrics,
    watch: Option<QueueWatch>,
) -> JoinSet<()> {
    let mut background = JoinSet::new();
    background.spawn(spool_state::measure(pool.clone(), metrics.clone(), family));
    if let Some(watch) = watch {
        background.spawn(watch.run());
    }
    if family == Family::Other {
        background.spawn(Ledger::new(pool.clone(), &metrics.service).run());
        let housekeeping = Housekeeping::new(
            pool,
            &metrics.service,
            config.receipt_retention,
            config.retention,
        );
        background.spawn(housekeeping.run());
    }
    background
}

/// The watch on the queue's policies, if RabbitMQ's management is configured.
fn queue_watch(
    family: Family,
    config: &Config,
    metrics: &Metrics,
) -> anyhow::Result<Option<QueueWatch>> {
    let Some(url) = &config.rabbitmq_management_url else {
        info!(
            "RABBITMQ_MANAGEMENT_URL is not set, so this worker does not look whether a policy lets its \
             queue drop messages"
        );
        return Ok(None);
    };
    let broker = config.stores.broker()?;
    Ok(Some(QueueWatch::new(
        Management::new(url, &broker)?,
        &broker.vhost(),
        config.stores.topology().queue(family),
        metrics,
        queue_watch::EVERY,
    )))
}

async fn all(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

/// Migrates the schema; retries until Postgres is available.
async fn migrate(pool: &Pool, stop: &CancellationToken) {
    let mut delays = broker::reconnect_delays();
    loop {
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = timeout(MIGRATION_DEADLINE, migrate_once(pool)) => outcome,
        };
        match outcome {
            Ok(Ok(())) => return info!("the schema is up to date"),
            Ok(Err(error)) => {
                let error = shared::reason::one_line(&error);
                warn!(error, "cannot bring the schema up to date yet");
            }
            Err(_elapsed) => warn!("bringing the schema up to date takes too long"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(delays.next().unwrap_or_default()) => {}
        }
    }
}

/// Uses connections of its own, which are closed after the attempt.
async fn migrate_once(pool: &Pool) -> anyhow::Result<()> {
    let mut connection = pool.acquire().await?.detach();
    let mut observer = pool.acquire().await?.detach();
    let deadline = Instant::now() + MIGRATION_DEADLINE;
    let on_wait = |error: &migrations::Error| warn!(%error, "it is tried again");
    let search = pool.schema().search();
    migrations::run(&mut connection, &mut observer, &search, deadline, on_wait).await?;
    Ok(())
}

/// Ready if subscribed to the queue and able to store events.
fn readiness(persistence: Arc<Persistence>, metrics: Metrics) -> ReadinessProbe {
    Arc::new(move || {
        let (persistence, metrics) = (Arc::clone(&persistence), metrics.clone());
        Box::pin(async move {
            let subscribed = if metrics.consuming.get() == 1 {
                Ok(())
            } else {
                Err("not subscribed to the queue".to_owned())
            };
            let checks = vec![
                Check::new("postgres", persistence.probe().await),
                Check::new("rabbitmq", subscribed),
            ];
            Readiness {
                ready: checks.iter().all(|check| check.ok),
                note: None,
                checks,
            }
        })
    })
}
