//! Where the elements of a tensor lie in its memory, and whether they all lie inside.

use crate::dtype::Dtype;

/// Dimensions that a tensor may have.
pub const MAX_DIMENSIONS: usize = 32;
/// Elements times bytes that a tensor may claim: with stride 0 a small memory can look like any size.
pub const MAX_LOGICAL: u64 = 1 << 47;

/// The order of the bytes in a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// As on x86-64 and nearly all ARM.
    Little,
    /// As in the network.
    Big,
}

impl ByteOrder {
    /// The order of this machine.
    pub const NATIVE: Self = if cfg!(target_endian = "big") {
        Self::Big
    } else {
        Self::Little
    };
}

/// dtype, shape, strides and offset of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The type of the elements.
    pub dtype: Dtype,
    /// How many elements in each dimension.
    pub shape: Vec<u64>,
    /// How many *elements* to go on in each dimension; may be 0 or negative.
    pub strides: Vec<i64>,
    /// Bytes from the beginning of the memory to the element whose indices are all 0.
    pub offset: u64,
    /// Of elements with more than one byte.
    pub byte_order: ByteOrder,
}

impl Layout {
    /// A tensor without gaps, the last dimension being the closest, at the beginning of its memory.
    /// An error says which limit it breaks.
    pub fn contiguous(dtype: Dtype, shape: &[u64]) -> Result<Self, String> {
        let mut strides = vec![0; shape.len()];
        let mut next: u64 = 1;
        for (stride, &length) in strides.iter_mut().zip(shape).rev() {
            *stride = i64::try_from(next).map_err(|_| too_large(shape))?;
            next = next
                .checked_mul(length.max(1))
                .ok_or_else(|| too_large(shape))?;
        }
        let layout = Self {
            dtype,
            shape: shape.to_vec(),
            strides,
            offset: 0,
            byte_order: match dtype.part() {
                1 => ByteOrder::Little,
                _ => ByteOrder::NATIVE,
            },
        };
        layout.check(MAX_LOGICAL)?;
        Ok(layout)
    }

    /// How many elements there are. Only for a layout that [`Layout::check`] has passed.
    pub fn elements(&self) -> u64 {
        match self.shape.contains(&0) {
            true => 0,
            false => self.shape.iter().product(),
        }
    }

    /// Bytes of all elements, one after the other. Only for a layout that [`Layout::check`] has passed.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.size()
    }

    /// Whether the elements lie one after the other, the last dimension being the closest.
    pub fn is_contiguous(&self) -> bool {
        let mut next = 1;
        for (&stride, &length) in self.strides.iter().zip(&self.shape).rev() {
            if length != 1 && stride != next {
                return self.elements() == 0;
            }
            next = next.saturating_mul(length as i64);
        }
        true
    }

    /// Checks every rule of the protocol's section 2 against a memory of `size` bytes; the error names the field.
    pub fn check(&self, size: u64) -> Result<(), String> {
        let bytes = self.dtype.size();
        if self.shape.len() > MAX_DIMENSIONS {
            return Err(format!(
                "{} dimensions, at most {MAX_DIMENSIONS} are allowed",
                self.shape.len()
            ));
        }
        if self.strides.len() != self.shape.len() {
            return Err(format!(
                "{} strides for {} dimensions",
                self.strides.len(),
                self.shape.len()
            ));
        }
        if !self.offset.is_multiple_of(self.dtype.part()) {
            return Err(format!(
                "offset {} is no multiple of {}",
                self.offset,
                self.dtype.part()
            ));
        }
        if self.dtype.part() == 1 && self.byte_order != ByteOrder::Little {
            return Err(format!("byte order for {}", self.dtype.name()));
        }
        if let Some(length) = self.shape.iter().find(|&&length| length >= 1 << 63) {
            return Err(format!("shape: {length} is not less than 2^63"));
        }
        if self.shape.contains(&0) {
            return match self.offset <= size {
                true => Ok(()),
                false => Err(format!("offset {} of {size} bytes", self.offset)),
            };
        }
        self.shape
            .iter()
            .try_fold(bytes, |product, &length| product.checked_mul(length))
            .filter(|&logical| logical <= MAX_LOGICAL)
            .ok_or_else(|| too_large(&self.shape))?;
        // Shape is at most 2^47 and a stride less than 2^63, 32 of them: 128 bits cannot overflow.
        let (mut low, mut high) = (0_i128, 1_i128);
        for (&length, &stride) in self.shape.iter().zip(&self.strides) {
            let reach = (i128::from(length) - 1) * i128::from(stride);
            *(if reach < 0 { &mut low } else { &mut high }) += reach;
        }
        let low = i128::from(self.offset) + low * i128::from(bytes);
        let high = i128::from(self.offset) + high * i128::from(bytes);
        if low < 0 || high > i128::from(size) {
            return Err(format!(
                "offset {}, shape {:?} and strides {:?} of {} reach from {low} to {high}, the memory has {size} bytes",
                self.offset,
                self.shape,
                self.strides,
                self.dtype.name()
            ));
        }
        Ok(())
    }
}

fn too_large(shape: &[u64]) -> String {
    format!("shape {shape:?}: more than 2^47 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(shape: &[u64], strides: &[i64], offset: u64) -> Layout {
        Layout {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            offset,
            byte_order: ByteOrder::Little,
        }
    }

    /// What check computes, element by element.
    fn by_hand(layout: &Layout, size: u64) -> bool {
        let mut at = vec![0_u64; layout.shape.len()];
        if layout.shape.contains(&0) {
            return layout.offset <= size;
        }
        loop {
            let first = at
                .iter()
                .zip(&layout.strides)
                .map(|(&index, &stride)| i128::from(index) * i128::from(stride) * 4)
                .sum::<i128>()
                + i128::from(layout.offset);
            if first < 0 || first + 4 > i128::from(size) {
                return false;
            }
            let mut dimension = 0;
            loop {
                if dimension == at.len() {
                    return true;
                }
                at[dimension] += 1;
                if at[dimension] < layout.shape[dimension] {
                    break;
                }
                at[dimension] = 0;
                dimension += 1;
            }
        }
    }

    #[test]
    fn bounds_are_those_of_every_single_element() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut inside, mut outside) = (0, 0);
        for _ in 0..20_000 {
            let ndim = random.usize(0..4);
            let shape: Vec<_> = (0..ndim).map(|_| random.u64(0..5)).collect();
            let strides: Vec<_> = (0..ndim).map(|_| random.i64(-6..9)).collect();
            let layout = layout(&shape, &strides, random.u64(0..20) * 4);
            let size = random.u64(1..160);
            let want = by_hand(&layout, size);
            assert_eq!(layout.check(size).is_ok(), want, "{layout:?} in {size}");
            *(if want { &mut inside } else { &mut outside }) += 1;
        }
        assert!(
            inside > 3_000 && outside > 3_000,
            "{inside} in, {outside} out"
        );
    }

    #[test]
    fn numbers_that_overflow_are_refused() {
        let big = i64::MAX;
        for (shape, strides, offset) in [
            (vec![1 << 40, 1 << 40], vec![1, 1], 0),
            (vec![2; 32], vec![big; 32], 0),
            (vec![2; 32], vec![-big; 32], 0),
            (vec![2; 32], vec![i64::MIN; 32], u64::MAX - 3),
            (vec![1], vec![1], u64::MAX - 3),
            (vec![u64::MAX], vec![0], 0),
            (vec![1 << 46], vec![0], 0),
            (vec![0], vec![0], 4096),
            (vec![1; 33], vec![1; 33], 0),
            (vec![1, 1], vec![1], 0),
            (vec![1], vec![1], 2),
        ] {
            assert!(
                layout(&shape, &strides, offset).check(64).is_err(),
                "{shape:?} {strides:?} {offset}"
            );
        }
        // A broadcast of one element, as large as may be.
        assert_eq!(layout(&[1 << 45], &[0], 60).check(64), Ok(()));
        // Backwards.
        assert_eq!(layout(&[16], &[-1], 60).check(64), Ok(()));
        assert!(layout(&[17], &[-1], 60).check(64).is_err());
    }

    #[test]
    fn contiguous_is_known() {
        for shape in [&[][..], &[3], &[2, 3, 4], &[1, 5, 1], &[0, 3]] {
            let made = Layout::contiguous(Dtype::F64, shape).unwrap();
            assert!(made.is_contiguous(), "{shape:?}");
            assert_eq!(made.bytes(), shape.iter().product::<u64>() * 8);
        }
        assert!(!layout(&[2, 3], &[1, 2], 0).is_contiguous());
        assert!(!layout(&[4], &[0], 0).is_contiguous());
        assert!(layout(&[1, 4], &[77, 1], 0).is_contiguous());
        assert!(Layout::contiguous(Dtype::U8, &[u64::MAX, 2]).is_err());
    }
}
