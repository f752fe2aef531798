//! The node's key: made at its first start, kept in its directory, never shown.
//!
//! `node.key` is the secret half of an ed25519 key as 64 hex digits, readable by its owner only. A node that lost it makes
//! a new one; anchors signed with the old one name its id.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use quorate_shared::anchor::{NodeKey, hex, unhex};

use super::{StoreError, io_error, random_bytes, sync_directory};

const FILE: &str = "node.key";

/// The key of a directory, made if there is none.
pub fn open(directory: &Path) -> Result<NodeKey, StoreError> {
    let path = directory.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => match unhex::<32>(text.trim()) {
            Some(secret) => Ok(NodeKey::from_secret(&secret)),
            None => Err(StoreError::Damaged {
                path,
                why: "it is not 64 hex digits; remove it and the node makes a new key".into(),
            }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => make(directory, &path),
        Err(e) => Err(io_error("read", &path)(e)),
    }
}

fn make(directory: &Path, path: &Path) -> Result<NodeKey, StoreError> {
    let mut secret = [0; 32];
    secret[..16].copy_from_slice(&random_bytes()?);
    secret[16..].copy_from_slice(&random_bytes()?);
    let unfinished = directory.join("node.key.new");
    let write = || -> io::Result<()> {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(format!("{}\n", hex(&secret)).as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().map_err(io_error("write", path))?;
    sync_directory(directory)?;
    Ok(NodeKey::from_secret(&secret))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_stays_and_is_private() {
        let tmp = tempfile::tempdir().unwrap();
        let key = open(tmp.path()).unwrap().public();
        assert_eq!(open(tmp.path()).unwrap().public(), key);
        let mode = fs::metadata(tmp.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(tmp.path().join(FILE), "x").unwrap();
        assert!(open(tmp.path()).err().unwrap().to_string().contains("not 64 hex digits"));
    }
}
