//! Memory of a GPU that this process allocates.

use super::{Gpu, GpuTensor, Transport};
use crate::error::{Error, Result};
use crate::layout::Layout;

/// Memory of a GPU, freed when it is dropped. As long as somebody to whom it was sent holds it, it is not.
pub struct GpuMemory {
    gpu: Gpu,
    pointer: u64,
    size: u64,
    way: Way,
}

enum Way {
    Plain,
    Vmm,
    Pool(u64),
}

impl GpuMemory {
    /// Memory of the kind that is handed over best here: that of cuMemCreate, else that of cuMemAlloc. It is not
    /// cleared.
    pub fn new(gpu: &Gpu, size: u64) -> Result<Self> {
        match gpu.can(Transport::VmmFd) {
            Ok(()) => Self::of_kind(gpu, size, Transport::VmmFd),
            Err(_) => Self::of_kind(gpu, size, Transport::Legacy),
        }
    }

    /// Memory that is handed over by one transport: [`Transport::Legacy`] is that of cuMemAlloc, [`Transport::Pool`] of
    /// cuMemAllocFromPoolAsync, the others of cuMemCreate.
    pub fn of_kind(gpu: &Gpu, size: u64, transport: Transport) -> Result<Self> {
        if size == 0 || size >= 1 << 47 {
            return Err(Error::Gpu(format!(
                "memory of {size} bytes: 1 to 2^47 are possible"
            )));
        }
        if transport != Transport::Legacy {
            gpu.can(transport)
                .map_err(|why| Error::Gpu(format!("{} memory: {why}", transport.name())))?;
        }
        let _entered = gpu.enter()?;
        let (driver, device) = (gpu.driver(), gpu.0.device);
        let (pointer, size, way) = match transport {
            Transport::VmmFd | Transport::Fabric => {
                let (handle, whole) =
                    driver.create(device, size, transport == Transport::Fabric).map_err(|error| {
                        match transport {
                            Transport::Fabric => Error::Gpu(format!("{error}; fabric handles need a node in /dev/nvidia-caps-imex-channels and the nvidia-imex daemon")),
                            _ => error,
                        }
                    })?;
                let mapped = driver.map(device, handle, whole);
                // The mapping keeps the memory.
                driver.release(handle);
                (mapped?, whole, Way::Vmm)
            }
            Transport::Pool => {
                let pool = driver.pool(device)?;
                let pointer = driver
                    .allocate_from(pool, size as usize)
                    .inspect_err(|_| driver.destroy_pool(pool))?;
                (pointer, size, Way::Pool(pool))
            }
            Transport::Legacy | Transport::HostCopy => {
                (driver.allocate(size as usize)?, size, Way::Plain)
            }
        };
        Ok(Self {
            gpu: gpu.clone(),
            pointer,
            size,
            way,
        })
    }

    /// Its address: CUDA's, not the host's.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Its size in bytes; may be more than was asked for.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The GPU that it is on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// A tensor in it, from its beginning: as [`GpuTensor::new`].
    pub fn into_tensor(self, layout: Layout) -> Result<GpuTensor> {
        GpuTensor::new(self, layout)
    }

    /// Copies from the host's memory, and waits for it.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        if at
            .checked_add(bytes.len() as u64)
            .is_none_or(|end| end > self.size)
        {
            return Err(Error::Gpu(format!(
                "{} bytes at {at} do not fit into {}",
                bytes.len(),
                self.size
            )));
        }
        let _entered = self.gpu.enter()?;
        self.gpu.driver().write(self.pointer + at, bytes)
    }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        let Ok(_entered) = self.gpu.enter() else {
            return;
        };
        let driver = self.gpu.driver();
        // Nobody is there to hear of a failure, and there is nothing to be done about it.
        let _ = match self.way {
            Way::Plain => driver.free(self.pointer),
            Way::Vmm => driver.unmap(self.pointer, self.size),
            Way::Pool(pool) => driver
                .free_from_pool(self.pointer)
                .inspect(|()| driver.destroy_pool(pool)),
        };
    }
}
