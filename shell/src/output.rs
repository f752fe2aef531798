//! Where results go: standard output, a file, or nowhere.
//!
//! Invariant: when the reader of a pipe has gone (`| head`), output quietly goes nowhere and statements go on, so that
//! the exit code keeps telling what happened to them. Everything else that cannot be written is an error.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Stdout, Write};
use std::path::Path;

use tokio::io::Interest;
use tokio::net::unix::pipe;

/// Waits until nobody reads standard output any more, though nothing is written; for ever where that cannot be seen.
pub async fn reader_gone() {
    // A writer of its own: waiting on the one in use would make that one non-blocking.
    if let Ok(pipe) = pipe::OpenOptions::new().open_sender("/proc/self/fd/1") {
        while let Ok(ready) = pipe.ready(Interest::ERROR).await {
            if ready.is_error() {
                return;
            }
        }
    }
    std::future::pending().await
}

/// The target of results.
pub struct Output {
    to: To,
    gone: bool,
}

enum To {
    Stdout(BufWriter<Stdout>),
    File(BufWriter<File>),
    Memory(Vec<u8>),
}

impl Output {
    /// Standard output.
    pub fn stdout() -> Output {
        Output { to: To::Stdout(BufWriter::new(io::stdout())), gone: false }
    }

    /// A file, emptied first.
    pub fn file(path: &Path) -> io::Result<Output> {
        Ok(Output { to: To::File(BufWriter::new(File::create(path)?)), gone: false })
    }

    /// Memory, for tests.
    pub fn memory() -> Output {
        Output { to: To::Memory(Vec::new()), gone: false }
    }

    /// What was written to memory so far; empty for other targets.
    pub fn take_memory(&mut self) -> String {
        match &mut self.to {
            To::Memory(bytes) => String::from_utf8_lossy(&std::mem::take(bytes)).into_owned(),
            _ => String::new(),
        }
    }

    /// Whether it ends at a terminal.
    pub fn is_terminal(&self) -> bool {
        matches!(self.to, To::Stdout(_)) && io::stdout().is_terminal()
    }

    /// Whether the reader has gone.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    fn quietly<T: Default>(&mut self, result: io::Result<T>) -> io::Result<T> {
        match result {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => {
                self.gone = true;
                Ok(T::default())
            }
            other => other,
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.gone {
            return Ok(bytes.len());
        }
        let result = match &mut self.to {
            To::Stdout(out) => out.write(bytes),
            To::File(out) => out.write(bytes),
            To::Memory(out) => out.write(bytes),
        };
        let written = self.quietly(result)?;
        Ok(if self.gone { bytes.len() } else { written })
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gone {
            return Ok(());
        }
        let result = match &mut self.to {
            To::Stdout(out) => out.flush(),
            To::File(out) => out.flush(),
            To::Memory(_) => Ok(()),
        };
        self.quietly(result)
    }
}
