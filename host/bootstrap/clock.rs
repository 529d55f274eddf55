//! How long to wait, and how.

use std::time::{Duration, Instant};

/// No wait is longer.
pub(super) const DAY: Duration = Duration::from_secs(86400);

/// When a whole operation has to be done.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    begun: Instant,
    end: Instant,
}

impl Deadline {
    pub fn after(timeout: Duration) -> Self {
        let begun = Instant::now();
        Self { begun, end: begun + timeout.min(DAY) }
    }

    pub fn has_passed(&self) -> bool {
        Instant::now() >= self.end
    }

    pub fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// For people: whole milliseconds.
    pub fn waited(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

/// Rests between looks at connections, the longer the less there is to see.
#[derive(Default)]
pub(super) struct Pace {
    idle: u32,
}

impl Pace {
    pub fn rest(&mut self, has_moved: bool, deadline: &Deadline) {
        self.idle = if has_moved { 0 } else { self.idle + 1 };
        match self.idle {
            0 => {}
            1..32 => std::thread::yield_now(),
            idle => {
                let micros = u64::from(idle / 32).saturating_mul(50).min(1000);
                std::thread::sleep(Duration::from_micros(micros).min(deadline.left()));
            }
        }
        self.idle = self.idle.min(1 << 16);
    }
}
