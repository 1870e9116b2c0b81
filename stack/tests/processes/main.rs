//! The stack's own promises, on real processes: what is killed comes back with its data, and
//! nothing is left behind. Needs Debian's packages; starts its own servers.

mod arguments;
mod confinement;
mod haproxy;
mod inside;
mod postgres;
mod process;
mod proxy;
mod rabbitmq;
