//! Who is signed in, in memory: a restart signs everybody out.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

/// A session ends when nothing was asked for so long, and after so long in any case.
const IDLE: Duration = Duration::from_secs(3_600);
const LIFETIME: Duration = Duration::from_secs(12 * 3_600);

/// More would be a leak. The one that was used longest ago gives way.
const MOST: usize = 1_000;

type Hash = [u8; 32];

struct Session {
    name: String,
    /// The hash of the password that the user signed in with.
    password: String,
    began: Instant,
    seen: Instant,
}

/// The sessions by the hash of their token, so that no token can be read from memory.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<Hash, Session>>);

impl Sessions {
    /// Signs a user in, whose password has this hash, and gives the token.
    pub(super) fn begin(&self, name: &str, password: &str, now: Instant) -> String {
        let token = hex::encode(rand::random::<[u8; 32]>());
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.is_live(now));
        if sessions.len() >= MOST
            && let Some(oldest) = sessions.iter().min_by_key(|(_, session)| session.seen)
        {
            let oldest = *oldest.0;
            sessions.remove(&oldest);
        }
        let session = Session {
            name: name.to_owned(),
            password: password.to_owned(),
            began: now,
            seen: now,
        };
        sessions.insert(hash(&token), session);
        token
    }

    /// Whose token it is, and the hash of the password then. Asking keeps the session from ending.
    pub(super) fn user(&self, token: &str, now: Instant) -> Option<(String, String)> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get_mut(&hash(token))?;
        if !session.is_live(now) {
            return None;
        }
        session.seen = now;
        Some((session.name.clone(), session.password.clone()))
    }

    /// Signs out.
    pub(super) fn end(&self, token: &str) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(&hash(token));
    }
}

impl Session {
    fn is_live(&self, now: Instant) -> bool {
        now - self.seen < IDLE && now - self.began < LIFETIME
    }
}

fn hash(token: &str) -> Hash {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_when_idle_and_in_any_case() {
        let (sessions, began) = (Sessions::default(), Instant::now());
        let hour = Duration::from_secs(3_600);
        let token = sessions.begin("ada", "hash", began);
        let step = hour - Duration::from_secs(1);
        for n in 1..=12 {
            let user = sessions.user(&token, began + n * step);
            assert_eq!(user, Some(("ada".to_owned(), "hash".to_owned())));
        }
        let user = sessions.user(&token, began + 13 * step);
        assert_eq!(user, None, "after twelve hours");
        let token = sessions.begin("ada", "hash", began);
        let user = sessions.user(&token, began + hour);
        assert_eq!(user, None, "after an hour without a request");
    }

    #[test]
    fn a_session_that_ended_is_no_more_and_there_is_an_end_to_their_number() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let first = sessions.begin("ada", "hash", now);
        sessions.end(&first);
        assert_eq!(sessions.user(&first, now), None);
        let first = sessions.begin("ada", "hash", now);
        for _ in 0..MOST {
            sessions.begin("bob", "hash", now + Duration::from_secs(1));
        }
        assert_eq!(sessions.user(&first, now), None);
        assert_eq!(sessions.0.lock().expect("no panic").len(), MOST);
    }
}
