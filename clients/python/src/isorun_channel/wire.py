"""Messages as bytes, and bytes as messages: docs/channel-protocol.md, section 2. Nothing here does I/O."""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from typing import NamedTuple, Optional, Sequence, Tuple

from .dtypes import BY_CODE
from .errors import InvalidArgument, LayoutError, ProtocolError
from .layout import MAX_NDIM, Layout

MAGIC = b"ISCH"
VERSION = 1
MAX_MESSAGE = 4096
MAX_NAME, MAX_META, MAX_TEXT = 255, 2048, 1024
MAX_CREDITS = 256
#: In HELLO's queue: the listener decides.
DEFAULT = 0xFFFFFFFF

HELLO, WELCOME, TENSOR, REQUEST, REPLY, RELEASE, ERROR, PING, PONG, DEVICES, GPU = range(1, 12)
KINDS = ("?", "HELLO", "WELCOME", "TENSOR", "REQUEST", "REPLY", "RELEASE", "ERROR", "PING", "PONG", "DEVICES",
         "GPU")
#: Kinds that carry a tensor.
WITH_TENSOR = (TENSOR, REQUEST, REPLY)
#: Kinds with which a descriptor may come.
WITH_DESCRIPTOR = (*WITH_TENSOR, GPU)

#: Bit of HELLO's and WELCOME's features: DEVICES and GPU are understood.
CUDA = 1
HOST_COPY, VMM_FD, LEGACY, POOL, FABRIC = range(5)
TRANSPORTS = ("host-copy", "vmm-fd", "legacy", "pool", "fabric")
MAX_DEVICES = 64

SUBSCRIBER, REQUESTER = 1, 2
OLDEST, NEWEST = 0, 1
#: ERROR's flag: the sender closes the connection now.
CLOSING = 1

E_VERSION, E_MALFORMED, E_DESCRIPTOR, E_BUSY, E_REFUSED, E_NO_REQUEST, E_APPLICATION = range(1, 8)
ERRORS = {E_VERSION: "version", E_MALFORMED: "malformed message", E_DESCRIPTOR: "descriptor refused", E_BUSY: "busy",
          E_REFUSED: "refused", E_NO_REQUEST: "no such request", E_APPLICATION: "the application's error"}

_HEADER = struct.Struct("<4sHHIIQQ")
_HELLO = struct.Struct("<HHIQIIII")
_TENSOR = struct.Struct("<HBBBBBBHHIQQQQ")
# Its beginning, up to the size; after it come lost and tag.
_FIXED = struct.Struct("<HBBBBBBHHIQQ")
_PAIR = struct.Struct("<QQ")
_NDIM_AT = 2
_ERROR = struct.Struct("<HH")
_DEVICES = struct.Struct("<IIIHH64s")
_DEVICE = struct.Struct("<16sII")
_BLOCK = struct.Struct("<BBBBI16sQ64s64s")
HEADER_SIZE = _HEADER.size


class Header(NamedTuple):
    """The fields of the header that a reader needs once it is checked."""

    kind: int
    flags: int
    sequence: int
    refers: int


class Hello(NamedTuple):
    """What a client asks for."""

    lowest: int
    highest: int
    roles: int
    features: int
    credits: int
    queue: int
    policy: int


class Welcome(NamedTuple):
    """What a listener grants."""

    version: int
    roles: int
    features: int
    credits: int
    queue: int
    policy: int


class TensorBody(NamedTuple):
    """The body of TENSOR, REQUEST and REPLY; without a layout there is no tensor in it."""

    layout: Optional[Layout]
    shared: bool
    size: int
    lost: int
    tag: int
    name: str
    meta: bytes


def header(kind: int, body: int, sequence: int, refers: int = 0, flags: int = 0) -> bytes:
    """The header of a message whose body has ``body`` bytes."""
    return _HEADER.pack(MAGIC, VERSION, kind, HEADER_SIZE + body, flags, sequence, refers)


def read_header(packet: bytes) -> Header:
    """The checked header of a packet.

    :raises ProtocolError: magic, version, kind, length or flags are wrong.
    """
    if len(packet) < HEADER_SIZE:
        raise ProtocolError(f"a message of {len(packet)} bytes; a header has {HEADER_SIZE}")
    magic, version, kind, length, flags, sequence, refers = _HEADER.unpack_from(packet)
    if magic != MAGIC:
        raise ProtocolError("a message that does not begin with ISCH: the peer speaks another protocol")
    if version != VERSION:
        raise ProtocolError(f"a message of version {version}; {VERSION} is spoken here")
    if not HELLO <= kind <= GPU:
        raise ProtocolError(f"a message of the unknown kind {kind}")
    if length != len(packet):
        raise ProtocolError(f"a {KINDS[kind]} message that says it has {length} bytes, and has {len(packet)}")
    if kind in (PING, PONG) and length != HEADER_SIZE:
        raise ProtocolError(f"a {KINDS[kind]} message with a body")
    if flags & ~(CLOSING if kind == ERROR else 0):
        raise ProtocolError(f"a {KINDS[kind]} message with unknown flags {flags:#x}")
    if sequence == 0:
        raise ProtocolError(f"a {KINDS[kind]} message with sequence 0")
    answers = kind in (WELCOME, REPLY, PONG)
    if (refers == 0 and answers) or (refers != 0 and not answers and kind not in (ERROR, DEVICES, GPU)):
        raise ProtocolError(f"a {KINDS[kind]} message that refers to {refers}")
    return Header(kind, flags, sequence, refers)


def hello(of: Hello) -> bytes:
    """HELLO's body."""
    return _HELLO.pack(*of, 0)


def read_hello(body: bytes) -> Hello:
    """:raises ProtocolError: HELLO's body breaks a rule."""
    if len(body) != _HELLO.size:
        raise ProtocolError(f"a HELLO of {len(body)} bytes; it has {_HELLO.size}")
    *fields, reserved = _HELLO.unpack(body)
    found = Hello(*fields)
    if not 1 <= found.lowest <= found.highest:
        raise ProtocolError(f"a HELLO for versions {found.lowest} to {found.highest}")
    if found.roles & ~(SUBSCRIBER | REQUESTER) or not found.roles:
        raise ProtocolError(f"a HELLO with roles {found.roles:#x}")
    if found.credits > MAX_CREDITS or (found.queue > MAX_CREDITS and found.queue != DEFAULT):
        raise ProtocolError(f"a HELLO with {found.credits} credits and a queue of {found.queue}; "
                            f"the limit is {MAX_CREDITS}")
    if found.policy not in (OLDEST, NEWEST) or reserved:
        raise ProtocolError("a HELLO with an unknown policy or reserved bits")
    return found


def welcome(of: Welcome) -> bytes:
    """WELCOME's body."""
    return _HELLO.pack(of.version, 0, of.roles, of.features, of.credits, of.queue, of.policy, 0)


def read_welcome(body: bytes, asked: Hello) -> Welcome:
    """:raises ProtocolError: WELCOME's body breaks a rule, or grants what was not asked for."""
    if len(body) != _HELLO.size:
        raise ProtocolError(f"a WELCOME of {len(body)} bytes; it has {_HELLO.size}")
    version, reserved16, *fields, reserved = _HELLO.unpack(body)
    found = Welcome(version, *fields)
    if reserved16 or reserved:
        raise ProtocolError("a WELCOME with reserved bits")
    if not asked.lowest <= version <= asked.highest:
        raise ProtocolError(f"a WELCOME for version {version}, which was not asked for")
    if found.roles & ~asked.roles or not found.roles or found.features & ~asked.features:
        raise ProtocolError("a WELCOME with roles or features that were not asked for")
    if not 1 <= found.credits <= (asked.credits or MAX_CREDITS):
        raise ProtocolError(f"a WELCOME with {found.credits} credits; {asked.credits} were asked for")
    if found.queue > min(asked.queue, MAX_CREDITS) or found.policy != asked.policy:
        raise ProtocolError("a WELCOME with another queue or policy than asked for")
    return found


# The characters are checked in C: this is on the way of every tensor.
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


def check_name(name: str) -> bytes:
    """The bytes of a message's name.

    :raises InvalidArgument: too long, or control characters in it.
    """
    raw = name.encode("utf-8", "strict") if isinstance(name, str) else b"\0"
    if len(raw) > MAX_NAME or _CONTROL.search(raw):
        raise InvalidArgument(f"name {name!r}: at most {MAX_NAME} bytes of UTF-8 without control characters")
    return raw


@lru_cache(maxsize=None)
def _numbers(ndim: int) -> struct.Struct:
    return struct.Struct(f"<{ndim}Q{ndim}q")


def tensor(of: TensorBody) -> bytes:
    """The body of a message that may carry a tensor.

    :raises InvalidArgument: a field over its limit.
    """
    name = check_name(of.name)
    if len(of.meta) > MAX_META:
        raise InvalidArgument(f"{len(of.meta)} bytes of meta; the limit is {MAX_META}")
    if not 0 <= of.tag < 1 << 64:
        raise InvalidArgument(f"tag {of.tag}: a whole number below 2^64")
    layout = of.layout
    if layout is None:
        return _TENSOR.pack(0, 0, 0, 0, 0, len(name), 0, len(of.meta), 0, 0, 0, 0, of.lost, of.tag) + name + of.meta
    ndim = len(layout.shape)
    fixed = _TENSOR.pack(layout.dtype.code, ndim, int(layout.big_endian), int(of.shared), 0, len(name), 0,
                         len(of.meta), 0, 0, layout.offset, of.size, of.lost, of.tag)
    return fixed + _numbers(ndim).pack(*layout.shape, *layout.strides) + name + of.meta


#: Where ``lost`` is in the body, so that one body serves all subscribers.
LOST_AT = 32


def with_lost(body: bytes, lost: int) -> bytes:
    """The body with another count of lost tensors."""
    return body if lost == 0 else body[:LOST_AT] + struct.pack("<Q", lost) + body[LOST_AT + 8:]


def _read_name(kind: int, raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(f"a {KINDS[kind]} message whose name is no UTF-8") from None
    if _CONTROL.search(raw):
        raise ProtocolError(f"a {KINDS[kind]} message whose name has control characters")
    return name


# One tensor after the other usually has the same shape: what was checked once is not checked again.
@lru_cache(maxsize=64)
def _described(fixed: bytes) -> Tuple[Optional[Layout], bool, int, int, int]:
    """Layout, sharing, size, and the lengths of name and meta, from the fixed fields up to the size, with shape and
    strides after them."""
    code, ndim, order, sharing, device, names, reserved8, metas, reserved16, reserved32, offset, size = \
        _FIXED.unpack_from(fixed)
    if reserved8 or reserved16 or reserved32:
        raise ProtocolError("a message for a tensor with reserved bits")
    if ndim > MAX_NDIM:
        raise LayoutError(f"a tensor of {ndim} dimensions; the limit is {MAX_NDIM}")
    if metas > MAX_META:
        raise ProtocolError(f"a message for a tensor with {metas} bytes of meta; the limit is {MAX_META}")
    if len(fixed) != _FIXED.size + 16 * ndim:
        raise ProtocolError("a message for a tensor whose shape and strides are cut off")
    if code == 0:
        if ndim or order or sharing or device or offset or size:
            raise ProtocolError("a message without a tensor that describes one")
        return None, False, 0, names, metas
    dtype = BY_CODE.get(code)
    if dtype is None:
        raise LayoutError(f"the unknown dtype {code}")
    if order > 1 or (order and dtype.part == 1):
        raise LayoutError(f"byte order {order} for {dtype}")
    if sharing > 1:
        raise LayoutError(f"the unknown sharing {sharing}")
    if device:
        raise LayoutError(f"the unknown device {device}; 0, the host's memory, is known here")
    if not 1 <= size < 1 << 63:
        raise LayoutError(f"a memory of {size} bytes")
    numbers = _numbers(ndim).unpack_from(fixed, _FIXED.size)
    layout = Layout(dtype, bool(order), numbers[:ndim], numbers[ndim:], offset)
    layout.check(size)
    return layout, bool(sharing), size, names, metas


def read_tensor(kind: int, body: bytes) -> TensorBody:
    """The checked body of a message that may carry a tensor. Its layout lies within its size.

    :raises ProtocolError: a field breaks a rule (as :class:`LayoutError` where the tensor does).
    """
    if len(body) < _TENSOR.size:
        raise ProtocolError(f"a {KINDS[kind]} message whose body has {len(body)} bytes; it has at least {_TENSOR.size}")
    at = _TENSOR.size + 16 * body[_NDIM_AT]
    layout, shared, size, names, metas = _described(body[:_FIXED.size] + body[_TENSOR.size:at])
    if len(body) != at + names + metas:
        raise ProtocolError(f"a {KINDS[kind]} message whose fields do not fill its {len(body)} bytes")
    lost, tag = _PAIR.unpack_from(body, LOST_AT)
    if lost and kind != TENSOR:
        raise ProtocolError(f"a {KINDS[kind]} message with a count of lost tensors")
    name = _read_name(kind, body[at:at + names]) if names else ""
    return TensorBody(layout, shared, size, lost, tag, name, body[at + names:])


class Devices(NamedTuple):
    """What a process can open, or hand over."""

    pid: int
    transports: int
    driver: int
    events: bool
    probe: bytes
    #: UUID, and whether it is an instance of MIG.
    gpus: Tuple[Tuple[bytes, bool], ...]


class Block(NamedTuple):
    """How memory of a GPU is handed over."""

    transport: int
    has_event: bool
    pid: int
    uuid: bytes
    allocation: int
    handle: bytes
    event: bytes


_ZEROS = bytes(64)


def devices(of: Devices) -> bytes:
    """DEVICES' body."""
    gpus = of.gpus[:MAX_DEVICES]
    fixed = _DEVICES.pack(of.pid, of.transports, of.driver, len(gpus), int(of.events), of.probe)
    return fixed + b"".join(_DEVICE.pack(uuid, int(mig), 0) for uuid, mig in gpus)


def read_devices(body: bytes) -> Devices:
    """:raises ProtocolError: DEVICES' body breaks a rule."""
    if len(body) < _DEVICES.size:
        raise ProtocolError(f"a DEVICES message whose body has {len(body)} bytes")
    pid, transports, driver, count, events, probe = _DEVICES.unpack_from(body)
    if transports & ~0b11110 or events > 1 or count > MAX_DEVICES or len(body) != _DEVICES.size + count * _DEVICE.size:
        raise ProtocolError(f"a DEVICES message with transports {transports:#x}, events {events} and {count} GPUs in "
                            f"{len(body)} bytes")
    gpus = []
    for uuid, mig, reserved in _DEVICE.iter_unpack(body[_DEVICES.size:]):
        if mig > 1 or reserved:
            raise ProtocolError("a DEVICES message with unknown flags or reserved bits")
        gpus.append((uuid, bool(mig)))
    return Devices(pid, transports, driver, bool(events), probe, tuple(gpus))


def block(of: Block) -> bytes:
    """The end of GPU's body."""
    return _BLOCK.pack(1, of.transport, int(of.has_event), 0, of.pid, of.uuid, of.allocation, of.handle, of.event)


def read_gpu(body: bytes) -> Tuple[TensorBody, Block]:
    """:raises ProtocolError: GPU's body breaks a rule."""
    if len(body) < _BLOCK.size:
        raise ProtocolError(f"a GPU message whose body has {len(body)} bytes")
    content = read_tensor(TENSOR, body[:-_BLOCK.size])
    version, transport, sync, reserved, pid, uuid, allocation, handle, event = _BLOCK.unpack(body[-_BLOCK.size:])
    if version != 1 or reserved or transport > FABRIC or sync > 1:
        raise ProtocolError(f"a GPU block of version {version} with transport {transport} and sync {sync}")
    if (transport in (HOST_COPY, VMM_FD) and handle != _ZEROS) or (not sync and event != _ZEROS):
        raise ProtocolError("a GPU block with a handle or an event that does not belong there")
    if transport == HOST_COPY and (sync or allocation):
        raise ProtocolError("a GPU block of a copy with an event or an allocation")
    if content.layout is None or content.shared == (transport == HOST_COPY):
        raise ProtocolError(f"a GPU message without a tensor, or with the wrong sharing for {TRANSPORTS[transport]}")
    return content, Block(transport, bool(sync), pid, uuid, allocation, handle, event)


def release(sequences: Sequence[int]) -> bytes:
    """RELEASE's body, of at most 64 sequences."""
    return struct.pack(f"<{len(sequences)}Q", *sequences)


def read_release(body: bytes) -> Tuple[int, ...]:
    """:raises ProtocolError: not 1 to 64 sequences."""
    count, rest = divmod(len(body), 8)
    if rest or not 1 <= count <= 64:
        raise ProtocolError(f"a RELEASE of {len(body)} bytes; it has 1 to 64 numbers of 8")
    return struct.unpack(f"<{count}Q", body)


def error(code: int, text: str) -> bytes:
    """ERROR's body; a text that is too long is cut."""
    raw = text.encode("utf-8", "replace")[:MAX_TEXT]
    while True:
        try:
            raw.decode("utf-8")
            break
        except UnicodeDecodeError:
            raw = raw[:-1]
    return _ERROR.pack(code, len(raw)) + raw


def read_error(body: bytes) -> Tuple[int, str]:
    """Code and text, with control characters replaced.

    :raises ProtocolError: ERROR's body breaks a rule.
    """
    if len(body) < _ERROR.size:
        raise ProtocolError(f"an ERROR whose body has {len(body)} bytes")
    code, length = _ERROR.unpack_from(body)
    if length > MAX_TEXT or len(body) != _ERROR.size + length or not E_VERSION <= code <= E_APPLICATION:
        raise ProtocolError(f"an ERROR of code {code} and {length} bytes of text in {len(body)} bytes")
    try:
        text = body[_ERROR.size:].decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError("an ERROR whose text is no UTF-8") from None
    return code, "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
