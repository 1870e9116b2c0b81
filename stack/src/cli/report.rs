//! What `cargo stack up` shows: stored events, addresses, and commands to try next.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use hookctl::output;
use hookctl::sample::Sample;
use ingest::secrets::DEVELOPMENT_SECRET;
use shared::Program;
use sqlx::{AssertSqlSafe, PgPool};
use stack::service::Service;
use stack::stores::Stores;

/// The sample events' rows in the database, and the totals.
pub(super) struct Stored {
    samples: Vec<StoredSample>,
    events: i64,
}

#[derive(sqlx::FromRow)]
struct StoredSample {
    event_type: String,
    webhook_id: String,
    lag_ms: f64,
    target: String,
}

/// Whether the newest of these events is in `events` and the sample's resource in its own table.
pub(super) async fn is_stored(pool: &PgPool, sample: &Sample, ids: &[String]) -> Result<bool> {
    let table = sample.table;
    sqlx::query_scalar(AssertSqlSafe(format!(
        "select exists (select from events where webhook_id = $1)
            and exists (select from {table} where id = $2)"
    )))
    .bind(ids.last())
    .bind(sample.resource_id)
    .fetch_one(pool)
    .await
    .context("cannot look for the sample event")
}

pub(super) async fn stored(pool: &PgPool, ids: &[String]) -> Result<Stored> {
    let samples = sqlx::query_as(
        "select e.event_type, e.webhook_id,
                extract(epoch from e.stored_at - e.received_at)::float8 * 1000 as lag_ms,
                coalesce(
                    'export_jobs: ' || j.status || ', ' || j.number_of_items || ' item(s)',
                    'vendors: ' || v.name || ', ' || v.state || ', ' || v.default_currency,
                    e.problem, '') as target
           from events e
           left join export_jobs j on j.id = e.resource_id
           left join vendors v on v.id = e.resource_id
          where e.webhook_id = any ($1)
          order by e.stored_at",
    )
    .bind(ids)
    .fetch_all(pool)
    .await
    .context("cannot read the sample events")?;
    let events = sqlx::query_scalar("select count(*) from events")
        .fetch_one(pool)
        .await?;
    Ok(Stored { samples, events })
}

/// The addresses of everything.
pub(super) struct Places<'a> {
    pub(super) services: &'a [Service],
    pub(super) stores: &'a Stores,
    pub(super) logs: &'a Path,
    pub(super) hookctl: &'a Path,
}

pub(super) fn print(stored: &Stored, places: &Places<'_>) -> Result<()> {
    let Places {
        services,
        stores,
        logs,
        hookctl,
    } = places;
    let management = stores.management_url()?;
    let mut table = output::table(&["event", "webhook-id", "stored after", "row in"]);
    for sample in &stored.samples {
        table.add_row([
            sample.event_type.clone(),
            sample.webhook_id.clone(),
            format!("{:.0} ms", sample.lag_ms),
            sample.target.clone(),
        ]);
    }
    let mut out = io::stdout().lock();
    let mut console = services.iter().filter(|s| s.program() == Program::Console);
    if let Some(console) = console.next() {
        let address = console.public();
        writeln!(
            out,
            "\nConsole     http://{address}/ (the events in a browser; everybody there is an operator)"
        )?;
    }
    writeln!(
        out,
        "\n{table}\n{} event(s) in all, earlier runs included.\n",
        stored.events
    )?;

    let webhook_url = services
        .first()
        .map(Service::webhook_url)
        .unwrap_or_default();
    writeln!(out, "Webhooks    {webhook_url}")?;
    writeln!(
        out,
        "Secret      {DEVELOPMENT_SECRET} (for development only)"
    )?;
    for service in *services {
        writeln!(
            out,
            "Metrics     {} ({})",
            service.private_url("/metrics"),
            service.process().name()
        )?;
    }
    writeln!(out, "RabbitMQ    {}", stores.amqp_url())?;
    writeln!(
        out,
        "            {management} (its web interface: guest, guest)"
    )?;
    writeln!(out, "Postgres    psql {}", stores.database_url())?;
    writeln!(out, "Logs        {}", logs.display())?;
    writeln!(out, "\nSend another event:\n\n{}", curl(&webhook_url))?;
    writeln!(
        out,
        "\nFor the operators' tool, {}:\n\n{}",
        hookctl.display(),
        exports(stores, &management)
    )?;
    writeln!(out, "\nLook at what is stored, in psql:\n\n{QUERIES}")?;
    writeln!(out, "\nCtrl-C stops everything.")?;
    Ok(())
}

const QUERIES: &str = "  select * from latest_events;
  select id, company_id, status, number_of_items, created_at from export_jobs;
  select id, company_id, name, state, country, default_currency from vendors;
  select * from dead_letters;";

/// The environment that a shell needs for `hookctl doctor`, `send`, `tail` and the others.
fn exports(stores: &Stores, management: &str) -> String {
    let secrets = format!("development={DEVELOPMENT_SECRET}");
    [
        ("DATABASE_URL", stores.database_url().as_str()),
        ("AMQP_URL", &stores.amqp_url()),
        ("RABBITMQ_MANAGEMENT_URL", management),
        ("WEBHOOK_SECRETS", &secrets),
    ]
    .map(|(name, value)| format!("  export {name}='{value}'"))
    .join("\n")
}

/// A shell command that signs and sends an export job with its own id.
fn curl(url: &str) -> String {
    let key = DEVELOPMENT_SECRET.trim_start_matches("whsec_");
    format!(
        r#"  id=msg_$(openssl rand -hex 12); now=$(date +%s); uuid=$(cat /proc/sys/kernel/random/uuid)
  body='{{"data":{{"companyId":"b5fdaec1-1b43-4b62-996a-b0471c3bb336","createdAt":"'$(date -u +%FT%TZ)'","createdBy":null,"expiresIn":3600,"id":"'$uuid'","numberOfItems":3,"status":"pending"}},"eventId":"'$uuid'","eventType":"v1.export-job.created"}}'
  key=$(printf %s '{key}' | base64 -d | od -An -v -tx1 | tr -d ' \n')
  signature=$(printf %s "$id.$now.$body" | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | base64)
  curl -i {url} -H "webhook-id: $id" -H "webhook-timestamp: $now" \
    -H "webhook-signature: v1,$signature" -H 'content-type: application/json' --data-binary "$body""#
    )
}
