//! The least that a verified download can do, as a measure for the engine: plain sockets, 16
//! threads, ranges of 16 MiB, a CRC-32C and a positional write for each read. It signs nothing,
//! repeats nothing, and keeps no record of what it has.
//!
//! `floor HOST:PORT DIRECTORY [PATH SIZE]...`

use std::fs::File;
use std::io::{BufRead as _, BufReader, Error, Read as _, Result, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};

const RANGE: u64 = 16 << 20;
const THREADS: usize = 16;
const BUFFER: usize = 256 << 10;

/// A range of an object, and the file that gets it.
type Piece<'a> = (&'a str, &'a File, u64, u64);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, directory, objects @ ..] = &arguments[..] else {
        return Err(Error::other("usage: floor HOST:PORT DIRECTORY [PATH SIZE]..."));
    };
    let mut files = Vec::new();
    for (number, object) in objects.chunks_exact(2).enumerate() {
        let size: u64 = object[1].parse().map_err(Error::other)?;
        let file = File::create(format!("{directory}/{number}"))?;
        file.set_len(size)?;
        files.push((object[0].as_str(), file, size));
    }
    let pieces: Vec<Piece<'_>> = files
        .iter()
        .flat_map(|(path, file, size)| {
            let starts = (0..size.div_ceil(RANGE)).map(|n| n * RANGE);
            starts.map(move |start| (*path, file, start, (start + RANGE).min(*size)))
        })
        .collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || download(address, &pieces, &next);
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
    })
}

fn download(address: &str, pieces: &[Piece<'_>], next: &AtomicUsize) -> Result<()> {
    let mut connection = BufReader::with_capacity(8 << 10, TcpStream::connect(address)?);
    let mut buffer = vec![0; BUFFER];
    while let Some((path, file, start, end)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
        let last = end - 1;
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: {address}\r\nrange: bytes={start}-{last}\r\n\r\n"
        );
        connection.get_mut().write_all(head.as_bytes())?;
        let mut line = String::new();
        while connection.read_line(&mut line)? > 2 {
            line.clear();
        }
        let (mut at, mut crc32c) = (*start, 0);
        while at < *end {
            let most = BUFFER.min(usize::try_from(end - at).map_err(Error::other)?);
            let read = connection.read(&mut buffer[..most])?;
            if read == 0 {
                return Err(Error::other(format!("{path} ended at byte {at}")));
            }
            crc32c = crc32c::crc32c_append(crc32c, &buffer[..read]);
            file.write_all_at(&buffer[..read], at)?;
            at += read as u64;
        }
        std::hint::black_box(crc32c);
    }
    Ok(())
}
