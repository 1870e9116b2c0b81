//! Stores the events of the `export-job` family.

use std::process::ExitCode;

use shared::Family;

#[tokio::main]
async fn main() -> ExitCode {
    worker::service::main(Family::ExportJob).await
}
