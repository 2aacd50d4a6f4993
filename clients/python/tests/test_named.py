"""Named tensors: safetensors files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import random
import struct
import time
import unittest

import isorun_channel as ic
from isorun_channel import named
from isorun_channel.dtypes import DTYPES

from .support import ChannelTest, descriptors, needs_numpy, numpy


class Named(ChannelTest):
    def test_one_and_several(self) -> None:
        self.channel.put("one", ic.tensor(b"abc"))
        self.assertEqual(self.channel.get("one").tobytes(), b"abc")
        self.channel.put("many", {"a": ic.tensor(b"12"), "b": ic.empty((2, 2), "f64")}, {"step": "7"})
        found = self.channel.get_all("many")
        self.assertEqual({key: value.shape for key, value in found.items()}, {"a": (2,), "b": (2, 2)})
        self.assertEqual(self.channel.metadata("many"), {"step": "7"})
        self.assertEqual(self.channel.get("many", "a").tobytes(), b"12")
        self.assertEqual(self.channel.names(), ["many", "one"])
        self.assertEqual(self.entries(), ["many.safetensors", "one.safetensors"])
        with self.assertRaisesRegex(ic.InvalidArgument, "'a', 'b'"):
            self.channel.get("many")
        for missing in (lambda: self.channel.get("none"), lambda: self.channel.get("many", "c"),
                        lambda: self.channel.remove("none")):
            self.assertRaises(ic.NotFound, missing)
        self.channel.remove("one")
        self.assertEqual(self.channel.names(), ["many"])

    def test_every_type_of_the_format(self) -> None:
        for dtype in DTYPES.values():
            tensor = ic.empty(3, dtype)
            tensor.bytes_view()[:] = bytes(range(3 * dtype.itemsize))
            with self.subTest(dtype.name):
                if dtype.safetensors is None:
                    self.assertRaises(ic.UnsupportedTensor, self.channel.put, "t", tensor)
                    continue
                self.channel.put("t", tensor)
                found = self.channel.get("t")
                self.assertEqual((found.dtype, found.tobytes()), (dtype, tensor.tobytes()))

    def test_reading_maps_and_replacing_leaves_the_old_one(self) -> None:
        self.channel.put("t", ic.tensor(b"old"))
        old = self.channel.get("t")
        inode = os.stat(f"{self.directory}/t.safetensors").st_ino
        self.assertEqual(os.fstat(old.fileno()).st_ino, inode)
        view = old.bytes_view()
        self.assertTrue(view.readonly)
        self.channel.put("t", ic.tensor(b"newer"))
        self.assertEqual((bytes(view), self.channel.get("t").tobytes()), (b"old", b"newer"))
        self.assertEqual(self.entries(), ["t.safetensors"])

    def test_filled_in_place(self) -> None:
        with self.channel.new("w", {"w": ((2, 3), "f32"), "b": (4, "u8")}) as file:
            file.tensors["b"].buffer()[3] = 9
            self.assertEqual(self.entries(), [])
            view = file.tensors["w"].buffer()
            view[1, 2] = 5
            inode = os.fstat(file.tensors["w"].fileno()).st_ino
        self.assertEqual(os.stat(f"{self.directory}/w.safetensors").st_ino, inode)
        self.assertEqual(self.channel.get("w", "w").tolist(), [[0, 0, 0], [0, 0, 5]])
        # The file is never written again.
        view[1, 2] = 6
        self.assertEqual(self.channel.get("w", "w").tolist()[1][2], 5)
        with self.assertRaises(ZeroDivisionError), self.channel.new("x", {"x": (1, "u8")}):
            1 / 0
        self.assertEqual(self.entries(), ["w.safetensors"])

    def test_sent_after_reading(self) -> None:
        self.channel.put("t", ic.tensor(b"abc"))
        with self.channel.publisher("e") as publisher, self.channel.subscribe("e") as subscriber:
            publisher.publish(self.channel.get("t"))
            self.assertEqual(subscriber.receive(5).tensor.tobytes(), b"abc")

    @needs_numpy
    def test_numpy_with_gaps_and_alignment(self) -> None:
        array = numpy.arange(24, dtype="f8").reshape(4, 6)
        self.channel.put("t", {"odd": numpy.arange(3, dtype="u1"), "gaps": array[::2, ::-1]})
        found = self.channel.get_all("t")
        numpy.testing.assert_array_equal(found["gaps"].numpy(), array[::2, ::-1])
        self.assertEqual(found["gaps"].address % 64, 0)
        with self.assertRaises(ic.UnsupportedTensor):
            self.channel.put("t", array.astype(">f8"))

    @needs_numpy
    def test_other_readers_and_writers_of_the_format(self) -> None:
        try:
            from safetensors import numpy as theirs
        except ImportError:
            self.skipTest("safetensors is not installed")
        arrays = {"a": numpy.arange(6, dtype="f4").reshape(2, 3), "b": numpy.array([True, False])}
        self.channel.put("ours", arrays)
        for key, value in theirs.load_file(f"{self.directory}/ours.safetensors").items():
            numpy.testing.assert_array_equal(value, arrays[key])
        theirs.save_file(arrays, f"{self.directory}/theirs.safetensors", {"from": "them"})
        for key, value in self.channel.get_all("theirs").items():
            numpy.testing.assert_array_equal(value.numpy(), arrays[key])
        self.assertEqual(self.channel.metadata("theirs"), {"from": "them"})

    def test_bad_names(self) -> None:
        for name in ("", "a/b", "../x", ".x", "x" * 65, "a b", "é", "a\n", 3):
            with self.subTest(name), self.assertRaises(ic.InvalidArgument):
                self.channel.put(name, b"x")
            with self.subTest(name), self.assertRaises(ic.InvalidArgument):
                self.channel.get(name)
        for name in ("A", "9a", "x" * 64, "a.b_c-d"):
            self.channel.put(name, ic.tensor(b"x"))

    def test_a_channel_that_may_not_be_written(self) -> None:
        os.chmod(self.directory, 0o555)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)  # root may write everywhere
        try:
            with self.assertRaisesRegex(ic.ChannelError, "EACCES"):
                self.channel.put("x", ic.tensor(b"x"))
            with self.assertRaisesRegex(ic.ChannelError, "EACCES"):
                self.channel.publisher("x")
        finally:
            os.seteuid(me)
        self.assertEqual(self.entries(), [])

    def test_what_is_left_of_killed_writers_goes(self) -> None:
        self.channel.put("t", ic.tensor(b"1"))
        old = f"{self.directory}/.t.dead.tmp"
        for path in (old, f"{self.directory}/.other.dead.tmp", f"{self.directory}/.t.alive.tmp"):
            open(path, "wb").close()
        now = time.time
        try:
            named.time.time = lambda: now() + 61
            self.channel.put("t", ic.tensor(b"2"))
        finally:
            named.time.time = now
        self.assertEqual(self.entries(), [".other.dead.tmp", "t.safetensors"])

    def test_nothing_is_left_open(self) -> None:
        before = descriptors()
        self.channel.put("t", ic.tensor(b"abc"))
        for _ in range(3):
            tensor = self.channel.get("t")
            tensor.tobytes()
            self.channel.get("t", copy=True).tobytes()
            del tensor
        self.assertEqual(descriptors(), before)


def file(header: object, data: bytes = b"", length: "int | None" = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


class BadFiles(ChannelTest):
    def entry(self, **changes: object) -> "dict[str, object]":
        return {"t": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2], **changes}}

    def put(self, content: bytes) -> None:
        with open(f"{self.directory}/bad.safetensors", "wb") as out:
            out.write(content)

    def test_each_is_refused(self) -> None:
        good = file(self.entry(), b"ab")
        self.put(good)
        self.assertEqual(self.channel.get("bad").tobytes(), b"ab")
        twice = b'{"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        bad = {
            "empty": b"", "short": b"123456789", "length": file({}, length=100), "huge": file({}, length=1 << 63),
            "over 16 MiB": file({}, b"", (16 << 20) + 1), "no JSON": file(b"{]"), "no object": file([]),
            "deep": file(b"[" * 100000), "not UTF-8": file(b'{"\xff":1}'), "twice": file(twice),
            "dtype": file(self.entry(dtype="X9"), b"ab"), "no dtype": file({"t": {}}), "more": file(self.entry(x=1), b"ab"),
            "list dtype": file(self.entry(dtype=["U8"]), b"ab"), "shape": file(self.entry(shape=[3]), b"ab"),
            "negative": file(self.entry(shape=[-2]), b"ab"), "true": file(self.entry(shape=[True, 2]), b"ab"),
            "float": file(self.entry(shape=[2.0]), b"ab"), "33 dimensions": file(self.entry(shape=[2] + [1] * 32), b"ab"),
            "backwards": file(self.entry(data_offsets=[2, 0]), b"ab"), "past the end": file(self.entry(), b"a"),
            "left over": file(self.entry(), b"abc"), "gap": file(self.entry(data_offsets=[1, 3]), b"abc"),
            "overlap": file({**self.entry(), "u": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, b"abc"),
            "overflow": file(self.entry(shape=[1 << 62, 1 << 62], data_offsets=[0, 2]), b"ab"),
            "metadata": file({"__metadata__": {"a": 1}}), "metadata list": file({"__metadata__": []}),
        }
        for name, content in bad.items():
            self.put(content)
            before = descriptors()
            for copy in (False, True):
                with self.subTest(name), self.assertRaises(ic.FileFormatError):
                    self.channel.get_all("bad", copy=copy)
            self.assertEqual(descriptors(), before, name)

    def test_no_file_at_all(self) -> None:
        os.mkdir(f"{self.directory}/bad.safetensors")
        with self.assertRaises(ic.ChannelError):
            self.channel.get("bad")
        os.rmdir(f"{self.directory}/bad.safetensors")
        os.symlink("/etc/passwd", f"{self.directory}/bad.safetensors")
        with self.assertRaisesRegex(ic.FileFormatError, "symbolic link"):
            self.channel.get("bad")
        os.unlink(f"{self.directory}/bad.safetensors")
        os.mkfifo(f"{self.directory}/bad.safetensors")
        with self.assertRaises(ic.FileFormatError):
            self.channel.get("bad")

    def test_a_file_with_holes(self) -> None:
        """A header, and a terabyte of nothing: reading it would allocate it."""
        if not self.directory.startswith("/dev/shm"):
            self.skipTest("/dev/shm, a tmpfs, cannot be written here")
        size = 1 << 40
        self.put(file(self.entry(shape=[size], data_offsets=[0, size])))
        os.truncate(f"{self.directory}/bad.safetensors", os.stat(f"{self.directory}/bad.safetensors").st_size + size)
        for copy in (False, True):
            with self.assertRaisesRegex(ic.FileFormatError, "holes"):
                self.channel.get("bad", copy=copy)

    def test_noise(self) -> None:
        seconds = float(os.environ.get("ISORUN_FUZZ_SECONDS", "2"))
        chance = random.Random(int(os.environ.get("ISORUN_FUZZ_SEED", "7")))
        text = json.dumps({**self.entry(), "f": {"dtype": "F32", "shape": [2, 1], "data_offsets": [2, 10]},
                           "__metadata__": {"a": "b"}})
        end, count, refused = time.monotonic() + seconds, 0, 0
        while time.monotonic() < end:
            changed = bytearray(text.encode())
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(len(changed))
                changed[at:at + chance.randrange(2)] = chance.choice((b"0", b"9", b"-", b"[", b"]", b'"', b",", b"e", b" "))
            count += 1
            try:
                entries, _ = named.parse(bytes(changed), 10)
                for entry in entries.values():
                    self.assertTrue(0 <= entry.start <= entry.end <= 10)
            except ic.FileFormatError:
                refused += 1
        self.assertTrue(count // 10 < refused < count, (refused, count))
        if seconds > 10:
            print(f"{count} headers, {refused} refused")

    def test_truncated_while_it_is_read(self) -> None:
        """A copying reader gets an error, never a signal; how much is there is known before."""
        self.put(file(self.entry(shape=[1 << 20], data_offsets=[0, 1 << 20]), b"x" * (1 << 20)))
        real = os.pread

        def cut(fd: int, length: int, at: int) -> bytes:
            if at == 0 and length > 8:
                os.truncate(f"{self.directory}/bad.safetensors", 100)
            return real(fd, length, at)

        try:
            named.os.pread = cut
            with self.assertRaisesRegex(ic.FileFormatError, "truncated"):
                self.channel.get("bad", copy=True)
        finally:
            named.os.pread = real


if __name__ == "__main__":
    unittest.main()
