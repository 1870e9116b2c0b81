//! Services of the pipeline as real processes.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use ingest::secrets::DEVELOPMENT_SECRET;
use shared::Program;
use tokio::time::{Instant, sleep};

use crate::accounts::Accounts;
use crate::ports;
use crate::process::{Process, Spec};
use crate::programs::Programs;
use crate::stores::{Hosts, Login, Stores};

/// What services are started with.
#[derive(Debug, Clone)]
pub struct Launcher {
    programs: Programs,
    folder: PathBuf,
    hosts: Hosts,
    enter: Vec<String>,
    identity: Identity,
    env: Vec<(String, String)>,
}

/// The accounts of the services in the stores.
#[derive(Debug, Clone)]
enum Identity {
    /// The owner and administrator; services migrate and declare by themselves.
    Owner { postgres: Login, rabbitmq: Login },
    /// An account for each service; schema and topology must exist.
    Accounts(Accounts),
}

/// The addresses of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// `/livez`, `/readyz`, `/metrics`.
    pub private: SocketAddr,
    /// Webhooks, or the console's pages; only ingest and the console use it.
    pub public: SocketAddr,
}

/// A running (or ended) service.
#[derive(Debug)]
pub struct Service {
    program: Program,
    listen: Listen,
    spec: Spec,
    process: Process,
}

impl Launcher {
    /// For services that use these stores as their owner, and migrate and declare by themselves. Their logs
    /// go to `folder`, which must exist. They get none of our environment. The webhook secret is
    /// [`DEVELOPMENT_SECRET`].
    pub fn new(programs: Programs, stores: &Stores, folder: impl Into<PathBuf>) -> Self {
        let launcher = Self::as_owner(
            programs,
            stores.addresses().into(),
            (stores.postgres.owner(), stores.rabbitmq.administrator()),
            folder,
        );
        match stores.management_url() {
            Ok(url) => launcher.env("RABBITMQ_MANAGEMENT_URL", url),
            Err(_) => launcher,
        }
    }

    /// The same as [`Launcher::new`], for stores at these hosts, with these users as the owner in Postgres
    /// and the administrator in RabbitMQ.
    pub fn as_owner(
        programs: Programs,
        hosts: Hosts,
        (postgres, rabbitmq): (Login, Login),
        folder: impl Into<PathBuf>,
    ) -> Self {
        Self {
            programs,
            folder: folder.into(),
            hosts,
            enter: Vec::new(),
            identity: Identity::Owner { postgres, rabbitmq },
            env: Vec::new(),
        }
        .env(
            "WEBHOOK_SECRETS",
            format!("development={DEVELOPMENT_SECRET}"),
        )
        .env("DEVELOPMENT", "true")
    }

    /// Settings of `cargo stack up`: each service runs under its own account, and everybody who reaches
    /// the console, which is on loopback, is an operator.
    pub fn for_developers(
        programs: Programs,
        stores: &Stores,
        accounts: &Accounts,
        folder: impl Into<PathBuf>,
    ) -> Self {
        Self::new(programs, stores, folder)
            .under(accounts)
            .env("LOOPBACK_ROLE", "operator")
    }

    /// Runs each service under its own account, which can neither migrate nor declare.
    #[must_use]
    pub fn under(self, accounts: &Accounts) -> Self {
        Self {
            identity: Identity::Accounts(accounts.clone()),
            ..self
        }
    }

    /// Uses other addresses for the stores, such as those of proxies.
    #[must_use]
    pub fn through(self, hosts: impl Into<Hosts>) -> Self {
        Self {
            hosts: hosts.into(),
            ..self
        }
    }

    /// Runs each service with this program and arguments, which have to exec it, such as `nsenter`.
    #[must_use]
    pub fn entered_by(self, enter: Vec<String>) -> Self {
        Self { enter, ..self }
    }

    /// Sets an environment variable of the services, or replaces it.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Starts a service on free ports. `name` must be unique among the running services, such as
    /// `ingest-2`; the log gets this name.
    ///
    /// # Errors
    /// When the process cannot be started; see [`Service::ready`] for whether it works.
    pub fn start(&self, program: Program, name: &str) -> Result<Service> {
        self.start_at(
            program,
            name,
            Listen {
                private: ports::free()?,
                public: ports::free()?,
            },
        )
    }

    /// As [`Launcher::start`], on these addresses.
    ///
    /// # Errors
    /// As [`Launcher::start`].
    pub fn start_at(&self, program: Program, name: &str, listen: Listen) -> Result<Service> {
        let path = self.programs.path(program).into_os_string();
        let mut command = self.enter.iter().map(OsString::from).chain([path]);
        let first = command.next().expect("the service is always there");
        let mut spec = Spec::new(name, first)
            .args(command)
            .log(self.folder.join(format!("{name}.log")))
            .env("PRIVATE_LISTEN", listen.private.to_string());
        if matches!(program, Program::Ingest | Program::Console) {
            spec = spec.env("LISTEN", listen.public.to_string());
        }
        spec.env.extend(self.access(program));
        spec.env.extend(
            self.env
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        spec.clean_env = true;
        spec.pid_file = Some(self.folder.join(format!("{name}.pid")));
        let process = Process::spawn(spec.clone())?;
        Ok(Service {
            program,
            listen,
            spec,
            process,
        })
    }

    /// Adds the settings with which a service reaches the stores.
    fn access(&self, program: Program) -> Vec<(OsString, OsString)> {
        let (postgres, rabbitmq, operator) = match &self.identity {
            Identity::Owner { postgres, rabbitmq } => (postgres.clone(), rabbitmq.clone(), None),
            Identity::Accounts(accounts) => {
                let login = accounts.login(program);
                let operator =
                    (program == Program::Console).then(|| accounts.login(Program::ConsoleOperator));
                (login.clone(), login, operator)
            }
        };
        let may_create = matches!(self.identity, Identity::Owner { .. });
        let operator = operator.map(|login| self.hosts.database_url(&login));
        [
            ("DATABASE_URL", self.hosts.database_url(&postgres)),
            ("AMQP_URL", self.hosts.amqp_url(&rabbitmq)),
            ("DECLARE_TOPOLOGY", may_create.to_string()),
            ("MIGRATE", may_create.to_string()),
        ]
        .into_iter()
        .chain(operator.map(|url| ("OPERATOR_DATABASE_URL", url)))
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
    }
}

impl Service {
    /// Which service it is.
    pub fn program(&self) -> Program {
        self.program
    }

    /// Its process, to kill it, freeze it or read its log.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The public port; only an ingest service and the console listen there.
    pub fn public(&self) -> SocketAddr {
        self.listen.public
    }

    /// The webhook address; only an ingest service answers there.
    pub fn webhook_url(&self) -> String {
        format!("http://{}/webhooks/pleo", self.listen.public)
    }

    /// The address of the private port.
    pub fn private_address(&self) -> SocketAddr {
        self.listen.private
    }

    /// URL of a path on the private port, such as `/metrics`.
    pub fn private_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen.private)
    }

    /// Waits until `/readyz` says 200.
    ///
    /// # Errors
    /// When the service ends or is not ready within `deadline`; with the end of its log.
    pub async fn ready(&self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        let url = self.private_url("/readyz");
        let client = reqwest::Client::new();
        loop {
            let response = client
                .get(&url)
                .timeout(Duration::from_secs(5))
                .send()
                .await;
            if response.is_ok_and(|response| response.status().is_success()) {
                return Ok(());
            }
            ensure!(self.process.is_running(), "{}", self.process.how_it_ended());
            if Instant::now() > end {
                let name = self.process.name();
                let log = self.process.log_tail(15);
                bail!("{name} is not ready within {deadline:?}; its log ends:\n{log}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops in order with SIGTERM and returns how it ended.
    ///
    /// # Errors
    /// When it had to be killed after `deadline`.
    pub async fn stop(&self, deadline: Duration) -> Result<ExitStatus> {
        self.process.terminate(deadline).await
    }

    /// Starts again on the same ports with the same settings; kills it first if it runs.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill();
        self.process = Process::spawn(self.spec.clone())?;
        Ok(())
    }
}
