//! The public development secrets are accepted from one host only.

use std::{path::Path, process::Command};

use hookctl::delivery::Outcome;
use shared::Program;
use stack::haproxy::HaProxy;

use crate::{
    crowd::{address, answer, open, signed},
    pipeline::{Pipeline, SOON, post},
};

/// The published ports of docker-compose.yml.
const ADDRESSES: [&str; 5] = [
    "PUBLIC_BIND",
    "PROMETHEUS_BIND",
    "ALERTMANAGER_BIND",
    "GRAFANA_BIND",
    "CONSOLE_BIND",
];

#[tokio::test(flavor = "multi_thread")]
async fn with_the_development_secret_the_proxy_serves_only_this_host() {
    let pipeline = Pipeline::new().await;
    let ingest = pipeline.start(Program::Ingest, "ingest");
    ingest.ready(SOON).await.expect("ready");
    let [public, private] =
        [ingest.webhook_url(), ingest.private_url("/livez")].map(|url| address(&url));
    for (development, expected) in [("true", "HTTP/1.1 403"), ("false", "HTTP/1.1 202")] {
        let folder = pipeline.folder().join(format!("haproxy-{development}"));
        let environment = [("DEVELOPMENT", development)];
        let proxy = HaProxy::start_with(&folder, public, private, &environment)
            .await
            .expect("haproxy");
        let from_elsewhere = open(proxy.address(), 1, |_| {
            signed(&format!("msg_{development}")).into_bytes()
        })
        .await;
        for connection in from_elsewhere {
            let text = answer(connection).await;
            assert!(text.starts_with(expected), "{text}");
        }
        let url = format!("http://{}/webhooks/pleo", proxy.address());
        let here = post(&url, &format!("msg_here_{development}"), "{}").await;
        assert_eq!(here.outcome, Outcome::Accepted, "{here:?}");
    }
}

#[test]
fn the_development_secrets_are_published_to_loopback_only() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/check-exposure");
    for (development, secrets, address, is_good) in [
        (
            "true",
            "./deploy/development-secrets",
            "127.0.0.1:8080",
            true,
        ),
        ("true", "./deploy/development-secrets", "[::1]:8080", true),
        (
            "true",
            "./deploy/development-secrets",
            "0.0.0.0:8080",
            false,
        ),
        ("true", "./deploy/development-secrets", "8080", false),
        ("true", "./deploy/development-secrets", "[::]:8080", false),
        ("true", "./secrets", "0.0.0.0:8080", false),
        (
            "false",
            "./deploy/development-secrets",
            "0.0.0.0:8080",
            false,
        ),
        (
            "false",
            "./deploy/development-secrets/",
            "10.0.0.1:8080",
            false,
        ),
        ("False", "./secrets", "0.0.0.0:8080", false),
        ("false", "./secrets", "0.0.0.0:8080", true),
    ] {
        for name in ADDRESSES {
            let mut command = Command::new("sh");
            command
                .arg(&script)
                .env("DEVELOPMENT", development)
                .env("SECRETS", secrets);
            for other in ADDRESSES {
                command.env(other, "127.0.0.1:1");
            }
            let output = command.env(name, address).output().expect("sh");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.success(),
                is_good,
                "{development} {secrets} {said}"
            );
            assert_eq!(
                said.contains(&format!("{name}={address}")),
                !is_good,
                "{said}"
            );
        }
    }
}
