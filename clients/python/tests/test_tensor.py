"""Tensors: views without copies, sealing, other libraries."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import sys
import unittest
from importlib.util import find_spec

import isorun_channel as ic
from isorun_channel import dlpack, foreign
from isorun_channel.memory import IMMUTABLE, SHARED

from .support import descriptors, needs_numpy, numpy


def mapping(address: int) -> "tuple[str, int]":
    """Permissions and inode of the mapping that an address lies in, from /proc/self/maps."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split()
            low, high = (int(part, 16) for part in fields[0].split("-"))
            if low <= address < high:
                return fields[1], int(fields[4])
    raise AssertionError(f"nothing is mapped at {address:#x}")


def seals(tensor: ic.Tensor) -> int:
    return fcntl.fcntl(tensor.fileno(), 1034)


class Sealing(unittest.TestCase):
    def test_a_new_tensor_is_zero_writable_and_allocated(self) -> None:
        tensor = ic.empty((3, 5), "i32")
        self.assertEqual(tensor.tolist(), [[0] * 5] * 3)
        tensor.buffer()[2, 4] = 7
        self.assertEqual(tensor.tolist()[2][4], 7)
        self.assertGreaterEqual(os.fstat(tensor.fileno()).st_blocks * 512, 60)

    def test_immutable_memory_is_sealed_and_old_views_live_on(self) -> None:
        tensor = ic.empty(8, "u8")
        view = tensor.buffer()
        view[0] = 1
        address = tensor.address
        tensor.freeze()
        self.assertEqual(seals(tensor) & IMMUTABLE, IMMUTABLE)
        self.assertEqual((tensor.address, view[0]), (address, 1))
        # Nobody sees what is written now: not somebody who maps the same memory, that is.
        view[0] = 99
        self.assertEqual(os.pread(tensor.fileno(), 1, 0), b"\1")
        self.assertTrue(tensor.buffer().readonly)
        with self.assertRaises(OSError):
            os.pwrite(tensor.fileno(), b"x", 0)

    def test_shared_memory_can_be_written_here_and_by_nobody_else(self) -> None:
        tensor = ic.empty(8, "u8").share()
        self.assertEqual(seals(tensor) & SHARED, SHARED)
        tensor.buffer()[3] = 5
        self.assertEqual(os.pread(tensor.fileno(), 8, 0)[3], 5)
        with self.assertRaises(OSError):
            os.pwrite(tensor.fileno(), b"x", 0)
        with self.assertRaises(ic.InvalidArgument):
            tensor.freeze()

    def test_memory_that_somebody_else_can_write_is_not_sealed(self) -> None:
        import mmap

        tensor = ic.empty(8, "u8")
        view = tensor.buffer()
        other = mmap.mmap(tensor.fileno(), 8)
        with self.assertRaises(ic.InUse):
            tensor.freeze()
        # It is as it was.
        view[0] = 3
        self.assertEqual(other[0], 3)
        other.close()
        tensor.freeze()
        self.assertEqual(view[0], 3)

    def test_a_closed_tensor_keeps_its_views_and_then_frees_all(self) -> None:
        before = descriptors()
        tensor = ic.empty(4096, "u8")
        view = tensor.buffer()
        address = tensor.address
        tensor.close()
        with self.assertRaises(ic.Closed):
            tensor.buffer()
        view[7] = 1
        self.assertEqual(mapping(address)[0], "rw-s")
        view.release()
        del view
        self.assertEqual(descriptors(), before)
        with self.assertRaises(AssertionError):
            mapping(address)

    def test_bad_shapes_and_dtypes(self) -> None:
        for shape, dtype in (((-1,), "f32"), ((1 << 62, 4), "f32"), ((1,) * 33, "u8"), ("ab", "f32"), ((2.5,), "u8"),
                             ((2,), "str"), ((2,), "<U4"), ((2,), object), ((2,), None)):
            with self.subTest(shape=shape, dtype=dtype), self.assertRaises(ic.InvalidArgument):
                ic.empty(shape, dtype)

    def test_more_memory_than_there_is(self) -> None:
        before = descriptors()
        import resource

        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
        try:
            import signal

            old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            try:
                with self.assertRaises(ic.ChannelError):
                    ic.empty(1 << 21, "u8")
            finally:
                signal.signal(signal.SIGXFSZ, old)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        self.assertEqual(descriptors(), before)

    def test_scalars_and_empty_tensors(self) -> None:
        self.assertEqual(ic.empty((), "f64").tolist(), 0.0)
        empty = ic.empty((3, 0, 2), "f32").freeze()
        self.assertEqual((empty.size, empty.tobytes(), empty.shape), (0, b"", (3, 0, 2)))

    @unittest.skipIf(sys.version_info < (3, 12), "classes give buffers since Python 3.12")
    def test_it_is_a_buffer(self) -> None:
        tensor = ic.tensor(b"hello")
        self.assertEqual(bytes(memoryview(tensor)), b"hello")


class Copies(unittest.TestCase):
    def test_buffers(self) -> None:
        import array

        self.assertEqual(ic.tensor(b"abc").tolist(), [97, 98, 99])
        self.assertEqual(ic.tensor(array.array("d", [1.5, -2])).tolist(), [1.5, -2.0])
        self.assertEqual(ic.tensor(memoryview(bytes(range(12))).cast("B", (3, 4))).tolist()[2], [8, 9, 10, 11])
        self.assertEqual(ic.tensor(memoryview(bytes(range(12)))[::-3]).tolist(), [11, 8, 5, 2])
        for nothing in ("text", object(), {"a": 1}):
            with self.assertRaises(ic.UnsupportedTensor):
                ic.tensor(nothing)
        with self.assertRaises(ic.UnsupportedTensor):
            ic.tensor((ctypes.c_void_p * 2)())

    @needs_numpy
    def test_every_stride_with_numpy_and_without(self) -> None:
        x = numpy.arange(120, dtype="i4").reshape(4, 5, 6)
        arrays = (x[::-1, ::2, ::-2], x.T, x[:, :, 2:3], numpy.broadcast_to(x[0, 0, 0], (3, 4)), x[1:, ::-1],
                  numpy.broadcast_to(x[0], (3, 5, 6)).T, x.astype(">i4")[::2, :, 1::2], numpy.zeros((0, 3)),
                  numpy.array(5.0), x.astype("c16").T, x.astype("?")[:, ::-1], x.astype("f2"))
        for use_numpy in (True, False):
            kept = foreign._numpy
            foreign._numpy = kept if use_numpy else (lambda: None)
            try:
                for array in arrays:
                    with self.subTest(strides=array.strides, dtype=array.dtype, use_numpy=use_numpy):
                        tensor = ic.tensor(array)
                        numpy.testing.assert_array_equal(tensor.numpy(), array)
                        self.assertEqual(tensor.numpy().dtype, array.dtype)
            finally:
                foreign._numpy = kept

    @needs_numpy
    def test_what_numpy_has_and_a_channel_has_not(self) -> None:
        for array in (numpy.array(["a"]), numpy.array([object()]), numpy.zeros(2, "M8[s]"), numpy.zeros(2, "i4,f4"),
                      numpy.zeros(4, "i4,i2")["f0"]):
            with self.subTest(dtype=array.dtype), self.assertRaises(ic.UnsupportedTensor):
                ic.tensor(array)


@needs_numpy
class Numpy(unittest.TestCase):
    def test_the_array_is_the_memory(self) -> None:
        tensor = ic.empty((2, 3), "float32")
        array = tensor.numpy()
        self.assertEqual(array.ctypes.data, tensor.address)
        array[1, 2] = 4
        self.assertEqual(os.pread(tensor.fileno(), 24, 0)[20:], array[1, 2].tobytes())
        self.assertEqual(mapping(array.ctypes.data), ("rw-s", os.fstat(tensor.fileno()).st_ino))
        self.assertEqual(numpy.asarray(tensor).ctypes.data, tensor.address)

    def test_immutable_arrays_are_read_only(self) -> None:
        array = ic.empty(3, "f32").freeze().numpy()
        with self.assertRaises(ValueError):
            array[0] = 1
        self.assertEqual(mapping(array.ctypes.data)[0], "r--p")

    def test_arrays_outlive_their_tensor(self) -> None:
        tensor = ic.empty(1000, "f64")
        array = tensor.numpy()
        tensor.close()
        del tensor
        array[:] = 3
        self.assertEqual(array.sum(), 3000)

    def test_dlpack_both_kinds(self) -> None:
        tensor = ic.empty((4, 4), "f32")
        array = numpy.from_dlpack(tensor)
        self.assertEqual(array.ctypes.data, tensor.address)
        self.assertTrue(dlpack._is_valid(tensor.__dlpack__(), b"dltensor"))
        self.assertTrue(dlpack._is_valid(tensor.__dlpack__(max_version=(1, 1)), b"dltensor_versioned"))
        self.assertEqual(tensor.__dlpack_device__(), (1, 0))
        for bad in ({"stream": 1}, {"dl_device": (2, 0)}):
            with self.assertRaises(BufferError):
                tensor.__dlpack__(**bad)
        with self.assertRaises(BufferError):
            ic.tensor(numpy.zeros(3, ">f4")).__dlpack__()

    def test_dlpack_copy(self) -> None:
        tensor = ic.tensor(numpy.arange(12.0).reshape(3, 4)[:, ::-1])
        found = dlpack.look_into(tensor.__dlpack__(max_version=(1, 0), copy=True))
        self.assertEqual(bytes(found.data), tensor.tobytes())
        tensor.numpy()[:] = 0
        self.assertNotEqual(bytes(found.data), tensor.tobytes())

    def test_dlpack_lets_go(self) -> None:
        gc.collect()
        before = dlpack.live_exports()
        tensor = ic.empty(10, "f32").freeze()
        array = numpy.from_dlpack(tensor)
        unused = tensor.__dlpack__()
        self.assertEqual(dlpack.live_exports(), before + 2)
        del unused
        self.assertEqual(dlpack.live_exports(), before + 1)
        # The consumer's object dies while an exception is raised: the exception is the one that arrives.
        with self.assertRaises(ValueError):
            numpy.from_dlpack(tensor)[0] = 1
        self.assertEqual(dlpack.live_exports(), before + 1)
        del array
        self.assertEqual(dlpack.live_exports(), before)

    def test_a_consumer_that_cannot_be_told_read_only(self) -> None:
        tensor = ic.tensor(b"abcd").freeze()
        found = dlpack.look_into(tensor.__dlpack__())
        address = tensor.address
        ctypes.memset(address, 0x7A, 1)
        self.assertEqual(bytes(found.data), b"zbcd")
        self.assertEqual(os.pread(tensor.fileno(), 4, 0), b"abcd")

    def test_many_exports_are_let_go(self) -> None:
        tensor = ic.empty(4, "f32")
        for _ in range(20000):
            tensor.__dlpack__()
        self.assertLess(dlpack.live_exports(), 10)


class Jax(unittest.TestCase):
    def setUp(self) -> None:
        if find_spec("jax") is None:
            self.skipTest("jax is not installed")

    def test_both_ways(self) -> None:
        import jax.numpy as jnp

        tensor = ic.tensor(jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3))
        self.assertEqual((tensor.dtype.name, tensor.shape), ("bf16", (2, 3)))
        large = ic.empty((1024, 64), "f32")
        large.buffer()[3, 5] = 2.5
        large.freeze()
        shown = large.jax()
        self.assertEqual(float(shown[3, 5]), 2.5)
        self.assertEqual(shown.unsafe_buffer_pointer(), large.address)


class Torch(unittest.TestCase):
    def setUp(self) -> None:
        if find_spec("torch") is None:
            self.skipTest("torch is not installed")

    def test_every_type_both_ways(self) -> None:
        import torch

        for name in ("float32", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool", "complex64", "complex128", "int64",
                     "float16", "uint8", "int8", "int16", "int32", "float64", "uint16", "uint32", "uint64"):
            kind = getattr(torch, name, None)
            if kind is None:
                continue
            with self.subTest(dtype=name):
                source = (torch.arange(12).reshape(3, 4) % 2).to(kind).t()
                tensor = ic.tensor(source)
                back = tensor.torch()
                self.assertEqual((back.dtype, back.shape, back.data_ptr()), (kind, source.shape, tensor.address))
                self.assertEqual(tensor.tobytes(), source.contiguous().view(torch.uint8).numpy().tobytes())

    def test_writes_of_an_immutable_tensor_stay_here(self) -> None:
        import torch

        tensor = ic.tensor(torch.zeros(4)).freeze()
        shown = tensor.torch()
        shown[0] = 7
        self.assertEqual(os.pread(tensor.fileno(), 4, 0), b"\0" * 4)
        self.assertEqual(torch.from_dlpack(tensor).data_ptr(), tensor.address)

    def test_filling_in_place(self) -> None:
        tensor = ic.empty((2, 2), "bf16")
        tensor.torch()[1, 1] = 1.0
        self.assertEqual(tensor.tobytes(), b"\0" * 6 + b"\x80\x3f")

    def test_gradients_and_views(self) -> None:
        import torch

        wanted = torch.randn(5, 6, requires_grad=True)
        self.assertTrue(torch.equal(ic.tensor(wanted.t()[1:, ::2]).torch(), wanted.detach().t()[1:, ::2]))
        with self.assertRaises(ic.UnsupportedTensor):
            ic.tensor(torch.zeros(3, device="meta"))
        with self.assertRaises(ic.UnsupportedTensor):
            ic.tensor(torch.zeros(3, 3).to_sparse())


if __name__ == "__main__":
    unittest.main()
