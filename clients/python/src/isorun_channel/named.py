"""Named tensors: safetensors files in the channel's directory (docs/channel-protocol.md, section 5)."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import time
from types import TracebackType
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Type

from .dlpack import Foreign
from .dtypes import BY_SAFETENSORS, DType, DTypeLike, dtype as to_dtype
from .errors import FileFormatError, InvalidArgument, LayoutError, NotFound, UnsupportedTensor, from_os
from .foreign import copy_into
from .layout import Layout, c_strides, dense
from .memory import TMPFS_MAGIC, Memory, allocate, filesystem
from .paths import Directory, check_name
from .tensor import Tensor, place

#: Bytes of a header that are accepted.
MAX_HEADER = 16 << 20
SUFFIX = ".safetensors"
#: The name of the tensor in a file that was written with a single one.
SINGLE = "tensor"
# Data begins at a multiple of this, so that every library can use it in place.
_ALIGN = 64


class Entry(NamedTuple):
    """One tensor of a file."""

    dtype: DType
    shape: Tuple[int, ...]
    start: int
    end: int


def _plan(layouts: Mapping[str, Layout], metadata: Optional[Mapping[str, str]]) -> Tuple[bytes, Dict[str, Tuple[int, int]]]:
    """The beginning of a file up to its data, and for each tensor the first byte and the length of its data."""
    header: Dict[str, Any] = {}
    if metadata:
        for key, value in metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise InvalidArgument("metadata of a named tensor are texts with texts as keys")
        header["__metadata__"] = dict(metadata)
    at = 0
    places: Dict[str, Tuple[int, int]] = {}
    # The larger the elements, the earlier: then all of them are aligned without gaps.
    for name, layout in sorted(layouts.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if not isinstance(name, str) or name == "__metadata__":
            raise InvalidArgument(f"{name!r} cannot be a tensor's name in a safetensors file")
        if layout.dtype.safetensors is None:
            raise UnsupportedTensor(f"tensor {name!r}: a safetensors file has no type for {layout.dtype}")
        header[name] = {"dtype": layout.dtype.safetensors, "shape": list(layout.shape),
                        "data_offsets": [at, at + layout.nbytes]}
        places[name] = (at, layout.nbytes)
        at += layout.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    if len(text) > MAX_HEADER:
        raise InvalidArgument(f"the header of the file has {len(text)} bytes; the limit is {MAX_HEADER}")
    start = len(text).to_bytes(8, "little") + text
    return start, {name: (len(start) + offset, length) for name, (offset, length) in places.items()}


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FileFormatError("a name stands twice in the header")
    return found


def parse(text: bytes, data: int) -> Tuple[Dict[str, Entry], Dict[str, str]]:
    """The tensors and the metadata of a header, for a file with ``data`` bytes after it.

    :raises FileFormatError: it breaks a rule of the format.
    """
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except FileFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"the header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise FileFormatError("the header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileFormatError("__metadata__ is no map of texts")
    entries: Dict[str, Entry] = {}
    for name, value in header.items():
        entries[name] = _entry(name, value)
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != at:
            raise FileFormatError(f"tensor {name!r} begins at byte {entry.start} of the data, not at {at}: "
                                  "a gap or an overlap")
        at = entry.end
    if at != data:
        raise FileFormatError(f"the tensors end at byte {at} of the data, which has {data}")
    return entries, metadata


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    kind = BY_SAFETENSORS.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if kind is None:
        raise FileFormatError(f"tensor {name!r} has the unknown dtype {value['dtype']!r}")
    for field in ("shape", "data_offsets"):
        if not isinstance(value[field], list) or not all(
                type(number) is int and 0 <= number < 1 << 63 for number in value[field]):
            raise FileFormatError(f"tensor {name!r}: {field} are no whole numbers")
    shape, offsets = tuple(value["shape"]), value["data_offsets"]
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FileFormatError(f"tensor {name!r}: data_offsets are not a beginning and an end")
    try:
        layout = Layout(kind, False, shape, c_strides(shape), 0)
        layout.check(layout.nbytes)
    except LayoutError as error:
        raise FileFormatError(f"tensor {name!r}: {error}") from None
    if offsets[1] - offsets[0] != layout.nbytes:
        raise FileFormatError(f"tensor {name!r} has {offsets[1] - offsets[0]} bytes of data; {kind} {list(shape)} "
                              f"has {layout.nbytes}")
    return Entry(kind, shape, offsets[0], offsets[1])


class NewFile:
    """A named tensor, or several, being made in place: fill :attr:`tensors`, then :meth:`commit`; without it
    nothing appears. In a ``with``, a clean end commits. From :meth:`Channel.new`."""

    def __init__(self, directory: Directory, name: str, layouts: Mapping[str, Layout],
                 metadata: Optional[Mapping[str, str]]) -> None:
        check_name("named tensor", name)
        self._directory, self.name = directory, name
        self._what = f"named tensor {name} in {directory.path}"
        start, self.places = _plan(layouts, metadata)
        self._size = len(start) + sum(length for _, length in self.places.values())
        try:
            fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644, dir_fd=directory.fd)
        except OSError as error:
            raise from_os(f"make {self._what}", error) from None
        self._memory: Optional[Memory] = Memory(fd, self._size, Memory.OPEN)
        try:
            os.ftruncate(fd, self._size)
            os.posix_fallocate(fd, 0, self._size)
        except OSError as error:
            raise from_os(f"make {self._what}, of {self._size} bytes", error) from None
        self._memory.write(start)
        #: The tensors by name, writable until the file is committed.
        self.tensors: Dict[str, Tensor] = {
            name: Tensor(self._memory, layouts[name]._replace(
                strides=c_strides(layouts[name].shape), offset=offset, big_endian=False))
            for name, (offset, _) in self.places.items()}

    def fill(self, name: str, source: Foreign) -> None:
        """Copies a tensor's elements to their place."""
        memory = self._memory
        if memory is None:
            raise InvalidArgument(f"{self._what} was committed or dropped already")
        offset, length = self.places[name]
        if source.layout.big_endian:
            raise UnsupportedTensor(f"tensor {name!r} is big-endian; safetensors files are little-endian")
        if source.layout.contiguous:
            begin = source.layout.offset
            memory.write(source.data[begin:begin + length], offset)
        else:
            copy_into(memory.buffer(offset, length), source)

    def commit(self) -> None:
        """Gives the file its name, in the place of an older one: readers see the one or the other, whole."""
        memory, self._memory = self._memory, None
        if memory is None:
            raise InvalidArgument(f"{self._what} was committed or dropped already")
        # Views that are left can no more change what others see.
        memory.retire()
        final, at = self.name + SUFFIX, self._directory.fd
        source = f"/proc/self/fd/{memory.fd}"
        try:
            try:
                os.link(source, final, dst_dir_fd=at, follow_symlinks=True)
                return
            except FileExistsError:
                pass
            self._remove_stale()
            temporary = f".{self.name}.{secrets.token_hex(8)}.tmp"
            os.link(source, temporary, dst_dir_fd=at, follow_symlinks=True)
            try:
                os.rename(temporary, final, src_dir_fd=at, dst_dir_fd=at)
            except BaseException:
                self._directory.unlink(temporary)
                raise
        except OSError as error:
            raise from_os(f"give {self._what} its name", error) from None

    def _remove_stale(self) -> None:
        prefix = f".{self.name}."
        for entry in os.listdir(self._directory.entry(".")):
            if entry.startswith(prefix) and entry.endswith(".tmp") and "." not in entry[len(prefix):-len(".tmp")]:
                try:
                    changed = os.stat(entry, dir_fd=self._directory.fd, follow_symlinks=False).st_ctime
                except OSError:
                    continue
                if time.time() - changed > 60:
                    self._directory.unlink(entry)

    def drop(self) -> None:
        """Forgets it; nothing appears."""
        self._memory = None
        for tensor in self.tensors.values():
            tensor.close()

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        if kind is not None:
            self.drop()
        elif self._memory is not None:
            self.commit()


def new(directory: Directory, name: str, spec: Mapping[str, Tuple[Any, DTypeLike]],
        metadata: Optional[Mapping[str, str]]) -> NewFile:
    """A file of new tensors, by their shapes and dtypes."""
    layouts = {key: dense(shape, to_dtype(kind), big_endian=False) for key, (shape, kind) in spec.items()}
    return NewFile(directory, name, layouts, metadata)


def put(directory: Directory, name: str, tensors: Any, metadata: Optional[Mapping[str, str]]) -> None:
    """Writes one tensor, or a map of them, to a file."""
    many = tensors if isinstance(tensors, Mapping) else {SINGLE: tensors}
    sources = {key: place(value) for key, value in many.items()}
    file = NewFile(directory, name, {key: source.layout for key, source in sources.items()}, metadata)
    with file:
        for key, source in sources.items():
            file.fill(key, source)


class NamedFile:
    """An open file of named tensors: their types and shapes are known, their data is mapped as a whole."""

    def __init__(self, directory: Directory, name: str, copy: bool) -> None:
        check_name("named tensor", name)
        self._what = f"named tensor {name} in {directory.path}"
        try:
            fd = os.open(name + SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                         dir_fd=directory.fd)
        except FileNotFoundError:
            raise NotFound(f"{self._what}: there is no such file") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise FileFormatError(f"{self._what} is a symbolic link") from None
            raise from_os(f"open {self._what}", error) from None
        memory: Optional[Memory] = None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise FileFormatError(f"{self._what} is no regular file")
            if status.st_size < 10:
                raise FileFormatError(f"{self._what} has {status.st_size} bytes; the shortest has 10")
            if status.st_blocks * 512 < status.st_size and filesystem(fd) == TMPFS_MAGIC:
                raise FileFormatError(f"{self._what} has holes: to read it would cost memory that its writer never had")
            length = int.from_bytes(self._read(fd, 8, 0), "little")
            if length > MAX_HEADER or 8 + length > status.st_size:
                raise FileFormatError(f"{self._what}: a header of {length} bytes in a file of {status.st_size}; "
                                      f"the limit is {MAX_HEADER}")
            try:
                self.entries, self.metadata = parse(self._read(fd, length, 8), status.st_size - 8 - length)
            except FileFormatError as error:
                raise FileFormatError(f"{self._what}: {error}") from None
            self._start = 8 + length
            if copy:
                memory = self._copied(fd, status.st_size)
            else:
                memory = Memory(fd, status.st_size, Memory.FILE)
        finally:
            if memory is None or copy:
                os.close(fd)
        self._memory = memory

    def _read(self, fd: int, length: int, at: int) -> bytes:
        try:
            found = os.pread(fd, length, at)
        except OSError as error:
            raise from_os(f"read {self._what}", error) from None
        if len(found) != length:
            raise FileFormatError(f"{self._what} ended while it was read: somebody truncated it")
        return found

    def _copied(self, fd: int, size: int) -> Memory:
        memory = Memory(allocate(size, fill=False), size, Memory.OPEN)
        at = 0
        while at < size:
            data = self._read(fd, min(size - at, 16 << 20), at)
            memory.write(data, at)
            at += len(data)
        return memory

    def tensor(self, key: str) -> Tensor:
        """One of its tensors.

        :raises NotFound: it has none of that name.
        """
        entry = self.entries.get(key)
        if entry is None:
            raise NotFound(f"{self._what} has no tensor {key!r}; it has {', '.join(map(repr, self.entries)) or 'none'}")
        return Tensor(self._memory, Layout(entry.dtype, False, entry.shape, c_strides(entry.shape),
                                           self._start + entry.start))


def names(directory: Directory) -> List[str]:
    """The names of all files of named tensors."""
    try:
        found = os.listdir(directory.entry("."))
    except OSError as error:
        raise from_os(f"list {directory.path}", error) from None
    return sorted(entry[:-len(SUFFIX)] for entry in found if entry.endswith(SUFFIX) and not entry.startswith("."))
