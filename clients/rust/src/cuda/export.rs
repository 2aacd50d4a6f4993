//! Finding out how memory can be handed over, whoever allocated it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use super::driver::attribute;
use super::{Gpu, Transport, uuid_text};
use crate::device::Devices;

/// An allocation that other processes can open.
pub(crate) struct Export {
    pub(crate) gpu: Gpu,
    pub(crate) transport: Transport,
    pub(crate) base: u64,
    pub(crate) size: u64,
    pub(crate) handle: [u8; 64],
    pub(crate) fd: Option<OwnedFd>,
    pub(crate) allocation: u64,
    buffer: u64,
}

type Table = Mutex<(u64, HashMap<(u64, u64), Weak<Export>>)>;

/// The export of the allocation in which `low` to `high` lie; the error says why there is none.
pub(crate) fn export(gpu: &Gpu, low: u64, high: u64) -> Result<Arc<Export>, String> {
    static TABLE: OnceLock<Table> = OnceLock::new();
    let entered = gpu.enter().map_err(|error| error.to_string())?;
    let driver = gpu.driver();
    let said = |error: crate::Error| error.to_string();
    let (base, size) = driver.range(low).map_err(said)?;
    if high > base + size {
        return Err(format!(
            "the tensor reaches over the end of its allocation ({size} bytes at {base:#x}): it lies in several, as torch's expandable segments are"
        ));
    }
    // The driver gives every allocation a number that is never used again: an address that was freed is known by it.
    let buffer = driver.attribute(attribute::BUFFER_ID, base).map_err(said)?;
    let mut table = TABLE
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(export) = table.1.get(&(base, buffer)).and_then(Weak::upgrade) {
        return Ok(export);
    }
    table.1.retain(|_, export| export.strong_count() > 0);
    let (transport, handle, fd) = choose(gpu, base)?;
    drop(entered);
    table.0 += 1;
    let export = Arc::new(Export {
        gpu: gpu.clone(),
        transport,
        base,
        size,
        handle,
        fd,
        allocation: table.0,
        buffer,
    });
    table.1.insert((base, buffer), Arc::downgrade(&export));
    Ok(export)
}

type Chosen = (Transport, [u8; 64], Option<OwnedFd>);

fn choose(gpu: &Gpu, base: u64) -> Result<Chosen, String> {
    let driver = gpu.driver();
    // Attributes that an old driver does not know are those of things that it does not have.
    let has = |attribute| driver.attribute(attribute, base).unwrap_or(0);
    let types = has(attribute::HANDLE_TYPES);
    let pool = has(attribute::POOL);
    let mut why = Vec::new();
    let mut attempt = |transport: Transport, made: crate::Result<Chosen>| {
        let tried = gpu
            .can(transport)
            .and_then(|()| made.map_err(|e| e.to_string()));
        tried
            .map_err(|text| why.push(format!("{}: {text}", transport.name())))
            .ok()
    };
    let chosen = if pool != 0 && types & 1 != 0 {
        let made = driver
            .export_pool(pool, base)
            .map(|(fd, data)| (Transport::Pool, data, Some(fd)));
        attempt(Transport::Pool, made)
    } else if types & 1 != 0 {
        let made = retained(gpu, base, |handle| {
            let fd = driver.export_fd(handle)?;
            Ok((Transport::VmmFd, [0; 64], Some(fd)))
        });
        attempt(Transport::VmmFd, made)
    } else if types & 8 != 0 {
        let made = retained(gpu, base, |handle| {
            Ok((Transport::Fabric, driver.export_fabric(handle)?, None))
        });
        attempt(Transport::Fabric, made)
    } else if has(attribute::LEGACY_CAPABLE) & 0xff != 0 {
        let made = driver
            .export_legacy(base)
            .map(|handle| (Transport::Legacy, handle, None));
        attempt(Transport::Legacy, made)
    } else {
        why.push(
            "its allocator did not ask for memory that can be shared (cuMemCreate without a handle type, or a pool without one: torch's expandable segments of some versions, cudaMallocAsync's default pool)"
                .into(),
        );
        None
    };
    chosen.ok_or_else(|| why.join("; "))
}

fn retained(
    gpu: &Gpu,
    base: u64,
    work: impl FnOnce(u64) -> crate::Result<Chosen>,
) -> crate::Result<Chosen> {
    let handle = gpu.driver().retain(base)?;
    let made = work(handle);
    gpu.driver().release(handle);
    made
}

impl Export {
    /// Whether the other side can open it; the error says why not.
    pub(crate) fn suits(&self, devices: &Devices) -> Result<(), String> {
        let mine = self.gpu.entry();
        if devices.transports & self.transport.bit() == 0 {
            return Err(format!(
                "the other side cannot open {} memory",
                self.transport.name()
            ));
        }
        if !devices.list.contains(&mine) {
            let theirs: Vec<_> = devices
                .list
                .iter()
                .map(|entry| uuid_text(&entry.uuid, entry.mig))
                .collect();
            return Err(format!(
                "the tensor is on {}, the other side uses {}",
                self.gpu.uuid_text(),
                match theirs.is_empty() {
                    true => "no GPU".into(),
                    false => theirs.join(", "),
                }
            ));
        }
        if self.transport == Transport::Legacy && devices.pid == std::process::id() {
            return Err(format!(
                "both processes have the pid {}, and the driver takes a legacy handle of the same pid for the process's own: containers of a CUDA channel get pids that differ (io.isorun.cuda-ipc)",
                devices.pid
            ));
        }
        Ok(())
    }

    /// Whether the memory is still that which was exported.
    pub(crate) fn is_there(&self) -> bool {
        let Ok(_entered) = self.gpu.enter() else {
            return false;
        };
        self.gpu
            .driver()
            .attribute(attribute::BUFFER_ID, self.base)
            .is_ok_and(|buffer| buffer == self.buffer)
    }

    /// The number of its GPU.
    pub(crate) fn ordinal(&self) -> i32 {
        let ordinal = self.gpu.driver().attribute(attribute::ORDINAL, self.base);
        ordinal.map_or(-1, |ordinal| ordinal as u32 as i32)
    }
}
