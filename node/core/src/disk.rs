//! Files, behind a trait: what the segment log and snapshot files need of a disk, and nothing more.
//!
//! [`RealDisk`] is the operating system's; the simulator has one that loses what was not synced, tears the last write,
//! flips bits and stalls. The contract both keep:
//! - what was written is seen by every reader at once; it survives a power cut only after [`DiskFile::sync_data`];
//! - a name (made by `create`, `make_dir` or `rename`, taken away by `rename` or `remove`) survives a power cut only
//!   after [`Disk::sync_dir`] of its directory;
//! - `rename` onto an existing file replaces it whole, never halfway.
//!
//! Errors are the system's, unadorned: callers say which path they were about.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FallocateFlags;

/// A file system.
pub trait Disk: Send + Sync {
    /// Makes a directory and those above it, their names durable; one that is there is left alone.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    /// Names of the files and directories in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;
    /// A new, empty file for reading and writing; one of that name is emptied.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// An existing file for reading.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// An existing file for reading and writing.
    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name; what had that name is gone.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Whoever has it open reads on.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. Offsets are given with every call, so one handle serves any number of threads.
pub trait DiskFile: Send + Sync {
    /// Reads at most `buffer.len()` bytes; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes`; the file grows as needed, what is skipped reads as zeros.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes what was written durable, and the file's length (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Bytes of the file.
    fn len(&self) -> io::Result<u64>;
    /// Takes space for a file of this length, which reads as zeros; "the disk is full" is said here and not later,
    /// where the file system can promise that.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills the buffer, or `UnexpectedEof`.
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buffer = &mut buffer[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// All of it; for files whose length the caller has bounded.
    fn read_all(&self) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut bytes = vec![0; len];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// The operating system's files.
#[derive(Clone, Copy, Default, Debug)]
pub struct RealDisk;

impl RealDisk {
    /// As a shared disk.
    pub fn shared() -> Arc<dyn Disk> {
        Arc::new(Self)
    }
}

impl Disk for RealDisk {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.make_dir(parent)?;
        }
        match fs::create_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            made => made?,
        }
        parent.map_or(Ok(()), |parent| self.sync_dir(parent))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let mut names = fs::read_dir(dir)?.map(|item| item.map(|i| i.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(File::open(path)?)))
    }

    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(File::options().read(true).write(true).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.0)?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            // Not every file system can: then space is taken as it is written.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                self.0.set_len(bytes.max(self.0.metadata()?.len()))
            }
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_disk_keeps_the_contract() {
        let tmp = tempfile::tempdir().unwrap();
        let disk = RealDisk::shared();
        let dir = tmp.path().join("a/b");
        disk.make_dir(&dir).unwrap();
        disk.make_dir(&dir).unwrap();
        assert_eq!(disk.open(&dir.join("x")).err().unwrap().kind(), io::ErrorKind::NotFound);
        let file = disk.create(&dir.join("x")).unwrap();
        file.allocate(100).unwrap();
        file.write_at(b"abc", 98).unwrap();
        file.sync_data().unwrap();
        assert_eq!((file.len().unwrap(), file.is_empty().unwrap()), (101, false));
        let mut byte = [9; 4];
        assert_eq!(file.read_at(&mut byte, 97).unwrap(), 4);
        assert_eq!(&byte, b"\0abc");
        assert_eq!(file.read_at(&mut byte, 101).unwrap(), 0);
        assert_eq!(file.read_exact_at(&mut byte, 98).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        disk.create(&dir.join("y")).unwrap().write_at(b"old", 0).unwrap();
        disk.rename(&dir.join("x"), &dir.join("y")).unwrap();
        disk.sync_dir(&dir).unwrap();
        assert_eq!(disk.list(&dir).unwrap(), ["y"]);
        let again = disk.open_write(&dir.join("y")).unwrap();
        disk.remove(&dir.join("y")).unwrap();
        assert_eq!(again.read_all().unwrap().len(), 101);
        assert!(disk.list(&dir).unwrap().is_empty());
    }
}
