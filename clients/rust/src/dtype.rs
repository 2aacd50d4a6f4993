//! Types of elements, with their codes on the wire.

use bytemuck::Pod;
use safetensors::Dtype as Safe;

/// The type of a tensor's elements. The numbers are those of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum Dtype {
    Bool = 1,
    U8 = 2,
    I8 = 3,
    U16 = 4,
    I16 = 5,
    U32 = 6,
    I32 = 7,
    U64 = 8,
    I64 = 9,
    F16 = 10,
    Bf16 = 11,
    F32 = 12,
    F64 = 13,
    /// Two f32.
    C64 = 14,
    /// Two f64.
    C128 = 15,
    F8E4m3fn = 16,
    F8E5m2 = 17,
    F8E4m3fnuz = 18,
    F8E5m2fnuz = 19,
    F8E8m0fnu = 20,
    /// Two f16.
    C32 = 21,
}

/// dtype, its name, bytes of an element, bytes of each part, the same in safetensors.
type Row = (Dtype, &'static str, u64, u64, Option<Safe>);

const TABLE: [Row; 21] = [
    (Dtype::Bool, "bool", 1, 1, Some(Safe::BOOL)),
    (Dtype::U8, "u8", 1, 1, Some(Safe::U8)),
    (Dtype::I8, "i8", 1, 1, Some(Safe::I8)),
    (Dtype::U16, "u16", 2, 2, Some(Safe::U16)),
    (Dtype::I16, "i16", 2, 2, Some(Safe::I16)),
    (Dtype::U32, "u32", 4, 4, Some(Safe::U32)),
    (Dtype::I32, "i32", 4, 4, Some(Safe::I32)),
    (Dtype::U64, "u64", 8, 8, Some(Safe::U64)),
    (Dtype::I64, "i64", 8, 8, Some(Safe::I64)),
    (Dtype::F16, "f16", 2, 2, Some(Safe::F16)),
    (Dtype::Bf16, "bf16", 2, 2, Some(Safe::BF16)),
    (Dtype::F32, "f32", 4, 4, Some(Safe::F32)),
    (Dtype::F64, "f64", 8, 8, Some(Safe::F64)),
    (Dtype::C64, "c64", 8, 4, Some(Safe::C64)),
    (Dtype::C128, "c128", 16, 8, None),
    (Dtype::F8E4m3fn, "f8_e4m3fn", 1, 1, Some(Safe::F8_E4M3)),
    (Dtype::F8E5m2, "f8_e5m2", 1, 1, Some(Safe::F8_E5M2)),
    (
        Dtype::F8E4m3fnuz,
        "f8_e4m3fnuz",
        1,
        1,
        Some(Safe::F8_E4M3FNUZ),
    ),
    (
        Dtype::F8E5m2fnuz,
        "f8_e5m2fnuz",
        1,
        1,
        Some(Safe::F8_E5M2FNUZ),
    ),
    (Dtype::F8E8m0fnu, "f8_e8m0fnu", 1, 1, Some(Safe::F8_E8M0)),
    (Dtype::C32, "c32", 4, 2, None),
];

impl Dtype {
    fn row(self) -> &'static Row {
        // The table has a row for each code from 1 on, in order: a test looks.
        &TABLE[self as usize - 1]
    }

    /// The dtype of a code; nothing for codes that there are not.
    pub fn from_code(code: u16) -> Option<Self> {
        TABLE
            .get(usize::from(code).checked_sub(1)?)
            .map(|row| row.0)
    }

    /// The dtype of a name as [`Dtype::name`] gives it.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The code on the wire.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// The name, as docs/channel-protocol.md has it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Bytes of an element.
    pub fn size(self) -> u64 {
        self.row().2
    }

    /// Bytes of each part of an element: half an element for complex numbers. Offsets are multiples of it.
    pub fn part(self) -> u64 {
        self.row().3
    }

    /// The same in a safetensors file; there is none for c32 and c128.
    pub fn to_safetensors(self) -> Option<Safe> {
        self.row().4
    }

    /// The dtype of a safetensors file; nothing for those below a byte.
    pub fn from_safetensors(dtype: Safe) -> Option<Self> {
        TABLE
            .iter()
            .find(|row| row.4 == Some(dtype))
            .map(|row| row.0)
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is one of the dtypes. For the others (bool, f16, bf16, f8, complex numbers) there are the bytes.
pub trait Element: Pod + sealed::Sealed {
    /// Its dtype.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),*) => {
        $(impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
        })*
    };
}

elements!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_codes() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(usize::from(row.0.code()), index + 1, "{}", row.1);
            assert_eq!(Dtype::from_code(row.0.code()), Some(row.0));
            assert_eq!(Dtype::from_name(row.1), Some(row.0));
            if let Some(safe) = row.4 {
                assert_eq!(Dtype::from_safetensors(safe), Some(row.0));
                assert_eq!(safe.bitsize() as u64, row.2 * 8);
            }
        }
        for code in [0, 22, 0xffff] {
            assert_eq!(Dtype::from_code(code), None);
        }
    }

    #[test]
    fn codes_and_sizes_are_those_of_the_document() {
        let text = include_str!("../../../docs/channel-protocol.md");
        let mut seen = 0;
        for line in text.lines() {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            for cell in cells.windows(4) {
                let name = cell[1].split(' ').next().unwrap_or("");
                let Some(dtype) = Dtype::from_name(name) else {
                    continue;
                };
                let numbers = [cell[0], cell[2], cell[3]].map(|text| text.parse::<u64>());
                if let [Ok(code), Ok(size), Ok(part)] = numbers {
                    let want = (u64::from(dtype.code()), dtype.size(), dtype.part());
                    assert_eq!((code, size, part), want, "{name}");
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, TABLE.len());
    }
}
