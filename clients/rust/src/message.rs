//! What is sent and what is received, as the two sides' programs see it.

use std::sync::Arc;

#[cfg(feature = "cuda")]
use crate::cuda::{GpuTensor, Stream};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Memory;
use crate::tensor::{SharedTensor, Tensor};
use crate::wire::{Content, Described, MAX_META, check_name};

/// What is published, asked or answered: a tensor or none, a name, a number, some bytes.
#[derive(Clone, Default)]
pub struct Outgoing {
    pub(crate) tensor: Option<(Arc<Memory>, Layout)>,
    /// A tensor of a GPU, and the stream that writes it.
    #[cfg(feature = "cuda")]
    pub(crate) gpu: Option<(GpuTensor, Stream)>,
    name: String,
    tag: u64,
    meta: Vec<u8>,
}

/// What came.
#[derive(Debug)]
pub struct Received {
    /// The tensor, if there is one. It is released to its sender when it and its clones are dropped.
    pub tensor: Option<Tensor>,
    /// The tensor, if it came as memory of a GPU.
    #[cfg(feature = "cuda")]
    pub gpu: Option<GpuTensor>,
    /// Whether `tensor` is a copy of one on a GPU, made because the memory itself could not be handed over.
    #[cfg(feature = "cuda")]
    pub copied_from_gpu: bool,
    /// The sender's name for it.
    pub name: String,
    /// The sender's number for it.
    pub tag: u64,
    /// Bytes of the sender: not looked at.
    pub meta: Vec<u8>,
    /// How many messages this subscriber has not got so far, because it was too slow.
    pub lost: u64,
}

impl From<&Tensor> for Outgoing {
    fn from(tensor: &Tensor) -> Self {
        Self {
            tensor: Some((tensor.memory().clone(), tensor.layout().clone())),
            ..Self::default()
        }
    }
}

impl From<&SharedTensor> for Outgoing {
    fn from(tensor: &SharedTensor) -> Self {
        Self {
            tensor: Some((tensor.memory().clone(), tensor.layout().clone())),
            ..Self::default()
        }
    }
}

#[cfg(feature = "cuda")]
impl From<&GpuTensor> for Outgoing {
    /// After what the default stream was given; see [`Outgoing::gpu`].
    fn from(tensor: &GpuTensor) -> Self {
        Self::gpu(tensor, Stream::DEFAULT)
    }
}

impl Outgoing {
    /// A tensor of a GPU that is written by what `stream` has been given so far. Nobody reads it before that is done:
    /// the other side's stream waits for it, or publishing does.
    #[cfg(feature = "cuda")]
    pub fn gpu(tensor: &GpuTensor, stream: Stream) -> Self {
        Self {
            gpu: Some((tensor.clone(), stream)),
            ..Self::default()
        }
    }

    /// A message without a tensor.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Names it: at most 255 bytes without control characters.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Numbers it.
    #[must_use]
    pub fn tag(mut self, tag: u64) -> Self {
        self.tag = tag;
        self
    }

    /// Adds bytes of your own: at most 2,048.
    #[must_use]
    pub fn meta(mut self, meta: impl Into<Vec<u8>>) -> Self {
        self.meta = meta.into();
        self
    }

    pub(crate) fn content(&self) -> Result<Content> {
        Ok(self.clone().into_content()?.0)
    }

    /// The message, and the memory that goes with it.
    pub(crate) fn into_content(self) -> Result<(Content, Option<Arc<Memory>>)> {
        #[cfg(feature = "cuda")]
        if self.gpu.is_some() {
            return Err(Error::Gpu(
                "a tensor of a GPU goes from an endpoint to its clients: publish it, or answer with it".into(),
            ));
        }
        check_name(&self.name).map_err(Error::Name)?;
        if self.meta.len() > MAX_META {
            return Err(Error::Layout(format!(
                "{} bytes of meta, at most {MAX_META} are allowed",
                self.meta.len()
            )));
        }
        let (memory, layout) = self.tensor.unzip();
        let tensor = memory
            .as_ref()
            .zip(layout)
            .map(|(memory, layout)| Described {
                layout,
                sharing: memory.sharing(),
                size: memory.size(),
                memory: 0,
            });
        let content = Content {
            tensor,
            lost: 0,
            tag: self.tag,
            name: self.name,
            meta: self.meta,
        };
        Ok((content, memory))
    }

    pub(crate) fn memory(&self) -> Option<&Arc<Memory>> {
        self.tensor.as_ref().map(|(memory, _)| memory)
    }
}
