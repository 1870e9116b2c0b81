//! What an account cannot do in RabbitMQ.

use lapin::{
    BasicProperties, Channel, Connection, ErrorKind, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
        ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions, QueuePurgeOptions,
    },
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::FieldTable,
};
use reqwest::Method;
use shared::{
    Family, Program,
    topology::{Declare, Sight, Topology},
};
use sqlx::PgPool;

use crate::place::{Place, text};

/// Each on a channel of its own, as a refusal closes it.
async fn assert_refused<T: std::fmt::Debug>(
    connection: &Connection,
    what: &str,
    attempt: impl AsyncFnOnce(Channel) -> Result<T, lapin::Error>,
) {
    let channel = connection.create_channel().await.expect("a channel");
    let outcome = attempt(channel).await;
    let refused = outcome.as_ref().err().is_some_and(|error| {
        matches!(error.kind(), ErrorKind::ProtocolError(error)
            if *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED))
    });
    assert!(refused, "{what}: {outcome:?}");
}

async fn get(channel: Channel, queue: String) -> Result<(), lapin::Error> {
    channel
        .basic_get(queue.as_str().into(), BasicGetOptions::default())
        .await
        .map(drop)
}

async fn consume(channel: Channel, queue: String) -> Result<(), lapin::Error> {
    let options = BasicConsumeOptions::default();
    channel
        .basic_consume(
            queue.as_str().into(),
            "".into(),
            options,
            FieldTable::default(),
        )
        .await
        .map(drop)
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is tested is who may publish at all"
)]
async fn publish(channel: Channel, exchange: String, key: String) -> Result<(), lapin::Error> {
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    channel
        .basic_publish(
            exchange.as_str().into(),
            key.as_str().into(),
            BasicPublishOptions::default(),
            b"{}",
            BasicProperties::default(),
        )
        .await?
        .await
        .map(drop)
}

async fn bind(channel: Channel, queue: String, exchange: String) -> Result<(), lapin::Error> {
    channel
        .queue_bind(
            queue.as_str().into(),
            exchange.as_str().into(),
            "#".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
}

/// Nothing on the broker is any service's to make, change or delete.
async fn assert_configures_nothing(connection: &Connection, topology: &Topology, who: &str) {
    for family in Family::ALL {
        let queue = topology.queue(family);
        assert_refused(
            connection,
            &format!("{who} deletes {queue}"),
            async |channel| {
                channel
                    .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
                    .await
            },
        )
        .await;
        assert_refused(
            connection,
            &format!("{who} binds {queue}"),
            async |channel| bind(channel, queue.clone(), topology.events_exchange()).await,
        )
        .await;
    }
    for queue in ["extra", ""] {
        assert_refused(
            connection,
            &format!("{who} declares a queue"),
            async |channel| {
                channel
                    .queue_declare(
                        queue.into(),
                        QueueDeclareOptions::durable(),
                        FieldTable::default(),
                    )
                    .await
            },
        )
        .await;
    }
    assert_refused(
        connection,
        &format!("{who} declares an exchange"),
        async |channel| {
            let options = ExchangeDeclareOptions::default();
            channel
                .exchange_declare(
                    "extra".into(),
                    ExchangeKind::Direct,
                    options,
                    FieldTable::default(),
                )
                .await
        },
    )
    .await;
    for exchange in [topology.events_exchange(), topology.unrouted_exchange()] {
        assert_refused(
            connection,
            &format!("{who} deletes {exchange}"),
            async |channel| {
                channel
                    .exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default())
                    .await
            },
        )
        .await;
    }
}

#[sqlx::test(migrations = false)]
async fn ingest_can_only_publish_and_only_to_the_events_exchange(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    let topology = place.topology();
    let ingest = place.rabbitmq(Program::Ingest).await.expect("it logs in");

    let channel = ingest.create_channel().await.expect("a channel");
    publish(channel, topology.events_exchange(), "vendor".into())
        .await
        .expect("what it is there for");
    let drifts = topology
        .declare(&ingest, Declare::Passive, Sight::Of(Program::Ingest))
        .await;
    assert!(drifts.as_ref().is_ok_and(Vec::is_empty), "{drifts:?}");

    assert_configures_nothing(&ingest, &topology, "ingest").await;
    let vendors = topology.queue(Family::Vendor);
    // The default exchange reaches every queue by its name.
    for (exchange, key) in [
        (String::new(), vendors.as_str()),
        (topology.unrouted_exchange(), ""),
        ("amq.direct".to_owned(), "vendor"),
        // One character more or less, or another one for the dot.
        (format!("{}2", topology.events_exchange()), ""),
        (topology.events_exchange().replace('.', "-"), ""),
    ] {
        assert_refused(
            &ingest,
            &format!("ingest publishes to {exchange}"),
            async |channel| publish(channel, exchange.clone(), key.to_owned()).await,
        )
        .await;
    }
    for family in Family::ALL {
        let queue = topology.queue(family);
        assert_refused(
            &ingest,
            &format!("ingest gets from {queue}"),
            async |channel| get(channel, queue.clone()).await,
        )
        .await;
        assert_refused(
            &ingest,
            &format!("ingest consumes {queue}"),
            async |channel| consume(channel, queue.clone()).await,
        )
        .await;
        assert_refused(
            &ingest,
            &format!("ingest purges {queue}"),
            async |channel| {
                channel
                    .queue_purge(queue.as_str().into(), QueuePurgeOptions::default())
                    .await
            },
        )
        .await;
    }
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn a_worker_can_only_read_and_only_its_own_queue(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    let topology = place.topology();
    for own in Family::ALL {
        let program = Program::Worker(own);
        let who = program.name();
        let worker = place.rabbitmq(program).await.expect("it logs in");

        let channel = worker.create_channel().await.expect("a channel");
        consume(channel, topology.queue(own))
            .await
            .expect("what it is there for");
        let drifts = topology
            .declare(&worker, Declare::Passive, Sight::Of(program))
            .await;
        assert!(drifts.as_ref().is_ok_and(Vec::is_empty), "{drifts:?}");

        assert_configures_nothing(&worker, &topology, who).await;
        for exchange in [
            String::new(),
            topology.events_exchange(),
            topology.unrouted_exchange(),
        ] {
            assert_refused(
                &worker,
                &format!("{who} publishes to {exchange}"),
                async |channel| publish(channel, exchange.clone(), topology.queue(own)).await,
            )
            .await;
        }
        for other in Family::ALL.into_iter().filter(|family| *family != own) {
            let queue = topology.queue(other);
            assert_refused(
                &worker,
                &format!("{who} gets from {queue}"),
                async |channel| get(channel, queue.clone()).await,
            )
            .await;
            assert_refused(
                &worker,
                &format!("{who} consumes {queue}"),
                async |channel| consume(channel, queue.clone()).await,
            )
            .await;
            assert_refused(&worker, &format!("{who} purges {queue}"), async |channel| {
                channel
                    .queue_purge(queue.as_str().into(), QueuePurgeOptions::default())
                    .await
            })
            .await;
        }
    }
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn one_account_cannot_take_all_connections(pool: PgPool) {
    let place = Place::new(&pool);
    let output = place.set_up(&["--account-replicas", "1"]).await;
    assert!(output.status.success(), "{}", text(&output));
    let mut open = Vec::new();
    let refusal = loop {
        // RabbitMQ counts a connection a moment after it has opened it.
        match place.rabbitmq(Program::Ingest).await {
            Ok(connection) => open.push(connection),
            Err(refusal) => break refusal.to_string(),
        }
        assert!(open.len() < 100, "no limit");
    };
    assert!(refusal.contains("connection limit"), "{refusal}");
    assert!(open.len() >= 4, "{} and no more", open.len());
    drop(open);
    place.clean_up().await;
}

/// The status of a request to RabbitMQ's HTTP API as this account.
async fn ask(place: &Place, program: Program, method: Method, path: &str, body: &str) -> u16 {
    let url = format!("{}/api/{path}", place.management_url);
    let request = reqwest::Client::new().request(method, url);
    let answer = request
        .basic_auth(place.name(program), Some(place.password(program)))
        .header("content-type", "application/json")
        .body(body.to_owned())
        .send()
        .await;
    answer.expect("an answer").status().as_u16()
}

#[sqlx::test(migrations = false)]
async fn a_workers_tag_shows_it_queues_and_lets_it_change_nothing(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    let topology = place.topology();
    let (_connection, channel) = place.administrator().await;
    publish(channel.clone(), topology.events_exchange(), "vendor".into())
        .await
        .expect("a message");
    let worker = Program::Worker(Family::ExportJob);
    let (own, vendors) = (
        topology.queue(Family::ExportJob),
        topology.queue(Family::Vendor),
    );
    let user = place.name(worker);
    for path in [format!("queues/%2F/{own}"), "whoami".to_owned()] {
        assert_eq!(
            ask(&place, worker, Method::GET, &path, "").await,
            200,
            "{path}"
        );
    }
    // Names and numbers of all that is in the virtual host show as well.
    let path = format!("queues/%2F/{vendors}");
    assert_eq!(ask(&place, worker, Method::GET, &path, "").await, 200);

    let take = r#"{"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}"#;
    let publish = r#"{"properties": {}, "routing_key": "vendor", "payload": "{}", "payload_encoding": "string"}"#;
    let policy = r#"{"pattern": ".*", "definition": {"message-ttl": 1}}"#;
    let everything = r#"{"configure": ".*", "write": ".*", "read": ".*"}"#;
    let administrator = r#"{"password": "x", "tags": "administrator"}"#;
    let events = topology.events_exchange();
    for (method, path, body) in [
        (Method::POST, format!("queues/%2F/{vendors}/get"), take),
        (Method::DELETE, format!("queues/%2F/{vendors}/contents"), ""),
        (Method::DELETE, format!("queues/%2F/{vendors}"), ""),
        (Method::DELETE, format!("queues/%2F/{own}"), ""),
        (
            Method::POST,
            format!("exchanges/%2F/{events}/publish"),
            publish,
        ),
        (Method::PUT, "queues/%2F/another".to_owned(), "{}"),
        (Method::PUT, format!("policies/%2F/{user}"), policy),
        (Method::PUT, format!("operator-policies/%2F/{user}"), policy),
        (Method::PUT, format!("permissions/%2F/{user}"), everything),
        (Method::PUT, format!("users/{user}"), administrator),
        (
            Method::PUT,
            format!("user-limits/{user}/max-connections"),
            r#"{"value": 99}"#,
        ),
        (Method::PUT, format!("vhosts/{user}"), "{}"),
        (
            Method::PUT,
            format!("parameters/shovel/%2F/{user}"),
            r#"{"value": {}}"#,
        ),
        (Method::GET, "users".to_owned(), ""),
        (Method::GET, "permissions".to_owned(), ""),
        (Method::GET, "nodes".to_owned(), ""),
        (Method::GET, "definitions".to_owned(), ""),
    ] {
        let status = ask(&place, worker, method.clone(), &path, body).await;
        assert!((400..500).contains(&status), "{method} {path}: {status}");
    }
    // Of connections it sees its own.
    let url = format!("{}/api/connections", place.management_url);
    let seen = reqwest::Client::new()
        .get(url)
        .basic_auth(&user, Some(place.password(worker)))
        .send()
        .await
        .expect("an answer");
    let seen: serde_json::Value =
        serde_json::from_slice(&seen.bytes().await.expect("a body")).expect("JSON");
    let seen = seen.as_array().expect("a list");
    assert!(seen.iter().all(|c| c["user"] == *user), "{seen:?}");
    let message = channel
        .basic_get(vendors.as_str().into(), BasicGetOptions::default())
        .await
        .expect("the queue");
    assert!(message.is_some(), "the message is gone");

    // Ingest, which strangers can reach, gets no answer at all.
    assert_eq!(
        ask(&place, Program::Ingest, Method::GET, "whoami", "").await,
        401
    );
    place.clean_up().await;
}
