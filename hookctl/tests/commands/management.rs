//! `hookctl doctor` and RabbitMQ's management: what it says where that cannot be asked, and what it learns
//! there of policies and connections.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lapin::{Connection, ConnectionProperties, options::QueueDeleteOptions};
use serde_json::json;
use shared::{Family, topology::Topology};
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{sleep, timeout},
};

use crate::place::{Ended, Place, SOON, until};

/// What an examination may take that asks nothing of a dead host but once, on a busy machine too. It
/// makes more than twenty requests.
const EXAMINED_WITHIN: Duration = Duration::from_secs(25);

/// A port whose queue of connections is full, so that the kernel drops what comes.
async fn drops_packets() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(([127, 0, 0, 1], 0).into())
        .expect("a free port");
    let listener = socket.listen(1).expect("it listens");
    let address = listener.local_addr().expect("an address");
    let mut waiting = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await
    {
        waiting.push(connected.expect("room in the queue"));
    }
    (address, listener, waiting)
}

/// A web server that knows no page.
async fn knows_nothing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            if client.read(&mut [0; 4_096]).await.is_err() {
                continue;
            }
            let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot found";
            client.write_all(answer.as_bytes()).await.ok();
        }
    });
    address
}

/// What doctor finds of RabbitMQ with this management.
async fn examine(place: &Place, management: &str) -> (String, String) {
    let mut command = place.hookctl(&["doctor", "--json"]);
    command.env("RABBITMQ_MANAGEMENT_URL", management);
    let ended = Ended::new(command.output().await.expect("hookctl runs"));
    crate::doctor::findings(&ended)["rabbitmq"].clone()
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_dead_host_is_paid_for_once(pool: PgPool) {
    let place = Place::new(&pool).await;
    let (dead, _listener, _waiting) = drops_packets().await;
    let management = place.management_url.trim_start_matches("http://");
    let started = Instant::now();
    let (verdict, said) = examine(&place, &format!("http://{dead},{management}")).await;
    assert!(
        started.elapsed() < EXAMINED_WITHIN,
        "{:?}",
        started.elapsed()
    );
    assert_eq!(verdict, "ok", "{said}");
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn faults_are_told_apart(pool: PgPool) {
    let place = Place::new(&pool).await;
    let (dead, _listener, _waiting) = drops_packets().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = (silent.local_addr().expect("an address"), silent);
    let amqp = {
        let (_, rest) = place.amqp_url.rsplit_once('@').expect("a user");
        rest.split('/').next().expect("a host").to_owned()
    };
    let options = pool.connect_options();
    let postgres = format!("{}:{}", options.get_host(), options.get_port());
    let plain = place.management_url.replace("http://", "");
    let web = knows_nothing().await;
    for (url, words) in [
        ("http://127.0.0.1:1".to_owned(), "connection refused"),
        ("http://nowhere.invalid:1".to_owned(), "no such host"),
        (format!("http://{dead}"), "no answer"),
        (format!("http://{}", silent.0), "says nothing"),
        (format!("http://{web}"), "not RabbitMQ's management"),
        (format!("http://{amqp}"), "no HTTP"),
        (format!("http://{postgres}"), "no HTTP"),
        (format!("https://{plain}"), "TLS failed"),
        (
            format!("{}/elsewhere", place.management_url),
            "nothing at /api",
        ),
    ] {
        let started = Instant::now();
        let (verdict, said) = examine(&place, &url).await;
        assert_eq!(verdict, "problem", "{url}: {said}");
        assert!(said.contains(words), "{url}: {said}");
        assert!(!said.contains("timeout:"), "{url}: {said}");
        assert!(
            started.elapsed() < EXAMINED_WITHIN,
            "{url}: {:?}",
            started.elapsed()
        );
    }
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_user_without_a_tag_is_called_so(pool: PgPool) {
    let place = Place::new(&pool).await;
    place.set_up_accounts().await;
    let ingest = place.account("ingest").await;
    let mut command = place.hookctl(&["doctor", "--json"]);
    command.env("AMQP_URL", &ingest);
    let ended = Ended::new(command.output().await.expect("hookctl runs"));
    let (verdict, said) = crate::doctor::findings(&ended)["rabbitmq"].clone();
    assert_eq!(verdict, "problem", "{said}");
    assert!(said.contains("no tag"), "{said}");
    place.remove_accounts().await;
    place.clean_up().await;
}

/// Sets a policy of this kind (`policies` or `operator-policies`) for the vendors' queue, and waits until it
/// shows.
async fn limit(place: &Place, kind: &str, definition: serde_json::Value) -> String {
    let queue = place.topology().queue(Family::Vendor);
    let policy = json!({
        "pattern": format!("^{}$", queue.replace('.', "\\.")),
        "apply-to": "queues",
        "definition": definition,
    });
    let management = place.management();
    let path = format!("/api/{kind}/%2F/{}", place.prefix);
    management.put(&path, policy).await.expect("a policy");
    path
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_policy_that_lets_messages_be_dropped_is_a_problem_until_it_goes(pool: PgPool) {
    let place = Place::new(&pool).await;
    let check = place.name("policy of", "vendor");
    let kinds = [
        (
            "policies",
            json!({"message-ttl": 60_000}),
            "message-ttl 60000",
        ),
        (
            "operator-policies",
            json!({"expires": 3_600_000}),
            "expires 3600000",
        ),
        (
            "operator-policies",
            json!({"delivery-limit": 20}),
            "delivery-limit 20",
        ),
    ];
    for (kind, definition, words) in kinds {
        let path = limit(&place, kind, definition).await;
        until("doctor finds the policy", async || {
            let found = place.examine(&[]).await;
            found
                .get(&check)
                .is_some_and(|(verdict, said)| verdict == "problem" && said.contains(words))
        })
        .await;
        place.management().delete(&path).await.expect("the policy");
        until("the finding goes", async || {
            !place.examine(&[]).await.contains_key(&check)
        })
        .await;
    }
    // A full queue refuses, unless an earlier version has made it.
    let path = limit(&place, "policies", json!({"max-length": 1_000})).await;
    sleep(Duration::from_secs(2)).await;
    assert!(!place.examine(&[]).await.contains_key(&check));
    let queue = place.topology().queue(Family::Vendor);
    let channel = &place.channel;
    channel
        .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
        .await
        .expect("the queue");
    channel
        .queue_declare(
            queue.as_str().into(),
            lapin::options::QueueDeclareOptions::durable(),
            Topology::earlier_queue_arguments(),
        )
        .await
        .expect("a queue");
    until("doctor finds the policy", async || {
        let found = place.examine(&[]).await;
        found
            .get(&check)
            .is_some_and(|(verdict, said)| verdict == "problem" && said.contains("max-length 1000"))
    })
    .await;
    place.management().delete(&path).await.expect("the policy");
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_account_with_few_connections_left_is_found(pool: PgPool) {
    let place = Place::new(&pool).await;
    place.set_up_accounts().await;
    let check = format!("connections of {}-ingest", place.prefix);
    let path = format!("/api/user-limits/{}-ingest/max-connections", place.prefix);
    let limit = place.management().put(&path, json!({"value": 5})).await;
    limit.expect("a limit");
    let url = place.account("ingest").await;
    let mut connections = Vec::new();
    for _ in 0..4 {
        let connection = Connection::connect(&url, ConnectionProperties::default()).await;
        connections.push(connection.expect("it logs in"));
    }
    let deadline = Instant::now() + SOON;
    loop {
        let found = place.examine(&[]).await;
        if let Some((verdict, said)) = found.get(&check) {
            assert_eq!(verdict, "warning", "{said}");
            assert!(said.contains("4 of 5"), "{said}");
            break;
        }
        assert!(Instant::now() < deadline, "{found:#?}");
    }
    drop(connections);
    place.remove_accounts().await;
    place.clean_up().await;
}
