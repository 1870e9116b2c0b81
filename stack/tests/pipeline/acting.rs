//! What a developer can do with dead letters in the console of `cargo stack up`.

use hookctl::delivery::Outcome;
use reqwest::{Client, redirect::Policy};
use shared::{Family, Program};
use sqlx::PgPool;
use stack::{
    programs::Programs,
    service::{Launcher, Service},
};

use crate::pipeline::{Pipeline, SOON, post, until_count};

const OPEN: &str = "select count(*) from dead_letters";

/// The value of a hidden field.
fn field(page: &str, name: &str) -> String {
    let (_, rest) = page
        .split_once(&format!("name=\"{name}\" value=\""))
        .unwrap_or_else(|| panic!("no {name}: {page}"));
    rest.split_once('"').expect("its value").0.to_owned()
}

/// Opens the page that shows what would be changed, and sends its form.
pub(crate) async fn act(console: &Service, action: &str, fields: &str) {
    let client = Client::builder().redirect(Policy::none()).build();
    let client = client.expect("a client");
    let origin = format!("http://{}", console.public());
    let url = format!("{origin}/dead-letters/{action}");
    let page = client.get(format!("{url}?id=msg_1")).send().await;
    let page = page.expect("an answer").text().await.expect("text");
    let (until, shown) = (field(&page, "until"), field(&page, "shown"));
    let answer = client
        .post(url)
        .header("origin", origin)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("id=msg_1&until={until}&shown={shown}{fields}"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 303, "{:?}", answer.text().await);
}

async fn record(pool: &PgPool) -> Vec<String> {
    let actions = "select account || ': ' || action from operator_actions
                    where starts_with(action, 'dead-letters') order by id";
    sqlx::query_scalar(actions)
        .fetch_all(pool)
        .await
        .expect("the record")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_developer_can_dismiss_a_dead_letter_and_restore_it() {
    let pipeline = Pipeline::new().await;
    let launcher = Launcher::for_developers(
        Programs::find().expect("the services are built"),
        &pipeline.stores,
        pipeline.accounts(),
        pipeline.folder(),
    );
    let [ingest, worker, console] = [
        Program::Ingest,
        Program::Worker(Family::Other),
        Program::Console,
    ]
    .map(|program| {
        let service = launcher.start(program, program.name());
        service.expect("the service starts")
    });
    for service in [&ingest, &worker, &console] {
        service.ready(SOON).await.expect("ready");
    }
    let answer = post(&ingest.webhook_url(), "msg_1", "no event").await;
    assert_eq!(answer.outcome, Outcome::Accepted, "{answer:?}");
    let pool = pipeline.pool().await;
    until_count(&pool, OPEN, 1).await;

    act(&console, "dismiss", "&note=a+test").await;
    until_count(&pool, OPEN, 0).await;
    act(&console, "restore", "&note=").await;
    until_count(&pool, OPEN, 1).await;
    assert_eq!(
        record(&pool).await,
        [
            "pleo-console-operator: dead-letters dismiss",
            "pleo-console-operator: dead-letters restore"
        ]
    );
}
