//! Stores the events of the `other` family.

use std::process::ExitCode;

use shared::Family;

#[tokio::main]
async fn main() -> ExitCode {
    worker::service::main(Family::Other).await
}
