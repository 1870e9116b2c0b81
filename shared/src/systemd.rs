//! What systemd is told where it runs the service (`Type=notify`): that it has started, that it
//! stops, and that it is alive. Elsewhere nothing happens.

use sd_notify::NotifyState;
use tracing::warn;

/// The service has bound its ports and begun its work. It may still wait for its stores, which
/// `/readyz` tells.
pub fn started() {
    tell(&[NotifyState::Ready]);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        // A runtime that is stuck does not get to this, and systemd restarts the service.
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(limit / 3);
            loop {
                ticks.tick().await;
                tell(&[NotifyState::Watchdog]);
            }
        });
    }
}

/// The service finishes what it has in hand, and ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot tell systemd how the service fares");
    }
}
