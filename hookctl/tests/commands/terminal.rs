//! What a person meets: slips on the command line, a narrow terminal, a store that is away.

use std::process::Stdio;

use sqlx::PgPool;
use tokio::process::Command;

use crate::place::{Ended, Place};

#[tokio::test]
async fn numbers_and_durations_have_limits() {
    for arguments in [
        &["send", "--count", "0"][..],
        &["send", "--count", "4000000000"],
        &["send", "--retry", "100000"],
        &["load", "--count", "0"],
        &["load", "--duration", "0s"],
        &["load", "--duration", "1000years"],
        &["load", "--rate", "0"],
        &["load", "--duplicates", "2"],
        &["load", "--connections", "0"],
        &["tail", "-n", "4000000000"],
        &["tail", "--since", "1000years"],
        &["doctor", "--overdue", "0s"],
        &["doctor", "--overdue", "1000years"],
        &["reconcile", "--limit", "4000000000"],
        &["reconcile", "--missing-after", "1000years"],
        &["rebuild", "--rate", "0"],
        &["rebuild", "--family", "other"],
        &["rebuild", "--after", "msg_1"],
        &["dead-letters", "list", "--limit", "0"],
        &["dead-letters", "list", "--older-than", "1000years"],
        &["dead-letters", "replay", "--rate", "0"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_hookctl"))
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")
            .env("AMQP_URL", "amqp://127.0.0.1:1")
            .env(
                "WEBHOOK_SECRETS",
                "current=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            )
            .output()
            .await
            .expect("hookctl runs");
        let ended = Ended::new(output);
        assert_eq!(ended.code, 2, "{arguments:?}: {ended:?}");
        assert!(ended.err.starts_with("error: "), "{arguments:?}: {ended:?}");
    }
}

#[tokio::test]
async fn an_error_is_said_once() {
    for arguments in [&["tail"][..], &["dead-letters", "list"], &["rebuild"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_hookctl"))
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")
            .output()
            .await
            .expect("hookctl runs");
        let ended = Ended::new(output);
        assert_eq!(ended.code, 1, "{ended:?}");
        let said = ended.err.to_lowercase();
        assert_eq!(said.matches("connection refused").count(), 1, "{ended:?}");
        assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
    }
}

/// The lines of a table.
fn table(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim_end)
        .filter(|line| line.starts_with(['┌', '│', '╞', '└', '├']))
        .collect()
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_table_fits_the_terminal_and_is_whole_in_a_pipe(pool: PgPool) {
    const WIDTH: usize = 60;
    let place = Place::new(&pool).await;
    let piped = place.run(&["doctor"]).await;
    let longest = table(&piped.out)
        .iter()
        .map(|line| line.chars().count())
        .max();
    assert!(longest.is_some_and(|longest| longest > WIDTH), "{piped:?}");

    // `script` gives it a terminal.
    let hookctl = place.hookctl(&[]);
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command"])
        .arg(format!(
            "stty cols {WIDTH}; exec {} doctor",
            env!("CARGO_BIN_EXE_hookctl")
        ))
        .arg("/dev/null")
        .stdin(Stdio::null());
    for (name, value) in hookctl.as_std().get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let output = command.output().await.expect("script runs");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = table(&shown);
    assert!(lines.len() > table(&piped.out).len(), "{shown}");
    for line in lines {
        assert!(line.chars().count() <= WIDTH, "{line}\n{shown}");
    }
    place.clean_up().await;
}

/// Clap repeats what it does not take, and a mistake may be in an address with a password.
#[tokio::test]
async fn the_password_of_an_address_is_shown_nowhere() {
    for (arguments, code) in [
        (&["health", "http://weird:hunter2@127.0.0.1:1/livez"][..], 1),
        (&["health", "ftp://weird:hunter2@127.0.0.1:1/livez"], 2),
        (&["doctor", "--url", "http//weird:hunter2@127.0.0.1:1"], 2),
        (&["send", "--url", "http://weird:hunter2@"], 2),
        (&["load", "--url", "weird:hunter2@127.0.0.1:1"], 2),
    ] {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_hookctl"));
        let output = command.env_clear().args(arguments).output().await;
        let output = output.expect("hookctl runs");
        let shown = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {shown}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("weird"),
            "{shown}"
        );
        assert!(shown.contains("127.0.0.1"), "{shown}");
    }
}
