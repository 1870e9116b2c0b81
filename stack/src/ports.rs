//! Free TCP ports on the loopback interface.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};

use anyhow::{Result, bail};

/// Below the range from which Linux takes ports for outgoing connections (32768 and up). Otherwise any
/// connection of another process could take a server's port while that server is being restarted.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// Ports that this process has handed out; a server may bind its port long after it was chosen.
static TAKEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A loopback address with a free port; never the same twice in one process.
///
/// # Errors
/// When no port can be found, which means that hundreds of tries failed.
pub fn free() -> Result<SocketAddr> {
    for _ in 0..500 {
        let port = rand::random_range(RANGE);
        if let Some(address) = claim(port) {
            return Ok(address);
        }
    }
    bail!(
        "no free port between {} and {} on 127.0.0.1",
        RANGE.start,
        RANGE.end
    )
}

/// The loopback address with this port if it is free, otherwise the same as [`free`].
///
/// # Errors
/// As [`free`].
pub fn prefer(port: u16) -> Result<SocketAddr> {
    claim(port).map_or_else(free, Ok)
}

fn claim(port: u16) -> Option<SocketAddr> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let free = TcpListener::bind(address).is_ok();
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    (free && taken.insert(port)).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::{free, prefer};

    #[test]
    fn a_port_is_handed_out_once() {
        let first = free().expect("there are free ports");
        let second = prefer(first.port()).expect("there are free ports");
        assert_ne!(first, second);
    }
}
