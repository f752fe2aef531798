//! Configuration: file < environment (`QUORATED_*`) < flags, checked once.
//!
//! [`RawConfig`] is exactly what was given, layer by layer; [`Config`] is what the node runs with. Every cross-check is in
//! `TryFrom<RawConfig>`. Names that do not exist are refused with the nearest one that does.
//!
//! Left out: changing anything while running; a restart takes seconds.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use quorate_core::replica::{Protocol, paxos};
use quorate_shared::ids::NodeId;
use quorate_shared::limits::PORT_DEFAULT;
use quorate_shared::status::NodeKind;
use serde::{Deserialize, Serialize};

/// Environment variables begin with this.
pub const ENV_PREFIX: &str = "QUORATED_";

/// What is wrong with the configuration, in one sentence with a remedy.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// A list of peers as `1=HOST:PORT,2=HOST:PORT` or as a table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RawPeers {
    /// `1=HOST:PORT,2=HOST:PORT`
    Text(String),
    /// `[peers]` with `1 = "HOST:PORT"`
    Table(BTreeMap<String, String>),
}

/// A list of addresses as `HOST:PORT,HOST:PORT` or as an array.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RawList {
    /// `HOST:PORT,HOST:PORT`
    Text(String),
    /// `["HOST:PORT", "HOST:PORT"]`
    Array(Vec<String>),
}

/// One layer, exactly as given.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// This node's number.
    pub id: Option<u64>,
    /// Data directory.
    pub data: Option<PathBuf>,
    /// Address for clients and peers.
    pub listen: Option<String>,
    /// Address for HTTP.
    pub http: Option<String>,
    /// Where others reach this node, if not at `listen`.
    pub advertise: Option<String>,
    /// Run as a log-shipped replica of these nodes.
    pub replica_of: Option<RawList>,
    /// What orders the cluster's entries: `raft` or `paxos`.
    pub replicator: Option<String>,
    /// Listen beyond loopback without authentication.
    pub insecure: Option<bool>,
    /// Log filter, e.g. `info` or `quorate_node=debug`.
    pub log: Option<String>,
    /// Log as `text` or `json`.
    pub log_format: Option<String>,
    /// Engine cache in MiB.
    pub cache_mb: Option<u64>,
    /// How long followers wait for a leader's sign of life before they elect another.
    pub election_ms: Option<u64>,
    /// How often a leader gives a sign of life.
    pub heartbeat_ms: Option<u64>,
    /// Free space below which writes are refused, in MiB.
    pub disk_reserve_mb: Option<u64>,
    /// Size of a log segment, in MiB.
    pub segment_mb: Option<u64>,
    /// The log grows at least so far, in MiB, before a base is written and it is trimmed.
    pub base_min_mb: Option<u64>,
    /// The log is kept for a reader that is behind up to so many MiB; beyond it the reader needs a snapshot.
    pub retention_mb: Option<u64>,
    /// Every voter, this node included. Last, because TOML wants tables last.
    pub peers: Option<RawPeers>,
}

/// The names of [`RawConfig`]'s fields.
pub const KEYS: [&str; 18] = [
    "id",
    "data",
    "listen",
    "http",
    "advertise",
    "replica_of",
    "replicator",
    "insecure",
    "log",
    "log_format",
    "cache_mb",
    "election_ms",
    "heartbeat_ms",
    "disk_reserve_mb",
    "segment_mb",
    "base_min_mb",
    "retention_mb",
    "peers",
];

/// The nearest of some names, if any is near.
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(score, _)| *score > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn unknown(what: &str, name: &str, shown: impl Fn(&str) -> String) -> ConfigError {
    let hint = match nearest(&name.to_lowercase(), KEYS) {
        Some(key) => format!("; did you mean `{}`?", shown(key)),
        None => format!("; known are {}", KEYS.map(&shown).join(", ")),
    };
    ConfigError(format!("unknown {what} `{}`{hint}", shown(name)))
}

impl RawConfig {
    /// Reads a TOML file's text; `file` is for messages.
    pub fn from_toml(text: &str, file: &str) -> Result<Self, ConfigError> {
        let table: toml::Table =
            text.parse().map_err(|e: toml::de::Error| ConfigError(format!("{file}: {}", e.to_string().trim_end())))?;
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let ConfigError(message) = unknown("key", key, str::to_owned);
            return Err(ConfigError(format!("{file}: {message}")));
        }
        toml::from_str(text).map_err(|e| ConfigError(format!("{file}: {}", e.to_string().trim_end())))
    }

    /// Takes the `QUORATED_*` variables out of an environment.
    pub fn from_env(vars: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let mut raw = Self::default();
        for (name, value) in vars {
            let Some(key) = name.strip_prefix(ENV_PREFIX) else { continue };
            if key == "CONFIG" {
                continue;
            }
            raw.set(&key.to_lowercase(), &value).map_err(|e| match e {
                None => unknown("environment variable", key, |k| format!("{ENV_PREFIX}{}", k.to_uppercase())),
                Some(why) => ConfigError(format!("environment variable `{name}`: {why}")),
            })?;
        }
        Ok(raw)
    }

    /// Sets one key from text. `Err(None)`: there is no such key.
    fn set(&mut self, key: &str, value: &str) -> Result<(), Option<String>> {
        let number = || value.parse::<u64>().map_err(|_| Some(format!("`{value}` is not a number")));
        let text = || Some(value.to_owned());
        match key {
            "id" => self.id = Some(number()?),
            "data" => self.data = Some(value.into()),
            "listen" => self.listen = text(),
            "http" => self.http = text(),
            "advertise" => self.advertise = text(),
            "replica_of" => self.replica_of = Some(RawList::Text(value.into())),
            "replicator" => self.replicator = text(),
            "insecure" => {
                self.insecure = Some(match value {
                    "1" | "true" | "yes" | "on" => true,
                    "0" | "false" | "no" | "off" | "" => false,
                    _ => return Err(Some(format!("`{value}` is neither true nor false"))),
                });
            }
            "log" => self.log = text(),
            "log_format" => self.log_format = text(),
            "cache_mb" => self.cache_mb = Some(number()?),
            "election_ms" => self.election_ms = Some(number()?),
            "heartbeat_ms" => self.heartbeat_ms = Some(number()?),
            "disk_reserve_mb" => self.disk_reserve_mb = Some(number()?),
            "segment_mb" => self.segment_mb = Some(number()?),
            "base_min_mb" => self.base_min_mb = Some(number()?),
            "retention_mb" => self.retention_mb = Some(number()?),
            "peers" => self.peers = Some(RawPeers::Text(value.into())),
            _ => return Err(None),
        }
        Ok(())
    }

    /// `over` wins where it says something.
    #[must_use]
    pub fn overlay(self, over: Self) -> Self {
        Self {
            id: over.id.or(self.id),
            data: over.data.or(self.data),
            listen: over.listen.or(self.listen),
            http: over.http.or(self.http),
            advertise: over.advertise.or(self.advertise),
            replica_of: over.replica_of.or(self.replica_of),
            replicator: over.replicator.or(self.replicator),
            insecure: over.insecure.or(self.insecure),
            log: over.log.or(self.log),
            log_format: over.log_format.or(self.log_format),
            cache_mb: over.cache_mb.or(self.cache_mb),
            election_ms: over.election_ms.or(self.election_ms),
            heartbeat_ms: over.heartbeat_ms.or(self.heartbeat_ms),
            disk_reserve_mb: over.disk_reserve_mb.or(self.disk_reserve_mb),
            segment_mb: over.segment_mb.or(self.segment_mb),
            base_min_mb: over.base_min_mb.or(self.base_min_mb),
            retention_mb: over.retention_mb.or(self.retention_mb),
            peers: over.peers.or(self.peers),
        }
    }
}

/// What this node is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Role {
    /// A voter among these (itself included).
    Voter(BTreeMap<NodeId, String>),
    /// A log-shipped replica; any of these addresses leads to the master.
    Replica(Vec<String>),
}

/// What the node runs with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Data directory.
    pub data: PathBuf,
    /// Address for clients and peers; port 0 takes a free one.
    pub listen: String,
    /// Address for HTTP.
    pub http: Option<String>,
    /// Where others reach this node; `None`: where it listens.
    pub advertise: Option<String>,
    /// Voter or replica, with whom.
    pub role: Role,
    /// What orders the entries of a cluster that is founded with this node; `None`: what it was founded with, or raft.
    pub replicator: Option<Protocol>,
    /// Listening beyond loopback was asked for.
    pub insecure: bool,
    /// Log filter.
    pub log: String,
    /// Log as JSON lines.
    pub log_json: bool,
    /// Engine cache in bytes.
    pub cache_bytes: u64,
    /// Election timeout.
    pub election_ms: u64,
    /// Heartbeat interval.
    pub heartbeat_ms: u64,
    /// Free space below which writes are refused.
    pub disk_reserve_bytes: u64,
    /// Where tests say which part of this node hangs; by a flag only.
    pub test_hooks: Option<PathBuf>,
    /// When the log is trimmed.
    pub retention: Retention,
}

/// How large the log may get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Of a segment.
    pub segment_bytes: u64,
    /// Before a base is written; more, if there is more data.
    pub base_min_bytes: u64,
    /// Kept for a reader that is behind.
    pub reader_bytes: u64,
}

impl Retention {
    fn of(raw: &RawConfig) -> Result<Self, ConfigError> {
        let mb = |given: Option<u64>, default: u64| given.unwrap_or(default).saturating_mul(1 << 20);
        // A segment holds the largest entry, and its offsets are 32 bits.
        if raw.segment_mb.is_some_and(|mb| !(8..=128).contains(&mb)) {
            return Err(ConfigError("segment-mb: a log segment has 8 to 128 MiB".into()));
        }
        Ok(Self {
            segment_bytes: mb(raw.segment_mb, quorate_shared::limits::SEGMENT_BYTES >> 20),
            base_min_bytes: mb(raw.base_min_mb, 64).max(1 << 20),
            reader_bytes: mb(raw.retention_mb, 1024),
        })
    }
}

impl Config {
    /// Voter or replica.
    pub fn kind(&self) -> NodeKind {
        match self.role {
            Role::Voter(_) => NodeKind::Voter,
            Role::Replica(_) => NodeKind::Replica,
        }
    }

    /// The same node in the role it has by now: what it was told at its first start is a hint once it is in a cluster.
    #[must_use]
    pub fn in_role(mut self, kind: NodeKind) -> Self {
        let me = self.node;
        self.role = match (self.role, kind) {
            (Role::Voter(peers), NodeKind::Replica) => {
                Role::Replica(peers.into_iter().filter(|(node, _)| *node != me).map(|(_, address)| address).collect())
            }
            (Role::Replica(_), NodeKind::Voter) => Role::Voter(BTreeMap::new()),
            (role, _) => role,
        };
        self
    }
}

/// Splits `HOST:PORT`; the port is required.
fn check_address(what: &str, address: &str) -> Result<(), ConfigError> {
    let valid = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok()
    });
    match valid {
        true => Ok(()),
        false => Err(ConfigError(format!("{what}: `{address}` is not HOST:PORT, e.g. 127.0.0.1:{PORT_DEFAULT}"))),
    }
}

fn parse_peers(raw: &RawPeers) -> Result<BTreeMap<NodeId, String>, ConfigError> {
    let pairs: Vec<(String, String)> = match raw {
        RawPeers::Table(table) => table.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        RawPeers::Text(text) => text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| match part.split_once('=') {
                Some((id, address)) => Ok((id.trim().to_owned(), address.trim().to_owned())),
                None => {
                    Err(ConfigError(format!("peers: `{part}` is not ID=HOST:PORT, e.g. 1=127.0.0.1:{PORT_DEFAULT}")))
                }
            })
            .collect::<Result<_, _>>()?,
    };
    let mut peers = BTreeMap::new();
    for (id, address) in pairs {
        let digits = id.strip_prefix('n').unwrap_or(&id);
        let number = digits.parse::<u64>().ok().filter(|n| *n > 0);
        let Some(number) = number else {
            return Err(ConfigError(format!("peers: `{id}` is not a node id; ids are whole numbers from 1")));
        };
        check_address("peers", &address)?;
        if let Some((other, _)) = peers.iter().find(|(_, a)| **a == address && !address.ends_with(":0")) {
            return Err(ConfigError(format!("peers: {other} and n{number} have the same address {address}")));
        }
        if peers.insert(NodeId::new(number), address).is_some() {
            return Err(ConfigError(format!("peers: n{number} is listed twice")));
        }
    }
    Ok(peers)
}

/// Beyond loopback only with `--insecure`: there is no authentication yet.
fn check_listener(what: &str, address: &str, insecure: bool) -> Result<(), ConfigError> {
    check_address(what, address)?;
    let resolved: Vec<SocketAddr> = address
        .to_socket_addrs()
        .map_err(|e| ConfigError(format!("{what}: cannot resolve `{address}`: {e}")))?
        .collect();
    if resolved.is_empty() {
        return Err(ConfigError(format!("{what}: `{address}` has no address")));
    }
    if !insecure && resolved.iter().any(|a| !a.ip().is_loopback()) {
        return Err(ConfigError(format!(
            "{what}: {address} is reachable from other machines and there is no authentication yet; \
             listen on 127.0.0.1 or accept that with --insecure"
        )));
    }
    Ok(())
}

fn role(raw: &RawConfig, node: NodeId) -> Result<Role, ConfigError> {
    let replica_of: Option<Vec<String>> = raw.replica_of.as_ref().map(|list| match list {
        RawList::Text(text) => text.split(',').map(|a| a.trim().to_owned()).filter(|a| !a.is_empty()).collect(),
        RawList::Array(items) => items.clone(),
    });
    match (&raw.peers, replica_of) {
        (Some(_), Some(_)) => {
            Err(ConfigError("--peers makes a voter and --replica-of a replica; give one of them".into()))
        }
        (None, None) => Err(ConfigError(format!(
            "is it a voter or a replica? give --peers ID=HOST:PORT,... (every voter, this node included; \
             --peers {0}=127.0.0.1:{PORT_DEFAULT} alone makes a cluster of one) or --replica-of HOST:PORT,...",
            node.get()
        ))),
        (None, Some(of)) => {
            if of.is_empty() {
                return Err(ConfigError("--replica-of names no address".into()));
            }
            of.iter().try_for_each(|address| check_address("replica-of", address))?;
            Ok(Role::Replica(of))
        }
        (Some(peers), None) => {
            let peers = parse_peers(peers)?;
            if !peers.contains_key(&node) {
                let ids: Vec<String> = peers.keys().map(ToString::to_string).collect();
                return Err(ConfigError(format!("--peers lists {} but not this node, {node}", ids.join(", "))));
            }
            Ok(Role::Voter(peers))
        }
    }
}

/// What a voter asks to have its cluster founded with.
fn replicator(raw: &RawConfig, role: &Role) -> Result<Option<Protocol>, ConfigError> {
    let Some(name) = &raw.replicator else { return Ok(None) };
    let protocol: Protocol = name.parse().map_err(|e| ConfigError(format!("replicator: `{name}`: {e}")))?;
    match role {
        Role::Replica(_) => Err(ConfigError(
            "--replicator is for voters; a replica by --replica-of takes the entries as they come".into(),
        )),
        Role::Voter(peers) if protocol == Protocol::Paxos && peers.len() < 2 => Err(ConfigError(
            "the paxos replicator needs at least two voters; one voter alone runs with raft (leave --replicator out)"
                .into(),
        )),
        Role::Voter(peers) if protocol == Protocol::Paxos && peers.len() as u64 > paxos::VOTERS_MAX => {
            Err(ConfigError(format!(
                "the paxos replicator takes at most {} voters; --peers lists {}",
                paxos::VOTERS_MAX,
                peers.len()
            )))
        }
        Role::Voter(_) => Ok(Some(protocol)),
    }
}

impl TryFrom<RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        let id = raw.id.ok_or_else(|| ConfigError("which node is this? give --id NUMBER".into()))?;
        if id == 0 {
            return Err(ConfigError("--id 0 is not a node id; ids are whole numbers from 1".into()));
        }
        let node = NodeId::new(id);
        let role = role(&raw, node)?;
        let replicator = replicator(&raw, &role)?;
        let insecure = raw.insecure.unwrap_or(false);
        let listen = match (&raw.listen, &role) {
            (Some(listen), _) => listen.clone(),
            (None, Role::Voter(peers)) if peers.contains_key(&node) => peers[&node].clone(),
            (None, _) => format!("127.0.0.1:{PORT_DEFAULT}"),
        };
        check_listener("listen", &listen, insecure)?;
        if let Some(http) = &raw.http {
            check_listener("http", http, insecure)?;
            if http == &listen && !http.ends_with(":0") {
                return Err(ConfigError(format!("listen and http are both {http}; each needs its own port")));
            }
        }
        if let Some(advertise) = &raw.advertise {
            check_address("advertise", advertise)?;
        }
        let election_ms = raw.election_ms.unwrap_or(400);
        let heartbeat_ms = raw.heartbeat_ms.unwrap_or(50);
        if heartbeat_ms == 0 || election_ms < heartbeat_ms.saturating_mul(3) || election_ms > 60_000 {
            return Err(ConfigError(format!(
                "election_ms ({election_ms}) must be at least three times heartbeat_ms ({heartbeat_ms}) and at most 60000"
            )));
        }
        let log_json = match raw.log_format.as_deref() {
            None | Some("text") => false,
            Some("json") => true,
            Some(other) => return Err(ConfigError(format!("log_format: `{other}` is neither `text` nor `json`"))),
        };
        let cache_mb = raw.cache_mb.unwrap_or(256);
        if !(1..=1 << 20).contains(&cache_mb) {
            return Err(ConfigError(format!("cache_mb: {cache_mb} is not between 1 and {}", 1 << 20)));
        }
        let retention = Retention::of(&raw)?;
        Ok(Self {
            node,
            data: raw.data.unwrap_or_else(|| "quorate-data".into()),
            listen,
            http: raw.http,
            advertise: raw.advertise,
            role,
            replicator,
            insecure,
            log: raw.log.unwrap_or_else(|| "info".into()),
            log_json,
            cache_bytes: cache_mb << 20,
            election_ms,
            heartbeat_ms,
            test_hooks: None,
            retention,
            disk_reserve_bytes: raw
                .disk_reserve_mb
                .map_or(quorate_shared::limits::DISK_RESERVE_BYTES, |mb| mb.saturating_mul(1 << 20)),
        })
    }
}

impl fmt::Display for Config {
    /// As TOML that `--config` reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (peers, replica_of) = match &self.role {
            Role::Voter(peers) => {
                let table = peers.iter().map(|(id, address)| (id.get().to_string(), address.clone())).collect();
                (Some(RawPeers::Table(table)), None)
            }
            Role::Replica(of) => (None, Some(RawList::Array(of.clone()))),
        };
        let raw = RawConfig {
            id: Some(self.node.get()),
            data: Some(self.data.clone()),
            listen: Some(self.listen.clone()),
            http: self.http.clone(),
            advertise: self.advertise.clone(),
            replica_of,
            replicator: self.replicator.map(|protocol| protocol.name().into()),
            insecure: Some(self.insecure),
            log: Some(self.log.clone()),
            log_format: Some(if self.log_json { "json" } else { "text" }.into()),
            cache_mb: Some(self.cache_bytes >> 20),
            election_ms: Some(self.election_ms),
            heartbeat_ms: Some(self.heartbeat_ms),
            disk_reserve_mb: Some(self.disk_reserve_bytes >> 20),
            segment_mb: Some(self.retention.segment_bytes >> 20),
            base_min_mb: Some(self.retention.base_min_bytes >> 20),
            retention_mb: Some(self.retention.reader_bytes >> 20),
            peers,
        };
        f.write_str(&toml::to_string(&raw).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voter() -> RawConfig {
        RawConfig { id: Some(1), peers: Some(RawPeers::Text("1=127.0.0.1:7001".into())), ..RawConfig::default() }
    }

    fn refused(raw: RawConfig) -> String {
        Config::try_from(raw).expect_err("refused").0
    }

    #[test]
    fn a_replicator_is_named_by_voters_who_can_have_it() {
        let asked = |name: &str, raw: RawConfig| RawConfig { replicator: Some(name.into()), ..raw };
        assert!(refused(asked("paxos", voter())).contains("at least two voters"));
        assert!(refused(asked("zab", voter())).contains("raft and paxos"));
        let replica =
            RawConfig { id: Some(4), replica_of: Some(RawList::Text("127.0.0.1:7001".into())), ..RawConfig::default() };
        assert!(refused(asked("paxos", replica)).contains("for voters"));
        let two = RawConfig { peers: Some(RawPeers::Text("1=127.0.0.1:7001,2=127.0.0.1:7002".into())), ..voter() };
        assert_eq!(Config::try_from(asked("paxos", two.clone())).unwrap().replicator, Some(Protocol::Paxos));
        assert_eq!(Config::try_from(two).unwrap().replicator, None);
    }

    #[test]
    fn layers_win_in_order() {
        let file = RawConfig::from_toml("id = 1\ncache_mb = 1\nlog = 'a'\n[peers]\n1 = '127.0.0.1:7001'", "f").unwrap();
        let env = RawConfig::from_env([("QUORATED_CACHE_MB".into(), "2".into()), ("HOME".into(), "/".into())]).unwrap();
        let flags = RawConfig { cache_mb: Some(3), ..RawConfig::default() };
        let config = Config::try_from(file.overlay(env).overlay(flags)).unwrap();
        assert_eq!((config.cache_bytes, config.log.as_str(), config.listen.as_str()), (3 << 20, "a", "127.0.0.1:7001"));
    }

    #[test]
    fn unknown_names_get_the_nearest() {
        let file = RawConfig::from_toml("lissten = 'x'", "q.toml").expect_err("unknown").0;
        assert_eq!(file, "q.toml: unknown key `lissten`; did you mean `listen`?");
        let env = RawConfig::from_env([("QUORATED_REPLICAOF".into(), "x".into())]).expect_err("unknown").0;
        assert_eq!(env, "unknown environment variable `QUORATED_REPLICAOF`; did you mean `QUORATED_REPLICA_OF`?");
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        assert!(refused(RawConfig::default()).contains("--id"));
        assert!(refused(RawConfig { id: Some(1), ..RawConfig::default() }).contains("voter or a replica"));
        assert!(refused(RawConfig { id: Some(2), ..voter() }).contains("not this node, n2"));
        assert!(
            refused(RawConfig { replica_of: Some(RawList::Text("h:1".into())), ..voter() }).contains("one of them")
        );
        assert!(refused(RawConfig { listen: Some("0.0.0.0:1".into()), ..voter() }).contains("--insecure"));
        assert!(refused(RawConfig { listen: Some("localhost".into()), ..voter() }).contains("HOST:PORT"));
        assert!(refused(RawConfig { election_ms: Some(100), ..voter() }).contains("three times"));
        let twice = RawConfig { peers: Some(RawPeers::Text("1=h:1,1=h:2".into())), ..voter() };
        assert!(refused(twice).contains("twice"));
    }

    #[test]
    fn printed_is_read_back() {
        let config = Config::try_from(voter()).unwrap();
        let again = Config::try_from(RawConfig::from_toml(&config.to_string(), "printed").unwrap()).unwrap();
        assert_eq!(config, again);
    }
}
