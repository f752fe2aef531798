//! At most one leader per term (of an epoch).

use std::collections::BTreeMap;

use quorate_shared::ids::{Epoch, Term};

#[derive(Default)]
pub struct Leaders {
    known: BTreeMap<(Epoch, Term), u64>,
    /// Leaders that had taken up their sequencer.
    pub ready: u64,
}

impl Leaders {
    /// A node says that it leads; whether that is news.
    pub fn leads(&mut self, node: u64, (epoch, term): (Epoch, Term), ready: bool) -> Result<bool, String> {
        self.ready += u64::from(ready);
        let first = !self.known.contains_key(&(epoch, term));
        match *self.known.entry((epoch, term)).or_insert(node) {
            known if known == node => Ok(first),
            known => Err(format!("n{known} and n{node} both lead in term {term}")),
        }
    }

    /// Terms that had a leader.
    pub fn terms(&self) -> usize {
        self.known.len()
    }
}
