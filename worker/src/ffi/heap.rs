//! The C library's heap.

/// Returns free memory of the C library's heap to the system, so that it is not counted as used.
pub fn trim_heap() {
    // SAFETY: malloc_trim(3) takes any padding and touches free heap memory only; it locks the
    // heap itself, so other threads may allocate meanwhile.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
