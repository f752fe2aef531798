//! Which action a node keeps the cluster reserved for.
//!
//! A reservation ends by itself: the node that runs the action may die, and must not block the cluster for ever.
//!
//! Invariant: two actions never hold a majority at the same time, as long as each renews in time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use quorate_shared::ids::NodeId;

/// How long a reservation holds without being renewed.
pub const HOLD: Duration = Duration::from_secs(15);

#[derive(Debug)]
struct Held {
    action: u64,
    what: String,
    by: NodeId,
    until: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Reservations(Mutex<Option<Held>>);

impl Reservations {
    /// Reserves, or renews; or says what it is reserved for.
    pub fn reserve(&self, action: u64, what: &str, by: NodeId) -> Result<(), String> {
        self.reserve_at(Instant::now(), action, what, by)
    }

    fn reserve_at(&self, now: Instant, action: u64, what: &str, by: NodeId) -> Result<(), String> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some(other) if other.action != action && other.until > now => Err(format!(
                "ActionRunning: `{}`, asked for at {}, has not ended; one change at a time",
                other.what, other.by
            )),
            _ => {
                *held = Some(Held { action, what: what.to_owned(), by, until: now + HOLD });
                Ok(())
            }
        }
    }

    /// The action has ended.
    pub fn release(&self, action: u64) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.take_if(|held| held.action == action);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_not_for_ever() {
        let (reservations, now) = (Reservations::default(), Instant::now());
        let by = NodeId::new(1);
        assert!(reservations.reserve_at(now, 1, "switchover", by).is_ok());
        assert!(reservations.reserve_at(now, 1, "switchover", by).is_ok(), "renewed");
        let refused = reservations.reserve_at(now, 2, "remove node", by).unwrap_err();
        assert!(refused.starts_with("ActionRunning: `switchover`, asked for at n1"), "{refused}");
        reservations.release(2);
        assert!(reservations.reserve_at(now, 2, "remove node", by).is_err(), "only its own end releases it");
        reservations.release(1);
        assert!(reservations.reserve_at(now, 2, "remove node", by).is_ok());
        assert!(reservations.reserve_at(now + HOLD, 3, "switchover", by).is_ok(), "its runner has died");
    }
}
