//! Reads keep what their level says: a linearizable one, and every write, comes behind all that had ended before it
//! began; `after` sees its token; `max_staleness` is no older than it may be.

use std::collections::BTreeMap;

use quorate_shared::ids::{Epoch, Index};

use super::lineage::Lineage;
use crate::sim::history::{Ended, Operation, What};
use crate::sim::reads::Level;

#[derive(Default)]
pub struct Reads {
    /// The highest index of anything that had ended by then, by epoch.
    floors: BTreeMap<Epoch, Vec<(u64, Index)>>,
    pub reads: u64,
}

impl Reads {
    /// The highest index, in the history of an epoch, of what had ended before a moment. What another epoch has begun
    /// behind is not of this history: until it is reached, an old leader answers for itself.
    fn floor(&self, lineage: &Lineage, epoch: Epoch, before: u64) -> Index {
        let highest = |(other, floors): (&Epoch, &Vec<(u64, Index)>)| {
            let common = lineage.common(epoch, *other)?;
            let at = floors.partition_point(|(ended, _)| *ended < before);
            let index = at.checked_sub(1).and_then(|at| floors.get(at)).map(|(_, index)| *index)?;
            Some(index.min(common))
        };
        self.floors.iter().filter_map(highest).max().unwrap_or_default()
    }

    /// A client has its answer.
    pub fn ended(&mut self, lineage: &Lineage, operation: &Operation) -> Result<(), String> {
        let epoch = operation.epoch;
        let floor_at = |moment| self.floor(lineage, epoch, moment);
        let (index, floor, strict) = match (&operation.end, &operation.what) {
            (Ended::Done { index, .. }, _) if *index > Index::new(0) => (*index, floor_at(operation.begun), true),
            (Ended::Read(read), What::Read(level, _)) => {
                let floor = match level {
                    Level::Linearizable => floor_at(operation.begun),
                    Level::After(token) if token.epoch == epoch => token.index,
                    Level::MaxStaleness(ms) => floor_at(read.at.saturating_sub(*ms)),
                    Level::After(_) | Level::Local => Index::new(0),
                };
                self.reads += 1;
                (read.index, floor, *level == Level::Linearizable)
            }
            _ => return Ok(()),
        };
        if index < floor {
            let Operation { client, what, begun, ended, .. } = operation;
            return Err(format!("client {client}, {begun} to {ended}: {what:?} is as of {index}, below {floor}"));
        }
        if strict {
            let floors = self.floors.entry(epoch).or_default();
            let highest = floors.last().map_or(Index::new(0), |(_, index)| *index).max(index);
            floors.push((operation.ended, highest));
        }
        Ok(())
    }
}
