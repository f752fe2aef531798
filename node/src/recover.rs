//! `quorated recover DIR`: the way out of a lost quorum, on a survivor that is stopped.
//!
//! It reads the log, says what is there and what nobody can know, and leaves the note with which the next start begins a
//! new epoch (`store::engine`). Everything that is in the survivor's log counts from then on, also what was not known to
//! be committed. No file is edited by hand; the other survivors rejoin when they are started.

use std::fmt::Write as _;
use std::path::Path;

use quorate_core::log::LogReader;
use quorate_core::log::segment::open_read_only;
use quorate_core::replica::Protocol;
use quorate_shared::status::NodeKind;

use crate::founding::SHARDS;
use crate::node::NodeError;
use crate::store::{self, Directory};

/// Says what will be done, and does it unless it is a dry run; the text to print.
pub fn recover(dir: &Path, dry_run: bool) -> Result<String, NodeError> {
    let failed = |why: String| Err(NodeError::Failed(why));
    if !dir.join("identity.json").exists() {
        return failed(format!("{} is no data directory of a node", dir.display()));
    }
    let node = store::owner(dir)?;
    let directory = Directory::open(dir, node, NodeKind::Voter)?;
    let Some(founding) = directory.founding() else {
        return failed(format!("{} belongs to no cluster yet", dir.display()));
    };
    if founding.replicator == Protocol::Paxos {
        return failed(format!(
            "{node}'s cluster was founded with paxos, which cannot have a single voter: restore a backup"
        ));
    }
    if let Some(why) = directory.note(store::LOST) {
        return failed(format!("{node} has lost its log ({why}); recover from another survivor"));
    }
    let (reader, found) = open_read_only(&dir.join("log"), |_| ())?;
    if let Some(damage) = found.damage {
        return failed(format!("the log is damaged: {damage}; recover from another survivor"));
    }
    let mut out = format!("{} is the directory of {node}, cluster {}\n", dir.display(), founding.cluster);
    for shard in SHARDS {
        let Some(bounds) = reader.bounds(shard) else {
            return failed(format!("the log has no base record of {shard}; recover from another survivor"));
        };
        let commit = bounds.committed();
        let unsure = bounds.last.get() - commit.get();
        let (last, term) = (bounds.last, bounds.last_term);
        let _ = writeln!(
            out,
            "{shard}: the log ends at entry {last} (term {}), {commit} known to be committed",
            term.get()
        );
        if unsure > 0 && directory.kind() == NodeKind::Voter {
            let _ = writeln!(out, "{shard}: {unsure} entries behind that will count as committed");
        }
    }
    out.push_str("what other voters acknowledged and this log does not have is lost; prefer the survivor whose log ends last\n\n");
    out.push_str("1. a note is left: at its next start this node begins a new epoch, of which it is the only voter\n");
    let _ = writeln!(out, "2. start it as before: quorated start --id {} --data {} …", node.get(), dir.display());
    out.push_str("3. start the other survivors as before: they are fenced, write out what only they have, and follow as replicas\n");
    out.push_str("4. make them voters again, one after the other: quorate admin add-voter NODE\n");
    out.push_str("5. take out those that are gone for good: quorate admin remove NODE\n");
    if dry_run {
        out.push_str("\nnothing was changed (dry run)\n");
        return Ok(out);
    }
    let random = store::random_bytes()?;
    let id = random.iter().take(8).fold(0u64, |id, byte| (id << 8) | u64::from(*byte));
    store::leave_note(dir, store::PROMOTE, &format!("0 {id}"));
    if directory.note(store::PROMOTE).is_none() {
        return failed(format!("cannot write into {}", dir.display()));
    }
    out.push_str("\nthe note is left; go on with step 2\n");
    Ok(out)
}
