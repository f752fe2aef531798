//! A queue between threads that is emptied in one go: one lock per batch on either side, one wake-up per batch.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

struct Inner<T> {
    items: Vec<T>,
    sleeping: bool,
    closed: bool,
}

/// See the module. One thread takes, any number push.
pub struct Queue<T> {
    inner: Mutex<Inner<T>>,
    ready: Condvar,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { inner: Mutex::new(Inner { items: Vec::new(), sleeping: false, closed: false }), ready: Condvar::new() }
    }
}

impl<T> Queue<T> {
    /// Adds one item. After [`Queue::close`] it is dropped.
    pub fn push(&self, item: T) {
        self.push_all(std::iter::once(item));
    }

    /// Adds several.
    pub fn push_all(&self, items: impl IntoIterator<Item = T>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.closed {
            return;
        }
        inner.items.extend(items);
        if inner.sleeping && !inner.items.is_empty() {
            inner.sleeping = false;
            self.ready.notify_one();
        }
    }

    /// Adds one item unless there are `max` already.
    pub fn try_push(&self, item: T, max: usize) -> Result<(), T> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.closed || inner.items.len() >= max {
            return Err(item);
        }
        inner.items.push(item);
        if inner.sleeping {
            inner.sleeping = false;
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Whether it takes nothing more.
    pub fn is_closed(&self) -> bool {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).items.len()
    }

    /// No item is accepted any more; the taker gets what is there, then `false`.
    pub fn close(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.closed = true;
        inner.sleeping = false;
        self.ready.notify_one();
    }

    /// Takes everything into `out` (which is empty), waiting for something at most until `until`. `false`: closed and empty.
    pub fn take(&self, out: &mut Vec<T>, until: Option<Instant>) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        while inner.items.is_empty() {
            if inner.closed {
                return false;
            }
            let wait = until.map(|until| until.saturating_duration_since(Instant::now()));
            if wait == Some(Duration::ZERO) {
                return true;
            }
            inner.sleeping = true;
            inner = match wait {
                None => self.ready.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(wait) => self.ready.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner).0,
            };
            inner.sleeping = false;
        }
        std::mem::swap(&mut inner.items, out);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_comes_out_in_order_and_then_the_end() {
        let queue = std::sync::Arc::new(Queue::default());
        let pushing = queue.clone();
        let thread = std::thread::spawn(move || {
            (0..100).for_each(|i| pushing.push(i));
            pushing.close();
        });
        let (mut all, mut batch) = (Vec::new(), Vec::new());
        while queue.take(&mut batch, None) {
            all.append(&mut batch);
        }
        thread.join().unwrap();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_deadline_ends_the_wait_and_a_bound_holds() {
        let queue = Queue::default();
        let mut out: Vec<u8> = Vec::new();
        assert!(queue.take(&mut out, Some(Instant::now() + Duration::from_millis(5))));
        assert!(out.is_empty());
        assert!(queue.try_push(1, 1).is_ok());
        assert_eq!(queue.try_push(2, 1), Err(2));
    }
}
