"""Sealed memory: making it, checking what a peer sent, mapping it.

All calls of the C library, and so all that could crash the process, are in this file and in ``dlpack.py``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import sys
from typing import Any, Callable, Optional

from .errors import Closed, DescriptorRefused, InUse, InvalidArgument, from_os

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_mprotect = _libc.mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_fstatfs = _libc.fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)

_PROT_READ, _PROT_WRITE = 1, 2
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED = 1, 2, 0x10
# Not on the architectures where the number is another one: there it only costs commit charge.
_MAP_NORESERVE = 0x4000 if os.uname().machine in ("x86_64", "aarch64", "riscv64") else 0
_MAP_FAILED = ctypes.c_void_p(-1).value
TMPFS_MAGIC = 0x01021994
_HUGETLBFS_MAGIC = 0x958458F6

_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE, SEAL_FUTURE_WRITE = 0x01, 0x02, 0x04, 0x08, 0x10
IMMUTABLE = SEAL_SHRINK | SEAL_GROW | SEAL_WRITE | SEAL_SEAL
SHARED = SEAL_SHRINK | SEAL_GROW | SEAL_FUTURE_WRITE | SEAL_SEAL
_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_NOEXEC_SEAL = 1, 2, 8


def _errno_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


# f_type is the first word (on s390x its first half); the rest, 112 bytes on 64-bit systems, is room.
_Statfs = ctypes.c_ulong * 32
_TYPE_SHIFT = 32 if os.uname().machine == "s390x" else 0


def filesystem(fd: int) -> int:
    """The type of the filesystem that a descriptor's file is on: statfs(2)'s f_type."""
    buffer = _Statfs()
    if _fstatfs(fd, buffer) != 0:
        raise from_os("fstatfs of a descriptor", _errno_error())
    return (buffer[0] >> _TYPE_SHIFT) & 0xFFFFFFFF


def _memfd(name: str) -> int:
    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)  # before Linux 6.3


def allocate(size: int, fill: bool = True) -> int:
    """A new memfd of ``size`` bytes, all of them allocated, so that no later access can fail.

    :param fill: allocate them now; without it the caller writes all of them, which does it as well.

    :raises NoSpace: the machine or the memory cgroup has no such amount.
    """
    try:
        fd = _memfd("isorun-channel")
    except OSError as error:
        raise from_os("memfd_create", error) from None
    try:
        os.ftruncate(fd, size)
        if fill:
            os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.close(fd)
        raise from_os(f"allocate {size} bytes of memory", error) from None
    return fd


def check(fd: int, size: int, shared: bool) -> str:
    """That a descriptor from a peer is what its message says (docs/channel-protocol.md, section 3); the state
    (of :class:`Memory`) that its memory is in.

    :raises DescriptorRefused: it is not; the text says what was wrong.
    """
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise DescriptorRefused("the descriptor is no memory: not a regular file")
        if status.st_size != size:
            raise DescriptorRefused(f"the memory has {status.st_size} bytes, the message says {size}")
        kind = filesystem(fd)
        if kind == _HUGETLBFS_MAGIC:
            raise DescriptorRefused("the memory has huge pages of hugetlbfs, whose faults can kill the reader")
        if kind != TMPFS_MAGIC:
            raise DescriptorRefused(f"the descriptor is no memfd: a file on a filesystem of type {kind:#x}")
        try:
            seals = fcntl.fcntl(fd, _F_GET_SEALS)
        except OSError:
            raise DescriptorRefused("the descriptor is no memfd: it has no seals") from None
    except OSError as error:
        raise DescriptorRefused(f"the descriptor cannot be looked at: {error.strerror}") from None
    needed = SEAL_SHRINK | SEAL_GROW | SEAL_SEAL
    if seals & needed != needed:
        raise DescriptorRefused(f"the memory is not sealed against resizing (seals {seals:#x})")
    if not shared and not seals & SEAL_WRITE:
        raise DescriptorRefused(f"the memory of an immutable tensor is not sealed against writing (seals {seals:#x})")
    if not seals & (SEAL_WRITE | SEAL_FUTURE_WRITE):
        raise DescriptorRefused(f"the memory is not sealed against writing by others (seals {seals:#x})")
    if status.st_blocks * 512 < status.st_size:
        raise DescriptorRefused("the memory has holes: to read it would allocate memory of the reader's")
    # What was promised as shared may be sealed for good already.
    return Memory.IMMUTABLE if seals & SEAL_WRITE else Memory.SHARED


class Memory:
    """A descriptor and, once somebody asks for its address, one mapping of it.

    It lives as long as anything that shows its bytes: tensors, numpy arrays, DLPack capsules. When the last
    one has gone it is unmapped, the descriptor closed, and ``on_close`` called.
    """

    __slots__ = ("fd", "size", "state", "_address", "_shown_writable", "_private", "on_close", "__weakref__")

    #: Made here and not sealed: writable.
    OPEN = "open"
    #: Nobody can change it any more.
    IMMUTABLE = "immutable"
    #: Made here, and only this process can write it.
    OWNED = "shared, owned here"
    #: Its owner can change it at any time.
    SHARED = "shared"
    #: A file of the channel's directory, mapped read-only.
    FILE = "file"

    def __init__(self, fd: int, size: int, state: str, on_close: Optional[Callable[[], None]] = None) -> None:
        self.fd = fd
        self.size = size
        self.state = state
        self.on_close = on_close
        self._address: Optional[int] = None
        self._shown_writable = False
        self._private = False

    @property
    def writable(self) -> bool:
        """Whether this process may write it."""
        return self.state in (self.OPEN, self.OWNED)

    @property
    def mapped(self) -> bool:
        """Whether it has an address already."""
        return self._address is not None

    def address(self) -> int:
        """Where it is in this process; it is mapped at the first call.

        :raises NoSpace: the kernel refuses the mapping (``vm.max_map_count``, address space, rlimits).
        """
        if self._address is None:
            if self.fd < 0:
                raise Closed("the memory of this tensor was closed")
            if self.size == 0:
                return 0
            protection, flags = _PROT_READ, _MAP_SHARED
            if self.writable:
                protection |= _PROT_WRITE
            elif self.state == self.IMMUTABLE:
                # Private, because before Linux 6.7 a write-sealed memfd cannot be mapped shared. As it
                # is not written, it shows the very same pages.
                flags = _MAP_PRIVATE | _MAP_NORESERVE
            self._address = self._map(None, protection, flags)
        return self._address

    def _map(self, at: Optional[int], protection: int, flags: int) -> int:
        found = _mmap(at, self.size, protection, flags, self.fd, 0)
        if found is None or found == _MAP_FAILED:
            raise from_os(f"mmap of {self.size} bytes", _errno_error())
        return int(found)

    def will_write(self) -> None:
        """Notes that views with which one can write are about to be handed out."""
        self._shown_writable = True

    def freeze(self) -> None:
        """Seals it against every change, also by this process. Views that are there stay valid: what is written
        through them from now on goes to a copy of the page that only this process sees.

        :raises InUse: another process, a child made by fork for example, has it mapped writable.
        """
        if self.state == self.IMMUTABLE:
            return
        if self.state != self.OPEN:
            raise InvalidArgument(f"memory that is {self.state} cannot be made immutable")
        if self._address is not None:
            protection = _PROT_READ | (_PROT_WRITE if self._shown_writable else 0)
            # At the same address and at once, so that views never point to nothing.
            self._map(self._address, protection, _MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE)
        try:
            fcntl.fcntl(self.fd, _F_ADD_SEALS, IMMUTABLE)
        except OSError as error:
            if self._address is not None:
                self._map(self._address, _PROT_READ | _PROT_WRITE, _MAP_SHARED | _MAP_FIXED)
            if error.errno == errno.EBUSY:
                raise InUse("seal the memory of a tensor: EBUSY: somebody else, a child made by fork for example, "
                            "has it mapped for writing") from None
            raise from_os("seal the memory of a tensor", error) from None
        self.state = self.IMMUTABLE

    def share(self) -> None:
        """Seals it so that nobody but this process, which has it mapped already, can ever write it."""
        if self.state == self.OWNED:
            return
        if self.state != self.OPEN:
            raise InvalidArgument(f"memory that is {self.state} cannot be shared as writable")
        self.address()
        try:
            fcntl.fcntl(self.fd, _F_ADD_SEALS, SHARED)
        except OSError as error:
            raise from_os("seal the memory of a tensor", error) from None
        self.state = self.OWNED

    def retire(self) -> None:
        """Ends writing to a file that gets its name now: views that are left go on with copies of their own."""
        if self._address is not None and self.state == self.OPEN:
            self._map(self._address, _PROT_READ | (_PROT_WRITE if self._shown_writable else 0),
                      _MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE)
            self._private = self._shown_writable
        self.state = self.FILE

    def copy_on_write(self) -> None:
        """Makes a write by this process harmless, for consumers that cannot be told that memory is read-only:
        it goes to a copy of the page that nobody else sees."""
        if self.writable or self._private or self.size == 0:
            return
        if self.state == self.FILE:
            self._address = self._map(self.address(), _PROT_READ | _PROT_WRITE,
                                      _MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE)
        elif self.state == self.IMMUTABLE:
            if _mprotect(self.address(), self.size, _PROT_READ | _PROT_WRITE) != 0:
                raise from_os("mprotect of a tensor's memory", _errno_error())
        else:
            raise InvalidArgument("shared memory of another process cannot be shown as if it were writable")
        self._private = True

    def write(self, data: Any, offset: int = 0) -> None:
        """Copies a bytes-like object, without mapping the memory. Only while it is open."""
        view = memoryview(data).cast("B")
        try:
            while len(view):
                done = os.pwrite(self.fd, view[:1 << 30], offset)
                view = view[done:]
                offset += done
        except OSError as error:
            raise from_os(f"write {self.size} bytes of memory", error) from None

    def raw(self, start: int, length: int) -> Any:
        """Bytes of it as a ctypes array that keeps it alive, and that Python takes for writable."""
        if self.writable:
            self._shown_writable = True
        base = (ctypes.c_ubyte * length).from_address(self.address() + start)
        base._memory = self  # type: ignore[attr-defined]
        return base

    def buffer(self, start: int, length: int) -> memoryview:
        """Bytes of it as a view that keeps it alive; writable if the memory is."""
        if length == 0:
            return memoryview(bytearray() if self.writable else b"")
        view = memoryview(self.raw(start, length)).cast("B")
        return view if self.writable else view.toreadonly()

    def duplicate(self) -> int:
        """A descriptor of its own for the caller."""
        try:
            return fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError as error:
            raise from_os("duplicate a descriptor", error) from None

    def __del__(self, _unmap: Any = _munmap, _close: Any = os.close, _ending: Any = sys.is_finalizing) -> None:
        # The end of the process unmaps and closes as well, and in it somebody may still hold the address.
        if _ending():
            return
        address, fd = getattr(self, "_address", None), getattr(self, "fd", -1)
        self._address, self.fd = None, -1
        if address is not None:
            _unmap(address, self.size)
        if fd >= 0:
            _close(fd)
        notify, self.on_close = getattr(self, "on_close", None), None
        if notify is not None:
            notify()


def owned_elsewhere(address: int, length: int, owner: Any) -> memoryview:
    """A read-only view of memory that another object owns; it keeps that object alive."""
    if length == 0:
        return memoryview(b"")
    base = (ctypes.c_ubyte * length).from_address(address)
    base._owner = owner  # type: ignore[attr-defined]
    return memoryview(base).cast("B").toreadonly()


