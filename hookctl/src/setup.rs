//! `hookctl setup`: creates the schema, the topology, and the accounts of the services with no more rights
//! than they need. Every step can be repeated, also while the services run.

pub(crate) mod policies;
mod postgres;
mod problem_kinds;
mod rabbitmq;
mod record;
mod sweep_indexes;

pub(crate) use self::postgres::GRANTS;

use std::{
    collections::HashSet,
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, bail};
use secrecy::SecretString;
use shared::{
    Program,
    broker::{self, BrokerUrl},
    config::StoreLocations,
    database::DatabaseUrl,
    text_file,
    topology::{Declare, Drift, Sight},
};
use tokio::time::{Instant, sleep};
use worker::config::RetentionArgs;

use self::{
    postgres::{Login, Place, Terms},
    record::State,
};
use crate::{
    account,
    account_settings::{CONNECTIONS, Hindrance, hindrances},
    database::{self, Connection, READING},
    lock_holders::lacks_a_lock,
    management::Management,
    passwords::Passwords,
    verdict::{Verdict, WrongSettings},
};

/// Prepare both stores: schema, queues, and an account with the least rights for each service.
///
/// Run it as the owner of the database and an administrator of RabbitMQ, before the first start and
/// after each upgrade. It can be repeated at any time. Changed passwords count at once; give them to
/// the services and restart those.
///
/// Exit codes: 0 done, 1 failed (repeat it once the reason is gone), 2 wrong settings, 3 done but
/// something on the broker differs from the topology, or an account has a setting that stops its
/// service.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub stores: StoreLocations,

    /// RabbitMQ's management, as http://host:15672 (https:// for TLS), with the user of AMQP_URL
    #[arg(long, env = "RABBITMQ_MANAGEMENT_URL")]
    pub rabbitmq_management_url: String,

    /// The accounts' passwords, separated by commas:
    /// ingest=…,export-job-worker=…,vendor-worker=…,other-worker=…, and console=… where the console
    /// runs, which cannot log in without it
    #[arg(long, env = "ACCOUNT_PASSWORDS", hide_env_values = true)]
    pub account_passwords: Option<SecretString>,

    /// A file with the passwords, one a line, instead of ACCOUNT_PASSWORDS
    #[arg(
        long,
        env = "ACCOUNT_PASSWORDS_FILE",
        conflicts_with = "account_passwords"
    )]
    pub account_passwords_file: Option<PathBuf>,

    /// A folder with a file for each service, named as the service, that holds just its password
    #[arg(
        long,
        env = "ACCOUNT_PASSWORDS_FOLDER",
        conflicts_with_all = ["account_passwords", "account_passwords_file"]
    )]
    pub account_passwords_folder: Option<PathBuf>,

    /// For how many replicas of each service an account's connections suffice, those that run twice
    /// during an upgrade included (1 to 1000). More of them get no connection
    #[arg(long, env = "ACCOUNT_REPLICAS", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub account_replicas: u16,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub retention: RetentionArgs,

    /// Change nothing: print the SQL and the permissions. Needs no passwords and shows none
    #[arg(long)]
    pub dry_run: bool,
}

/// How long a step is tried again that does not get its locks: migrations, and then the accounts' policies.
const LOCK_DEADLINE: Duration = Duration::from_secs(600);

/// The wait between two tries at the accounts.
const NEXT_TRY: Duration = Duration::from_secs(3);

/// What to do, from validated settings.
struct Setup {
    database: DatabaseUrl,
    broker: BrokerUrl,
    management: Management,
    stores: StoreLocations,
    terms: Terms,
    /// How many connections to RabbitMQ each account may have.
    broker_connections: u32,
    /// `None` for a dry run.
    passwords: Option<Passwords>,
}

/// What was done.
struct Done {
    place: Place,
    existed: HashSet<String>,
    rights: Vec<(Program, Vec<(String, String)>)>,
    drifts: Vec<Drift>,
    hindrances: Vec<Hindrance>,
}

/// Runs the subcommand.
#[expect(clippy::print_stderr, reason = "errors of a command-line tool")]
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let setup = Setup::new(args).map_err(WrongSettings::new)?;
    let Some(done) = setup.run().await? else {
        return Ok(Verdict::Fine);
    };
    for Drift {
        entity,
        reason,
        remedy,
    } in &done.drifts
    {
        eprintln!("error: {entity} differs on the broker ({reason}): {remedy}");
    }
    for Hindrance {
        account,
        found,
        remedy,
        stops,
    } in &done.hindrances
    {
        let level = if *stops { "error" } else { "warning" };
        eprintln!("{level}: {account} has {found}: {remedy}");
    }
    let stops = done.hindrances.iter().any(|hindrance| hindrance.stops);
    Ok(Verdict::of(done.drifts.is_empty() && !stops))
}

impl Setup {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let broker = args.stores.broker.broker()?;
        args.retention.check()?;
        account::check_prefix(&args.stores.broker.topology_prefix)?;
        Ok(Self {
            database: args.stores.database.postgres()?,
            management: Management::new(&args.rabbitmq_management_url, &broker)?,
            broker,
            stores: args.stores.clone(),
            terms: Terms {
                connections: CONNECTIONS * i64::from(args.account_replicas),
                retention: args.retention,
            },
            broker_connections: u32::from(rabbitmq::CONNECTIONS * args.account_replicas),
            passwords: if args.dry_run {
                None
            } else {
                Some(args.passwords()?)
            },
        })
    }

    async fn run(&self) -> anyhow::Result<Option<Done>> {
        let mut postgres = database::connect(&self.database).await?;
        let Some(passwords) = &self.passwords else {
            self.show(&mut postgres).await?;
            return Ok(None);
        };
        let done = self.apply(&mut postgres, passwords).await?;
        self.report(&done)?;
        Ok(Some(done))
    }

    /// Everything that can be checked in advance is checked here, before anything is changed.
    async fn apply(
        &self,
        postgres: &mut Connection,
        passwords: &Passwords,
    ) -> anyhow::Result<Done> {
        let prefix = &self.stores.broker.topology_prefix;
        let mut looking = postgres.begin(&READING).await?;
        let place = Place::find(&mut looking).await?;
        postgres::check_existing(&mut looking, prefix).await?;
        postgres::check_ownership(&mut looking, &place).await?;
        let existed = postgres::existing(&mut looking, prefix).await?;
        let before = State::look(&mut looking, prefix).await?;
        looking.rollback().await?;
        self.management.check().await?;
        let rabbitmq = broker::connect(&self.broker, "hookctl").await?;

        self.migrate(postgres).await?;
        problem_kinds::fill(postgres).await?;
        if self.terms.sweeps_typed_rows() {
            sweep_indexes::make(postgres).await?;
        }
        self.make_accounts(postgres, &place, &before, passwords)
            .await?;
        let topology = self.stores.broker.topology();
        let drifts = topology
            .declare(&rabbitmq, Declare::Active, Sight::All)
            .await?;
        for program in Program::ALL {
            rabbitmq::apply(
                &self.management,
                &self.broker.vhost(),
                &account::name(program, prefix),
                passwords
                    .of(program)
                    .context("every account there has a password")?,
                account::tag(program),
                self.broker_connections,
                &account::permissions(program, &self.stores.broker.topology()),
            )
            .await?;
        }
        let mut looking = postgres.begin(&READING).await?;
        let mut rights = Vec::new();
        for program in Program::ACCOUNTS {
            let granted = postgres::rights(&mut looking, &account::name(program, prefix)).await?;
            rights.push((program, granted));
        }
        let hindrances = hindrances(&mut looking, prefix).await?;
        Ok(Done {
            place,
            existed,
            rights,
            drifts,
            hindrances,
        })
    }

    /// Tries again if another session uses a table whose policies have to be changed.
    #[expect(clippy::print_stderr, reason = "standard output is the report")]
    async fn make_accounts(
        &self,
        postgres: &mut Connection,
        place: &Place,
        before: &State,
        passwords: &Passwords,
    ) -> anyhow::Result<()> {
        let prefix = &self.stores.broker.topology_prefix;
        let deadline = Instant::now() + LOCK_DEADLINE;
        loop {
            match postgres::apply(postgres, place, prefix, self.terms, before, passwords).await {
                Err(error) if lacks_a_lock(&error) && Instant::now() < deadline => {
                    eprintln!("{error:#}; it is tried again");
                    sleep(NEXT_TRY).await;
                }
                outcome => return outcome,
            }
        }
    }

    #[expect(clippy::print_stderr, reason = "standard output is the report")]
    async fn migrate(&self, postgres: &mut Connection) -> anyhow::Result<()> {
        let mut observer = database::connect(&self.database).await?;
        let deadline = Instant::now() + LOCK_DEADLINE;
        let on_wait = |error: &migrations::Error| eprintln!("{error}; it is tried again");
        let search = self.database.schema().search();
        let (postgres, observer) = (postgres.bare(), observer.bare());
        migrations::run(postgres, observer, &search, deadline, on_wait)
            .await
            .context("cannot bring the schema up to date")
    }

    fn report(&self, done: &Done) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let Place {
            database, schema, ..
        } = &done.place;
        writeln!(
            out,
            "Postgres: database {database}, schema {schema}, up to date"
        )?;
        writeln!(out, "RabbitMQ: virtual host {}", self.broker.vhost())?;
        for &(program, ref rights) in &done.rights {
            let name = account::name(program, &self.stores.broker.topology_prefix);
            let how = if done.existed.contains(&name) {
                "was there; has its password and rights anew"
            } else {
                "is new"
            };
            writeln!(out, "\n{name} {how}")?;
            for (table, kinds) in rights {
                writeln!(out, "  {table}: {kinds}")?;
            }
            if matches!(program, Program::Console | Program::ConsoleOperator) {
                writeln!(out, "  RabbitMQ: no account")?;
                continue;
            }
            let permissions = account::permissions(program, &self.stores.broker.topology());
            let tag = match account::tag(program) {
                "" => String::new(),
                tag => format!(", tag {tag}"),
            };
            writeln!(
                out,
                "  RabbitMQ: configure {}, write {}, read {}{tag}",
                permissions.configure, permissions.write, permissions.read
            )?;
        }
        writeln!(
            out,
            "\nStart each service with its account in DATABASE_URL and AMQP_URL, with \
             DECLARE_TOPOLOGY=false, and the workers with MIGRATE=false."
        )
    }

    /// Prints the plan as a script for psql, with the other steps as comments.
    async fn show(&self, postgres: &mut Connection) -> anyhow::Result<()> {
        let prefix = &self.stores.broker.topology_prefix;
        let mut looking = postgres.begin(&READING).await?;
        let place = Place::find(&mut looking).await?;
        let existing = postgres::existing(&mut looking, prefix).await?;
        let mut out = io::stdout().lock();
        writeln!(
            out,
            "-- After the migrations, in the database {} as {}:",
            place.database, place.role
        )?;
        for program in Program::ACCOUNTS {
            let name = account::name(program, prefix);
            let exists = existing.contains(&name);
            let statement = postgres::role(&name, exists, Login::Allowed, self.terms);
            writeln!(out, "{statement}; -- and its password, as a SCRAM verifier")?;
        }
        writeln!(out, "\n{}", postgres::grants(&place, prefix, self.terms))?;
        writeln!(out, "{}", policies::script(prefix))?;
        writeln!(
            out,
            "-- For dead letters of workers of an earlier version, until it changes no row:{};\n",
            problem_kinds::STATEMENT
        )?;
        if self.terms.sweeps_typed_rows() {
            writeln!(
                out,
                "-- Where there is no such index, each in no transaction:"
            )?;
            for statement in sweep_indexes::statements() {
                writeln!(out, "{statement};")?;
            }
        }
        writeln!(out, "-- In RabbitMQ, after declaring the topology:")?;
        for program in Program::ALL {
            let name = account::name(program, prefix);
            let permissions = account::permissions(program, &self.stores.broker.topology());
            for command in [
                account::tag_command(program, &name),
                account::limit_command(&name, self.broker_connections),
                permissions.command(&self.broker.vhost(), &name),
            ] {
                writeln!(out, "-- {command}")?;
            }
        }
        Ok(())
    }
}

impl Args {
    fn passwords(&self) -> anyhow::Result<Passwords> {
        if let Some(folder) = &self.account_passwords_folder {
            return Passwords::from_folder("ACCOUNT_PASSWORDS_FOLDER", folder);
        }
        match (&self.account_passwords, &self.account_passwords_file) {
            (Some(text), _) => Passwords::parse(text).context("ACCOUNT_PASSWORDS"),
            (None, Some(path)) => text_file::read(path)
                .and_then(|text| Passwords::parse(&text))
                .with_context(|| format!("ACCOUNT_PASSWORDS_FILE {}", path.display())),
            (None, None) => bail!(
                "no password is configured: set ACCOUNT_PASSWORDS=ingest=…,…, \
                 ACCOUNT_PASSWORDS_FILE or ACCOUNT_PASSWORDS_FOLDER"
            ),
        }
    }
}
