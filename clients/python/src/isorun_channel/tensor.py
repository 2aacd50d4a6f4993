"""The tensor: shape, type and place of elements in a piece of shared memory."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Optional, Tuple, Type

from . import dlpack
from .dlpack import Foreign
from .dtypes import NATIVE_BIG_ENDIAN, DType, DTypeLike, buffer_format, dtype as to_dtype
from .errors import Closed, InvalidArgument, UnsupportedTensor
from .foreign import copy_into, look_at, may_be_on_gpu
from .layout import Layout, dense
from .memory import Memory, allocate


class _Shown:
    """What numpy holds on to: it keeps the memory alive, also when the tensor was closed."""

    def __init__(self, memory: Memory, interface: Any) -> None:
        self.memory = memory
        self.__array_interface__ = interface


class Tensor:
    """A tensor in memory that can be handed to other processes without copying it.

    One comes from :meth:`Channel.empty` or :meth:`Channel.tensor`, from a message, or from a named file. To
    compute with it, take a view: :meth:`numpy`, :meth:`torch`, :meth:`jax`, or anything that understands
    ``__dlpack__``, ``__array__`` or (Python 3.12) buffers. Views copy nothing and stay valid for as long as they
    live, also after the tensor was closed.

    >>> import isorun_channel as ic
    >>> t = ic.empty((2, 3), "float32")
    >>> t.shape, t.dtype.name, t.nbytes
    ((2, 3), 'f32', 24)
    """

    __slots__ = ("_memory", "_layout", "__weakref__")

    def __init__(self, memory: Memory, layout: Layout) -> None:
        self._memory: Optional[Memory] = memory
        self._layout = layout

    @property
    def memory(self) -> Memory:
        """The memory that it lies in.

        :raises Closed: the tensor was closed.
        """
        if self._memory is None:
            raise Closed("the tensor was closed")
        return self._memory

    @property
    def layout(self) -> Layout:
        """Dtype, byte order, shape, strides and offset, in one."""
        return self._layout

    @property
    def dtype(self) -> DType:
        """The type of its elements."""
        return self._layout.dtype

    @property
    def big_endian(self) -> bool:
        """Whether its elements are big-endian."""
        return self._layout.big_endian

    @property
    def shape(self) -> Tuple[int, ...]:
        """Its dimensions."""
        return self._layout.shape

    @property
    def strides(self) -> Tuple[int, ...]:
        """Steps to the next element of each dimension, in elements (numpy counts them in bytes)."""
        return self._layout.strides

    @property
    def ndim(self) -> int:
        """The number of its dimensions."""
        return len(self._layout.shape)

    @property
    def size(self) -> int:
        """The number of its elements."""
        return self._layout.size

    @property
    def nbytes(self) -> int:
        """The number of its elements times the size of one."""
        return self._layout.nbytes

    @property
    def writable(self) -> bool:
        """Whether this process may write it, and what it writes is what others see."""
        return self.memory.writable

    @property
    def immutable(self) -> bool:
        """Whether nobody at all can change it any more."""
        return self.memory.state == Memory.IMMUTABLE

    @property
    def shared(self) -> bool:
        """Whether its owner may go on to change it while others read it."""
        return self.memory.state in (Memory.SHARED, Memory.OWNED)

    @property
    def address(self) -> int:
        """Where its first element is in this process; it is mapped if it was not."""
        return self.memory.address() + self._layout.offset

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._memory is None

    def fileno(self) -> int:
        """The descriptor of its memory. It is the tensor's: do not close it.

        :raises Closed: the tensor was closed.
        """
        return self.memory.fd

    def close(self) -> None:
        """Lets go of the memory. It is unmapped when the last view has gone; then, if it came with a message, the
        sender is told that it may use it again."""
        self._memory = None

    def __enter__(self) -> Tensor:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._memory is None else self._memory.state
        return f"<isorun_channel.Tensor {self.dtype.name} {list(self.shape)} {state}>"

    # -- before it is handed over

    def freeze(self) -> Tensor:
        """Makes it immutable, for ever and for everyone. Publishing does this by itself. What is written through
        views that are still there goes to a private copy, and nobody sees it.

        :raises InUse: somebody else has it mapped for writing, for example a child made by fork.
        """
        self.memory.freeze()
        return self

    def share(self) -> Tensor:
        """Seals it so that this process alone can write it, while others read along. They may see half of a
        change: agree on when to look, for example by releasing messages."""
        self.memory.share()
        return self

    # -- views, without a copy

    def numpy(self) -> Any:
        """A numpy array of the same memory; read-only unless :attr:`writable`. Types that numpy does not have
        (bf16, float8) need the package ml_dtypes.

        :raises UnsupportedTensor: numpy has no such type.
        """
        import numpy

        typestr = self.dtype.typestr(self.big_endian)
        extended: Any = None
        if typestr is None:
            try:
                import ml_dtypes

                extended = numpy.dtype(getattr(ml_dtypes, self.dtype.torch))
            except (ImportError, AttributeError):
                raise UnsupportedTensor(f"numpy has no {self.dtype}, nor is there an ml_dtypes that has; torch() and "
                                        "__dlpack__ have it") from None
            if self.dtype.part > 1 and self.big_endian != NATIVE_BIG_ENDIAN:
                raise UnsupportedTensor(f"ml_dtypes has no {self.dtype} of the other byte order")
            typestr = f"|V{self.dtype.itemsize}"
        memory = self.memory
        if not self.size:
            array = numpy.empty(self.shape, typestr)
        else:
            if memory.writable:
                memory.will_write()
            item = self.dtype.itemsize
            array = numpy.asarray(_Shown(memory, {
                "version": 3,
                "typestr": typestr,
                "shape": self.shape,
                "strides": tuple(stride * item for stride in self.strides),
                "data": (self.address, not memory.writable),
            }))
        return array if extended is None else array.view(extended)

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> Any:
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"a {self.dtype} tensor is no {dtype} array without a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def torch(self) -> Any:
        """A torch tensor of the same memory. torch does not know read-only memory: a write to an immutable tensor
        goes to a copy of the page that only this process sees; **a write to another process's shared tensor
        ends the process** (SIGSEGV).

        :raises UnsupportedTensor: this torch has no such type.
        """
        import torch

        kind = getattr(torch, self.dtype.torch, None)
        if kind is None:
            raise UnsupportedTensor(f"this torch has no {self.dtype}")
        if self.dtype.part > 1 and self.big_endian != NATIVE_BIG_ENDIAN:
            raise UnsupportedTensor("torch has no tensors of the other byte order; numpy() has")
        if any(stride < 0 for stride in self.strides):
            raise UnsupportedTensor("torch has no negative strides; numpy() has")
        if not self.size:
            return torch.empty(self.shape, dtype=kind)
        # Not by DLPack: torch's has not all of its own types.
        low, high = self._layout.extent()
        raw = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
        memory = self.memory
        if not memory.writable and memory.state != Memory.SHARED:
            memory.copy_on_write()
        flat = torch.frombuffer(memory.raw(low, high - low), dtype=raw[self.dtype.itemsize])
        shown = flat.as_strided(self.shape, self.strides, (self._layout.offset - low) // self.dtype.itemsize)
        return shown if shown.dtype == kind else shown.view(kind)

    def jax(self) -> Any:
        """A jax array of the same memory, or a copy where jax needs other alignment or strides."""
        import jax

        return jax.dlpack.from_dlpack(self)

    def buffer(self) -> memoryview:
        """Its elements as a memoryview of its shape; only for tensors in C order.

        :raises UnsupportedTensor: gaps between elements, or a type that Python has no format for.
        """
        raw: Any = self.bytes_view()
        text = buffer_format(self.dtype, self.big_endian)
        if not self.size:
            return memoryview(raw)
        try:
            return memoryview(raw.cast(text, self.shape))
        except ValueError:  # f16 in older versions
            raise UnsupportedTensor(f"this Python's memoryview has no format for {self.dtype}; use numpy()") from None

    def bytes_view(self) -> memoryview:
        """Its bytes as a flat memoryview; only for tensors in C order.

        :raises UnsupportedTensor: gaps between elements.
        """
        if not self._layout.contiguous:
            raise UnsupportedTensor(f"the tensor has gaps between its elements (strides {self.strides}); "
                                    "use numpy() or tobytes()")
        return self.memory.buffer(self._layout.offset, self.nbytes)

    def __buffer__(self, flags: int) -> memoryview:
        return self.buffer()

    def __dlpack_device__(self) -> Tuple[int, int]:
        return (dlpack.CPU, 0)

    def __dlpack__(self, *, stream: Any = None, max_version: Optional[Tuple[int, int]] = None,
                   dl_device: Optional[Tuple[int, int]] = None, copy: Optional[bool] = None) -> Any:
        if stream is not None:
            raise BufferError("a tensor in the host's memory has no streams")
        if dl_device is not None and tuple(dl_device) != (dlpack.CPU, 0):
            raise BufferError("a tensor of a channel is in the host's memory (device (1, 0)) and nowhere else")
        versioned = max_version is not None and max_version[0] >= 1
        if copy:
            mine = copied(Foreign(self._all(), self._in_all()))
            return dlpack.export(mine.memory, mine.layout, versioned, copied=True)
        memory = self.memory
        if not versioned and not memory.writable:
            # The old kind of capsule cannot say "read-only".
            if memory.state == Memory.SHARED:
                raise BufferError("the tensor is another process's shared one, and this consumer cannot be told that "
                                  "it is read-only; take numpy() or torch(), or a copy")
            memory.copy_on_write()
        return dlpack.export(memory, self._layout, versioned, copied=False)

    # -- copies

    def _all(self) -> memoryview:
        low, high = self._layout.extent()
        return self.memory.buffer(low, high - low).toreadonly()

    def _in_all(self) -> Layout:
        return self._layout._replace(offset=self._layout.offset - self._layout.extent()[0])

    def tobytes(self) -> bytes:
        """A copy of its elements' bytes, in C order."""
        data = bytearray(self.nbytes)
        copy_into(memoryview(data), Foreign(self._all(), self._in_all()))
        return bytes(data)

    def tolist(self) -> Any:
        """A copy of its elements as nested lists of Python's numbers.

        :raises UnsupportedTensor: Python has no such type (bf16, float8, complex without numpy).
        """
        if self.dtype.name in ("c64", "c128") or not self._layout.contiguous:
            return self.numpy().tolist()
        if self.dtype.name == "bf16":
            raise UnsupportedTensor("Python has no numbers of type bf16; torch() has")
        view = self.buffer()
        return view.tolist() if self.shape else view[()]


def place(thing: Any) -> Foreign:
    """Where the elements of any tensor are, ours or another library's."""
    if isinstance(thing, Tensor):
        return Foreign(thing._all(), thing._in_all())
    if may_be_on_gpu(thing):
        from . import cuda

        found = cuda.host_copy(thing)
        if found is not None:
            memory, layout = found
            return Foreign(memory.buffer(0, memory.size), layout)
    return look_at(thing)


def empty(shape: Any, dtype: DTypeLike = "f32") -> Tensor:
    """A new tensor of zeros in memory that can be handed over without a copy.

    :param shape: its dimensions, or one number.
    :raises InvalidArgument: a bad shape or dtype.
    :raises NoSpace: there is not so much memory.
    """
    layout = dense(shape, to_dtype(dtype))
    size = max(layout.nbytes, 1)
    return Tensor(Memory(allocate(size), size, Memory.OPEN), layout)


def copied(source: Foreign) -> Tensor:
    """A new tensor with a copy of another one's elements: the only copy on their way to another process."""
    layout = dense(source.layout.shape, source.layout.dtype, big_endian=source.layout.big_endian)
    size = max(layout.nbytes, 1)
    if not source.layout.contiguous:
        memory = Memory(allocate(size), size, Memory.OPEN)
        copy_into(memory.buffer(0, layout.nbytes), source)
        return Tensor(memory, layout)
    # Written, not mapped: the kernel then need not clear the pages first.
    memory = Memory(allocate(size, fill=layout.nbytes == 0), size, Memory.OPEN)
    start = source.layout.offset
    memory.write(source.data[start:start + layout.nbytes])
    return Tensor(memory, layout)


def tensor(thing: Any, dtype: Optional[DTypeLike] = None) -> Tensor:
    """A new tensor with a **copy** of ``thing``: numpy, torch, jax, anything with ``__dlpack__`` or a buffer,
    another :class:`Tensor`, or nested lists of numbers (these need numpy).

    :param dtype: for lists; for anything else it has to be what it is already.
    :raises UnsupportedTensor: it is no tensor, or not in the host's memory.
    """
    if isinstance(thing, (list, tuple, int, float, complex)):
        import numpy

        wanted = to_dtype(dtype) if dtype is not None else None
        if wanted is not None and wanted.numpy is None:
            raise InvalidArgument(f"a list cannot become {wanted}; make a torch tensor of it first")
        return copied(look_at(numpy.asarray(thing, wanted.numpy if wanted else None)))
    source = place(thing)
    if dtype is not None and to_dtype(dtype) != source.layout.dtype:
        raise InvalidArgument(f"the tensor is {source.layout.dtype}, not {to_dtype(dtype)}: convert it first")
    return copied(source)
