//! Memory that must not be mapped.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use isorun_channel::wire::{Content, Described};
use isorun_channel::{Dtype, Layout, Sharing};
use rustix::fs::{MemfdFlags, SealFlags};

use super::Place;

pub const ALL: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE)
    .union(SealFlags::SEAL);

pub fn memfd(
    size: u64,
    written: bool,
    seals: SealFlags,
    more: MemfdFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | more;
    let fd = rustix::fs::memfd_create("hostile", flags)?;
    rustix::fs::ftruncate(&fd, size)?;
    if written {
        rustix::io::pwrite(&fd, &vec![1; size as usize], 0)?;
    }
    rustix::fs::fcntl_add_seals(&fd, seals)?;
    Ok(fd)
}

pub fn content(size: u64, shape: &[u64], sharing: Sharing) -> Content {
    Content {
        tensor: Some(Described {
            layout: Layout::contiguous(Dtype::U8, shape).unwrap(),
            sharing,
            size,
            memory: 0,
        }),
        lost: 0,
        tag: 0,
        name: "hostile".into(),
        meta: Vec::new(),
    }
}

/// Every descriptor that must not be mapped, with a part of the refusal. The message says 4,096 bytes.
pub fn bad_descriptors(place: &Place) -> Vec<(OwnedFd, Sharing, &'static str)> {
    let none = MemfdFlags::empty();
    let mut bad = Vec::new();
    for missing in [
        SealFlags::SHRINK,
        SealFlags::GROW,
        SealFlags::WRITE,
        SealFlags::SEAL,
    ] {
        let fd = memfd(4096, true, ALL - missing, none).unwrap();
        bad.push((fd, Sharing::Immutable, "seals"));
    }
    let future = (ALL - SealFlags::WRITE) | SealFlags::FUTURE_WRITE;
    bad.push((
        memfd(4096, true, future, none).unwrap(),
        Sharing::Immutable,
        "seals",
    ));
    bad.push((
        memfd(4096, true, ALL - SealFlags::WRITE, none).unwrap(),
        Sharing::Shared,
        "seals",
    ));
    bad.push((
        memfd(4095, true, ALL, none).unwrap(),
        Sharing::Immutable,
        "4095 bytes",
    ));
    bad.push((
        memfd(8192, true, ALL, none).unwrap(),
        Sharing::Immutable,
        "8192 bytes",
    ));
    bad.push((
        memfd(4096, false, ALL, none).unwrap(),
        Sharing::Immutable,
        "allocated",
    ));
    bad.push((
        memfd(4096, false, future, none).unwrap(),
        Sharing::Shared,
        "allocated",
    ));
    let path = place.path.join("file");
    std::fs::write(&path, vec![0; 4096]).unwrap();
    bad.push((
        File::open(&path).unwrap().into(),
        Sharing::Immutable,
        "memfd",
    ));
    std::fs::remove_file(path).unwrap();
    if let Ok(path) = tmpfs_file() {
        bad.push((path.into(), Sharing::Immutable, "seals"));
    }
    bad.push((
        UnixStream::pair().unwrap().0.into(),
        Sharing::Immutable,
        "regular",
    ));
    bad.push((
        rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap(),
        Sharing::Shared,
        "regular",
    ));
    bad.push((
        File::open("/dev/zero").unwrap().into(),
        Sharing::Immutable,
        "regular",
    ));
    bad.push((
        File::open("/proc/self/mem").unwrap().into(),
        Sharing::Immutable,
        "bytes",
    ));
    bad.push((
        File::open(&place.path).unwrap().into(),
        Sharing::Immutable,
        "regular",
    ));
    bad
}

/// A file of an ordinary tmpfs: it has seals that say no more than that it has none.
pub fn tmpfs_file() -> std::io::Result<File> {
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
    let file: File =
        rustix::fs::open("/dev/shm", flags, rustix::fs::Mode::from_raw_mode(0o600))?.into();
    file.set_len(4096)?;
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 0)?;
    Ok(file)
}
