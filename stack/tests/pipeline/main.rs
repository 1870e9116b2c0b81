//! The whole pipeline as real processes, which are killed, frozen and restarted.

mod accounts;
mod crashes;
mod crowd;
mod logs;
mod overload;
mod startup;
mod world;
