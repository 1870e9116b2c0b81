//! Malformed requests, among them attempts at request smuggling. No hidden request is executed, and
//! the service keeps serving.

use std::collections::HashSet;

use futures_util::future::join_all;
use shared::Family;
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    time::{Duration, Instant, timeout},
};

use crate::{
    app::{App, SOON, Stores},
    raw::{connect, exchange, head, post, read},
    webhook::Webhook,
};

const POST: &str = "POST /webhooks/pleo HTTP/1.1";

/// More than all buffers between client and service together.
const FLOOD: usize = 64 * 1024 * 1024;

async fn untouched(stores: &Stores, pool: &PgPool) {
    for family in Family::ALL {
        let ids: Vec<_> = stores.drain(family).await;
        assert!(ids.is_empty(), "{ids:?}");
    }
    let rows: i64 = sqlx::query_scalar(
        "select (select count(*) from webhook_receipts) + (select count(*) from webhook_spool)",
    )
    .fetch_one(pool)
    .await
    .expect("a count");
    assert_eq!(rows, 0);
}

/// The hidden request is valid: if it were read as a request, it would be accepted, as the next
/// test shows.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_request_hidden_in_another_is_never_executed(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let visible = Webhook::new("visible", b"{}xx");
    let hidden = String::from_utf8(post(&Webhook::vendor("hidden"))).expect("text");
    let signed = head(POST, &visible);
    let ended = "0\r\n\r\n";
    // A parser that uses the length takes the hidden request as part of the body.
    let all = ended.len() + hidden.len();
    let mut shapes: Vec<String> = Vec::new();

    // Two parsers that use different headers disagree on where the body ends.
    for framing in [
        format!("content-length: {all}\r\ntransfer-encoding: chunked"),
        format!("transfer-encoding: chunked\r\ncontent-length: {all}"),
        format!("content-length: {all}\r\ncontent-length: 5"),
        format!("content-length: 5\r\ncontent-length: {all}"),
        format!("content-length: {all}\r\ncontent-length: {all}"),
        format!("content-length: {all}, {all}"),
        format!("content-length: -{all}"),
        format!("content-length: +{all}"),
        format!("content-length: {all:#x}"),
        format!("content-length: {all} 5"),
        format!("content-length: {all}\0"),
        "content-length: 5\u{b}".to_owned(),
        "content-length:".to_owned(),
        "content-length: 18446744073709551617".to_owned(),
        "transfer-encoding: chunked, identity".to_owned(),
        "transfer-encoding: identity, chunked".to_owned(),
        "transfer-encoding: chunked, chunked".to_owned(),
        "transfer-encoding: xchunked".to_owned(),
        "transfer-encoding: \u{b}chunked".to_owned(),
        "transfer-encoding: \"chunked\"".to_owned(),
        "transfer-encoding: chunked\r\ntransfer-encoding: identity".to_owned(),
        "transfer-encoding: identity\r\ntransfer-encoding: chunked".to_owned(),
        "transfer-encoding: gzip".to_owned(),
        format!("transfer-encoding: identity\r\ncontent-length: {all}"),
        // Headers that only one of two parsers sees.
        format!("content-length: {all}\r\nx: y\ntransfer-encoding: chunked"),
        format!("content-length: {all}\r\nx: y\rtransfer-encoding: chunked"),
        format!("content-length: {all}\r\nx: y\r\n transfer-encoding: chunked"),
        format!("content-length: {all}\r\ntransfer-encoding\r\n : chunked"),
        format!("content-length: {all}\r\ntransfer-encoding : chunked"),
        format!("content-length : {all}"),
        format!(" content-length: {all}"),
        format!("content-length: {all}\r\nx: y\0transfer-encoding: chunked"),
        format!("content-length: {all}\r\nx\0: y"),
        format!("content-length: {all}\r\n: y"),
        format!("content-length: {all}\r\nhost: y"),
    ] {
        shapes.push(format!("{signed}{framing}\r\n\r\n{ended}{hidden}"));
    }
    // Chunks whose size two parsers read differently.
    for chunk in [
        "10000000000000000\r\n",
        "fffffffffffffffff\r\n{}xx\r\n0\r\n\r\n",
        "-4\r\n{}xx\r\n0\r\n\r\n",
        "+4\r\n{}xx\r\n0\r\n\r\n",
        "0x4\r\n{}xx\r\n0\r\n\r\n",
        " 4\r\n{}xx\r\n0\r\n\r\n",
        "4\n{}xx\r\n0\r\n\r\n",
        "4;a\n{}xx\r\n0\r\n\r\n",
        "4;\0\r\n{}xx\r\n0\r\n\r\n",
        "4\r\n{}xxx\r\n0\r\n\r\n",
        "4\r\n{}xx0\r\n\r\n",
        "4\r\n{}xx\n0\r\n\r\n",
        "\r\n",
        "g\r\n",
    ] {
        let framing = "transfer-encoding: chunked\r\n\r\n";
        shapes.push(format!("{signed}{framing}{chunk}{hidden}"));
    }
    // Requests that are refused before their body is read.
    let length = format!("content-length: {}\r\n\r\n", hidden.len());
    for start in [
        "GET /webhooks/pleo HTTP/1.1",
        "HEAD /webhooks/pleo HTTP/1.1",
        "PUT /webhooks/pleo HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "POST / HTTP/1.1",
        "POST * HTTP/1.1",
        "POST x:80 HTTP/1.1",
        "POST //webhooks/pleo HTTP/1.1",
        "POST /webhooks/pleo/ HTTP/1.1",
        "POST /webhooks/../webhooks/pleo HTTP/1.1",
        "POST /webhooks/pleo HTTP/1.2",
        "POST /webhooks/pleo HTTP/2.0",
        "POST /webhooks/pleo",
        "POST\t/webhooks/pleo HTTP/1.1",
        "P\0ST /webhooks/pleo HTTP/1.1",
        "PRI * HTTP/2.0\r\n\r\nSM",
    ] {
        shapes.push(format!("{}{length}{hidden}", head(start, &visible)));
    }
    let unsigned = format!("{POST}\r\nhost: x\r\n{length}{hidden}");
    shapes.push(unsigned.replace("host: x\r\n", ""));
    shapes.push(unsigned.replace(POST, "POST /webhooks/pleo HTTP/1.0"));
    shapes.push(unsigned);
    let wrong = Webhook {
        signature: "v1,x".to_owned(),
        ..visible.clone()
    };
    shapes.push(format!("{}{length}{hidden}", head(POST, &wrong)));
    shapes.push(format!(
        "{signed}expect: 100-continue\r\ncontent-length: 9999999\r\n\r\n{hidden}"
    ));
    // Without a length, or of another HTTP version.
    let old = head("POST /webhooks/pleo HTTP/1.0", &visible);
    shapes.push(format!("{old}\r\n{hidden}"));
    shapes.push(format!(
        "{old}transfer-encoding: chunked\r\n\r\n{ended}{hidden}"
    ));
    // Bytes in a tunnel are no requests.
    shapes.push(format!("CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n{hidden}"));
    shapes.push(format!(
        "{signed}connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 4\r\n\r\n{{}}xx{hidden}"
    ));

    let answers = join_all(
        shapes
            .iter()
            .map(|shape| exchange(&app, shape.as_bytes(), usize::MAX)),
    );
    for (shape, answers) in shapes.iter().zip(answers.await) {
        assert!(answers.closed, "{shape:?} keeps its connection");
        assert!(
            matches!(answers.statuses()[..], [] | [400..500]),
            "{shape:?} got {answers:?}"
        );
    }
    untouched(&stores, &pool).await;
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn right_framing_is_understood_and_the_next_request_is_found(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let chunked = "4\r\n{}xx\r\n0\r\n\r\n";
    let shapes = [
        (POST, "content-length: 4", "{}xx"),
        (POST, "content-length: \t 4 ", "{}xx"),
        (POST, "content-length: 0004", "{}xx"),
        (POST, "transfer-encoding: chunked", chunked),
        (POST, "Transfer-Encoding:\tChunked", chunked),
        (
            POST,
            "transfer-encoding: chunked",
            "04;a=b\r\n{}xx\r\n00\r\n\r\n",
        ),
        (
            POST,
            "transfer-encoding: chunked",
            "1\r\n{\r\n3\r\n}xx\r\n0\r\na: b\r\n\r\n",
        ),
        (POST, "expect: 100-continue\r\ncontent-length: 4", "{}xx"),
        (
            "POST http://elsewhere/webhooks/pleo HTTP/1.1",
            "content-length: 4",
            "{}xx",
        ),
        (
            "POST /webhooks/pleo?a=b HTTP/1.1",
            "content-length: 4",
            "{}xx",
        ),
    ];
    for (index, (start, framing, body)) in shapes.iter().enumerate() {
        let first = Webhook::new(&format!("first-{index}"), b"{}xx");
        let next = Webhook::vendor(&format!("next-{index}"));
        let mut bytes = format!("{}{framing}\r\n\r\n{body}", head(start, &first)).into_bytes();
        bytes.extend(post(&next));
        let answers = exchange(&app, &bytes, 2).await;
        assert_eq!(answers.statuses(), [202, 202], "{start} {framing}");
        assert!(!answers.closed, "{answers:?}");
    }
    assert_eq!(stores.events(Family::Other).await.len(), shapes.len());
    assert_eq!(stores.events(Family::Vendor).await.len(), shapes.len());
    app.stop().await;
    stores.clean_up().await;
}

/// Writes until the service closes the connection. Returns the statuses of its answers.
async fn flood(app: &App, start: &[u8], more: &[u8]) -> Vec<u16> {
    let mut connection = connect(app).await;
    connection.write_all(start).await.expect("a write");
    let (mut reader, mut writer) = connection.split();
    let mut written = 0;
    let writing = async {
        while writer.write_all(more).await.is_ok() {
            written += more.len();
            // actix discards further bytes until a deadline. That costs us more than the client.
            if written > FLOOD {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    let mut answer = Vec::new();
    let reading = timeout(SOON, reader.read_to_end(&mut answer));
    let (written, read) = tokio::join!(timeout(SOON, writing), reading);
    assert!(written.is_ok(), "it takes everything, for ever");
    // A connection reset may discard the answer.
    read.unwrap_or_else(|_| panic!("{:?} keeps its connection", String::from_utf8_lossy(start)))
        .ok();
    String::from_utf8_lossy(&answer)
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| answer[..3].parse().expect("a status"))
        .collect()
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn heads_and_bodies_without_end_are_cut_off(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let webhook = Webhook::vendor("msg_1");
    let signed = head(POST, &webhook);
    let filler = vec![b'a'; 64 * 1024];
    let lines = b"x: y\r\n".repeat(10_000);
    let chunk = [b"10000\r\n", &filler[..], b"\r\n"].concat();
    let cases: [(&str, String, &[u8]); 8] = [
        ("one header", format!("{signed}x: "), &filler),
        ("one name", signed.clone(), &filler),
        ("many headers", signed.clone(), &lines),
        ("one target", "POST /".to_owned(), &filler),
        ("one method", String::new(), &filler),
        (
            "chunks",
            format!("{signed}transfer-encoding: chunked\r\n\r\n"),
            &chunk,
        ),
        (
            "one chunk's extension",
            format!("{signed}transfer-encoding: chunked\r\n\r\n1;"),
            &filler,
        ),
        (
            "trailers",
            format!("{signed}transfer-encoding: chunked\r\n\r\n0\r\n"),
            &lines,
        ),
    ];
    let floods = cases
        .iter()
        .map(|(_, start, more)| flood(&app, start.as_bytes(), more));
    for ((name, ..), statuses) in cases.iter().zip(join_all(floods).await) {
        assert!(
            matches!(statuses[..], [] | [400..500]),
            "{name}: {statuses:?}"
        );
    }
    untouched(&stores, &pool).await;
    assert_eq!(app.send(&webhook).await.0, 202, "it goes on serving");
    app.stop().await;
    stores.clean_up().await;
}

/// Otherwise many such clients could hold all connections for as long as they want.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_refused_body_that_never_ends_keeps_no_connection(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let chunked = "transfer-encoding: chunked\r\n\r\n1\r\na\r\n";
    let counted = "content-length: 9\r\n\r\na";
    let stale = Webhook::signed_at("msg_1", b"{}", 0);
    let slow = Webhook::vendor("msg_1");
    let heads = [
        format!("{POST}\r\nhost: x\r\n"),
        head(POST, &stale),
        head(POST, &slow),
        "GET /webhooks/pleo HTTP/1.1\r\nhost: x\r\n".to_owned(),
        "POST / HTTP/1.1\r\nhost: x\r\n".to_owned(),
    ];
    let requests: Vec<String> = heads
        .iter()
        .flat_map(|head| [format!("{head}{chunked}"), format!("{head}{counted}")])
        .collect();
    let answers = requests
        .iter()
        .map(|request| exchange(&app, request.as_bytes(), usize::MAX));
    for (request, answers) in requests.iter().zip(join_all(answers).await) {
        assert!(answers.closed, "{request:?} keeps its connection");
        assert!(matches!(answers.statuses()[..], [400..500]), "{answers:?}");
    }
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn oversize_heads_and_bodies_are_refused(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let webhook = Webhook::vendor("msg_1");
    let signed = head(POST, &webhook);
    let body = String::from_utf8(webhook.body.clone()).expect("text");
    let length = format!("content-length: {}\r\n\r\n{body}", body.len());
    let big = "a".repeat(300 * 1024);
    for (expected, request) in [
        (400..=431, format!("{signed}x: {big}\r\n{length}")),
        (
            400..=431,
            format!("{signed}{}{length}", "x: y\r\n".repeat(1_000)),
        ),
        (400..=431, format!("POST /{big} HTTP/1.1\r\n{length}")),
        (
            413..=413,
            format!("{signed}content-length: {}\r\n\r\n{big}", big.len()),
        ),
        (
            413..=413,
            format!(
                "{signed}transfer-encoding: chunked\r\n\r\n{:x}\r\n{big}\r\n0\r\n\r\n",
                big.len()
            ),
        ),
    ] {
        let answers = exchange(&app, request.as_bytes(), usize::MAX).await;
        assert!(answers.closed);
        let statuses = answers.statuses();
        assert!(
            statuses.iter().all(|status| expected.contains(status)) && statuses.len() <= 1,
            "{expected:?}: {answers:?}"
        );
    }
    untouched(&stores, &pool).await;
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_body_that_ends_early_is_refused(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    // The signature is good, so that only the missing end is wrong.
    let webhook = Webhook::vendor("msg_1");
    let signed = head(POST, &webhook);
    let body = String::from_utf8(webhook.body.clone()).expect("text");
    for framed in [
        format!("content-length: {}\r\n\r\n{body}", body.len() + 1),
        format!(
            "transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n",
            body.len()
        ),
        format!(
            "transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n",
            body.len()
        ),
    ] {
        let mut connection = connect(&app).await;
        let request = format!("{signed}{framed}");
        connection
            .write_all(request.as_bytes())
            .await
            .expect("a write");
        connection.shutdown().await.expect("a half-close");
        let answers = read(&mut connection, usize::MAX).await;
        assert!(answers.closed);
        assert!(matches!(answers.statuses()[..], [] | [400]), "{answers:?}");
    }
    untouched(&stores, &pool).await;
    app.stop().await;
    stores.clean_up().await;
}

/// Every third webhook repeats the one before it, so that answers in the wrong order are noticed.
fn pipeline(count: usize) -> (Vec<Webhook>, Vec<&'static str>) {
    let webhooks = (0..count)
        .map(|index| Webhook::vendor(&format!("msg_{}", index - usize::from(index % 3 == 2))))
        .collect();
    let expected = (0..count)
        .map(|index| {
            if index % 3 == 2 {
                "duplicate"
            } else {
                "accepted"
            }
        })
        .collect();
    (webhooks, expected)
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn requests_written_at_once_are_answered_in_order_and_stored_once(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let (webhooks, expected) = pipeline(60);
    let bytes: Vec<u8> = webhooks.iter().flat_map(post).collect();
    let answers = exchange(&app, &bytes, 60).await;
    assert_eq!(answers.statuses(), [202; 60]);
    assert_eq!(answers.accepted(), expected);
    let queued = stores.events(Family::Vendor).await;
    let ids: HashSet<_> = queued.into_iter().map(|event| event.webhook_id).collect();
    assert_eq!(ids.len(), 40);
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_bad_request_spoils_no_other_of_its_pipeline_and_ends_the_connection(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let (mut webhooks, expected) = pipeline(30);
    webhooks[15].signature = "v1,AAAA".to_owned();
    let bytes: Vec<u8> = webhooks.iter().flat_map(post).collect();
    let answers = exchange(&app, &bytes, usize::MAX).await;
    assert!(answers.closed);
    let statuses = answers.statuses();
    assert_eq!(statuses[..15], [202; 15]);
    assert_eq!(answers.accepted()[..15], expected[..15]);
    assert_eq!(statuses.get(15), Some(&401));
    // Requests that had been read before may be executed; then their answers must be true.
    let accepted = answers.accepted();
    let accepted = accepted.iter().filter(|word| **word == "accepted");
    assert_eq!(
        stores.events(Family::Vendor).await.len(),
        accepted.count(),
        "{statuses:?}"
    );
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_is_not_http_is_cut_off(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let garbage: Vec<u8> = (0..100 * 1024).map(|_| rand::random()).collect();
    let hello = [
        &b"\x16\x03\x01\x00\x30\x01\x00\x00\x2c\x03\x03"[..],
        &[7; 32],
        b"\x00\x00\x02\x13\x01\x01\x00\x00\x01\x00",
    ]
    .concat();
    let silent: &[u8] = b"";
    let amqp: &[u8] = b"AMQP\0\0\x09\x01";
    let inputs = [&garbage[..], &hello, silent, amqp, b"\r\n\r\n\r\n", b"\0"];
    let answers = join_all(inputs.map(|input| exchange(&app, input, usize::MAX))).await;
    for answers in answers {
        assert!(answers.closed);
        assert!(
            matches!(answers.statuses()[..], [] | [400..500]),
            "{answers:?}"
        );
    }
    untouched(&stores, &pool).await;
    assert_eq!(app.send(&Webhook::vendor("msg_1")).await.0, 202);
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_sender_that_reads_late_gets_every_answer_and_holds_nobody_up(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(2_048).expect("a small buffer");
    let address = app.url.split('/').nth(2).expect("a host");
    let address = address.parse().expect("an address");
    let mut connection = socket.connect(address).await.expect("a connection");
    let (webhooks, expected) = pipeline(300);
    for webhook in &webhooks {
        connection.write_all(&post(webhook)).await.expect("a write");
    }
    let started = Instant::now();
    while app.send(&Webhook::vendor("other")).await.0 != 202 {
        assert!(started.elapsed() < SOON);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let answers = read(&mut connection, 300).await;
    assert_eq!(answers.accepted(), expected);
    app.stop().await;
    stores.clean_up().await;
}
