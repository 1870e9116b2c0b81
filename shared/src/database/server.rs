//! One Postgres server: connecting to it, its role for writes, and why it cannot be reached.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, ConnectOptions, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    pooler::{self, Opened, PreparedStatements},
    schema::Schema,
};
use crate::{
    address::{Host, HostName},
    port_protocol::PortProtocol,
    reach::{self, ATTEMPT_DEADLINE, Cause},
    tls,
};

/// The time for any answer from a server that did not finish a login.
const KNOCK_DEADLINE: Duration = Duration::from_secs(1);

/// A server of an address.
#[derive(Clone)]
pub(super) struct Server {
    /// Without a host, Postgres' environment variables and defaults apply.
    pub(super) host: Option<Host>,
    pub(super) options: PgConnectOptions,
}

/// Why there is no connection to one server.
pub(super) enum Failure {
    Unreached(String, Cause),
    /// The server is read-only by default, and writes only in transactions declared read-write.
    ReadOnlyByDefault(Option<Host>, Box<Opened>),
}

impl Server {
    /// Connects to any of the server's addresses.
    pub(super) async fn connect(
        &self,
        session: Session<'_>,
    ) -> Result<(Option<Host>, Opened), Vec<Failure>> {
        let options = self.options.clone().application_name(session.name);
        let port = options.get_port();
        let label = |address| match &self.host {
            Some(host) => reach::label(host, port, address),
            None => format!("{}:{port}", options.get_host()),
        };
        let unreached = |address, cause| Failure::Unreached(label(address), cause);
        let by_address = match &self.host {
            Some(host) if goes_by_address(host, options.get_ssl_mode()) => Some(host),
            _ => None,
        };
        let Some(host) = by_address else {
            let connected = self.attempt(&options, session, label(None)).await;
            return connected.map_err(|cause| vec![cause.named(|cause| unreached(None, cause))]);
        };
        let addresses = reach::resolve(&host.name, port)
            .await
            .map_err(|cause| vec![unreached(None, cause)])?;
        let attempts = addresses.into_iter().map(|address| {
            let options = options.clone().host(&address.ip().to_string());
            async move {
                let connected = self.attempt(&options, session, label(Some(address))).await;
                connected.map_err(|cause| cause.named(|cause| unreached(Some(address), cause)))
            }
        });
        reach::first(attempts).await
    }

    async fn attempt(
        &self,
        options: &PgConnectOptions,
        session: Session<'_>,
        label: String,
    ) -> Result<(Option<Host>, Opened), Refused> {
        let login = async {
            let mut connection = options.connect().await?;
            let (role, scope) = pooler::examine(&mut connection, session.schema).await?;
            Ok((role, scope, connection))
        };
        let (role, scope, mut connection) = match timeout(ATTEMPT_DEADLINE, login).await {
            Ok(Ok(login)) => login,
            Ok(Err(error)) => return Err(Refused::For(or_another(cause(error), options).await)),
            Err(_elapsed) => {
                let cause = why_so_slow(options).await;
                return Err(Refused::For(or_another(cause, options).await));
            }
        };
        if session.write && role == Role::Standby {
            return Err(Refused::For(Cause::ReadOnly(
                "is a standby, which takes no writes",
            )));
        }
        pooler::prepare(&mut connection, session.statements)
            .await
            .map_err(Refused::For)?;
        let prepared = PreparedStatements::new(scope, label);
        let opened = Opened {
            connection,
            prepared,
        };
        match role {
            Role::ReadOnlyByDefault if session.write => Err(Refused::ReadOnlyByDefault(
                self.host.clone(),
                Box::new(opened),
            )),
            _ => Ok((self.host.clone(), opened)),
        }
    }
}

/// What is requested of a new connection.
#[derive(Clone, Copy)]
pub(super) struct Session<'a> {
    pub(super) name: &'a str,
    pub(super) schema: &'a Schema,
    pub(super) write: bool,
    pub(super) statements: &'a [&'static str],
}

enum Refused {
    For(Cause),
    ReadOnlyByDefault(Option<Host>, Box<Opened>),
}

impl Refused {
    fn named(self, name: impl FnOnce(Cause) -> Failure) -> Failure {
        match self {
            Self::For(cause) => name(cause),
            Self::ReadOnlyByDefault(host, opened) => Failure::ReadOnlyByDefault(host, opened),
        }
    }
}

/// Whether sqlx is given resolved addresses instead of the name. sqlx verifies the certificate for
/// what it is given, so it needs the name if the certificate may be verified.
fn goes_by_address(host: &Host, mode: PgSslMode) -> bool {
    let tls = matches!(
        mode,
        PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull
    );
    match host.name {
        HostName::Name(_) => !tls,
        HostName::Ipv6(_) => true,
        HostName::Socket(_) => false,
    }
}

/// A server's role for writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Writable,
    ReadOnlyByDefault,
    Standby,
}

/// Queries the role in one round trip. Both settings are in one row, because a proxy may send the
/// next statement to another server.
pub(super) async fn role(connection: &mut PgConnection) -> Result<Role, sqlx::Error> {
    // The database role's own limit may be too short.
    role_of(
        connection,
        "set local statement_timeout = '2s'; ".to_owned(),
    )
    .await
}

/// As [`role`], after running these statements in the same round trip.
pub(super) async fn role_of(
    connection: &mut PgConnection,
    mut sql: String,
) -> Result<Role, sqlx::Error> {
    use sqlx::Row;
    // Not as a prepared statement, because a connection may be asked often.
    sql.push_str(
        "select pg_is_in_recovery()::text, current_setting('default_transaction_read_only')",
    );
    let row = sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_one(&mut *connection)
        .await?;
    let (standby, read_only): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    Ok(if standby == "true" {
        Role::Standby
    } else if read_only == "on" {
        Role::ReadOnlyByDefault
    } else {
        Role::Writable
    })
}

pub(super) fn cause(error: sqlx::Error) -> Cause {
    match error {
        sqlx::Error::Io(error) => Cause::from(&error),
        sqlx::Error::Tls(error) => Cause::Tls(
            error
                .downcast_ref()
                .map_or_else(|| error.to_string(), tls::explain),
        ),
        sqlx::Error::Database(error) => {
            let sqlstate = error.code();
            pooler::cause(sqlstate.as_deref(), error.message()).unwrap_or_else(|| Cause::Refusal {
                sqlstate: sqlstate.map(Into::into),
                message: error.message().to_owned(),
            })
        }
        other => Cause::Other(other.to_string()),
    }
}

/// Why a login timed out: distinguishes a missing server, a silent one and a slow one.
async fn why_so_slow(options: &PgConnectOptions) -> Cause {
    /// Postgres's request for TLS, which it answers with one byte.
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    if options.get_socket().is_some() {
        return Cause::Silent;
    }
    let address = (options.get_host(), options.get_port());
    let connected = timeout(KNOCK_DEADLINE, tokio::net::TcpStream::connect(address));
    let mut stream = match connected.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Cause::from(&error),
        Err(_elapsed) => return Cause::NoAnswer,
    };
    let knock = async {
        stream.write_all(&SSL_REQUEST).await?;
        stream.read(&mut [0]).await
    };
    match timeout(KNOCK_DEADLINE, knock).await {
        Err(_elapsed) => Cause::Silent,
        Ok(_) => Cause::Other("did not finish the login in time".to_owned()),
    }
}

/// Replaces the cause if another program listens on the port.
async fn or_another(cause: Cause, options: &PgConnectOptions) -> Cause {
    let may_be_another = matches!(
        cause,
        Cause::Closed | Cause::Silent | Cause::Tls(_) | Cause::Other(_)
    );
    if !may_be_another || options.get_socket().is_some() {
        return cause;
    }
    match PortProtocol::detect((options.get_host(), options.get_port())).await {
        Some(protocol @ (PortProtocol::Amqp | PortProtocol::Http | PortProtocol::Tls)) => {
            Cause::Other(format!("not a Postgres server: {}", protocol.description()))
        }
        Some(PortProtocol::Postgres) | None => cause,
    }
}
