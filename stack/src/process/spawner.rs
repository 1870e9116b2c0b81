//! One thread that starts every child.
//!
//! The kernel sends the parent-death signal when the *thread* that started the child ends. Worker threads
//! of a runtime and test threads end long before the process, so children that they started would be killed
//! at the wrong time. This thread lives as long as the process.

use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

type Reply = std::io::Result<Child>;

pub(super) fn spawn(command: Command) -> Reply {
    static SPAWNER: OnceLock<Sender<(Command, Sender<Reply>)>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = channel::<(Command, Sender<Reply>)>();
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
                if let Err(unwanted) = reply.send(command.spawn())
                    && let Ok(mut child) = unwanted.0
                {
                    drop(child.kill());
                }
            }
        });
        sender
    });
    let (reply, answer) = channel();
    spawner
        .send((command, reply))
        .expect("the spawning thread never ends");
    answer
        .recv()
        .expect("the spawning thread answers every request")
}
