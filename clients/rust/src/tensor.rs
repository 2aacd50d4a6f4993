//! Tensors in sealed memory: being written, done, shared.

use std::sync::Arc;

use bytemuck::{try_cast_slice, try_cast_slice_mut};

use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::layout::{ByteOrder, Layout};
use crate::memory::{Memory, Unsealed, Writable, copy_of};
use crate::wire::Sharing;

/// A tensor that is being written: zero at first, in memory that can be handed over without a copy.
pub struct TensorMut {
    memory: Unsealed,
    layout: Layout,
}

/// A tensor that can be read, sent, and cloned without a copy. What was received is released to its sender when
/// the last clone is dropped.
#[derive(Clone)]
pub struct Tensor {
    // In this order: the memory goes before its sender hears of it.
    memory: Arc<Memory>,
    layout: Layout,
    lease: Option<Arc<Lease>>,
}

/// A tensor that this process goes on writing and others read: a buffer to be used again and again. They see what
/// is written while they hold it, so [`SharedTensor::as_mut_slice`] waits for nobody but refuses as long as anyone
/// does.
pub struct SharedTensor {
    memory: Arc<Memory>,
    writable: Writable,
    layout: Layout,
}

/// Tells a sender that its memory is not used any more.
pub(crate) trait Release: Send + Sync {
    fn release(&self, sequence: u64);

    /// Whether the sender is still there.
    #[cfg(feature = "cuda")]
    fn is_open(&self) -> bool;
}

pub(crate) struct Lease {
    pub(crate) to: Arc<dyn Release>,
    pub(crate) sequence: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.to.release(self.sequence);
    }
}

fn contiguous(dtype: Dtype, shape: &[u64]) -> Result<Layout> {
    Layout::contiguous(dtype, shape).map_err(Error::Layout)
}

fn check_type<T: Element>(layout: &Layout) -> Result<()> {
    if T::DTYPE != layout.dtype {
        return Err(Error::Layout(format!(
            "the tensor is {}, not {}",
            layout.dtype.name(),
            T::DTYPE.name()
        )));
    }
    if layout.dtype.part() > 1 && layout.byte_order != ByteOrder::NATIVE {
        return Err(Error::Layout(
            "the tensor has the byte order of another machine".into(),
        ));
    }
    Ok(())
}

fn not_a_slice<E: std::fmt::Display>(error: E) -> Error {
    Error::Layout(format!("the tensor is no slice: {error}"))
}

impl TensorMut {
    /// A tensor of zeros. Where there is not enough memory this is an error.
    pub fn zeros(dtype: Dtype, shape: &[u64]) -> Result<Self> {
        let layout = contiguous(dtype, shape)?;
        let memory = Unsealed::new(layout.bytes().max(1))?;
        Ok(Self { memory, layout })
    }

    /// dtype, shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The elements.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        check_type::<T>(&self.layout)?;
        try_cast_slice(&self.memory.bytes()[..self.layout.bytes() as usize]).map_err(not_a_slice)
    }

    /// The elements, to be written.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        check_type::<T>(&self.layout)?;
        try_cast_slice_mut(self.bytes_mut()).map_err(not_a_slice)
    }

    /// The elements' bytes, to be written: for dtypes that Rust has no type for.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory.bytes_mut()[..self.layout.bytes() as usize]
    }

    /// Seals it: nobody, this process included, can write it any more. The kernel looks at each page once.
    pub fn freeze(self) -> Result<Tensor> {
        Ok(Tensor {
            memory: Arc::new(self.memory.freeze()?),
            layout: self.layout,
            lease: None,
        })
    }

    /// Seals it for all others: this process can go on writing it. Needs Linux 5.1.
    pub fn share(self) -> Result<SharedTensor> {
        let (memory, writable) = self.memory.share()?;
        Ok(SharedTensor {
            memory: Arc::new(memory),
            writable,
            layout: self.layout,
        })
    }
}

impl Tensor {
    /// A tensor with a *copy* of elements that lie elsewhere. To save the copy, write into a [`TensorMut`].
    pub fn copy_of<T: Element>(elements: &[T], shape: &[u64]) -> Result<Self> {
        Self::copy_of_bytes(T::DTYPE, bytemuck::cast_slice(elements), shape)
    }

    /// The same for dtypes that Rust has no type for.
    pub fn copy_of_bytes(dtype: Dtype, bytes: &[u8], shape: &[u64]) -> Result<Self> {
        let layout = contiguous(dtype, shape)?;
        if layout.bytes() != bytes.len() as u64 {
            return Err(Error::Layout(format!(
                "shape {shape:?} of {} needs {} bytes, there are {}",
                dtype.name(),
                layout.bytes(),
                bytes.len()
            )));
        }
        Ok(Self {
            memory: Arc::new(copy_of(bytes)?),
            layout,
            lease: None,
        })
    }

    pub(crate) fn new(memory: Arc<Memory>, layout: Layout, lease: Option<Arc<Lease>>) -> Self {
        Self {
            memory,
            layout,
            lease,
        }
    }

    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// dtype, shape, strides, offset.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.layout.dtype
    }

    /// How many elements in each dimension.
    pub fn shape(&self) -> &[u64] {
        &self.layout.shape
    }

    /// Whether its sender may change it while it is read.
    pub fn is_shared(&self) -> bool {
        self.memory.sharing() == Sharing::Shared
    }

    /// The same memory under another layout, without a copy: a part, a transposition, another dtype.
    pub fn view(&self, layout: Layout) -> Result<Self> {
        layout.check(self.memory.size()).map_err(Error::Layout)?;
        Ok(Self {
            layout,
            ..self.clone()
        })
    }

    /// The address of the element whose indices are all 0. It is valid as long as this tensor or a clone of it is,
    /// and so are all the elements that [`Tensor::layout`] tells. They are read-only; those of a shared tensor can
    /// change at any time.
    pub fn as_ptr(&self) -> *const u8 {
        self.memory
            .as_ptr()
            .wrapping_add(self.layout.offset as usize)
    }

    /// The elements, where they lie: without a copy. Refused for another type than T, for gaps and steps in the
    /// strides, and for a shared tensor, which can change under a slice: see [`Tensor::read_into`].
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        check_type::<T>(&self.layout)?;
        try_cast_slice(self.bytes()?).map_err(not_a_slice)
    }

    /// The bytes of the elements, where they lie: as [`Tensor::as_slice`], for any dtype.
    pub fn bytes(&self) -> Result<&[u8]> {
        let all = self.memory.bytes().ok_or_else(|| {
            Error::Layout("the tensor is shared: it can change while it is read, so copy it".into())
        })?;
        if !self.layout.is_contiguous() {
            return Err(Error::Layout(format!(
                "strides {:?} of shape {:?} have steps, so it is no slice",
                self.layout.strides, self.layout.shape
            )));
        }
        let start = self.layout.offset as usize;
        Ok(&all[start..start + self.layout.bytes() as usize])
    }

    /// Copies the elements, in the order of their indices, whatever the strides. `into` has as many bytes as
    /// [`Layout::bytes`] says. Of a shared tensor that is being written it may get old and new elements mixed.
    pub fn read_into(&self, into: &mut [u8]) -> Result<()> {
        let layout = &self.layout;
        if into.len() as u64 != layout.bytes() {
            return Err(Error::Layout(format!(
                "{} bytes of room for {} bytes of elements",
                into.len(),
                layout.bytes()
            )));
        }
        // Checked layouts lie inside: copy_out does not fail.
        let outside = || Error::Layout("an element outside of the memory".into());
        if layout.is_contiguous() {
            return self
                .memory
                .copy_out(layout.offset, into)
                .ok_or_else(outside);
        }
        let mut index = vec![0_u64; layout.shape.len()];
        let mut at = i128::from(layout.offset);
        let bytes = i128::from(layout.dtype.size());
        for element in into.chunks_exact_mut(layout.dtype.size() as usize) {
            self.memory
                .copy_out(at as u64, element)
                .ok_or_else(outside)?;
            for dimension in (0..index.len()).rev() {
                let step = i128::from(layout.strides[dimension]) * bytes;
                index[dimension] += 1;
                at += step;
                if index[dimension] < layout.shape[dimension] {
                    break;
                }
                at -= step * i128::from(index[dimension]);
                index[dimension] = 0;
            }
        }
        Ok(())
    }

    /// Copies a part of the elements' bytes, from the byte `offset` of a tensor without gaps and steps on: of a shared
    /// tensor, without copying the rest.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let (layout, length) = (&self.layout, into.len() as u64);
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= layout.bytes());
        if !inside || !layout.is_contiguous() {
            return Err(Error::Layout(format!(
                "{length} bytes from {offset} on, of {} bytes with strides {:?}",
                layout.bytes(),
                layout.strides
            )));
        }
        // Checked layouts lie inside: copy_out does not fail.
        let outside = || Error::Layout("an element outside of the memory".into());
        self.memory
            .copy_out(layout.offset + offset, into)
            .ok_or_else(outside)
    }

    /// The elements as a vector: a copy.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        check_type::<T>(&self.layout)?;
        let mut elements = Vec::new();
        let count = self.layout.elements() as usize;
        elements
            .try_reserve_exact(count)
            .map_err(|_| Error::Layout(format!("no memory for {count} elements")))?;
        elements.resize(count, T::zeroed());
        self.read_into(bytemuck::cast_slice_mut(&mut elements))?;
        Ok(elements)
    }
}

impl SharedTensor {
    /// dtype and shape.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Whether everyone to whom it was sent has released it, or has gone.
    pub fn is_free(&self) -> bool {
        Arc::strong_count(&self.memory) == 1
    }

    /// A reader's view in this process. As long as there is one, the tensor is not free.
    pub fn reader(&self) -> Tensor {
        Tensor::new(self.memory.clone(), self.layout.clone(), None)
    }

    /// The elements, to be written; refused as long as somebody may be reading.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        check_type::<T>(&self.layout)?;
        try_cast_slice_mut(self.bytes_mut()?).map_err(not_a_slice)
    }

    /// The same as bytes.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        if Arc::get_mut(&mut self.memory).is_none() {
            return Err(Error::InUse(
                "the shared tensor is still held by those to whom it was sent".into(),
            ));
        }
        Ok(&mut self.writable.bytes_mut()[..self.layout.bytes() as usize])
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tensor")
            .field("dtype", &self.layout.dtype.name())
            .field("shape", &self.layout.shape)
            .field("shared", &self.is_shared())
            .field("received", &self.lease.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_written_in_place() {
        let mut writing = TensorMut::zeros(Dtype::F32, &[3, 4]).unwrap();
        assert!(writing.as_slice::<f32>().unwrap().iter().all(|&x| x == 0.0));
        assert!(writing.as_mut_slice::<f64>().is_err());
        for (at, element) in writing
            .as_mut_slice::<f32>()
            .unwrap()
            .iter_mut()
            .enumerate()
        {
            *element = at as f32;
        }
        let tensor = writing.freeze().unwrap();
        assert_eq!(tensor.as_slice::<f32>().unwrap()[11], 11.0);
        assert!(tensor.as_slice::<u32>().is_err());

        let transposed = Layout {
            shape: vec![4, 3],
            strides: vec![1, 4],
            ..tensor.layout().clone()
        };
        let view = tensor.view(transposed).unwrap();
        assert!(view.as_slice::<f32>().is_err());
        let got = view.to_vec::<f32>().unwrap();
        assert_eq!(got[..6], [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]);
        let backwards = Layout {
            shape: vec![12],
            strides: vec![-1],
            offset: 44,
            ..tensor.layout().clone()
        };
        let view = tensor.view(backwards.clone()).unwrap();
        assert_eq!(view.to_vec::<f32>().unwrap()[..2], [11.0, 10.0]);
        let outside = Layout {
            offset: 48,
            ..backwards
        };
        assert!(tensor.view(outside).is_err());
    }

    #[test]
    fn strided_copies_agree_with_indices() {
        let mut random = fastrand::Rng::with_seed(11);
        let source: Vec<u16> = (0..512).collect();
        let tensor = Tensor::copy_of(&source, &[512]).unwrap();
        let mut tried = 0;
        while tried < 500 {
            let ndim = random.usize(0..4);
            let layout = Layout {
                dtype: Dtype::U16,
                shape: (0..ndim).map(|_| random.u64(0..6)).collect(),
                strides: (0..ndim).map(|_| random.i64(-20..40)).collect(),
                offset: random.u64(0..512) * 2,
                byte_order: ByteOrder::NATIVE,
            };
            let Ok(view) = tensor.view(layout.clone()) else {
                continue;
            };
            let got = view.to_vec::<u16>().unwrap();
            assert_eq!(got.len() as u64, layout.elements());
            for (number, element) in got.into_iter().enumerate() {
                let mut rest = number as u64;
                let mut at = (layout.offset / 2) as i64;
                for (&length, &stride) in layout.shape.iter().zip(&layout.strides).rev() {
                    at += (rest % length) as i64 * stride;
                    rest /= length;
                }
                assert_eq!(i64::from(element), at, "{layout:?}");
            }
            tried += 1;
        }
    }

    #[test]
    fn shared_tensors_are_copied_only() {
        let mut shared = TensorMut::zeros(Dtype::I64, &[4]).unwrap().share().unwrap();
        shared.as_mut_slice::<i64>().unwrap()[2] = 5;
        let reader = shared.reader();
        assert!(reader.as_slice::<i64>().is_err());
        assert_eq!(reader.to_vec::<i64>().unwrap(), [0, 0, 5, 0]);
        let mut part = [9; 9];
        reader.read_at(15, &mut part).unwrap();
        assert_eq!(part, [0, 5, 0, 0, 0, 0, 0, 0, 0]);
        for (offset, length) in [(32, 1), (24, 9), (u64::MAX, 1), (33, 0)] {
            assert!(reader.read_at(offset, &mut vec![0; length]).is_err());
        }
        reader.read_at(32, &mut []).unwrap();
        let backwards = Layout {
            strides: vec![-1],
            offset: 24,
            ..reader.layout().clone()
        };
        let backwards = reader.view(backwards).unwrap();
        assert!(backwards.read_at(0, &mut part[..1]).is_err());
        drop(backwards);
        assert!(!shared.is_free());
        assert!(matches!(shared.as_mut_slice::<i64>(), Err(Error::InUse(_))));
        drop(reader);
        assert!(shared.as_mut_slice::<i64>().is_ok());
    }

    #[test]
    fn no_elements_and_none_too_many() {
        let empty = Tensor::copy_of::<f64>(&[], &[0, 3]).unwrap();
        assert!(empty.as_slice::<f64>().unwrap().is_empty());
        assert!(empty.to_vec::<f64>().unwrap().is_empty());
        let scalar = Tensor::copy_of(&[1.5_f32], &[]).unwrap();
        assert_eq!(scalar.as_slice::<f32>().unwrap(), [1.5]);
        assert!(Tensor::copy_of(&[1_u8, 2], &[3]).is_err());
        assert!(TensorMut::zeros(Dtype::U8, &[1 << 60]).is_err());
    }
}
