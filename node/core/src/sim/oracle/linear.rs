//! Registers are linearizable: the search of Wing and Gong, with Lowe's memory of what was tried.
//!
//! The history of each register is searched for an order of its operations that a register could have had and that
//! respects who ended before whom began. An operation of unknown outcome may happen at any time after it began, or never.
//! A compare-and-set that was refused because of what is there says that the register did not have the value.

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::history::{Did, Ended, History, Operation, What};
use crate::sim::reads::{Level, Query};

/// A search that goes on for longer is given up: the history is not judged.
const STEPS_MAX: usize = 400_000;

type Value = Option<String>;

enum Step {
    Read(Value),
    Cas(Value, Value),
    /// The value was another one.
    Not(Value),
}

struct Op {
    step: Step,
    begun: u64,
    /// `u64::MAX`: it need not have happened.
    until: u64,
}

fn steps(operation: &Operation, out: &mut BTreeMap<String, Vec<Op>>) {
    let Operation { begun, .. } = *operation;
    let until = operation.until();
    match (&operation.what, &operation.end) {
        (What::Write(Did::Cas { register, old, new }), end) => {
            let step = match end {
                Ended::Refused(true) => Step::Not(old.clone()),
                Ended::Refused(false) => return,
                _ => Step::Cas(old.clone(), Some(new.clone())),
            };
            out.entry(register.clone()).or_default().push(Op { step, begun, until });
        }
        (What::Read(Level::Linearizable, Query::Registers(names)), Ended::Read(read)) => {
            for (name, value) in names.iter().zip(&read.registers) {
                let step = Step::Read(value.clone());
                out.entry(name.clone()).or_default().push(Op { step, begun, until });
            }
        }
        _ => {}
    }
}

/// See the module.
pub fn check(history: &History) -> Result<(), String> {
    let mut registers = BTreeMap::new();
    history.operations.iter().for_each(|operation| steps(operation, &mut registers));
    for (name, ops) in registers {
        if linearizable(&ops) == Some(false) {
            return Err(format!("the {} operations on register {name} are not linearizable", ops.len()));
        }
    }
    Ok(())
}

/// A call or a return, in order of time.
#[derive(Clone, Copy)]
struct Event {
    op: usize,
    call: bool,
}

/// `None`: given up.
fn linearizable(ops: &[Op]) -> Option<bool> {
    let mut events: Vec<(u64, bool, Event)> = Vec::new();
    for (op, o) in ops.iter().enumerate() {
        events.push((o.begun, false, Event { op, call: true }));
        if o.until < u64::MAX {
            events.push((o.until, true, Event { op, call: false }));
        }
    }
    // At the same moment calls come first: what touches may overlap.
    events.sort_by_key(|(at, is_return, e)| (*at, *is_return, e.op));
    let n = events.len();
    // A doubly linked list over 1..=n; 0 is its head, n + 1 its end.
    let mut next: Vec<usize> = (1..=n + 1).chain([n + 1]).collect();
    let mut before: Vec<usize> = (0..=n + 1).map(|i: usize| i.saturating_sub(1)).collect();
    let event = |at: usize| events[at - 1].2;
    let mut return_at = vec![None; ops.len()];
    for at in 1..=n {
        if !event(at).call {
            return_at[event(at).op] = Some(at);
        }
    }
    let mut definite = ops.iter().filter(|o| o.until < u64::MAX).count();
    let mut done = vec![0u64; ops.len().div_ceil(64)];
    let mut value: &Value = &None;
    let mut tried: BTreeSet<(Vec<u64>, &Value)> = BTreeSet::new();
    let mut stack: Vec<(usize, &Value)> = Vec::new();
    let mut at = next[0];
    for _ in 0..STEPS_MAX {
        if definite == 0 {
            return Some(true);
        }
        if at <= n && event(at).call {
            let op = event(at).op;
            let after = match &ops[op].step {
                Step::Read(seen) => (seen == value).then_some(value),
                Step::Not(old) => (old != value).then_some(value),
                Step::Cas(old, new) => (old == value).then_some(new),
            };
            if let Some(after) = after {
                done[op / 64] |= 1 << (op % 64);
                if tried.insert((done.clone(), after)) {
                    stack.push((at, value));
                    value = after;
                    definite -= usize::from(ops[op].until < u64::MAX);
                    for gone in [Some(at), return_at[op]].into_iter().flatten() {
                        next[before[gone]] = next[gone];
                        before[next[gone]] = before[gone];
                    }
                    at = next[0];
                    continue;
                }
                done[op / 64] &= !(1 << (op % 64));
            }
            at = next[at];
            continue;
        }
        // Somebody must have happened before this return, or before the end: take the last choice back.
        let Some((taken, old)) = stack.pop() else { return Some(false) };
        let op = event(taken).op;
        value = old;
        done[op / 64] &= !(1 << (op % 64));
        definite += usize::from(ops[op].until < u64::MAX);
        for back in [return_at[op], Some(taken)].into_iter().flatten() {
            next[before[back]] = back;
            before[next[back]] = back;
        }
        at = next[taken];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str, begun: u64, until: u64) -> Op {
        Op { step: Step::Read((value != "-").then(|| value.into())), begun, until }
    }

    fn cas(old: &str, new: &str, begun: u64, until: u64) -> Op {
        Op { step: Step::Cas((old != "-").then(|| old.into()), Some(new.into())), begun, until }
    }

    #[test]
    fn histories() {
        let never = u64::MAX;
        assert_eq!(linearizable(&[cas("-", "a", 0, 5), read("a", 6, 7)]), Some(true));
        assert_eq!(linearizable(&[cas("-", "a", 0, 5), read("-", 6, 7)]), Some(false));
        // Overlapping ones may be in either order, but not in both.
        assert_eq!(linearizable(&[cas("-", "a", 0, 9), read("-", 1, 7), read("a", 2, 6)]), Some(true));
        assert_eq!(linearizable(&[cas("-", "a", 0, 9), read("a", 1, 3), read("-", 4, 6)]), Some(false));
        // An unknown one may happen late, once, or never.
        assert_eq!(linearizable(&[cas("-", "a", 0, never), read("-", 5, 6), read("a", 7, 8)]), Some(true));
        assert_eq!(linearizable(&[cas("-", "a", 0, never), read("-", 5, 6)]), Some(true));
        assert_eq!(linearizable(&[cas("-", "a", 0, never), read("a", 5, 6), read("-", 7, 8)]), Some(false));
        // A refusal that nothing explains.
        let refused = Op { step: Step::Not(Some("a".into())), begun: 6, until: 7 };
        assert_eq!(linearizable(&[cas("-", "a", 0, 5), refused]), Some(false));
    }
}
