//! `hookctl dead-letters list`

use sqlx::PgPool;

use crate::place::{
    event, foreign, json, nameless, refuse, run, sorted, sql, stop_worker, store, store_events,
    text, vendor,
};

/// One of each kind, beside a healthy event.
async fn one_of_each(pool: &PgPool) {
    sql(
        pool,
        "alter table vendors add constraint no_poison check (id <> 'poison')",
    )
    .await;
    let job = r#"{"eventType":"v2.export-job.updated","data":{"id":"j1","status":5}}"#;
    let nul = r#"{"eventType":"v1.vendor.created",
        "data":{"id":"v","companyId":"c2","name":"a\u0000","state":"DRAFT"}}"#;
    store_events(
        pool,
        [
            vendor("healthy"),
            nameless("nameless"),
            event("job", job),
            event("nul", nul),
            event("text", "no json"),
        ],
    )
    .await;
    store_events(pool, [event("healthy", "another body")]).await;
    store(pool, [foreign("{}")]).await;
    refuse(pool, &vendor("poison")).await;
    stop_worker(pool, &vendor("killer")).await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn every_filter_keeps_what_it_says(pool: PgPool) {
    one_of_each(&pool).await;
    sql(
        &pool,
        "update events set stored_at = now() - interval '3 hours' where webhook_id = 'job'",
    )
    .await;
    let conflict = {
        let all = json(&pool, &["list"], 0).await;
        assert_eq!(all.len(), 8);
        sorted(&all, "webhook_id")
            .into_iter()
            .find(|id| id.starts_with("healthy#conflict-"))
            .expect("the second body")
    };
    let unidentified = "unidentified:\
        44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    for (filter, expected) in [
        (vec!["--family", "export-job"], vec!["job"]),
        (
            vec!["--family", "vendor"],
            vec!["killer", "nameless", "nul", "poison"],
        ),
        (
            vec!["--family", "other"],
            vec![&conflict, "text", unidentified],
        ),
        (vec!["--type", "v2.export-job.updated"], vec!["job"]),
        (vec!["--company", "c2"], vec!["nameless", "nul"]),
        (vec!["--older-than", "2h"], vec!["job"]),
        (
            vec!["--newer-than", "2h", "--problem", "wrong-data"],
            vec!["nameless", "nul"],
        ),
        (vec!["--problem", "IS missing"], vec!["nameless"]),
        (vec!["--problem", "refused"], vec!["poison"]),
        (vec!["--problem", "no_poison"], vec!["poison"]),
        (vec!["--problem", "stopped-worker"], vec!["killer"]),
        (vec!["--problem", "conflict"], vec![&conflict]),
        (vec!["--problem", "unidentified"], vec![unidentified]),
        (vec!["--problem", "not-an-event"], vec!["text"]),
        (vec!["--id", "nul", "--id", "job"], vec!["job", "nul"]),
        (vec!["--id", "nul", "--family", "other"], vec![]),
        (vec!["--dismissed"], vec![]),
    ] {
        let found = json(&pool, &[&["list"], &filter[..]].concat(), 0).await;
        assert_eq!(sorted(&found, "webhook_id"), expected, "{filter:?}");
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_row_says_what_is_wrong_with_which_event_and_for_how_long(pool: PgPool) {
    store_events(&pool, [nameless("m1")]).await;
    let [row] = &json(&pool, &["list"], 0).await[..] else {
        panic!("one row");
    };
    let mut fields: Vec<_> = row.as_object().expect("an object").keys().collect();
    fields.sort();
    assert_eq!(
        fields,
        [
            "age_s",
            "attempts",
            "company_id",
            "event_type",
            "family",
            "kind",
            "problem",
            "received_at",
            "resource_id",
            "stored_at",
            "webhook_id"
        ]
    );
    assert_eq!(
        (&row["family"], &row["kind"], &row["resource_id"]),
        (&"vendor".into(), &"wrong-data".into(), &"m1".into())
    );
    assert!(row["age_s"].as_f64().expect("seconds") < 60.0);
    let table = text(&run(&pool, &["list"], 0).await);
    for expected in ["m1", "v1.vendor.created", "c2", "`data.name` is missing"] {
        assert!(table.contains(expected), "{expected} is not in {table}");
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_list_that_is_cut_off_says_how_many_more_there_are(pool: PgPool) {
    store_events(&pool, (0..7).map(|i| nameless(&format!("m{i}")))).await;
    let output = run(&pool, &["list", "--limit", "3", "--json"], 0).await;
    assert_eq!(crate::place::lines(&output).len(), 3);
    assert!(text(&output).contains("and 4 more"), "{}", text(&output));
    let output = run(&pool, &["list", "--limit", "7"], 0).await;
    assert!(!text(&output).contains("more"), "{}", text(&output));
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_summary_counts_equal_problems_wherever_in_the_body_they_are(pool: PgPool) {
    store_events(&pool, ["m1", "m1-with-a-longer-id"].map(nameless)).await;
    store_events(&pool, [event("m2", "no json"), vendor("healthy")]).await;
    let groups = json(&pool, &["list", "--summary"], 0).await;
    let counts: Vec<_> = groups
        .iter()
        .map(|g| (g["event_type"].as_str(), g["count"].as_i64()))
        .collect();
    assert_eq!(
        counts,
        [
            (Some("v1.vendor.created"), Some(2)),
            (Some("unknown"), Some(1))
        ]
    );
    assert_eq!(groups[0]["kind"], "wrong-data");
    let problem = groups[0]["problem"].as_str().expect("text");
    assert!(problem.ends_with("`data.name` is missing"), "{problem}");
    assert!(groups[0]["oldest_s"].as_f64() >= groups[0]["newest_s"].as_f64());
    let table = text(&run(&pool, &["list", "--summary"], 0).await);
    assert!(table.contains("`data.name` is missing"), "{table}");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn nothing_in_a_table_is_obeyed_by_the_terminal(pool: PgPool) {
    let body = "{\"eventType\":\"v1.vendor.created\",\"data\":{\"\\u001b[2Jid\":1,\"id\":\
                \"\\u001b[2J\",\"companyId\":\"\\u001b[2J\",\"name\":1}}";
    store_events(&pool, [event("m1", body)]).await;
    for command in [vec!["list"], vec!["list", "--summary"], vec!["show", "m1"]] {
        let table = text(&run(&pool, &command, 0).await);
        assert!(!table.contains('\x1b'), "{table}");
    }
    assert!(
        text(&run(&pool, &["list"], 0).await).contains("\\u{1b}[2J"),
        "it is shown"
    );
}
