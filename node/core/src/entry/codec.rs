//! Numbers and byte strings inside entries and the machine's records: LEB128 varints, length-prefixed bytes.
//!
//! Decoding never panics and never allocates more than what is there.

use bytes::Bytes;

/// Bytes that end too early or say something impossible.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
#[error("malformed at byte {0}")]
pub struct Malformed(pub usize);

/// Appends a number.
pub fn put_u64(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends a signed number; small magnitudes are short.
pub fn put_i64(out: &mut Vec<u8>, n: i64) {
    put_u64(out, ((n << 1) ^ (n >> 63)) as u64);
}

/// Appends length and bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Takes things off the front of shared bytes; what is taken shares them.
pub struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    /// From the start.
    pub fn new(bytes: &'a Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    /// The error for this position.
    pub fn malformed(&self) -> Malformed {
        Malformed(self.at)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        let b = *self.bytes.get(self.at).ok_or(Malformed(self.at))?;
        self.at += 1;
        Ok(b)
    }

    /// A number; only its shortest form is accepted, so one value has one encoding.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.u8()?;
            if shift == 63 && b > 1 {
                return Err(self.malformed());
            }
            n |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return if b == 0 && shift > 0 { Err(self.malformed()) } else { Ok(n) };
            }
        }
        Err(self.malformed())
    }

    /// A signed number.
    pub fn i64(&mut self) -> Result<i64, Malformed> {
        let n = self.u64()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    /// So many bytes, as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let raw = self.bytes.get(self.at..self.at + N).ok_or(Malformed(self.at))?;
        self.at += N;
        raw.try_into().map_err(|_| Malformed(self.at))
    }

    /// So many bytes, shared.
    pub fn take(&mut self, len: usize) -> Result<Bytes, Malformed> {
        if len > self.bytes.len() - self.at {
            return Err(self.malformed());
        }
        let taken = self.bytes.slice(self.at..self.at + len);
        self.at += len;
        Ok(taken)
    }

    /// Length and bytes.
    pub fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let len = self.count()?;
        self.take(len)
    }

    /// A count of things that take at least a byte each; more than bytes are left is malformed.
    pub fn count(&mut self) -> Result<usize, Malformed> {
        let n = self.u64()?;
        match usize::try_from(n) {
            Ok(n) if n <= self.bytes.len() - self.at => Ok(n),
            _ => Err(self.malformed()),
        }
    }

    /// `None` for 0, else a count that is one less than what is written.
    pub fn count_plus_one(&mut self) -> Result<Option<usize>, Malformed> {
        match self.u64()? {
            0 => Ok(None),
            n => match usize::try_from(n - 1) {
                Ok(n) if n <= self.bytes.len() - self.at => Ok(Some(n)),
                _ => Err(self.malformed()),
            },
        }
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), Malformed> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.malformed()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(a: u64, b: i64, c: Vec<u8>) {
            let mut out = Vec::new();
            put_u64(&mut out, a);
            put_i64(&mut out, b);
            put_bytes(&mut out, &c);
            let bytes = Bytes::from(out);
            let mut r = Reader::new(&bytes);
            prop_assert_eq!((r.u64().unwrap(), r.i64().unwrap(), r.bytes().unwrap().to_vec()), (a, b, c));
            prop_assert!(r.end().is_ok());
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let mut r = Reader::new(&bytes);
            let _ = (r.u64(), r.i64(), r.bytes(), r.count(), r.array::<4>(), r.end());
        }
    }
}
