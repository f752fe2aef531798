//! Whether this node's clock can be trusted with timestamps: compared with the other voters', by asking them.
//!
//! A node whose clock is further from the middle of all voters' than a timestamp may be ahead gives leadership away and
//! takes none until its clock is right again. The middle is always somebody's: never may nobody lead for this reason.
//!
//! Invariant: what may be the network's delay is never taken for the clock's.

use std::time::{Duration, Instant};

use quorate_core::shard::Input;
use quorate_shared::ids::NodeId;
use quorate_shared::limits::CLOCK_AHEAD_MS_MAX;
use quorate_shared::status::NodeKind;

use crate::driver::Clock;
use crate::housekeeping::Housekeeping;
use crate::peers::message::{Ask, Reply};

const CLOCKS_EVERY: Duration = Duration::from_secs(1);
const CLOCK_WAIT: Duration = Duration::from_millis(500);
/// So many times in a row, lest a pause of this process be taken for its clock.
const TIMES: u32 = 2;

/// How far another clock is ahead of this one at least and at most, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ahead {
    least: i64,
    most: i64,
}

impl Ahead {
    /// From when it was asked and answered here, and what it said.
    fn new(asked: u64, answered: u64, clock: u64) -> Self {
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        Self { least: signed(clock) - signed(answered), most: signed(clock) - signed(asked) }
    }
}

/// How far this clock surely is from the middle of all, this one included.
fn off(others: &[Ahead]) -> u64 {
    let middle = |of: fn(&Ahead) -> i64| {
        let mut all: Vec<i64> = others.iter().map(of).chain([0]).collect();
        all.sort_unstable();
        // Of an even number the one nearer to this clock: two voters must not both step back.
        let (low, high) = (all[(all.len() - 1) / 2], all[all.len() / 2]);
        if low.abs() < high.abs() { low } else { high }
    };
    let (least, most) = (middle(|a| a.least), middle(|a| a.most));
    if least <= 0 && most >= 0 { 0 } else { least.unsigned_abs().min(most.unsigned_abs()) }
}

impl Housekeeping {
    /// Compares clocks with the other voters, for ever.
    pub(crate) async fn watch_clock(&self) {
        let (mut times, mut told) = (0, false);
        loop {
            tokio::time::sleep(CLOCKS_EVERY).await;
            let known = self.forwarder.known();
            let voters = known.iter().filter(|n| n.kind == NodeKind::Voter && n.node != self.config.node);
            let answers = futures::future::join_all(voters.map(|n| self.ask_clock(n.node))).await;
            let off = off(&answers.into_iter().flatten().collect::<Vec<_>>());
            times = if off > CLOCK_AHEAD_MS_MAX { times + 1 } else { 0 };
            let skewed = times >= TIMES;
            if skewed != told {
                told = skewed;
                match skewed {
                    true => {
                        tracing::error!(off_ms = off, "ClockSkew: this node leads nothing until its clock is right")
                    }
                    false => tracing::info!("the clock is right again"),
                }
                self.driver.views().for_each(|view| self.driver.input(view.shard, Input::MayLead(!skewed)));
            }
            for view in self.driver.views().filter(|v| skewed && v.leader().node == Some(self.config.node)) {
                self.driver.input(view.shard, Input::Transfer { to: None });
            }
        }
    }

    async fn ask_clock(&self, node: NodeId) -> Option<Ahead> {
        let asked = Clock::wall();
        match self.peers.ask(node, Ask::Clock, Instant::now() + CLOCK_WAIT).await {
            Ok(Reply::Clock(clock)) => Some(Ahead::new(asked, Clock::wall(), clock)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_that_is_off_steps_back() {
        // Seen by the one that is two seconds behind, by the two that are right, and by one of two that differ.
        let at = |ahead: i64| Ahead { least: ahead - 5, most: ahead + 5 };
        assert_eq!(off(&[at(2_000), at(2_010)]), 1_995);
        assert_eq!(off(&[at(-2_000), at(3)]), 0);
        assert_eq!(off(&[at(2_000)]), 0);
        assert_eq!(off(&[]), 0);
    }

    #[test]
    fn a_slow_answer_proves_nothing() {
        let slow = Ahead::new(1_000, 9_000, 5_000);
        assert_eq!(off(&[slow, slow]), 0);
        assert_eq!(Ahead::new(1_000, 1_010, 4_000), Ahead { least: 2_990, most: 3_000 });
    }
}
