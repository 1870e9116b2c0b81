//! The resources that processes use, read from `/proc`.

use std::time::Duration;

use super::Process;
use super::tree;

/// The value on Linux on all common architectures: `sysconf(_SC_CLK_TCK)`.
const TICKS_A_SECOND: f64 = 100.0;

impl Process {
    /// Processor time of the child and its descendants, including those that have ended and were reaped.
    pub fn processor_time(&self) -> Duration {
        let ticks: u64 = tree::family(self.pid())
            .into_iter()
            .filter_map(tree::stat)
            .map(|stat| stat.ticks)
            .sum();
        Duration::from_secs_f64(ticks as f64 / TICKS_A_SECOND)
    }

    /// The child's peak resident size, `VmHWM` of `/proc/<pid>/status`, in MiB; `None` if it has
    /// ended.
    pub fn peak_memory_mib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib / 1_024)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Spec;
    use super::*;

    #[test]
    fn work_shows_as_processor_time_and_memory() {
        let busy = Process::spawn(Spec::new("busy", "sh").args(["-c", "while :; do :; done"]))
            .expect("there is a shell");
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while busy.processor_time() < Duration::from_millis(50) {
            assert!(
                std::time::Instant::now() < end,
                "it takes no processor time"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(busy.peak_memory_mib().is_some());
    }
}
