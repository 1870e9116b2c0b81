//! Measures the check of one request's signature: `cargo bench --bench verifying`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hookctl::sample::VENDOR;
use ingest::headers::WebhookHeaders;
use ingest::secrets::DEVELOPMENT_SECRET;
use ingest::signature::{Key, Signatures};

const ID: &str = "msg_2b1c7e3a";
const TIMESTAMP: i64 = 1_740_132_343;

/// A secret that does not match, first in the list as during a rotation.
const OTHER_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn verifying(criterion: &mut Criterion) {
    let body = VENDOR.body.as_bytes();
    let key = Key::parse(DEVELOPMENT_SECRET).expect("a key");
    let other = Key::parse(OTHER_SECRET).expect("a key");
    let signature = key.sign(ID, TIMESTAMP, body).expect("a symmetric key");
    let timestamp = TIMESTAMP.to_string();
    let read = || {
        WebhookHeaders::parse(|name| {
            let value = match name {
                "webhook-id" => ID,
                "webhook-timestamp" => &timestamp,
                _ => &signature,
            };
            std::iter::once(value.as_bytes())
        })
        .expect("good headers")
    };
    let headers = read();

    let mut group = criterion.benchmark_group("verifying");
    group.throughput(Throughput::Elements(1));
    group.bench_function("headers", |bench| bench.iter(|| black_box(read())));
    for (name, keys) in [
        ("one secret", vec![("current".to_owned(), key.clone())]),
        (
            "the second of two secrets",
            vec![("next".to_owned(), other), ("current".to_owned(), key)],
        ),
    ] {
        let verify = |headers| Signatures::of(headers).matching_key(&keys, headers, body);
        assert!(verify(&headers).is_some(), "{name}");
        group.bench_function(name, |bench| {
            bench.iter(|| black_box(verify(black_box(&headers))));
        });
    }
    group.finish();
}

criterion_group!(benches, verifying);
criterion_main!(benches);
