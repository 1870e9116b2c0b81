//! Notifications to systemd (`Type=notify`): started, stopping, and the watchdog's heartbeat.
//! Without systemd, nothing happens.

use sd_notify::NotifyState;
use tracing::warn;

/// The service has bound its ports and started its work. It may still wait for its stores;
/// `/readyz` shows that.
pub fn started() {
    tell(&[NotifyState::Ready]);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        // A stuck runtime sends no heartbeat, so systemd restarts the service.
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(limit / 3);
            loop {
                ticks.tick().await;
                tell(&[NotifyState::Watchdog]);
            }
        });
    }
}

/// The service is shutting down.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot tell systemd how the service fares");
    }
}
