//! An index in use has exactly the entries of the table's rows, in every snapshot: whoever reads by it sees what whoever
//! reads the table sees.

use std::collections::BTreeSet;

use quorate_shared::ids::IndexId;

use crate::keys;
use crate::mvcc::Snapshot;
use crate::row;
use crate::table::{IndexState, TableDef};

/// See the module.
pub fn check(snapshot: &Snapshot, def: &TableDef) -> Result<(), String> {
    let named = |index: &str, what: String| format!("index {index} in version {}: {what}", def.version);
    for index in def.indexes.iter().filter(|index| index.state == IndexState::Public) {
        let mut entries = BTreeSet::new();
        for item in snapshot.scan(&keys::index_range(def.storage, index.id), false) {
            entries.insert(item.map_err(|e| e.to_string())?.0);
        }
        for item in snapshot.scan(&keys::index_range(def.storage, IndexId::PRIMARY), false) {
            let (_, version) = item.map_err(|e| e.to_string())?;
            let values = row::decode(def, &version.row).map_err(|e| e.to_string())?;
            let entry = keys::index_entry(def, index, &values).map_err(|e| e.to_string())?;
            if !entries.remove(&entry.key) {
                return Err(named(&index.name, format!("the row {:?} has no entry", values.first())));
            }
        }
        if !entries.is_empty() {
            return Err(named(&index.name, format!("{} entries have no row", entries.len())));
        }
    }
    Ok(())
}
