//! Buffers of pixels that are used again: those of a batch are many megabytes, and getting them from the system anew for
//! every batch costs a page fault each four kilobytes.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that nobody uses; there are as many as were ever in use at once.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// Returns an empty buffer, which comes back when it is dropped.
    pub(crate) fn take(self: &Arc<Self>) -> Buffer {
        let free = self.lock().pop();
        let mut bytes = free.unwrap_or_default();
        bytes.clear();
        Buffer { bytes, pool: Some(Arc::clone(self)) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes in a buffer that may belong to a pool.
#[derive(Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    pool: Option<Arc<Pool>>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.lock().push(std::mem::take(&mut self.bytes));
        }
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, pool: None }
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

/// In memory of its own.
impl Clone for Buffer {
    fn clone(&self) -> Self {
        self.bytes.clone().into()
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_with_its_memory() {
        let pool = Arc::new(Pool::default());
        let mut buffer = pool.take();
        buffer.resize(1000, 7);
        let place = buffer.as_ptr();
        let copy = buffer.clone();
        drop(buffer);
        let again = pool.take();
        assert_eq!((again.as_ptr(), again.len(), copy.len()), (place, 0, 1000));
        // A second one in use at the same time is another.
        assert_ne!(pool.take().as_ptr(), place);
        drop(copy);
        assert!(pool.lock().len() <= 1, "a copy does not belong to the pool");
    }
}
