//! Who may look and who may act: everybody on this machine, users who have signed in, or whom a proxy has signed in.

pub mod guard;
mod limit;
mod sessions;
pub mod sign_in;
mod trusted_proxy;
pub mod users;

use std::{fmt, sync::Arc};

use anyhow::bail;

use self::{limit::Limit, sessions::Sessions, users::Users};

pub use self::trusted_proxy::TrustedProxy;

/// Somebody who is signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// As in the users file, or as the proxy says.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Look.
    Viewer,
    /// Look, and change dead letters.
    Operator,
}

impl Role {
    /// Reads a role's name.
    ///
    /// # Errors
    /// With the names that there are.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "operator" => Ok(Self::Operator),
            _ => bail!("the role must be viewer or operator"),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        })
    }
}

/// Who may look.
#[derive(Clone)]
pub enum Access {
    /// Everybody who reaches the port, which only this machine does, with this role.
    Loopback(Role),
    /// Users who have signed in.
    SignedIn(Arc<SignIns>),
    /// Users of a proxy that signs them in.
    Proxy(Arc<TrustedProxy>),
}

/// Users, and those of them who are signed in.
pub struct SignIns {
    users: Arc<Users>,
    sessions: Sessions,
    limit: Limit,
    /// Whether browsers send the cookie only over HTTPS.
    secure: bool,
}

impl Access {
    /// Users of a file sign in.
    pub fn signed_in(users: Arc<Users>, secure: bool) -> Self {
        Self::SignedIn(Arc::new(SignIns {
            users,
            sessions: Sessions::default(),
            limit: Limit::default(),
            secure,
        }))
    }
}
