//! What the documentation promises, held against the real services.

mod metrics;
mod place;
mod queries;
