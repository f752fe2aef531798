//! Randomness from a seed: nothing in core draws it from anywhere else.

/// The splitmix64 generator: small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `min..max`; `min` if that is empty.
    pub(crate) fn range(&mut self, min: usize, max: usize) -> usize {
        let width = max.saturating_sub(min).max(1) as u64;
        min + usize::try_from(self.next() % width).unwrap_or(0)
    }
}
