//! The ingest binary.

use std::process::ExitCode;

use ingest::{config::Config, service::Service};
use shared::{config, shutdown};

#[tokio::main]
async fn main() -> ExitCode {
    let config: Config = config::parse();
    config.process.init_logging();
    shutdown::exit_code(run(&config).await)
}

async fn run(config: &Config) -> anyhow::Result<()> {
    let service = Service::bind(config)?;
    service.run(shutdown::on_signal()?).await
}
