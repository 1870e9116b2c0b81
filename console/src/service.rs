//! The console put together: start, serve, stop.

use std::{net::SocketAddr, sync::Arc};

use actix_web::dev::Server;
use anyhow::{Context, bail};
use shared::{
    Program,
    private_port::{self, Check, Readiness, ReadinessProbe},
    systemd,
};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    access::{Access, TrustedProxy, users::Users},
    config::Config,
    metrics::Metrics,
    operations::{Operations, runner::Runner},
    pages::live::Views,
    server::{self, Parts},
    store::Store,
    watch::Watch,
};

/// A console that is bound to its ports and not yet serving.
pub struct Service {
    public: Server,
    private: Server,
    address: SocketAddr,
    private_address: SocketAddr,
    watch: Watch,
    runner: Runner,
    users: Option<Arc<Users>>,
    /// Ends the live views.
    end_views: CancellationToken,
    config: Config,
}

impl Service {
    /// Checks the settings and binds the ports. Postgres does not need to be there.
    pub fn bind(config: &Config) -> anyhow::Result<Self> {
        config.check()?;
        let metrics = Metrics::new();
        let store = Store::new(config.database.postgres()?);
        let users = config
            .users_file
            .clone()
            .map(Users::open)
            .transpose()?
            .map(Arc::new);
        let access = match (&users, &config.trusted_proxy_secret_file) {
            (Some(users), _) => Access::signed_in(Arc::clone(users), config.secure_cookie),
            (None, Some(file)) => Access::Proxy(Arc::new(TrustedProxy::open(
                file,
                &config.trusted_proxy_user_header,
                &config.operators,
            )?)),
            (None, None) => Access::Loopback(config.loopback_role),
        };
        let watch = Watch::new(store.clone());
        let end_views = CancellationToken::new();
        let (private, private_address) = private_port::serve(
            config.process.private_listen(Program::Console),
            metrics.service.registry.clone(),
            readiness(store.clone()),
        )?;
        let operations = Operations::new(config.operator_database()?);
        let runner = Runner::new(operations.clone(), store.clone());
        let parts = Parts {
            store,
            watch: watch.clone(),
            access,
            metrics,
            operations,
            views: Views::until(end_views.clone()),
        };
        let (public, address) = server::bind(config, parts)?;
        Ok(Self {
            public,
            private,
            address,
            private_address,
            watch,
            runner,
            users,
            end_views,
            config: config.clone(),
        })
    }

    /// Where the pages are.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the private port listens.
    pub fn private_address(&self) -> SocketAddr {
        self.private_address
    }

    /// Serves until `stop`, then answers what was asked by then.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        info!(address = %self.address, "listening");
        let mut watch = tokio::spawn(self.watch.run());
        let mut runner = tokio::spawn(self.runner.run(stop.clone()));
        let mut users = tokio::spawn(async move {
            match self.users {
                Some(users) => users.watch().await,
                None => std::future::pending().await,
            }
        });
        let private_handle = self.private.handle();
        let mut private = tokio::spawn(self.private);
        let public_handle = self.public.handle();
        let mut public = tokio::spawn(self.public);
        systemd::started();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            ended = &mut public => bail!("the port failed: {ended:?}"),
            ended = &mut private => bail!("the private port failed: {ended:?}"),
            ended = &mut watch => bail!("the watch on the figures ended: {ended:?}"),
            ended = &mut runner => bail!("the runner of the replays ended: {ended:?}"),
            ended = &mut users => bail!("the watch on the users file ended: {ended:?}"),
        }
        self.end_views.cancel();
        // A batch that does not finish in time is rolled back. The next process replays it.
        let deadline = Instant::now() + self.config.process.shutdown_deadline;
        let drained = timeout_at(deadline, public_handle.stop(true)).await;
        if timeout_at(deadline, &mut runner).await.is_err() {
            runner.abort();
        }
        watch.abort();
        users.abort();
        private_handle.stop(false).await;
        drained.context("some pages were still unanswered at the shutdown deadline")?;
        info!("stopped");
        Ok(())
    }
}

/// Ready when events can be read.
fn readiness(store: Store) -> ReadinessProbe {
    Arc::new(move || {
        let store = store.clone();
        Box::pin(async move {
            let check = Check::new("postgres", store.probe().await);
            Readiness {
                ready: check.ok,
                note: (!check.ok).then_some("pages show what was known last, or why they cannot"),
                checks: vec![check],
            }
        })
    })
}
