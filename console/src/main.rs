//! The console's binary.

use std::{env, io::IsTerminal, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use shared::{config, shutdown};
use web_console::{
    access::users,
    config::{Config, UserArgs},
    service::Service,
};

#[tokio::main]
async fn main() -> ExitCode {
    if env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == "user")
    {
        return shutdown::exit_code(print_user());
    }
    let config: Config = config::parse();
    config.process.init_logging();
    shutdown::exit_code(run(&config).await)
}

async fn run(config: &Config) -> anyhow::Result<()> {
    let service = Service::bind(config)?;
    service.run(shutdown::on_signal()?).await
}

/// `console user NAME`. From a script the password is the first line of standard input.
#[expect(clippy::print_stdout, reason = "the line is what was asked for")]
fn print_user() -> anyhow::Result<()> {
    let arguments = UserArgs::parse_from(env::args_os().skip(1));
    let password = if std::io::stdin().is_terminal() {
        rpassword::prompt_password("Password: ")
    } else {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    };
    let password = password.context("cannot read a password")?;
    println!(
        "{}",
        users::line(
            &arguments.name,
            arguments.role,
            password.trim_end_matches(['\r', '\n'])
        )?
    );
    Ok(())
}
