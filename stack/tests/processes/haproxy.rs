//! The answers that HAProxy, with the settings of `deploy/`, gives by itself.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use stack::haproxy::HaProxy;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// Longer than the longest of HAProxy's timeouts.
const SOON: Duration = Duration::from_secs(40);

/// A backend that passes the health check, and closes the connection for paths below `/ends`. Other
/// requests get no answer.
async fn bad_ingest() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 1024];
                let length = client.read(&mut head).await.unwrap_or_default();
                let head = String::from_utf8_lossy(&head[..length]).into_owned();
                if head.starts_with("GET /livez") {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    client.write_all(answer).await.ok();
                } else if !head.starts_with("GET /ends") {
                    sleep(SOON).await;
                }
            });
        }
    });
    (address, server)
}

/// The status, the headers in lower case and the body.
async fn answer(address: SocketAddr, request: &[u8]) -> (u16, String, String) {
    let exchange = async {
        let mut connection = TcpStream::connect(address).await.expect("it listens");
        connection.write_all(request).await.expect("it reads");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.ok();
        answer
    };
    let answer = timeout(SOON, exchange).await.expect("an end in time");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
    let status = head.split(' ').nth(1).expect("a status");
    (
        status.parse().expect("a number"),
        head.to_ascii_lowercase(),
        body.to_owned(),
    )
}

/// A problem body like ingest's.
fn assert_problem(status: u16, (found, head, body): &(u16, String, String)) {
    assert_eq!(*found, status, "{head}");
    assert!(
        head.contains("\r\ncontent-type: application/problem+json"),
        "{head}"
    );
    let length = format!("\r\ncontent-length: {}", body.len());
    assert!(head.contains(&length), "{head}");
    let problem: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(problem["status"], status, "{body}");
    for field in ["title", "detail"] {
        assert!(
            problem[field].as_str().is_some_and(|text| text.len() > 5),
            "{body}"
        );
    }
    let waits = head.contains("\r\nretry-after: 5");
    assert_eq!(waits, matches!(status, 429 | 502..=504), "{head}");
}

#[tokio::test]
async fn what_haproxy_refuses_by_itself_has_a_problem_body() {
    let folder = TempDir::new().expect("a folder");
    let (address, server) = bad_ingest().await;
    let development = [("DEVELOPMENT", "true")];
    let proxy = HaProxy::start_with(folder.path(), address, address, &development)
        .await
        .expect("a proxy");
    let to = async |request: &str| answer(proxy.address(), request.as_bytes()).await;
    let end = "host: localhost\r\nconnection: close\r\n\r\n";
    let (ended, silent) = (
        format!("GET /ends HTTP/1.1\r\n{end}"),
        format!("GET / HTTP/1.1\r\n{end}"),
    );
    // Without the errors for unreadable requests: older versions of HAProxy have their own page for those.
    let answers = tokio::join!(
        to("GET / HTTP/1.1\r\nhost: hooks.example.com\r\nconnection: close\r\n\r\n"),
        to(&ended),
        to(&silent),
    );
    assert_problem(403, &answers.0);
    assert_problem(502, &answers.1);
    assert_problem(504, &answers.2);

    server.abort();
    let deadline = Instant::now() + SOON;
    loop {
        let last = to(&ended).await;
        if last.0 == 503 {
            assert_problem(503, &last);
            break;
        }
        assert!(Instant::now() < deadline, "{last:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn every_answer_of_the_settings_is_a_problem_with_its_own_status() {
    let settings = include_str!("../../../deploy/haproxy.cfg");
    let mut statuses = Vec::new();
    let said =
        |line: &&str| line.starts_with("http-error ") || line.starts_with("http-request deny ");
    for line in settings.lines().map(str::trim).filter(said) {
        let status = line.split("status ").nth(1).and_then(|rest| rest.get(..3));
        let status: u16 = status
            .and_then(|status| status.parse().ok())
            .expect("a status");
        let body = line.split('\'').nth(1).expect("a body in quotation marks");
        let head = format!(
            "\r\ncontent-type: application/problem+json\r\ncontent-length: {}",
            body.len()
        );
        let wait = match line.contains(" hdr Retry-After 5") {
            true => "\r\nretry-after: 5",
            false => "",
        };
        assert!(
            line.contains(r#"content-type "application/problem+json""#),
            "{line}"
        );
        assert_problem(status, &(status, format!("{head}{wait}"), body.to_owned()));
        statuses.push(status);
    }
    assert_eq!(
        statuses,
        [
            400, 403, 405, 408, 413, 422, 429, 500, 501, 502, 503, 504, 403
        ]
    );
}
