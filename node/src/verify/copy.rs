//! A copy of a directory that goes away with its value.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::store::{StoreError, free_bytes, io_error, random_bytes, used_bytes};

/// Left free beside a copy.
const SPARE_BYTES: u64 = 64 << 20;

/// See the module.
pub struct Copied(PathBuf);

impl Copied {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // What is left behind is in a directory for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Copies a directory, where there is room.
pub fn of(from: &Path, scratch: Option<&Path>) -> Result<Copied, StoreError> {
    let scratch = scratch.map_or_else(std::env::temp_dir, Path::to_owned);
    let needed = used_bytes(from).saturating_add(SPARE_BYTES);
    let free = free_bytes(&scratch).map_err(io_error("use", &scratch))?;
    if free < needed {
        let why = format!("{needed} bytes are needed for a copy of the engine, {free} are free; give --scratch DIR");
        return Err(io_error("use", &scratch)(io::Error::new(io::ErrorKind::StorageFull, why)));
    }
    let name: String = random_bytes()?.iter().map(|b| format!("{b:02x}")).collect();
    let copied = Copied(scratch.join(format!("quorate-verify-{name}")));
    copy(from, &copied.0)?;
    Ok(copied)
}

fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::create_dir(to).map_err(io_error("create", to))?;
    for item in fs::read_dir(from).map_err(io_error("read", from))? {
        let path = item.map_err(io_error("read", from))?.path();
        let Some(name) = path.file_name() else { continue };
        let target = to.join(name);
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            fs::copy(&path, &target).map(drop).map_err(io_error("copy", &path))?;
        }
    }
    Ok(())
}
