//! The private port of every service: `/livez`, `/readyz` and `/metrics`. It has no authentication,
//! so it belongs on an internal network.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{App, HttpResponse, HttpServer, dev::Server, web};
use anyhow::Context;
use futures_util::future::BoxFuture;
use prometheus::{Registry, TextEncoder};
use serde::Serialize;

/// Longer than the usual interval between probes or scrapes, so that a client does not reuse a
/// connection while it is being closed.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// The result of probing one dependency of a service.
#[derive(Debug, Serialize)]
pub struct Check {
    /// The dependency's name.
    pub name: &'static str,
    /// Whether it works now.
    pub ok: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Check {
    /// The check for a probe's result.
    pub fn new<E: std::fmt::Display>(name: &'static str, outcome: Result<(), E>) -> Self {
        let reason = outcome.err().map(|e| e.to_string());
        Self {
            name,
            ok: reason.is_none(),
            reason,
        }
    }
}

/// The answer of `/readyz`: 200 when ready, else 503, with the checks as JSON.
#[derive(Debug, Serialize)]
pub struct Readiness {
    /// Whether the service can do its work now.
    pub ready: bool,
    /// How it works while a dependency is down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
    /// The dependencies.
    pub checks: Vec<Check>,
}

/// Probes the service's dependencies at each call. It must have its own deadline.
pub type ReadinessProbe = Arc<dyn Fn() -> BoxFuture<'static, Readiness> + Send + Sync>;

/// Binds the private port and returns its address, for port 0. The server runs when it is awaited
/// or spawned.
pub fn serve(
    address: SocketAddr,
    registry: Registry,
    readiness: ReadinessProbe,
) -> anyhow::Result<(Server, SocketAddr)> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(registry.clone()))
            .app_data(web::Data::new(Arc::clone(&readiness)))
            .route("/livez", web::get().to(HttpResponse::Ok))
            .route("/readyz", web::get().to(readyz))
            .route("/metrics", web::get().to(metrics))
    })
    .workers(1)
    .keep_alive(KEEP_ALIVE)
    .disable_signals()
    .shutdown_timeout(1)
    .bind(address)
    .with_context(|| format!("cannot listen on {address} (PRIVATE_LISTEN)"))?;
    let bound = server.addrs()[0];
    Ok((server.run(), bound))
}

async fn readyz(probe: web::Data<ReadinessProbe>) -> HttpResponse {
    let readiness = probe().await;
    let mut response = if readiness.ready {
        HttpResponse::Ok()
    } else {
        HttpResponse::ServiceUnavailable()
    };
    response.json(readiness)
}

async fn metrics(registry: web::Data<Registry>) -> HttpResponse {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => HttpResponse::Ok()
            .content_type(prometheus::TEXT_FORMAT)
            .body(text),
        Err(error) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}
