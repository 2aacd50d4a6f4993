"""DLPack capsules by ctypes: giving them out (both the versioned and the old kind), and looking into others'."""

from __future__ import annotations

import ctypes
import gc
from sys import getrefcount
from typing import Any, Dict, NamedTuple, Optional, Tuple

from .dtypes import BY_DLPACK, NATIVE_BIG_ENDIAN, DType
from .errors import UnsupportedTensor
from .layout import MAX_NDIM, Layout, c_strides
from .memory import Memory, owned_elsewhere

CPU, CUDA = 1, 2
# Memory of the host that a GPU can reach, too: CUDA's and ROCm's pinned memory.
_HOST_DEVICES = (CPU, 3, 11)
_READ_ONLY, _COPIED = 1, 2


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
                ("room", ctypes.c_char * 128)]


class _Version(ctypes.Structure):
    _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32)]


class _ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("version", _Version),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
        ("room", ctypes.c_char * 128),
    ]


_new = ctypes.pythonapi.PyCapsule_New
_new.restype = ctypes.py_object
_new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = (ctypes.py_object, ctypes.c_char_p)
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_NAME, _NAME_VERSIONED = b"dltensor", b"dltensor_versioned"

# How a consumer's "I am done" reaches us. A deleter in Python would run whenever the consumer's object dies: in
# the middle of a raised exception (which it would eat: seen with numpy 2.4), without the GIL, or in an interpreter
# that ends. So the deleter is a function of the C library that writes zeros to the address that it is given,
# sigemptyset(3), into a structure that has room for them; what became zero is let go at the next sweep.
_deleter = ctypes.cast(ctypes.CDLL(None).sigemptyset, ctypes.c_void_p)


class _Export(NamedTuple):
    """A tensor that was given out: its capsule, its structure, and all that this points to."""

    capsule: Any
    managed: Any
    keep: Tuple[Any, ...]

    def done(self) -> bool:
        # Both kinds begin with something that is never 0 before: the version, and the address of the data.
        managed = self.managed
        if isinstance(managed, _ManagedVersioned):
            if managed.version.major == 0:
                return True
            name = _NAME_VERSIONED
        else:
            if managed.tensor.data is None:
                return True
            name = _NAME
        # The list of exports, this tuple and the argument of getrefcount: nobody has the capsule, or ever took it.
        return bool(_is_valid(self.capsule, name)) and getrefcount(self.capsule) <= 2


_live: Dict[int, _Export] = {}
_wait = 0


def sweep(all: bool = False) -> None:
    """Lets go of the tensors whose consumers have let go of them. Called before every export, before every
    look for messages, and by Python's own collector."""
    global _wait
    # Amortised: with thousands of exports not each time.
    _wait -= 1
    if _live and (all or _wait <= 0):
        for address, export in list(_live.items()):
            if export.done():
                _live.pop(address, None)
        _wait = len(_live) // 64


def _collected(phase: str, info: Any) -> None:
    if phase == "start" and _live:
        sweep(all=True)


gc.callbacks.append(_collected)


def live_exports() -> int:
    """How many tensors other libraries hold by DLPack now."""
    sweep(all=True)
    return len(_live)


def export(memory: Memory, layout: Layout, versioned: bool, copied: bool) -> Any:
    """A capsule that shows a tensor. It keeps the memory alive until its consumer lets go.

    :raises BufferError: DLPack has no such dtype or byte order.
    """
    if layout.dtype.dlpack is None:
        raise BufferError(f"DLPack has no type for {layout.dtype}")
    if layout.dtype.part > 1 and layout.big_endian != NATIVE_BIG_ENDIAN:
        raise BufferError("DLPack has no tensors of the other byte order")
    ndim = len(layout.shape)
    shape = (ctypes.c_int64 * max(ndim, 1))(*layout.shape)
    strides = (ctypes.c_int64 * max(ndim, 1))(*layout.strides)
    managed: Any = _ManagedVersioned() if versioned else _Managed()
    if versioned:
        managed.version = _Version(1, 0)
        managed.flags = (0 if memory.writable else _READ_ONLY) | (_COPIED if copied else 0)
    tensor = managed.tensor
    # An empty tensor has an address, too: what is 0 counts as let go.
    tensor.data = memory.address() + layout.offset if layout.size else ctypes.addressof(managed)
    tensor.device = _Device(CPU, 0)
    tensor.ndim = ndim
    code, bits = layout.dtype.dlpack
    tensor.dtype = _DataType(code, bits, 1)
    tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
    tensor.strides = ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64))
    tensor.byte_offset = 0
    managed.deleter = _deleter
    if memory.writable:
        memory.will_write()
    sweep()
    address = ctypes.addressof(managed)
    capsule = _new(address, _NAME_VERSIONED if versioned else _NAME, None)
    _live[address] = _Export(capsule, managed, (shape, strides, memory))
    return capsule


def export_gpu(keep: Any, pointer: int, layout: Layout, ordinal: int, versioned: bool) -> Any:
    """A capsule that shows memory of a GPU. It keeps ``keep`` until its consumer lets go."""
    if layout.dtype.dlpack is None:
        raise BufferError(f"DLPack has no type for {layout.dtype}")
    if layout.dtype.part > 1 and layout.big_endian != NATIVE_BIG_ENDIAN:
        raise BufferError("DLPack has no tensors of the other byte order")
    ndim = len(layout.shape)
    shape = (ctypes.c_int64 * max(ndim, 1))(*layout.shape)
    strides = (ctypes.c_int64 * max(ndim, 1))(*layout.strides)
    managed: Any = _ManagedVersioned() if versioned else _Managed()
    if versioned:
        managed.version = _Version(1, 0)
    tensor = managed.tensor
    tensor.data = pointer
    tensor.device = _Device(CUDA, ordinal)
    tensor.ndim = ndim
    code, bits = layout.dtype.dlpack
    tensor.dtype = _DataType(code, bits, 1)
    tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
    tensor.strides = ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = _deleter
    sweep()
    address = ctypes.addressof(managed)
    capsule = _new(address, _NAME_VERSIONED if versioned else _NAME, None)
    _live[address] = _Export(capsule, managed, (shape, strides, keep))
    return capsule


def on_gpu(capsule: Any) -> Tuple[int, Layout, Any]:
    """Address and layout of a tensor on a GPU, and the capsule, which gives it back when it goes.

    :raises UnsupportedTensor: it is not on a GPU, or of a type that a channel does not carry.
    """
    tensor = _tensor_in(capsule)
    if tensor.device.type != CUDA:
        raise UnsupportedTensor(f"the tensor is in the memory of device {tensor.device.type} (DLPack's numbers)")
    layout = _layout_of(tensor)
    return (tensor.data or 0) + tensor.byte_offset, layout, capsule


class Foreign(NamedTuple):
    """Another library's tensor: its bytes from the first to the last, and where in them its elements are."""

    data: memoryview
    layout: Layout


def capsule_of(thing: Any) -> Any:
    """What ``thing.__dlpack__()`` gives, in the newest kind that it knows."""
    try:
        return thing.__dlpack__(max_version=(1, 0))
    except TypeError:
        return thing.__dlpack__()


def _tensor_in(capsule: Any) -> Any:
    if _is_valid(capsule, _NAME_VERSIONED):
        versioned = ctypes.cast(_pointer(capsule, _NAME_VERSIONED), ctypes.POINTER(_ManagedVersioned)).contents
        if versioned.version.major != 1:
            raise UnsupportedTensor(f"a DLPack tensor of version {versioned.version.major}; 1 is known here")
        tensor = versioned.tensor
    elif _is_valid(capsule, _NAME):
        tensor = ctypes.cast(_pointer(capsule, _NAME), ctypes.POINTER(_Managed)).contents.tensor
    else:
        raise UnsupportedTensor("the object's __dlpack__ gave no DLPack capsule, or a used one")
    return tensor


def _layout_of(tensor: Any) -> Layout:
    kind: Optional[DType] = BY_DLPACK.get((tensor.dtype.code, tensor.dtype.bits))
    if kind is None or tensor.dtype.lanes != 1:
        raise UnsupportedTensor(f"a channel has no dtype for DLPack's code {tensor.dtype.code} with "
                                f"{tensor.dtype.bits} bits and {tensor.dtype.lanes} lanes")
    ndim = tensor.ndim
    if not 0 <= ndim <= MAX_NDIM:
        raise UnsupportedTensor(f"a tensor of {ndim} dimensions; the limit is {MAX_NDIM}")
    shape = tuple(tensor.shape[i] for i in range(ndim))
    strides = tuple(tensor.strides[i] for i in range(ndim)) if tensor.strides else c_strides(shape)
    return Layout(kind, NATIVE_BIG_ENDIAN and kind.part > 1, shape, strides, 0)


def look_into(capsule: Any) -> Foreign:
    """The tensor in a capsule. It is not taken: the capsule lives as long as the view of its data, and then
    gives the tensor back itself.

    :raises UnsupportedTensor: memory of a device, or a type that a channel does not carry.
    """
    tensor = _tensor_in(capsule)
    if tensor.device.type not in _HOST_DEVICES:
        raise UnsupportedTensor(f"the tensor is in the memory of device {tensor.device.type}:{tensor.device.id} "
                                "(DLPack's numbers); copy it to the CPU first")
    layout = _layout_of(tensor)
    low, high = layout.extent()
    start = (tensor.data or 0) + tensor.byte_offset + low
    return Foreign(owned_elsewhere(start, high - low, capsule), layout._replace(offset=-low))
