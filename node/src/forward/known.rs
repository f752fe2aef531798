//! Which nodes there are, as this node knows: the catalog first, then what others say, then the command line.
//!
//! Invariant: a node that the catalog says was removed is not known, whoever else names it.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use quorate_shared::ids::{NodeId, ShardId};
use quorate_shared::status::NodeKind;
use quorate_shared::wire::NodeAddress;

use super::Forwarder;

impl Forwarder {
    /// Other nodes know these; for a node without a catalog of its own.
    pub fn heard_of(&self, nodes: Vec<NodeAddress>) {
        *self.heard_of.lock().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    /// Where to look for somebody, in this order and each once: the given addresses, the voters, everybody else.
    pub fn somewhere(&self, given: impl IntoIterator<Item = String>) -> Vec<String> {
        let mut known = self.known();
        known.sort_by_key(|node| node.kind == NodeKind::Replica);
        let mut all: Vec<String> = Vec::new();
        let known = known.into_iter().map(|node| node.address);
        for address in given.into_iter().chain(known).chain(self.peers.addresses()) {
            if address != self.address && !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }

    /// Every node known.
    pub fn known(&self) -> Vec<NodeAddress> {
        let mut nodes: BTreeMap<NodeId, NodeAddress> = BTreeMap::new();
        let (mut loaded, mut removed) = (false, Vec::new());
        if let Some(driver) = self.driver.get() {
            let catalog = driver.catalog();
            let meta = self.applied_point(ShardId::META).map(|point| point.membership).unwrap_or_default();
            for desc in catalog.nodes.values() {
                removed.extend(desc.is_removed().then_some(desc.id));
                let address = self.peers.address(desc.id).unwrap_or_else(|| desc.address.clone());
                let votes = meta.member_on(desc.id).map(|member| meta.votes(member.replica));
                let kind = match votes {
                    Some(true) => NodeKind::Voter,
                    Some(false) => NodeKind::Replica,
                    // Whoever is in no membership is shipped to; before there is one, a node's word counts.
                    None if !meta.voters.is_empty() => NodeKind::Replica,
                    None => desc.kind,
                };
                nodes.insert(desc.id, NodeAddress { node: desc.id, address, kind });
            }
            loaded = catalog.counters.is_some();
        }
        for known in self.heard_of.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            nodes.entry(known.node).or_insert_with(|| known.clone());
        }
        // The command line is a hint: the catalog knows who is in the cluster by now.
        for (node, address) in self.voters.iter().filter(|_| !loaded) {
            let entry = NodeAddress { node: *node, address: address.clone(), kind: NodeKind::Voter };
            nodes.entry(*node).or_insert(entry);
        }
        let me = NodeAddress { node: self.node, address: self.address.clone(), kind: self.kind };
        nodes.insert(self.node, me);
        nodes.retain(|node, _| !removed.contains(node));
        nodes.into_values().collect()
    }
}
