//! Numbers of a table (SERIAL, AUTO_INCREMENT, hidden row ids): given from blocks that an entry has granted.
//!
//! A new leader starts behind the last block granted, so numbers are never given twice; gaps are normal.

/// Numbers granted at a time.
const BLOCK: i64 = 1_000;

/// The state of one table's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Numbers {
    /// The next one to give; `None`: they are used up.
    next: Option<i64>,
    /// The first one no entry has granted yet.
    granted: i64,
    /// `granted` has to be written with whatever uses a number.
    pub unsaved: bool,
}

impl Numbers {
    /// From what is stored; a table without a record starts at 1.
    pub fn stored(next: Option<i64>) -> Self {
        let granted = next.unwrap_or(1);
        Self { next: Some(granted), granted, unsaved: false }
    }

    /// From 1 again, to be written.
    pub fn restarted() -> Self {
        Self { unsaved: true, ..Self::stored(None) }
    }

    /// The next number; `None` if there is none left.
    pub fn next(&mut self) -> Option<i64> {
        let number = self.next?;
        self.used(number);
        Some(number)
    }

    /// A number has been used, given from here or not: later ones are larger.
    pub fn used(&mut self, number: i64) {
        let Some(next) = self.next else { return };
        if number < next {
            return;
        }
        self.next = number.checked_add(1);
        if number >= self.granted {
            self.granted = number.saturating_add(BLOCK);
            self.unsaved = true;
        }
    }

    /// The first number not granted any more, to be written.
    pub fn granted(&self) -> i64 {
        self.granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_granted_and_explicit_numbers_skip_ahead() {
        let mut n = Numbers::stored(None);
        assert_eq!((n.next(), n.granted(), n.unsaved), (Some(1), 1001, true));
        n.unsaved = false;
        for i in 2..=1000 {
            assert_eq!(n.next(), Some(i));
        }
        assert!(!n.unsaved);
        assert_eq!((n.next(), n.granted(), n.unsaved), (Some(1001), 2001, true));
        n.used(5000);
        n.used(7);
        assert_eq!((n.next(), n.granted()), (Some(5001), 6000));
        assert_eq!(Numbers::stored(Some(6000)).next(), Some(6000));
        n.used(i64::MAX);
        assert_eq!(n.next(), None);
    }
}
