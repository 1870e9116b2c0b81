//! What the console shows to its users, through its published port.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hookctl::sample::VENDOR;
use reqwest::{Client, redirect::Policy};
use tokio::time::{Instant, sleep};

use super::project::Project;

/// The console reads the users file every five seconds. After five failures a name has to wait for a
/// minute.
const SIGNED_IN_WITHIN: Duration = Duration::from_secs(120);
const TRY_EVERY: Duration = Duration::from_secs(7);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A user signs in and finds an event of the demo's vendor.
///
/// # Errors
/// When one of the two fails.
pub(super) async fn shows_events(project: &Project, name: &str, password: &str) -> Result<()> {
    let cookie = sign_in(project, name, password).await?;
    let url = format!(
        "http://{}/events?type={}",
        project.published.console, VENDOR.event_type
    );
    let page = client()?.get(&url).header("cookie", cookie).send().await?;
    let (status, page) = (page.status(), page.text().await?);
    ensure!(status == 200, "{url} is answered {status}");
    ensure!(page.contains("/event?id="), "there is no event on {url}");
    Ok(())
}

/// As long as there is no user, the sign-in page says how to add one.
///
/// # Errors
/// When it does not.
pub(super) async fn asks_for_a_user(project: &Project) -> Result<()> {
    let url = format!("http://{}/", project.published.console);
    let page = Client::builder().timeout(ANSWER_WITHIN).build()?;
    let page = page.get(&url).send().await?.text().await?;
    ensure!(page.contains("There is no user yet"), "it shows {page}");
    Ok(())
}

/// Waits until the sign-in is accepted, and returns the cookie.
async fn sign_in(project: &Project, name: &str, password: &str) -> Result<String> {
    let url = format!("http://{}/sign-in", project.published.console);
    let deadline = Instant::now() + SIGNED_IN_WITHIN;
    loop {
        let answer = client()?
            .post(&url)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("name={name}&password={password}&next=/events"))
            .send()
            .await?;
        if let Some(cookie) = answer.headers().get("set-cookie") {
            let cookie = cookie.to_str()?.split(';').next();
            return Ok(cookie.context("an empty cookie")?.to_owned());
        }
        if Instant::now() > deadline {
            bail!("{name} cannot sign in: {}", answer.status());
        }
        sleep(TRY_EVERY).await;
    }
}

fn client() -> Result<Client> {
    let client = Client::builder().timeout(ANSWER_WITHIN);
    Ok(client.redirect(Policy::none()).build()?)
}
