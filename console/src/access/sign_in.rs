//! Signing in and out.

use std::{sync::Arc, time::Instant};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderMap},
    web,
};
use askama::Template;
use cookie::{Cookie, SameSite};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{Access, SignIns, User};
use crate::{
    error::PageError,
    frame::{Frame, Section, html},
    metrics::{Metrics, Outcome},
};

/// Where one signs in.
pub const PATH: &str = "/sign-in";

const COOKIE: &str = "console-session";

/// Checking a password takes memory and most of a core.
static CHECKS: Semaphore = Semaphore::const_new(2);

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    frame: Frame,
    next: String,
    name: String,
    is_wrong: bool,
    has_no_users: bool,
}

#[derive(Deserialize)]
pub(crate) struct Next {
    #[serde(default)]
    next: String,
}

#[derive(Deserialize)]
pub(crate) struct Form {
    name: String,
    password: String,
    #[serde(default)]
    next: String,
}

/// `GET /sign-in`
pub(crate) async fn form(
    request: HttpRequest,
    query: web::Query<Next>,
    access: web::Data<Access>,
) -> Result<HttpResponse, PageError> {
    match access.as_ref() {
        Access::Loopback(_) | Access::Proxy(_) => Ok(see("/")),
        Access::SignedIn(sign_ins) => html(&SignInPage {
            frame: Frame::new(&request, "Sign in", Section::None),
            next: own(&query.next).to_owned(),
            name: String::new(),
            is_wrong: false,
            has_no_users: sign_ins.users.is_empty(),
        }),
    }
}

/// `POST /sign-in`
pub(crate) async fn sign_in(
    request: HttpRequest,
    form: web::Form<Form>,
    access: web::Data<Access>,
    metrics: web::Data<Metrics>,
) -> Result<HttpResponse, PageError> {
    let Access::SignedIn(sign_ins) = access.as_ref() else {
        return Ok(see("/"));
    };
    let Form {
        name,
        password,
        next,
    } = form.into_inner();
    if !sign_ins.limit.try_once(&name, Instant::now()) {
        metrics.sign_in(Outcome::Limited);
        return Err(PageError::TooManyTries);
    }
    let Some(hash) = verify(sign_ins, &name, password).await? else {
        metrics.sign_in(Outcome::Refused);
        let page = SignInPage {
            frame: Frame::new(&request, "Sign in", Section::None),
            next: own(&next).to_owned(),
            name,
            is_wrong: true,
            has_no_users: sign_ins.users.is_empty(),
        };
        let mut response = html(&page)?;
        *response.status_mut() = actix_web::http::StatusCode::UNAUTHORIZED;
        return Ok(response);
    };
    sign_ins.limit.forget(&name);
    metrics.sign_in(Outcome::Accepted);
    tracing::info!(user = name, "signed in");
    let token = sign_ins.sessions.begin(&name, &hash, Instant::now());
    let mut response = see(own(&next));
    add_cookie(&mut response, cookie(sign_ins, token));
    Ok(response)
}

/// `POST /sign-out`
pub(crate) async fn sign_out(request: HttpRequest, access: web::Data<Access>) -> HttpResponse {
    let mut response = see(PATH);
    if let Access::SignedIn(sign_ins) = access.as_ref() {
        if let Some(token) = token(request.headers()) {
            sign_ins.sessions.end(&token);
        }
        let mut gone = cookie(sign_ins, String::new());
        gone.make_removal();
        add_cookie(&mut response, gone);
    }
    response
}

async fn verify(
    sign_ins: &Arc<SignIns>,
    name: &str,
    password: String,
) -> Result<Option<String>, PageError> {
    let failed = |error: &dyn std::fmt::Display| PageError::Template(error.to_string());
    let place = CHECKS.acquire().await.map_err(|error| failed(&error))?;
    let (users, name) = (Arc::clone(&sign_ins.users), name.to_owned());
    let hash = tokio::task::spawn_blocking(move || users.verify(&name, &password)).await;
    drop(place);
    hash.map_err(|error| failed(&error))
}

impl SignIns {
    /// Whose session the request is of. A user who is no longer in the file, or has another password
    /// there, is out.
    pub(super) fn user(&self, headers: &HeaderMap) -> Option<User> {
        let (name, hash) = self.sessions.user(&token(headers)?, Instant::now())?;
        let role = self.users.role(&name, &hash)?;
        Some(User { name, role })
    }
}

/// The token that the browser sent.
fn token(headers: &HeaderMap) -> Option<String> {
    let cookies = headers
        .get_all(header::COOKIE)
        .filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(Cookie::split_parse)
        .flatten()
        .find(|cookie| cookie.name() == COOKIE)
        .map(|cookie| cookie.value().to_owned())
}

fn cookie(sign_ins: &SignIns, token: String) -> Cookie<'static> {
    Cookie::build((COOKIE, token))
        .path("/")
        .http_only(true)
        .secure(sign_ins.secure)
        .same_site(SameSite::Strict)
        .build()
}

fn add_cookie(response: &mut HttpResponse, cookie: Cookie<'_>) {
    if let Ok(value) = header::HeaderValue::from_str(&cookie.to_string()) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}

fn see(path: &str) -> HttpResponse {
    HttpResponse::SeeOther()
        .insert_header((header::LOCATION, path))
        .finish()
}

/// Only a path of ours: what a browser takes for another host's address becomes the overview's.
fn own(next: &str) -> &str {
    let is_ours = next.starts_with('/')
        && !next[1..].starts_with(['/', '\\'])
        && next.bytes().all(|b| b.is_ascii_graphic());
    if is_ours { next } else { "/" }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::own;

    #[rstest]
    #[case("/events?type=a%20b", "/events?type=a%20b")]
    #[case("https://elsewhere.example/", "/")]
    #[case("//elsewhere.example/", "/")]
    #[case("/\\elsewhere.example/", "/")]
    #[case("/a\r\nSet-Cookie: x", "/")]
    #[case("", "/")]
    fn nobody_is_sent_elsewhere(#[case] next: &str, #[case] expected: &str) {
        assert_eq!(own(next), expected);
    }
}
