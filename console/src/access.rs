//! Who may look: everybody on this machine, users who have signed in, or whom a proxy has signed in.

pub mod guard;
mod limit;
mod sessions;
pub mod sign_in;
mod trusted_proxy;
pub mod users;

use std::sync::Arc;

use self::{limit::Limit, sessions::Sessions, users::Users};

pub use self::trusted_proxy::TrustedProxy;

/// Somebody who is signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// As in the users file, or as the proxy says.
    pub name: String,
}

/// Who may look.
#[derive(Clone)]
pub enum Access {
    /// Everybody who reaches the port, which only this machine does.
    Loopback,
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
