//! Reads shards over plain sockets and looks at none of their bytes: what a machine and a store can do at most.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::bail;

use super::shards::Shards;

/// Bytes taken at a time.
const PIECE: usize = 256 << 10;

/// Reads the first shards whole, over as many connections, each one shard after the other.
///
/// # Errors
/// A connection that fails, or an answer that is no shard.
pub(super) fn read(server: SocketAddr, shards: u64, connections: u64) -> anyhow::Result<()> {
    let next = AtomicU64::new(0);
    let work = || -> anyhow::Result<()> {
        let stream = TcpStream::connect(server)?;
        let mut reader = BufReader::with_capacity(PIECE, stream);
        loop {
            let shard = next.fetch_add(1, Ordering::SeqCst);
            if shard >= shards {
                return Ok(());
            }
            read_one(&mut reader, shard)?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            match thread.join() {
                Ok(read) => read?,
                Err(_) => bail!("a thread that reads shards panicked"),
            }
        }
        Ok(())
    })
}

fn read_one(reader: &mut BufReader<TcpStream>, shard: u64) -> anyhow::Result<()> {
    let name = Shards::name(shard);
    write!(reader.get_mut(), "GET /{name} HTTP/1.1\r\nHost: store\r\n\r\n")?;
    let (mut line, mut len) = (String::new(), 0_usize);
    while reader.read_line(&mut line)? > 2 {
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            len = value.trim().parse()?;
        }
        line.clear();
    }
    let mut left = len;
    while left > 0 {
        let read = left.min(reader.fill_buf()?.len());
        if read == 0 {
            bail!("{name} breaks off {left} bytes before its end");
        }
        reader.consume(read);
        left -= read;
    }
    if len == 0 {
        bail!("the store has no {name}");
    }
    Ok(())
}
