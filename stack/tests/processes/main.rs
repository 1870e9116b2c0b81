//! The guarantees of the stack, with real processes: killed servers come back with their data, and nothing
//! is left behind. Needs Debian's packages; starts its own servers.

mod arguments;
mod confinement;
mod haproxy;
mod haproxy_limits;
mod inside;
mod postgres;
mod process;
mod proxy;
mod rabbitmq;
