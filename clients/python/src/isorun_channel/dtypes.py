"""The types of elements: their codes on the wire and their names in numpy, torch, DLPack and safetensors."""

from __future__ import annotations

import sys
from typing import Any, Dict, NamedTuple, Optional, Tuple, Union

from .errors import InvalidArgument, UnsupportedTensor


class DType(NamedTuple):
    """One type of element. Get one with :func:`dtype` or from :data:`DTYPES`."""

    #: The number in messages (docs/channel-protocol.md).
    code: int
    #: The protocol's name: ``f32``, ``bf16``, ``bool``, ...
    name: str
    #: Bytes of one element.
    itemsize: int
    #: Bytes of the parts that byte order is about: half the element of a complex number.
    part: int
    #: Type code and bits in DLPack; ``None``: DLPack has no such type.
    dlpack: Optional[Tuple[int, int]]
    #: numpy's kind and size (``f4``); ``None``: numpy has no such type of its own.
    numpy: Optional[str]
    #: Name in a safetensors file; ``None``: the format has no such type.
    safetensors: Optional[str]
    #: Name in torch, and in numpy with ml_dtypes.
    torch: str

    def __str__(self) -> str:
        return self.name

    def typestr(self, big_endian: bool = False) -> Optional[str]:
        """numpy's type string, ``<f4``; ``None`` if numpy has no such type."""
        if self.numpy is None:
            return None
        if self.part == 1:
            return "|" + self.numpy
        return (">" if big_endian else "<") + self.numpy


_TABLE = (
    DType(1, "bool", 1, 1, (6, 8), "b1", "BOOL", "bool"),
    DType(2, "u8", 1, 1, (1, 8), "u1", "U8", "uint8"),
    DType(3, "i8", 1, 1, (0, 8), "i1", "I8", "int8"),
    DType(4, "u16", 2, 2, (1, 16), "u2", "U16", "uint16"),
    DType(5, "i16", 2, 2, (0, 16), "i2", "I16", "int16"),
    DType(6, "u32", 4, 4, (1, 32), "u4", "U32", "uint32"),
    DType(7, "i32", 4, 4, (0, 32), "i4", "I32", "int32"),
    DType(8, "u64", 8, 8, (1, 64), "u8", "U64", "uint64"),
    DType(9, "i64", 8, 8, (0, 64), "i8", "I64", "int64"),
    DType(10, "f16", 2, 2, (2, 16), "f2", "F16", "float16"),
    DType(11, "bf16", 2, 2, (4, 16), None, "BF16", "bfloat16"),
    DType(12, "f32", 4, 4, (2, 32), "f4", "F32", "float32"),
    DType(13, "f64", 8, 8, (2, 64), "f8", "F64", "float64"),
    DType(14, "c64", 8, 4, (5, 64), "c8", "C64", "complex64"),
    DType(15, "c128", 16, 8, (5, 128), "c16", None, "complex128"),
    DType(16, "f8_e4m3fn", 1, 1, (10, 8), None, "F8_E4M3", "float8_e4m3fn"),
    DType(17, "f8_e5m2", 1, 1, (12, 8), None, "F8_E5M2", "float8_e5m2"),
    DType(18, "f8_e4m3fnuz", 1, 1, (11, 8), None, "F8_E4M3FNUZ", "float8_e4m3fnuz"),
    DType(19, "f8_e5m2fnuz", 1, 1, (13, 8), None, "F8_E5M2FNUZ", "float8_e5m2fnuz"),
    DType(20, "f8_e8m0fnu", 1, 1, (14, 8), None, "F8_E8M0", "float8_e8m0fnu"),
    DType(21, "c32", 4, 2, (5, 32), None, None, "complex32"),
)

#: Every type, by the protocol's name.
DTYPES: Dict[str, DType] = {d.name: d for d in _TABLE}

BY_CODE: Dict[int, DType] = {d.code: d for d in _TABLE}
BY_DLPACK: Dict[Tuple[int, int], DType] = {d.dlpack: d for d in _TABLE if d.dlpack is not None}
BY_SAFETENSORS: Dict[str, DType] = {d.safetensors: d for d in _TABLE if d.safetensors is not None}
_BY_NUMPY: Dict[str, DType] = {d.numpy: d for d in _TABLE if d.numpy is not None}
_BY_ANY: Dict[str, DType] = {**{d.torch: d for d in _TABLE}, **DTYPES}
_BY_ANY.update({"half": DTYPES["f16"], "float": DTYPES["f32"], "double": DTYPES["f64"], "int": DTYPES["i64"]})

#: What numpy calls the other byte order here.
NATIVE_BIG_ENDIAN = sys.byteorder == "big"

DTypeLike = Union[DType, str, type, Any]


def dtype(like: DTypeLike) -> DType:
    """The type that ``like`` means: a :class:`DType`, a name (``"f32"``, ``"float32"``, ``"bfloat16"``,
    ``"F8_E4M3"``), numpy's or torch's dtype, or Python's ``bool``, ``int``, ``float``, ``complex``.

    :raises InvalidArgument: there is no such type in a channel.
    """
    if isinstance(like, DType):
        return like
    if isinstance(like, str):
        found = _BY_ANY.get(like) or BY_SAFETENSORS.get(like)
        if found is None:
            found = _BY_NUMPY.get(like.lstrip("<=|"))
        if found is not None:
            return found
        raise InvalidArgument(f"dtype {like!r} is none that a channel carries; it knows {', '.join(DTYPES)}")
    python = {bool: "bool", int: "i64", float: "f64", complex: "c128"}
    if isinstance(like, type) and like in python:
        return DTYPES[python[like]]
    text = str(like)
    if text.startswith("torch."):
        return dtype(text[len("torch."):])
    # numpy.dtype, or a class such as numpy.float32 or jax.numpy.bfloat16.
    name = getattr(like, "name", None)
    if not isinstance(name, str):
        name = getattr(like, "__name__", None)
    if isinstance(name, str) and name in _BY_ANY:
        return _BY_ANY[name]
    raise InvalidArgument(f"dtype {like!r} is none that a channel carries; it knows {', '.join(DTYPES)}")


def from_typestr(typestr: str) -> Tuple[DType, bool]:
    """The type and whether it is big-endian, from ``__array_interface__``'s ``typestr``.

    :raises UnsupportedTensor: strings, objects, records and the like.
    """
    found = _BY_NUMPY.get(typestr[1:])
    if found is None or typestr[:1] not in "<>|=":
        raise UnsupportedTensor(f"arrays of type {typestr!r} cannot be in a channel")
    if found.part == 1:
        return found, False
    return found, typestr[0] == ">" or (typestr[0] == "=" and NATIVE_BIG_ENDIAN)


_BUFFER_KINDS = {"?": "b", "b": "i", "h": "i", "i": "i", "l": "i", "q": "i", "n": "i", "B": "u", "H": "u",
                 "I": "u", "L": "u", "Q": "u", "N": "u", "e": "f", "f": "f", "d": "f", "Zf": "c", "Zd": "c",
                 "c": "u"}


def from_format(format: Optional[str], itemsize: int) -> Tuple[DType, bool]:
    """The type and whether it is big-endian, from a buffer's ``format`` (PEP 3118).

    :raises UnsupportedTensor: records, pointers and the like.
    """
    text = format or "B"
    big = NATIVE_BIG_ENDIAN
    if text[:1] in "@=<>!":
        big = {"<": False, ">": True, "!": True}.get(text[0], NATIVE_BIG_ENDIAN)
        text = text[1:]
    kind = _BUFFER_KINDS.get(text)
    found = _BY_NUMPY.get(f"{kind}{itemsize}") if kind else None
    if found is None:
        raise UnsupportedTensor(f"buffers of format {format!r} cannot be in a channel")
    return found, big and found.part > 1


def buffer_format(of: DType, big_endian: bool) -> str:
    """The buffer's ``format`` for a type; raw bits of the same size where Python has no such type."""
    letters = {"bool": "?", "u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "u64": "Q",
               "i64": "q", "f16": "e", "f32": "f", "f64": "d", "bf16": "H"}
    if of.itemsize == 1:
        return letters.get(of.name, "B")
    if of.name not in letters or big_endian != NATIVE_BIG_ENDIAN:
        raise UnsupportedTensor(
            f"Python's memoryview has no format for {of.name}{' of the other byte order' if big_endian else ''}; "
            "use numpy(), or bytes_view()")
    return letters[of.name]
