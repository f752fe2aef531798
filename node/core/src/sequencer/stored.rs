//! What the sequencer reads of the tree besides versions: the machine's own records.

use bytes::Bytes;
use quorate_shared::ids::{ClientId, TableId, Timestamp};

use super::dedupe::Done;
use crate::engine::{KeyRange, Tree};
use crate::entry;
use crate::error::Fatal;
use crate::keys::{self, Key};
use crate::machine::ClientResult;
use crate::mvcc;
use crate::table::TableDef;

/// The newest version of a key in the tree, deletions included.
pub(super) fn current(tree: &dyn Tree, key: &[u8]) -> Result<Option<(Timestamp, Option<Bytes>)>, Fatal> {
    Ok(mvcc::newest(tree, key)?.map(|newest| (newest.timestamp, newest.row)))
}

/// The newest versions of a range in the tree, deletions included.
pub(super) fn scan_current(
    tree: &dyn Tree,
    range: &KeyRange,
) -> impl Iterator<Item = Result<(Bytes, Timestamp, Option<Bytes>), Fatal>> {
    mvcc::scan_newest(tree, range, false).map(|item| item.map(|(key, newest)| (key, newest.timestamp, newest.row)))
}

/// All definitions in force.
pub(super) fn tables(tree: &dyn Tree) -> Result<Vec<TableDef>, Fatal> {
    let malformed = || Fatal::new("read a table's definition", "its bytes are malformed");
    tree.scan(&keys::table_defs_range(), false)
        .map(|item| entry::decode_table(&item?.1).ok_or_else(malformed))
        .collect()
}

/// A table's first number that no entry has granted.
pub(super) fn sequence(tree: &dyn Tree, table: TableId) -> Result<Option<i64>, Fatal> {
    let malformed = |_| Fatal::new("read a sequence", "its bytes are malformed");
    match tree.get(&Key::Sequence(table).encode())? {
        Some(bytes) => Ok(Some(i64::from_be_bytes(bytes[..].try_into().map_err(malformed)?))),
        None => Ok(None),
    }
}

/// What became of a client's recent writes.
pub(super) fn client(tree: &dyn Tree, client: ClientId) -> Result<Vec<Done>, Fatal> {
    tree.scan(&keys::client_range(Some(client)), false).map(|item| done(&item?.1)).collect()
}

/// What became of the recent writes of this client and all behind it.
pub(super) fn clients_from(tree: &dyn Tree, first: ClientId) -> impl Iterator<Item = Result<(ClientId, Done), Fatal>> {
    let range = KeyRange { start: keys::client_range(Some(first)).start, end: keys::client_range(None).end };
    tree.scan(&range, false).map(|item| {
        let (key, value) = item?;
        match Key::decode(&key)? {
            Key::Client { client, .. } => Ok((client, done(&value)?)),
            _ => Err(Fatal::new("read a client's result", "it is under another key")),
        }
    })
}

fn done(bytes: &Bytes) -> Result<Done, Fatal> {
    let ClientResult { seq, index, timestamp, rows, last_id, .. } = ClientResult::decode(bytes)?;
    Ok(Done { seq, index, timestamp, rows, last_id })
}
