//! What every request passes: the host it was meant for, who it is of, and the headers of every answer.

use actix_web::{
    HttpMessage, HttpResponse,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};

use super::{Access, sign_in};
use crate::{error::PageError, metrics::Metrics, text};

/// Nothing comes from elsewhere, nothing is inline, and no other page may show this one in a frame.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Headers of every answer, where the answer itself has none of that name.
const HEADERS: [(&str, &str); 7] = [
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "same-origin"),
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// Adds the headers, shows errors as pages, and measures.
pub async fn finish(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let metrics = request.app_data::<web::Data<Metrics>>().cloned();
    let page = request.match_pattern();
    let timer = metrics.map(|metrics| metrics.start(page.as_deref()));
    let response = next.call(request).await?.map_into_boxed_body();
    let failure = response.response().error();
    let failure = failure
        .and_then(|error| error.as_error::<PageError>())
        .cloned();
    let mut response = match failure {
        Some(failure) => {
            let page = failure.page(response.request());
            response.into_response(page)
        }
        None => response,
    };
    for (name, value) in HEADERS {
        let name = HeaderName::from_static(name);
        if !response.headers().contains_key(&name) {
            response
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
    }
    drop(timer);
    Ok(response)
}

/// Lets a request through, or answers it.
pub async fn check(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let access = request.app_data::<web::Data<Access>>().cloned();
    let access = access.expect("the server was built with who may look");
    match admit(&request, &access) {
        Ok(Some(answer)) => Ok(request.into_response(answer)),
        Ok(None) => Ok(next.call(request).await?.map_into_boxed_body()),
        // As an error of the response, of which a page is made.
        Err(refusal) => {
            let response = HttpResponse::from_error(refusal);
            Ok(request.into_response(response))
        }
    }
}

/// `None` lets it through.
fn admit(request: &ServiceRequest, access: &Access) -> Result<Option<HttpResponse>, PageError> {
    // Postgres has no text with it, and no page has an address with it.
    if request.query_string().contains("%00") {
        return Err(PageError::BadAddress(
            "The address has a NUL in it.".to_owned(),
        ));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        check_origin(request.headers())?;
    }
    match access {
        Access::Loopback(_) => {
            check_host(request)?;
            Ok(None)
        }
        Access::Proxy(proxy) => {
            let user = proxy.user(request.headers())?;
            request.extensions_mut().insert(user);
            Ok(None)
        }
        Access::SignedIn(_) if is_open(request.path()) => Ok(None),
        Access::SignedIn(sign_ins) => {
            if let Some(user) = sign_ins.user(request.headers()) {
                request.extensions_mut().insert(user);
                return Ok(None);
            }
            // Part of a page refreshes itself. The browser must load the whole page, which leads to the sign-in.
            if request.headers().contains_key("hx-request") {
                let answer = HttpResponse::Unauthorized()
                    .insert_header(("hx-refresh", "true"))
                    .finish();
                return Ok(Some(answer));
            }
            if is_link_from_elsewhere(request.headers()) {
                return Ok(Some(again()));
            }
            let next = request
                .uri()
                .path_and_query()
                .map_or("/", |next| next.as_str());
            Ok(Some(
                HttpResponse::SeeOther()
                    .insert_header((
                        header::LOCATION,
                        text::href(sign_in::PATH, &[("next", next)]),
                    ))
                    .finish(),
            ))
        }
    }
}

/// What is shown without signing in.
fn is_open(path: &str) -> bool {
    path == sign_in::PATH || path.starts_with("/assets/")
}

/// A page of another site may have its own name resolve to this machine. It would then be of the same
/// origin, by a name that we do not have.
fn check_host(request: &ServiceRequest) -> Result<(), PageError> {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let host = host.unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    if ["localhost", "127.0.0.1", "[::1]"]
        .iter()
        .any(|ours| name.eq_ignore_ascii_case(ours))
    {
        Ok(())
    } else {
        Err(PageError::Forbidden(
            "The console answers only as localhost, 127.0.0.1 or [::1] unless users sign in (USERS_FILE).",
        ))
    }
}

/// What changes something comes from a page of our own.
fn check_origin(headers: &HeaderMap) -> Result<(), PageError> {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_ours = match (value("sec-fetch-site"), value("origin"), value("host")) {
        (Some(site), _, _) => site == "same-origin",
        (None, Some(origin), Some(host)) => origin
            .split_once("://")
            .is_some_and(|(_, authority)| authority == host),
        // No browser leaves out both.
        _ => true,
    };
    match is_ours {
        true => Ok(()),
        false => Err(PageError::Forbidden("The request came from another site.")),
    }
}

/// Browsers leave the cookie out of what another site links to.
fn is_link_from_elsewhere(headers: &HeaderMap) -> bool {
    let is = |name, expected: &str| headers.get(name).is_some_and(|value| value == expected);
    is("sec-fetch-site", "cross-site") && is("sec-fetch-mode", "navigate")
}

/// Lets the browser ask again, this time from a page of ours and so with the cookie.
fn again() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .body("<!doctype html><meta http-equiv=\"refresh\" content=\"0\"><title>One moment</title>")
}
