"""Tensors on GPUs, with a stand-in for libcuda (clients/rust/tests/standin-libcuda): with itself and with the Rust
client. Nothing here says how a real GPU behaves."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
from typing import Any, ClassVar, Dict, List

from isorun_channel import wire
from isorun_channel.errors import ProtocolError

from .support import BadListener, BadPeer, ChannelTest, eventually

RUST = pathlib.Path(__file__).resolve().parents[2] / "rust"


def rust_program() -> str:
    """The newest of the Rust client's example programs, if it was built with the feature cuda."""
    found = [*RUST.glob("target/*/debug/examples/gpu"), *RUST.glob("target/debug/examples/gpu")]
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else ""


PREAMBLE = """
import sys, time, warnings
import ctypes
from ctypes import byref, c_uint64, c_size_t, c_void_p, c_int, c_ubyte
import isorun_channel as ic
from isorun_channel import cuda, wire
warnings.simplefilter("ignore")
channel = ic.Channel(sys.argv[1])
driver = cuda.driver()

class Array:
    "Memory of cuMemAlloc as another library would show it."
    def __init__(self, value, size=3000000):
        self.size, self.pointer = size, c_uint64()
        with cuda.Gpu.all()[0]:
            driver("cuMemAlloc_v2", byref(self.pointer), c_size_t(size))
            driver("cuMemsetD8Async", self.pointer, c_ubyte(value), c_size_t(size), c_void_p(0))
    @property
    def __cuda_array_interface__(self):
        return {"version": 3, "typestr": "|u1", "shape": (self.size,), "data": (self.pointer.value, False)}
    def __del__(self):
        with cuda.Gpu.all()[0]:
            driver("cuMemFree_v2", self.pointer)
"""
PRODUCE = PREAMBLE + """
endpoint = channel.publisher("e", cuda=True)
print("listening")
endpoint.wait_for_subscribers(1, 20)
for number in range(3):
    delivery = endpoint.publish(Array(number), name="step", tag=number)
    for why in sorted(delivery.copy_reasons):
        print("because", why)
    delivery.wait(20)
print("done")
"""
CONSUME = PREAMBLE + """
deadline = time.monotonic() + 20
while True:
    try:
        subscriber = channel.subscribe("e", cuda="--no-gpu" not in sys.argv)
        break
    except ic.NotFound:
        assert time.monotonic() < deadline
        time.sleep(0.01)
for _ in range(3):
    try:
        message = subscriber.receive(20)
    except cuda.CudaError as error:
        print("refused", error)
        continue
    data = message.tensor.tobytes()
    way = getattr(message.tensor, "came_by", "host")
    print(message.name, message.tag, way, message.copied_from_gpu, len(data), data[0], data == data[:1] * len(data),
          cuda.open_allocations())
    message.release()
    del message
print("open", cuda.open_allocations())
"""


SEGMENTS = """
class Array(Array):
    "Memory as torch's expandable segments have it: two allocations side by side, with a handle type or without."
    def __init__(self, value, size=3000000):
        self.size, self.pointer, half = size, c_uint64(), 2 << 20
        with cuda.Gpu.all()[0]:
            zero = c_uint64(0)
            driver("cuMemAddressReserve", byref(self.pointer), c_size_t(2 * half), c_size_t(0), zero, zero)
            for at in (0, half):
                handle = c_uint64()
                prop = (c_int * 8)(1, int(sys.argv[2]), 1, 0)
                driver("cuMemCreate", byref(handle), c_size_t(half), byref(prop), c_uint64(0))
                driver("cuMemMap", c_uint64(self.pointer.value + at), c_size_t(half), c_size_t(0), handle, c_uint64(0))
            access = (c_int * 3)(1, 0, 3)
            driver("cuMemSetAccess", self.pointer, c_size_t(2 * half), byref(access), c_size_t(1))
            if len(sys.argv) > 3:
                self.size = half
            driver("cuMemsetD8Async", self.pointer, c_ubyte(value), c_size_t(self.size), c_void_p(0))
    def __del__(self):
        pass
"""


class Wire(unittest.TestCase):
    def test_what_is_written_is_read(self) -> None:
        devices = wire.Devices(77, 0b10110, 12080, True, bytes(range(64)), ((b"u" * 16, True), (b"v" * 16, False)))
        self.assertEqual(wire.read_devices(wire.devices(devices)), devices)
        for at, byte in ((4, 1), (12, 65), (14, 2), (96, 2), (100, 1)):
            raw = bytearray(wire.devices(devices))
            raw[at] = byte
            with self.assertRaises(ProtocolError, msg=f"{at}"):
                wire.read_devices(bytes(raw))
        for end in range(len(wire.devices(devices))):
            with self.assertRaises(ProtocolError):
                wire.read_devices(wire.devices(devices)[:end])

    def test_blocks(self) -> None:
        from isorun_channel.dtypes import DTYPES
        from isorun_channel.layout import dense

        body = wire.TensorBody(dense((2, 3), DTYPES["f32"]), True, 4096, 1, 2, "n", b"m")
        block = wire.Block(wire.LEGACY, True, 9, b"u" * 16, 3, b"h" * 64, b"e" * 64)
        raw = wire.tensor(body) + wire.block(block)
        self.assertEqual(wire.read_gpu(raw), (body, block))
        start = len(raw) - 160
        for at, byte in ((0, 2), (1, 5), (1, 1), (2, 2), (2, 0), (3, 1), (1, 0)):
            changed = bytearray(raw)
            changed[start + at] = byte
            with self.assertRaises(ProtocolError, msg=f"{at} {byte}"):
                wire.read_gpu(bytes(changed))
        for end in range(len(raw)):
            with self.assertRaises(ProtocolError):
                wire.read_gpu(raw[:end])


@unittest.skipUnless(shutil.which("gcc"), "the stand-in for libcuda needs gcc")
class StandIn(ChannelTest):
    library: ClassVar[str]

    @classmethod
    def setUpClass(cls) -> None:
        cls.library = tempfile.mkdtemp(prefix="isorun-channel-standin-")
        cls.addClassCleanup(shutil.rmtree, cls.library)
        subprocess.run([str(RUST / "tests/standin-libcuda/build"), cls.library], check=True)

    def setUp(self) -> None:
        super().setUp()
        self.gpu = tempfile.mkdtemp(prefix="isorun-channel-gpu-")
        self.addCleanup(shutil.rmtree, self.gpu)
        os.mkdir(f"{self.gpu}/shm")

    def run_one(self, command: List[str], more: Dict[str, str]) -> Any:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LD_LIBRARY_PATH": self.library,
                       "ISORUN_STANDIN_CUDA": self.gpu, "ISORUN_STANDIN_SHM": f"{self.gpu}/shm", **more}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process: Any) -> None:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        process.stdout.close()

    def python(self, code: str, *arguments: str, **more: str) -> Any:
        return self.run_one([sys.executable, "-u", "-c", code, self.directory, *arguments], more)

    def said(self, process: Any) -> List[str]:
        text, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, text)
        return text.splitlines()

    def steps(self, way: str, copied: bool) -> List[str]:
        still = 0 if way == "host" else 1
        return [f"step {n} {way} {copied} 3000000 {n} True {still}" for n in range(3)] + ["open 0"]

    def test_memory_of_another_process(self) -> None:
        for more in ({}, {"ISORUN_STANDIN_DELAY_MS": "100"}):
            producer = self.python(PRODUCE, **more)
            self.assertEqual(self.said(self.python(CONSUME, **more)), self.steps("legacy", False))
            self.assertEqual(self.said(producer), ["listening", "done"])

    def test_without_events(self) -> None:
        none = ("cuda=", "cuda_events=False, cuda=")
        for produce, consume in ((PRODUCE.replace(*none), CONSUME), (PRODUCE, CONSUME.replace(*none))):
            producer = self.python(produce, ISORUN_STANDIN_DELAY_MS="100")
            self.assertEqual(self.said(self.python(consume)), self.steps("legacy", False))
            self.assertEqual(self.said(producer), ["listening", "done"])

    def test_what_a_release_frees_may_use_the_endpoint(self) -> None:
        code = PRODUCE.replace("print(\"listening\")", """
import threading
class Array(Array):
    def __del__(self):
        # Another thread needs the endpoint's lock: it is not held here.
        other = threading.Thread(target=lambda: print("peers", endpoint.subscribers >= 0), daemon=True)
        other.start()
        other.join(3)
        print("stuck" if other.is_alive() else "free")
        super().__del__()
print("listening")
""", 1).replace("endpoint.publish(Array(number), name=\"step\", tag=number)", "sent(number)").replace(
            "endpoint.wait_for_subscribers", """
def sent(number):
    delivery = endpoint.publish(Array(number), name="step", tag=number)
    return endpoint.wait_for_room(20) or Waits(delivery)
class Waits:
    copy_reasons = ()
    def __init__(self, delivery):
        import weakref
        self.gone = weakref.ref(delivery)
    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while self.gone() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
endpoint.wait_for_subscribers""", 1)
        producer = self.python(code)
        self.assertEqual(self.said(self.python(CONSUME)), self.steps("legacy", False))
        lines = self.said(producer)
        self.assertNotIn("stuck", lines)
        self.assertEqual(lines.count("free"), 3, lines)

    def test_copies_are_told(self) -> None:
        for variables, arguments, copied, why in (
                ({"ISORUN_STANDIN_UUIDS": "b"}, (), True, "the other side uses GPU-"),
                ({"ISORUN_STANDIN_MIG": "1"}, (), True, "the other side cannot open legacy memory"),
                ({}, ("--no-gpu",), False, "the other side takes no memory of GPUs")):
            producer = self.python(PRODUCE)
            self.assertEqual(self.said(self.python(CONSUME, *arguments, **variables)), self.steps("host", copied))
            lines = self.said(producer)
            self.assertIn(why, lines[1])

    def test_expandable_segments(self) -> None:
        code = PRODUCE.replace("endpoint = ", SEGMENTS + "endpoint = ", 1)
        # Over two allocations; in one, whose allocator asked for no handle; in one that can be handed over.
        for arguments, why in ((("1",), "it lies in several"),
                               (("0", "one"), "did not ask for memory that can be shared"),
                               (("1", "one"), "")):
            producer = self.python(code, *arguments)
            lines = self.said(self.python(CONSUME))
            way, size = ("host True", 0) if why else ("vmm-fd False", 1)
            bytes_ = 2 << 20 if "one" in arguments else 3000000
            self.assertEqual(lines, [f"step {n} {way} {bytes_} {n} True {size}" for n in range(3)] + ["open 0"])
            lines = self.said(producer)
            self.assertEqual(lines[-1], "done")
            self.assertIn(why, lines[1]) if why else self.assertEqual(len(lines), 2)

    def test_equal_pids_are_the_drivers_error(self) -> None:
        producer = self.python(PRODUCE, ISORUN_STANDIN_PID="1")
        lines = self.said(self.python(CONSUME, ISORUN_STANDIN_PID="1"))
        self.assertEqual(len(lines), 4)
        self.assertIn("CUDA_ERROR_INVALID_CONTEXT (201)", lines[0])
        # All were released.
        self.assertEqual(self.said(producer)[-1], "done")

    def test_named_tensors_are_copies(self) -> None:
        code = PREAMBLE.replace('simplefilter("ignore")', 'simplefilter("error")') + """
array = Array(7)
try:
    channel.put("x", array)
except cuda.GpuCopyWarning as warning:
    print(warning)
warnings.simplefilter("ignore")
channel.put("x", array)
print(channel.get("x").tobytes() == bytes([7]) * 3000000)
"""
        lines = self.said(self.python(code))
        self.assertIn("copied to the host's memory", lines[0])
        self.assertEqual(lines[1:], ["True"])

    def test_no_driver(self) -> None:
        code = "from isorun_channel import cuda\ntry:\n    cuda.driver()\nexcept cuda.CudaError as e:\n    print(e)\n"
        said = self.said(self.python(code, ISORUN_STANDIN_CUDA="/nonexistent"))
        self.assertIn("cuInit: CUDA_ERROR_NO_DEVICE (100)", said[0])

    def test_dlpack_and_the_interface(self) -> None:
        producer = self.python(PRODUCE)
        consumer = self.python(CONSUME.split("for _ in range(3)", maxsplit=1)[0] + """
for _ in range(3):
    message = subscriber.receive(20)
    tensor = message.tensor
    shown = tensor.__cuda_array_interface__
    pointer, layout, capsule = cuda.dlpack.on_gpu(tensor.__dlpack__(max_version=(1, 0)))
    print(shown["typestr"], shown["shape"], shown["data"][0] == pointer, layout.shape, tensor.__dlpack_device__())
    del message, tensor
    assert cuda.open_allocations() == 1  # the capsule holds it
    del capsule
    cuda.dlpack.sweep(all=True)
    print(cuda.open_allocations())
""")
        self.assertEqual(self.said(consumer), ["|u1 (3000000,) True (3000000,) (2, 0)", "0"] * 3)
        self.assertEqual(self.said(producer), ["listening", "done"])

    def test_answers(self) -> None:
        serve = PREAMBLE + """
endpoint = channel.server("e", cuda=True)
print("listening")
request = endpoint.next_request(20)
request.reply(Array(42), name="answer")
while endpoint._peers:
    time.sleep(0.01)
"""
        ask = PREAMBLE + """
deadline = time.monotonic() + 20
while True:
    try:
        requester = channel.requester("e", cuda="--no-gpu" not in sys.argv)
        break
    except ic.NotFound:
        assert time.monotonic() < deadline
        time.sleep(0.01)
message = requester.request(name="x", timeout=20)
data = message.tensor.tobytes()
print(message.name, getattr(message.tensor, "came_by", "host"), data == bytes([42]) * len(data))
"""
        program = rust_program()
        for arguments, way in ((["--no-gpu"], "host"), ([], "legacy")):
            server = self.python(serve)
            self.assertEqual(self.said(self.python(ask, *arguments)), [f"answer {way} True"])
            self.said(server)
            if program:
                server = self.python(serve)
                lines = self.said(self.run_one([program, "consume", self.directory, "e", "--ask", *arguments], {}))
                self.assertEqual(lines, [f"answer tag=0 way={way} copied=false bytes=3000000 value=42 same=true"])
                self.said(server)
                server = self.run_one([program, "produce", self.directory, "e", "--serve"], {})
                rust = "vmm-fd" if way == "legacy" else way
                self.assertEqual(self.said(self.python(ask, *arguments)), [f"answer {rust} True"])
                self.said(server)

    def test_answers_that_nobody_releases(self) -> None:
        server = self.python(PREAMBLE + """
endpoint = channel.server("e", cuda=True, max_copy=0)
print("listening")
for _ in range(3):
    endpoint.next_request(20).reply(Array(42), name="answer")
request = endpoint.next_request(20)
try:
    request.reply(Array(1))
except cuda.CudaError as error:
    request.fail(str(error))
while endpoint._peers:
    time.sleep(0.01)
""")
        client = self.python(CONSUME.split("for _ in range(3)", maxsplit=1)[0].replace("subscribe(", "requester(").replace(
            "cuda=", "credits=2, cuda=") + """
first, second = subscriber.request(timeout=20), subscriber.request(timeout=20)
try:
    subscriber.request(timeout=20)
except ic.PeerError as error:
    print(error)
del first
third = subscriber.request(timeout=20)
print(third.tensor.came_by)
del second, third
subscriber.close()
try:
    channel.requester("e").request(timeout=20)
except ic.PeerError as error:
    print(error)
""")
        lines = self.said(client)
        self.assertEqual(len(lines), 3, lines)
        self.assertIn("too many requests", lines[0])
        self.assertEqual(lines[1], "legacy")
        self.assertIn("max_copy of the endpoint is 0", lines[2])
        self.said(server)

    def test_copies_that_are_not_made(self) -> None:
        producer = self.python(PRODUCE.replace("cuda=True", "cuda=True, max_copy=0").replace(
            "subscribers(1", "subscribers(2"))
        self.assertTrue(eventually(lambda: os.path.exists(f"{self.directory}/e.sock")))
        plain = BadPeer.client(self.directory, "e", wire.SUBSCRIBER)
        self.assertEqual(self.said(self.python(CONSUME)), self.steps("legacy", False))
        lines = self.said(producer)
        self.assertTrue(any("max_copy" in line for line in lines), lines)
        self.assertIsNone(plain.hear())
        plain.close()

    def test_what_a_listener_may_not_send(self) -> None:
        from isorun_channel.dtypes import DTYPES
        from isorun_channel.layout import dense

        listener = BadListener(self.directory, "e")
        client = self.python(PREAMBLE + """
try:
    channel.requester("e", cuda=True).request(timeout=20)
except ic.ProtocolError as error:
    print(error)
""")
        peer = listener.accept(features=wire.CUDA)
        header, devices = peer.hear()
        peer.say(wire.DEVICES, devices, header.sequence)
        peer.hear()
        body = wire.tensor(wire.TensorBody(dense((4,), DTYPES["u8"]), True, 4096, 0, 0, "n", b""))
        peer.say(wire.GPU, body + wire.block(wire.Block(wire.LEGACY, False, 9, b"u" * 16, 3, b"h" * 64, bytes(64))))
        self.assertEqual(peer.error(), wire.E_MALFORMED)
        self.assertIn("role", self.said(client)[0])
        peer.close()
        listener.close()

    def test_with_the_rust_client(self) -> None:
        program = rust_program()
        if not program:
            self.skipTest("the Rust client's program gpu was not built (cargo test --features cuda)")
        for kind in ("vmm-fd", "legacy", "pool", "fabric"):
            imex = {"ISORUN_STANDIN_IMEX": "1"}
            producer = self.run_one([program, "produce", self.directory, "e", "--kind", kind, "--count", "3", "--bytes",
                                     "3000000"], imex)
            self.assertEqual(self.said(self.python(CONSUME, **imex)), self.steps(kind, False))
            self.assertEqual(self.said(producer)[-1], "done")
        for arguments, way in (([], "legacy"), (["--no-gpu"], "host")):
            producer = self.python(PRODUCE)
            lines = self.said(self.run_one([program, "consume", self.directory, "e", "--count", "3", *arguments], {}))
            self.assertEqual(lines[1:4], [f"step tag={n} way={way} copied=false bytes=3000000 value={n} same=true"
                                          for n in range(3)])
            self.assertEqual(self.said(producer)[-1], "done")
