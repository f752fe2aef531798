//! Reads keep what their level says: a linearizable one, and every write, comes behind all that had ended before it
//! began; `after` sees its token; `max_staleness` is no older than it may be.

use quorate_shared::ids::Index;

use crate::sim::history::{Ended, Operation, What};
use crate::sim::reads::Level;

#[derive(Default)]
pub struct Reads {
    /// The highest index of anything that had ended by then.
    floors: Vec<(u64, Index)>,
    pub reads: u64,
}

impl Reads {
    /// The highest index of what had ended before a moment.
    fn floor(&self, before: u64) -> Index {
        let at = self.floors.partition_point(|(ended, _)| *ended < before);
        at.checked_sub(1).and_then(|at| self.floors.get(at)).map_or(Index::new(0), |(_, index)| *index)
    }

    /// A client has its answer.
    pub fn ended(&mut self, operation: &Operation) -> Result<(), String> {
        let (index, floor, strict) = match (&operation.end, &operation.what) {
            (Ended::Done { index, .. }, _) if *index > Index::new(0) => (*index, self.floor(operation.begun), true),
            (Ended::Read(read), What::Read(level, _)) => {
                self.reads += 1;
                let floor = match level {
                    Level::Linearizable => self.floor(operation.begun),
                    Level::After(token) => *token,
                    Level::MaxStaleness(ms) => self.floor(read.at.saturating_sub(*ms)),
                    Level::Local => Index::new(0),
                };
                (read.index, floor, *level == Level::Linearizable)
            }
            _ => return Ok(()),
        };
        if index < floor {
            let Operation { client, what, begun, ended, .. } = operation;
            return Err(format!("client {client}, {begun} to {ended}: {what:?} is as of {index}, below {floor}"));
        }
        if strict {
            let highest = self.floors.last().map_or(Index::new(0), |(_, index)| *index).max(index);
            self.floors.push((operation.ended, highest));
        }
        Ok(())
    }
}
