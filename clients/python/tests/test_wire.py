"""Messages: what is written is read, and what breaks a rule is refused. No I/O."""

from __future__ import annotations

import os
import random
import struct
import time
import unittest
from typing import Any

import isorun_channel as ic
from isorun_channel import wire
from isorun_channel.dtypes import DTYPES, NATIVE_BIG_ENDIAN
from isorun_channel.layout import Layout, c_strides, dense

F32 = DTYPES["f32"]


def body(**changes: Any) -> bytes:
    """A good TENSOR of 2 x 3 f32 with some of its raw fields changed."""
    fields = {"code": 12, "ndim": 2, "order": 0, "sharing": 0, "device": 0, "names": 1, "reserved8": 0, "metas": 2,
              "reserved16": 0, "reserved32": 0, "offset": 0, "size": 24, "lost": 0, "tag": 0, "shape": (2, 3),
              "strides": (3, 1), "name": b"w", "meta": b"xy"}
    fields.update(changes)
    return struct.pack("<HBBBBBBHHIQQQQ", *[fields[key] for key in list(fields)[:14]]) + struct.pack(
        f"<{len(fields['shape'])}Q{len(fields['strides'])}q", *fields["shape"], *fields["strides"]) + \
        fields["name"] + fields["meta"]


class Headers(unittest.TestCase):
    def test_sizes_are_the_protocols(self) -> None:
        self.assertEqual(wire.HEADER_SIZE, 32)
        self.assertEqual(len(wire.hello(wire.Hello(1, 1, 3, 0, 0, 0, 0))), 32)
        self.assertEqual(len(wire.welcome(wire.Welcome(1, 3, 0, 4, 4, 0))), 32)
        self.assertEqual(len(wire.tensor(wire.TensorBody(None, False, 0, 0, 0, "", b""))), 48)
        longest = wire.tensor(wire.TensorBody(dense((1,) * 32, "u8"), False, 1, 0, 0, "n" * 255, b"m" * 2048))
        self.assertEqual(wire.HEADER_SIZE + len(longest), 2895)

    def test_bytes_of_a_header(self) -> None:
        self.assertEqual(wire.header(wire.PONG, 0, 5, 4),
                         b"ISCH\1\0\x09\0\x20\0\0\0\0\0\0\0" + b"\5" + b"\0" * 7 + b"\4" + b"\0" * 7)

    def test_bad_headers(self) -> None:
        good = wire.header(wire.PING, 0, 1)
        bad = {"short": good[:31], "empty": b"", "magic": b"ISCX" + good[4:], "version": good[:4] + b"\2" + good[5:],
               "kind 0": wire.header(0, 0, 1), "kind 12": wire.header(12, 0, 1), "length": good + b"x",
               "flags": wire.header(wire.PING, 0, 1, flags=1), "sequence": wire.header(wire.PING, 0, 0),
               "ping refers": wire.header(wire.PING, 0, 1, 1), "pong does not": wire.header(wire.PONG, 0, 1),
               "error's flags": wire.header(wire.ERROR, 0, 1, flags=2)}
        for name, packet in bad.items():
            with self.subTest(name), self.assertRaises(ic.ProtocolError):
                wire.read_header(packet)
        self.assertEqual(wire.read_header(good), (wire.PING, 0, 1, 0))

    def test_bad_greetings(self) -> None:
        good = (1, 1, 3, 0, 4, 4, 0)
        for at, value in ((0, 0), (1, 0), (2, 0), (2, 4), (4, 257), (5, 257), (6, 2)):
            fields = list(good)
            fields[at] = value
            with self.subTest(fields), self.assertRaises(ic.ProtocolError):
                wire.read_hello(wire.hello(wire.Hello(*fields)))
        asked = wire.read_hello(wire.hello(wire.Hello(*good)))
        granted = (1, 3, 0, 4, 4, 0)
        wire.read_welcome(wire.welcome(wire.Welcome(*granted)), asked)
        for at, value in ((0, 2), (1, 0), (1, 4), (2, 1), (3, 0), (3, 5), (4, 5), (5, 1)):
            fields = list(granted)
            fields[at] = value
            with self.subTest(fields), self.assertRaises(ic.ProtocolError):
                wire.read_welcome(wire.welcome(wire.Welcome(*fields)), asked)

    def test_errors_and_releases(self) -> None:
        self.assertEqual(wire.read_error(wire.error(4, "busy\n\x1b[2J")), (4, "busy\N{REPLACEMENT CHARACTER}"
                                                                         "\N{REPLACEMENT CHARACTER}[2J"))
        code, text = wire.read_error(wire.error(7, "\N{SNOWMAN}" * 1000))
        self.assertEqual((code, text), (7, "\N{SNOWMAN}" * 341))
        for bad in (b"", b"\1\0\5\0abc", struct.pack("<HH", 0, 0), struct.pack("<HH", 8, 0), b"\1\0\1\0\xff"):
            with self.assertRaises(ic.ProtocolError):
                wire.read_error(bad)
        self.assertEqual(wire.read_release(wire.release([1, 2])), (1, 2))
        for bad in (b"", b"1234567", b"\0" * 8 * 65):
            with self.assertRaises(ic.ProtocolError):
                wire.read_release(bad)


class TensorMessages(unittest.TestCase):
    def test_round_trip_of_every_type(self) -> None:
        for dtype in DTYPES.values():
            layout = Layout(dtype, dtype.part > 1, (2, 3), (-3, 1), 3 * dtype.itemsize)
            told = wire.TensorBody(layout, True, 6 * dtype.itemsize, 9, 1 << 63, "näme", b"\0\xff")
            self.assertEqual(wire.read_tensor(wire.TENSOR, wire.tensor(told)), told)

    def test_bytes_of_a_tensor(self) -> None:
        layout = Layout(F32, NATIVE_BIG_ENDIAN, (2, 3), (3, 1), 0)
        self.assertEqual(wire.tensor(wire.TensorBody(layout, False, 24, 0, 0, "w", b"xy")),
                         body(order=int(NATIVE_BIG_ENDIAN)))

    def test_bad_tensors(self) -> None:
        big = 1 << 63
        layouts = {"dtype": {"code": 22}, "order": {"order": 2}, "order of bytes": {"code": 2, "order": 1},
                   "sharing": {"sharing": 2}, "device": {"device": 1}, "size 0": {"size": 0}, "size": {"size": big},
                   "offset": {"offset": 4}, "odd offset": {"offset": 2, "size": 99}, "huge offset": {"offset": 2**64-4},
                   "below": {"strides": (-3, 1)}, "beyond": {"strides": (4, 1)}, "dimension": {"shape": (big, 1)},
                   "too many": {"shape": (1 << 40, 1 << 40), "strides": (0, 0)},
                   "claims too much": {"shape": (1 << 46, 1), "strides": (0, 0)},
                   "overflow": {"shape": (1 << 31, 1 << 31), "strides": (1 << 62, 1 << 62), "size": big - 1},
                   "underflow": {"strides": (-(1 << 63), 1)}}
        for name, changes in layouts.items():
            with self.subTest(name), self.assertRaises(ic.LayoutError):
                wire.read_tensor(wire.TENSOR, body(**changes))
        others = {"reserved8": {"reserved8": 1}, "reserved16": {"reserved16": 1}, "reserved32": {"reserved32": 1},
                  "ndim": {"ndim": 3}, "33": {"ndim": 33, "shape": (1,) * 33, "strides": (1,) * 33},
                  "name": {"name": b"\n"}, "not UTF-8": {"name": b"\xff"}, "name length": {"names": 200},
                  "meta length": {"metas": 3}, "long meta": {"metas": 2049, "meta": b"m" * 2049},
                  "more": {"meta": b"xyz"}, "none with shape": {"code": 0}}
        for name, changes in others.items():
            with self.subTest(name), self.assertRaises(ic.ProtocolError):
                wire.read_tensor(wire.TENSOR, body(**changes))
        with self.assertRaises(ic.ProtocolError):
            wire.read_tensor(wire.REQUEST, body(lost=1))
        # What is odd, but allowed.
        for name, changes in {"broadcast": {"strides": (0, 1), "size": 12}, "no elements": {"shape": (0, 3), "size": 1},
                              "backwards": {"strides": (-3, 1), "offset": 12}, "lost": {"lost": 5}}.items():
            with self.subTest(name):
                wire.read_tensor(wire.TENSOR, body(**changes))

    def test_what_cannot_be_sent(self) -> None:
        for changes in ({"name": "n" * 256}, {"name": "\n"}, {"meta": b"m" * 2049}, {"tag": -1}, {"tag": 1 << 64}):
            fields = {"layout": None, "shared": False, "size": 0, "lost": 0, "tag": 0, "name": "", "meta": b""}
            fields.update(changes)
            with self.subTest(changes), self.assertRaises(ic.InvalidArgument):
                wire.tensor(wire.TensorBody(**fields))

    def test_noise(self) -> None:
        """Good messages with some bytes changed: read, or refused, and never anything else."""
        seconds = float(os.environ.get("ISORUN_FUZZ_SECONDS", "2"))
        seed = int(os.environ.get("ISORUN_FUZZ_SEED", "7"))
        chance = random.Random(seed)
        goods = [wire.header(wire.TENSOR, len(body()), 1) + body(),
                 wire.header(wire.HELLO, 32, 1) + wire.hello(wire.Hello(1, 1, 3, 0, 4, 4, 0)),
                 wire.header(wire.ERROR, 9, 1) + wire.error(2, "hello"),
                 wire.header(wire.RELEASE, 16, 1) + wire.release([1, 2])]
        asked = wire.Hello(1, 1, 3, 0, 4, 4, 0)
        readers = {wire.HELLO: wire.read_hello, wire.WELCOME: lambda b: wire.read_welcome(b, asked),
                   wire.RELEASE: wire.read_release, wire.ERROR: wire.read_error}
        end, count, refused = time.monotonic() + seconds, 0, 0
        while time.monotonic() < end:
            packet = bytearray(chance.choice(goods))
            for _ in range(chance.randrange(1, 5)):
                packet[chance.randrange(4, len(packet))] = chance.choice((0, 1, 2, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            if chance.random() < 0.3:
                del packet[chance.randrange(len(packet)):]
            if len(packet) >= 12 and chance.random() < 0.8:
                packet[8:12] = len(packet).to_bytes(4, "little")
            count += 1
            try:
                header = wire.read_header(bytes(packet))
                reader = readers.get(header.kind, lambda b, k=header.kind: wire.read_tensor(k, b))
                found = reader(bytes(packet[32:]))
                if isinstance(found, wire.TensorBody) and found.layout is not None:
                    low, high = found.layout.extent()
                    self.assertTrue(0 <= low <= high <= found.size, (seed, count))
                    self.assertLessEqual(found.layout.nbytes, 1 << 47)
            except ic.ProtocolError:
                refused += 1
        self.assertGreater(refused, count // 10)
        self.assertLess(refused, count)
        if seconds > 10:
            print(f"{count} messages, {refused} refused")


class Layouts(unittest.TestCase):
    def test_extent_against_enumeration(self) -> None:
        """The bounds by the formula are those of all elements, one by one."""
        chance = random.Random(3)
        for _ in range(500):
            shape = tuple(chance.randrange(1, 5) for _ in range(chance.randrange(0, 4)))
            strides = tuple(chance.randrange(-9, 10) for _ in shape)
            at = [0]
            for length, stride in zip(shape, strides):
                at = [start + i * stride for start in at for i in range(length)]
            layout = Layout(F32, False, shape, strides, 400)
            self.assertEqual(layout.extent(), (400 + 4 * min(at), 400 + 4 * max(at) + 4))
            low, high = layout.extent()
            if low >= 0:
                layout.check(high)
                self.assertRaises(ic.LayoutError, layout.check, high - 1)
            self.assertRaises(ic.LayoutError, layout._replace(offset=layout.offset - low - 4).check, 1 << 40)
            dense_order = at == list(range(len(at)))
            self.assertEqual(layout.contiguous, dense_order, (shape, strides))

    def test_c_strides(self) -> None:
        self.assertEqual(c_strides((2, 3, 4)), (12, 4, 1))
        self.assertEqual(c_strides(()), ())

    def test_names_of_types(self) -> None:
        for names, dtype in ((("f32", "float32", "float", "<f4", "F32"), "f32"), (("bf16", "bfloat16", "BF16"), "bf16"),
                             ((bool, "bool", "?"[:0] + "|b1"), "bool"), (("F8_E4M3", "float8_e4m3fn"), "f8_e4m3fn")):
            for name in names:
                self.assertEqual(ic.dtype(name).name, dtype)


if __name__ == "__main__":
    unittest.main()
