//! The queue in front of a connection: frames are encoded into one buffer, everything queued goes out in one write.
//!
//! Invariants: bounded in messages and bytes; nothing is queued while the connection is down.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use quorate_shared::limits::{FRAME_BYTES_MAX, PEER_QUEUE_MAX};
use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::frame;

/// Bytes queued for one connection: a few of the largest messages.
const QUEUE_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;
/// A buffer larger than this is given back after it was written.
const KEEP_BYTES: usize = 1 << 20;

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    messages: usize,
}

/// See the module.
#[derive(Default)]
pub struct Outbox {
    queue: Mutex<Queue>,
    ready: Notify,
    opened: Notify,
    open: AtomicBool,
    dropped: AtomicU64,
}

impl Outbox {
    /// The connection is up.
    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.opened.notify_waiters();
    }

    /// The connection is down; what was queued is gone.
    pub fn close(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.open.store(false, Ordering::Release);
        *queue = Queue::default();
    }

    /// Whether the connection is up.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Waits until the connection is up.
    pub async fn opened(&self) {
        loop {
            let opened = self.opened.notified();
            tokio::pin!(opened);
            opened.as_mut().enable();
            if self.is_open() {
                return;
            }
            opened.await;
        }
    }

    /// Messages dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Queues a message; `false`: dropped and counted.
    pub fn push<T: Serialize>(&self, message: &T) -> bool {
        self.add(|bytes| frame::put(bytes, message).is_ok())
    }

    /// Queues a message that is encoded already.
    pub fn push_raw(&self, message: &[u8]) -> bool {
        self.add(|bytes| frame::put_raw(bytes, message).is_ok())
    }

    fn add(&self, put: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let room = queue.messages < PEER_QUEUE_MAX && queue.bytes.len() < QUEUE_BYTES_MAX;
        if !self.is_open() || !room || !put(&mut queue.bytes) {
            drop(queue);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        queue.messages += 1;
        let first = queue.messages == 1;
        drop(queue);
        // A writer that has been told once takes everything.
        if first {
            self.ready.notify_one();
        }
        true
    }

    /// Writes what is queued, until the connection fails.
    pub async fn run<W: AsyncWrite + Unpin>(&self, mut writer: W) -> io::Result<()> {
        let mut bytes = Vec::new();
        loop {
            {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.messages = 0;
                std::mem::swap(&mut queue.bytes, &mut bytes);
            }
            if bytes.is_empty() {
                self.ready.notified().await;
                continue;
            }
            writer.write_all(&bytes).await?;
            bytes.clear();
            if bytes.capacity() > KEEP_BYTES {
                bytes = Vec::new();
            }
        }
    }
}
