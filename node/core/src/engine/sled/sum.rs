//! The sum: whether a tree holds everything that was written to it, and nothing else.
//!
//! A checksum per value says nothing of a value that is gone, or is back. When sled recovers after a kill it passes over
//! damaged messages of its files, and with them over what they said: then some keys are missing or as they were before.
//! So each tree keeps a sum over the checksums of all its values in one more key, written in each batch. A *round* reads
//! the tree to its end, a bounded step at a time, and compares. Batches go on between the steps: what they do to keys
//! that were seen already is done to the sum of what was seen, too.
//!
//! Invariant: steps and batches take turns (one lock around both). A difference of one value goes unnoticed in one of
//! 2^32 cases, of several in one of 2^64. It is for accidents; the hash chain is for the rest.
//!
//! Stored: crc32c u32 (of key and the rest), keys u64, sum u64.

use crate::keys::ENGINE_PREFIX;

/// Where it is stored: before all chunks.
pub(super) const KEY: [u8; 1] = [ENGINE_PREFIX];

/// An order-independent sum over stored values by their checksums (which are over the keys, too).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Sum {
    keys: u64,
    sum: u64,
}

impl Sum {
    /// A value is there now; this is how it is stored.
    pub(super) fn add(&mut self, stored: &[u8]) {
        self.keys = self.keys.wrapping_add(1);
        self.sum = self.sum.wrapping_add(spread(stored));
    }

    /// A value is there no more.
    pub(super) fn remove(&mut self, stored: &[u8]) {
        self.keys = self.keys.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(spread(stored));
    }

    /// Its stored bytes.
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = vec![0; 4];
        out.extend_from_slice(&self.keys.to_be_bytes());
        out.extend_from_slice(&self.sum.to_be_bytes());
        super::seal(&mut out, &KEY);
        out
    }

    /// From them, if they are what was written.
    pub(super) fn decode(stored: &[u8]) -> Option<Self> {
        let (keys, sum) = super::unseal(&KEY, stored)?.split_first_chunk::<8>()?;
        Some(Self { keys: u64::from_be_bytes(*keys), sum: u64::from_be_bytes(sum.try_into().ok()?) })
    }
}

/// A stored value's checksum over 64 bits, so that differences do not cancel out.
fn spread(stored: &[u8]) -> u64 {
    let crc = stored.first_chunk::<4>().map_or(0, |crc| u32::from_be_bytes(*crc));
    let mut z = u64::from(crc).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A tree's sum, and the round that is under way.
#[derive(Clone, Default)]
pub(super) struct Summed {
    /// Of everything in the tree, as the last batch left it.
    pub(super) total: Sum,
    pub(super) round: Option<Round>,
}

/// What a round has seen.
#[derive(Clone, Default)]
pub(super) struct Round {
    /// Everything before it.
    pub(super) next: Vec<u8>,
    /// The sum of it, as it is now.
    pub(super) seen: Sum,
}

impl Summed {
    /// A batch changes what is stored under a key.
    pub(super) fn change(&mut self, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
        let seen = self.round.as_mut().filter(|round| key < &round.next[..]).map(|round| &mut round.seen);
        for sum in [Some(&mut self.total), seen].into_iter().flatten() {
            if let Some(old) = old {
                sum.remove(old);
            }
            if let Some(new) = new {
                sum.add(new);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let mut sum = Sum::default();
        sum.add(&[1, 2, 3, 4, 0]);
        sum.add(&[0xff, 0, 0, 1]);
        let hex: String = sum.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "be61cc50000000000000000267922f72ad5451a9");
        assert_eq!(Sum::decode(&sum.encode()), Some(sum));
        for bit in 0..20 * 8 {
            let mut bad = sum.encode();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Sum::decode(&bad), None);
        }
    }
}
