//! `hookctl dead-letters` and `hookctl reconcile` with dead letters that a real worker left in a real
//! Postgres (`DATABASE_URL`).

mod acting;
mod dismissing;
mod distrusting;
mod erasing;
mod families;
mod listing;
mod locks;
mod place;
mod rebuilding;
mod reconciling;
mod replaying;
mod showing;
mod statistics;
mod swept;
mod tenants;
