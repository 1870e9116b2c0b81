//! Free TCP ports on the loopback interface.

use std::collections::HashSet;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::data_folder;

/// Below the range from which Linux takes ports for outgoing connections (32768 and up). Otherwise any
/// connection of another process could take a server's port while that server is being restarted.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// Ports that this process has handed out; a server may bind its port long after it was chosen.
static TAKEN: Mutex<Option<Claims>> = Mutex::new(None);

/// A loopback address with a free port; the same user's processes never get the same one.
///
/// # Errors
/// When no port can be found, which means that hundreds of tries failed, or claims cannot be recorded.
pub fn free() -> Result<SocketAddr> {
    for _ in 0..500 {
        let port = rand::random_range(RANGE);
        if let Some(address) = claim(port)? {
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
    claim(port)?.map_or_else(free, Ok)
}

fn claim(port: u16) -> Result<Option<SocketAddr>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let free = TcpListener::bind(address).is_ok();
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let claims = match &mut *taken {
        Some(claims) => claims,
        none => none.insert(Claims::open()?),
    };
    Ok((free && claims.add(port)).then_some(address))
}

/// Ports that are claimed until the process ends.
#[derive(Debug)]
struct Claims {
    /// Among the threads of this process.
    own: HashSet<u16>,
    /// Among processes: each locks the byte at the port's number.
    file: File,
}

impl Claims {
    fn open() -> Result<Self> {
        let folder = data_folder::parent()?;
        data_folder::create(&folder)?;
        let path = folder.join("ports.lock");
        let file =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            own: HashSet::new(),
            file,
        })
    }

    /// `false` if the port has been claimed before.
    fn add(&mut self, port: u16) -> bool {
        let byte = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: port.into(),
            l_len: 1,
            l_pid: 0,
        };
        // The lock belongs to the open file, so it conflicts only with those of other processes.
        self.own.insert(port) && fcntl(&self.file, FcntlArg::F_OFD_SETLK(&byte)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{Claims, free, prefer};

    #[test]
    fn a_port_is_handed_out_once() {
        let first = free().expect("there are free ports");
        let second = prefer(first.port()).expect("there are free ports");
        assert_ne!(first, second);
    }

    #[test]
    fn a_port_that_another_process_has_claimed_is_not_free() {
        // What another process does: it opens the file for itself.
        let mut other = Claims::open().expect("claims can be recorded");
        let port = (20_000..32_000)
            .find(|port| other.add(*port))
            .expect("there are free ports");
        let address = prefer(port).expect("there are free ports");
        assert_ne!(address.port(), port);
    }
}
