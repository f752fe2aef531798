//! What was typed before: one entry per statement, in a file only its owner can read, without secrets.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::{FileConfig, xdg};

/// Entries kept.
pub const ENTRIES_MAX: usize = 10_000;
/// Longer entries are pasted data, not something to go back to.
const ENTRY_BYTES_MAX: usize = 64 << 10;

/// Where the history is kept; `None` if nowhere.
pub fn path(config: &FileConfig) -> Option<PathBuf> {
    let set = std::env::var_os("QUORATE_HISTFILE").map(PathBuf::from).or_else(|| config.history_file.clone());
    match set {
        Some(path) if path.as_os_str().is_empty() => None,
        Some(path) => Some(path),
        None => xdg("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("quorate/history")),
    }
}

/// Makes sure that the file is there and nobody else can read it.
pub fn prepare(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty() && !f.exists()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let metadata = file.metadata()?;
    // Special files (`/dev/null`) keep their permissions.
    if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Whether an entry may be kept: not empty, not hidden by a leading space, without a secret.
pub fn keeps(entry: &str) -> bool {
    let lower = entry.to_lowercase();
    let secret = ["password", "identified by", "secret", "access_key", "private key", "passphrase"];
    !entry.trim().is_empty()
        && !entry.starts_with(' ')
        && entry.len() <= ENTRY_BYTES_MAX
        && !secret.iter().any(|s| lower.contains(s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_kept() {
        assert!(keeps("select 1;"));
        assert!(!keeps("create user u identified by 'S3cret'"));
        assert!(!keeps("ALTER USER u PASSWORD 'x'"));
        assert!(!keeps(" select 1"));
        assert!(!keeps("  "));
    }

    #[test]
    fn only_the_owner_reads_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a/b/history");
        prepare(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
        prepare(&path).expect("made");
        let mode = |p: &Path| fs::metadata(p).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a folder")), 0o700);
    }
}
