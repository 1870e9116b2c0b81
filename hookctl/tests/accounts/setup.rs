//! The command itself.

use std::ffi::OsStr;

use clap::Parser;
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use shared::{Family, Program, broker, database::Access};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool, postgres::PgConnectOptions};
use tokio::time::timeout;

use crate::place::{Place, SOON, text};

const GRANTS: &str = include_str!("../../src/setup/grants.sql");

/// Everything an account is granted, as one text.
async fn rights(place: &Place) -> String {
    sqlx::query_scalar(
        "select string_agg(granted::text, E'\n' order by granted::text)
           from (select grantee, table_name, column_name, privilege_type
                   from information_schema.column_privileges
                 union all
                 select grantee, table_name, null, privilege_type
                   from information_schema.table_privileges) granted
          where starts_with(grantee, $1)",
    )
    .bind(&place.prefix)
    .fetch_one(&place.pool)
    .await
    .expect("the grants")
}

#[sqlx::test(migrations = false)]
async fn a_second_setup_changes_passwords_and_cuts_nobody_off(pool: PgPool) {
    let mut place = Place::prepared(&pool).await;
    let mut postgres = place.postgres(Program::Ingest).await.expect("it logs in");
    let rabbitmq = place.rabbitmq(Program::Ingest).await.expect("it logs in");
    let (old_database, old_broker) = (
        place.database(Program::Ingest),
        place.broker(Program::Ingest),
    );

    place.change_passwords();
    let output = place.set_up(&[]).await;
    assert!(output.status.success(), "{}", text(&output));

    sqlx::query("select webhook_id from events")
        .execute(&mut postgres)
        .await
        .expect("still connected, with its rights");
    rabbitmq.create_channel().await.expect("still connected");
    for program in Program::ALL {
        let postgres = place.postgres(program).await.expect("the new password");
        postgres.close().await.expect("a close");
        place.rabbitmq(program).await.expect("the new password");
    }
    sqlx::PgConnection::connect_with(&old_database)
        .await
        .expect_err("the old password");
    lapin::Connection::connect_uri(old_broker, lapin::ConnectionProperties::default())
        .await
        .expect_err("the old password");
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn without_a_password_the_console_cannot_log_in(pool: PgPool) {
    let mut place = Place::prepared(&pool).await;
    let console = place.postgres(Program::Console).await.expect("it logs in");
    console.close().await.expect("a close");
    place.forget_password(Program::Console);
    let output = place.set_up(&[]).await;
    assert!(output.status.success(), "{}", text(&output));
    let may_log_in: bool =
        sqlx::query_scalar("select rolcanlogin from pg_roles where rolname = $1")
            .bind(place.name(Program::Console))
            .fetch_one(&pool)
            .await
            .expect("the role");
    assert!(!may_log_in);
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn a_second_setup_puts_rights_and_permissions_right(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    let before = rights(&place).await;
    let ingest = place.name(Program::Ingest);
    let worker = place.name(Program::Worker(Family::Vendor));
    place
        .sql(&format!(
            r#"grant select, delete on events to "{ingest}";
               revoke all on webhook_spool from "{worker}""#
        ))
        .await;
    let vhost = shared::broker::BrokerUrl::parse(&place.amqp_url)
        .expect("AMQP_URL is one")
        .vhost();
    let permissions = format!(
        "/api/permissions/{}/{ingest}",
        hookctl::management::encode(&vhost)
    );
    let everything = serde_json::json!({"configure": ".*", "write": ".*", "read": ".*"});
    let management = place.management();
    management.put(&permissions, everything).await.expect("put");
    assert_ne!(rights(&place).await, before);

    let output = place.set_up(&[]).await;
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(rights(&place).await, before);
    let changes: serde_json::Value = sqlx::query_scalar(
        "select changes from operator_actions where action = 'setup' order by id desc limit 1",
    )
    .fetch_one(&pool)
    .await
    .expect("it is written down");
    let mut changes = changes.as_array().expect("a list").iter();
    let change = changes.find(|change| change["account"] == *ingest);
    let change = change.expect("each account");
    assert_eq!(
        change["before"]["rights"],
        serde_json::json!({"events": "delete, select"})
    );
    assert_eq!(
        change["after"]["rights"],
        serde_json::json!({"events": "select"})
    );
    let found = management.get(&permissions).await.expect("permissions");
    assert_eq!(
        (&found["configure"], &found["read"]),
        (&"^$".into(), &"^$".into())
    );
    let user = management
        .get(&format!("/api/users/{ingest}"))
        .await
        .expect("the user");
    assert_eq!(user["tags"], serde_json::json!([]), "{user}");
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn every_table_and_view_has_its_place_in_the_grants(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    let relations: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class
          where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p', 'v', 'm')",
    )
    .fetch_all(&pool)
    .await
    .expect("the tables");
    assert!(relations.len() > 5);
    let (_, statement) = GRANTS.split_once("revoke all on\n").expect("the revoke");
    let (names, _) = statement.split_once("from").expect("its end");
    let revoked: Vec<&str> = names.split(',').map(str::trim).collect();
    for relation in relations {
        assert!(
            revoked.contains(&relation.as_str()),
            "grants.sql says nothing of {relation}: name it in the first revoke, and grant what the \
             services need"
        );
    }
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn the_databases_owner_needs_no_more_than_createrole(pool: PgPool) {
    let place = Place::new(&pool);
    let owner = format!("{}-owner", place.prefix);
    let database: String = sqlx::query_scalar("select current_database()::text")
        .fetch_one(&pool)
        .await
        .expect("a name");
    place
        .sql(&format!(
            r#"create role "{owner}" login createrole password 'owner';
               alter database "{database}" owner to "{owner}""#
        ))
        .await;
    let url = PgConnectOptions::clone(&pool.connect_options())
        .username(&owner)
        .password("owner")
        .to_url_lossy();
    // Once to create everything, once to find everything there.
    for _ in 0..2 {
        let output = place
            .hookctl()
            .env("DATABASE_URL", url.as_str())
            .env("ACCOUNT_PASSWORDS", place.password_list())
            .output()
            .await
            .expect("hookctl runs");
        assert!(output.status.success(), "{}", text(&output));
    }
    let mut ingest = place.postgres(Program::Ingest).await.expect("it logs in");
    sqlx::query("select webhook_id from events")
        .execute(&mut ingest)
        .await
        .expect("its rights");

    // Somebody who owns none of it is told so.
    place
        .sql(&format!(
            r#"create role "{owner}-2" login createrole password 'owner'"#
        ))
        .await;
    let url = PgConnectOptions::clone(&pool.connect_options())
        .username(&format!("{owner}-2"))
        .password("owner")
        .to_url_lossy();
    let output = place
        .hookctl()
        .env("DATABASE_URL", url.as_str())
        .env("ACCOUNT_PASSWORDS", place.password_list())
        .output()
        .await
        .expect("hookctl runs");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("as their owner"),
        "{}",
        text(&output)
    );

    place
        .sql(&format!(
            r#"reassign owned by "{owner}" to current_user; drop owned by "{owner}";
               drop role "{owner}"; drop role "{owner}-2""#
        ))
        .await;
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn an_account_with_rights_of_its_own_is_refused_before_anything_is_done(pool: PgPool) {
    let place = Place::new(&pool);
    let name = place.name(Program::Ingest);
    place
        .sql(&format!(r#"create role "{name}" createdb"#))
        .await;
    let output = place.set_up(&[]).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains(&name), "{}", text(&output));
    let events: Option<String> = sqlx::query_scalar("select to_regclass('events')::text")
        .fetch_one(&pool)
        .await
        .expect("an answer");
    assert_eq!(events, None);
    place.sql(&format!(r#"drop role "{name}""#)).await;
}

#[sqlx::test(migrations = false)]
async fn a_dry_run_needs_no_passwords_and_changes_nothing(pool: PgPool) {
    let place = Place::new(&pool);
    let output = place
        .hookctl()
        .arg("--dry-run")
        .output()
        .await
        .expect("hookctl runs");
    let printed = text(&output);
    assert!(output.status.success(), "{printed}");
    for program in Program::ALL {
        let role = format!("create role \"{}\" login", place.name(program));
        assert!(printed.contains(&role), "{printed}");
    }
    assert!(printed.contains("rabbitmqctl set_permissions"), "{printed}");
    let roles: i64 =
        sqlx::query_scalar("select count(*) from pg_roles where starts_with(rolname, $1)")
            .bind(&place.prefix)
            .fetch_one(&pool)
            .await
            .expect("a count");
    assert_eq!(roles, 0);
    let events: Option<String> = sqlx::query_scalar("select to_regclass('events')::text")
        .fetch_one(&pool)
        .await
        .expect("an answer");
    assert_eq!(events, None);
}

#[sqlx::test(migrations = false)]
async fn what_differs_on_the_broker_has_an_exit_code_of_its_own(pool: PgPool) {
    let place = Place::new(&pool);
    let (_connection, channel) = place.administrator().await;
    let queue = place.topology().queue(Family::Vendor);
    channel
        .queue_declare(
            queue.as_str().into(),
            QueueDeclareOptions::durable(),
            FieldTable::default(),
        )
        .await
        .expect("a queue");
    let output = place.set_up(&[]).await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains(&queue), "{}", text(&output));
    // Everything else is done all the same.
    place.rabbitmq(Program::Ingest).await.expect("it logs in");
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn wrong_settings_are_refused_with_what_to_do(pool: PgPool) {
    let place = Place::new(&pool);
    let without_passwords = place.hookctl().output().await.expect("hookctl runs");
    assert_eq!(without_passwords.status.code(), Some(2));
    assert!(text(&without_passwords).contains("ACCOUNT_PASSWORDS_FILE"));
    let long = place.set_up(&["--topology-prefix", &"p".repeat(46)]).await;
    assert_eq!(long.status.code(), Some(2), "{}", text(&long));
    assert!(text(&long).contains("at most 45"), "{}", text(&long));
}

#[sqlx::test(migrations = false)]
async fn passwords_can_come_from_a_file(pool: PgPool) {
    let place = Place::new(&pool);
    let file = std::env::temp_dir().join(&place.prefix);
    std::fs::write(&file, place.password_list()).expect("a file");
    let output = place
        .hookctl()
        .env("ACCOUNT_PASSWORDS_FILE", &file)
        .output()
        .await
        .expect("hookctl runs");
    std::fs::remove_file(&file).expect("the file");
    assert!(output.status.success(), "{}", text(&output));
    place.postgres(Program::Ingest).await.expect("it logs in");
    place.clean_up().await;
}

/// Reading a pipe would wait for its writer.
#[sqlx::test(migrations = false)]
async fn a_file_of_passwords_that_is_none_is_refused(pool: PgPool) {
    let place = Place::new(&pool);
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("ingest");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    for (setting, path) in [
        ("ACCOUNT_PASSWORDS_FILE", &*pipe),
        ("ACCOUNT_PASSWORDS_FOLDER", folder.path()),
    ] {
        let mut command = place.hookctl();
        let output = command.env(setting, path).kill_on_drop(true).output();
        let output = timeout(SOON, output).await.expect("it ends");
        let output = output.expect("hookctl runs");
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        let said = text(&output);
        assert!(
            said.contains(setting) && said.contains("not a regular file"),
            "{said}"
        );
    }
}

#[sqlx::test(migrations = false)]
async fn every_password_can_be_in_a_file_of_its_own(pool: PgPool) {
    let place = Place::new(&pool);
    let folder = std::env::temp_dir().join(&place.prefix);
    std::fs::create_dir(&folder).expect("a folder");
    for program in Program::ALL {
        let file = folder.join(program.name());
        std::fs::write(file, format!("{}\n", place.password(program))).expect("a file");
    }
    let output = place
        .hookctl()
        .env("ACCOUNT_PASSWORDS_FOLDER", &folder)
        .output()
        .await
        .expect("hookctl runs");
    assert!(output.status.success(), "{}", text(&output));

    for program in Program::ALL {
        let file = folder.join(program.name());
        let config = worker::config::Config::parse_from([
            OsStr::new("worker"),
            "--database-url".as_ref(),
            without_password(place.database(program).to_url_lossy().as_str()).as_ref(),
            "--database-password-file".as_ref(),
            file.as_ref(),
            "--amqp-url".as_ref(),
            without_password(&place.broker_url(program)).as_ref(),
            "--amqp-password-file".as_ref(),
            file.as_ref(),
        ]);
        let postgres = config.stores.postgres().expect("good settings");
        postgres
            .connect("test", Access::Write)
            .await
            .expect("it logs in");
        let rabbitmq = config.stores.broker().expect("good settings");
        assert!(!format!("{rabbitmq:?}").contains(place.password(program)));
        broker::connect(&rabbitmq, "test")
            .await
            .expect("it logs in");
    }
    std::fs::remove_dir_all(&folder).expect("the folder");
    place.clean_up().await;
}

fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a scheme");
    let (user, place) = rest.split_once('@').expect("a user");
    let (name, _password) = user.split_once(':').expect("a password");
    format!("{scheme}://{name}@{place}")
}

/// A set-up that has nothing to change in the policies needs no table alone; one that has waits without
/// holding anybody up.
#[sqlx::test(migrations = false)]
async fn setup_waits_for_a_reader_and_holds_nobody_up(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    let mut reader = pool.begin().await.expect("a transaction");
    let read = "select count(*) from events, webhook_spool";
    sqlx::raw_sql(read)
        .execute(&mut *reader)
        .await
        .expect("a read");
    let output = place.set_up(&[]).await;
    assert!(output.status.success(), "{}", text(&output));

    let worker = place.name(Program::Worker(Family::Vendor));
    reader.rollback().await.expect("a rollback");
    place
        .sql(&format!(
            r#"drop policy "{worker}" on events;
               alter policy "{worker}" on webhook_spool using (family <> '')"#
        ))
        .await;
    let mut reader = pool.begin().await.expect("a transaction");
    sqlx::raw_sql(read)
        .execute(&mut *reader)
        .await
        .expect("a read");
    let setup = place.set_up(&[]);
    let release = async {
        // Until it has given up once.
        let mut given_up = false;
        let mut waited = false;
        while !given_up {
            let waits: bool = sqlx::query_scalar(
                "select exists (select from pg_locks
                                 where mode = 'AccessExclusiveLock' and not granted
                                   and relation in ('events'::regclass, 'webhook_spool'::regclass))",
            )
            .fetch_one(&pool)
            .await
            .expect("the locks");
            given_up = waited && !waits;
            waited |= waits;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        place
            .sql(
                "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
                 values ('m', 'unknown', now(), '', '')",
            )
            .await;
        reader.rollback().await.expect("a rollback");
    };
    let (output, ()) = timeout(SOON, async { tokio::join!(setup, release) })
        .await
        .expect("in time");
    assert!(output.status.success(), "{}", text(&output));
    let shown = text(&output);
    assert!(shown.contains("tried again"), "{shown}");
    let holder = "a lock that others hold: pid ";
    assert!(shown.contains(holder), "{shown}");
    assert!(shown.contains("state idle in transaction"), "{shown}");
    let policies: i64 = sqlx::query_scalar(
        "select count(*) from pg_policies
          where schemaname = current_schema() and policyname = $1
            and coalesce(qual, '') not like '%<>%'",
    )
    .bind(&worker)
    .fetch_one(&pool)
    .await
    .expect("the policies");
    assert_eq!(policies, 2);
    place.clean_up().await;
}

/// A build that waits for an older transaction holds up no insert; what a build that was cut off has left
/// is removed.
#[sqlx::test(migrations = false)]
async fn indexes_for_a_sweep_are_made_while_events_are_stored(pool: PgPool) {
    let insert = |id: &str| {
        format!(
            "insert into public.events (webhook_id, event_type, received_at, raw, body_sha256)
             values ('{id}', 'unknown', now(), '', '')"
        )
    };
    let place = Place::prepared(&pool).await;
    place
        .sql(
            "create index cut_off on events (resource_id);
             update pg_index set indisvalid = false where indexrelid = 'cut_off'::regclass;
             -- Of another pipeline, in the schema that an unqualified name would find.
             create schema other;
             create table other.events (resource_id text);
             create index cut_off on other.events (resource_id);
             do $$ begin
                 execute format('alter database %I set search_path = other, public', current_database());
             end $$",
        )
        .await;
    let mut older = pool.begin().await.expect("a transaction");
    sqlx::raw_sql(AssertSqlSafe(insert("older")))
        .execute(&mut *older)
        .await
        .expect("an event");

    let flags = ["--event-retention", "400d", "--typed-row-retention", "400d"];
    let setup = place.set_up(&flags);
    let release = async {
        let waits = "select exists (select from pg_stat_activity
                                     where query like '% index concurrently %'
                                       and wait_event_type = 'Lock'
                                       and datname = current_database())";
        until(&pool, waits).await;
        place.sql(&insert("meanwhile")).await;
        older.commit().await.expect("a commit");
    };
    let (output, ()) = timeout(SOON, async { tokio::join!(setup, release) })
        .await
        .expect("in time");
    assert!(output.status.success(), "{}", text(&output));
    let indexes: Vec<String> = sqlx::query_scalar(
        "select own.relname::text from pg_index i join pg_class own on own.oid = indexrelid
           join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
          where indrelid = 'public.events'::regclass and attname = 'resource_id'",
    )
    .fetch_all(&pool)
    .await
    .expect("the catalog");
    assert_eq!(indexes, ["events_resource_id_idx"]);
    let others: i64 =
        sqlx::query_scalar("select count(*) from pg_indexes where schemaname = 'other'")
            .fetch_one(&pool)
            .await
            .expect("the catalog");
    assert_eq!(others, 1);
    place.clean_up().await;
}

async fn until(pool: &PgPool, condition: &'static str) {
    while !sqlx::query_scalar::<_, bool>(condition)
        .fetch_one(pool)
        .await
        .expect("a condition")
    {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[sqlx::test(migrations = false)]
async fn problems_that_a_worker_of_an_earlier_version_stores_get_their_kinds(pool: PgPool) {
    const EVENTS: &str = "
        insert into events (webhook_id, event_type, received_at, raw, body_sha256, problem)
        select n || problem, 'unknown', now(), '', '', nullif(problem, '')
          from generate_series(1, 600) n
         cross join unnest($1::text[]) as problem";
    const FOUND: &str = r#"
        select problem, kind, number
          from (select coalesce(problem, '') as problem, problem_kind as kind, count(*) as number
                  from events group by 1, 2) found
         order by problem collate "C""#;
    let kinds = [
        ("", None),
        ("error returned from database: x", Some("refused")),
        (
            "it came by the queue of other, whose worker has no right",
            Some("misrouted"),
        ),
        ("the body is empty", Some("not-an-event")),
    ];
    let place = Place::prepared(&pool).await;
    sqlx::query(EVENTS)
        .bind(kinds.map(|(problem, _)| problem))
        .execute(&pool)
        .await
        .expect("events");
    let output = place.set_up(&[]).await;
    assert!(output.status.success(), "{}", text(&output));
    let found: Vec<(String, Option<String>, i64)> =
        sqlx::query_as(FOUND).fetch_all(&pool).await.expect("kinds");
    let expected = kinds.map(|(problem, kind)| (problem.to_owned(), kind.map(str::to_owned), 600));
    assert_eq!(found, expected);
    place.clean_up().await;
}
