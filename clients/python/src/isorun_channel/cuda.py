"""Tensors in the memory of GPUs: docs/channel-protocol.md, section 9. libcuda by ctypes, loaded when first needed.

Nothing here has been run on a GPU: it is driven with a stand-in for libcuda (docs/cuda.md).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
import warnings
import weakref
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from . import dlpack, wire
from .dtypes import NATIVE_BIG_ENDIAN, dtype, from_typestr
from .errors import ChannelError, Closed, InvalidArgument, ProtocolError, Timeout, UnsupportedTensor
from .layout import Layout, c_strides
from .memory import Memory, allocate

#: Seconds that a GPU may take for what is handed over, or for what still reads it.
PATIENCE = 30.0
_NOT_READY = 600
_POSIX_FD, _FABRIC = 1, 8
_BUFFER_ID, _ORDINAL, _LEGACY_CAPABLE, _HANDLE_TYPES, _POOL = 7, 9, 10, 14, 17
_PINNED = 16 << 20
_Bytes64 = c_ubyte * 64


class CudaError(ChannelError):
    """Something about a GPU: what was tried, and the driver's name and number of what it said."""


class GpuCopyWarning(UserWarning):
    """A tensor on a GPU was copied through the host's memory, and why."""


class _Handle(ctypes.Structure):
    _fields_ = [("bytes", _Bytes64)]


class _Access(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int), ("flags", c_int)]


_VMM = ("cuMemAddressReserve", "cuMemAddressFree", "cuMemMap", "cuMemUnmap", "cuMemSetAccess", "cuMemRelease",
        "cuMemRetainAllocationHandle", "cuMemExportToShareableHandle", "cuMemImportFromShareableHandle")
_SYMBOLS = {
    wire.VMM_FD: _VMM,
    wire.LEGACY: ("cuIpcGetMemHandle", "cuIpcOpenMemHandle_v2", "cuIpcCloseMemHandle"),
    wire.POOL: ("cuMemPoolSetAccess", "cuMemFreeAsync", "cuMemPoolDestroy", "cuMemPoolExportToShareableHandle",
                "cuMemPoolImportFromShareableHandle", "cuMemPoolExportPointer", "cuMemPoolImportPointer"),
    wire.FABRIC: _VMM,
}
_EVENTS = ("cuIpcGetEventHandle", "cuIpcOpenEventHandle", "cuStreamWaitEvent")
#: cuDeviceGetAttribute's numbers for what a transport needs, and the bit in what it says.
_ATTRIBUTES = {wire.VMM_FD: (103, 1), wire.POOL: (119, 1), wire.FABRIC: (128, 1)}


class _Driver:
    """libcuda. A call that the driver has not is an error that names it."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise CudaError(f"there is no libcuda.so.1 here ({error}): no NVIDIA driver, or its library was not mounted "
                            "into the container (CDI or the NVIDIA runtime does that)") from None
        self("cuInit", c_uint(0))
        version = c_int()
        self("cuDriverGetVersion", byref(version))
        self.version = version.value

    def has(self, *names: str) -> Optional[str]:
        """The first of the calls that it has not."""
        return next((name for name in names if not hasattr(self._library, name)), None)

    def code(self, name: str, *arguments: Any) -> int:
        """The number that a call says."""
        function = getattr(self._library, name, None)
        if function is None:
            raise CudaError(f"the driver lacks {name}: it is too old")
        return int(function(*arguments))

    def __call__(self, name: str, *arguments: Any) -> None:
        code = self.code(name, *arguments)
        if code:
            text = c_char_p()
            known = not self.has("cuGetErrorName") and self.code("cuGetErrorName", c_int(code), byref(text)) == 0
            said = text.value.decode() if known and text.value else "an error without a name"
            raise CudaError(f"{name}: {said} ({code})")


_driver: Optional[_Driver] = None
_lock = threading.RLock()


def driver() -> _Driver:
    """The driver.

    :raises CudaError: there is none, or it lacks something.
    """
    global _driver
    with _lock:
        if _driver is None:
            _driver = _Driver()
        return _driver


class Gpu:
    """A GPU that this process sees, with its primary context."""

    _open: Dict[int, Gpu] = {}

    def __init__(self, ordinal: int) -> None:
        cuda = driver()
        device, context = c_int(), c_void_p()
        cuda("cuDeviceGet", byref(device), c_int(ordinal))
        whole, own = (c_ubyte * 16)(), (c_ubyte * 16)()
        old = cuda.has("cuDeviceGetUuid") or cuda.code("cuDeviceGetUuid", byref(whole), device)
        if cuda.has("cuDeviceGetUuid_v2"):
            own, old = whole, 1
        else:
            cuda("cuDeviceGetUuid_v2", byref(own), device)
        cuda("cuDevicePrimaryCtxRetain", byref(context), device)
        name = ctypes.create_string_buffer(128)
        cuda("cuDeviceGetName", name, c_int(127), device)
        #: Its number in this process: not one that others share.
        self.ordinal = ordinal
        self.name = name.value.decode(errors="replace")
        self.uuid = bytes(own)
        #: Whether it is an instance of MIG.
        self.mig = (not old and bytes(whole) != bytes(own)) or " MIG " in self.name
        self._device, self._context = device, context

    @classmethod
    def all(cls) -> List[Gpu]:
        """All that this process sees.

        :raises CudaError: there is no driver.
        """
        count = c_int()
        driver()("cuDeviceGetCount", byref(count))
        with _lock:
            for ordinal in range(count.value):
                if ordinal not in cls._open:
                    cls._open[ordinal] = cls(ordinal)
            return [cls._open[ordinal] for ordinal in range(count.value)]

    def can(self, transport: int) -> Optional[str]:
        """Why a transport cannot be used; ``None`` if it can."""
        cuda = driver()
        missing = cuda.has(*_SYMBOLS[transport])
        if missing:
            return f"the driver lacks {missing}: it is too old"
        if transport == wire.LEGACY:
            return "legacy handles do not work on MIG instances" if self.mig else None
        number, bit = _ATTRIBUTES[transport]
        value = c_int()
        if cuda.code("cuDeviceGetAttribute", byref(value), c_int(number), self._device) or not value.value & bit:
            return f"the GPU or its driver has no {wire.TRANSPORTS[transport]} memory"
        return None

    def text(self) -> str:
        """Its UUID as nvidia-smi writes it."""
        return uuid_text(self.uuid, self.mig)

    def __enter__(self) -> Gpu:
        # Its context on this thread; the one before comes back at the end.
        before = c_void_p()
        driver()("cuCtxGetCurrent", byref(before))
        driver()("cuCtxSetCurrent", self._context)
        stack = _before.__dict__.setdefault("stack", [])
        stack.append(before)
        return self

    def __exit__(self, *_: Any) -> None:
        driver().code("cuCtxSetCurrent", _before.stack.pop())

    def __repr__(self) -> str:
        return f"<isorun_channel.cuda.Gpu {self.ordinal} {self.name} {self.text()}>"


_before = threading.local()


def uuid_text(uuid: bytes, mig: bool = False) -> str:
    """A UUID as nvidia-smi writes it."""
    text = uuid.hex()
    return f"{'MIG' if mig else 'GPU'}-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class _Event:
    """An event of ours. For other processes, if ``shared``."""

    def __init__(self, gpu: Gpu, stream: int, shared: bool) -> None:
        self.gpu, self.raw = gpu, c_void_p()
        driver()("cuEventCreate", byref(self.raw), c_uint(6 if shared else 2))
        driver()("cuEventRecord", self.raw, c_void_p(stream))

    @classmethod
    def opened(cls, gpu: Gpu, handle: bytes) -> _Event:
        event = cls.__new__(cls)
        event.gpu, event.raw = gpu, c_void_p()
        driver()("cuIpcOpenEventHandle", byref(event.raw), _handle(handle))
        return event

    def handle(self) -> bytes:
        handle = _Handle()
        driver()("cuIpcGetEventHandle", byref(handle), self.raw)
        return bytes(handle.bytes)

    def happened(self) -> bool:
        code = driver().code("cuEventQuery", self.raw)
        if code not in (0, _NOT_READY):
            raise CudaError(f"cuEventQuery: {code}")
        return code == 0

    def wait(self, what: str, patience: float = PATIENCE) -> None:
        deadline, pause = time.monotonic() + patience, 5e-6
        while not self.happened():
            if time.monotonic() > deadline:
                raise Timeout(f"{what}: not within {patience} s")
            time.sleep(pause)
            pause = min(pause * 2, 1e-3)

    def __del__(self) -> None:
        if getattr(self, "raw", None):
            try:
                with self.gpu:
                    driver().code("cuEventDestroy_v2", self.raw)
            except ChannelError:
                pass


def _handle(raw: bytes) -> _Handle:
    handle = _Handle()
    handle.bytes[:] = raw
    return handle


def introduction(gpus: List[Gpu], probe: bool, wanted: bool) -> Tuple[bytes, Optional[_Event]]:
    """DEVICES' body, and an event to be kept until the other side has tried it; or no events, if they are not wanted."""
    transports = 0
    for transport in _SYMBOLS:
        if any(gpu.can(transport) is None for gpu in gpus):
            transports |= 1 << transport
    events, event, raw = False, None, bytes(64)
    if wanted and not driver().has(*_EVENTS):
        try:
            with gpus[0]:
                event = _Event(gpus[0], 0, True)
                raw, events = event.handle(), True
        except CudaError:
            pass
    return wire.devices(wire.Devices(os.getpid(), transports, driver().version, events, raw if probe else bytes(64),
                                     tuple((gpu.uuid, gpu.mig) for gpu in gpus))), event


class PeerGpus:
    """What a client has said about its GPUs."""

    def __init__(self, gpus: List[Gpu], devices: wire.Devices, events: bool) -> None:
        self.devices = devices
        #: Its events are found here, so ours are there: not where /dev/shm is another one.
        self.events = False
        if events and devices.events and not driver().has(*_EVENTS):
            try:
                with gpus[0]:
                    _Event.opened(gpus[0], devices.probe).happened()
                self.events = True
            except CudaError:
                pass


# -- handing over

class Foreign(NamedTuple):
    """A tensor on a GPU, whoever has made it: its first element, and the stream that writes it."""

    pointer: int
    layout: Layout
    keep: Any
    stream: int


def look_at(thing: Any) -> Optional[Foreign]:
    """Where a tensor on a GPU is: torch, ``__cuda_array_interface__`` or DLPack. ``None``: it is on none."""
    if isinstance(thing, GpuTensor):
        raise UnsupportedTensor("a tensor that came from another process cannot be handed on: copy it first")
    if type(thing).__module__.partition(".")[0] == "torch":
        if thing.device.type != "cuda":
            return None
        import torch

        plain, kind = thing.detach(), dtype(thing.dtype)
        if plain.is_conj() or plain.is_neg() or plain.layout != torch.strided:
            raise UnsupportedTensor("only dense torch tensors can be in a channel")
        layout = Layout(kind, NATIVE_BIG_ENDIAN and kind.part > 1, tuple(plain.shape), tuple(plain.stride()), 0)
        return Foreign(plain.data_ptr(), layout, plain, torch.cuda.current_stream(thing.device).cuda_stream)
    interface = getattr(thing, "__cuda_array_interface__", None)
    if isinstance(interface, dict):
        kind, big = from_typestr(interface["typestr"])
        shape = tuple(interface["shape"])
        steps = interface.get("strides")
        if steps is not None and any(step % kind.itemsize for step in steps):
            raise UnsupportedTensor(f"strides {tuple(steps)} are no multiples of {kind.itemsize} bytes")
        strides = c_strides(shape) if steps is None else tuple(step // kind.itemsize for step in steps)
        stream = interface.get("stream")
        return Foreign(interface["data"][0], Layout(kind, big, shape, strides, 0), thing,
                       0 if stream in (None, 1) else int(stream))
    device = getattr(thing, "__dlpack_device__", None)
    if device is not None and tuple(device())[0] == dlpack.CUDA:
        pointer, layout, capsule = dlpack.on_gpu(dlpack.capsule_of(thing))
        return Foreign(pointer, layout, (thing, capsule), 0)
    return None


_numbers = itertools.count(1)


class _Export:
    """An allocation that other processes can open; or why there is none."""

    def __init__(self, gpu: Gpu, low: int, high: int) -> None:
        cuda = driver()
        base, size = c_uint64(), c_size_t()
        cuda("cuMemGetAddressRange_v2", byref(base), byref(size), c_uint64(low))
        self.gpu, self.base, self.size = gpu, base.value, size.value
        self.number = next(_numbers)
        self.transport, self.handle, self.fd = 0, bytes(64), -1
        self.why: Optional[str] = None
        if high > self.base + self.size:
            self.why = ("the tensor reaches over the end of its allocation: it lies in several, as torch's "
                        "expandable segments are")
            return
        try:
            self._choose(cuda)
            if self.transport:
                self.why = gpu.can(self.transport)
        except CudaError as error:
            self.why = str(error)

    def _attribute(self, attribute: int) -> int:
        value = c_uint64()
        code = driver().code("cuPointerGetAttribute", byref(value), c_int(attribute), c_uint64(self.base))
        return 0 if code else value.value

    def _choose(self, cuda: _Driver) -> None:
        types, pool, fd = self._attribute(_HANDLE_TYPES), self._attribute(_POOL), c_int(-1)
        if pool and types & _POSIX_FD:
            self.transport, data = wire.POOL, _Handle()
            cuda("cuMemPoolExportToShareableHandle", byref(fd), c_void_p(pool), c_int(_POSIX_FD), c_ulonglong(0))
            self.fd = fd.value
            cuda("cuMemPoolExportPointer", byref(data), c_uint64(self.base))
            self.handle = bytes(data.bytes)
        elif types & (_POSIX_FD | _FABRIC):
            handle, data = c_uint64(), _Handle()
            cuda("cuMemRetainAllocationHandle", byref(handle), c_void_p(self.base))
            try:
                if types & _POSIX_FD:
                    self.transport = wire.VMM_FD
                    cuda("cuMemExportToShareableHandle", byref(fd), handle, c_int(_POSIX_FD), c_ulonglong(0))
                    self.fd = fd.value
                else:
                    self.transport = wire.FABRIC
                    cuda("cuMemExportToShareableHandle", byref(data), handle, c_int(_FABRIC), c_ulonglong(0))
                    self.handle = bytes(data.bytes)
            finally:
                cuda.code("cuMemRelease", handle)
        elif self._attribute(_LEGACY_CAPABLE) & 0xFF:
            self.transport, data = wire.LEGACY, _Handle()
            cuda("cuIpcGetMemHandle", byref(data), c_uint64(self.base))
            self.handle = bytes(data.bytes)
        else:
            self.why = ("its allocator did not ask for memory that can be shared: torch's expandable segments of some "
                        "versions, and the default pool of cudaMallocAsync, do not")

    def unsuited(self, devices: wire.Devices) -> Optional[str]:
        """Why a client cannot open it."""
        if self.why is not None:
            return self.why
        if not devices.transports & 1 << self.transport:
            return f"the other side cannot open {wire.TRANSPORTS[self.transport]} memory"
        if (self.gpu.uuid, self.gpu.mig) not in devices.gpus:
            theirs = ", ".join(uuid_text(*gpu) for gpu in devices.gpus) or "no GPU"
            return f"the tensor is on {self.gpu.text()}, the other side uses {theirs}"
        if self.transport == wire.LEGACY and devices.pid == os.getpid():
            return (f"both processes have the pid {devices.pid}, and the driver takes a legacy handle of the same pid "
                    "for the process's own: containers of a CUDA channel get pids that differ (io.isorun.cuda-ipc)")
        return None

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)


class Lent:
    """A tensor on its way to others. It and its allocation are held until everyone has released it."""

    def __init__(self, foreign: Foreign, events: bool = True) -> None:
        self.foreign = foreign
        low, high = foreign.layout.extent()
        self._low, self._high = foreign.pointer + low, foreign.pointer + max(high, low + 1)
        ordinal = c_int()
        driver()("cuPointerGetAttribute", byref(ordinal), c_int(_ORDINAL), c_uint64(self._low))
        self.gpu = Gpu.all()[ordinal.value]
        with self.gpu:
            self.export = _Export(self.gpu, self._low, self._high)
            self._raw: Optional[bytes] = None
            try:
                shared = events and not driver().has(*_EVENTS)
                self._event = _Event(self.gpu, foreign.stream, shared)
                self._raw = self._event.handle() if shared else None
            except CudaError:
                self._event = _Event(self.gpu, foreign.stream, False)
        self._copy: Optional[Tuple[Memory, Layout]] = None

    def block(self, peer: Optional[PeerGpus]) -> Tuple[Optional[bytes], Optional[str]]:
        """The block for a client, or why it gets a copy. Waits for the kernel if the client cannot."""
        why = "the other side takes no memory of GPUs" if peer is None else self.export.unsuited(peer.devices)
        if why is not None or peer is None:
            return None, why
        event = self._raw if peer.events else None
        if event is None:
            with self.gpu:
                self._event.wait("the kernel that writes the tensor")
        export = self.export
        return wire.block(wire.Block(export.transport, event is not None, os.getpid(), self.gpu.uuid, export.number,
                                     export.handle, event or bytes(64))), None

    def needs_copy(self, peer: Optional[PeerGpus]) -> bool:
        """Whether a client would get a copy."""
        return peer is None or self.export.unsuited(peer.devices) is not None

    def layout(self) -> Layout:
        """The tensor in its allocation."""
        return self.foreign.layout._replace(offset=self.foreign.pointer - self.export.base)

    def copy(self, most: Optional[int] = None) -> Tuple[Memory, Layout]:
        """The tensor in the host's memory, if it has not more than so many bytes."""
        if self._copy is None:
            layout = self.foreign.layout
            low, high = layout.extent()
            if most is not None and high - low > most:
                raise CudaError(f"a copy of {high - low} bytes through the host's memory is not made: max_copy of the "
                                f"endpoint is {most}")
            with self.gpu:
                self._event.wait("the kernel that writes the tensor")
                memory = copied(self.gpu, self._low, high - low)
            self._copy = memory, layout._replace(offset=-low)
        return self._copy


def host_copy(thing: Any) -> Optional[Tuple[Memory, Layout]]:
    """A copy in the host's memory of a tensor on a GPU, with a warning; ``None``: it is on none."""
    if isinstance(thing, GpuTensor):
        thing.check()
        layout = thing.layout._replace(offset=0)
        low, high = layout.extent()
        with thing.gpu:
            memory = copied(thing.gpu, thing.pointer + low, high - low)
        thing.check()
        made = memory, layout._replace(offset=-low)
    else:
        foreign = look_at(thing)
        if foreign is None:
            return None
        made = Lent(foreign).copy()
    warnings.warn(GpuCopyWarning("a tensor on a GPU is copied to the host's memory, where named tensors, requests and "
                                 "tensors of this package are"), stacklevel=4)
    return made


def copied(gpu: Gpu, pointer: int, size: int) -> Memory:
    """Memory of the host with a copy of memory of a GPU, whose context is current, through pinned memory."""
    memory = Memory(allocate(max(size, 1)), max(size, 1), Memory.OPEN)
    pinned, stream = c_void_p(), c_void_p()
    driver()("cuMemAllocHost_v2", byref(pinned), c_size_t(max(min(size, _PINNED), 1)))
    try:
        driver()("cuStreamCreate", byref(stream), c_uint(1))
        for at in range(0, size, _PINNED):
            part = min(size - at, _PINNED)
            driver()("cuMemcpyDtoHAsync_v2", pinned, c_uint64(pointer + at), c_size_t(part), stream)
            event = _Event(gpu, stream.value or 0, False)
            event.wait("a copy from the GPU", 60)
            ctypes.memmove(memory.address() + at, pinned, part)
    finally:
        if stream:
            driver().code("cuStreamDestroy_v2", stream)
        driver().code("cuMemFreeHost", pinned)
    return memory


# -- taking over

class _Mapping:
    """Memory of another process, opened once however many tensors are in it."""

    _open: weakref.WeakValueDictionary[Any, _Mapping] = weakref.WeakValueDictionary()

    def __init__(self, gpu: Gpu, block: wire.Block, fd: Optional[int], size: int) -> None:
        self.gpu, self.size, self._pool = gpu, size, c_void_p()
        self.transport, self.pointer = 0, c_uint64()
        cuda, access = driver(), _Access(1, gpu._device.value, 3)
        why = gpu.can(block.transport)
        if why is not None:
            raise CudaError(why)
        raw = c_void_p(fd if fd is not None else 0)
        if block.transport in (wire.VMM_FD, wire.FABRIC):
            handle, pointer, data = c_uint64(), c_uint64(), _handle(block.handle)
            if block.transport == wire.VMM_FD:
                cuda("cuMemImportFromShareableHandle", byref(handle), raw, c_int(_POSIX_FD))
            else:
                cuda("cuMemImportFromShareableHandle", byref(handle), byref(data), c_int(_FABRIC))
            mapped = False
            try:
                cuda("cuMemAddressReserve", byref(pointer), c_size_t(size), c_size_t(0), c_uint64(0), c_ulonglong(0))
                cuda("cuMemMap", pointer, c_size_t(size), c_size_t(0), handle, c_ulonglong(0))
                mapped = True
                cuda("cuMemSetAccess", pointer, c_size_t(size), byref(access), c_size_t(1))
            except CudaError:
                if mapped:
                    cuda.code("cuMemUnmap", pointer, c_size_t(size))
                if pointer.value:
                    cuda.code("cuMemAddressFree", pointer, c_size_t(size))
                raise
            finally:
                cuda.code("cuMemRelease", handle)
            self.pointer = pointer
        elif block.transport == wire.LEGACY:
            cuda("cuIpcOpenMemHandle_v2", byref(self.pointer), _handle(block.handle), c_uint(1))
        else:
            data = _handle(block.handle)
            cuda("cuMemPoolImportFromShareableHandle", byref(self._pool), raw, c_int(_POSIX_FD), c_ulonglong(0))
            try:
                cuda("cuMemPoolSetAccess", self._pool, byref(access), c_size_t(1))
                cuda("cuMemPoolImportPointer", byref(self.pointer), self._pool, byref(data))
            except CudaError:
                cuda.code("cuMemPoolDestroy", self._pool)
                raise
        self.transport = block.transport
        if block.transport in (wire.LEGACY, wire.POOL):
            base, there = c_uint64(), c_size_t()
            code = cuda.code("cuMemGetAddressRange_v2", byref(base), byref(there), self.pointer)
            before = self.pointer.value - base.value
            if code or before < 0 or there.value - before < size or (before and block.transport == wire.LEGACY):
                raise CudaError(f"the allocation is said to have {size} bytes, the driver says {there.value}, and "
                                f"{before} of them before it")

    @classmethod
    def open(cls, gpu: Gpu, connection: int, block: wire.Block, fd: Optional[int], size: int) -> _Mapping:
        # Of one connection: what another one has open may be of an owner that has gone. The driver opens a legacy
        # handle twice, and counts.
        what = block.handle if block.transport in (wire.LEGACY, wire.FABRIC) else block.allocation
        key: Any = (gpu.ordinal, block.transport, connection, what)
        with _lock:
            mapping = cls._open.get(key)
            if mapping is None:
                try:
                    mapping = cls(gpu, block, fd, size)
                except CudaError as error:
                    hint = "; both processes have the same pid" if block.pid == os.getpid() else \
                        "; the process that made it may have ended or freed the memory, or the GPU is not here"
                    raise CudaError(f"cannot open {wire.TRANSPORTS[block.transport]} memory of process {block.pid} on "
                                    f"{uuid_text(block.uuid)}: {error}{hint}") from None
                cls._open[key] = mapping
            elif mapping.size != size:
                raise ProtocolError(f"an allocation of {mapping.size} bytes that has {size} now")
            return mapping

    def __del__(self) -> None:
        if not getattr(self, "transport", 0):
            return
        try:
            with self.gpu:
                cuda = driver()
                if self.transport in (wire.VMM_FD, wire.FABRIC):
                    cuda.code("cuMemUnmap", self.pointer, c_size_t(self.size))
                    cuda.code("cuMemAddressFree", self.pointer, c_size_t(self.size))
                elif self.transport == wire.LEGACY:
                    cuda.code("cuIpcCloseMemHandle", self.pointer)
                else:
                    cuda.code("cuMemFreeAsync", self.pointer, c_void_p(0))
                    # It is freed in a stream: only when that is done may its owner hear of it.
                    _Event(self.gpu, 0, False).wait("the free")
                    cuda.code("cuMemPoolDestroy", self._pool)
        except (ChannelError, AttributeError, TypeError):
            pass  # an interpreter that ends


def open_allocations() -> int:
    """How many allocations of other processes are open in this one."""
    return len(_Mapping._open)


class _Held:
    """Holds a mapping for a tensor and all views of it; closes it, and then tells the sender."""

    def __init__(self, mapping: _Mapping, release: Callable[[], None]) -> None:
        self.mapping: Optional[_Mapping] = mapping
        self._release = release

    def __del__(self) -> None:
        mapping = getattr(self, "mapping", None)
        if mapping is None:
            return
        try:
            with mapping.gpu:
                _Event(mapping.gpu, 0, False).wait("what reads the tensor")
        except (ChannelError, AttributeError, TypeError):
            _leaked.append(mapping)  # something may still read it: it stays open, and its owner keeps it
            return
        self.mapping = None
        del mapping
        self._release()


_leaked: List[_Mapping] = []


class GpuTensor:
    """A tensor in the memory of a GPU that came from another process. It has ``__cuda_array_interface__`` and
    ``__dlpack__``; :meth:`torch` is a view. It is closed, and its sender told, when it and its views have gone: that
    waits for the default stream, so synchronise other streams before you let go."""

    def __init__(self, held: _Held, layout: Layout, block: wire.Block, alive: Callable[[], bool]) -> None:
        self._held: Optional[_Held] = held
        self._layout, self._alive = layout, alive
        #: How it came: ``vmm-fd``, ``legacy``, ``pool`` or ``fabric``.
        self.came_by = wire.TRANSPORTS[block.transport]

    @property
    def layout(self) -> Layout:
        """Dtype, byte order, shape, strides and offset, in one."""
        return self._layout

    @property
    def shape(self) -> Tuple[int, ...]:
        """Its dimensions."""
        return self._layout.shape

    @property
    def gpu(self) -> Gpu:
        """The GPU that it is on."""
        return self._mapping().gpu

    def _mapping(self) -> _Mapping:
        if self._held is None or self._held.mapping is None:
            raise Closed("the tensor was closed")
        return self._held.mapping

    @property
    def pointer(self) -> int:
        """The address on the GPU of its first element."""
        return self._mapping().pointer.value + self._layout.offset

    def check(self) -> None:
        """:raises Closed: it came by a legacy handle or from a pool, and its owner has gone."""
        if self.came_by in ("legacy", "pool") and not self._alive():
            raise Closed(f"the owner of the {self.came_by} memory has gone, so it may be anything now")

    @property
    def __cuda_array_interface__(self) -> Dict[str, Any]:
        typestr = self._layout.dtype.typestr(self._layout.big_endian)
        if typestr is None:
            raise AttributeError(f"__cuda_array_interface__ has no {self._layout.dtype}; __dlpack__ may")
        self.check()
        item = self._layout.dtype.itemsize
        return {"version": 3, "typestr": typestr, "shape": self.shape, "data": (self.pointer, False), "stream": None,
                "strides": tuple(stride * item for stride in self._layout.strides)}

    def __dlpack_device__(self) -> Tuple[int, int]:
        return (dlpack.CUDA, self.gpu.ordinal)

    def __dlpack__(self, *, stream: Any = None, max_version: Optional[Tuple[int, int]] = None, **_: Any) -> Any:
        self.check()
        return dlpack.export_gpu(self._held, self.pointer, self._layout, self.gpu.ordinal,
                                 max_version is not None and max_version[0] >= 1)

    def torch(self) -> Any:
        """A torch tensor of the same memory."""
        import torch

        return torch.from_dlpack(self)

    def tobytes(self) -> bytes:
        """A copy of its elements' bytes; only for tensors in C order."""
        if not self._layout.contiguous:
            raise UnsupportedTensor("the tensor has gaps between its elements; use torch()")
        self.check()
        with self.gpu:
            memory = copied(self.gpu, self.pointer, self._layout.nbytes)
        self.check()
        return bytes(memory.buffer(0, self._layout.nbytes))

    def close(self) -> None:
        """Lets go of it."""
        self._held = None

    def __repr__(self) -> str:
        return f"<isorun_channel.GpuTensor {self._layout.dtype.name} {list(self.shape)} by {self.came_by}>"


def take(gpus: List[Gpu], connection: int, body: wire.TensorBody, block: wire.Block, fd: Optional[int],
         release: Callable[[], None], alive: Callable[[], bool]) -> GpuTensor:
    """The tensor of a GPU message. What writes it has finished when this returns.

    :raises CudaError: it cannot be opened.
    """
    assert body.layout is not None
    gpu = next((gpu for gpu in gpus if gpu.uuid == block.uuid), None)
    if gpu is None:
        raise CudaError(f"the tensor is on {uuid_text(block.uuid)}, and this process uses {gpus}")
    with gpu:
        event = None
        if block.has_event:
            try:
                event = _Event.opened(gpu, block.event)
            except CudaError as error:
                raise CudaError(f"cannot open the event of process {block.pid}: {error}; events need a /dev/shm that "
                                "both have (io.isorun.shm)") from None
        mapping = _Mapping.open(gpu, connection, block, fd, body.size)
        if event is not None:
            try:
                event.wait("the producer's kernel to finish")
            except BaseException:
                del mapping  # closed before the release goes out, though the error holds this frame
                raise
    return GpuTensor(_Held(mapping, release), body.layout, block, alive)
