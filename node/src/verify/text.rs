//! What `quorated verify` says to people.

use std::fmt;

use quorate_core::verify::{ChainProof, Damage};

use super::{ShardProof, Verified};

/// `1,234`.
fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `12.3 MB`.
fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{n} bytes"),
        10_000..10_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        _ => format!("{:.1} MB", n as f64 / 1e6),
    }
}

/// Against what a chain was compared.
fn against(chain: &ChainProof) -> String {
    let mut list: Vec<String> = chain
        .agrees
        .iter()
        .map(|(whose, n)| if *n == 1 { whose.clone() } else { format!("{whose} ({})", count(*n)) })
        .collect();
    list.insert(0, "its base".into());
    match list.pop() {
        Some(last) if !list.is_empty() => format!("{} and {last}", list.join(", ")),
        Some(last) => last,
        None => String::new(),
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = self.cluster.as_deref().unwrap_or("no cluster yet");
        let closed = if self.closed_cleanly { "closed cleanly" } else { "not closed cleanly" };
        writeln!(f, "{} of cluster {cluster} in {}, {closed}", self.node, self.directory)?;
        let log = &self.log;
        writeln!(
            f,
            "log     {} records in {} segments, {}: every checksum is right{}",
            count(log.records),
            log.segments,
            bytes(log.bytes),
            if self.damage.iter().any(|d| d.offset.is_some()) { " up to the damage" } else { "" }
        )?;
        self.shards.iter().try_for_each(|shard| write_shard(f, shard))?;
        for snapshot in &self.snapshots {
            let (shard, index) = (snapshot.shard, count(snapshot.index.get()));
            writeln!(f, "{:<7} snapshot at entry {index}: {} rows, whole", shard.to_string(), count(snapshot.rows))?;
        }
        if let Some(why) = &self.engine_skipped {
            writeln!(f, "engine  not looked at: {why}")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note    {note}"))?;
        self.damage.iter().try_for_each(|damage| writeln!(f, "DAMAGE  {}", Shown(damage)))?;
        match self.damage.len() {
            0 => writeln!(f, "proved: nothing is damaged"),
            1 => writeln!(f, "not proved: 1 thing is damaged"),
            n => writeln!(f, "not proved: {n} things are damaged"),
        }
    }
}

fn write_shard(f: &mut fmt::Formatter<'_>, shard: &ShardProof) -> fmt::Result {
    let chain = &shard.chain;
    let range = match chain.entries {
        0 => format!("no entries behind its base {}", count(chain.base.get())),
        _ => format!("entries {} to {} are one chain", count(chain.base.get() + 1), count(chain.last.get())),
    };
    writeln!(
        f,
        "{:<7} {range}, ending in {}; proved against {}",
        shard.shard.to_string(),
        chain.chain,
        against(chain)
    )?;
    let proved = chain.agrees_at.unwrap_or(chain.base);
    if chain.last > proved {
        let from = count(proved.get() + 1);
        writeln!(f, "        entries {from} to {} rest on their checksums alone", count(chain.last.get()))?;
    }
    for (whose, n) in &chain.outside {
        writeln!(f, "        {} of {whose} outside of this log, not compared", count(*n))?;
    }
    if chain.void > 0 {
        writeln!(f, "        {} of the entries are void", count(chain.void))?;
    }
    if let Some(tree) = &shard.tree {
        writeln!(
            f,
            "        engine at entry {}: {} values, {}: every checksum is right; {} current rows give {} digests",
            count(tree.applied.get()),
            count(tree.keys),
            bytes(tree.bytes),
            count(tree.rows),
            count(tree.digests)
        )?;
    }
    Ok(())
}

/// A damage with where it is.
pub struct Shown<'a>(pub &'a Damage);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        if let Some(file) = &self.0.file {
            write!(f, " [{file}")?;
            if let Some(offset) = self.0.offset {
                write!(f, " at byte {offset}")?;
            }
            f.write_str("]")?;
        }
        Ok(())
    }
}
