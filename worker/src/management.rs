//! A client of RabbitMQ's HTTP API. The workers read one queue with it; `hookctl` reads and writes
//! more.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use shared::{
    address::{Address, AddressError, Host},
    broker::BrokerUrl,
    reach::Cause,
    tls::{self, Tls},
};
use thiserror::Error;
use tokio::sync::oneshot;
use ureq::{
    Agent, Body, Timeout,
    http::{Response, StatusCode},
    tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig},
};

/// The deadline of a request to one node, including connecting.
const DEADLINE: Duration = Duration::from_secs(20);

const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// The time until the head of an answer. A node under load needs a second or two to count its
/// queues.
const ANSWER_DEADLINE: Duration = Duration::from_secs(8);

/// No node answered as RabbitMQ's management does.
#[derive(Debug, Error)]
#[error(
    "cannot ask RabbitMQ's management ({0}): check RABBITMQ_MANAGEMENT_URL, and enable it with: \
     rabbitmq-plugins enable rabbitmq_management"
)]
pub struct Unanswered(String);

/// RabbitMQ's management refuses this user.
#[derive(Debug, Error)]
#[error("RabbitMQ's management refuses the user of AMQP_URL: {0}")]
pub struct NotAllowed(String);

/// A client of the API.
#[derive(Clone)]
pub struct Management {
    agent: Agent,
    /// One URL for each node, without a trailing slash.
    urls: Arc<[String]>,
    /// The node that answered last. It is tried first, so that a dead node costs its deadline only
    /// once.
    answered: Arc<AtomicUsize>,
    authorization: Arc<SecretString>,
}

impl Management {
    /// A client for `url`, such as `http://host:15672` or `http://host:15672,host:15672`, with the
    /// user of `broker`.
    pub fn new(url: &str, broker: &BrokerUrl) -> anyhow::Result<Self> {
        let urls = read_urls(url).map_err(|error| {
            anyhow!(
                "RABBITMQ_MANAGEMENT_URL must be of the form http://host:15672 or a list of such, \
                 without a user, as that of AMQP_URL is used: {error}"
            )
        })?;
        ensure!(
            !broker.logs_in_by_certificate(),
            "RABBITMQ_MANAGEMENT_URL needs a user with a password in AMQP_URL, as RabbitMQ's \
             management takes no certificate for a login"
        );
        let (user, password) = broker.credentials();
        let pair = format!("{user}:{}", password.expose_secret());
        let config = Agent::config_builder()
            .timeout_global(Some(DEADLINE))
            .timeout_connect(Some(CONNECT_DEADLINE))
            .timeout_recv_response(Some(ANSWER_DEADLINE))
            .tls_config(tls_config(broker.tls()?))
            .http_status_as_error(false)
            // The password must not be sent to a redirect's target.
            .max_redirects(0)
            .build();
        Ok(Self {
            agent: config.into(),
            urls: urls.into(),
            answered: Arc::default(),
            authorization: Arc::new(format!("Basic {}", BASE64_STANDARD.encode(pair)).into()),
        })
    }

    /// Fails unless the user is an administrator.
    pub async fn check(&self) -> anyhow::Result<()> {
        let me = self.get("/api/whoami").await?;
        // RabbitMQ 3.8 and older separate them with commas.
        let tags = me["tags"].to_string();
        ensure!(
            tags.contains("administrator"),
            "the user of AMQP_URL is no administrator of RabbitMQ: make it one with rabbitmqctl \
             set_user_tags, or use another"
        );
        Ok(())
    }

    /// Reads a path.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let found = self.find(path).await?;
        found.with_context(|| {
            format!("RabbitMQ's management has nothing at {path}: check RABBITMQ_MANAGEMENT_URL")
        })
    }

    /// Reads a path, if it exists.
    pub async fn find(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let answer = self
            .exchange(path, |client, url| {
                client
                    .agent
                    .get(url)
                    .header("authorization", client.authorization.expose_secret())
                    .call()
            })
            .await?;
        if answer.0 == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        accepted(path, answer).map(Some)
    }

    /// Creates or replaces the resource at a path.
    pub async fn put(&self, path: &str, value: Value) -> anyhow::Result<()> {
        self.request(path, move |client, url| {
            client
                .agent
                .put(url)
                .header("authorization", client.authorization.expose_secret())
                .send_json(&value)
        })
        .await?;
        Ok(())
    }

    /// Deletes the resource at a path.
    pub async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.request(path, |client, url| {
            client
                .agent
                .delete(url)
                .header("authorization", client.authorization.expose_secret())
                .call()
        })
        .await?;
        Ok(())
    }

    async fn request(
        &self,
        path: &str,
        send: impl Fn(&Self, &str) -> Result<Response<Body>, ureq::Error> + Send + 'static,
    ) -> anyhow::Result<()> {
        let answer = self.exchange(path, send).await?;
        accepted(path, answer).map(drop)
    }

    /// Tries the nodes in turn until one answers. They share their data, and repeating a change is
    /// harmless.
    async fn exchange(
        &self,
        path: &str,
        send: impl Fn(&Self, &str) -> Result<Response<Body>, ureq::Error> + Send + 'static,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let client = self.clone();
        let path = path.to_owned();
        let (answer, answered) = oneshot::channel();
        // A separate thread and not one of the runtime's, because the runtime would wait for it at
        // shutdown.
        thread::Builder::new()
            .name("management".to_owned())
            .spawn(move || {
                // If this fails, the caller no longer waits.
                answer.send(client.ask(&path, send)).ok();
            })?;
        Ok(answered.await??)
    }

    fn ask(
        &self,
        path: &str,
        send: impl Fn(&Self, &str) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<(StatusCode, Value), Unanswered> {
        let first = self.answered.load(Ordering::Relaxed);
        let mut errors = Vec::new();
        for n in 0..self.urls.len() {
            let n = (first + n) % self.urls.len();
            let url = &self.urls[n];
            let exchanged = send(self, &format!("{url}{path}")).and_then(|mut response| {
                let body = response.body_mut().read_to_string()?;
                Ok((response.status(), body))
            });
            let answer = exchanged
                .map_err(|error| reason(&error))
                .and_then(|(status, body)| read(status, &body));
            match answer {
                Ok(answer) => {
                    self.answered.store(n, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(reason) => errors.push(format!("{url}: {reason}")),
            }
        }
        Err(Unanswered(errors.join("; ")))
    }
}

/// Parses an answer. RabbitMQ answers with JSON, also when it refuses; an empty answer confirms a
/// change.
fn read(status: StatusCode, body: &str) -> Result<(StatusCode, Value), String> {
    if body.is_empty() && status.is_success() {
        return Ok((status, Value::Null));
    }
    let value: Option<Value> = serde_json::from_str(body).ok();
    value
        .filter(|value| status.is_success() || value.get("error").is_some())
        .map(|value| (status, value))
        .ok_or_else(|| format!("is not RabbitMQ's management: it answers {status}"))
}

fn accepted(path: &str, (status, body): (StatusCode, Value)) -> anyhow::Result<Value> {
    if status.is_success() {
        return Ok(body);
    }
    let reason = body["reason"].as_str().unwrap_or_default();
    if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
        let hint = if reason.starts_with("Not management user") {
            "it has no tag that lets it in, such as management or monitoring"
        } else if reason == "Login failed" {
            "its password is another, or it does not exist"
        } else {
            reason
        };
        return Err(NotAllowed(format!("{hint} ({path})")).into());
    }
    bail!("RabbitMQ's management answers {path} with {status}: {reason}")
}

/// The same authorities and client certificate as for AMQP, for the HTTP API.
fn tls_config(tls: Tls) -> TlsConfig {
    let certificates = |all: &[CertificateDer<'_>]| -> Vec<_> {
        let owned = |der: &CertificateDer<'_>| Certificate::from_der(der).to_owned();
        all.iter().map(owned).collect()
    };
    let mut config = TlsConfig::builder();
    if !tls.authorities.is_empty() {
        let roots = certificates(&tls.authorities);
        config = config.root_certs(RootCerts::Specific(Arc::new(roots)));
    }
    let identity = tls.identity.as_ref().map(|identity| {
        let key = private_key(&identity.key);
        ClientCert::new_with_certs(&certificates(&identity.certificates), key)
    });
    config.client_cert(identity).build()
}

/// ureq reads the kind of a key only from PEM.
fn private_key(key: &PrivateKeyDer<'_>) -> PrivateKey<'static> {
    let kind = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    let der = BASE64_STANDARD.encode(key.secret_der());
    let pem = format!("-----BEGIN {kind}-----\n{der}\n-----END {kind}-----\n");
    PrivateKey::from_pem(pem.as_bytes()).expect("what was just written as PEM")
}

fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "no such host".to_owned(),
        ureq::Error::Timeout(Timeout::Resolve) => {
            "no such host (the name service does not answer)".to_owned()
        }
        // This includes the TLS handshake.
        ureq::Error::Timeout(Timeout::Connect) => Cause::NoAnswer.to_string(),
        ureq::Error::Timeout(Timeout::RecvResponse) => format!(
            "accepts connections but says nothing for {} s",
            ANSWER_DEADLINE.as_secs()
        ),
        ureq::Error::Timeout(_) => format!("did not finish within {} s", DEADLINE.as_secs()),
        ureq::Error::Rustls(error) => format!("TLS failed: {}", tls::explain(error)),
        ureq::Error::Protocol(_) | ureq::Error::Http(_) | ureq::Error::LargeResponseHeader(..) => {
            NO_HTTP.to_owned()
        }
        ureq::Error::Io(error) => io_reason(error),
        other => other.to_string(),
    }
}

const NO_HTTP: &str = "speaks no HTTP on this port: RabbitMQ's management has 15672, or 15671 with TLS \
                       (https://)";

fn io_reason(error: &io::Error) -> String {
    const UNRESOLVED: &str = "failed to lookup address information: ";
    match Cause::from(error) {
        Cause::Closed => NO_HTTP.to_owned(),
        Cause::Other(text) => match text.strip_prefix(UNRESOLVED) {
            Some(reason) => Cause::NoSuchHost(reason.to_owned()).to_string(),
            None => text,
        },
        cause => cause.to_string(),
    }
}

/// Parses `http://host:15672,host:15672`. Each host may also have its own `http://`.
fn read_urls(text: &str) -> Result<Vec<String>, AddressError> {
    let scheme = if text.starts_with("https://") {
        "https"
    } else {
        "http"
    };
    let rest = text
        .strip_prefix(scheme)
        .and_then(|rest| rest.strip_prefix("://"))
        .ok_or(AddressError::Scheme)?;
    let rest = rest.replace(&format!(",{scheme}://"), ",");
    let (hosts, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if rest.contains(['@', '?', '#']) || path.contains(',') {
        return Err(AddressError::Ambiguous);
    }
    let path = path.trim_end_matches('/');
    let address = Address::parse(&format!("{scheme}://{hosts}"), &[scheme], false)?;
    let url = |host: &Host| {
        let port = host.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{}{port}{path}", host.name)
    };
    Ok(address.hosts.iter().map(url).collect())
}

/// Percent-encodes a part of a path.
pub fn encode(part: &str) -> String {
    part.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_a_password_is_refused_without_repeating_it() {
        let broker = BrokerUrl::parse("amqp://guest:guest@localhost").expect("valid");
        for bad in [
            "http://user:hunter2@host:15672",
            "http://host:15672,http://user:hunter2@host",
            "http://host:hunter2",
            "host:15672",
            "",
        ] {
            let error = Management::new(bad, &broker).err().expect("refused");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn every_node_has_an_address_of_its_own() {
        for (text, expected) in [
            ("http://h:15672/", vec!["http://h:15672"]),
            ("https://h/a/rabbit/", vec!["https://h/a/rabbit"]),
            ("http://h1:1,[::1]:2", vec!["http://h1:1", "http://[::1]:2"]),
            (
                "http://h1:1,http://h2:2",
                vec!["http://h1:1", "http://h2:2"],
            ),
        ] {
            assert_eq!(read_urls(text).expect("valid"), expected);
        }
    }

    #[test]
    fn what_is_no_answer_of_rabbitmq_is_called_so() {
        for (status, body, expected) in [
            (200, "{}", true),
            (204, "", true),
            (200, "<html>", false),
            (200, "", true),
            (
                404,
                r#"{"error":"Object Not Found","reason":"Not Found"}"#,
                true,
            ),
            (404, "Not found", false),
            (404, "", false),
            (301, "", false),
            (503, "<html>", false),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(read(status, body).is_ok(), expected, "{status} {body}");
        }
    }

    #[test]
    fn parts_of_a_path_stay_parts() {
        assert_eq!(encode("/"), "%2F");
        assert_eq!(encode("a b?ü"), "a%20b%3F%C3%BC");
    }
}
