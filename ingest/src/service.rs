//! Assembles the service: bind, serve, shut down.

use std::{net::SocketAddr, time::Duration};

use actix_web::dev::{Server, ServerHandle};
use anyhow::{Context, bail};
use shared::{Program, database, private_port};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    batch_processor::BatchProcessor,
    batcher::{self, Batcher},
    config::Config,
    endpoint::Endpoint,
    metrics::Metrics,
    publisher::{self, Supervisor},
    receipts,
    rotation::{self, Rotation},
    server,
    watch::Watch,
};

/// A service that has bound its ports and does not serve yet.
pub struct Service {
    public: Server,
    private: Server,
    address: SocketAddr,
    private_address: SocketAddr,
    batcher: Batcher,
    supervisor: Supervisor,
    watch: Watch,
    rotation: Option<Rotation>,
    shutdown_deadline: Duration,
}

impl Service {
    /// Checks the settings and binds the ports. Neither store has to be reachable.
    pub fn bind(config: &Config) -> anyhow::Result<Self> {
        let metrics = Metrics::new();
        let (secrets, rotation) = rotation::open(
            config.secrets_source()?,
            config.development_secret(),
            &metrics,
        )?;
        let connections = u32::try_from(config.batches_in_flight).unwrap_or(u32::MAX);
        // One connection for each batch, and one for the readiness probe while all batches are
        // busy.
        let pool = database::pool_preparing(
            config.stores.postgres()?,
            "ingest",
            connections.saturating_add(1),
            receipts::STATEMENTS,
        );
        let (publisher, supervisor) = publisher::new(
            config.stores.broker()?,
            config.stores.topology(),
            config.stores.declare(),
            metrics.service.clone(),
            pool.clone(),
        );
        let processor = BatchProcessor::new(
            pool.clone(),
            publisher.clone(),
            metrics.clone(),
            config.accept_deadline,
            config.receipt_trust,
        );
        let watch = Watch {
            pool,
            publisher,
            breakers: processor.breakers(),
            metrics: metrics.clone(),
        };
        let (batcher_handle, batcher) =
            batcher::new(processor, config.batch_size, config.batches_in_flight);
        let (private, private_address) = private_port::serve(
            config.process.private_listen(Program::Ingest),
            metrics.service.registry.clone(),
            watch.readiness(),
        )?;
        let endpoint = Endpoint::new(
            secrets,
            metrics.clone(),
            config.in_flight_limit,
            config.body_limit,
            config.timestamp_tolerance,
        );
        let (public, address) = server::bind(config, endpoint, batcher_handle, metrics)?;
        Ok(Self {
            public,
            private,
            address,
            private_address,
            batcher,
            supervisor,
            watch,
            rotation,
            shutdown_deadline: config.process.shutdown_deadline,
        })
    }

    /// The address of the public port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the private port.
    pub fn private_address(&self) -> SocketAddr {
        self.private_address
    }

    /// Serves until `stop`, then answers the requests in flight. An error means that this took
    /// longer than the shutdown deadline, or that a part of the service failed.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        info!(address = %self.address, "listening");
        let stop_broker = CancellationToken::new();
        let mut supervisor = tokio::spawn(self.supervisor.run(stop_broker.clone()));
        let mut batcher = tokio::spawn(self.batcher.run());
        let mut watch = tokio::spawn(self.watch.run());
        let stop_rotation = stop.clone();
        let mut rotation = tokio::spawn(async move {
            match self.rotation {
                Some(rotation) => rotation.run(stop_rotation).await,
                None => stop_rotation.cancelled().await,
            }
        });
        let private_handle = self.private.handle();
        let mut private = tokio::spawn(self.private);
        let public_handle = self.public.handle();
        let mut public = tokio::spawn(self.public);
        shared::systemd::started();
        // If one part ends, stop the whole service: a restart is better than serving without that
        // part.
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            ended = &mut rotation => bail!("the watch on the secrets ended: {ended:?}"),
            ended = &mut public => bail!("the public port failed: {ended:?}"),
            ended = &mut private => bail!("the private port failed: {ended:?}"),
            ended = &mut watch => bail!("the watch on the stores ended: {ended:?}"),
            ended = &mut batcher => bail!("the batcher ended: {ended:?}"),
            ended = &mut supervisor => bail!("the publisher's supervisor ended: {ended:?}"),
        }
        let drained = timeout(self.shutdown_deadline, drain(&public_handle, batcher)).await;
        watch.abort();
        stop_broker.cancel();
        supervisor.await.context("the publisher's supervisor")?;
        private_handle.stop(false).await;
        drained
            .context("some requests were still unanswered at the shutdown deadline")?
            .context("the batcher")?;
        info!("stopped; every request was answered");
        Ok(())
    }
}

/// When the server has answered every request, it drops its handlers, and with them the last
/// senders to the batcher. The batcher then ends.
async fn drain(
    public: &ServerHandle,
    batcher: JoinHandle<()>,
) -> Result<(), tokio::task::JoinError> {
    public.stop(true).await;
    batcher.await
}
