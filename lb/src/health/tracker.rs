//! Derives a backend's health from consecutive probe results, without flapping.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not probed yet: used only if no backend is healthy.
    Unknown,
    Healthy,
    Unhealthy,
}

impl Health {
    /// Its name in the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Tracker {
    health: Health,
    /// Consecutive results that contradict the current state.
    against: u32,
}

impl Tracker {
    pub(crate) fn new(health: Health) -> Self {
        Self { health, against: 0 }
    }

    pub(crate) fn health(&self) -> Health {
        self.health
    }

    /// Takes a probe's result. Returns the new health if it has changed. The first probe decides at once; after that
    /// `rise` consecutive successes or `fall` consecutive failures are needed.
    pub(crate) fn observe(&mut self, succeeded: bool, rise: u32, fall: u32) -> Option<Health> {
        let found = if succeeded { Health::Healthy } else { Health::Unhealthy };
        if found == self.health {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = match self.health {
            Health::Unknown => 1,
            Health::Healthy => fall,
            Health::Unhealthy => rise,
        };
        if self.against < needed {
            return None;
        }
        *self = Self::new(found);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: Health, results: &str, rise: u32, fall: u32) -> Health {
        let mut tracker = Tracker::new(start);
        for result in results.chars() {
            tracker.observe(result == '+', rise, fall);
        }
        tracker.health()
    }

    #[test]
    fn the_first_probe_decides_what_was_unknown() {
        assert_eq!(run(Health::Unknown, "+", 5, 5), Health::Healthy);
        assert_eq!(run(Health::Unknown, "-", 5, 5), Health::Unhealthy);
    }

    #[test]
    fn health_changes_only_after_consecutive_results() {
        assert_eq!(run(Health::Healthy, "--+--", 2, 3), Health::Healthy);
        assert_eq!(run(Health::Healthy, "--+---", 2, 3), Health::Unhealthy);
        assert_eq!(run(Health::Unhealthy, "+-+-", 2, 3), Health::Unhealthy);
        assert_eq!(run(Health::Unhealthy, "-++", 2, 3), Health::Healthy);
    }

    #[test]
    fn is_named_as_it_is_serialized() {
        for health in [Health::Unknown, Health::Healthy, Health::Unhealthy] {
            assert_eq!(serde_json::to_string(&health).expect("a word"), format!("{:?}", health.as_str()));
        }
    }

    #[test]
    fn reports_a_change_once() {
        let mut tracker = Tracker::new(Health::Healthy);
        assert_eq!(tracker.observe(false, 1, 1), Some(Health::Unhealthy));
        assert_eq!(tracker.observe(false, 1, 1), None);
    }
}
