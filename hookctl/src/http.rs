//! Requests over HTTP, or HTTPS with the public certificate authorities.

use std::{error::Error, ffi::OsStr, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use clap::{Arg, Command, builder::TypedValueParser, error::ErrorKind};
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

    /// Sends a request and reads its answer. A body that is incomplete or too large counts as empty,
    /// because the status has arrived by then.
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

/// Why there was no answer, without details for programmers.
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

/// Reads an address on the command line. Only `http` and `https` with a host are accepted. A user and a
/// password in it are removed: they are not sent, and the address is printed later. For the same reason the
/// error does not repeat a refused address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UrlParser;

impl TypedValueParser for UrlParser {
    type Value = Uri;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Uri, clap::Error> {
        value.to_str().and_then(parse_url).ok_or_else(|| {
            let argument = argument.map(ToString::to_string).unwrap_or_default();
            command.clone().error(
                ErrorKind::ValueValidation,
                format!(
                    "{argument} must be an address such as http://127.0.0.1:8080/webhooks/pleo"
                ),
            )
        })
    }
}

fn parse_url(text: &str) -> Option<Uri> {
    // An `@` after the host may be the end of a password with a `/` or a `?` in it.
    let behind_host = text.splitn(4, ['/', '?', '#']).nth(3);
    if behind_host.is_some_and(|rest| rest.contains('@')) {
        return None;
    }
    let mut parts = text.parse::<Uri>().ok()?.into_parts();
    if !matches!(parts.scheme.as_ref()?.as_str(), "http" | "https") {
        return None;
    }
    let authority = parts.authority.as_ref()?.as_str();
    if let Some((_userinfo, place)) = authority.rsplit_once('@') {
        parts.authority = Some(place.parse().ok()?);
    }
    let url = Uri::from_parts(parts).ok()?;
    url.host()
        .is_some_and(|host| !host.is_empty())
        .then_some(url)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("http://h:1/livez", Some("http://h:1/livez"))]
    #[case("https://user:hunter2@h:1/x?y=z", Some("https://h:1/x?y=z"))]
    #[case("http://hunter2@[::1]", Some("http://[::1]/"))]
    #[case("ftp://h", None)]
    #[case("h:1", None)]
    #[case("http:///x", None)]
    #[case("http://user:hunter2@", None)]
    #[case("http://weird:12?hunter2secret@h/", None)]
    #[case("http://weird:12/hunter2secret@h/", None)]
    #[case("http://weird:12#hunter2secret@h/", None)]
    fn an_address_is_read_without_its_user(#[case] text: &str, #[case] expected: Option<&str>) {
        let url = parse_url(text).map(|url| url.to_string());
        assert_eq!(url.as_deref(), expected);
    }
}
