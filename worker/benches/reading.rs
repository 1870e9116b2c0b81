//! What it costs to make an event's rows of its body: `cargo bench --bench reading`.

use std::hint::black_box;

use chrono::DateTime;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hookctl::sample::Sample;
use shared::envelope::Envelope;
use shared::message::{Receipt, body_sha256};
use shared::{AcceptedEvent, EventType};
use worker::record::Record;
use worker::work::{Source, Work};

fn reading(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reading");
    group.throughput(Throughput::Elements(1));
    for sample in Sample::ALL {
        let work = work(sample);
        let record = Record::new(&work);
        assert_eq!(record.problem, None);
        group.bench_function(format!("envelope of {}", sample.event_type), |bench| {
            bench.iter(|| Envelope::parse(black_box(&work.event.body)).map(|e| e.event_type));
        });
        group.bench_function(format!("rows of {}", sample.event_type), |bench| {
            bench.iter(|| Record::new(black_box(&work)));
        });
    }
    group.finish();
}

fn work(sample: Sample) -> Work {
    Work {
        event: AcceptedEvent {
            webhook_id: "msg_1".to_owned(),
            event_type: EventType::parse(sample.event_type).expect("a type"),
            body_sha256: body_sha256(sample.body.as_bytes()),
            body: sample.body.into(),
            received_at: DateTime::UNIX_EPOCH,
            attempted_at: None,
            secret_name: None,
        },
        receipt: Receipt::Recorded,
        attempts: 0,
        problem: None,
        source: Source::Queue,
    }
}

criterion_group!(benches, reading);
criterion_main!(benches);
