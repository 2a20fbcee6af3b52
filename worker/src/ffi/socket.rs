//! Two socket options of TCP for which no safe call exists: what the kernel knows about the other
//! end, and how many bytes are worth waking up for.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::libc;

/// How well the other host answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answering {
    /// Segments in flight that it has not acknowledged.
    pub unacknowledged: u32,
    /// Times that the oldest of them was sent again.
    pub retransmits: u8,
    /// Probes of a closed window that it has left unanswered.
    pub unanswered_probes: u8,
    /// Milliseconds since its last acknowledgement.
    pub silent_ms: u32,
}

/// Asks the kernel about the connection `socket` (`TCP_INFO`, tcp(7)).
///
/// # Errors
/// `socket` is not a TCP socket.
pub fn answering(socket: BorrowedFd<'_>) -> io::Result<Answering> {
    // SAFETY: tcp_info is a C struct of integers, for which all bits zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the borrow's life; the kernel writes at most `len` bytes,
    // which is the size of `info`, and `len` itself; a kernel with a shorter struct leaves the rest
    // zero, one with a longer struct cuts it off.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Answering {
        unacknowledged: info.tcpi_unacked,
        retransmits: info.tcpi_retransmits,
        unanswered_probes: info.tcpi_probes,
        silent_ms: info.tcpi_last_ack_recv,
    })
}

/// Makes poll(2) report `socket` as readable only from `bytes` on, or at its end (`SO_RCVLOWAT`,
/// socket(7)).
///
/// # Errors
/// The kernel refuses the number.
pub fn wake_from(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the descriptor is open for the borrow's life; the kernel reads the given length, the
    // size of an int, from a pointer to one.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
