//! The settings that every service has. Each is a flag and an environment variable. Ranges are
//! checked at startup, and errors never repeat a value that may contain a password.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{anyhow, ensure};
use clap::{Args, Parser};
use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    Program,
    broker::BrokerUrl,
    database::{DatabaseUrl, Schema},
    password_file,
    telemetry::LogFormat,
    tls::TlsFiles,
    topology::{Declare, Topology},
};

/// Where Postgres is.
#[derive(Args, Clone, Debug)]
pub struct DatabaseArgs {
    // The addresses of both stores contain passwords. `SecretString` keeps them out of debug
    // output. They are parsed after the command line, because clap's errors repeat the value.
    /// Postgres, as postgres://user:password@host:5432/database; of several hosts (host:5432,host:5432)
    /// the one that takes writes
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: SecretString,

    /// A file with the password for DATABASE_URL, which then has none
    #[arg(long, env = "DATABASE_PASSWORD_FILE")]
    database_password_file: Option<PathBuf>,

    /// The schema of the tables; the search path of the database or the role does not count
    #[arg(long, env = "DATABASE_SCHEMA", default_value_t, value_parser = Schema::parse)]
    database_schema: Schema,
}

impl DatabaseArgs {
    /// How to connect to Postgres.
    pub fn postgres(&self) -> anyhow::Result<DatabaseUrl> {
        let file = self.database_password_file.as_deref();
        self.postgres_of("DATABASE", &self.database_url, file)
    }

    /// How to connect to the same schema with another address and password file. Their settings are
    /// named `{prefix}_URL` and `{prefix}_PASSWORD_FILE`.
    pub fn postgres_of(
        &self,
        prefix: &str,
        url: &SecretString,
        password_file: Option<&Path>,
    ) -> anyhow::Result<DatabaseUrl> {
        let url = DatabaseUrl::parse(url.expose_secret())
            .map_err(|reason| anyhow!("{prefix}_URL is {reason}"))?
            .with_schema(self.database_schema.clone());
        url.check_certificates()?;
        let Some(file) = password_file else {
            return Ok(url);
        };
        ensure!(
            !url.has_password(),
            "{prefix}_URL has a password although {prefix}_PASSWORD_FILE is set: remove one of the two"
        );
        let setting = format!("{prefix}_PASSWORD_FILE");
        Ok(url.with_password(&password_file::read(&setting, file)?))
    }

    /// The environment variables that pass these settings, including the password, to a child
    /// process.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let url = self.database_url.expose_secret();
        let file = self.database_password_file.as_ref();
        let file = file.map(|file| ("DATABASE_PASSWORD_FILE", file.into()));
        let schema = self.database_schema.name().into();
        [("DATABASE_URL", url.into()), ("DATABASE_SCHEMA", schema)]
            .into_iter()
            .chain(file)
            .collect()
    }
}

/// Where RabbitMQ is and what the pipeline's things are called there.
#[derive(Args, Clone, Debug)]
pub struct BrokerArgs {
    /// RabbitMQ, as amqp://user:password@host:5672/vhost (amqps:// for TLS); several nodes as
    /// host:5672,host:5672
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: SecretString,

    /// A file with the password for AMQP_URL, which then has none
    #[arg(long, env = "AMQP_PASSWORD_FILE")]
    amqp_password_file: Option<PathBuf>,

    /// A PEM file with the authorities that vouch for RabbitMQ, in place of the public ones
    #[arg(long, env = "AMQP_CA_FILE")]
    amqp_ca_file: Option<PathBuf>,

    /// A PEM file with the certificate to show to RabbitMQ; it is the login where AMQP_URL has no user
    #[arg(long, env = "AMQP_CERT_FILE")]
    amqp_cert_file: Option<PathBuf>,

    /// A PEM file with the key of that certificate
    #[arg(long, env = "AMQP_KEY_FILE")]
    amqp_key_file: Option<PathBuf>,

    /// What the names of exchanges and queues start with
    #[arg(long, env = "TOPOLOGY_PREFIX", default_value = "pleo", value_parser = parse_prefix)]
    pub topology_prefix: String,
}

impl BrokerArgs {
    /// How to connect to RabbitMQ.
    pub fn broker(&self) -> anyhow::Result<BrokerUrl> {
        let url = BrokerUrl::parse(self.amqp_url.expose_secret())
            .map_err(|reason| anyhow!("AMQP_URL is {reason}"))?;
        let url = url.with_tls(TlsFiles::new(
            self.amqp_ca_file.clone(),
            self.amqp_cert_file.clone(),
            self.amqp_key_file.clone(),
        )?)?;
        let Some(file) = &self.amqp_password_file else {
            return Ok(url);
        };
        ensure!(
            !url.logs_in_by_certificate(),
            "AMQP_PASSWORD_FILE is set although the certificate of AMQP_CERT_FILE is the login: \
             remove it, or put a user into AMQP_URL"
        );
        ensure!(
            !url.has_password(),
            "AMQP_URL has a password although AMQP_PASSWORD_FILE is set: remove one of the two"
        );
        Ok(url.with_password(&password_file::read("AMQP_PASSWORD_FILE", file)?))
    }

    /// The topology under the configured prefix.
    pub fn topology(&self) -> Topology {
        Topology::new(&self.topology_prefix)
    }
}

/// Where both stores are.
#[derive(Args, Clone, Debug)]
pub struct StoreLocations {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub broker: BrokerArgs,
}

/// How a service uses the stores.
#[derive(Args, Clone, Debug)]
pub struct StoreArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub locations: StoreLocations,

    /// Create missing exchanges and queues at start; false only checks that they exist
    #[arg(long, env = "DECLARE_TOPOLOGY", default_value_t = true, action = clap::ArgAction::Set)]
    pub declare_topology: bool,
}

impl StoreArgs {
    /// How to connect to Postgres.
    pub fn postgres(&self) -> anyhow::Result<DatabaseUrl> {
        self.locations.database.postgres()
    }

    /// How to connect to RabbitMQ.
    pub fn broker(&self) -> anyhow::Result<BrokerUrl> {
        self.locations.broker.broker()
    }

    /// The topology under the configured prefix.
    pub fn topology(&self) -> Topology {
        self.locations.broker.topology()
    }

    /// Whether to create it.
    pub fn declare(&self) -> Declare {
        if self.declare_topology {
            Declare::Active
        } else {
            Declare::Passive
        }
    }
}

/// How the process shows itself and how it stops.
#[derive(Args, Clone, Debug)]
pub struct ProcessArgs {
    /// What to log, as a tracing filter: a level for everything (off, error, warn, info, debug, trace),
    /// and others for single targets: `info`, `info,worker=debug`
    #[arg(long, env = "LOG", default_value = "info,actix_server=warn,actix_http=off", value_parser = parse_filter)]
    pub log: String,

    /// How to log
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,

    /// After SIGTERM, how long unfinished work may take (1s to 1h)
    #[arg(long, env = "SHUTDOWN_DEADLINE", default_value = "25s", value_parser = parse_duration_in::<SECOND, HOUR>)]
    pub shutdown_deadline: Duration,

    /// Where /livez, /readyz and /metrics listen; keep it off the public network. Without it: port
    /// 9100 (ingest), 9101 (export-job), 9102 (vendor), 9103 (other) or 9104 (console) of loopback
    #[arg(long, env = "PRIVATE_LISTEN")]
    pub private_listen: Option<SocketAddr>,
}

impl ProcessArgs {
    /// Starts logging with these settings.
    pub fn init_logging(&self) {
        crate::telemetry::init(EnvFilter::new(&self.log), self.log_format);
    }

    /// The private port's address; by default the program's own port on loopback.
    pub fn private_listen(&self, program: Program) -> SocketAddr {
        self.private_listen
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], program.default_private_port())))
    }
}

/// Reads a service's settings from flags and environment. For `--help` or bad settings, it prints
/// one line or the help and ends the process.
#[expect(
    clippy::print_stderr,
    reason = "an error at startup comes before logging"
)]
pub fn parse<C: Parser>() -> C {
    C::try_parse().unwrap_or_else(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        eprintln!("{}", one_line(&error.to_string()));
        std::process::exit(2)
    })
}

/// clap's message on one line, without the usage.
fn one_line(message: &str) -> String {
    message
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Parses a duration with its unit, such as `500ms`, `5s` or `10m`. Zero is refused.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than zero".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it as 500ms, 5s or 10m")),
    }
}

/// A second, in milliseconds, for the limits of [`parse_duration_in`].
pub const SECOND: u64 = 1_000;
/// In milliseconds, as [`SECOND`].
pub const HOUR: u64 = 3_600 * SECOND;
/// In milliseconds, as [`SECOND`].
pub const DAY: u64 = 24 * HOUR;

/// As [`parse_duration`], from `MIN_MS` to `MAX_MS` milliseconds.
pub fn parse_duration_in<const MIN_MS: u64, const MAX_MS: u64>(
    text: &str,
) -> Result<Duration, String> {
    let (min, max) = (Duration::from_millis(MIN_MS), Duration::from_millis(MAX_MS));
    let duration = parse_duration(text)?;
    if (min..=max).contains(&duration) {
        Ok(duration)
    } else {
        Err(format!("must be from {} to {}", short(min), short(max)))
    }
}

/// A limit in its shortest form.
fn short(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    [(DAY, "d"), (HOUR, "h"), (60 * SECOND, "m"), (SECOND, "s")]
        .into_iter()
        .find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit))
        .map_or_else(
            || format!("{ms}ms"),
            |(unit, name)| format!("{}{name}", ms / unit),
        )
}

/// Parses a whole number from `MIN` to `MAX`.
pub fn parse_in_range<const MIN: usize, const MAX: usize>(text: &str) -> Result<usize, String> {
    text.parse::<usize>()
        .ok()
        .filter(|n| (MIN..=MAX).contains(n))
        .ok_or_else(|| format!("must be a whole number from {MIN} to {MAX}"))
}

fn parse_prefix(text: &str) -> Result<String, String> {
    let well_formed = !text.is_empty()
        && text.len() <= 64
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if well_formed {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 64 letters, digits, `.`, `-` or `_`".to_owned())
    }
}

/// Checks a log filter. A filter without a global level silences every target that it does not
/// name, and a misspelt level is taken for a target. So a global level is required.
fn parse_filter(text: &str) -> Result<String, String> {
    const LEVELS: &str = "off, error, warn, info, debug or trace";
    let mut has_level = false;
    // Split as EnvFilter does.
    for directive in text.split(',').map(str::trim).filter(|d| !d.is_empty()) {
        if directive.parse::<LevelFilter>().is_ok() {
            has_level = true;
        } else if !directive.contains(['=', '[']) {
            return Err(format!(
                "`{directive}` is no level: write {LEVELS}, or target=level for a single target"
            ));
        } else if EnvFilter::try_new(directive).is_err() {
            return Err(format!(
                "`{directive}` cannot be read: write target=level, with {LEVELS}"
            ));
        }
    }
    EnvFilter::try_new(text).map_err(|e| e.to_string())?;
    if has_level {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "needs a level for everything else ({LEVELS}), as in info,worker=debug"
        ))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0s")]
    #[case("-1s")]
    #[case("5")]
    #[case("soon")]
    fn a_bad_duration_is_refused(#[case] text: &str) {
        assert!(parse_duration(text).is_err());
    }

    #[rstest]
    #[case("999ms", None)]
    #[case("1s", Some(1))]
    #[case("1d", Some(86_400))]
    #[case("86401s", None)]
    #[case("100y", None)]
    #[case("1", None)]
    fn a_duration_is_held_to_its_range(#[case] text: &str, #[case] seconds: Option<u64>) {
        let expected = seconds.map(Duration::from_secs);
        assert_eq!(parse_duration_in::<SECOND, DAY>(text).ok(), expected);
    }

    #[test]
    fn the_error_has_the_range_as_one_would_write_it() {
        let error = parse_duration_in::<5, { 90 * 60 * SECOND }>("100y").expect_err("too long");
        assert_eq!(error, "must be from 5ms to 90m");
    }

    #[rstest]
    #[case("info")]
    #[case("off")]
    #[case("WARN")]
    #[case("info,worker=debug")]
    #[case("worker=debug, info")]
    #[case("info,[batch{family=vendor}]=debug")]
    fn a_filter_with_a_level_for_everything_is_taken(#[case] text: &str) {
        assert_eq!(parse_filter(text), Ok(text.to_owned()));
    }

    #[rstest]
    #[case("nonsense", "`nonsense` is no level")]
    #[case("inof,worker=debug", "`inof` is no level")]
    #[case("worker=debug", "for everything else")]
    #[case("", "for everything else")]
    #[case("worker=loud", "`worker=loud`")]
    #[case("info,a=b=c", "`a=b=c`")]
    #[case("a=b=c", "`a=b=c`")]
    #[case("info,worker[=debug", "`worker[=debug`")]
    #[case("info,[batch{family=a=b}]=debug,x=loud", "`x=loud`")]
    fn a_filter_that_would_silence_everything_is_refused(
        #[case] text: &str,
        #[case] expected: &str,
    ) {
        let error = parse_filter(text).expect_err("refused");
        assert!(error.contains(expected), "{error}");
    }

    #[rstest]
    #[case("0")]
    #[case("-1")]
    #[case("11")]
    #[case("many")]
    fn a_number_out_of_range_is_refused(#[case] text: &str) {
        assert!(parse_in_range::<1, 10>(text).is_err());
    }

    #[rstest]
    #[case("")]
    #[case("a b")]
    #[case("pleo#")]
    fn a_bad_prefix_is_refused(#[case] text: &str) {
        assert!(parse_prefix(text).is_err());
    }
}
