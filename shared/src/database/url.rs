//! The address of Postgres, of one server or several, and connecting to the primary among them.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};

use super::{
    certificates::{Certificates, file},
    pooler::Opened,
    schema::Schema,
    server::{Failure, Server, Session},
};
use crate::{
    address::{
        Address, AddressError, Host, HostName, hosts_of_parameters, parse_port, unknown_parameter,
    },
    reach::{self, Cause, Unreached},
    reason,
};

const DEFAULT_PORT: u16 = 5432;

/// What the connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Writing.
    Write,
    /// Writing if the address asks for it or has several hosts; otherwise any server is accepted.
    AsTheAddressSays,
}

/// A Postgres address that was checked at startup. Its password never shows in debug output.
#[derive(Clone)]
pub struct DatabaseUrl {
    servers: Vec<Server>,
    /// Whether the address asks for the primary.
    wants_writes: bool,
    has_password: bool,
    schema: Schema,
    certificates: Certificates,
    /// The last known primary, which is tried first.
    last: Arc<Mutex<Option<Host>>>,
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.servers.iter().map(|server| &server.host).collect();
        f.debug_struct("DatabaseUrl")
            .field("hosts", &hosts)
            .finish_non_exhaustive()
    }
}

impl From<PgConnectOptions> for DatabaseUrl {
    fn from(options: PgConnectOptions) -> Self {
        let host = match options.get_socket() {
            Some(folder) => HostName::Socket(folder.clone()),
            None => match options.get_host().parse() {
                Ok(address) => HostName::Ipv6(address),
                Err(_) => HostName::Name(options.get_host().to_owned()),
            },
        };
        let host = Host {
            name: host,
            port: Some(options.get_port()),
        };
        Self {
            servers: vec![Server {
                host: Some(host),
                options,
            }],
            wants_writes: false,
            has_password: false,
            schema: Schema::default(),
            certificates: Certificates::default(),
            last: Arc::default(),
        }
    }
}

impl DatabaseUrl {
    /// Parses a `postgres://` address. The error does not repeat it, because it may contain a
    /// password.
    pub fn parse(url: &str) -> Result<Self, String> {
        Self::read(url).map_err(|error| {
            format!(
                "not a Postgres address of the form \
                 postgres://user:password@host:5432,host:5432/database: {error}"
            )
        })
    }

    fn read(url: &str) -> Result<Self, AddressError> {
        let address = Address::parse(url, &["postgres", "postgresql"], true)?;
        let parameters = Parameters::read(&address)?;
        let has_password = parameters.password.is_some();
        let servers = if parameters.hosts.is_empty() {
            vec![parameters.server(None)]
        } else {
            let hosts = parameters.hosts.iter().cloned().map(Some);
            hosts.map(|host| parameters.server(host)).collect()
        };
        Ok(Self {
            wants_writes: parameters.wants_writes || servers.len() > 1,
            servers,
            has_password,
            schema: Schema::default(),
            certificates: parameters.certificates,
            last: Arc::default(),
        })
    }

    /// Fails unless the address's certificates and key exist and match. sqlx reads them for each
    /// connection.
    pub(crate) fn check_certificates(&self) -> anyhow::Result<()> {
        self.certificates.check()
    }

    /// The remote hosts whose certificate would not be fully verified although the address asks for
    /// TLS, with the `sslmode`.
    pub fn unverified_hosts(&self) -> Option<(&'static str, Vec<String>)> {
        let mode = match self.certificates.mode? {
            PgSslMode::Disable | PgSslMode::VerifyFull => return None,
            PgSslMode::Allow => "allow",
            PgSslMode::Prefer => "prefer",
            PgSslMode::Require => "require",
            PgSslMode::VerifyCa => "verify-ca",
        };
        let hosts = self
            .servers
            .iter()
            .filter_map(|server| server.host.as_ref());
        let remote = hosts.filter(|host| !host.name.is_local());
        let remote: Vec<_> = remote.map(|host| host.name.to_string()).collect();
        (!remote.is_empty()).then_some((mode, remote))
    }

    pub(crate) fn has_password(&self) -> bool {
        self.has_password
    }

    /// Whether there is more than one server to choose from.
    pub(super) fn has_several_hosts(&self) -> bool {
        self.servers.len() > 1
    }

    /// The same address with this password.
    #[must_use]
    pub fn with_password(self, password: &SecretString) -> Self {
        self.map(|options| options.password(password.expose_secret()))
    }

    /// The same address for transactions in this schema.
    #[must_use]
    pub fn with_schema(self, schema: Schema) -> Self {
        Self { schema, ..self }
    }

    /// The schema of the transactions there.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    fn map(mut self, change: impl Fn(PgConnectOptions) -> PgConnectOptions) -> Self {
        for server in &mut self.servers {
            server.options = change(server.options.clone());
        }
        self
    }

    /// Opens a connection with the name `name` in `pg_stat_activity`.
    ///
    /// A pooler that mixes up statements is refused. A single connection may be alone on its
    /// backend and so not notice, so a second one is opened briefly.
    pub async fn connect(&self, name: &str, access: Access) -> Result<PgConnection, Unreached> {
        let Opened {
            connection,
            prepared,
        } = self.open(name, access, &[]).await?;
        if prepared.is_one_backend() {
            match self.open(name, access, &[]).await {
                Err(error) if error.is_of_pooler() => return Err(error),
                // The server may have room for only one connection.
                _ => {}
            }
        }
        Ok(connection)
    }

    /// Opens a connection and prepares these statements, if their tables exist and are not locked.
    pub(super) async fn open(
        &self,
        name: &str,
        access: Access,
        statements: &[&'static str],
    ) -> Result<Opened, Unreached> {
        let session = Session {
            name,
            schema: &self.schema,
            write: access == Access::Write || self.wants_writes,
            statements,
        };
        // sqlx reads the files for each connection, and would hang if a file were replaced by a
        // pipe.
        if let Err(error) = self.certificates.check_kinds() {
            let cause = Cause::Other(reason::one_line(&error));
            return Err(Unreached::new("Postgres", vec![("TLS".to_owned(), cause)]));
        }
        let servers = self.in_order();
        let attempts = servers.iter().map(|server| server.connect(session));
        let outcome = reach::first(attempts).await;
        let mut causes = Vec::new();
        let mut second_best = None;
        match outcome {
            Ok((host, opened)) => {
                self.remember(host);
                return Ok(opened);
            }
            Err(failures) => {
                for failure in failures.into_iter().flatten() {
                    match failure {
                        Failure::Unreached(server, cause) => causes.push((server, cause)),
                        Failure::ReadOnlyByDefault(host, opened) => {
                            second_best = Some((host, *opened));
                        }
                    }
                }
            }
        }
        // Its transactions are declared read-write, which may work there.
        if let Some((host, opened)) = second_best {
            self.remember(host);
            return Ok(opened);
        }
        Err(Unreached::new("Postgres", causes))
    }

    fn in_order(&self) -> Vec<&Server> {
        let mut servers = reach::shuffled(&self.servers);
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        servers.sort_by_key(|server| server.host != *last);
        servers
    }

    fn remember(&self, host: Option<Host>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = host;
    }
}

/// The settings of an address, including its parameters.
struct Parameters {
    hosts: Vec<Host>,
    /// The options without hosts and without secrets.
    options: PgConnectOptions,
    user: Option<String>,
    password: Option<SecretString>,
    database: Option<String>,
    wants_writes: bool,
    certificates: Certificates,
}

impl Parameters {
    fn read(address: &Address) -> Result<Self, AddressError> {
        let mut read = Self {
            hosts: address.hosts.clone(),
            // PgBouncer refuses `extra_float_digits`; its default is right since Postgres 12.
            options: PgConnectOptions::new_without_pgpass().extra_float_digits(None),
            user: address.user.clone(),
            password: address.password.clone(),
            database: address.path.clone().filter(|path| !path.is_empty()),
            wants_writes: false,
            certificates: Certificates::default(),
        };
        let (mut hosts, mut ports) = (None, None);
        for (name, value) in &address.parameters {
            match name.as_str() {
                "host" => hosts = Some(value.as_str()),
                "port" => ports = Some(value.as_str()),
                "user" => set_once(&mut read.user, value.clone(), "the user")?,
                "password" => {
                    set_once(&mut read.password, value.as_str().into(), "the password")?;
                }
                "dbname" => set_once(&mut read.database, value.clone(), "the database")?,
                _ => read.set(name, value)?,
            }
        }
        match (hosts, ports) {
            (Some(_), _) if !read.hosts.is_empty() => return Err(AddressError::Twice("the hosts")),
            (Some(hosts), ports) => read.hosts = hosts_of_parameters(hosts, ports)?,
            (None, Some(port)) => {
                if read.hosts.len() > 1 || read.hosts.iter().any(|host| host.port.is_some()) {
                    return Err(AddressError::Twice("the port"));
                }
                let port = parse_port(port)?;
                read.options = read.options.port(port);
                for host in &mut read.hosts {
                    host.port = Some(port);
                }
            }
            (None, None) => {}
        }
        // As in libpq: with a root certificate, `require` verifies the authority.
        let certificates = &read.certificates;
        if matches!(certificates.mode, Some(PgSslMode::Require)) && certificates.root.is_some() {
            read.certificates.mode = Some(PgSslMode::VerifyCa);
            read.options = read.options.ssl_mode(PgSslMode::VerifyCa);
        }
        Ok(read)
    }

    /// Applies a parameter of the session or of how it is opened.
    fn set(&mut self, name: &str, value: &str) -> Result<(), AddressError> {
        let options = self.options.clone();
        self.options = match name {
            "target_session_attrs" => {
                self.wants_writes = match value {
                    "any" => false,
                    "read-write" | "primary" => true,
                    _ => {
                        return Err(AddressError::Value(
                            "target_session_attrs",
                            "read-write, primary or any, as the pipeline has to write",
                        ));
                    }
                };
                options
            }
            // Accepted and ignored: hosts are always tried in random order.
            "load_balance_hosts" => options,
            "sslmode" | "ssl-mode" => {
                let expected = "disable, allow, prefer, require, verify-ca or verify-full";
                let mode: Result<PgSslMode, _> = value.parse();
                let mode = mode.map_err(|_| AddressError::Value("sslmode", expected))?;
                self.certificates.mode = Some(mode);
                options.ssl_mode(mode)
            }
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => {
                self.certificates.root = Some(file("sslrootcert", value)?);
                options.ssl_root_cert(value)
            }
            "sslcert" | "ssl-cert" => {
                self.certificates.certificate = Some(file("sslcert", value)?);
                options.ssl_client_cert(value)
            }
            "sslkey" | "ssl-key" => {
                self.certificates.key = Some(file("sslkey", value)?);
                options.ssl_client_key(value)
            }
            "application_name" => options.application_name(value),
            "statement-cache-capacity" => {
                let capacity = value.parse().map_err(|_| {
                    AddressError::Value("statement-cache-capacity", "a number of statements")
                })?;
                options.statement_cache_capacity(capacity)
            }
            "options" => {
                let settings = read_options(value)
                    .ok_or(AddressError::Value("options", "a list of -c name=value"))?;
                options.options(settings)
            }
            _ => return Err(unknown_parameter(name)),
        };
        Ok(())
    }

    fn server(&self, host: Option<Host>) -> Server {
        let mut options = self.options.clone();
        match host.as_ref().map(|host| (&host.name, host.port)) {
            None => {}
            Some((HostName::Socket(folder), port)) => {
                options = options.socket(folder).port(port.unwrap_or(DEFAULT_PORT));
            }
            Some((HostName::Name(name), port)) => {
                options = options.host(name).port(port.unwrap_or(DEFAULT_PORT));
            }
            Some((HostName::Ipv6(address), port)) => {
                let host = address.to_string();
                options = options.host(&host).port(port.unwrap_or(DEFAULT_PORT));
            }
        }
        if let Some(user) = &self.user {
            options = options.username(user);
        }
        if let Some(database) = &self.database {
            options = options.database(database);
        }
        if let Some(password) = &self.password {
            options = options.password(password.expose_secret());
        }
        Server { host, options }
    }
}

fn set_once<T>(place: &mut Option<T>, value: T, what: &'static str) -> Result<(), AddressError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(AddressError::Twice(what)),
    }
}

/// Parses `-c name=value -c name=value`.
fn read_options(text: &str) -> Option<Vec<(String, String)>> {
    let mut words = text.split_whitespace();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word
            .strip_prefix("-c")
            .or_else(|| word.strip_prefix("--"))?
        {
            "" => words.next()?,
            rest => rest,
        };
        let (name, value) = setting.split_once('=')?;
        settings.push((name.to_owned(), value.to_owned()));
    }
    Some(settings)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("")]
    #[case("mysql://u:hunter2@h/d")]
    #[case("postgres://u:hunter2@h:port/d")]
    #[case("postgres://weird:12?hunter2@127.0.0.1:5432/pleo")]
    #[case("postgres://u:hunter2@h/d?sslmod=require")]
    #[case("postgres://u:hunter2@h/d?hunter2=x")]
    #[case("postgres://u:hunter2@h/d?sslmode=hunter2")]
    #[case("postgres://u:hunter2@h/d?target_session_attrs=standby")]
    #[case("postgres://u:hunter2@h/d?host=other")]
    #[case("postgres://u:hunter2@h:1/d?port=2")]
    #[case("postgres://u:hunter2@h/d?password=hunter2")]
    #[case("postgres://u:hunter2@h/d?options=hunter2")]
    #[case("postgres://u@h/d?sslkey=-----BEGIN%20PRIVATE%20KEY-----hunter2")]
    fn a_bad_address_is_refused_without_repeating_it(#[case] bad: &str) {
        let error = DatabaseUrl::parse(bad).expect_err("refused");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn an_unknown_parameter_is_named() {
        let error = DatabaseUrl::parse("postgres://u@h/d?sslmod=require").expect_err("refused");
        assert!(error.contains("`sslmod`"), "{error}");
    }

    /// Host, port, user and database of each server.
    fn servers(url: &str) -> Vec<(String, u16)> {
        let url = DatabaseUrl::parse(url).expect("valid");
        let options = url.servers.iter().map(|server| &server.options);
        let host = |options: &PgConnectOptions| match options.get_socket() {
            Some(folder) => folder.display().to_string(),
            None => options.get_host().to_owned(),
        };
        options
            .map(|o| {
                assert_eq!((o.get_database(), o.get_username()), (Some("d"), "u"));
                (host(o), o.get_port())
            })
            .collect()
    }

    #[rstest]
    #[case::one("postgres://u:p@h/d", &[("h", 5432)])]
    #[case::several("postgresql://u:p@h1:5433,[2001:db8::5]/d?target_session_attrs=read-write", &[
        ("h1", 5433), ("2001:db8::5", 5432),
    ])]
    #[case::parameters("postgres:///d?host=h1,h2&port=7,8&user=u&password=p", &[
        ("h1", 7), ("h2", 8),
    ])]
    #[case::socket("postgres://u@%2Frun%2Fpostgresql/d", &[("/run/postgresql", 5432)])]
    #[case::socket_parameter("postgres:///?dbname=d&host=/run/postgresql&port=7&user=u", &[
        ("/run/postgresql", 7),
    ])]
    #[case::port_parameter("postgres://u@h/d?port=7", &[("h", 7)])]
    fn every_server_is_read(#[case] url: &str, #[case] expected: &[(&str, u16)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(h, p)| ((*h).to_owned(), *p))
            .collect();
        assert_eq!(servers(url), expected);
    }

    #[rstest]
    #[case("postgres://u@h/d", false)]
    #[case("postgres://u@h/d?target_session_attrs=any", false)]
    #[case("postgres://u@h/d?target_session_attrs=read-write", true)]
    #[case("postgres://u@h/d?target_session_attrs=primary", true)]
    #[case("postgres://u@h1,h2/d", true)]
    fn several_hosts_mean_the_one_that_takes_writes(#[case] url: &str, #[case] expected: bool) {
        assert_eq!(
            DatabaseUrl::parse(url).expect("valid").wants_writes,
            expected
        );
    }

    #[test]
    fn the_server_that_took_writes_is_asked_first() {
        let url = DatabaseUrl::parse("postgres://u@h1,h2,h3,h4/d").expect("valid");
        let last = url.servers[2].host.clone();
        url.remember(last.clone());
        for _ in 0..20 {
            assert_eq!(url.in_order()[0].host, last);
        }
    }

    #[test]
    fn a_password_does_not_show_in_debug_output() {
        let url = DatabaseUrl::parse("postgres://u:hunter2@h/d").expect("valid");
        assert!(!format!("{url:?}").contains("hunter2"));
        assert!(!format!("{:?}", url.with_password(&"hunter3".into())).contains("hunter3"));
    }
}
