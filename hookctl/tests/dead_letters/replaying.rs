//! `hookctl dead-letters replay`

use std::{process::Stdio, time::Duration};

use serde_json::Value;
use sqlx::{Connection, PgConnection, PgPool};

use crate::place::{
    documented_role, event, foreign, hookctl, is, json, lines, nameless, refuse, run, sql,
    stop_worker, store, store_events, text, until, vendor, vendor_at,
};

/// Postgres refuses the vendor `poison`, until [`MEND`].
const BREAK: &str = "alter table vendors add constraint no_poison check (id <> 'poison')";
const MEND: &str = "alter table vendors drop constraint no_poison";

/// Makes dead letters out of healthy events, as an older version would have left them that could not
/// read what this one can.
const UNREADABLE_BEFORE: &str = "
    update events set problem = '`data` is not that of the vendor its type names: older',
           problem_kind = 'wrong-data',
           raw = convert_to(payload::text, 'utf8');
    delete from vendors";

/// Outcomes by webhook id, sorted.
fn outcomes(replayed: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut outcomes: Vec<_> = replayed
        .iter()
        .map(|r| (text(&r["webhook_id"]), text(&r["outcome"])))
        .collect();
    outcomes.sort();
    outcomes
}

fn expected(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let pairs = pairs.iter();
    pairs
        .map(|(id, o)| ((*id).to_owned(), (*o).to_owned()))
        .collect()
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_a_mended_table_can_hold_is_stored_and_no_dead_letter_any_more(pool: PgPool) {
    sql(&pool, BREAK).await;
    refuse(&pool, &vendor("poison")).await;
    sql(&pool, MEND).await;

    let trial = json(&pool, &["replay"], 0).await;
    assert_eq!(outcomes(&trial), expected(&[("poison", "newest")]));
    assert_eq!(trial[0]["kept"], false);
    assert!(
        is(
            &pool,
            "select not exists (select from vendors)
                and exists (select from dead_letters where webhook_id = 'poison')"
        )
        .await,
        "a trial changes nothing"
    );

    let replayed = json(&pool, &["replay", "--yes"], 0).await;
    assert_eq!(outcomes(&replayed), expected(&[("poison", "newest")]));
    assert_eq!(replayed[0]["kept"], true);
    assert!(
        is(
            &pool,
            "select exists (select from vendors where id = 'poison' and webhook_id = 'poison')
                and not exists (select from dead_letters)
                and exists (select from events
                             where resource_id = 'poison' and payload is not null and raw is null
                               and replayed_problem like '%no_poison%' and replayed_at is not null)"
        )
        .await,
        "as if nothing had been wrong, with a note"
    );
    assert_eq!(
        json(&pool, &["replay", "--yes"], 0).await,
        Vec::<Value>::new()
    );
    let shown = text(&run(&pool, &["show", "poison"], 0).await);
    assert!(shown.contains("replayed; the problem was:"), "{shown}");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_is_still_wrong_stays_and_is_told(pool: PgPool) {
    sql(&pool, BREAK).await;
    refuse(&pool, &vendor("poison")).await;
    store_events(&pool, [nameless("nameless"), event("text", "no json")]).await;
    let before: String = all_events(&pool).await;
    for flags in [vec!["replay"], vec!["replay", "--yes"]] {
        let replayed = json(&pool, &flags, 3).await;
        assert_eq!(
            outcomes(&replayed),
            expected(&[
                ("nameless", "still-wrong"),
                ("poison", "refused"),
                ("text", "still-wrong")
            ])
        );
        for letter in &replayed {
            assert_eq!(letter["kept"], false);
            assert!(letter["reason"].is_string(), "{letter}");
        }
    }
    assert_eq!(all_events(&pool).await, before);
    let table = text(&run(&pool, &["replay"], 3).await);
    for expected in ["refused by postgres", "no_poison", "`data.name` is missing"] {
        assert!(table.contains(expected), "{expected} is not in {table}");
    }
    assert!(table.contains("nothing was changed"), "{table}");
}

async fn all_events(pool: &PgPool) -> String {
    sqlx::query_scalar("select string_agg(e::text, E'\n' order by webhook_id) from events e")
        .fetch_one(pool)
        .await
        .expect("the events")
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn one_that_postgres_refuses_costs_only_itself(pool: PgPool) {
    store_events(&pool, (0..150).map(|i| vendor(&format!("m{i}")))).await;
    store_events(&pool, [vendor("poison")]).await;
    sql(&pool, UNREADABLE_BEFORE).await;
    sql(&pool, BREAK).await;
    let replayed = json(&pool, &["replay", "--yes", "--rate", "100000"], 3).await;
    assert_eq!(replayed.len(), 151);
    assert!(
        is(
            &pool,
            "select (select count(*) from vendors) = 150
                and (select array_agg(webhook_id) from dead_letters) = array['poison']"
        )
        .await
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_triggers_exception_costs_only_its_own_event(pool: PgPool) {
    store_events(&pool, ["m1", "poison", "m2"].map(vendor)).await;
    sql(&pool, UNREADABLE_BEFORE).await;
    sql(
        &pool,
        "create function refuse() returns trigger language plpgsql as
           $$ begin if new.id = 'poison' then raise exception 'not this one'; end if; return new; end $$;
         create constraint trigger refuse after insert on vendors deferrable initially deferred
           for each row execute function refuse()",
    )
    .await;
    // The exception comes with the commit, and a trial foresees it.
    for flags in [vec!["replay"], vec!["replay", "--yes"]] {
        assert_eq!(
            outcomes(&json(&pool, &flags, 3).await),
            expected(&[("m1", "newest"), ("m2", "newest"), ("poison", "refused")])
        );
    }
    sql(&pool, "drop trigger refuse on vendors").await;
    assert_eq!(
        outcomes(&json(&pool, &["replay", "--yes"], 0).await),
        expected(&[("poison", "newest")])
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_old_event_never_takes_the_place_of_a_newer_state(pool: PgPool) {
    sql(&pool, BREAK).await;
    refuse(&pool, &vendor_at("old", "poison", "Old", 1)).await;
    sql(&pool, MEND).await;
    store_events(&pool, [vendor_at("new", "poison", "New", 2)]).await;
    assert_eq!(
        outcomes(&json(&pool, &["replay", "--yes"], 0).await),
        expected(&[("old", "superseded")])
    );
    assert!(
        is(
            &pool,
            "select name = 'New' and webhook_id = 'new' from vendors"
        )
        .await
    );
    assert!(is(&pool, "select not exists (select from dead_letters)").await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_and_a_worker_on_one_resource_end_with_the_newer_state(pool: PgPool) {
    for round in 0..5 {
        sql(&pool, "truncate events, vendors").await;
        sql(&pool, BREAK).await;
        refuse(&pool, &vendor_at("old", "poison", "Old", 1)).await;
        sql(&pool, MEND).await;
        // Both wait for this vendor, and go on at the same time.
        let mut holder = PgConnection::connect_with(&pool.connect_options())
            .await
            .expect("a connection");
        let mut held = holder.begin().await.expect("a transaction");
        sqlx::query("lock table vendors in share mode")
            .execute(&mut *held)
            .await
            .expect("a lock");
        let replay = run(&pool, &["replay", "--yes"], 0);
        let worker = store_events(&pool, [vendor_at("new", "poison", "New", 2)]);
        let release = async {
            until(
                &pool,
                "select count(*) = 2 from pg_locks where not granted
                    and relation = 'vendors'::regclass",
            )
            .await;
            held.rollback().await.expect("a rollback");
        };
        tokio::join!(replay, worker, release);
        assert!(
            is(&pool, "select webhook_id = 'new' from vendors").await,
            "round {round}"
        );
        holder.close().await.expect("a close");
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn two_replays_at_once_replay_each_event_once(pool: PgPool) {
    store_events(&pool, (0..300).map(|i| vendor(&format!("m{i}")))).await;
    sql(&pool, UNREADABLE_BEFORE).await;
    sql(
        &pool,
        "create table replays (webhook_id text);
         create function note() returns trigger language plpgsql as
           $$ begin insert into replays values (new.webhook_id); return new; end $$;
         create trigger note after update on events for each row execute function note()",
    )
    .await;
    let flags = ["replay", "--yes", "--json", "--rate", "500"];
    let (one, other) = tokio::join!(run(&pool, &flags, 0), run(&pool, &flags, 0));
    let replayed = [lines(&one), lines(&other)].concat();
    let newest = replayed.iter().filter(|r| r["outcome"] == "newest").count();
    assert_eq!(newest, 300, "what one has done is gone for the other");
    assert!(
        is(
            &pool,
            "select (select count(*) from replays) = 300
                and (select count(distinct webhook_id) from replays) = 300
                and (select count(*) from vendors) = 300
                and not exists (select from dead_letters)"
        )
        .await
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_that_was_stopped_goes_on_with_the_rest(pool: PgPool) {
    store_events(&pool, (0..30).map(|i| vendor(&format!("m{i}")))).await;
    sql(&pool, UNREADABLE_BEFORE).await;
    let flags = ["dead-letters", "replay", "--yes", "--json", "--rate", "10"];
    let mut child = hookctl(&pool, &flags);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().expect("hookctl runs");
    until(&pool, "select count(*) >= 10 from vendors").await;
    let pid = child.id().expect("it runs").to_string();
    let killed = tokio::process::Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .await;
    assert!(killed.expect("kill runs").success());
    let output = child.wait_with_output().await.expect("an end");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("run it again"), "{}", text(&output));
    let first = lines(&output).len();
    assert!((10..30).contains(&first), "{first}");
    let rest = json(&pool, &["replay", "--yes", "--rate", "1000"], 0).await;
    assert_eq!(
        first + rest.len(),
        30,
        "none is replayed twice, none left out"
    );
    assert!(is(&pool, "select count(*) = 30 from vendors").await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_rate_is_kept(pool: PgPool) {
    store_events(&pool, (0..30).map(|i| vendor(&format!("m{i}")))).await;
    sql(&pool, UNREADABLE_BEFORE).await;
    let started = tokio::time::Instant::now();
    run(&pool, &["replay", "--rate", "10"], 0).await;
    assert!(
        started.elapsed() >= Duration::from_secs(2),
        "three batches of ten"
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_second_body_becomes_an_event_of_its_own_only_on_request(pool: PgPool) {
    store_events(&pool, [vendor_at("m1", "v1", "First", 1)]).await;
    store_events(&pool, [vendor_at("m1", "v1", "Second", 2)]).await;
    let [letter] = &json(&pool, &["list"], 0).await[..] else {
        panic!("one dead letter");
    };
    let id = letter["webhook_id"].as_str().expect("an id").to_owned();
    let flags = ["replay", "--yes", "--id", &id];
    for flags in [&flags[..2], &flags] {
        let replayed = json(&pool, flags, 3).await;
        assert_eq!(outcomes(&replayed), expected(&[(&id, "withheld")]));
    }
    assert!(is(&pool, "select name = 'First' from vendors").await);
    run(&pool, &["replay", "--yes", "--include-withheld"], 2).await;

    let flags = [&flags[..], &["--include-withheld"]].concat();
    let replayed = json(&pool, &flags, 0).await;
    assert_eq!(outcomes(&replayed), expected(&[(&id, "newest")]));
    assert!(
        is(
            &pool,
            "select v.name = 'Second' and e.problem is null and e.webhook_id like 'm1#conflict-%'
               from vendors v join events e on e.webhook_id = v.webhook_id"
        )
        .await
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_nobody_has_verified_is_withheld(pool: PgPool) {
    let body = String::from_utf8(vendor("v1").body.to_vec()).expect("text");
    store(&pool, [foreign(&body)]).await;
    let replayed = json(&pool, &["replay", "--yes"], 3).await;
    assert_eq!(replayed[0]["outcome"], "withheld");
    assert!(is(&pool, "select not exists (select from vendors)").await);
}

/// As a worker of an earlier version has stored it, or one of a newer version.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn one_whose_kind_is_not_known_is_withheld(pool: PgPool) {
    store_events(&pool, ["m1", "m2"].map(vendor)).await;
    sql(&pool, UNREADABLE_BEFORE).await;
    sql(
        &pool,
        "update events set problem_kind = case when webhook_id = 'm2' then 'newer' end",
    )
    .await;
    let listed = json(&pool, &["list", "--problem", "refused"], 0).await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(listed.iter().all(|letter| letter["kind"] == "refused"));
    let replayed = json(&pool, &["replay", "--yes"], 3).await;
    let withheld = [("m1", "withheld"), ("m2", "withheld")];
    assert_eq!(outcomes(&replayed), expected(&withheld));
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_doubled_key_that_only_the_sent_bytes_show_is_never_replayed(pool: PgPool) {
    let doubled = r#"{"eventType":"v1.vendor.created",
        "data":{"id":"a","id":"b","companyId":"c","name":"n","state":"DRAFT"}}"#;
    store_events(&pool, [event("kept", doubled), event("lost", doubled)]).await;
    // As older versions stored it.
    sql(
        &pool,
        "update events set raw = null where webhook_id = 'lost'",
    )
    .await;
    assert_eq!(
        outcomes(&json(&pool, &["replay", "--yes"], 3).await),
        expected(&[("kept", "still-wrong"), ("lost", "still-wrong")])
    );
    assert!(is(&pool, "select not exists (select from vendors)").await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_body_that_jsonb_refuses_after_all_stays_bytes(pool: PgPool) {
    let body = r#"{"n":1e-99999,"eventType":"v1.vendor.created",
        "data":{"id":"poison","companyId":"c","name":"n","state":"DRAFT"}}"#;
    sql(&pool, BREAK).await;
    refuse(&pool, &event("m1", body)).await;
    sql(&pool, MEND).await;
    assert_eq!(
        outcomes(&json(&pool, &["replay", "--yes"], 0).await),
        expected(&[("m1", "newest")])
    );
    assert!(
        is(
            &pool,
            "select payload is null and raw is not null and problem is null from events"
        )
        .await
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_documented_rights_are_enough_for_every_command(pool: PgPool) {
    sql(&pool, BREAK).await;
    refuse(&pool, &vendor("poison")).await;
    sql(&pool, MEND).await;
    store_events(&pool, [nameless("m1")]).await;
    let (role, theirs) = documented_role(&pool).await;
    run(&theirs, &["list"], 0).await;
    run(&theirs, &["show", "poison"], 0).await;
    run(&theirs, &["show", "nobody"], 1).await;
    run(&theirs, &["dismiss", "--all", "--note", "n", "--yes"], 0).await;
    run(&theirs, &["restore", "--all", "--yes"], 0).await;
    let replayed = json(&theirs, &["replay", "--yes"], 3).await;
    assert_eq!(
        outcomes(&replayed),
        expected(&[("m1", "still-wrong"), ("poison", "newest")])
    );
    let since = ["--since", "2000-01-01T00:00:00Z", "--yes"];
    let distrust = ["secrets", "distrust", "--secret", "current"];
    for command in [&[&distrust[..], &since].concat()[..], &["actions"]] {
        let output = hookctl(&theirs, command).output().await.expect("it runs");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    theirs.close().await;
    sql(&pool, &format!("drop owned by {role}; drop role {role}")).await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_that_stopped_workers_is_read_in_a_process_of_its_own(pool: PgPool) {
    store_events(&pool, [vendor("m1")]).await;
    sql(&pool, UNREADABLE_BEFORE).await;
    stop_worker(&pool, &vendor("killer")).await;
    stop_worker(&pool, &vendor("mended")).await;
    // It keeps whoever stores it until that is killed.
    sql(
        &pool,
        "create function hang() returns trigger language plpgsql as
           $$ begin if new.id = 'killer' then perform pg_sleep(15); end if; return new; end $$;
         create trigger hang before insert on vendors for each row execute function hang()",
    )
    .await;
    let mut command = hookctl(&pool, &["dead-letters", "replay", "--yes", "--json"]);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let parent = command.spawn().expect("hookctl runs");
    until(
        &pool,
        "select exists (select from pg_stat_activity
                         where datname = current_database() and wait_event = 'PgSleep')",
    )
    .await;
    // Whichever of its threads has started the child.
    let threads = format!("/proc/{}/task", parent.id().expect("it runs"));
    let child = std::fs::read_dir(threads)
        .expect("the threads")
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .find_map(|children| children.split_whitespace().next().map(str::to_owned))
        .expect("the child that stores the event");
    let killed = tokio::process::Command::new("kill")
        .args(["-KILL", &child])
        .status()
        .await;
    assert!(killed.expect("kill runs").success());
    let output = parent.wait_with_output().await.expect("an end");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let replayed = lines(&output);
    assert_eq!(
        outcomes(&replayed),
        expected(&[
            ("killer", "stopped"),
            ("m1", "newest"),
            ("mended", "newest")
        ])
    );
    let killer = replayed.iter().find(|r| r["webhook_id"] == "killer");
    assert_eq!(killer.expect("its line")["reason"], "ended by signal 9");
    until(
        &pool,
        "select (select count(*) from vendors) = 2
            and (select array_agg(webhook_id) from dead_letters) = array['killer']",
    )
    .await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_that_fails_says_neither_that_it_is_done_nor_that_there_is_nothing(pool: PgPool) {
    store_events(&pool, [vendor("m1")]).await;
    sql(&pool, UNREADABLE_BEFORE).await;
    sql(&pool, "alter table vendors rename column name to title").await;
    for flags in [vec!["replay"], vec!["replay", "--yes"]] {
        let shown = text(&run(&pool, &flags, 1).await);
        assert!(shown.contains("name"), "{shown}");
        assert!(shown.starts_with("not finished\n"), "{shown}");
    }
}
