//! The set-up of docs/deploying.md, with a user's own passwords and webhook secret.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hookctl::delivery;
use hookctl::sample::{VENDOR, new_webhook_id};
use ingest::secrets::DEVELOPMENT_SECRET;
use tokio::time::{Instant, sleep};

use crate::compose::checklist::Checklist;
use crate::compose::console;
use crate::compose::container::Container;
use crate::compose::passwords;
use crate::compose::project::Project;

/// ingest reads the file every second, and uses content that it has seen twice.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);
const OK: Option<u16> = Some(202);
const UNAUTHORIZED: Option<u16> = Some(401);

pub(in crate::compose) async fn run(project: &Project, checklist: &mut Checklist) -> Result<()> {
    let secrets = project.folder.join("secrets");
    let file = secrets.join("webhook-secrets");
    let (first, second) = (secret(), secret());
    checklist
        .check(
            "the development secrets are published to this host only",
            refused_in_the_open(project),
        )
        .await?;
    checklist
        .check("deploy/make-secrets", make_secrets(project, &file, &first))
        .await?;
    checklist
        .check("a port that is taken is named", taken_port(project))
        .await?;
    checklist
        .check(
            "everything is healthy with passwords of its own",
            up(project),
        )
        .await?;
    let wanted = [(first.as_str(), OK), (DEVELOPMENT_SECRET, UNAUTHORIZED)];
    checklist
        .check("only the own secret is accepted", answers(project, &wanted))
        .await?;
    let rotated = rotate(project, &file, &first, &second);
    checklist
        .check("a secret is rotated without a restart", rotated)
        .await?;
    checklist
        .check(
            "the console asks for a user",
            console::asks_for_a_user(project),
        )
        .await?;
    checklist
        .check("a user is added without a restart", add_user(project))
        .await?;
    let nowhere = passwords::are_nowhere(project, &secrets);
    checklist
        .check(
            "no password is in an environment, in docker inspect or in a log",
            nowhere,
        )
        .await?;
    let doctor = ["run", "--rm", "-T", "hookctl"];
    checklist
        .check("hookctl doctor finds no problem", project.compose(&doctor))
        .await?;
    let setup = ["run", "--rm", "-T", "setup"];
    checklist
        .check("setup can run beside the services", project.compose(&setup))
        .await?;
    checklist.check("a backup is made", backup(project)).await?;
    checklist
        .check("down --volumes", project.down(&["--volumes"]))
        .await?;
    Ok(())
}

/// 24 random bytes: hexadecimal digits are valid base64 as well.
fn secret() -> String {
    format!(
        "whsec_{:016x}{:016x}",
        rand::random::<u64>(),
        rand::random::<u64>()
    )
}

async fn refused_in_the_open(project: &Project) -> Result<()> {
    let up = "PUBLIC_BIND=0.0.0.0:8080 docker compose up -d proxy >/dev/null 2>&1 && exit 1
              docker compose logs exposure-check";
    let said = project.line(up).await?;
    ensure!(
        said.contains("PUBLIC_BIND=0.0.0.0:8080 would publish"),
        "it says {said}"
    );
    let containers = project.containers().await?;
    let is_up = |container: &&Container| container.status.starts_with("Up");
    if let Some(running) = containers.iter().find(is_up) {
        bail!("{} runs", running.name);
    }
    project.down(&[]).await
}

async fn make_secrets(project: &Project, file: &Path, secret: &str) -> Result<()> {
    fs::remove_file(project.folder.join(".env")).context("there is no .env")?;
    project.line("deploy/make-secrets").await?;
    let settings = fs::read_to_string(project.folder.join(".env"))?;
    ensure!(
        settings.contains("DEVELOPMENT=false"),
        ".env is {settings:?}"
    );
    fs::write(file, format!("current={secret}\n"))?;
    let before = contents(&file.with_file_name("postgres-password"))?;
    project.line("deploy/make-secrets").await?;
    let after = contents(&file.with_file_name("postgres-password"))?;
    ensure!(before == after, "a second run has changed a password");
    Ok(())
}

fn contents(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Another program listens on the proxy's port.
async fn taken_port(project: &Project) -> Result<()> {
    let address = &project.published.webhooks;
    let neighbour = TcpListener::bind(address).context("the port is taken already")?;
    let ended = project.try_compose(&["up", "-d"]).await?;
    drop(neighbour);
    let text = ended.end();
    ensure!(ended.code != Some(0), "up succeeds");
    ensure!(
        text.contains(address) && text.contains("address already in use"),
        "up says {text}"
    );
    Ok(())
}

async fn up(project: &Project) -> Result<()> {
    project.compose(&["up", "-d"]).await?;
    project.until_healthy().await
}

/// Waits until each secret gets the expected answer.
async fn answers(project: &Project, wanted: &[(&str, Option<u16>)]) -> Result<()> {
    let url = format!("http://{}/webhooks/pleo", project.published.webhooks);
    let deadline = Instant::now() + TAKEN_WITHIN;
    loop {
        let mut wrong = Vec::new();
        for (n, (secret, status)) in wanted.iter().enumerate() {
            let answer = delivery::post(&url, secret, &new_webhook_id(), VENDOR.body).await?;
            if answer.status != *status {
                wrong.push(format!(
                    "secret {n} is answered {:?}: {}",
                    answer.status, answer.detail
                ));
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{}", wrong.join("; "));
        sleep(Duration::from_millis(500)).await;
    }
}

async fn rotate(project: &Project, file: &Path, old: &str, new: &str) -> Result<()> {
    let before = starts(project).await?;
    fs::write(file, format!("next={new}\ncurrent={old}\n"))?;
    answers(project, &[(new, OK), (old, OK)]).await?;
    fs::write(file, format!("next={new}\n"))?;
    answers(project, &[(new, OK), (old, UNAUTHORIZED)]).await?;
    ensure!(starts(project).await? == before, "ingest was restarted");
    Ok(())
}

/// With the command of docs/deploying.md.
async fn add_user(project: &Project) -> Result<()> {
    let password = format!("{:032x}", rand::random::<u128>());
    let line =
        "docker compose run --rm -T --no-deps console console user ada >> secrets/console-users";
    project
        .line(&format!("printf %s {password} | {line}"))
        .await?;
    console::shows_events(project, "ada", &password).await
}

/// When each replica of ingest was started.
async fn starts(project: &Project) -> Result<Vec<String>> {
    let mut starts = Vec::new();
    for replica in project.replicas("ingest").await? {
        let args = [
            "inspect",
            "--format",
            "{{.Id}} {{.State.StartedAt}}",
            &replica.id,
        ];
        starts.push(project.docker(&args).await?);
    }
    Ok(starts)
}

async fn backup(project: &Project) -> Result<()> {
    let dump = "docker compose exec -T postgres pg_dump -U pleo -Fc pleo | wc -c";
    let bytes: u64 = project.line(dump).await?.trim().parse()?;
    ensure!(bytes > 10_000, "the dump has {bytes} bytes");
    Ok(())
}
