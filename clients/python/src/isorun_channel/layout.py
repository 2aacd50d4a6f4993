"""Shape, strides and offset of a tensor in its memory, and the sums that keep it inside."""

from __future__ import annotations

from typing import Iterable, NamedTuple, Optional, Sequence, Tuple

from .dtypes import NATIVE_BIG_ENDIAN, DType, DTypeLike, dtype as to_dtype
from .errors import InvalidArgument, LayoutError

#: Dimensions that a tensor can have.
MAX_NDIM = 32
#: Bytes that a tensor can claim to have, elements times size; with stride 0 it needs less memory than that.
MAX_BYTES = 1 << 47


class Layout(NamedTuple):
    """Where the elements of a tensor are. Strides count elements, as in DLPack; the offset counts bytes."""

    dtype: DType
    big_endian: bool
    shape: Tuple[int, ...]
    strides: Tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """The number of elements."""
        n = 1
        for d in self.shape:
            n *= d
        return n

    @property
    def nbytes(self) -> int:
        """Elements times the size of one."""
        return self.size * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether the elements follow each other in C order, without gaps."""
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides)):
            if length == 0:
                return True
            if length != 1 and stride != expected:
                return False
            expected *= length
        return True

    def extent(self) -> Tuple[int, int]:
        """The first byte that belongs to an element, and the first one after them all."""
        low = high = self.offset
        if 0 in self.shape:
            return low, high
        item = self.dtype.itemsize
        for length, stride in zip(self.shape, self.strides):
            if stride < 0:
                low += item * (length - 1) * stride
            else:
                high += item * (length - 1) * stride
        return low, high + item

    def check(self, size: int) -> None:
        """That every element lies in a memory of ``size`` bytes (Python's integers do not overflow).

        :raises LayoutError: it does not, or a limit is exceeded.
        """
        dtype, _, shape, strides, offset = self
        if len(shape) > MAX_NDIM:
            raise LayoutError(f"a tensor of {len(shape)} dimensions; the limit is {MAX_NDIM}")
        if len(strides) != len(shape):
            raise LayoutError(f"{len(strides)} strides for {len(shape)} dimensions")
        # The sums of size(), nbytes() and extent() in one round: this is on the way of every tensor.
        count = 1
        low = high = 0
        for length, stride in zip(shape, strides):
            if not 0 <= length < 1 << 63:
                raise LayoutError(f"a dimension of {length} elements; it must be below 2^63")
            count *= length
            if stride < 0:
                low += (length - 1) * stride
            else:
                high += (length - 1) * stride
        if count * dtype.itemsize > MAX_BYTES:
            raise LayoutError(f"a tensor of {count * dtype.itemsize} bytes (elements times their size); "
                              "the limit is 2^47")
        if offset < 0 or offset % dtype.part:
            raise LayoutError(f"offset {offset} is no multiple of {dtype.part}, as {dtype} needs")
        if count == 0:
            low = high = offset
        else:
            low, high = offset + low * dtype.itemsize, offset + (high + 1) * dtype.itemsize
        if low < 0 or high > size:
            raise LayoutError(f"a tensor from byte {low} to byte {high} in a memory of {size} bytes")


def c_strides(shape: Sequence[int]) -> Tuple[int, ...]:
    """The strides, in elements, of a tensor in C order without gaps."""
    strides = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def dense(shape: Iterable[int], like: DTypeLike, offset: int = 0, big_endian: Optional[bool] = None) -> Layout:
    """The layout of a new tensor in C order.

    :raises InvalidArgument: a bad dtype or shape.
    """
    kind = to_dtype(like)
    try:
        numbers = (shape,) if isinstance(shape, int) else tuple(shape)
        dims = tuple(n.__index__() for n in numbers)
    except (TypeError, AttributeError):
        raise InvalidArgument(f"shape {shape!r} is no sequence of whole numbers") from None
    big = (NATIVE_BIG_ENDIAN if big_endian is None else big_endian) and kind.part > 1
    layout = Layout(kind, big, dims, (), offset)
    try:
        layout = layout._replace(strides=c_strides(dims))
        layout.check(offset + max(layout.nbytes, 0))
    except LayoutError as error:
        raise InvalidArgument(f"shape {dims}: {error}") from None
    return layout
