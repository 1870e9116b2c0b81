//! Connecting to Postgres.

use std::time::{Duration, Instant};

use shared::database::{Access, DatabaseUrl};
use sqlx::PgConnection;

use crate::{
    authority::Files,
    stores::{Database, Environment},
};

/// A bad certificate is noticed within a few round trips; this is far more, for a busy machine.
const SOON: Duration = Duration::from_secs(15);

async fn connect(url: &str) -> Result<PgConnection, String> {
    let started = Instant::now();
    let url = DatabaseUrl::parse(url).expect("valid");
    let connected = url.connect("test", Access::Write).await;
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    connected.map_err(|error| error.to_string())
}

async fn refused(url: &str, words: &str) {
    let error = connect(url).await.expect_err("refused");
    assert!(error.contains(words), "{error:?} does not say {words:?}");
}

fn shown(client: &Files) -> String {
    format!(
        "sslcert={}&sslkey={}",
        client.certificate.display(),
        client.key.display()
    )
}

/// An address for the superuser, without parameters.
fn address(database: &Database, hosts: &str) -> String {
    let login = database.server.owner();
    format!(
        "postgres://{}:{}@{hosts}/postgres",
        login.user, login.password
    )
}

#[tokio::test]
async fn the_server_is_verified_and_knows_a_client_by_its_certificate() {
    let environment = Environment::new();
    let database = Database::start(&environment).await;
    let port = database.server.address().port();
    let ca = environment.ca();
    let superuser = address(&database, &format!("localhost:{port}"));

    for mode in ["require", "verify-full"] {
        refused(
            &format!("{superuser}?sslmode={mode}"),
            "server does not support TLS",
        )
        .await;
    }
    database.show(&environment, &environment.server).await;
    until_it_speaks_tls(&superuser).await;

    let full = format!("sslmode=verify-full&sslrootcert={ca}");
    let trusted = format!("{superuser}?{full}");
    assert_eq!(user_of_tls(&trusted).await, ("pleo".to_owned(), None));
    let not_trusted = "comes from an authority that is not trusted here";
    let stranger = environment.stranger.files.certificate.display();
    for roots in [
        "sslmode=verify-full".to_owned(),
        format!("sslmode=verify-full&sslrootcert={stranger}"),
        // As libpq does; sqlx alone does not.
        format!("sslmode=require&sslrootcert={stranger}"),
    ] {
        refused(&format!("{superuser}?{roots}"), not_trusted).await;
    }
    let other_name = address(&database, &format!("127.0.0.1:{port}"));
    refused(
        &format!("{other_name}?{full}"),
        "not valid for name \"127.0.0.1\"",
    )
    .await;
    connect(&format!("{other_name}?sslmode=verify-ca&sslrootcert={ca}"))
        .await
        .expect("any name will do");
    // Each of several hosts is verified by its own name.
    let several = address(&database, &format!("127.0.0.1:{port},localhost:{port}"));
    for _ in 0..4 {
        connect(&format!("{several}?{full}"))
            .await
            .expect("one is good");
    }

    by_certificate(&environment, &database, &full).await;
    wrong_servers(&environment, &database, &trusted).await;
}

async fn by_certificate(environment: &Environment, database: &Database, full: &str) {
    let sql = "create role someone login; create role \"else\" login";
    sqlx::raw_sql(sql)
        .execute(&mut database.superuser().await)
        .await
        .expect("roles");
    let someone = environment.authority.issue("someone", &[]);
    let place = format!(
        "localhost:{}/postgres?{full}",
        database.server.address().port()
    );
    let known = format!("postgres://someone@{place}&{}", shown(&someone));
    let name = Some("/CN=someone".to_owned());
    assert_eq!(user_of_tls(&known).await, ("someone".to_owned(), name));

    let without = format!("postgres://someone@{place}");
    refused(&without, "requires a valid client certificate").await;
    let of_another = format!("postgres://else@{place}&{}", shown(&someone));
    refused(
        &of_another,
        "certificate authentication failed for user \"else\"",
    )
    .await;
    let foreign = environment.stranger.issue("foreign", &[]);
    let expired = environment.authority.issue_expired("someone", &[]);
    for (client, words) in [(foreign, "UnknownCA"), (expired, "CertificateExpired")] {
        let url = format!("postgres://someone@{place}&{}", shown(&client));
        let error = connect(&url).await.expect_err("refused");
        // The server closes the connection right after its error message, so the message may be lost.
        let said = error.contains(words) || error.contains("closed the connection");
        assert!(said, "{error:?} does not say {words:?}");
    }
}

async fn wrong_servers(environment: &Environment, database: &Database, trusted: &str) {
    let nameless = environment.authority.issue("nameless", &[]);
    let expired = environment
        .authority
        .issue_expired("server", &["localhost"]);
    for (files, words) in [
        (&expired, "certificate expired"),
        (&nameless, "not valid for name \"localhost\""),
        (&environment.authority.files, "certificate of an authority"),
    ] {
        database.show(environment, files).await;
        let end = Instant::now() + Duration::from_secs(30);
        // A reload takes some time.
        loop {
            let error = connect(trusted).await.err().unwrap_or_default();
            if error.contains(words) {
                break;
            }
            assert!(Instant::now() < end, "{error:?} does not say {words:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn until_it_speaks_tls(superuser: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    while let Err(error) = connect(&format!("{superuser}?sslmode=require")).await {
        assert!(Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The user of the connection, and the name in the certificate that the server has seen.
async fn user_of_tls(url: &str) -> (String, Option<String>) {
    let mut connection = connect(url).await.expect("it is known");
    let (user, name, ssl): (String, Option<String>, bool) = sqlx::query_as(
        "select current_user::text, client_dn, ssl from pg_stat_ssl where pid = pg_backend_pid()",
    )
    .fetch_one(&mut connection)
    .await
    .expect("a row");
    assert!(ssl);
    (user, name)
}
