//! Compares the documentation with the real services.

mod links;
mod metrics;
mod place;
mod queries;
mod settings;
