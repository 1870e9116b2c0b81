//! Stores the events of the `vendor` family.

use std::process::ExitCode;

use shared::Family;

#[tokio::main]
async fn main() -> ExitCode {
    worker::service::main(Family::Vendor).await
}
