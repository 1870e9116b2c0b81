//! Rows that a user has locked, and commands that come across them.

use std::process::Output;

use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};

use crate::place::{hookctl, is, json, lines, sql, store_events, text, until, vendor, vendor_at};

/// Makes dead letters out of healthy events, as a version would have left them that could not read what
/// this one can.
const UNREADABLE_BEFORE: &str = "
    update events set problem = '`data` is not that of the vendor its type names: older',
           problem_kind = 'wrong-data',
           raw = convert_to(payload::text, 'utf8');
    delete from vendors where id <> 'taken'";

/// Runs statements in a transaction that stays open, as somebody in a shell does.
async fn hold(pool: &PgPool, statements: &'static str) -> PgConnection {
    let options = pool
        .connect_options()
        .as_ref()
        .clone()
        .application_name("somebodys shell");
    let mut shell = options.connect().await.expect("a connection");
    sqlx::raw_sql("begin")
        .execute(&mut shell)
        .await
        .expect("a transaction");
    sqlx::raw_sql(statements)
        .execute(&mut shell)
        .await
        .expect("locks");
    shell
}

async fn all(pool: &PgPool, arguments: &[&str]) -> Output {
    hookctl(pool, arguments).output().await.expect("it runs")
}

/// Says who holds the lock, as far as it is known.
fn assert_names_the_holder(shown: &str) {
    for expected in [
        "a lock that others hold: pid ",
        "application somebodys shell",
        "state idle in transaction",
        "transaction since 20",
    ] {
        assert!(shown.contains(expected), "{expected} is not in {shown}");
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_locked_row_costs_a_replay_only_its_own_event(pool: PgPool) {
    store_events(&pool, (0..150).map(|i| vendor(&format!("m{i}")))).await;
    store_events(&pool, [vendor_at("old", "taken", "Old", 1)]).await;
    store_events(&pool, [vendor_at("new", "taken", "New", 2)]).await;
    sql(&pool, UNREADABLE_BEFORE).await;
    let shell = hold(
        &pool,
        "select from events where webhook_id = 'm7' for update;
         select from vendors where id = 'taken' for update",
    )
    .await;
    let flags = [
        "dead-letters",
        "replay",
        "--yes",
        "--json",
        "--rate",
        "100000",
    ];
    let output = all(&pool, &flags).await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(
        text(&output).contains("locked, tried again later: 3\n"),
        "{}",
        text(&output)
    );
    let replayed = lines(&output);
    assert_eq!(replayed.len(), 152);
    let mut locked: Vec<_> = replayed
        .iter()
        .filter(|r| r["outcome"] == "locked")
        .collect();
    locked.sort_by_key(|r| r["webhook_id"].to_string());
    let ids: Vec<_> = locked.iter().map(|r| r["webhook_id"].as_str()).collect();
    assert_eq!(ids, [Some("m7"), Some("new"), Some("old")]);
    for letter in locked {
        assert_eq!(letter["kept"], false);
        assert_names_the_holder(letter["reason"].as_str().expect("a reason"));
    }
    assert!(
        is(&pool, "select count(*) = 3 from dead_letters").await,
        "left as they were"
    );
    shell.close().await.expect("a close");
    assert_eq!(json(&pool, &["replay", "--yes"], 0).await.len(), 3);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_lock_that_goes_before_the_end_of_a_replay_costs_nothing(pool: PgPool) {
    store_events(&pool, ["m1", "m2", "m3"].map(vendor)).await;
    sql(&pool, UNREADABLE_BEFORE).await;
    let shell = hold(
        &pool,
        "select from events where webhook_id = 'm2' for update",
    )
    .await;
    let flags = ["dead-letters", "replay", "--yes", "--json"];
    let release = async {
        until(&pool, "select count(*) = 2 from vendors").await;
        shell.close().await.expect("a close");
    };
    let (output, ()) = tokio::join!(all(&pool, &flags), release);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let outcomes: Vec<_> = lines(&output)
        .iter()
        .map(|r| r["outcome"].to_string())
        .collect();
    assert_eq!(outcomes, ["\"newest\""; 3]);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_offender_with_the_sqlstate_of_an_outage_costs_a_replay_only_itself(pool: PgPool) {
    store_events(&pool, (0..20).map(|i| vendor(&format!("m{i}")))).await;
    sql(&pool, UNREADABLE_BEFORE).await;
    sql(
        &pool,
        "create function refuse() returns trigger language plpgsql as
           $$ begin
                if new.id = 'm5' then raise exception 'not this one' using errcode = '53100'; end if;
                if new.id = 'm6' then raise exception 'nor this one' using errcode = '40001'; end if;
                return new;
              end $$;
         create trigger refuse before insert on vendors for each row execute function refuse()",
    )
    .await;
    let replayed = json(&pool, &["replay", "--yes"], 3).await;
    assert_eq!(replayed.len(), 20);
    for (id, outcome, reason) in [
        ("m5", "refused", "not this one"),
        ("m6", "locked", "nor this one"),
    ] {
        let letter = replayed
            .iter()
            .find(|r| r["webhook_id"] == id)
            .expect("its line");
        assert_eq!(letter["outcome"], outcome, "{letter}");
        assert!(letter["reason"].to_string().contains(reason), "{letter}");
    }
    assert!(is(&pool, "select count(*) = 18 from vendors").await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_locked_row_costs_a_rebuild_only_itself(pool: PgPool) {
    store_events(&pool, (0..40).map(|i| vendor(&format!("m{i}")))).await;
    sql(&pool, "update vendors set name = 'damaged'").await;
    let shell = hold(
        &pool,
        "select from vendors where id in ('m7', 'm8') for update",
    )
    .await;
    let output = all(&pool, &["rebuild", "--family", "vendor", "--yes"]).await;
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(3), "{shown}");
    assert!(
        shown.contains("vendor: locked, tried again now: 2\n"),
        "{shown}"
    );
    for id in ["m7", "m8"] {
        assert!(
            shown.contains(&format!("vendors: no row for {id}: waited in vain")),
            "{shown}"
        );
    }
    assert_names_the_holder(&shown);
    assert!(
        is(
            &pool,
            "select count(*) = 2 from vendors where name = 'damaged'"
        )
        .await
    );
    shell.close().await.expect("a close");
    let output = all(&pool, &["rebuild", "--family", "vendor", "--yes"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(
        is(
            &pool,
            "select count(*) = 0 from vendors where name = 'damaged'"
        )
        .await
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_changes_all_or_nothing_says_for_whom_it_waited(pool: PgPool) {
    store_events(&pool, ["m1", "m2"].map(vendor)).await;
    sql(
        &pool,
        "update events set problem = 'odd' where webhook_id = 'm2';
         insert into webhook_receipts (webhook_id, body_sha256, published_at, received_at)
         values ('r1', '', now() - interval '1 day', now() - interval '1 day')",
    )
    .await;
    let state = "select (select string_agg(e::text, '' order by webhook_id) from events e)
                     || (select string_agg(v::text, '' order by id) from vendors v)
                     || (select string_agg(r::text, '') from webhook_receipts r)";
    let before: String = sqlx::query_scalar(state)
        .fetch_one(&pool)
        .await
        .expect("a state");
    let shell = hold(
        &pool,
        "select from events for update; select from webhook_receipts for update",
    )
    .await;
    let dismiss = ["dead-letters", "dismiss", "--all", "--note", "n", "--yes"];
    let erase = ["erase", "--company", "c1", "--yes"];
    let since = "2000-01-01T00:00:00Z";
    let distrust = [
        "secrets", "distrust", "--secret", "current", "--since", since, "--yes",
    ];
    let write_off = [
        "receipts",
        "write-off",
        "--id",
        "r1",
        "--reason",
        "n",
        "--yes",
    ];
    let outputs = tokio::join!(
        all(&pool, &dismiss),
        all(&pool, &erase),
        all(&pool, &distrust),
        all(&pool, &write_off),
    );
    for output in [outputs.0, outputs.1, outputs.2, outputs.3] {
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(1), "{shown}");
        assert_names_the_holder(&shown);
    }
    shell.close().await.expect("a close");
    let after: String = sqlx::query_scalar(state)
        .fetch_one(&pool)
        .await
        .expect("a state");
    assert_eq!(after, before);
}
