//! What is in a channel: named tensors (safetensors files) and endpoints (sockets).
//!
//! Members write there what they like, so nothing is believed: only regular files are read, without
//! waiting, no more of them than a limit, and what does not hold together is no tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The longest header that is read, in bytes. The format allows 100 MB, which would be for millions.
const HEADER: u64 = 1 << 20;
/// How many files of a channel are looked into.
const FILES: usize = 256;
/// How many tensors are told.
const TENSORS: usize = 4096;
/// The most dimensions of a tensor that is told.
const DIMENSIONS: usize = 64;

/// A named tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tensor {
    /// The file that it is in.
    pub file: String,
    /// Its name in that file.
    pub name: String,
    /// The type of its elements, in the format's words: F32, BF16, I64.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its size in bytes.
    pub bytes: u64,
}

/// What is in a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// Named tensors.
    pub tensors: Vec<Tensor>,
    /// Endpoints: the names of sockets without `.sock`.
    pub endpoints: Vec<String>,
    /// Files ending in .safetensors that are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<String>,
    /// There is more than is told.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// Looks into the directory of a channel, not into those below.
///
/// # Errors
/// A directory that cannot be read.
pub fn contents(directory: &Path) -> Result<Contents> {
    let fail = |error| Error::io("read directory", directory.display().to_string(), &error);
    let mut found = Contents::default();
    let mut files = Vec::new();
    for (number, entry) in std::fs::read_dir(directory).map_err(fail)?.enumerate() {
        if number >= 16 * FILES {
            found.more = true;
            break;
        }
        let entry = entry.map_err(fail)?;
        // What is gone again, and what has no name that could be told, is left out.
        let (Ok(kind), Ok(name)) = (entry.file_type(), entry.file_name().into_string()) else {
            continue;
        };
        if let Some(endpoint) = name.strip_suffix(".sock").filter(|_| kind.is_socket()) {
            found.endpoints.push(endpoint.to_string());
        } else if name.ends_with(".safetensors") && kind.is_file() {
            files.push(name);
        }
    }
    files.sort();
    found.endpoints.sort();
    for (number, name) in files.into_iter().enumerate() {
        if number >= FILES || found.tensors.len() >= TENSORS {
            found.more = true;
            break;
        }
        match header(&directory.join(&name), &name) {
            Some(mut tensors) => found.tensors.append(&mut tensors),
            None => found.broken.push(name),
        }
    }
    if found.tensors.len() > TENSORS {
        found.tensors.truncate(TENSORS);
        found.more = true;
    }
    Ok(found)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The tensors of one file: 8 bytes with the length of the header, little endian, the header in JSON,
/// and the data. None where that is not what it is.
fn header(path: &Path, name: &str) -> Option<Vec<Tensor>> {
    // Whatever was put in its place meanwhile: nothing that blocks is waited for, no link followed.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut file = File::from(open(path, flags, Mode::empty()).ok()?);
    let data = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    if length > HEADER {
        return None;
    }
    let room = data.len().checked_sub(8)?.checked_sub(length)?;
    let mut text = vec![0; usize::try_from(length).ok()?];
    file.read_exact(&mut text).ok()?;
    parse(&text, room, name)
}

/// The tensors of a header before `room` bytes of data.
pub(super) fn parse(text: &[u8], room: u64, file: &str) -> Option<Vec<Tensor>> {
    let mut entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(text).ok()?;
    entries.remove("__metadata__");
    let one = |(name, value): (String, serde_json::Value)| {
        let entry: Entry = serde_json::from_value(value).ok()?;
        let [from, to] = entry.data_offsets;
        let sane = entry.shape.len() <= DIMENSIONS && entry.dtype.len() <= 32 && to <= room;
        Some(Tensor {
            file: file.to_string(),
            name,
            dtype: entry.dtype,
            shape: entry.shape,
            bytes: to.checked_sub(from).filter(|_| sane)?,
        })
    };
    entries.into_iter().map(one).collect()
}
