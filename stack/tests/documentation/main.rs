//! What the documentation promises, held against the real services.

mod links;
mod metrics;
mod place;
mod queries;
mod settings;
