//! The seal: checksums of every block of the engine's files, taken when it has been closed cleanly.
//!
//! sled finds damage when it happens to read it, and skips some of it when it recovers. Between a clean close and the next
//! start nobody writes, so a checksum over everything finds any flipped bit there, also in space that sled does not use.
//! Closing reads the files for it, up to [`SEAL_BYTES_MAX`]; opening checks small engines again; `verify` checks always.
//!
//! `engine.seal`: `quorate seal 1`, one line per file (`file <bytes> <name>`) followed by one of checksums (crc32c of each
//! block of 64 KiB, in hex), at the end `sum` and the crc32c of everything before it. It is removed before anything is
//! written.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "engine.seal";
const FIRST_LINE: &str = "quorate seal 1";
const BLOCK: usize = 64 << 10;
/// Larger engines are not sealed: closing must not take long.
const SEAL_BYTES_MAX: u64 = 2 << 30;
/// Larger engines are not checked when they are opened: starting must not take long.
pub(super) const OPEN_BYTES_MAX: u64 = 128 << 20;

/// A file that is not as it was when it was sealed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// What is wrong.
    pub what: String,
    /// Its name in the engine's directory; of the seal itself, its own.
    pub file: String,
    /// The first byte of the damaged block.
    pub offset: Option<u64>,
}

fn broken(file: &str, offset: Option<u64>, what: &str) -> Broken {
    Broken { what: what.into(), file: file.into(), offset }
}

/// Seals the closed engine in `dir`; a large one is left without.
pub(super) fn write(data: &Path, dir: &Path) -> io::Result<()> {
    let files = files(dir)?;
    if files.iter().map(|(_, bytes)| bytes).sum::<u64>() > SEAL_BYTES_MAX {
        return Ok(());
    }
    let mut text = format!("{FIRST_LINE}\n");
    for (name, bytes) in files {
        let sums: Vec<String> = sums(&dir.join(&name))?.iter().map(|sum| format!("{sum:08x}")).collect();
        text += &format!("file {bytes} {name}\n{}\n", sums.join(" "));
    }
    text += &format!("sum {:08x}\n", crc32c::crc32c(text.as_bytes()));
    let mut file = File::create(data.join(FILE))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Takes the seal away; the engine is about to be written.
pub(super) fn remove(data: &Path) -> io::Result<()> {
    match fs::remove_file(data.join(FILE)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Compares the files with the seal, if there is one; one for more than `bytes_max` is not looked at.
pub(super) fn check(data: &Path, dir: &Path, bytes_max: u64) -> Vec<Broken> {
    let text = match fs::read(data.join(FILE)) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => return vec![broken(FILE, None, &format!("the engine's seal cannot be read: {e}"))],
    };
    let Some(sealed) = parse(&text) else {
        return vec![broken(FILE, None, "the engine's seal is damaged")];
    };
    if sealed.iter().map(|(_, bytes, _)| bytes).sum::<u64>() > bytes_max {
        return Vec::new();
    }
    sealed.iter().filter_map(|(name, bytes, sums)| check_file(dir, name, *bytes, sums)).collect()
}

fn check_file(dir: &Path, name: &str, bytes: u64, sealed: &[u32]) -> Option<Broken> {
    let path = dir.join(name);
    match fs::metadata(&path) {
        Ok(meta) if meta.len() == bytes => {}
        Ok(meta) => {
            let what = format!("the engine's file has {} bytes, {bytes} when it was closed", meta.len());
            return Some(broken(name, None, &what));
        }
        Err(e) => return Some(broken(name, None, &format!("the engine's file cannot be read: {e}"))),
    }
    match sums(&path) {
        Ok(found) => {
            let at = found.iter().zip(sealed).position(|(a, b)| a != b)?;
            let what = "the engine's file is not what was closed, in this block of 65536 bytes";
            Some(broken(name, Some((at * BLOCK) as u64), what))
        }
        Err(e) => Some(broken(name, None, &format!("the engine's file cannot be read: {e}"))),
    }
}

type Sealed = Vec<(String, u64, Vec<u32>)>;

fn parse(text: &[u8]) -> Option<Sealed> {
    let text = std::str::from_utf8(text).ok()?;
    let (body, sum) = text.strip_suffix('\n')?.rsplit_once("sum ")?;
    if format!("{:08x}", crc32c::crc32c(body.as_bytes())) != sum {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()? != FIRST_LINE {
        return None;
    }
    let mut sealed = Vec::new();
    while let Some(line) = lines.next() {
        let (bytes, name) = line.strip_prefix("file ")?.split_once(' ')?;
        let sums = lines.next()?.split(' ').filter(|s| !s.is_empty());
        let sums = sums.map(|sum| u32::from_str_radix(sum, 16).ok()).collect::<Option<_>>()?;
        sealed.push((name.to_owned(), bytes.parse().ok()?, sums));
    }
    Some(sealed)
}

/// Names, relative, and bytes, in order.
fn files(dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut out = Vec::new();
    let mut rest = vec![PathBuf::new()];
    while let Some(at) = rest.pop() {
        for item in fs::read_dir(dir.join(&at))? {
            let item = item?;
            let name = at.join(item.file_name());
            if item.file_type()?.is_dir() {
                rest.push(name);
            } else {
                out.push((name.to_string_lossy().into_owned(), item.metadata()?.len()));
            }
        }
    }
    out.sort();
    Ok(out)
}

fn sums(path: &Path) -> io::Result<Vec<u32>> {
    let mut file = File::open(path)?;
    let mut block = vec![0; BLOCK];
    let mut out = Vec::new();
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            match file.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if filled == 0 {
            return Ok(out);
        }
        out.push(crc32c::crc32c(&block[..filled]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_is_under_it() {
        let dir = tempfile::tempdir().unwrap();
        let (data, engine) = (dir.path(), dir.path().join("engine"));
        fs::create_dir_all(engine.join("blobs")).unwrap();
        let bytes: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        fs::write(engine.join("db"), &bytes).unwrap();
        fs::write(engine.join("conf"), b"abc").unwrap();
        write(data, &engine).unwrap();
        assert_eq!(check(data, &engine, u64::MAX), []);
        for byte in (0..bytes.len()).step_by(3331) {
            let mut bad = bytes.clone();
            bad[byte] ^= 1 << (byte % 8);
            fs::write(engine.join("db"), &bad).unwrap();
            let found = check(data, &engine, u64::MAX);
            assert_eq!((found.len(), &*found[0].file), (1, "db"));
            assert_eq!(found[0].offset, Some((byte / BLOCK * BLOCK) as u64));
        }
        assert_eq!(check(data, &engine, 1000), [], "too large to be looked at");
        fs::write(engine.join("db"), &bytes[1..]).unwrap();
        assert!(check(data, &engine, u64::MAX)[0].what.contains("199999"));
        fs::write(engine.join("db"), &bytes).unwrap();
        let seal = fs::read(data.join(FILE)).unwrap();
        for byte in 0..seal.len() {
            let mut bad = seal.clone();
            bad[byte] ^= 1 << (byte % 8);
            fs::write(data.join(FILE), &bad).unwrap();
            assert_eq!(check(data, &engine, u64::MAX).len(), 1, "byte {byte} of the seal");
        }
        remove(data).unwrap();
        remove(data).unwrap();
        assert_eq!(check(data, &engine, u64::MAX), []);
    }
}
