//! A file system without hard links, like vfat, which this machine's kernel may
//! lack: a directory in memory, served over /dev/fuse.
//!
//! It supports the operations of a driver before its first hard link, with empty
//! files in its root directory (see linux/fuse.h for the messages).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

const ROOT: u64 = 1;
const HEADER: usize = 40;

/// Mounts it at `at`; it is served until the mount ends.
pub(crate) fn without_hard_links(at: &Path) {
    fs::create_dir_all(at).expect("a mount point");
    let device = File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
    let fd = device.as_raw_fd();
    let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other");
    mount(Some("memory"), at, Some("fuse"), MsFlags::empty(), Some(data.as_str())).expect("FUSE");
    std::thread::spawn(move || Server { device, files: BTreeMap::new(), next: ROOT + 1 }.serve());
}

struct Server {
    device: File,
    files: BTreeMap<Vec<u8>, u64>,
    next: u64,
}

impl Server {
    fn serve(&mut self) {
        let mut buffer = vec![0; 1 << 20];
        while let Ok(length) = self.device.read(&mut buffer) {
            let request = buffer[..length].to_vec();
            let number = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
            let opcode = u32::from_le_bytes(request[4..8].try_into().unwrap());
            let (unique, node) = (number(8), number(16));
            // FORGET and BATCH_FORGET have no answer.
            if matches!(opcode, 2 | 42) {
                continue;
            }
            let (error, body) = match self.answer(opcode, node, &request[HEADER..]) {
                Ok(body) => (0, body),
                Err(errno) => (-(errno as i32), Vec::new()),
            };
            let length = u32::try_from(16 + body.len()).unwrap();
            let mut answer = [&length.to_le_bytes()[..], &error.to_le_bytes()].concat();
            answer.extend(unique.to_le_bytes());
            answer.extend(body);
            // It fails when the kernel has cancelled the request.
            let _ = self.device.write(&answer);
        }
    }

    fn answer(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
        match opcode {
            // LOOKUP
            1 => self.files.get(name(body)).map(|node| entry(*node)).ok_or(Errno::ENOENT),
            // GETATTR, SETATTR
            3 | 4 => Ok([&[0; 16][..], &attributes(node)].concat()),
            // UNLINK
            10 => self.files.remove(name(body)).map(|_| Vec::new()).ok_or(Errno::ENOENT),
            // RENAME and RENAME2, whose names begin behind one and two numbers.
            12 => self.rename(&body[8..]),
            45 => self.rename(&body[16..]),
            // LINK, as vfat answers it.
            13 => Err(Errno::EPERM),
            // STATFS: blocks, free, available, files, free; sizes; padding.
            17 => {
                let numbers = [1_u64 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20];
                let mut statistics: Vec<u8> =
                    numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
                let sizes = [4096_u32, 255, 4096];
                statistics.extend(sizes.iter().flat_map(|n| n.to_le_bytes()));
                statistics.resize(80, 0);
                Ok(statistics)
            }
            // RELEASE, FLUSH, RELEASEDIR, FSYNC, FSYNCDIR; and READDIR of nothing.
            18 | 20 | 25 | 28 | 29 | 30 => Ok(Vec::new()),
            // INIT: the version, and no more than is needed.
            26 => {
                let numbers = [7_u32, 31, 0, 0, 0, 1 << 16];
                let mut init: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
                init.resize(64, 0);
                Ok(init)
            }
            // OPEN, OPENDIR
            14 | 27 => Ok(vec![0; 16]),
            // CREATE: flags, mode, umask, open flags, name.
            35 => {
                let node = self.next;
                self.next += 1;
                self.files.insert(name(&body[16..]).to_vec(), node);
                Ok([entry(node), vec![0; 16]].concat())
            }
            _ => Err(Errno::ENOSYS),
        }
    }

    fn rename(&mut self, names: &[u8]) -> Result<Vec<u8>, Errno> {
        let from = name(names);
        let to = name(&names[from.len() + 1..]).to_vec();
        let node = self.files.remove(from).ok_or(Errno::ENOENT)?;
        self.files.insert(to, node);
        Ok(Vec::new())
    }
}

/// A name, which ends with a NUL.
fn name(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn entry(node: u64) -> Vec<u8> {
    // Node, generation, and how long the kernel may cache it: not at all.
    [&node.to_le_bytes()[..], &[0; 32], &attributes(node)].concat()
}

fn attributes(node: u64) -> Vec<u8> {
    let mode: u32 = if node == ROOT { 0o040_755 } else { 0o100_644 };
    // Number, size, blocks and times; then mode, links, owner and the rest.
    let mut attributes = node.to_le_bytes().to_vec();
    attributes.resize(60, 0);
    attributes.extend(mode.to_le_bytes());
    attributes.extend(1_u32.to_le_bytes());
    attributes.resize(88, 0);
    attributes
}
