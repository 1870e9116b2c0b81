//! The whole pipeline as real processes, which are killed, frozen and restarted.

mod accounts;
mod acting;
mod cluster;
mod crashes;
mod crowd;
mod development;
mod logs;
mod overload;
mod pgbouncer;
mod pipeline;
mod policies;
mod readiness;
mod restore;
mod schema;
mod startup;
mod subscribing;
