//! Requests over HTTP, or HTTPS with the public certificate authorities.

use std::{error::Error, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::timeout;

/// No answer that we ask for is larger.
const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// A client that keeps connections open. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Http {
    /// A client without a connection yet.
    pub(crate) fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Self(Client::builder(TokioExecutor::new()).build(connector))
    }

    /// Gets what is at an address.
    pub(crate) async fn get(&self, url: Uri, within: Duration) -> anyhow::Result<Response<Bytes>> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = url;
        self.send(request, within).await
    }

    /// Sends a request and reads its answer. A body that breaks off or is too large counts as empty,
    /// as the status has arrived by then.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> anyhow::Result<Response<Bytes>> {
        let exchange = async {
            let (head, body) = self.0.request(request).await?.into_parts();
            let body = Limited::new(body, BODY_LIMIT).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            anyhow::Ok(Response::from_parts(head, body))
        };
        timeout(within, exchange)
            .await
            .with_context(|| format!("no answer within {} s", within.as_secs()))?
    }
}

/// Why there was no answer, without what only a programmer wants to know.
pub(crate) fn reason(error: &anyhow::Error) -> String {
    let mut reason = error.root_cause() as &(dyn Error + 'static);
    while let Some(source) = reason.source() {
        reason = source;
    }
    if error
        .chain()
        .any(|cause| cause.is::<tokio::time::error::Elapsed>())
    {
        return error.to_string();
    }
    reason.to_string()
}

/// Reads an address. Only `http` and `https` with a host will do.
pub(crate) fn parse_url(text: &str) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|error| format!("{error}"))?;
    match (url.scheme_str(), url.host()) {
        (Some("http" | "https"), Some(_)) => Ok(url),
        _ => Err("must be an address such as http://127.0.0.1:8080/webhooks/pleo".to_owned()),
    }
}
