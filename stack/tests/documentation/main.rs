//! Compares the documentation with the real services.

mod links;
mod metrics;
mod pipeline;
mod queries;
mod settings;
