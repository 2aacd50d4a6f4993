//! Memory of other processes: each allocation is opened once, however many tensors are in it, and closed when the
//! last of them has gone.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Instant;

use super::tensor::{GpuTensor, Imported};
use super::{Event, Gpu, PATIENCE, Stream, Transport, uuid_text};
use crate::device::DeviceBlock;
use crate::error::{Error, Result};
use crate::tensor::Lease;
use crate::wire::Described;

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    /// The handle says which memory it is. Another connection's mapping with the same one is not used: it may be of an
    /// owner that has gone. Where both are good the driver opens it twice and counts.
    Handle(u32, Transport, u64, [u8; 64]),
    /// One connection's word about its own memory.
    Numbered(u32, Transport, u64, u64),
}

/// Memory of another process, as it is open here.
pub(crate) struct Mapping {
    gpu: Gpu,
    key: Key,
    opened: Opened,
    pub(crate) pointer: u64,
    size: u64,
}

#[derive(Clone, Copy)]
enum Opened {
    Vmm,
    Legacy,
    Pool(u64),
}

fn table() -> &'static Mutex<HashMap<Key, Weak<Mapping>>> {
    static TABLE: OnceLock<Mutex<HashMap<Key, Weak<Mapping>>>> = OnceLock::new();
    TABLE.get_or_init(Mutex::default)
}

/// How many allocations of other processes are open in this one.
pub(crate) fn open_now() -> usize {
    let table = table().lock().unwrap_or_else(PoisonError::into_inner);
    table
        .values()
        .filter(|mapping| mapping.strong_count() > 0)
        .count()
}

impl Mapping {
    fn open(
        gpu: &Gpu,
        connection: u64,
        block: &DeviceBlock,
        fd: Option<&OwnedFd>,
        size: u64,
    ) -> Result<Arc<Self>> {
        let ordinal = gpu.ordinal();
        let key = match block.transport {
            Transport::Legacy | Transport::Fabric => {
                Key::Handle(ordinal, block.transport, connection, block.handle)
            }
            _ => Key::Numbered(ordinal, block.transport, connection, block.allocation),
        };
        // Held while it is opened, so that two threads do not open it twice.
        let mut table = table().lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mapping) = table.get(&key).and_then(Weak::upgrade) {
            // Its end takes the lock, and it may be the last one by now.
            drop(table);
            if mapping.size != size {
                return Err(Error::Malformed(format!(
                    "an allocation of {} bytes that has {size} now",
                    mapping.size
                )));
            }
            return Ok(mapping);
        }
        let (opened, pointer) =
            open(gpu, block, fd, size).map_err(|error| explain(block, &error))?;
        let mapping = Arc::new(Self {
            gpu: gpu.clone(),
            key: key.clone(),
            opened,
            pointer,
            size,
        });
        table.insert(key, Arc::downgrade(&mapping));
        Ok(mapping)
    }
}

fn open(gpu: &Gpu, block: &DeviceBlock, fd: Option<&OwnedFd>, size: u64) -> Result<(Opened, u64)> {
    gpu.can(block.transport).map_err(Error::Gpu)?;
    let (driver, device) = (gpu.driver(), gpu.0.device);
    let descriptor = || {
        fd.map(AsFd::as_fd)
            .ok_or_else(|| Error::Malformed("GPU memory without its descriptor".into()))
    };
    match block.transport {
        Transport::VmmFd | Transport::Fabric => {
            let handle = match block.transport {
                Transport::VmmFd => driver.import_fd(descriptor()?)?,
                _ => driver.import_fabric(block.handle)?,
            };
            let pointer = driver.map(device, handle, size);
            // The mapping keeps the memory.
            driver.release(handle);
            Ok((Opened::Vmm, pointer?))
        }
        Transport::Legacy => {
            let pointer = driver.open_legacy(block.handle)?;
            // What the message claims must not reach beyond what is there.
            match driver.range(pointer) {
                Ok((base, there)) if base == pointer && there >= size => {
                    Ok((Opened::Legacy, pointer))
                }
                found => {
                    let _ = driver.close_legacy(pointer);
                    Err(Error::Malformed(format!(
                        "the allocation is said to have {size} bytes, the driver says {found:?}"
                    )))
                }
            }
        }
        Transport::Pool => {
            let (pool, pointer) = driver.import_pool(device, descriptor()?, block.handle)?;
            match driver.range(pointer) {
                Ok((base, there))
                    if pointer
                        .checked_sub(base)
                        .and_then(|before| there.checked_sub(before))
                        .is_some_and(|left| left >= size) =>
                {
                    Ok((Opened::Pool(pool), pointer))
                }
                found => {
                    let _ = driver.free_from_pool(pointer);
                    driver.destroy_pool(pool);
                    Err(Error::Malformed(format!(
                        "the pool's memory is said to have {size} bytes, the driver says {found:?}"
                    )))
                }
            }
        }
        Transport::HostCopy => Err(Error::Malformed("a copy is no GPU memory".into())),
    }
}

/// What the driver's number may mean here.
fn explain(block: &DeviceBlock, error: &Error) -> Error {
    let hint = match block.transport {
        Transport::Legacy if block.pid == std::process::id() => {
            "; both processes have the same pid, and the driver takes the handle for the process's own"
        }
        Transport::Legacy => {
            "; the process that made it may have ended or freed the memory, or the GPU's node is not in this container"
        }
        Transport::Pool | Transport::VmmFd => "; the GPU's node may not be in this container",
        _ => "",
    };
    Error::Gpu(format!(
        "cannot open {} memory of process {} on {}: {error}{hint}",
        block.transport.name(),
        block.pid,
        uuid_text(&block.uuid, false)
    ))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Ok(_entered) = self.gpu.enter() {
            let driver = self.gpu.driver();
            // There is nobody to hear of a failure: its owner may be gone, and the memory with it.
            let _ = match self.opened {
                Opened::Vmm => driver.unmap(self.pointer, self.size),
                Opened::Legacy => driver.close_legacy(self.pointer),
                Opened::Pool(pool) => driver
                    .free_from_pool(self.pointer)
                    // It is freed in a stream: only when that is done may its owner hear of it.
                    .and_then(|()| Event::record(&self.gpu, Stream::DEFAULT, false))
                    .and_then(|event| event.wait(Instant::now() + PATIENCE, "the free"))
                    .inspect(|()| driver.destroy_pool(pool)),
            };
        }
        let mut table = table().lock().unwrap_or_else(PoisonError::into_inner);
        if table
            .get(&self.key)
            .is_some_and(|mapping| mapping.strong_count() == 0)
        {
            table.remove(&self.key);
        }
    }
}

/// What a message says, and what came with it.
pub(crate) struct Origin<'a> {
    pub(crate) connection: u64,
    pub(crate) block: &'a DeviceBlock,
    pub(crate) fd: Option<OwnedFd>,
    pub(crate) described: &'a Described,
}

/// What came with a GPU message, as a tensor. Its kernel has finished when this returns, unless a stream is given:
/// then that stream waits for it.
pub(crate) fn import(
    gpus: &[Gpu],
    origin: Origin<'_>,
    lease: Lease,
    stream: Option<Stream>,
) -> Result<GpuTensor> {
    let Origin {
        connection,
        block,
        fd,
        described,
    } = origin;
    let gpu = gpus
        .iter()
        .find(|gpu| gpu.0.uuid == block.uuid)
        .ok_or_else(|| {
            Error::Gpu(format!(
                "the tensor is on {}, and this process uses {gpus:?}: memory of another GPU is not opened",
                uuid_text(&block.uuid, false)
            ))
        })?;
    let _entered = gpu.enter()?;
    // First, because an event that cannot be opened is an error before anything is open.
    let event = match block.has_event {
        false => None,
        true => Some(Event {
            raw: gpu.driver().open_event(block.event).map_err(|error| {
                Error::Gpu(format!(
                    "cannot open the event of process {}: {error}; events need a /dev/shm that both have (io.isorun.shm)",
                    block.pid
                ))
            })?,
            gpu: gpu.clone(),
        }),
    };
    let mapping = Mapping::open(gpu, connection, block, fd.as_ref(), described.size)?;
    if let Some(event) = &event {
        match stream {
            Some(stream) => gpu.driver().wait_in_stream(stream.0, event.raw)?,
            None => event.wait(Instant::now() + PATIENCE, "the producer's kernel to finish")?,
        }
    }
    let imported = Imported::new(gpu.clone(), mapping, lease, block.transport, event, stream);
    Ok(GpuTensor::imported(imported, described.layout.clone()))
}
