//! `cargo stack up`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hookctl::delivery;
use hookctl::sample::{self, Sample};
use ingest::secrets::DEVELOPMENT_SECRET;
use shared::Program;
use sqlx::PgPool;
use stack::accounts::Accounts;
use stack::data_folder::DataFolder;
use stack::packages::Packages;
use stack::ports;
use stack::postgres::Durability;
use stack::process::Process;
use stack::programs::{Profile, Programs, Scope};
use stack::progress::{Progress, note};
use stack::service::{Launcher, Listen, Service};
use stack::stores::{Addresses, Stores};
use tokio::time::{Instant, sleep};

use super::report;
use super::signals::{Ended, Signals};

/// Ports that are used if they are free, so that bookmarks stay valid between runs. The stores' ports are
/// next to the standard ones, which a system-wide server may use.
const WEBHOOKS: u16 = 8080;
const CONSOLE: u16 = 8090;
const FIRST_PRIVATE: u16 = 9100;
const POSTGRES: u16 = 5433;
const AMQP: u16 = 5673;

const READY_WITHIN: Duration = Duration::from_secs(60);
const STORED_WITHIN: Duration = Duration::from_secs(30);
/// Longer than the services' own deadline for a stop, 25 s.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Delete the data of earlier runs first
    #[arg(long)]
    fresh: bool,

    /// Build the services optimised
    #[arg(long)]
    release: bool,

    /// Folder for data and logs [default: one for this workspace under /var/tmp]
    #[arg(long, env = "STACK_DIR")]
    dir: Option<PathBuf>,

    /// What the services log, as a tracing filter
    #[arg(long, env = "LOG", default_value = "info")]
    log: String,
}

/// All running processes. The services come first, because fields are dropped in this order.
struct Running {
    services: Vec<Service>,
    stores: Stores,
    pool: PgPool,
    logs: PathBuf,
    hookctl: PathBuf,
}

pub(super) async fn run(args: &Args, signals: &Signals) -> Result<ExitCode> {
    let base = DataFolder::persistent(args.dir.as_deref(), &super::workspace()?)?;
    if args.fresh {
        base.wipe()?;
    }
    let running = match signals.unless_stopped(start(args, &base)).await? {
        Ended::Finished(running) => running,
        Ended::Interrupted => return Ok(Ended::Interrupted.exit_code()),
    };
    let deaths = stay(&running, signals).await;
    let step = Progress::Shown.step("stopping");
    signals.unless_forced(running.stop()).await?;
    step.done("everything is stopped; the data stays for the next start");
    Ok(if deaths == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn start(args: &Args, base: &DataFolder) -> Result<Running> {
    let progress = Progress::Shown;
    let logs = base.folder("logs")?;
    let packages = Packages::find_or_install(&logs.join("apt.log"), progress).await?;
    let profile = if args.release {
        Profile::Release
    } else {
        Profile::Own
    };
    let programs =
        Programs::build(&super::workspace()?, Scope::Services, profile, progress).await?;

    let step = progress.step("starting rabbitmq and postgres (about 10 s)");
    let addresses = Addresses {
        postgres: prefer(POSTGRES, "postgres")?,
        amqp: prefer(AMQP, "rabbitmq")?,
    };
    let stores = Stores::start(&packages, base, addresses, Durability::Full).await?;
    step.done("rabbitmq and postgres are up");

    let step = progress.step("setting up schema, queues and the services' accounts");
    let accounts = Accounts::random();
    accounts.set_up(&programs, &stores, &logs).await?;
    step.done("schema, queues and the services' accounts are there");

    let step = progress.step("starting ingest, the workers and the console");
    let hookctl = programs.hookctl();
    let launcher =
        Launcher::for_developers(programs, &stores, &accounts, &logs).env("LOG", &args.log);
    let mut services = Vec::new();
    for (program, private) in Program::WITH_CONSOLE.into_iter().zip(FIRST_PRIVATE..) {
        let public = match program {
            Program::Ingest => prefer(WEBHOOKS, "ingest")?,
            Program::Console => prefer(CONSOLE, "the console")?,
            Program::Worker(_) | Program::ConsoleOperator => ports::free()?,
        };
        let listen = Listen {
            private: prefer(private, program.name())?,
            public,
        };
        services.push(launcher.start_at(program, program.name(), listen)?);
    }
    for service in &services {
        service.ready(READY_WITHIN).await?;
    }
    step.done("ingest, the workers and the console are up");

    let pool = PgPool::connect(&stores.database_url())
        .await
        .context("cannot connect to postgres")?;
    let running = Running {
        services,
        stores,
        pool,
        logs,
        hookctl,
    };
    running.send_samples().await?;
    Ok(running)
}

/// The port, or another one if it is taken, with a note.
fn prefer(port: u16, what: &str) -> Result<SocketAddr> {
    let address = ports::prefer(port)?;
    if address.port() != port {
        note(&format!(
            "port {port} is taken by another program; {what} listens on {} instead",
            address.port()
        ));
    }
    Ok(address)
}

/// Waits for the first signal. If a process dies it is reported and the others stay up, so that users can
/// watch what happens after they kill one; the exit code shows it in the end. Returns how many died.
async fn stay(running: &Running, signals: &Signals) -> usize {
    let mut dead: Vec<u32> = Vec::new();
    loop {
        for process in running.processes() {
            if !process.is_running() && !dead.contains(&process.pid()) {
                dead.push(process.pid());
                note(&format!("\n✗ {}", process.how_it_ended()));
                note("the rest stays up; press Ctrl-C and start again to have it back");
            }
        }
        tokio::select! {
            () = signals.first() => return dead.len(),
            () = sleep(Duration::from_millis(200)) => {}
        }
    }
}

impl Running {
    fn processes(&self) -> impl Iterator<Item = &Process> {
        let stores = [
            self.stores.postgres.process(),
            self.stores.rabbitmq.process(),
        ];
        self.services.iter().map(Service::process).chain(stores)
    }

    async fn send_samples(&self) -> Result<()> {
        let step = Progress::Shown.step("sending the two sample events");
        let url = self
            .services
            .first()
            .context("no service was started")?
            .webhook_url();
        let mut ids = Vec::new();
        for sample in Sample::ALL {
            let id = sample::new_webhook_id();
            let answer = delivery::post(&url, DEVELOPMENT_SECRET, &id, sample.body).await?;
            let (outcome, detail) = (answer.outcome, answer.detail);
            ensure!(
                outcome.is_safe(),
                "{}: {outcome}: {detail}",
                sample.event_type
            );
            ids.push(id);
            self.until_stored(&sample, &ids).await?;
        }
        step.done("two sample events were sent, signed, accepted and stored");
        let stored = report::stored(&self.pool, &ids).await?;
        let places = report::Places {
            services: &self.services,
            stores: &self.stores,
            logs: &self.logs,
            hookctl: &self.hookctl,
        };
        report::print(&stored, &places).context("cannot print the report")
    }

    async fn until_stored(&self, sample: &Sample, ids: &[String]) -> Result<()> {
        let end = Instant::now() + STORED_WITHIN;
        while !report::is_stored(&self.pool, sample, ids).await? {
            if let Some(dead) = self.processes().find(|process| !process.is_running()) {
                bail!("{}", dead.how_it_ended());
            }
            if Instant::now() > end {
                bail!(
                    "{} was accepted but is not stored within {STORED_WITHIN:?}; see the logs in {}",
                    sample.event_type,
                    self.logs.display()
                );
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The services stop first, so that they can finish their work.
    async fn stop(self) -> Result<()> {
        self.pool.close().await;
        let mut failures = Vec::new();
        // All get their signal before any is waited for, because each may take its whole deadline.
        let stops = futures_util::future::join_all(
            self.services
                .iter()
                .map(|service| service.stop(STOPPED_WITHIN)),
        );
        for (service, stopped) in self.services.iter().zip(stops.await) {
            match stopped {
                Ok(_) => {}
                Err(error) => failures.push(format!(
                    "{}: {}",
                    service.process().name(),
                    shared::reason::one_line(&error)
                )),
            }
        }
        if let Err(error) = self.stores.stop().await {
            failures.push(shared::reason::one_line(&error));
        }
        if failures.is_empty() {
            Ok(())
        } else {
            bail!("{}", failures.join("; "))
        }
    }
}
