//! Named tensors: safetensors files in a channel. docs/channel-protocol.md, section 5.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use memmap2::Mmap;
use rustix::fs::{AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, fstat, fstatfs, statat};
use rustix::io::Errno;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::channel::{Channel, check_name};
use crate::dtype::Dtype;
use crate::error::{Error, Result, io};
use crate::memory::{TMPFS_MAGIC, map_file};
use crate::tensor::Tensor;

/// Bytes of a header that are read. The format allows 100 MB.
pub const MAX_HEADER: u64 = 16 << 20;
/// The length of the header's length.
const PREFIX: usize = 8;
/// Temporary names older than this belong to nobody any more.
const STALE: Duration = Duration::from_secs(60);

/// Named tensors that were read, or are mapped.
pub struct Named {
    bytes: Bytes,
    metadata: Metadata,
    data: usize,
}

enum Bytes {
    Read(Vec<u8>),
    Mapped(Mmap),
}

/// One of the named tensors, where it lies.
#[derive(Debug, Clone, Copy)]
pub struct NamedView<'a> {
    /// The type of its elements.
    pub dtype: Dtype,
    /// How many elements in each dimension.
    pub shape: &'a [usize],
    /// Its elements, little-endian, without gaps.
    pub bytes: &'a [u8],
}

impl Channel {
    /// Writes tensors as `<name>.safetensors`: readers see the file before or all of the new one. Copies them once.
    /// Refused where the channel is read-only or full; nothing is left behind then.
    pub fn put(&self, name: &str, tensors: &[(&str, &Tensor)]) -> Result<()> {
        check_name("named tensor", name)?;
        let (header, order) = header(tensors)?;
        let entry = format!("{name}.safetensors");
        let shown = self.show(&entry);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&*self.directory, ".", flags, Mode::from_raw_mode(0o644))
            .map_err(io(format!("make a file for {shown}")))?;
        let data: u64 = order.iter().map(|tensor| tensor.layout().bytes()).sum();
        let size = (PREFIX + header.len()) as u64 + data;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size)
            .map_err(io(format!("{shown} needs {size} bytes in the channel")))?;
        let mut file = std::fs::File::from(file);
        let length = (header.len() as u64).to_le_bytes();
        write_all(&mut file, &length, &header)
            .and_then(|()| {
                for tensor in order {
                    match tensor.bytes() {
                        Ok(bytes) => file.write_all(bytes)?,
                        Err(_) => file.write_all(&gathered(tensor)?)?,
                    }
                }
                Ok(())
            })
            .map_err(io(format!("write {shown}")))?;
        self.give_name(&file.into(), name, &entry)
    }

    fn give_name(&self, file: &OwnedFd, name: &str, entry: &str) -> Result<()> {
        let shown = self.show(entry);
        let directory = self.directory.as_fd();
        let link = |to: &str| {
            let from = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(
                rustix::fs::CWD,
                from,
                directory,
                to,
                AtFlags::SYMLINK_FOLLOW,
            )
        };
        match link(entry) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(io(format!("give a file the name {shown}"))(errno)),
        }
        self.sweep(name);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // Pids are not unique in a channel: containers have pid namespaces.
        let temporary = format!(
            ".{name}.{}-{}-{}.tmp",
            std::process::id(),
            now.map_or(0, |now| now.as_nanos()),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        link(&temporary).map_err(io(format!("give a file the name {temporary}")))?;
        if let Err(errno) = rustix::fs::renameat(directory, &temporary, directory, entry) {
            let _ = rustix::fs::unlinkat(directory, &temporary, AtFlags::empty());
            return Err(io(format!("replace {shown}"))(errno));
        }
        Ok(())
    }

    /// Removes what writers of this name left that were killed. What does not work is the next one's to try.
    fn sweep(&self, name: &str) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(directory) = rustix::fs::openat(&*self.directory, ".", flags, Mode::empty()) else {
            return;
        };
        let Ok(entries) = Dir::read_from(&directory) else {
            return;
        };
        let prefix = format!(".{name}.");
        for entry in entries.flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let text = file
                .strip_prefix(&prefix)
                .and_then(|rest| rest.strip_suffix(".tmp"));
            let ours = text.is_some_and(|text| {
                text.bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            });
            if !ours {
                continue;
            }
            if let Ok(stat) = statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                let changed = SystemTime::UNIX_EPOCH
                    + Duration::from_secs(u64::try_from(stat.st_ctime).unwrap_or(0));
                if changed.elapsed().is_ok_and(|age| age > STALE) {
                    let _ = rustix::fs::unlinkat(&directory, entry.file_name(), AtFlags::empty());
                }
            }
        }
    }

    /// Reads `<name>.safetensors`: a copy, which nobody can change or truncate.
    pub fn read(&self, name: &str) -> Result<Named> {
        let (mut file, size) = self.open_named(name)?;
        let mut bytes = Vec::new();
        let what = || format!("read {}", self.show(&format!("{name}.safetensors")));
        // Looked at before all of it is read.
        let mut start = [0; PREFIX];
        file.read_exact(&mut start).map_err(io(what()))?;
        check_header(u64::from_le_bytes(start), size)?;
        bytes
            .try_reserve_exact(size as usize)
            .map_err(|_| Error::Safetensors(format!("{}: no memory for {size} bytes", what())))?;
        bytes.extend(start);
        file.take(size - PREFIX as u64)
            .read_to_end(&mut bytes)
            .map_err(io(what()))?;
        Named::new(Bytes::Read(bytes))
    }

    /// Maps `<name>.safetensors`, without a copy.
    ///
    /// # Safety
    ///
    /// These files have no seals. Whoever may write in the channel must never write or truncate one that has its
    /// name, as this crate never does: otherwise what is read changes, or the process dies of SIGBUS. Among members
    /// that are not trusted use [`Channel::read`].
    #[allow(unsafe_code)]
    pub unsafe fn map(&self, name: &str) -> Result<Named> {
        let (file, size) = self.open_named(name)?;
        // SAFETY: the caller's promise.
        let map = unsafe { map_file(file.as_fd()) }.map_err(io(format!(
            "map {}",
            self.show(&format!("{name}.safetensors"))
        )))?;
        let start = map.first_chunk::<PREFIX>().copied().unwrap_or([0; PREFIX]);
        check_header(u64::from_le_bytes(start), size.min(map.len() as u64))?;
        Named::new(Bytes::Mapped(map))
    }

    fn open_named(&self, name: &str) -> Result<(std::fs::File, u64)> {
        check_name("named tensor", name)?;
        let entry = format!("{name}.safetensors");
        let shown = self.show(&entry);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&*self.directory, &entry, flags, Mode::empty()).map_err(
            |errno| match errno {
                Errno::NOENT => Error::Missing(format!("there is no {shown}")),
                errno => io(format!("open {shown}"))(errno),
            },
        )?;
        let stat = fstat(&file).map_err(io(format!("fstat {shown}")))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || size < 10 {
            return Err(Error::Safetensors(format!(
                "{shown} is no safetensors file"
            )));
        }
        // A hole is nobody's memory until it is read, and then the reader's. Other file systems may compress.
        let file_system = fstatfs(&file).map_err(io(format!("fstatfs {shown}")))?;
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        if file_system.f_type as i64 == TMPFS_MAGIC && blocks.saturating_mul(512) < size {
            return Err(Error::Safetensors(format!(
                "{shown} has {size} bytes of which only {} are allocated",
                blocks.saturating_mul(512)
            )));
        }
        Ok((file.into(), size))
    }
}

impl Named {
    /// Reads the bytes of a safetensors file. Every rule of the format is checked, and that the header has at most
    /// [`MAX_HEADER`] bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let start = bytes
            .first_chunk::<PREFIX>()
            .copied()
            .ok_or_else(|| Error::Safetensors("a safetensors file has at least 8 bytes".into()))?;
        check_header(u64::from_le_bytes(start), bytes.len() as u64)?;
        Self::new(Bytes::Read(bytes))
    }

    fn new(bytes: Bytes) -> Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| {
            Error::Safetensors(format!("not a safetensors file: {error}"))
        };
        let all = bytes.all();
        // Checked by the caller: the header lies within the file. SafeTensors::read_metadata would do the rest, too,
        // but adds up sizes that a header claims without a check (safetensors 0.8).
        let length = all
            .first_chunk()
            .map_or(0, |start| u64::from_le_bytes(*start)) as usize;
        let header = all
            .get(PREFIX..PREFIX + length)
            .ok_or_else(|| wrong(&"it ends in its header"))?;
        let metadata: Metadata = serde_json::from_slice(header).map_err(|error| wrong(&error))?;
        let data = all.len() - PREFIX - length;
        if metadata.data_len() != data {
            return Err(wrong(&format!(
                "its header describes {} bytes of data, it has {data}",
                metadata.data_len()
            )));
        }
        Ok(Self {
            bytes,
            metadata,
            data: PREFIX + length,
        })
    }

    /// The names of the tensors, in no order.
    pub fn names(&self) -> Vec<String> {
        self.metadata.tensors().into_keys().collect()
    }

    /// One of the tensors; nothing if there is no such name. dtypes below a byte are refused.
    pub fn get(&self, name: &str) -> Result<Option<NamedView<'_>>> {
        let Some(TensorInfo {
            dtype,
            shape,
            data_offsets: (from, to),
        }) = self.metadata.info(name)
        else {
            return Ok(None);
        };
        let dtype = Dtype::from_safetensors(*dtype)
            .ok_or_else(|| Error::Safetensors(format!("{name}: {dtype:?} is not supported")))?;
        let bytes = self
            .bytes
            .all()
            .get(self.data + from..self.data + to)
            .ok_or_else(|| Error::Safetensors(format!("{name} lies outside of the file")))?;
        Ok(Some(NamedView {
            dtype,
            shape,
            bytes,
        }))
    }

    /// Whether it is mapped, not copied.
    pub fn is_mapped(&self) -> bool {
        matches!(self.bytes, Bytes::Mapped(_))
    }
}

impl Bytes {
    fn all(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

fn check_header(length: u64, size: u64) -> Result<()> {
    if length > MAX_HEADER {
        return Err(Error::Safetensors(format!(
            "a safetensors header of {length} bytes, at most {MAX_HEADER} are allowed"
        )));
    }
    if length + PREFIX as u64 > size {
        return Err(Error::Safetensors(format!(
            "a safetensors header of {length} bytes in a file of {size}"
        )));
    }
    Ok(())
}

/// The header, and the tensors in the order in which they follow: the largest elements first, so that all are aligned.
fn header<'a>(tensors: &[(&str, &'a Tensor)]) -> Result<(Vec<u8>, Vec<&'a Tensor>)> {
    let mut order: Vec<_> = tensors.to_vec();
    order.sort_by_key(|(name, tensor)| (std::cmp::Reverse(tensor.dtype().size()), *name));
    let mut infos = Vec::new();
    let mut at = 0;
    for (number, (name, tensor)) in order.iter().enumerate() {
        if order[..number].iter().any(|(other, _)| other == name) || *name == "__metadata__" {
            return Err(Error::Name(format!(
                "tensor {name:?}: a name twice, or a reserved one"
            )));
        }
        let dtype = tensor.dtype().to_safetensors().ok_or_else(|| {
            Error::Layout(format!(
                "{name}: safetensors has no {}",
                tensor.dtype().name()
            ))
        })?;
        if tensor.layout().byte_order != crate::ByteOrder::Little {
            return Err(Error::Layout(format!(
                "{name}: safetensors are little-endian"
            )));
        }
        let end = at + tensor.layout().bytes() as usize;
        let info = TensorInfo {
            dtype,
            shape: tensor
                .shape()
                .iter()
                .map(|&length| length as usize)
                .collect(),
            data_offsets: (at, end),
        };
        infos.push(((*name).to_owned(), info));
        at = end;
    }
    let wrong = |error: String| Error::Safetensors(format!("the header: {error}"));
    let metadata = Metadata::new(None, infos).map_err(|error| wrong(error.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| wrong(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() as u64 > MAX_HEADER {
        return Err(wrong(format!("{} bytes", header.len())));
    }
    Ok((
        header,
        order.into_iter().map(|(_, tensor)| tensor).collect(),
    ))
}

fn gathered(tensor: &Tensor) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; tensor.layout().bytes() as usize];
    tensor
        .read_into(&mut bytes)
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(bytes)
}

fn write_all(file: &mut std::fs::File, one: &[u8], two: &[u8]) -> std::io::Result<()> {
    // One call for both in all but strange cases.
    let written = file.write_vectored(&[IoSlice::new(one), IoSlice::new(two)])?;
    if written < one.len() {
        file.write_all(&one[written..])?;
    }
    file.write_all(&two[written.saturating_sub(one.len())..])
}
