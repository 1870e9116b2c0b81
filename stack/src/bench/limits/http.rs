//! Only the HTTP server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, http::header, web};
use anyhow::Result;
use bytes::Bytes;
use ingest::headers::WebhookHeaders;
use ingest::secrets::DEVELOPMENT_SECRET;
use ingest::signature::{Key, Signatures};

use super::super::load::{Load, Pace};
use super::super::request::Requests;

/// Requests per second over 64 and over 256 connections.
pub(super) async fn measure(slice: Duration) -> Result<[f64; 2]> {
    let (address, server) = serve()?;
    let requests = Arc::new(Requests::new(address)?);
    let mut rates = [0.0; 2];
    for (rate, connections) in rates.iter_mut().zip([64, 256]) {
        let load = Load {
            connections,
            pace: Pace::Closed,
            duplicates: 0.0,
            during: slice,
        };
        *rate = load.put_on(address, &requests).await?.rate;
    }
    server.stop(false).await;
    Ok(rates)
}

/// A server that only verifies signatures.
fn serve() -> Result<(SocketAddr, ServerHandle)> {
    let keys = web::Data::new(vec![("bench".to_owned(), Key::parse(DEVELOPMENT_SECRET)?)]);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(keys.clone())
            .default_service(web::to(verify))
    })
    .workers(2)
    .disable_signals()
    .bind(("127.0.0.1", 0))?;
    let address = server.addrs()[0];
    let server = server.run();
    let handle = server.handle();
    tokio::spawn(server);
    Ok((address, handle))
}

async fn verify(
    keys: web::Data<Vec<(String, Key)>>,
    request: HttpRequest,
    body: Bytes,
) -> HttpResponse {
    let values = |name| {
        let values = request.headers().get_all(name);
        values.map(header::HeaderValue::as_bytes)
    };
    match WebhookHeaders::parse(values) {
        Ok(headers)
            if Signatures::of(&headers)
                .matching_key(&keys, &headers, &body)
                .is_some() =>
        {
            HttpResponse::Accepted().body(r#"{"status":"accepted"}"#)
        }
        _ => HttpResponse::Unauthorized().finish(),
    }
}
