//! Measures how long it takes to turn an event's body into rows: `cargo bench --bench reading`.

use std::hint::black_box;

use chrono::DateTime;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hookctl::sample::Sample;
use lapin::BasicProperties;
use shared::envelope::Envelope;
use shared::message::Delivered;
use worker::record::Record;
use worker::work::Work;

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

/// An event as it comes from the queue.
fn work(sample: Sample) -> Work {
    let properties = BasicProperties::default()
        .with_message_id("msg_1".into())
        .with_type(sample.event_type.into());
    let body = sample.body.into();
    let mut delivered = Delivered::from_message(&properties, false, body, DateTime::UNIX_EPOCH);
    delivered.remove(0).into()
}

criterion_group!(benches, reading);
criterion_main!(benches);
