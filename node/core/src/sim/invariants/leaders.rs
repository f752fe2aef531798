//! At most one leader per term (of an epoch).

use std::collections::BTreeMap;

use quorate_shared::ids::Term;

#[derive(Default)]
pub struct Leaders {
    known: BTreeMap<(u64, Term), u64>,
    /// Leaders that had taken up their sequencer.
    pub ready: u64,
    pub epoch: u64,
}

impl Leaders {
    /// A node says that it leads.
    pub fn leads(&mut self, node: u64, term: Term, ready: bool) -> Result<(), String> {
        self.ready += u64::from(ready);
        match *self.known.entry((self.epoch, term)).or_insert(node) {
            known if known == node => Ok(()),
            known => Err(format!("n{known} and n{node} both lead in term {term}")),
        }
    }

    /// Terms that had a leader.
    pub fn terms(&self) -> usize {
        self.known.len()
    }
}
