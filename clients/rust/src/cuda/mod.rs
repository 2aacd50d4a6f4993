//! Tensors in the memory of GPUs (feature `cuda`): handed over without a copy where that can be done, through the
//! host's memory where not, and then it says so.
//!
//! A process says which GPUs it uses, in [`ConnectOptions::cuda`](crate::ConnectOptions) and
//! [`EndpointOptions::cuda`](crate::EndpointOptions). A [`GpuTensor`] is published as any other tensor. Who cannot take
//! it (another GPU, no GPU, an old driver) gets a copy; [`Published::copied`](crate::Published) counts those, and
//! [`Endpoint::copy_reasons`](crate::Endpoint::copy_reasons) has the reasons. What was tried on a GPU and what was
//! not: docs/cuda.md.

mod driver;
pub(crate) mod export;
pub(crate) mod import;
mod memory;
pub(crate) mod publish;
mod tensor;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

pub use crate::device::{Transport, uuid_text};
pub use memory::GpuMemory;
pub use tensor::{GpuTensor, Stream};

use crate::device::{DeviceEntry, Devices};
use crate::error::{Error, Result};
use driver::Driver;

/// How long the GPU may take for what is handed over, or for what still reads it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// cuDeviceGetAttribute: can memory of cuMemCreate be a descriptor, can pools be, are there fabric handles.
const VMM_FD: i32 = 103;
const POOL_HANDLES: i32 = 119;
const FABRIC: i32 = 128;

/// A GPU that this process uses, with its primary context.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    driver: &'static Driver,
    ordinal: u32,
    device: i32,
    context: usize,
    uuid: [u8; 16],
    mig: bool,
    name: String,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Gpu({} {} {})",
            self.0.ordinal,
            self.0.name,
            self.uuid_text()
        )
    }
}

impl Gpu {
    /// How many GPUs this process sees. An error says what is missing: the library, a symbol, a device.
    pub fn count() -> Result<u32> {
        Ok(Driver::get()?.count()?.max(0) as u32)
    }

    /// The GPU of a number: the process's own count, which is none that others share (CUDA_VISIBLE_DEVICES).
    pub fn open(ordinal: u32) -> Result<Self> {
        static OPEN: OnceLock<Mutex<HashMap<u32, Gpu>>> = OnceLock::new();
        let driver = Driver::get()?;
        let mut open = OPEN
            .get_or_init(Mutex::default)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = open.get(&ordinal) {
            return Ok(gpu.clone());
        }
        let count = driver.count()?;
        if i64::from(ordinal) >= i64::from(count) {
            return Err(Error::Gpu(format!(
                "GPU {ordinal} is not visible: there are {count} (CUDA_VISIBLE_DEVICES, and the devices of the container)"
            )));
        }
        let device = driver.device(ordinal as i32)?;
        let name = driver.name(device);
        let (uuid, other) = driver.uuid(device)?;
        let gpu = Self(Arc::new(Inner {
            driver,
            ordinal,
            device,
            // Kept for as long as the process lives, as frameworks do.
            context: driver.primary_context(device)?,
            uuid,
            mig: other || name.contains(" MIG "),
            name,
        }));
        open.insert(ordinal, gpu.clone());
        Ok(gpu)
    }

    /// All that this process sees.
    pub fn all() -> Result<Vec<Self>> {
        (0..Self::count()?).map(Self::open).collect()
    }

    /// Its number in this process.
    pub fn ordinal(&self) -> u32 {
        self.0.ordinal
    }

    /// Its name, as the driver has it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its UUID: the same in every process that sees it.
    pub fn uuid_text(&self) -> String {
        uuid_text(&self.0.uuid, self.0.mig)
    }

    /// Whether it is a part of a GPU.
    pub fn is_mig(&self) -> bool {
        self.0.mig
    }

    /// The newest CUDA version that the driver serves: 12080 is 12.8.
    pub fn driver_version(&self) -> u32 {
        self.0.driver.version
    }

    /// Whether a transport can be used here; the error says why not.
    pub fn can(&self, transport: Transport) -> std::result::Result<(), String> {
        let symbols = match transport {
            Transport::HostCopy => return Ok(()),
            Transport::VmmFd | Transport::Fabric => driver::VMM,
            Transport::Legacy => driver::LEGACY,
            Transport::Pool => driver::POOL,
        };
        if let Some(name) = self.0.driver.missing(symbols) {
            return Err(format!("the driver lacks {name}: it is too old"));
        }
        let has = |attribute| self.0.driver.device_attribute(attribute, self.0.device);
        match transport {
            Transport::VmmFd if has(VMM_FD) == 0 => {
                Err("the GPU or its driver gives no descriptors for memory".into())
            }
            Transport::Pool if has(POOL_HANDLES) & 1 == 0 => {
                Err("the GPU or its driver gives no descriptors for pools".into())
            }
            Transport::Fabric if has(FABRIC) == 0 => {
                Err("there are no fabric handles: they need NVLink's fabric".into())
            }
            Transport::Legacy if self.0.mig => {
                Err("legacy handles do not work on MIG instances".into())
            }
            _ => Ok(()),
        }
    }

    /// Waits at most `timeout` until all that was given to a stream so far is done.
    pub fn wait_for(&self, stream: Stream, timeout: Duration) -> Result<()> {
        let _entered = self.enter()?;
        let event = Event::record(self, stream, false)?;
        event.wait(Instant::now() + timeout, "the work of a stream")
    }

    /// Fills memory, in a stream: what a kernel would do, for tests and measurements.
    ///
    /// [`Error::Gpu`] if it is not memory of this process.
    pub fn fill(&self, tensor: &GpuTensor, value: u8, stream: Stream) -> Result<()> {
        let _entered = self.enter()?;
        let (low, high) = tensor.extent();
        self.driver()
            .fill(low, value, (high - low) as usize, stream.0)
    }

    /// A stream of its own, which is never destroyed.
    pub fn stream(&self) -> Result<Stream> {
        let _entered = self.enter()?;
        self.driver().stream().map(Stream)
    }

    fn driver(&self) -> &'static Driver {
        self.0.driver
    }

    /// Makes its context the thread's; the one before comes back when this is dropped.
    fn enter(&self) -> Result<Entered> {
        let driver = self.0.driver;
        let before = driver.current()?;
        driver.set_current(self.0.context)?;
        Ok(Entered { driver, before })
    }

    fn entry(&self) -> DeviceEntry {
        DeviceEntry {
            uuid: self.0.uuid,
            mig: self.0.mig,
        }
    }
}

struct Entered {
    driver: &'static Driver,
    before: usize,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let _ = self.driver.set_current(self.before);
    }
}

/// An event of ours.
pub(crate) struct Event {
    gpu: Gpu,
    raw: u64,
}

impl Event {
    /// Something that happens when a stream has done all that it was given so far.
    fn record(gpu: &Gpu, stream: Stream, shared: bool) -> Result<Self> {
        let event = Self {
            gpu: gpu.clone(),
            raw: gpu.driver().event(shared)?,
        };
        gpu.driver().record(event.raw, stream.0)?;
        Ok(event)
    }

    fn wait(&self, deadline: Instant, what: &str) -> Result<()> {
        self.gpu.driver().wait(self.raw, deadline, what)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = self.gpu.enter() {
            self.gpu.driver().destroy_event(self.raw);
        }
    }
}

/// How many allocations of other processes are open in this one: each is opened once, however many tensors of it
/// there are.
pub fn open_allocations() -> usize {
    import::open_now()
}

/// What a process with these GPUs says in DEVICES. `probe`: with an event for the other side to try; `events`: whether
/// they are wanted.
pub(crate) fn devices(gpus: &[Gpu], probe: bool, events: bool) -> (Devices, Option<Event>) {
    let first = gpus.first();
    let mut devices = Devices {
        pid: std::process::id(),
        transports: 0,
        driver: first.map_or(0, Gpu::driver_version),
        events: false,
        probe: [0; 64],
        list: gpus.iter().map(Gpu::entry).collect(),
    };
    for transport in Transport::ALL {
        if gpus.iter().any(|gpu| gpu.can(transport).is_ok()) {
            devices.transports |= transport.bit();
        }
    }
    let mut event = None;
    if let Some(gpu) = first
        && events
        && gpu.driver().missing(driver::EVENTS).is_none()
        && let Ok(_entered) = gpu.enter()
        && let Ok(mine) = Event::record(gpu, Stream::DEFAULT, true)
        && let Ok(handle) = gpu.driver().export_event(mine.raw)
    {
        devices.events = true;
        if probe {
            devices.probe = handle;
            event = Some(mine);
        }
    }
    (devices, event)
}

/// Whether an event of the other process is found here: not if its /dev/shm is another one.
pub(crate) fn events_work(gpus: &[Gpu], devices: &Devices) -> bool {
    let Some(gpu) = gpus.first() else {
        return false;
    };
    if !devices.events || gpu.driver().missing(driver::EVENTS).is_some() {
        return false;
    }
    let Ok(_entered) = gpu.enter() else {
        return false;
    };
    match gpu.driver().open_event(devices.probe) {
        Ok(raw) => {
            let event = Event {
                gpu: gpu.clone(),
                raw,
            };
            gpu.driver().happened(event.raw).is_ok()
        }
        Err(_) => false,
    }
}
