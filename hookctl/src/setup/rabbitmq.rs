//! Users, their limits and their permissions in RabbitMQ.

use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    account::Permissions,
    management::{Management, encode},
};

/// A replica has one connection. While RabbitMQ has not noticed that a connection is broken, the replica
/// opens another one.
pub(super) const CONNECTIONS: u16 = 4;

/// Creates a user with only this tag, or sets its tags. Sets its password, its limit of connections and its
/// permissions on the virtual host.
pub(super) async fn apply(
    management: &Management,
    vhost: &str,
    name: &str,
    password: &SecretString,
    tag: &str,
    connections: u32,
    permissions: &Permissions,
) -> anyhow::Result<()> {
    let user = encode(name);
    let value = json!({
        "password_hash": hash(password, rand::random()),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tag,
    });
    management
        .put(&format!("/api/users/{user}"), value)
        .await
        .with_context(|| format!("cannot make the user {name}"))?;
    let limit = format!("/api/user-limits/{user}/max-connections");
    management
        .put(&limit, json!({ "value": connections }))
        .await
        .with_context(|| format!("cannot limit the connections of {name}"))?;
    let value = json!({
        "configure": permissions.configure,
        "write": permissions.write,
        "read": permissions.read,
    });
    management
        .put(&format!("/api/permissions/{}/{user}", encode(vhost)), value)
        .await
        .with_context(|| format!("cannot set the permissions of {name}"))
}

/// A password as RabbitMQ stores it: a salt, and the SHA-256 of both.
fn hash(password: &SecretString, salt: [u8; 4]) -> String {
    let digest = Sha256::new()
        .chain_update(salt)
        .chain_update(password.expose_secret())
        .finalize();
    BASE64_STANDARD.encode([&salt[..], &digest[..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_hashed_as_rabbitmq_documents_it() {
        let hashed = hash(&SecretString::from("test12"), [0x90, 0x8D, 0xC6, 0x0A]);
        assert_eq!(hashed, "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR");
    }
}
