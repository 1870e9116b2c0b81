//! The properties of the fuzzer for events (see `fuzz/`), checked on its committed inputs and on
//! inputs from proptest.

#[path = "../../../fuzz/properties/events.rs"]
mod events;

use std::{fs, path::Path};

use proptest::{collection::vec, prelude::*, sample::select};

/// Nearly valid events: the important fields usually have valid values.
fn bodies() -> impl Strategy<Value = String> {
    let value = select(vec![
        "null",
        "1",
        "-1.5e3",
        "1e400",
        "true",
        "[]",
        "{}",
        r#""""#,
        r#""text""#,
        r#""DRAFT""#,
        r#""pending""#,
        r#""\u0000""#,
        r#""\ud83d""#,
        r#""2025-02-21T10:05:43.530450712Z""#,
        r#""v1.vendor.created""#,
    ]);
    let key = select(vec![
        "id",
        "companyId",
        "name",
        "state",
        "status",
        "createdAt",
        "updatedAt",
        "numberOfItems",
        "eventType",
        "x",
    ]);
    let fields = vec((key, value), 0..6);
    let base = select(vec![
        "",
        r#""id":"i","companyId":"c","name":"n","state":"DRAFT""#,
        r#""id":"i","companyId":"c","status":"pending""#,
    ]);
    let event_type = select(vec![
        "v1.vendor.created",
        "v1.export-job.created",
        "v1.export.job-created",
        "v2.vendor.x",
        "v1.receipt.created",
        "no type",
        "",
    ]);
    let frame = select(vec![
        r#"{"eventType":"TYPE","eventId":"e","data":DATA}"#,
        r#"{"data":DATA,"eventType":"TYPE"}"#,
        r#"{"payload":{"eventType":"TYPE","data":DATA}}"#,
        r#"{"eventType":null,"payload":{"eventType":"TYPE","data":DATA}}"#,
        r#"{"eventType":"TYPE","data":[DATA]}"#,
        r#"["TYPE","e",DATA]"#,
        "DATA",
    ]);
    (base, fields, event_type, frame).prop_map(|(base, fields, event_type, frame)| {
        let more = fields
            .iter()
            .map(|(key, value)| format!(r#""{key}":{value}"#));
        let fields: Vec<_> = [base.to_owned()].into_iter().chain(more).collect();
        let data = format!("{{{}}}", fields.join(",").trim_start_matches(','));
        frame.replace("TYPE", event_type).replace("DATA", &data)
    })
}

#[test]
#[expect(clippy::print_stdout, reason = "says which one fails")]
fn committed_events_are_read_by_the_rules() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/events");
    let seeds: Vec<_> = fs::read_dir(folder).expect("seeds").collect();
    assert!(seeds.len() > 10, "{seeds:?}");
    for seed in seeds {
        let path = seed.expect("a seed").path();
        println!("{}", path.display());
        events::check(&fs::read(path).expect("a file"));
    }
}

proptest! {
    #[test]
    fn events_are_read_by_the_rules(body in bodies()) {
        events::check(body.as_bytes());
    }

    #[test]
    fn no_bytes_break_the_rules(bytes in vec(any::<u8>(), 0..200)) {
        events::check(&bytes);
    }
}
