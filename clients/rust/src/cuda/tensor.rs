//! Tensors in the memory of a GPU: this process's own, another library's, another process's.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::import::Mapping;
use super::{Event, Gpu, GpuMemory, Transport};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::{Memory, Unsealed};
use crate::tensor::{Lease, Tensor};

/// Pinned memory for copies, in bytes: enough for the bus, little enough for everyone.
const PINNED: usize = 16 << 20;

/// A CUDA stream as a number: what cudaStream_t and CUstream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stream(pub u64);

impl Stream {
    /// The default stream of the process, which waits for all others that are not non-blocking.
    pub const DEFAULT: Self = Self(0);
}

/// A tensor in the memory of a GPU. Clones share it. One that was received is closed and released to its sender when
/// the last clone is dropped; that waits (at most 30 s) until the default stream and those of
/// [`GpuTensor::used_on`] have done what they were given.
#[derive(Clone)]
pub struct GpuTensor {
    held: Arc<Held>,
    layout: Layout,
}

enum Held {
    Own(GpuMemory),
    Foreign {
        gpu: Gpu,
        pointer: u64,
        _keep: Box<dyn Any + Send + Sync>,
    },
    Imported(Imported),
}

/// Memory of another process.
pub(super) struct Imported {
    gpu: Gpu,
    // Closed before its owner hears of the release: see Drop.
    mapping: Option<Arc<Mapping>>,
    lease: Option<Lease>,
    transport: Transport,
    _event: Option<Event>,
    streams: Mutex<Vec<Stream>>,
}

impl Imported {
    pub(super) fn new(
        gpu: Gpu,
        mapping: Arc<Mapping>,
        lease: Lease,
        transport: Transport,
        event: Option<Event>,
        stream: Option<Stream>,
    ) -> Self {
        Self {
            gpu,
            mapping: Some(mapping),
            lease: Some(lease),
            transport,
            _event: event,
            streams: Mutex::new(stream.into_iter().collect()),
        }
    }

    fn pointer(&self) -> u64 {
        // It is there until the drop.
        self.mapping.as_ref().map_or(0, |mapping| mapping.pointer)
    }

    /// Waits until nothing of this process reads it any more.
    fn finish(&self, deadline: Instant) -> Result<()> {
        let _entered = self.gpu.enter()?;
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.push(Stream::DEFAULT);
        for stream in streams.drain(..) {
            let event = Event::record(&self.gpu, stream, false)?;
            event.wait(deadline, "a stream that may read the tensor")?;
        }
        Ok(())
    }

    /// With these the memory goes with its owner, whatever others do.
    fn needs_owner(&self) -> bool {
        matches!(self.transport, Transport::Legacy | Transport::Pool)
    }

    fn check(&self) -> Result<()> {
        let alive = self.lease.as_ref().is_some_and(|lease| lease.to.is_open());
        if self.needs_owner() && !alive {
            return Err(Error::Closed(format!(
                "the owner of the {} memory has gone, so it may be anything now",
                self.transport.name()
            )));
        }
        Ok(())
    }
}

impl Drop for Imported {
    fn drop(&mut self) {
        if self.finish(Instant::now() + super::PATIENCE).is_err() {
            // Something may still read it, or the GPU is lost: it stays open, and its owner keeps it, until this
            // process ends. That is a leak, and nothing worse.
            std::mem::forget(self.mapping.take());
            std::mem::forget(self.lease.take());
            return;
        }
        self.mapping = None;
        self.lease = None;
    }
}

impl GpuTensor {
    /// A tensor in memory of this process. [`Error::Layout`] if it does not fit.
    pub fn new(memory: GpuMemory, layout: Layout) -> Result<Self> {
        layout.check(memory.size()).map_err(Error::Layout)?;
        Ok(Self {
            held: Arc::new(Held::Own(memory)),
            layout,
        })
    }

    /// A tensor in memory that another library has allocated, for example of a framework. `pointer` is the address of
    /// the element whose indices are all 0; the layout's offset is 0. `keep` is held as long as anyone uses it.
    ///
    /// [`Error::Gpu`] if the address is no memory of that GPU.
    pub fn foreign(
        gpu: &Gpu,
        pointer: u64,
        layout: Layout,
        keep: Box<dyn Any + Send + Sync>,
    ) -> Result<Self> {
        let _entered = gpu.enter()?;
        let ordinal = gpu
            .driver()
            .attribute(super::driver::attribute::ORDINAL, pointer)? as u32;
        if ordinal != gpu.ordinal() {
            return Err(Error::Gpu(format!(
                "{pointer:#x} is memory of GPU {ordinal}, not of {}",
                gpu.ordinal()
            )));
        }
        Ok(Self {
            held: Arc::new(Held::Foreign {
                gpu: gpu.clone(),
                pointer,
                _keep: keep,
            }),
            layout,
        })
    }

    pub(super) fn imported(imported: Imported, layout: Layout) -> Self {
        Self {
            held: Arc::new(Held::Imported(imported)),
            layout,
        }
    }

    /// dtype, shape, strides, and where in its allocation it begins.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The GPU that it is on.
    pub fn gpu(&self) -> &Gpu {
        match &*self.held {
            Held::Own(memory) => memory.gpu(),
            Held::Foreign { gpu, .. } => gpu,
            Held::Imported(imported) => &imported.gpu,
        }
    }

    /// How it came here; nothing for a tensor of this process.
    pub fn came_by(&self) -> Option<Transport> {
        match &*self.held {
            Held::Imported(imported) => Some(imported.transport),
            _ => None,
        }
    }

    /// The address on the GPU of the element whose indices are all 0: for kernels. It is valid as long as this tensor
    /// or a clone of it is. If a stream that is not the default one reads it, say so by [`GpuTensor::used_on`].
    pub fn pointer(&self) -> u64 {
        let base = match &*self.held {
            Held::Own(memory) => memory.pointer(),
            Held::Foreign { pointer, .. } => *pointer,
            Held::Imported(imported) => imported.pointer(),
        };
        base.wrapping_add(self.layout.offset)
    }

    /// A stream reads it: its sender hears of the release once that stream has done what it was given until then.
    pub fn used_on(&self, stream: Stream) {
        if let Held::Imported(imported) = &*self.held {
            let mut streams = imported
                .streams
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if !streams.contains(&stream) {
                streams.push(stream);
            }
        }
    }

    /// Whether the memory can still be relied on: memory that came by a legacy handle or from a pool goes when its
    /// owner dies. [`Error::Closed`] says that it has.
    pub fn check(&self) -> Result<()> {
        match &*self.held {
            Held::Imported(imported) => imported.check(),
            _ => Ok(()),
        }
    }

    /// First address, and the one after the last.
    pub(super) fn extent(&self) -> (u64, u64) {
        let bytes = self.layout.dtype.size() as i64;
        let (mut low, mut high) = (0_i64, 1_i64);
        if self.layout.shape.contains(&0) {
            return (self.pointer(), self.pointer());
        }
        for (&length, &stride) in self.layout.shape.iter().zip(&self.layout.strides) {
            let reach = (length as i64 - 1).saturating_mul(stride);
            *(if reach < 0 { &mut low } else { &mut high }) += reach;
        }
        (
            self.pointer().wrapping_add_signed(low * bytes),
            self.pointer().wrapping_add_signed(high * bytes),
        )
    }

    /// A copy in the host's memory, which can be read, and sent as any tensor. Through pinned memory.
    pub fn to_host(&self) -> Result<Tensor> {
        // With a stream that waits for the producer's kernel, the copy must not be earlier than that.
        let after = match &*self.held {
            Held::Imported(imported) => {
                let streams = imported
                    .streams
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                streams.first().copied().unwrap_or_default()
            }
            _ => Stream::DEFAULT,
        };
        let (memory, layout) = self.copy_out(after)?;
        Ok(Tensor::new(memory, layout, None))
    }

    /// The same after what a stream was given.
    pub(super) fn copy_out(&self, after: Stream) -> Result<(Arc<Memory>, Layout)> {
        self.check()?;
        let gpu = self.gpu();
        let _entered = gpu.enter()?;
        let (low, high) = self.extent();
        let size = (high - low) as usize;
        let mut unsealed = Unsealed::new((size as u64).max(1))?;
        Event::record(gpu, after, false)?.wait(
            Instant::now() + super::PATIENCE,
            "the kernel that writes the tensor",
        )?;
        let copier = Copier::new(gpu, size.min(PINNED))?;
        for (index, part) in unsealed.bytes_mut()[..size].chunks_mut(PINNED).enumerate() {
            part.copy_from_slice(copier.part(low + (index * PINNED) as u64, part.len())?);
        }
        drop(copier);
        // Memory whose owner died in between was not what it should have been.
        self.check()?;
        let layout = Layout {
            offset: self.pointer() - low,
            ..self.layout.clone()
        };
        Ok((Arc::new(unsealed.freeze()?), layout))
    }
}

/// Pinned memory and a stream.
struct Copier {
    gpu: Gpu,
    memory: usize,
    stream: u64,
}

impl Copier {
    fn new(gpu: &Gpu, size: usize) -> Result<Self> {
        let memory = gpu.driver().pinned(size.max(1))?;
        let stream = gpu
            .driver()
            .stream()
            .inspect_err(|_| gpu.driver().free_pinned(memory))?;
        Ok(Self {
            gpu: gpu.clone(),
            memory,
            stream,
        })
    }

    fn part(&self, from: u64, size: usize) -> Result<&[u8]> {
        let driver = self.gpu.driver();
        driver.read(self.memory, from, size, self.stream)?;
        let event = Event::record(&self.gpu, Stream(self.stream), false)?;
        event.wait(
            Instant::now() + Duration::from_secs(60),
            "a copy from the GPU",
        )?;
        Ok(driver.pinned_bytes(self.memory, size))
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.gpu.driver().destroy_stream(self.stream);
        self.gpu.driver().free_pinned(self.memory);
    }
}

impl std::fmt::Debug for GpuTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GpuTensor")
            .field("dtype", &self.layout.dtype.name())
            .field("shape", &self.layout.shape)
            .field("gpu", self.gpu())
            .field("came_by", &self.came_by().map(Transport::name))
            .finish()
    }
}
