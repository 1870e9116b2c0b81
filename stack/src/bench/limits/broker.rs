//! Only publishing, and only consuming.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::time::Instant;

use super::super::request;

const QUEUE: &str = "limits";
const ACK_EVERY: u64 = 200;
const PREFETCH: u16 = 2_000;
const PERSISTENT: u8 = 2;

/// Confirms per second with this many in flight, then deliveries per second of the messages that this left.
pub(super) async fn measure(url: &str, in_flight: usize, slice: Duration) -> Result<(f64, f64)> {
    let (connection, channel) = open(url).await?;
    let start = Instant::now();
    let mut confirms = FuturesUnordered::new();
    let mut published = 0_u64;
    while start.elapsed() < slice {
        while confirms.len() < in_flight {
            confirms.push(publish(&channel, request::body(published)));
            published += 1;
        }
        // All available confirms, so that the messages that follow reach the socket together as well.
        let mut confirmed = confirms.ready_chunks(in_flight);
        for confirm in confirmed.next().await.context("a confirm")? {
            confirm?;
        }
        confirms = confirmed.into_inner();
    }
    while let Some(confirm) = confirms.next().await {
        confirm?;
    }
    let publish_rate = published as f64 / start.elapsed().as_secs_f64();
    let consume_rate = consume(&connection, published).await?;
    close(&connection, &channel).await?;
    Ok((publish_rate, consume_rate))
}

/// A connection, and a channel with confirms on it, with an empty quorum queue.
async fn open(url: &str) -> Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(QUEUE.into(), options, arguments)
        .await?;
    Ok((connection, channel))
}

async fn close(connection: &Connection, channel: &Channel) -> Result<()> {
    channel
        .queue_delete(QUEUE.into(), QueueDeleteOptions::default())
        .await?;
    connection.close(200, "done".into()).await?;
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the bare publish that the pipeline is measured against"
)]
async fn publish(channel: &Channel, body: String) -> Result<()> {
    let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let options = BasicPublishOptions::default();
    let body = body.as_bytes();
    let confirm = channel.basic_publish("".into(), QUEUE.into(), options, body, properties);
    ensure!(
        confirm.await?.await?.is_ack(),
        "the broker refused a message"
    );
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the bare consumer that the pipeline is measured against"
)]
async fn consume(connection: &Connection, messages: u64) -> Result<f64> {
    let channel = connection.create_channel().await?;
    channel
        .basic_qos(PREFETCH, BasicQosOptions::default())
        .await?;
    let options = BasicConsumeOptions::default();
    let mut deliveries = channel
        .basic_consume(QUEUE.into(), "".into(), options, FieldTable::default())
        .await?;
    let start = Instant::now();
    for count in 1..=messages {
        let delivery = deliveries.next().await.context("a delivery")??;
        if count % ACK_EVERY == 0 || count == messages {
            let options = BasicAckOptions { multiple: true };
            channel.basic_ack(delivery.delivery_tag, options).await?;
        }
    }
    let rate = messages as f64 / start.elapsed().as_secs_f64();
    // If the end of the stream did this, cancelling would race with closing the connection.
    let tag = deliveries.tag();
    channel
        .basic_cancel(tag, BasicCancelOptions::default())
        .await?;
    drop(deliveries);
    channel.close(200, "done".into()).await?;
    Ok(rate)
}

/// The average seconds of one confirm, each awaited before the next publish.
pub(super) async fn lone(url: &str, times: u32) -> Result<f64> {
    let (connection, channel) = open(url).await?;
    let start = Instant::now();
    for number in 0..times {
        publish(&channel, request::body(number.into())).await?;
    }
    let seconds = start.elapsed().as_secs_f64() / f64::from(times);
    close(&connection, &channel).await?;
    Ok(seconds)
}
