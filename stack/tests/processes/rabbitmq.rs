use std::time::Duration;

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use stack::data_folder::DataFolder;
use stack::packages::Packages;
use stack::ports;
use stack::rabbitmq::{Plugins, RabbitMq};
use tokio::time::{Instant, sleep};

async fn channel(broker: &RabbitMq) -> (Connection, Channel) {
    let connection = Connection::connect(&broker.amqp_url(), ConnectionProperties::default())
        .await
        .expect("a connection");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is tested is the broker, not our publisher"
)]
async fn publish_confirmed(broker: &RabbitMq) {
    let (_connection, channel) = channel(broker).await;
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    let durable = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    channel
        .queue_declare("kept".into(), durable, arguments)
        .await
        .expect("a queue");
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .expect("confirms");
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let published = channel
        .basic_publish(
            "".into(),
            "kept".into(),
            BasicPublishOptions::default(),
            b"body",
            persistent,
        )
        .await;
    let confirm = published
        .expect("it is published")
        .await
        .expect("an answer");
    assert!(confirm.is_ack());
}

/// The queue's leader is elected shortly after the start.
async fn get(broker: &RabbitMq) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let (_connection, channel) = channel(broker).await;
        let got = channel
            .basic_get("kept".into(), BasicGetOptions { no_ack: true })
            .await;
        if let Ok(Some(message)) = got {
            return message.delivery.data.clone();
        }
        assert!(Instant::now() < end, "the message is gone: {got:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_killed_rabbitmq_comes_back_on_its_port_with_its_messages() {
    let packages = Packages::find().expect("the packages");
    let base = DataFolder::temporary().expect("a folder");
    let address = ports::free().expect("a port");
    let folder = base.path().join("rabbitmq");
    let mut broker = RabbitMq::start(&packages, &folder, address, Plugins::None)
        .await
        .expect("it starts");
    publish_confirmed(&broker).await;
    broker.settle().await;
    broker.kill();
    assert!(!broker.process().is_running());

    broker.restart().await.expect("it starts again");
    assert_eq!(get(&broker).await, b"body");
    let listed = broker
        .ctl(&["list_queues", "name"])
        .await
        .expect("rabbitmqctl works");
    assert!(listed.contains("kept"), "{listed}");
    broker.stop().await.expect("it stops in order");
}
