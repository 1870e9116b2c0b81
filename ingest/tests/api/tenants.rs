//! An event whose secret is tied to companies keeps them, in RabbitMQ and in the spool.

use shared::{Companies, Family};
use sqlx::PgPool;

use crate::{
    app::{App, Stores},
    webhook::{SECRET, Webhook},
};

const UNTIED: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_carries_the_companies_that_its_secret_is_tied_to(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let secrets = format!("acme={SECRET} company=c1 company=c2,untied={UNTIED}");
    let (url, amqp) = (&stores.database_url, &stores.amqp_url);
    let app = App::start_with(url, amqp, &stores.prefix, &["--webhook-secrets", &secrets]);
    app.until_ready("rabbitmq").await;
    let expected = [("acme", Some("c1 c2")), ("untied", None)].map(|(name, companies)| {
        let companies = companies.map(str::to_owned);
        (Some(name.to_owned()), companies)
    });

    for secret in [SECRET, UNTIED] {
        assert_eq!(app.send(&Webhook::under(secret)).await.0, 202);
    }
    let mut queued: Vec<_> = (stores.events(Family::Vendor).await.into_iter())
        .map(|event| {
            let companies = event.secret_companies.as_ref().map(Companies::as_str);
            (event.secret_name, companies.map(str::to_owned))
        })
        .collect();
    queued.sort();
    assert_eq!(queued, expected);

    app.stop().await;
    // Nothing listens at this address.
    let nowhere = "amqp://127.0.0.1:1/%2f";
    let app = App::start_with(
        url,
        nowhere,
        &stores.prefix,
        &["--webhook-secrets", &secrets],
    );
    app.until_ready("postgres").await;
    for secret in [SECRET, UNTIED] {
        assert_eq!(app.send(&Webhook::under(secret)).await.0, 202);
    }
    let spooled: Vec<(Option<String>, Option<String>)> = sqlx::query_as(
        "select secret_name, array_to_string(secret_companies, ' ') from webhook_spool order by 1",
    )
    .fetch_all(&pool)
    .await
    .expect("the spool");
    assert_eq!(spooled, expected);

    app.stop().await;
    stores.clean_up().await;
}
