//! One company's events change no other company's rows.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{
    collection::vec,
    strategy::{Strategy, ValueTree},
    test_runner::{Config, TestRunner},
};
use shared::{AcceptedEvent, Companies, Family};
use sqlx::PgPool;
use worker::problem::{COMPANY_CHANGE, FOREIGN_COMPANY};

use crate::{
    sample::{
        count, event, export_job_body, persist, sql, start_spool_reader, until_count, vendor,
        vendor_body,
    },
    spool::spool_events,
};

const EARLY: &str = "2025-01-01T00:00:00Z";
const LATE: &str = "2025-02-01T00:00:00Z";

/// A vendor of this company, whose name is the webhook id.
fn vendor_of(company: &str, id: &str, vendor: &str, updated_at: &str) -> AcceptedEvent {
    let body = vendor_body(vendor, id, "DRAFT", updated_at);
    event(
        id,
        body.replace(
            r#""companyId":"c1""#,
            &format!(r#""companyId":"{company}""#),
        ),
    )
}

fn tied_to(companies: &str, event: AcceptedEvent) -> AcceptedEvent {
    AcceptedEvent {
        secret_companies: Some(Companies::read(companies)),
        ..event
    }
}

/// The webhook id, the problem and the secret's companies of all events.
async fn stored(pool: &PgPool) -> Vec<(String, Option<String>, Option<String>)> {
    sqlx::query_as(
        "select webhook_id, problem, array_to_string(secret_companies, ' ') from events order by 1",
    )
    .fetch_all(pool)
    .await
    .expect("the events")
}

/// The id, company and event of each vendor.
async fn vendors(pool: &PgPool) -> Vec<(String, String, String)> {
    sqlx::query_as("select id, company_id, webhook_id from vendors order by 1")
        .fetch_all(pool)
        .await
        .expect("the vendors")
}

fn row(columns: [&str; 3]) -> (String, String, String) {
    let [a, b, c] = columns.map(str::to_owned);
    (a, b, c)
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_of_a_company_that_its_secret_does_not_speak_for_changes_no_row(pool: PgPool) {
    let job = event("job", export_job_body("j", "pending", EARLY));
    let events = [
        tied_to("c2 c3", vendor("foreign")),
        tied_to("c2 c1", vendor("own")),
        tied_to("c2", job),
        tied_to(
            "c2",
            event("card", r#"{"eventType":"v1.card.created","data":{}}"#),
        ),
        vendor("untied"),
    ];
    let foreign = Some(FOREIGN_COMPANY.to_owned());
    let companies = |text: &str| Some(text.to_owned());
    let expected = [
        ("card", None, companies("c2")),
        ("foreign", foreign.clone(), companies("c2 c3")),
        ("job", foreign, companies("c2")),
        ("own", None, companies("c2 c1")),
        ("untied", None, None),
    ]
    .map(|(id, problem, companies)| (id.to_owned(), problem, companies));
    // From a queue and from the spool.
    for spooled in [false, true] {
        sql(&pool, "truncate events, vendors, export_jobs").await;
        if spooled {
            spool_events(&pool, &events, 0).await;
            let readers = Family::ALL.map(|family| start_spool_reader(&pool, family));
            until_count(&pool, "select count(*) from webhook_spool", 0).await;
            readers.iter().for_each(|reader| reader.cancel());
        } else {
            persist(&pool, events.clone()).await;
        }
        assert_eq!(stored(&pool).await, expected, "spooled: {spooled}");
        let expected = [row(["own", "c1", "own"]), row(["untied", "c1", "untied"])];
        assert_eq!(vendors(&pool).await, expected);
        assert_eq!(count(&pool, "select count(*) from export_jobs").await, 0);
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_second_body_of_a_foreign_company_is_called_so(pool: PgPool) {
    persist(&pool, [vendor_of("c1", "m1", "v1", EARLY)]).await;
    let second = vendor_of("c1", "m1", "v2", LATE);
    persist(&pool, [tied_to("c2", second)]).await;
    let problem: Vec<String> = sqlx::query_scalar("select problem from dead_letters")
        .fetch_all(&pool)
        .await
        .expect("the dead letters");
    assert_eq!(problem, [FOREIGN_COMPANY]);
    assert_eq!(vendors(&pool).await, [row(["v1", "c1", "m1"])]);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_row_never_changes_its_company(pool: PgPool) {
    persist(&pool, [vendor_of("c1", "first", "v1", EARLY)]).await;
    // Another company's newer and older states, and then in one batch another company's state
    // before the owner's.
    persist(&pool, [vendor_of("c2", "newer", "v1", LATE)]).await;
    persist(
        &pool,
        [vendor_of("c2", "older", "v1", "2024-01-01T00:00:00Z")],
    )
    .await;
    let batch = [
        vendor_of("c2", "other", "v1", LATE),
        vendor_of("c1", "own", "v1", LATE),
        vendor_of("c2", "beside", "v2", EARLY),
        vendor_of("c1", "too late", "v2", LATE),
    ];
    persist(&pool, batch).await;
    let expected = [row(["v1", "c1", "own"]), row(["v2", "c2", "beside"])];
    assert_eq!(vendors(&pool).await, expected);
    let problems: Vec<String> = sqlx::query_scalar(
        "select webhook_id from events where problem = $1 and payload is not null
            and raw is not null order by 1",
    )
    .bind(COMPANY_CHANGE)
    .fetch_all(&pool)
    .await
    .expect("the dead letters");
    assert_eq!(problems, ["newer", "older", "other", "too late"]);
    let healthy = "select count(*) from events where problem is null";
    assert_eq!(count(&pool, healthy).await, 3);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn two_workers_with_two_companies_of_a_resource_agree_on_one(pool: PgPool) {
    const RESOURCES: usize = 20;
    for round in 0..10 {
        sql(&pool, "truncate events, vendors").await;
        let events = |company: &'static str| {
            (0..RESOURCES).map(move |number| {
                let id = format!("{company}-{number}");
                vendor_of(company, &id, &format!("v{number}"), EARLY)
            })
        };
        // Small batches, so that each worker is the first one for some resources.
        let worker = async |company: &'static str| {
            let events: Vec<_> = events(company).collect();
            for batch in events.chunks(1 + round % 4) {
                persist(&pool, batch.to_vec()).await;
            }
        };
        tokio::join!(worker("c1"), worker("c2"));
        // Events that waited too long for a lock are in the spool.
        let reader = start_spool_reader(&pool, Family::Vendor);
        until_count(&pool, "select count(*) from webhook_spool", 0).await;
        reader.cancel();

        let set: BTreeSet<String> = (vendors(&pool).await.into_iter())
            .map(|(id, company, webhook_id)| {
                assert_eq!(webhook_id, format!("{company}-{}", &id[1..]));
                webhook_id
            })
            .collect();
        assert_eq!(set.len(), RESOURCES);
        let stored = stored(&pool).await;
        assert_eq!(stored.len(), 2 * RESOURCES, "nothing is lost");
        for (webhook_id, problem, _) in stored {
            let expected = (!set.contains(&webhook_id)).then_some(COMPANY_CHANGE);
            assert_eq!(problem.as_deref(), expected, "{webhook_id}");
        }
    }
}

/// If the events of a resource name several companies, those of the first event's company are
/// stored as if the others did not exist.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_first_event_decides_whose_a_resource_is(pool: PgPool) {
    let events = vec((0..3_u8, 0..2_u8, 0..3_u8), 1..14).prop_map(|events| {
        (events.into_iter().enumerate())
            .map(|(number, (resource, company, time))| {
                let (resource, company) = (format!("v{resource}"), format!("c{company}"));
                let time = format!("2025-01-0{}T00:00:00Z", time + 1);
                let event = vendor_of(&company, &format!("m{number}"), &resource, &time);
                (resource, company, event)
            })
            .collect::<Vec<_>>()
    });
    let cases = (events, 1..6_usize);
    let mut runner = TestRunner::new(Config::default());
    for _ in 0..30 {
        let (events, batch) = cases.new_tree(&mut runner).expect("a case").current();
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        for (resource, company, _) in &events {
            owners.entry(resource).or_insert(company);
        }
        let of_owner = |(resource, company, _): &&(String, String, AcceptedEvent)| {
            owners[resource.as_str()] == company
        };
        sql(&pool, "truncate events, vendors").await;
        let own = events.iter().filter(of_owner);
        persist(&pool, own.map(|(.., event)| event.clone())).await;
        let expected = vendors(&pool).await;

        sql(&pool, "truncate events, vendors").await;
        for some in events.chunks(batch) {
            persist(&pool, some.iter().map(|(.., event)| event.clone())).await;
        }
        assert_eq!(vendors(&pool).await, expected, "{events:?}");
        let strangers = events.len() - events.iter().filter(of_owner).count();
        let dead = count(&pool, "select count(*) from dead_letters").await;
        assert_eq!(usize::try_from(dead), Ok(strangers), "{events:?}");
    }
}
