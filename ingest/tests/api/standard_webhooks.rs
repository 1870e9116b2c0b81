//! Tests signatures with the specification's test vectors and the reference library.

use std::time::Duration;

use chrono::{TimeZone, Utc};
use ingest::{headers::WebhookHeaders, secrets::Secrets};
use proptest::prelude::*;
use rstest::rstest;

use crate::webhook::SECRET;

const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const TIMESTAMP: i64 = 1_614_265_330;

fn headers(id: &str, timestamp: i64, signature: &str) -> WebhookHeaders {
    let timestamp = timestamp.to_string();
    WebhookHeaders::parse(|name| {
        let value = match name {
            "webhook-id" => Some(id),
            "webhook-timestamp" => Some(timestamp.as_str()),
            "webhook-signature" => Some(signature),
            _ => None,
        };
        value.map(str::as_bytes).into_iter()
    })
    .expect("well-formed headers")
}

fn verifies(key: &str, id: &str, timestamp: i64, signature: &str, body: &[u8]) -> bool {
    let secrets = Secrets::parse(&format!("key={key}").into()).expect("a good key");
    secrets.verify(&headers(id, timestamp, signature), body) == Some("key")
}

#[rstest]
#[case::a(
    SECRET,
    ID,
    TIMESTAMP,
    r#"{"test": 2432232314}"#,
    "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)]
#[case::b(
    "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
    "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
    1_649_367_553,
    r#"{"email":"test@example.com","username":"test_user"}"#,
    "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="
)]
#[case::ed25519(
    "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=",
    ID,
    TIMESTAMP,
    r#"{"test": 2432232314}"#,
    "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
)]
#[case::export_job(
    SECRET,
    ID,
    TIMESTAMP,
    hookctl::sample::EXPORT_JOB.body,
    "v1,ZXewLkf69m5Xprhi5L9XWWTcHccPVDVZoNzyf5SNWfI="
)]
#[case::vendor(
    SECRET,
    ID,
    TIMESTAMP,
    hookctl::sample::VENDOR.body,
    "v1,xMimQUp+M0QlfiZRE2AxhJdOgejDszlshxf7pgad95c="
)]
fn published_signatures_verify(
    #[case] key: &str,
    #[case] id: &str,
    #[case] timestamp: i64,
    #[case] body: &str,
    #[case] signature: &str,
) {
    assert!(verifies(key, id, timestamp, signature, body.as_bytes()));
    assert!(!verifies(
        key,
        id,
        timestamp + 1,
        signature,
        body.as_bytes()
    ));
    assert!(!verifies(
        key,
        "msg_other",
        timestamp,
        signature,
        body.as_bytes()
    ));
    for position in 0..body.len() {
        let mut flipped = body.as_bytes().to_vec();
        flipped[position] ^= 1;
        assert!(!verifies(key, id, timestamp, signature, &flipped));
    }
}

#[test]
fn the_name_of_the_matching_secret_is_told() {
    let text = format!("old=whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD,new={SECRET}");
    let secrets = Secrets::parse(&text.into()).expect("good secrets");
    let signature = ingest::signature::sign(SECRET, ID, TIMESTAMP, b"x").expect("a good secret");
    assert_eq!(
        secrets.verify(&headers(ID, TIMESTAMP, &signature), b"x"),
        Some("new")
    );
}

proptest! {
    /// The reference library uses its own clock, so the timestamp is near now. It is correct for
    /// these cases: each header once, a body that is text (it refuses other bytes), and a signature
    /// that is ours or damaged.
    #[test]
    fn it_agrees_with_the_reference_library(
        id in "[a-zA-Z0-9_-]{1,40}",
        body in any::<String>(),
        offset in -280_i64..280,
        damage in proptest::option::of((0_usize..47, any::<char>())),
        other_key in any::<bool>(),
    ) {
        let key = if other_key { "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD" } else { SECRET };
        let timestamp = Utc::now().timestamp() + offset;
        let mut signature =
            ingest::signature::sign(key, &id, timestamp, body.as_bytes()).expect("a good secret");
        if let Some((position, replacement)) = damage
            && replacement.is_ascii_graphic()
        {
            signature.replace_range(position..=position, &replacement.to_string());
        }

        let reference = standardwebhooks::Webhook::new(SECRET).expect("a good secret");
        let mut reference_headers = http::HeaderMap::new();
        for (name, value) in [
            ("webhook-id", id.as_str()),
            ("webhook-timestamp", &timestamp.to_string()),
            ("webhook-signature", &signature),
        ] {
            reference_headers.insert(name, value.parse().expect("ascii"));
        }
        let expected = reference.verify(body.as_bytes(), &reference_headers).is_ok();
        prop_assert_eq!(
            verifies(SECRET, &id, timestamp, &signature, body.as_bytes()),
            expected
        );
    }

    #[test]
    fn freshness_agrees_with_the_specification(offset in -1_000_i64..1_000) {
        let now = Utc.timestamp_opt(TIMESTAMP, 0).unwrap();
        let headers = headers(ID, TIMESTAMP + offset, "v1,x");
        let fresh = headers.check_fresh(now, Duration::from_secs(300)).is_ok();
        prop_assert_eq!(fresh, offset.abs() <= 300);
    }
}
