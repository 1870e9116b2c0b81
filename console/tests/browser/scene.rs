//! A pipeline in use, with something of everything that pages show.

use chrono::{TimeDelta, Utc};
use sqlx::{ConnectOptions, PgPool};
use web_console::text::href;

use crate::{
    app::App,
    sample::{event, fill, nameless, received, sql, store, vendor},
};

/// What somebody sends who means no good, in every field that is shown.
const HOSTILE: &str = "\"'><script>alert(1)</script>\u{202e}<img src=x onerror=alert(1)>";

pub(crate) struct Scene {
    pub(crate) app: App,
}

/// A console where everybody is an operator.
pub(crate) async fn operators(pool: &PgPool) -> App {
    let url = pool.connect_options().to_url_lossy();
    let (role, database) = ("--loopback-role", "--operator-database-url");
    App::with(url.as_str(), &[role, "operator", database, url.as_str()]).await
}

impl Scene {
    pub(crate) async fn new(pool: &PgPool) -> Self {
        fill(pool, 1_000).await;
        let ago = |minutes| Utc::now() - TimeDelta::minutes(minutes);
        let states = [
            received(vendor("msg_1", "v-1", "Acme", "DRAFT", 1), ago(3)),
            received(vendor("msg_3", "v-1", "Acme Ltd", "ACTIVE", 3), ago(2)),
            received(vendor("msg_2", "v-1", HOSTILE, "ACTIVE", 2), ago(1)),
        ];
        for state in states {
            store(pool, [state]).await;
        }
        let long = "W".repeat(300);
        store(
            pool,
            [
                nameless("msg_nameless", &long),
                event(HOSTILE, "no JSON"),
                event("msg_dismissed", "{}"),
            ],
        )
        .await;
        sql(
            pool,
            "update events set dismissed_at = now(), dismissed_by = 'ada', dismissal_note = 'a test'
              where webhook_id = 'msg_dismissed';
             insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
             values ('msg_lost', '', now() - interval '2 hours', now() - interval '2 hours');
             insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                                        has_receipt, due_at, attempts, last_error)
             values ('msg_spooled', '', 'vendor', 'v1.vendor.created', '', now(), true,
                     now() + interval '1 hour', 3, 'rabbitmq was away');
             insert into operator_actions (run, action, filter, changed, changes)
             select gen_random_uuid(), 'dead-letters dismiss', '{\"id\": \"msg_dismissed\"}', 1,
                    '[{\"webhook_id\": \"msg_dismissed\", \"before\": null, \"after\": \"dismissed\"}]'
               from generate_series(1, 3);
             insert into replay_jobs (person, filter, letters, set_sha256, rate, tries, error)
             values ('ada', '{\"company\": \"c1\"}', 2, '', 100, 2, 'a relation does not exist'),
                    ('ada', '{}', 2, 'other', 100, 0, null);
             insert into replay_job_letters (job, webhook_id, position, outcome, reason, done_at)
             select job, 'msg_' || n, n, case n when 1 then 'still-wrong' else 'newest' end,
                    case n when 1 then repeat('W', 300) end, now()
               from generate_series(1, 2) job, generate_series(1, 2) n;
             update replay_jobs set ended = 'done' where id = 2",
        )
        .await;
        let app = operators(pool).await;
        app.until("/", "Last day").await;
        app.until("/receipts", "msg_lost").await;
        Self { app }
    }

    /// Every kind of page, with and without something to show.
    pub(crate) fn paths(&self) -> Vec<String> {
        let fixed = [
            "/",
            "/events",
            "/events?company=nobody",
            "/events?problem=any",
            "/event?id=msg_1",
            "/event?id=msg_nameless",
            "/event?id=msg_spooled",
            "/event?id=msg_lost",
            "/event?id=nowhere",
            "/resource?id=v-1",
            "/dead-letters",
            "/dead-letters?state=dismissed",
            "/dead-letters?company=nobody",
            "/replays",
            "/replays/1",
            "/replays/2",
            "/replays/3",
            "/dead-letters/dismiss",
            "/dead-letters/dismiss?id=msg_nameless",
            "/dead-letters/dismiss?company=nobody",
            "/dead-letters/restore",
            "/receipts",
            "/record",
            "/record?who=nobody",
            "/nowhere",
            "/events?before=edited",
        ];
        let hostile = href("/event", &[("id", HOSTILE)]);
        fixed
            .into_iter()
            .map(str::to_owned)
            .chain([hostile])
            .collect()
    }
}
