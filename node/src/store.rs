//! The data directory: who may use it, whose it is, and whether its engine can be trusted.
//!
//! `LOCK` is held as long as the node runs. `identity.json` says which node this is and, once founded, of which cluster;
//! it is replaced atomically and synced. `engine.trust` says under which boot of the machine the engine was last written,
//! whether it was closed cleanly and how far it was at its last checkpoint: an engine written under another boot without
//! a clean close may hold newer and older pages side by side and is moved aside, as is one that is behind its own
//! checkpoint. `log/` is the truth and is never touched by any of this.
//!
//! `snapshots/` holds the bases that the log is trimmed behind; a distrusted engine is rebuilt from base and log.

pub mod engine;
pub mod key;
pub mod rejoin;
pub mod snapshots;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use quorate_core::replica::Protocol;
use quorate_shared::ids::{NodeId, Nonce, ReplicaId, ShardId};
use quorate_shared::status::NodeKind;
use serde::{Deserialize, Serialize};

use crate::peers::message::Founding;

/// Version of the directory's layout and of everything in it.
pub const FORMAT: u32 = 1;

/// Why a directory cannot be used. Each says what to do.
#[derive(thiserror::Error, Debug)]
pub enum StoreError {
    /// Another process has it.
    #[error("{0} is in use by another quorated process")]
    InUse(PathBuf),
    /// It belongs to another node.
    #[error("{path} belongs to {owner}, this is {me}; give --id {} or another --data directory", .owner.get())]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: NodeId,
        /// Who wants it.
        me: NodeId,
    },
    /// Written by a newer version.
    #[error("{path} has format {found}; this quorated reads up to {FORMAT}: use the newer version that wrote it")]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Its cluster was founded with another replicator.
    #[error("--replicator {given}, but cluster {cluster} was founded with {stored}; it cannot be changed")]
    OtherReplicator {
        /// Its cluster.
        cluster: String,
        /// From the command line.
        given: Protocol,
        /// From the founding record.
        stored: Protocol,
    },
    /// The identity cannot be understood.
    #[error("{path} cannot be read: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// There is data but nothing that says whose.
    #[error(
        "{0} has a log but no identity.json: it is not known whose log it is; restore that file or use an empty directory"
    )]
    NoIdentity(PathBuf),
    /// The operating system refuses.
    #[error("cannot {doing} {path}: {cause}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
}

pub(crate) fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |cause| StoreError::Io { doing, path: path.to_owned(), cause }
}

/// `identity.json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// [`FORMAT`].
    pub format: u32,
    /// The node.
    pub node: NodeId,
    /// Voter or replica.
    pub kind: NodeKind,
    /// Drawn when the directory was made.
    #[serde(with = "hex_nonce")]
    pub nonce: Nonce,
    /// Once it belongs to a cluster.
    pub founding: Option<FoundingRecord>,
}

/// A [`Founding`] as people can read it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FoundingRecord {
    /// The cluster in hex.
    pub cluster: String,
    /// The epoch's number.
    pub epoch: u64,
    /// The epoch's id.
    pub epoch_id: u64,
    /// Its voters when founded.
    pub members: Vec<MemberRecord>,
    /// What orders its entries; clusters founded before there was a choice have raft.
    #[serde(default)]
    pub replicator: Replicator,
}

/// [`Protocol`] as people write it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Replicator {
    /// raft-rs.
    #[default]
    Raft,
    /// OmniPaxos.
    Paxos,
}

/// A voter of a [`FoundingRecord`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The node.
    pub node: NodeId,
    /// Its data directory when founded.
    #[serde(with = "hex_nonce")]
    pub nonce: Nonce,
    /// Its replica id in every shard.
    pub replica: quorate_shared::ids::ReplicaId,
}

mod hex_nonce {
    use quorate_shared::ids::Nonce;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(nonce: &Nonce, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&nonce.to_string())
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Nonce, D::Error> {
        let text = String::deserialize(d)?;
        super::unhex(&text).map(Nonce).ok_or_else(|| D::Error::custom("not 32 hex digits"))
    }
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let mut out = [0; 16];
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(out)
}

impl Identity {
    /// Whose a directory is.
    pub fn read(directory: &Path) -> Result<Self, StoreError> {
        let file = directory.join("identity.json");
        let text = fs::read_to_string(&file).map_err(io_error("read", &file))?;
        parse_identity(directory, &file, &text)
    }
}

impl FoundingRecord {
    fn of(founding: &Founding) -> Self {
        Self {
            cluster: founding.cluster.to_string(),
            epoch: founding.epoch.number,
            epoch_id: founding.epoch.id,
            members: founding
                .members
                .iter()
                .map(|m| MemberRecord { node: m.node, nonce: m.nonce, replica: m.replica })
                .collect(),
            replicator: match founding.replicator {
                Protocol::Raft => Replicator::Raft,
                Protocol::Paxos => Replicator::Paxos,
            },
        }
    }

    fn founding(&self) -> Option<Founding> {
        Some(Founding {
            cluster: quorate_shared::ids::ClusterId(unhex(&self.cluster)?),
            epoch: quorate_shared::ids::Epoch { number: self.epoch, id: self.epoch_id },
            members: self
                .members
                .iter()
                .map(|m| crate::peers::message::Member { node: m.node, nonce: m.nonce, replica: m.replica })
                .collect(),
            replicator: match self.replicator {
                Replicator::Raft => Protocol::Raft,
                Replicator::Paxos => Protocol::Paxos,
            },
        })
    }
}

/// 16 random bytes from the operating system.
pub fn random_bytes() -> Result<[u8; 16], StoreError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| StoreError::Io {
        doing: "read",
        path: "the operating system's random numbers".into(),
        cause: io::Error::other(e.to_string()),
    })?;
    Ok(bytes)
}

/// Whose a directory is.
pub fn owner(path: &Path) -> Result<NodeId, StoreError> {
    let file = path.join("identity.json");
    let text = fs::read_to_string(&file).map_err(io_error("read", &file))?;
    parse_identity(path, &file, &text).map(|identity| identity.node)
}

/// An open data directory. The lock is released when it is dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
    identity: Identity,
    founding: Option<Founding>,
}

impl Directory {
    /// Opens or makes a directory for a node.
    pub fn open(path: &Path, me: NodeId, kind: NodeKind) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(io_error("create", path))?;
        let path = path.canonicalize().map_err(io_error("open", path))?;
        let lock = lock(&path)?;
        let file = path.join("identity.json");
        let identity = match fs::read_to_string(&file) {
            Ok(text) => parse_identity(&path, &file, &text)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if path.join("log").read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
                    return Err(StoreError::NoIdentity(path));
                }
                let identity =
                    Identity { format: FORMAT, node: me, kind, nonce: Nonce(random_bytes()?), founding: None };
                write_identity(&path, &identity)?;
                identity
            }
            Err(e) => return Err(io_error("read", &file)(e)),
        };
        if identity.node != me {
            return Err(StoreError::OtherNode { path, owner: identity.node, me });
        }
        let founding = match &identity.founding {
            None => None,
            Some(record) => Some(record.founding().ok_or_else(|| StoreError::Damaged {
                path: file.clone(),
                why: "the cluster's id is not 32 hex digits".into(),
            })?),
        };
        Ok(Self { path, _lock: lock, identity, founding })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Its nonce.
    pub fn nonce(&self) -> Nonce {
        self.identity.nonce
    }
    /// The cluster it belongs to.
    pub fn founding(&self) -> Option<&Founding> {
        self.founding.as_ref()
    }

    /// What the node is by now: what it was started as first, then what the membership made it.
    pub fn kind(&self) -> NodeKind {
        self.identity.kind
    }

    /// Records what the node is from its next start on.
    pub fn set_kind(&mut self, kind: NodeKind) -> Result<(), StoreError> {
        if self.identity.kind == kind {
            return Ok(());
        }
        let identity = Identity { kind, ..self.identity.clone() };
        write_identity(&self.path, &identity)?;
        self.identity = identity;
        Ok(())
    }

    /// The node begins again from nothing: as another incarnation, so that it is never taken for what it was.
    pub fn renew(&mut self) -> Result<(), StoreError> {
        let identity = Identity { nonce: Nonce(random_bytes()?), ..self.identity.clone() };
        write_identity(&self.path, &identity)?;
        self.identity = identity;
        Ok(())
    }

    /// What a note says, if it is there.
    pub fn note(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path.join(name)).ok()
    }

    /// Refuses another replicator than the one the cluster was founded with.
    pub fn check_replicator(&self, given: Option<Protocol>) -> Result<(), StoreError> {
        match (&self.founding, given) {
            (Some(Founding { replicator: stored, cluster, .. }), Some(given)) if *stored != given => {
                Err(StoreError::OtherReplicator { cluster: cluster.to_string(), given, stored: *stored })
            }
            _ => Ok(()),
        }
    }

    /// Records the cluster, durably. The log has its base records by then.
    pub fn found(&mut self, founding: Founding) -> Result<(), StoreError> {
        let identity = Identity { founding: Some(FoundingRecord::of(&founding)), ..self.identity.clone() };
        write_identity(&self.path, &identity)?;
        self.identity = identity;
        self.founding = Some(founding);
        Ok(())
    }

    /// Moves the log and the engine out of the way (at most one earlier copy is kept); for a directory whose log never
    /// took part in anything, and for a replica that starts again from nothing.
    pub fn set_aside(&self, name: &str, why: &str) -> Result<(), StoreError> {
        let from = self.path.join(name);
        if !from.exists() {
            return Ok(());
        }
        let to = self.path.join(format!("{name}.{why}"));
        if to.exists() {
            fs::remove_dir_all(&to).map_err(io_error("remove", &to))?;
        }
        fs::rename(&from, &to).map_err(io_error("move aside", &from))?;
        sync_directory(&self.path)
    }
}

/// A voter's log is gone: why. There until it votes again.
pub const LOST: &str = "lost";
/// The node was removed from its cluster: who said so.
pub const REMOVED: &str = "removed";
/// Replicas that are no members any more, as `s1 r4` each: they go on as log-shipped ones.
pub const LEFT: &str = "left";

/// The replica is to be the first voter of a new epoch: its number (0: the next one) and id.
pub const PROMOTE: &str = "promote";
/// A newer epoch has begun without this node: which, then addresses to ask.
pub const FENCED: &str = "fenced";

/// Leaves a note for the next start.
pub fn leave_note(dir: &Path, name: &str, text: &str) {
    if let Err(error) = replace_file(dir, name, text.as_bytes()) {
        tracing::error!(%error, name, "cannot leave a note for the next start");
    }
}

/// Replicas of a shard that are no members any more, as the note has them.
pub fn left(dir: &Path, shard: ShardId) -> Vec<ReplicaId> {
    let note = fs::read_to_string(dir.join(LEFT)).unwrap_or_default();
    let lines = note.lines().filter_map(|line| line.split_once(" r"));
    lines.filter(|(of, _)| *of == shard.to_string()).filter_map(|(_, id)| id.parse().ok().map(ReplicaId::new)).collect()
}

/// Takes a note away.
pub fn drop_note(dir: &Path, name: &str) -> Result<(), StoreError> {
    let path = dir.join(name);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(e)),
        _ => sync_directory(dir),
    }
}

/// `n1, n2`.
pub fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = path.join("LOCK");
    let lock =
        File::options().create(true).truncate(false).write(true).open(&file).map_err(io_error("write", &file))?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse(path.to_owned())),
        Err(e) => Err(io_error("lock", &file)(e.into())),
    }
}

fn parse_identity(path: &Path, file: &Path, text: &str) -> Result<Identity, StoreError> {
    let damaged = |why: String| StoreError::Damaged { path: file.to_owned(), why };
    // The format first: a newer one may have anything else.
    let any: serde_json::Value = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
    let found = any.get("format").and_then(serde_json::Value::as_u64).ok_or_else(|| damaged("no format".into()))?;
    if found > u64::from(FORMAT) {
        return Err(StoreError::Newer { path: path.to_owned(), found });
    }
    serde_json::from_value(any).map_err(|e| damaged(e.to_string()))
}

fn write_identity(path: &Path, identity: &Identity) -> Result<(), StoreError> {
    let text = serde_json::to_string_pretty(identity)
        .map_err(|e| StoreError::Damaged { path: path.join("identity.json"), why: e.to_string() })?;
    replace_file(path, "identity.json", text.as_bytes())
}

/// Writes the identity of a voter whose cluster is known from the start, into a directory that is being made.
pub fn write_founded(path: &Path, node: NodeId, founding: &Founding) -> Result<(), StoreError> {
    let nonce = founding.members.iter().find(|m| m.node == node).map_or_else(Nonce::default, |m| m.nonce);
    let founding = Some(FoundingRecord::of(founding));
    write_identity(path, &Identity { format: FORMAT, node, kind: NodeKind::Voter, nonce, founding })
}

/// Replaces a file so that after a crash there is the old or the new one, whole.
pub(crate) fn replace_file(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = directory.join(format!("{name}.new"));
    let path = directory.join(name);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(io_error("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(io_error("replace", &path))?;
    sync_directory(directory)
}

/// Makes renames in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|d| d.sync_all()).map_err(io_error("sync", path))
}

/// Bytes free for this node on the disk of a directory.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes the files of a directory take; what vanishes meanwhile is not counted.
pub fn used_bytes(path: &Path) -> u64 {
    let Ok(entries) = path.read_dir() else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => used_bytes(&entry.path()),
            Ok(meta) => {
                use std::os::unix::fs::MetadataExt;
                meta.blocks() * 512
            }
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use quorate_shared::ids::{ClusterId, Epoch, ReplicaId};

    use super::*;
    use crate::peers::message::Member;

    fn n(id: u64) -> NodeId {
        NodeId::new(id)
    }

    #[test]
    fn a_directory_has_one_owner() {
        let tmp = tempfile::tempdir().unwrap();
        let held = Directory::open(tmp.path(), n(1), NodeKind::Voter).unwrap();
        let error = Directory::open(tmp.path(), n(1), NodeKind::Voter).expect_err("held");
        assert!(error.to_string().contains("in use"), "{error}");
        drop(held);
        let error = Directory::open(tmp.path(), n(2), NodeKind::Voter).expect_err("other node");
        assert!(error.to_string().contains("belongs to n1, this is n2"), "{error}");
        let hinted = Directory::open(tmp.path(), n(1), NodeKind::Replica).unwrap();
        assert_eq!(hinted.kind(), NodeKind::Voter, "what it was told first, until a membership says otherwise");
    }

    #[test]
    fn founded_stays_founded() {
        let tmp = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(tmp.path(), n(1), NodeKind::Voter).unwrap();
        let founding = Founding {
            cluster: ClusterId([7; 16]),
            epoch: Epoch { number: 1, id: 99 },
            members: vec![Member { node: n(1), nonce: directory.nonce(), replica: ReplicaId::new(1) }],
            replicator: Protocol::Paxos,
        };
        directory.found(founding.clone()).unwrap();
        drop(directory);
        let directory = Directory::open(tmp.path(), n(1), NodeKind::Voter).unwrap();
        assert_eq!(directory.founding(), Some(&founding));
        assert!(directory.check_replicator(None).is_ok() && directory.check_replicator(Some(Protocol::Paxos)).is_ok());
        let error = directory.check_replicator(Some(Protocol::Raft)).expect_err("another").to_string();
        assert!(error.contains("--replicator raft") && error.contains("founded with paxos"), "{error}");
        assert_eq!(directory.kind(), NodeKind::Voter, "what it was told later is a hint");
    }

    #[test]
    fn a_newer_format_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("identity.json"), r#"{"format": 9, "anything": 1}"#).unwrap();
        let error = Directory::open(tmp.path(), n(1), NodeKind::Voter).expect_err("newer").to_string();
        assert!(error.contains("format 9"), "{error}");
    }
}
