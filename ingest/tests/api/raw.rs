//! Requests as raw bytes, for requests that no HTTP client sends.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    app::{App, SOON},
    webhook::Webhook,
};

/// The answers on one connection.
#[derive(Debug)]
pub(crate) struct Answers {
    text: String,
    /// Whether the service closed the connection.
    pub(crate) closed: bool,
}

impl Answers {
    /// The status of each final answer, in order.
    pub(crate) fn statuses(&self) -> Vec<u16> {
        self.text
            .split("HTTP/1.1 ")
            .skip(1)
            // The last answer may be incomplete.
            .filter_map(|answer| answer.get(..3))
            .map(|status| status.parse().expect("a status"))
            .filter(|status| *status != 100)
            .collect()
    }

    /// The status text of each 202: `accepted` or `duplicate`.
    pub(crate) fn accepted(&self) -> Vec<&str> {
        self.text
            .split(r#"{"status":""#)
            .skip(1)
            .map(|rest| rest.split('"').next().expect("a word"))
            .collect()
    }
}

/// A connection to the public port.
pub(crate) async fn connect(app: &App) -> TcpStream {
    let address = app.url.split('/').nth(2).expect("a host");
    TcpStream::connect(address).await.expect("a connection")
}

/// Writes the bytes and reads until the service closes the connection or the expected number of
/// answers has arrived. A service that answers early may reset the connection; then no answer
/// arrives.
pub(crate) async fn exchange(app: &App, bytes: &[u8], expected: usize) -> Answers {
    let mut connection = connect(app).await;
    // The connection may be closed before everything is written.
    connection.write_all(bytes).await.ok();
    read(&mut connection, expected).await
}

/// Reads until the service closes the connection. After the expected number of answers, it waits
/// longer than any answer takes and then stops.
pub(crate) async fn read(connection: &mut TcpStream, expected: usize) -> Answers {
    let mut answers = Answers {
        text: String::new(),
        closed: false,
    };
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let patience = if answers.statuses().len() < expected {
            SOON
        } else {
            Duration::from_millis(300)
        };
        match timeout(patience, connection.read(&mut buffer)).await {
            Err(_silence) => return answers,
            Ok(Ok(0) | Err(_)) => {
                answers.closed = true;
                return answers;
            }
            Ok(Ok(length)) => answers.text += &String::from_utf8_lossy(&buffer[..length]),
        }
    }
}

/// A request's start line and headers, without Content-Length or Transfer-Encoding.
pub(crate) fn head(start: &str, webhook: &Webhook) -> String {
    format!(
        "{start}\r\nhost: x\r\nwebhook-id: {}\r\nwebhook-timestamp: {}\r\nwebhook-signature: {}\r\n",
        webhook.id, webhook.timestamp, webhook.signature
    )
}

/// A well-behaved sender's request.
pub(crate) fn post(webhook: &Webhook) -> Vec<u8> {
    let head = head("POST /webhooks/pleo HTTP/1.1", webhook);
    let length = webhook.body.len();
    let mut request = format!("{head}content-length: {length}\r\n\r\n").into_bytes();
    request.extend_from_slice(&webhook.body);
    request
}
