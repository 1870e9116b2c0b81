//! Stores with TLS, with a certificate for `localhost` only.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::PathBuf,
};

use sqlx::{Connection, PgConnection};
use stack::{
    data_folder::DataFolder,
    packages::Packages,
    ports,
    postgres::{Durability, Postgres},
    rabbitmq::{Configuration, Plugins, RabbitMq},
};

use crate::authority::{Authority, Files};

/// The folder of a test's files, and the authority that signs its certificates. Dropped after the stores.
pub(crate) struct Environment {
    pub(crate) authority: Authority,
    /// An unrelated authority.
    pub(crate) stranger: Authority,
    pub(crate) server: Files,
    pub(crate) folder: PathBuf,
    pub(crate) packages: Packages,
    pub(crate) base: DataFolder,
}

impl Environment {
    pub(crate) fn new() -> Self {
        let base = DataFolder::temporary().expect("a folder");
        let folder = base.folder("certificates").expect("a folder");
        let authority = Authority::new(&folder, "authority");
        Self {
            server: authority.issue("server", &["localhost"]),
            stranger: Authority::new(&folder, "stranger"),
            authority,
            folder,
            packages: Packages::find().expect("RabbitMQ and Postgres are installed"),
            base,
        }
    }

    pub(crate) fn ca(&self) -> String {
        self.authority.files.certificate.display().to_string()
    }
}

/// RabbitMQ with an AMQP port that authenticates clients by their certificates, and a management port that
/// requires a certificate.
pub(crate) struct Broker {
    pub(crate) server: RabbitMq,
    pub(crate) amqps: SocketAddr,
    pub(crate) https: SocketAddr,
}

impl Broker {
    pub(crate) async fn start(environment: &Environment) -> Self {
        let (amqps, https) = (
            ports::free().expect("a port"),
            ports::free().expect("a port"),
        );
        let files = |prefix: &str| {
            format!(
                "{prefix}.cacertfile = {}\n{prefix}.certfile = {}\n{prefix}.keyfile = {}\n\
                 {prefix}.verify = verify_peer\n",
                environment.ca(),
                environment.server.certificate.display(),
                environment.server.key.display(),
            )
        };
        let lines = format!(
            "listeners.ssl.1 = {amqps}\n{}ssl_options.fail_if_no_peer_cert = false\n\
             ssl_cert_login_from = common_name\n\
             auth_mechanisms.1 = EXTERNAL\nauth_mechanisms.2 = PLAIN\nauth_mechanisms.3 = AMQPLAIN\n\
             management.ssl.ip = {}\nmanagement.ssl.port = {}\n{}\
             management.ssl.fail_if_no_peer_cert = true\n",
            files("ssl_options"),
            https.ip(),
            https.port(),
            files("management.ssl"),
        );
        let configuration = Configuration {
            plugins: Plugins::Management,
            more_plugins: vec!["rabbitmq_auth_mechanism_ssl"],
            lines,
        };
        let folder = environment.base.path().join("rabbitmq");
        let address = ports::free().expect("a port");
        let server = RabbitMq::start(&environment.packages, &folder, address, configuration)
            .await
            .expect("RabbitMQ comes up");
        Self {
            server,
            amqps,
            https,
        }
    }
}

/// Postgres whose superuser logs in with a password, and all others with a certificate.
pub(crate) struct Database {
    pub(crate) server: Postgres,
    folder: PathBuf,
}

impl Database {
    /// It has no TLS yet.
    pub(crate) async fn start(environment: &Environment) -> Self {
        let folder = environment.base.path().join("postgres");
        let address = ports::free().expect("a port");
        let server = Postgres::start(
            &environment.packages,
            &folder,
            address,
            Durability::ProcessOnly,
        )
        .await
        .expect("Postgres comes up");
        Self { server, folder }
    }

    /// From now on the server uses this certificate.
    pub(crate) async fn show(&self, environment: &Environment, files: &Files) {
        let data = self.folder.join("data");
        // The server reads a key only if no other account can.
        let owner = fs::metadata(&data).expect("the data's folder");
        chown(&files.key, Some(owner.uid()), Some(owner.gid())).expect("an owner");
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).expect("a mode");
        let access = "host all pleo all scram-sha-256\nhostssl all all all cert\n";
        fs::write(data.join("pg_hba.conf"), access).expect("a file");
        let mut connection = self.superuser().await;
        for (setting, value) in [
            ("ssl_ca_file", environment.ca()),
            ("ssl_cert_file", files.certificate.display().to_string()),
            ("ssl_key_file", files.key.display().to_string()),
            ("ssl", "on".to_owned()),
        ] {
            let sql = format!("alter system set {setting} = '{value}'");
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                .execute(&mut connection)
                .await
                .expect("it is set");
        }
        sqlx::raw_sql("select pg_reload_conf()")
            .execute(&mut connection)
            .await
            .expect("it is read");
    }

    pub(crate) async fn superuser(&self) -> PgConnection {
        PgConnection::connect(&self.server.url("postgres"))
            .await
            .expect("a connection")
    }
}
