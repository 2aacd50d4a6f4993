"""Other libraries' tensors: finding their memory, and copying it out, once.

Tried in this order: tensors of this package, torch (for the types that DLPack does not carry),
``__array_interface__`` (numpy), ``__dlpack__`` (torch, jax, cupy, ...), the buffer protocol (bytes, array,
memoryview, ...), and at last ``__array__``.
"""

from __future__ import annotations

import sys
from typing import Any, Iterator, Optional, Tuple

from . import dlpack
from .dlpack import Foreign
from .dtypes import DTYPES, NATIVE_BIG_ENDIAN, dtype, from_format, from_typestr
from .errors import ChannelError, UnsupportedTensor
from .layout import Layout, c_strides
from .memory import owned_elsewhere


def may_be_on_gpu(thing: Any) -> bool:
    """Whether it is worth a look. libcuda is not loaded for that, nor is the module that does it."""
    if thing is None or isinstance(thing, (bytes, bytearray, memoryview)):
        return False
    kind = type(thing)
    if kind.__module__.partition(".")[0] == "torch":
        return bool(thing.device.type == "cuda")
    return hasattr(kind, "__cuda_array_interface__") or hasattr(kind, "__dlpack_device__")


def on_gpu(thing: Any) -> Any:
    """Where a tensor on a GPU is; ``None``: it is on none."""
    if not may_be_on_gpu(thing):
        return None
    from . import cuda

    return cuda.look_at(thing)


def look_at(thing: Any) -> Foreign:
    """Where the elements of ``thing`` are. Nothing is copied.

    :raises UnsupportedTensor: it is no tensor, not in the host's memory, or of a type that a channel cannot carry.
    """
    if type(thing).__module__.partition(".")[0] == "torch":
        return _torch(thing)
    interface = getattr(thing, "__array_interface__", None)
    if isinstance(interface, dict):
        return _array_interface(thing, interface)
    if hasattr(thing, "__dlpack__"):
        return _dlpack(thing)
    view: Optional[memoryview] = None
    try:
        view = memoryview(thing)
    except TypeError:
        pass
    if view is not None:
        return _buffer(view)
    if hasattr(thing, "__array__"):
        return look_at(thing.__array__())
    raise UnsupportedTensor(
        f"a {type(thing).__name__} is no tensor: it has neither __dlpack__ nor __array_interface__ nor a buffer")


def _dlpack(thing: Any) -> Foreign:
    try:
        capsule = dlpack.capsule_of(thing)
    except ChannelError:
        raise
    except Exception as error:  # torch and jax each have their own
        raise UnsupportedTensor(f"the {type(thing).__name__} does not give its memory by DLPack: {error}") from error
    return dlpack.look_into(capsule)


def _torch(thing: Any) -> Foreign:
    if getattr(thing, "device", None) is not None and thing.device.type != "cpu":
        raise UnsupportedTensor(f"the tensor is on {thing.device}; copy it to the CPU first, with .cpu()")
    plain = thing.detach()
    if plain.is_sparse or plain.is_quantized or plain.layout != sys.modules["torch"].strided:
        raise UnsupportedTensor("only dense torch tensors can be in a channel")
    if plain.is_conj():
        plain = plain.resolve_conj()
    if plain.is_neg():
        plain = plain.resolve_neg()
    kind = dtype(thing.dtype)
    if plain.numel() == 0:
        return Foreign(memoryview(b""), Layout(kind, False, tuple(plain.shape), c_strides(plain.shape), 0))
    # Not by DLPack: that of older versions has no float8 types, among others.
    layout = Layout(kind, NATIVE_BIG_ENDIAN and kind.part > 1, tuple(plain.shape), tuple(plain.stride()), 0)
    low, high = layout.extent()
    return Foreign(owned_elsewhere(plain.data_ptr() + low, high - low, plain), layout._replace(offset=-low))


def _array_interface(thing: Any, interface: Any) -> Foreign:
    typestr = interface["typestr"]
    name = getattr(getattr(thing, "dtype", None), "name", None)
    if typestr[1:2] == "V" and name in ("bfloat16", *(d.torch for d in DTYPES.values() if d.name[:2] == "f8")):
        kind, big = dtype(name), NATIVE_BIG_ENDIAN and dtype(name).part > 1  # ml_dtypes: numpy sees raw bytes
    else:
        kind, big = from_typestr(typestr)
    shape = tuple(interface["shape"])
    steps = interface.get("strides")
    if steps is None:
        strides = c_strides(shape)
    else:
        if any(step % kind.itemsize for step, length in zip(steps, shape) if length > 1):
            raise UnsupportedTensor(f"strides {tuple(steps)} are no multiples of the element's {kind.itemsize} bytes; "
                                    "make the array contiguous first")
        strides = tuple(step // kind.itemsize for step in steps)
    layout = Layout(kind, big, shape, strides, 0)
    data = interface.get("data")
    if not isinstance(data, tuple):
        return _buffer(memoryview(thing))
    low, high = layout.extent()
    return Foreign(owned_elsewhere(data[0] + low, high - low, thing), layout._replace(offset=-low))


def _buffer(view: memoryview) -> Foreign:
    kind, big = from_format(view.format, view.itemsize)
    shape = tuple(view.shape or ())
    if not view.c_contiguous:
        # Its address cannot be had without C. One more copy, in C order.
        view = memoryview(view.tobytes())
    return Foreign(view.cast("B"), Layout(kind, big, shape, c_strides(shape), 0))


def copy_into(target: memoryview, source: Foreign) -> None:
    """Copies the elements of ``source`` into ``target``, in C order, without gaps."""
    layout = source.layout
    if layout.size == 0:
        return
    if layout.contiguous:
        start = layout.offset
        target[:layout.nbytes] = source.data[start:start + layout.nbytes]
        return
    numpy = _numpy()
    if numpy is not None:
        raw = f"V{layout.dtype.itemsize}"
        strides = tuple(stride * layout.dtype.itemsize for stride in layout.strides)
        there = numpy.ndarray(layout.shape, raw, source.data, layout.offset, strides)
        numpy.copyto(numpy.ndarray(layout.shape, raw, target), there)
        return
    item = layout.dtype.itemsize
    at = 0
    for start, count, stride in _rows(layout):
        length = count * item
        if stride == 1:
            target[at:at + length] = source.data[start:start + length]
        else:
            # Byte by byte of the element, each as one strided copy in C.
            end = start + (count - 1) * stride * item
            for byte in range(item):
                stop: Optional[int] = end + byte + (1 if stride > 0 else -1)
                if stop is not None and stop < 0:
                    stop = None
                row = source.data[start + byte:stop:stride * item] if stride else \
                    memoryview(bytes([source.data[start + byte]]) * count)
                target[at + byte:at + length:item] = row
        at += length


def _rows(layout: Layout) -> Iterator[Tuple[int, int, int]]:
    """First byte, length and stride, both in elements, of each run along the last dimension, in C order."""
    if not layout.shape:
        yield layout.offset, 1, 1
        return
    item = layout.dtype.itemsize
    outer = tuple(zip(layout.shape[:-1], layout.strides[:-1]))

    def walk(level: int, start: int) -> Iterator[Tuple[int, int, int]]:
        if level == len(outer):
            yield start, layout.shape[-1], layout.strides[-1]
            return
        length, stride = outer[level]
        for _ in range(length):
            yield from walk(level + 1, start)
            start += stride * item

    yield from walk(0, layout.offset)


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        return None
    return numpy
