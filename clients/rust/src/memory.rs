//! Sealed memory: made, checked, mapped. The only file with unsafe code.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Mmap, MmapMut, MmapOptions};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fstat, fstatfs};
use rustix::io::Errno;

use crate::error::{Error, Result, io};
use crate::wire::Sharing;

/// statfs(2): the file system of every memfd that is not made of huge pages.
pub(crate) const TMPFS_MAGIC: i64 = 0x0102_1994;

const FIXED: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// Memory that can still be written by this process only.
pub(crate) struct Unsealed {
    fd: OwnedFd,
    map: MmapMut,
}

/// Sealed memory, mapped for reading.
pub(crate) struct Memory {
    map: Mmap,
    fd: OwnedFd,
    sharing: Sharing,
    identity: Identity,
    serial: u64,
}

/// Bytes of a word of shared memory.
pub(crate) const WORD: usize = 8;

/// Sealed memory, mapped for reading, whose descriptor is closed.
pub(crate) struct Mapping(Mmap);

/// The writer's own mapping of shared memory.
pub(crate) struct Writable(MmapMut);

/// What tells two memories apart, as long as one of them is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Unsealed {
    /// New memory, all of it allocated and zero. Not enough memory is an error here, not a signal later.
    pub(crate) fn new(size: u64) -> Result<Self> {
        let fd = memfd(size)?;
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size)
            .map_err(io(format!("allocate {size} bytes for a tensor")))?;
        // SAFETY: nobody else has this descriptor, so the memory has no other reader or writer, and nobody can
        // shrink it.
        let map =
            unsafe { MmapOptions::new().map_mut(&fd) }.map_err(io("map memory for a tensor"))?;
        Ok(Self { fd, map })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// From now on nobody can write it, this process included.
    pub(crate) fn freeze(self) -> Result<Memory> {
        // F_SEAL_WRITE fails as long as there is a writable mapping.
        drop(self.map);
        freeze(self.fd)
    }

    /// From now on only this process can write it.
    pub(crate) fn share(self) -> Result<(Memory, Writable)> {
        rustix::fs::fcntl_add_seals(&self.fd, FIXED | SealFlags::FUTURE_WRITE)
            .map_err(io("seal a shared tensor (needs Linux 5.1)"))?;
        let memory = Memory::map(self.fd, Sharing::Shared)?;
        Ok((memory, Writable(self.map)))
    }
}

/// A copy of `bytes` as sealed memory. Written, not mapped: that saves a page fault and the clearing of every page.
pub(crate) fn copy_of(bytes: &[u8]) -> Result<Memory> {
    let size = (bytes.len() as u64).max(1);
    let fd = memfd(size)?;
    let what = || format!("copy {size} bytes into a tensor");
    let mut at = 0;
    while at < bytes.len() {
        match rustix::io::pwrite(&fd, &bytes[at..], at as u64) {
            Ok(0) => return Err(io(what())(Errno::NOSPC)),
            Ok(count) => at += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(io(what())(errno)),
        }
    }
    if bytes.is_empty() {
        rustix::io::pwrite(&fd, &[0], 0).map_err(io(what()))?;
    }
    freeze(fd)
}

fn memfd(size: u64) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = match rustix::fs::memfd_create(c"isorun-tensor", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"isorun-tensor", flags),
        made => made,
    };
    let fd = made.map_err(io("memfd_create for a tensor"))?;
    rustix::fs::ftruncate(&fd, size).map_err(io(format!("make a tensor of {size} bytes")))?;
    Ok(fd)
}

fn freeze(fd: OwnedFd) -> Result<Memory> {
    rustix::fs::fcntl_add_seals(&fd, FIXED | SealFlags::WRITE).map_err(io("seal a tensor"))?;
    Memory::map(fd, Sharing::Immutable)
}

impl Memory {
    /// Checks a descriptor that somebody sent, as the protocol's section 3 says, and maps it.
    pub(crate) fn received(fd: OwnedFd, sharing: Sharing, size: u64) -> Result<Self> {
        let identity = check(fd.as_fd(), sharing, size)?;
        Self::map_as(fd, sharing, identity)
    }

    /// Maps sealed memory. Only for descriptors that are sealed as `sharing` says.
    fn map(fd: OwnedFd, sharing: Sharing) -> Result<Self> {
        let identity = identity(fd.as_fd())?;
        Self::map_as(fd, sharing, identity)
    }

    fn map_as(fd: OwnedFd, sharing: Sharing, identity: Identity) -> Result<Self> {
        let options = MmapOptions::new();
        let map = match sharing {
            // Private, because before Linux 6.7 sealed memory cannot be mapped shared.
            // SAFETY: the seals forbid that the memory shrinks or changes as long as there is a mapping.
            Sharing::Immutable => unsafe { options.map_copy_read_only(&fd) },
            // SAFETY: the seals forbid that the memory shrinks. It may change, and is never lent as a slice: it is only
            // copied out, by Memory::copy_out.
            Sharing::Shared => unsafe { options.map(&fd) },
        }
        .map_err(io("map a tensor"))?;
        static SERIALS: AtomicU64 = AtomicU64::new(1);
        Ok(Self {
            map,
            fd,
            sharing,
            identity,
            serial: SERIALS.fetch_add(1, Ordering::Relaxed),
        })
    }

    pub(crate) fn sharing(&self) -> Sharing {
        self.sharing
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// A number that no other memory of this process has or had.
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    pub(crate) fn size(&self) -> u64 {
        self.map.len() as u64
    }

    /// Its parts: the mapping is there without the descriptor.
    pub(crate) fn into_parts(self) -> (OwnedFd, Mapping) {
        (self.fd, Mapping(self.map))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.map.as_ptr()
    }

    /// The bytes of memory that cannot change.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        (self.sharing == Sharing::Immutable).then_some(&*self.map)
    }

    /// Copies from `offset` on; nothing if that is outside.
    pub(crate) fn copy_out(&self, offset: u64, into: &mut [u8]) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(into.len())?;
        if end > self.map.len() {
            return None;
        }
        // SAFETY: the range lies in the mapping, and `into` is memory of this process only. Another process may be
        // writing there: what is copied is then some mixture of old and new bytes, which any u8 may be.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.map.as_ptr().add(start),
                into.as_mut_ptr(),
                into.len(),
            );
        }
        Some(())
    }
}

impl Mapping {
    /// The word at this index; nothing if that is outside. Relaxed: fences are the caller's.
    pub(crate) fn word(&self, index: usize) -> Option<u64> {
        let start = index.checked_mul(WORD)?;
        if start.checked_add(WORD)? > self.0.len() {
            return None;
        }
        // SAFETY: the word lies in the mapping, which begins at a page, so it is aligned. The memory does not shrink:
        // it is sealed. Another process may write the word meanwhile, which an atomic load allows; a relaxed one of 8
        // bytes also works on memory that is mapped for reading only (std::sync::atomic, "Atomic accesses to
        // read-only memory").
        let word = unsafe { AtomicU64::from_ptr(self.0.as_ptr().add(start).cast_mut().cast()) };
        Some(word.load(Ordering::Relaxed))
    }
}

impl Writable {
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Writes the word at this index. Relaxed: fences are the caller's.
    ///
    /// # Panics
    ///
    /// If the index is outside.
    pub(crate) fn set_word(&mut self, index: usize, value: u64) {
        let bytes = &mut self.0[index * WORD..(index + 1) * WORD];
        // SAFETY: the word lies in the mapping, as the slice shows, and is aligned, because that begins at a page. Who
        // reads it in another process does so atomically; in this process nobody has a reference to it.
        let word = unsafe { AtomicU64::from_ptr(bytes.as_mut_ptr().cast()) };
        word.store(value, Ordering::Relaxed);
    }
}

pub(crate) fn identity(fd: BorrowedFd<'_>) -> Result<Identity> {
    let stat = fstat(fd).map_err(io("fstat a tensor"))?;
    Ok(Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// Whether a descriptor may be mapped without a doubt: protocol, section 3.
pub(crate) fn check(fd: BorrowedFd<'_>, sharing: Sharing, size: u64) -> Result<Identity> {
    let refuse = |text: String| Err::<Identity, _>(Error::Descriptor(text));
    let stat = fstat(fd).map_err(io("fstat a descriptor that was received"))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return refuse("the descriptor is no memory (not a regular file)".into());
    }
    if u64::try_from(stat.st_size) != Ok(size) {
        return refuse(format!(
            "it has {} bytes, the message says {size}",
            stat.st_size
        ));
    }
    let file_system = fstatfs(fd).map_err(io("fstatfs a descriptor that was received"))?;
    if file_system.f_type as i64 != TMPFS_MAGIC {
        return refuse(format!(
            "it is no memfd of ordinary pages (file system {:#x})",
            file_system.f_type
        ));
    }
    let seals = match rustix::fs::fcntl_get_seals(fd) {
        Ok(seals) => seals,
        Err(errno) => return refuse(format!("it has no seals ({errno})")),
    };
    let writes = match sharing {
        Sharing::Immutable => seals.contains(SealFlags::WRITE),
        Sharing::Shared => seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE),
    };
    if !seals.contains(FIXED) || !writes {
        return refuse(format!(
            "seals {:#x} are not those of {sharing:?} memory",
            seals.bits()
        ));
    }
    if u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512)
        < size
    {
        return refuse(format!(
            "{size} bytes of which only {} are allocated",
            i128::from(stat.st_blocks) * 512
        ));
    }
    Ok(Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// Maps a file of the channel that has no seals.
///
/// # Safety
///
/// Nobody may truncate or write the file as long as the mapping is there.
pub(crate) unsafe fn map_file(fd: BorrowedFd<'_>) -> std::io::Result<Mmap> {
    // SAFETY: the caller's promise.
    unsafe { MmapOptions::new().map_copy_read_only(&fd) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    /// Past the harness, which shows what failed tests say only.
    fn skip(why: &str) {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "skipped: {why}");
    }

    fn sparse(size: u64, seals: SealFlags) -> OwnedFd {
        let fd = memfd(size).unwrap();
        rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn what_is_made_passes_the_check() {
        let mut unsealed = Unsealed::new(10_000).unwrap();
        unsealed.bytes_mut()[9_999] = 7;
        let frozen = unsealed.freeze().unwrap();
        check(frozen.fd(), Sharing::Immutable, 10_000).unwrap();
        assert_eq!(frozen.bytes().unwrap()[9_999], 7);
        let copy = copy_of(&vec![3; 5_000]).unwrap();
        check(copy.fd(), Sharing::Immutable, 5_000).unwrap();
        check(copy_of(&[]).unwrap().fd(), Sharing::Immutable, 1).unwrap();
        let (shared, mut writable) = Unsealed::new(4096).unwrap().share().unwrap();
        check(shared.fd(), Sharing::Shared, 4096).unwrap();
        assert!(check(shared.fd(), Sharing::Immutable, 4096).is_err());
        assert!(shared.bytes().is_none());
        writable.bytes_mut()[5] = 9;
        let mut byte = [0];
        shared.copy_out(5, &mut byte).unwrap();
        assert_eq!(byte, [9]);
        assert!(shared.copy_out(4096, &mut byte).is_none());
        assert!(shared.copy_out(u64::MAX, &mut byte).is_none());
    }

    #[test]
    fn sealed_memory_cannot_be_changed() {
        let frozen = copy_of(b"abc").unwrap();
        assert_eq!(
            rustix::io::pwrite(frozen.fd(), b"x", 0),
            Err(Errno::PERM),
            "write"
        );
        assert_eq!(
            rustix::fs::ftruncate(frozen.fd(), 1),
            Err(Errno::PERM),
            "shrink"
        );
        let (shared, _writable) = Unsealed::new(8192).unwrap().share().unwrap();
        assert_eq!(rustix::fs::ftruncate(shared.fd(), 1), Err(Errno::PERM));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert_eq!(
            rustix::fs::fallocate(shared.fd(), punch, 0, 4096),
            Err(Errno::PERM),
            "a hole"
        );
        // SAFETY: the mapping must fail; if it does not, it is dropped at once.
        let writable = unsafe { MmapOptions::new().map_mut(&shared.fd()) };
        assert!(writable.is_err(), "a second writable mapping");
    }

    #[test]
    fn other_descriptors_are_refused() {
        let all = FIXED | SealFlags::WRITE;
        let says = |fd: &dyn AsFd, size: u64| {
            check(fd.as_fd(), Sharing::Immutable, size)
                .expect_err("refused")
                .to_string()
        };
        assert!(says(&sparse(4096, all), 4096).contains("allocated"));
        for missing in [
            SealFlags::SHRINK,
            SealFlags::GROW,
            SealFlags::WRITE,
            SealFlags::SEAL,
        ] {
            let fd = memfd(4096).unwrap();
            rustix::io::pwrite(&fd, &[1; 4096], 0).unwrap();
            rustix::fs::fcntl_add_seals(&fd, all - missing).unwrap();
            assert!(says(&fd, 4096).contains("seals"), "{missing:?}");
        }
        let good = copy_of(&[0; 100]).unwrap();
        for size in [1, 99, 101, 1 << 40] {
            assert!(says(&good.fd(), size).contains("100 bytes"));
        }
        assert!(says(&File::open("/dev/zero").unwrap(), 4096).contains("regular"));
        assert!(says(&File::open("/").unwrap(), 4096).contains("regular"));
        let file = File::open("/proc/self/exe").unwrap();
        let size = file.metadata().unwrap().len();
        assert!(says(&file, size).contains("no memfd"));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(says(&socket, 0).contains("regular"));
    }

    #[test]
    fn huge_pages_are_refused() {
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let fd = match rustix::fs::memfd_create(c"huge", flags) {
            Ok(fd) => fd,
            Err(errno) => return skip(&format!("memfd of huge pages: {errno}")),
        };
        rustix::fs::ftruncate(&fd, 2 << 20).unwrap();
        rustix::fs::fcntl_add_seals(&fd, FIXED | SealFlags::WRITE).unwrap();
        let refusal = check(fd.as_fd(), Sharing::Immutable, 2 << 20).expect_err("refused");
        assert!(refusal.to_string().contains("ordinary pages"), "{refusal}");
    }
}
