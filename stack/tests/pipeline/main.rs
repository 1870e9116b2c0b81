//! The whole pipeline as real processes, which are killed, frozen and restarted.

mod accounts;
mod crashes;
mod load;
mod logs;
mod startup;
mod world;
