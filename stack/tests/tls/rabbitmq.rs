//! Connecting to RabbitMQ.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use hookctl::management::Management;
use shared::{
    broker::{self, BrokerUrl},
    tls::TlsFiles,
};
use stack::rabbitmq::RabbitMq;

use crate::{
    authority::Files,
    stores::{Broker, Environment},
};

/// A bad certificate is noticed within a few round trips; this is far more, for a busy machine.
const SOON: Duration = Duration::from_secs(15);

fn url(address: &str, ca: Option<&Files>, client: Option<&Files>) -> BrokerUrl {
    let certificate = |files: &Files| files.certificate.clone();
    let files = TlsFiles::new(
        ca.map(certificate),
        client.map(certificate),
        client.map(|files| files.key.clone()),
    );
    let url = BrokerUrl::parse(address).expect("valid");
    url.with_tls(files.expect("both")).expect("good files")
}

async fn error(url: &BrokerUrl) -> String {
    let started = Instant::now();
    let connected = broker::connect(url, "test").await;
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    connected.expect_err("refused").to_string()
}

async fn refused(url: &BrokerUrl, words: &str) {
    let error = error(url).await;
    assert!(error.contains(words), "{error:?} does not say {words:?}");
}

/// The broker closes the connection right after its error message, so the message may be lost.
async fn closed(url: &BrokerUrl, words: &str, without_words: &str) {
    let error = error(url).await;
    let said = error.contains(words) || error.contains(without_words);
    assert!(said, "{error:?} does not say {words:?}");
}

/// The users and authentication mechanisms of the broker's connections.
async fn logins(server: &RabbitMq) -> String {
    let what = [
        "list_connections",
        "--no-table-headers",
        "user",
        "auth_mechanism",
        "ssl",
    ];
    server.ctl(&what).await.expect("a list")
}

#[tokio::test]
async fn the_broker_is_verified_and_knows_a_client_by_its_certificate() {
    let environment = Environment::new();
    let broker = Broker::start(&environment).await;
    only_the_right_broker_will_do(&environment, &broker).await;
    let someone = by_certificate(&environment, &broker).await;
    management(&environment, &broker, &someone).await;
    renewal(&environment, &broker, &someone).await;
}

async fn only_the_right_broker_will_do(environment: &Environment, broker: &Broker) {
    let ca = Some(&environment.authority.files);
    let stranger = Some(&environment.stranger.files);
    let at = |scheme: &str, host: &str, port: u16| format!("{scheme}://guest:guest@{host}:{port}");
    let port = broker.amqps.port();
    let address = at("amqps", "localhost", port);
    let trusted = url(&address, ca, None);
    broker::connect(&trusted, "test")
        .await
        .expect("it is trusted");

    let not_trusted = "comes from an authority that is not trusted here";
    let plain_port = broker.server.address().port();
    for (url, words) in [
        (url(&address, None, None), not_trusted),
        (url(&address, stranger, None), not_trusted),
        (
            url(&at("amqps", "127.0.0.1", port), ca, None),
            "not valid for name \"127.0.0.1\"",
        ),
        (
            url(&at("amqps", "localhost", plain_port), ca, None),
            "does not speak TLS on this port",
        ),
    ] {
        refused(&url, words).await;
    }
    let plain = url(&at("amqp", "localhost", port), None, None);
    closed(
        &plain,
        "does not speak plain AMQP on this port",
        "closed the connection",
    )
    .await;
}

async fn by_certificate(environment: &Environment, broker: &Broker) -> Files {
    let ca = Some(&environment.authority.files);
    let make = ["add_user", "someone", "unused"];
    broker.server.ctl(&make).await.expect("a user");
    let rights = ["set_permissions", "someone", "", "", ""];
    broker.server.ctl(&rights).await.expect("they are set");
    let someone = environment.authority.issue("someone", &[]);
    let port = broker.amqps.port();
    let address = format!("amqps://localhost:{port}");
    let with_password = format!("amqps://guest:guest@localhost:{port}");
    for (address, login) in [
        (&address, "someone\tEXTERNAL\ttrue"),
        // The certificate only opens the port; the password is the login.
        (&with_password, "guest\tPLAIN\ttrue"),
    ] {
        let url = url(address, ca, Some(&someone));
        let connection = broker::connect(&url, "test").await.expect("it is known");
        let listed = logins(&broker.server).await;
        assert!(listed.contains(login), "{listed}");
        connection
            .close(200, "done".into())
            .await
            .expect("it is closed");
    }

    let nobody = environment.authority.issue("nobody", &[]);
    let expired = environment.authority.issue_expired("someone", &[]);
    let foreign = environment.stranger.issue("foreign", &[]);
    refused(&url(&address, ca, Some(&nobody)), "ACCESS_REFUSED").await;
    for (client, words) in [(expired, "CertificateExpired"), (foreign, "UnknownCA")] {
        let url = url(&address, ca, Some(&client));
        closed(&url, words, "where it refuses a client certificate").await;
    }
    someone
}

/// Its port requires a certificate, and also a user with a password.
async fn management(environment: &Environment, broker: &Broker, client: &Files) {
    let ca = Some(&environment.authority.files);
    let amqp = format!("amqps://guest:guest@localhost:{}", broker.amqps.port());
    let https = format!("https://localhost:{}", broker.https.port());
    let ask = async |broker: BrokerUrl| Management::new(&https, &broker)?.check().await;
    ask(url(&amqp, ca, Some(client)))
        .await
        .expect("it is reached");
    for (url, words) in [
        (url(&amqp, ca, None), "demands a client certificate"),
        (
            url(&amqp, None, Some(client)),
            "authority that is not trusted here",
        ),
        (
            url("amqps://localhost", ca, Some(client)),
            "needs a user with a password",
        ),
    ] {
        let error = format!("{:#}", ask(url).await.expect_err("refused"));
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
}

/// The files are read for each connection.
async fn renewal(environment: &Environment, broker: &Broker, client: &Files) {
    let ca = Some(&environment.authority.files);
    let url = url(
        &format!("amqps://localhost:{}", broker.amqps.port()),
        ca,
        Some(client),
    );
    std::fs::write(&client.key, "half a fi").expect("it is written");
    refused(&url, "AMQP_KEY_FILE").await;
    let renewed = environment.authority.issue("someone", &[]);
    assert_eq!(renewed.key, client.key);
    broker::connect(&url, "test")
        .await
        .expect("it is known again");
}

#[test]
fn files_that_are_of_no_use_are_named() {
    let environment = Environment::new();
    let (one, other) = (
        environment.authority.issue("one", &[]),
        environment.authority.issue("other", &[]),
    );
    let nowhere = PathBuf::from("/nowhere");
    let key = std::fs::read_to_string(&one.key).expect("a key");
    let broken = environment.folder.join("broken.key");
    std::fs::write(&broken, key.replace("END", "ENT")).expect("a file");
    let (cert, key) = (&one.certificate, &one.key);
    let ca = &environment.authority.files.certificate;
    for ([ca, cert, key], words) in [
        ([&nowhere, cert, key], "AMQP_CA_FILE: cannot read /nowhere"),
        ([key, cert, key], "one.key holds no certificate in PEM"),
        ([ca, &nowhere, key], "AMQP_CERT_FILE: cannot read /nowhere"),
        ([ca, cert, &nowhere], "AMQP_KEY_FILE: cannot read /nowhere"),
        ([ca, cert, cert], "holds no private key in PEM"),
        (
            [ca, cert, &broken],
            "broken.key has a private key that is damaged",
        ),
        (
            [ca, cert, &other.key],
            "other.key is not the key of the certificate in",
        ),
    ] {
        let files = TlsFiles::new(Some(ca.clone()), Some(cert.clone()), Some(key.clone()));
        let url = BrokerUrl::parse("amqps://h").expect("valid");
        let error = url
            .with_tls(files.expect("all three"))
            .expect_err("refused");
        let error = shared::reason::one_line(&error);
        assert!(error.contains(words), "{error:?} does not say {words:?}");
        assert!(!error.contains("MIG"), "a part of the key: {error}");
    }
    let plain = BrokerUrl::parse("amqp://h").expect("valid");
    let files = TlsFiles::new(Some(ca.clone()), None, None).expect("one will do");
    let error = plain.with_tls(files).expect_err("refused").to_string();
    assert!(error.contains("not amqps://"), "{error}");
}
