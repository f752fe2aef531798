//! The queue in front of a connection: frames are encoded into one buffer, everything queued goes out in one write.
//!
//! Who queues may also write at once ([`Outbox::flush`]): on a quiet connection that saves waking the writing task. What
//! the socket does not take is left to the task.
//!
//! Invariants: bounded in messages and bytes; nothing is queued while the connection is down; one writer at a time, so
//! frames are never mixed.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quorate_shared::limits::{FRAME_BYTES_MAX, PEER_QUEUE_MAX};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

use super::frame;

/// Bytes queued for one connection: a few of the largest messages.
const QUEUE_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;
/// A buffer larger than this is given back after it was written.
const KEEP_BYTES: usize = 1 << 20;

/// The socket, while nobody writes.
type Idle = Option<Box<OwnedWriteHalf>>;

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    messages: usize,
    socket: Idle,
}

/// See the module.
#[derive(Default)]
pub struct Outbox {
    queue: Mutex<Queue>,
    ready: Notify,
    opened: Notify,
    open: AtomicBool,
    dropped: AtomicU64,
    /// Something was dropped from the open connection since the last message that was not.
    full: AtomicBool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection is up.
    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.opened.notify_waiters();
    }

    /// The connection is down; what was queued is gone.
    pub fn close(&self) {
        let mut queue = self.lock();
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

    /// Whether the message just dropped is the first of its kind: the connection is up, and messages before it went out.
    pub fn first_drop(&self) -> bool {
        self.is_open() && !self.full.swap(true, Ordering::Relaxed)
    }

    /// Queues a message; `false`: dropped and counted.
    pub fn push<T: Serialize>(&self, message: &T) -> bool {
        self.add(|bytes| frame::put(bytes, message).is_ok())
    }

    /// Queues a message that is encoded already.
    pub fn push_raw(&self, message: &[u8]) -> bool {
        self.add(|bytes| frame::put_raw(bytes, message).is_ok())
    }

    /// Queues a message without waking anybody: [`Outbox::flush`] follows.
    pub fn push_quietly<T: Serialize>(&self, message: &T) -> bool {
        self.put(|bytes| frame::put(bytes, message).is_ok()).is_some()
    }

    /// Writes what is queued, as far as the socket takes it at once; the rest is the writing task's.
    pub fn flush(&self) {
        let mut queue = self.lock();
        if queue.bytes.is_empty() {
            return;
        }
        let written = match &queue.socket {
            Some(socket) => socket.try_write(&queue.bytes).unwrap_or(0),
            // The task is writing; it looks again when it is done.
            None => 0,
        };
        if written == queue.bytes.len() {
            queue.bytes.clear();
            queue.messages = 0;
            return;
        }
        queue.bytes.drain(..written);
        drop(queue);
        self.ready.notify_one();
    }

    fn add(&self, put: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let added = self.put(put);
        // A writer that has been told once takes everything.
        if added == Some(true) {
            self.ready.notify_one();
        }
        added.is_some()
    }

    /// `None`: dropped and counted; else whether it is the first in the queue.
    fn put(&self, put: impl FnOnce(&mut Vec<u8>) -> bool) -> Option<bool> {
        let mut queue = self.lock();
        let room = queue.messages < PEER_QUEUE_MAX && queue.bytes.len() < QUEUE_BYTES_MAX;
        if !self.is_open() || !room || !put(&mut queue.bytes) {
            drop(queue);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        queue.messages += 1;
        self.full.store(false, Ordering::Relaxed);
        Some(queue.messages == 1)
    }

    /// Writes what is queued, until the connection fails.
    pub async fn run(&self, writer: OwnedWriteHalf) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.lock().socket = Some(Box::new(writer));
        loop {
            let taken = {
                let mut queue = self.lock();
                match queue.bytes.is_empty() {
                    true => None,
                    false => {
                        queue.messages = 0;
                        std::mem::swap(&mut queue.bytes, &mut bytes);
                        queue.socket.take()
                    }
                }
            };
            let Some(mut socket) = taken else {
                self.ready.notified().await;
                continue;
            };
            socket.write_all(&bytes).await?;
            bytes.clear();
            if bytes.capacity() > KEEP_BYTES {
                bytes = Vec::new();
            }
            self.lock().socket = Some(socket);
        }
    }
}
