//! With bad settings the service does not start: it prints one line with the reason and shows no
//! secret.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use ingest::secrets::DEVELOPMENT_SECRET;
use rstest::rstest;

use crate::{app::SOON, webhook::SECRET};

/// Starts the binary with good settings and these changes, and expects it to fail. Returns its
/// stderr.
fn refused(changes: &[(&str, &str)]) -> String {
    let secrets = format!("current={SECRET}");
    let good = [
        ("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/d"),
        ("AMQP_URL", "amqp://u:hunter2@127.0.0.1:1/%2f"),
        ("WEBHOOK_SECRETS", secrets.as_str()),
        ("LISTEN", "127.0.0.1:0"),
        ("PRIVATE_LISTEN", "127.0.0.1:0"),
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingest"));
    command.env_clear().envs(good).envs(changes.iter().copied());
    let output = ended(command);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).expect("text")
}

/// Waits for the command to end.
fn ended(mut command: Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let deadline = Instant::now() + SOON;
    while child.try_wait().expect("a state").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("it is ours");
            panic!("it does not end: {command:?}");
        }
        sleep(Duration::from_millis(10));
    }
    child.wait_with_output().expect("output")
}

#[rstest]
#[case("DATABASE_URL", "mysql://u:hunter2@h/d", "DATABASE_URL")]
#[case("AMQP_URL", "amqp://u:hunter2@h:port/x", "AMQP_URL")]
#[case("AMQP_URL", "http://u:hunter2@h/", "AMQP_URL")]
#[case("DATABASE_PASSWORD_FILE", "/nowhere", "DATABASE_URL has a password")]
#[case("AMQP_PASSWORD_FILE", "/nowhere", "AMQP_URL has a password")]
#[case("AMQP_CA_FILE", "/nowhere", "AMQP_URL is not amqps://")]
#[case("AMQP_CERT_FILE", "/nowhere", "AMQP_KEY_FILE is not")]
#[case(
    "DATABASE_URL",
    "postgres://u:hunter2@h/d?sslrootcert=/nowhere",
    "sslrootcert of DATABASE_URL: cannot read /nowhere"
)]
#[case(
    "DATABASE_URL",
    "postgres://u:hunter2@h/d?sslcert=/nowhere",
    "no sslkey"
)]
#[case("WEBHOOK_SECRETS", "", "no secret")]
#[case("WEBHOOK_SECRETS", "current=whsec_c2hvcnQ=", "24 to 64")]
#[case("WEBHOOK_SECRETS", "current=whsec_####", "base64")]
#[case("WEBHOOK_SECRETS", &SECRET["whsec_".len()..], "name=whsec_")]
#[case("WEBHOOK_SECRETS", &format!("{SECRET},{SECRET}"), "`default` is there twice")]
#[case("WEBHOOK_SECRETS", &format!("known={DEVELOPMENT_SECRET}"), "DEVELOPMENT=true")]
#[case("WEBHOOK_SECRETS_FILE", "/nowhere", "cannot be used with")]
#[case("DEVELOPMENT", "perhaps", "--development")]
#[case("LISTEN", "here", "--listen")]
#[case("BODY_LIMIT", "0", "--body-limit")]
#[case("BODY_LIMIT", "-1", "--body-limit")]
#[case("IN_FLIGHT_LIMIT", "many", "--in-flight-limit")]
#[case("ACCEPT_DEADLINE", "0s", "--accept-deadline")]
#[case("ACCEPT_DEADLINE", "1h", "from 1s to 14s")]
#[case("TIMESTAMP_TOLERANCE", "300", "write it as")]
#[case("TIMESTAMP_TOLERANCE", "100y", "from 1s to 1d")]
#[case("RECEIPT_TRUST", "100y", "from 1s to 1d")]
#[case("KEEP_ALIVE", "100ms", "from 1s to 2h")]
#[case("KEEP_ALIVE", "1d", "from 1s to 2h")]
#[case("SHUTDOWN_DEADLINE", "1d", "from 1s to 1h")]
#[case("LOG", "nonsense", "`nonsense` is no level")]
#[case("TOPOLOGY_PREFIX", "a b", "--topology-prefix")]
#[case("LOG", "loud=very", "--log")]
fn a_bad_setting_is_named(#[case] variable: &str, #[case] value: &str, #[case] expected: &str) {
    let error = refused(&[(variable, value)]);
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(
        error.starts_with("error: ") && error.contains(expected),
        "{error}"
    );
    for secret in ["hunter2", "c2hvcnQ", "MfKQ9", "cGxlby13"] {
        assert!(!error.contains(secret), "{error}");
    }
}

#[rstest]
#[case("DATABASE_URL", "postgres://u@127.0.0.1:1/d", "DATABASE_PASSWORD_FILE")]
#[case("AMQP_URL", "amqp://u@127.0.0.1:1/%2f", "AMQP_PASSWORD_FILE")]
fn a_password_file_that_is_not_there_is_named(
    #[case] address: &str,
    #[case] value: &str,
    #[case] setting: &str,
) {
    let error = refused(&[(address, value), (setting, "/nowhere")]);
    assert_eq!(error.lines().count(), 1, "{error}");
    let expected = format!("{setting}: cannot read /nowhere");
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn a_ca_file_that_is_not_there_is_named() {
    let error = refused(&[
        ("AMQP_URL", "amqps://u:hunter2@127.0.0.1:1/%2f"),
        ("AMQP_CA_FILE", "/nowhere"),
    ]);
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(
        error.contains("AMQP_CA_FILE: cannot read /nowhere"),
        "{error}"
    );
}

/// Reading a pipe would wait for a writer, and reading a device may never end.
#[rstest]
#[case::pipe("DATABASE_PASSWORD_FILE", false)]
#[case::pipe("AMQP_PASSWORD_FILE", false)]
#[case::pipe("AMQP_CA_FILE", false)]
#[case::pipe("sslrootcert", false)]
#[case::pipe("sslcert", false)]
#[case::pipe("PGSSLROOTCERT", false)]
#[case::pipe("WEBHOOK_SECRETS_FILE", false)]
#[case::device("DATABASE_PASSWORD_FILE", true)]
#[case::device("AMQP_CA_FILE", true)]
#[case::device("WEBHOOK_SECRETS_FILE", true)]
fn a_file_that_is_none_is_named(#[case] setting: &str, #[case] device: bool) {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let path = if device {
        Path::new("/dev/zero")
    } else {
        &pipe
    };
    let path = path.to_str().expect("text");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingest"));
    command.env_clear().envs([
        ("DATABASE_URL", "postgres://u@127.0.0.1:1/d"),
        ("AMQP_URL", "amqps://u@127.0.0.1:1/%2f"),
        ("LISTEN", "127.0.0.1:0"),
        ("PRIVATE_LISTEN", "127.0.0.1:0"),
    ]);
    let parameter = format!("postgres://u@127.0.0.1:1/d?sslkey=/nowhere&{setting}={path}");
    match setting {
        "sslrootcert" | "sslcert" => command.env("DATABASE_URL", parameter),
        other => command.env(other, path),
    };
    if setting != "WEBHOOK_SECRETS_FILE" {
        command.env("WEBHOOK_SECRETS", SECRET);
    }
    let output = ended(command);
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(error.lines().count(), 1, "{error}");
    for expected in [setting, path, "not a regular file"] {
        assert!(error.contains(expected), "{error}");
    }
}

/// Container engines mount secrets as links.
#[test]
fn a_link_to_a_file_is_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    std::fs::write(&file, "two\nlines").expect("a file");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    let link = link.to_str().expect("text");
    let error = refused(&[
        ("AMQP_URL", "amqp://u@127.0.0.1:1/%2f"),
        ("AMQP_PASSWORD_FILE", link),
    ]);
    assert!(error.contains("on one line"), "{error}");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for variable in ["LISTEN", "PRIVATE_LISTEN"] {
        let output = refused(&[(variable, &address), ("LOG", "off")]);
        assert_eq!(output.lines().count(), 1, "{output}");
        assert!(
            output.contains(&address) && output.contains(variable),
            "{output}"
        );
    }
}
