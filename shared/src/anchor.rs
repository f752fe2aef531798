//! Anchors: where the chains of a cluster stood, signed by its nodes, to be kept outside of it.
//!
//! A hash chain proves that nothing changed by accident; who can write the files can also recompute it. An anchor is a
//! small JSON document that says *at this index the chain was this*, with the signature of every node that had computed
//! the same. Kept elsewhere, it makes editing anything at or before that index visible.
//!
//! What is signed are the bytes of [`Anchor::canonical`]: lines of text that anybody can write down again from the
//! document. A key is named by its id, the first 16 hex digits of the public key. An anchor is *strong* when a majority of
//! the voters signed it.
//!
//! Invariant: a signature counts once per node, and only if it is right. Left out: whose a key is; the reader compares key
//! ids with those the nodes show (`quorate verify` does), or with what was noted down.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Epoch, Hash, Index, NodeId, ShardId};

/// Version of the document.
pub const FORMAT: u32 = 1;
/// No anchor is longer.
pub const ANCHOR_BYTES_MAX: usize = 256 << 10;

/// Why a document is no anchor, or says nothing.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum AnchorError {
    /// It cannot be read.
    #[error("this is no anchor: {0}")]
    Malformed(String),
    /// Written by a newer version.
    #[error("the anchor has format {0}; this version reads {FORMAT}")]
    Newer(u32),
    /// It is of another cluster.
    #[error("the anchor is of cluster {anchor}, this is cluster {ours}")]
    OtherCluster {
        /// The anchor's.
        anchor: String,
        /// This one.
        ours: String,
    },
    /// A signature is wrong.
    #[error("the signature of {0} is not right: the anchor was changed after it was signed")]
    Forged(String),
    /// Nobody signed it.
    #[error("nobody has signed the anchor")]
    Unsigned,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    /// [`FORMAT`].
    pub quorate_anchor: u32,
    /// The cluster, in hex.
    pub cluster: String,
    /// When it was made, RFC 3339 UTC, by the clock of the node that was asked.
    pub time: String,
    /// The voters then.
    pub voters: Vec<String>,
    /// Where each chain stood.
    pub shards: Vec<AnchoredShard>,
    /// By whom it is signed.
    pub signatures: Vec<AnchorSignature>,
}

/// Where a shard's chain stood.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchoredShard {
    /// e.g. `s1`.
    pub shard: String,
    /// The epoch's number.
    pub epoch: u64,
    /// The epoch's id, in hex.
    pub epoch_id: String,
    /// The index.
    pub index: u64,
    /// The chain's hash there, in hex.
    pub chain: String,
}

/// A node's signature.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorSignature {
    /// e.g. `n1`.
    pub node: String,
    /// Its public key, in hex.
    pub key: String,
    /// Over the canonical bytes, in hex.
    pub signature: String,
}

/// What the signatures of an anchor are worth.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// Nodes whose signature is right, each with its key's id.
    pub signed: Vec<(String, String)>,
    /// Voters among them.
    pub voters: usize,
    /// Voters there were.
    pub of: usize,
    /// A majority of the voters signed.
    pub strong: bool,
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// From hex.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(out)
}

/// The id of a public key in hex: its first 16 digits.
pub fn key_id(key: &str) -> String {
    key.chars().take(16).collect()
}

impl AnchoredShard {
    /// Where a chain stands.
    pub fn new(shard: ShardId, epoch: Epoch, index: Index, chain: Hash) -> Self {
        Self {
            shard: shard.to_string(),
            epoch: epoch.number,
            epoch_id: format!("{:016x}", epoch.id),
            index: index.get(),
            chain: hex(&chain.0),
        }
    }

    /// The shard.
    pub fn id(&self) -> Option<ShardId> {
        self.shard.strip_prefix('s')?.parse().ok().map(ShardId::new)
    }

    /// The chain's hash.
    pub fn hash(&self) -> Option<Hash> {
        unhex(&self.chain).map(Hash)
    }
}

impl Anchor {
    /// Not signed yet.
    pub fn new(cluster: ClusterId, time: String, voters: &[NodeId], shards: Vec<AnchoredShard>) -> Self {
        Self {
            quorate_anchor: FORMAT,
            cluster: cluster.to_string(),
            time,
            voters: voters.iter().map(ToString::to_string).collect(),
            shards,
            signatures: Vec::new(),
        }
    }

    /// From a document.
    pub fn parse(text: &str) -> Result<Self, AnchorError> {
        let malformed = |e: &dyn std::fmt::Display| AnchorError::Malformed(e.to_string());
        if text.len() > ANCHOR_BYTES_MAX {
            return Err(malformed(&format!("it has {} bytes", text.len())));
        }
        let any: serde_json::Value = serde_json::from_str(text).map_err(|e| malformed(&e))?;
        match any.get("quorate_anchor").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => return Err(AnchorError::Newer(u32::try_from(format).unwrap_or(u32::MAX))),
            None => return Err(malformed(&"it does not say that it is one")),
        }
        let anchor: Self = serde_json::from_value(any).map_err(|e| malformed(&e))?;
        for shard in &anchor.shards {
            if shard.id().is_none() || shard.hash().is_none() || unhex::<8>(&shard.epoch_id).is_none() {
                return Err(malformed(&format!("what it says of {:?} cannot be read", shard.shard)));
            }
        }
        // What is signed is text; a line's end in it would make two anchors out of one signature.
        let texts = anchor.voters.iter().chain([&anchor.cluster, &anchor.time]);
        if anchor.shards.is_empty() || texts.into_iter().any(|t| t.chars().any(|c| c.is_whitespace() || c.is_control()))
        {
            return Err(malformed(&"it has no shards, or blanks where none may be"));
        }
        Ok(anchor)
    }

    /// As a document.
    pub fn document(&self) -> String {
        // Plain data has a JSON.
        serde_json::to_string_pretty(self).map(|json| json + "\n").unwrap_or_default()
    }

    /// What is signed.
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = format!("quorate anchor {}\ncluster {}\ntime {}\n", self.quorate_anchor, self.cluster, self.time);
        out += &format!("voters {}\n", self.voters.join(" "));
        for s in &self.shards {
            out += &format!("{} epoch {} {} index {} chain {}\n", s.shard, s.epoch, s.epoch_id, s.index, s.chain);
        }
        out.into_bytes()
    }

    /// Refuses an anchor of another cluster.
    pub fn check_cluster(&self, cluster: &str) -> Result<(), AnchorError> {
        if self.cluster == cluster {
            return Ok(());
        }
        Err(AnchorError::OtherCluster { anchor: self.cluster.clone(), ours: cluster.to_owned() })
    }

    /// Checks every signature.
    pub fn check(&self) -> Result<Checked, AnchorError> {
        let message = self.canonical();
        let mut signed: Vec<(String, String)> = Vec::new();
        for one in &self.signatures {
            let key = unhex(&one.key).and_then(|key| VerifyingKey::from_bytes(&key).ok());
            let signature = unhex(&one.signature).map(|bytes| Signature::from_bytes(&bytes));
            let right = key.zip(signature).is_some_and(|(key, s)| key.verify_strict(&message, &s).is_ok());
            if !right || signed.iter().any(|(node, _)| *node == one.node) {
                return Err(AnchorError::Forged(one.node.clone()));
            }
            signed.push((one.node.clone(), key_id(&one.key)));
        }
        if signed.is_empty() {
            return Err(AnchorError::Unsigned);
        }
        let voters = signed.iter().filter(|(node, _)| self.voters.contains(node)).count();
        Ok(Checked { voters, of: self.voters.len(), strong: voters > self.voters.len() / 2, signed })
    }
}

/// A node's key.
pub struct NodeKey(SigningKey);

impl NodeKey {
    /// From its 32 secret bytes.
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The public key, in hex.
    pub fn public(&self) -> String {
        hex(self.0.verifying_key().as_bytes())
    }

    /// Signs an anchor in the name of a node.
    pub fn sign(&self, anchor: &Anchor, node: NodeId) -> AnchorSignature {
        let signature = self.0.sign(&anchor.canonical());
        AnchorSignature { node: node.to_string(), key: self.public(), signature: hex(&signature.to_bytes()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor() -> Anchor {
        let shard = AnchoredShard::new(ShardId::DATA, Epoch { number: 1, id: 255 }, Index::new(300), Hash([0xcc; 32]));
        let voters = [NodeId::new(1), NodeId::new(2), NodeId::new(3)];
        Anchor::new(ClusterId([7; 16]), "2030-01-01T00:00:00.000Z".into(), &voters, vec![shard])
    }

    fn signed(by: &[u64]) -> Anchor {
        let mut anchor = anchor();
        let sign = |n: &u64| NodeKey::from_secret(&[*n as u8; 32]).sign(&anchor, NodeId::new(*n));
        let signatures = by.iter().map(sign).collect();
        anchor.signatures = signatures;
        anchor
    }

    #[test]
    fn golden() {
        let text = String::from_utf8(anchor().canonical()).unwrap();
        assert_eq!(
            text,
            format!(
                "quorate anchor 1\ncluster {}\ntime 2030-01-01T00:00:00.000Z\nvoters n1 n2 n3\n\
                 s1 epoch 1 00000000000000ff index 300 chain {}\n",
                "07".repeat(16),
                "cc".repeat(32)
            )
        );
        let key = NodeKey::from_secret(&[1; 32]);
        assert_eq!(key_id(&key.public()), "8a88e3dd7409f195");
        let document = signed(&[1]).document();
        assert_eq!(Anchor::parse(&document).unwrap(), signed(&[1]));
    }

    #[test]
    fn a_majority_makes_it_strong() {
        let weak = signed(&[1]).check().unwrap();
        assert!(!weak.strong && weak.voters == 1 && weak.of == 3);
        // A replica's signature is right, but it is no vote.
        assert!(!signed(&[1, 4]).check().unwrap().strong);
        assert!(signed(&[1, 3]).check().unwrap().strong);
        assert_eq!(signed(&[]).check(), Err(AnchorError::Unsigned));
    }

    #[test]
    fn any_change_is_noticed() {
        let good = signed(&[1, 2]);
        let mut twice = good.clone();
        twice.signatures.push(twice.signatures[0].clone());
        assert_eq!(twice.check(), Err(AnchorError::Forged("n1".into())));
        let mut other = good.clone();
        other.shards[0].index += 1;
        assert_eq!(other.check(), Err(AnchorError::Forged("n1".into())));
        let mut other = good.clone();
        other.signatures[1].node = "n3".into();
        // The signature is still n2's key's: whose key it is shows by its id.
        assert_eq!(other.check().unwrap().signed[1].1, key_id(&NodeKey::from_secret(&[2; 32]).public()));
        assert!(good.check_cluster(&"08".repeat(16)).unwrap_err().to_string().contains("is of cluster 0707"));
        let text = good.document();
        for at in (0..text.len()).step_by(11) {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            let same = match Anchor::parse(&changed) {
                Err(_) => continue,
                Ok(anchor) => anchor,
            };
            let named = |a: &Anchor| a.signatures.iter().map(|s| s.node.clone()).collect::<Vec<_>>();
            assert!(same.check().is_err() || named(&same) != named(&good) || same == good, "byte {at}: {changed}");
        }
    }

    #[test]
    fn what_is_no_anchor_is_said() {
        for (text, why) in [
            ("", "no anchor"),
            ("{}", "does not say"),
            (r#"{"quorate_anchor": 2}"#, "format 2"),
            (r#"{"quorate_anchor": 1}"#, "missing field"),
        ] {
            assert!(Anchor::parse(text).unwrap_err().to_string().contains(why), "{text}");
        }
        let mut two = anchor();
        two.voters = vec!["n1\ns0 epoch".into()];
        assert!(Anchor::parse(&two.document()).is_err());
    }
}
