//! Unauthenticated requests hardly disturb signed ones.

use futures_util::future::join_all;
use sqlx::PgPool;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Duration, Instant, sleep},
};

use crate::{
    app::{App, Stores},
    raw::{connect, exchange, head, read},
    webhook::Webhook,
};

const POST: &str = "POST /webhooks/pleo HTTP/1.1";
/// The default of BODY_LIMIT.
const LARGEST: usize = 262_144;
/// Together, this many bodies exceed the memory for bodies.
const CROWD: usize = 300;

/// A well-formed signature by an unknown key.
fn foreign(id: &str) -> Webhook {
    Webhook {
        signature: format!("v1,{}=", "A".repeat(43)),
        ..Webhook::vendor(id)
    }
}

/// A head that announces a body; the body itself is not sent.
fn without_body(webhook: &Webhook, length: usize) -> String {
    format!("{}content-length: {length}\r\n\r\n", head(POST, webhook))
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_nobody_can_have_signed_is_refused_before_its_body(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let (tag, ed25519) = ("A".repeat(43), "A".repeat(86));
    let forms = [
        "v1,x".to_owned(),
        "x".to_owned(),
        "v1,".to_owned(),
        format!("v1,{}", "A".repeat(44)),
        format!("v1,{tag}"),
        format!("v2,{tag}="),
        // The only configured secret is not an ed25519 key.
        format!("v1a,{ed25519}=="),
        format!("v1a,{tag}= v1,{ed25519}=="),
    ];
    let mut webhooks: Vec<_> = forms
        .into_iter()
        .map(|signature| Webhook {
            signature,
            ..Webhook::vendor("msg_1")
        })
        .collect();
    webhooks.push(Webhook::signed_at("msg_1", b"{}", 0));
    let requests: Vec<_> = (webhooks.iter())
        .map(|webhook| without_body(webhook, LARGEST))
        .collect();
    let answers = requests
        .iter()
        .map(|request| exchange(&app, request.as_bytes(), usize::MAX));
    for (request, answers) in requests.iter().zip(join_all(answers).await) {
        assert_eq!(answers.statuses(), [401], "{request}");
    }
    let request = without_body(&foreign("msg_1"), LARGEST);
    let read = exchange(&app, request.as_bytes(), 1).await;
    assert_eq!(read.statuses(), [408], "a body was waited for");
    app.stop().await;
    stores.clean_up().await;
}

/// Each one costs processor time before anybody is known to have signed.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn of_many_signatures_the_first_sixteen_are_looked_at(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    for (others, status) in [(15, 202), (16, 401)] {
        let webhook = Webhook::vendor(&Webhook::new_id());
        let mut signatures = vec![foreign(&webhook.id).signature; others];
        signatures.push(webhook.signature.clone());
        let webhook = Webhook {
            signature: signatures.join(" "),
            ..webhook
        };
        assert_eq!(app.send(&webhook).await.0, status, "after {others}");
    }
    app.stop().await;
    stores.clean_up().await;
}

/// Sends the body in `parts` pieces, one second before each.
async fn send_slowly(app: &App, webhook: &Webhook, parts: usize) -> (Vec<u16>, Instant) {
    let mut connection = connect(app).await;
    let head = without_body(webhook, webhook.body.len());
    connection
        .write_all(head.as_bytes())
        .await
        .expect("a write");
    for part in webhook.body.chunks(webhook.body.len().div_ceil(parts)) {
        sleep(Duration::from_secs(1)).await;
        connection.write_all(part).await.expect("a write");
    }
    let ended = Instant::now();
    (read(&mut connection, 1).await.statuses(), ended)
}

/// All start at the same time and have the same deadline, so only the minimum rate can end the
/// stalled one first.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_large_body_that_stalls_ends_before_steady_and_small_ones_of_eight_seconds(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let steady = Webhook::new("steady", &[b'x'; 200_000]);
    let small = Webhook::new("small", &[b'x'; 8_000]);
    let stalled = async {
        let request = without_body(&foreign("stalled"), LARGEST);
        let answers = exchange(&app, request.as_bytes(), 1).await;
        (answers.statuses(), Instant::now())
    };
    let (stalled, steady, small) = tokio::join!(
        stalled,
        send_slowly(&app, &steady, 8),
        send_slowly(&app, &small, 8)
    );
    assert_eq!(stalled.0, [408]);
    assert_eq!((steady.0, small.0), (vec![202], vec![202]));
    assert!(stalled.1 < steady.1, "it may stall until the deadline");
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn small_bodies_find_room_beside_large_ones_that_never_end(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    let hold = async |number: usize| -> TcpStream {
        let head = head(POST, &foreign(&format!("held_{number}")));
        let mut request = format!("{head}content-length: {LARGEST}\r\n\r\n").into_bytes();
        request.resize(request.len() + LARGEST - 1, b'x');
        let mut connection = connect(&app).await;
        // The service may close an evicted request before all of it is sent.
        connection.write_all(&request).await.ok();
        connection
    };
    let mut held = Vec::new();
    // A few at a time. If all came at once, more would be refused than the budget requires.
    for first in (0..CROWD).step_by(20) {
        held.extend(join_all((first..first + 20).map(hold)).await);
    }
    for number in 0..20 {
        // Larger than what the held bodies leave free.
        let small = Webhook::new(&format!("small_{number}"), &[b'x'; 2_000]);
        let (status, answer) = app.send(&small).await;
        assert_eq!(status, 202, "{answer}");
    }
    let ended = held.into_iter().map(|mut connection| async move {
        let answers = read(&mut connection, 1).await;
        answers.statuses()
    });
    let ended: Vec<u16> = join_all(ended).await.concat();
    assert!(ended.contains(&503), "none had to go: {ended:?}");
    app.stop().await;
    stores.clean_up().await;
}
