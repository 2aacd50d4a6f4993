"""Two isorun containers, and a container and the host, with private ipc, pid and network namespaces: they meet in a
channel. As root, with isorun built (or $ISORUN), in a root of Debian 13 that integration/channels/python-root makes.

The channel is made by `isorun channel create`, and the containers ask for it by annotation. An isorun that has no
channels yet gets a tmpfs by a bind mount of config.json instead.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest
import uuid
from typing import Any, Dict, List, Optional

import isorun_channel as ic

from .support import SOURCE, Lines, eventually

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]


def isorun() -> Optional[str]:
    """The binary to test: $ISORUN, or the newest one that is built here."""
    named = os.environ.get("ISORUN")
    if named:
        return named
    found = [path for path in (REPOSITORY / "target").glob("**/isorun")
             if path.parent.name in ("debug", "release") and path.is_file() and os.access(path, os.X_OK)]
    return str(max(found, key=os.path.getmtime)) if found else None


def root(*options: str) -> str:
    """The containers' root; it is made at the first call."""
    made = subprocess.run([str(REPOSITORY / "integration/channels/python-root"), *options], stdout=subprocess.PIPE,
                          text=True, timeout=900)
    if made.returncode:
        raise unittest.SkipTest("no root of Debian could be made: integration/channels/python-root failed")
    return made.stdout.strip()


class Container:
    """A container that runs a Python program with the channel as ``channel``."""

    def __init__(self, test: "InContainers", code: str, *, read_only: bool = False, shm: bool = False,
                 user: bool = False) -> None:
        self.id = f"isotest-py-{uuid.uuid4().hex[:12]}"
        self.bundle = os.path.join(test.work, self.id)
        os.mkdir(self.bundle)
        preamble = "import os, sys, time\nimport isorun_channel as ic\nchannel = ic.Channel(os.environ['ISORUN_CHANNELS'])\n"
        config = self._config(test, preamble + code, read_only, shm, user)
        with open(f"{self.bundle}/config.json", "w") as file:
            json.dump(config, file)
        self._command = [test.binary, "--root", f"{test.work}/state"]
        self._running = subprocess.Popen([*self._command, "run", "--bundle", self.bundle, self.id],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lines = Lines(self._running.stdout)
        test.addCleanup(self.end)

    def _config(self, test: "InContainers", code: str, read_only: bool, shm: bool, user: bool) -> Dict[str, Any]:
        subprocess.run([test.binary, "spec", "--bundle", self.bundle], check=True)
        with open(f"{self.bundle}/config.json") as file:
            config: Dict[str, Any] = json.load(file)
        config["root"] = {"path": test.rootfs, "readonly": True}
        process = config["process"]
        process["terminal"] = False
        process["args"] = ["/usr/bin/python3", "-u", "-c", code]
        process["env"] += ["PYTHONPATH=/opt/isorun-channel", "PYTHONDONTWRITEBYTECODE=1", "TMPDIR=/dev/shm",
                           "HOME=/tmp"]
        bind = ["bind", "nosuid", "nodev", "noexec"]
        mounts: List[Dict[str, Any]] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
        mounts += [
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
            {"destination": "/opt/isorun-channel", "type": "bind", "source": str(SOURCE), "options": [*bind, "ro"]},
        ]
        config["mounts"] = mounts
        access = "ro" if read_only else "rw"
        if test.by_annotation:
            config["annotations"] = {"io.isorun.channels": f"{test.name}:{access}"}
            if shm:
                config["annotations"]["io.isorun.shm"] = f"channel:{test.name}"
        else:
            process["env"].append(f"ISORUN_CHANNELS={test.name}")
            channel = {"type": "bind", "source": test.channel_path, "options": [*bind, access]}
            mounts.append({**channel, "destination": f"/run/isorun/channels/{test.name}"})
            if shm:
                config["mounts"] = [mount for mount in mounts if mount["destination"] != "/dev/shm"]
                config["mounts"].append({**channel, "destination": "/dev/shm"})
        if user:
            config["linux"]["namespaces"].append({"type": "user"})
            for kind in ("uidMappings", "gidMappings"):
                config["linux"][kind] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        return config

    def line(self) -> str:
        """The next line that its program prints."""
        line = self._lines.next()
        if line is None:
            raise AssertionError(f"container {self.id} ended with {self._running.wait(20)}")
        return line

    def tell(self) -> None:
        assert self._running.stdin is not None
        self._running.stdin.write(b"\n")
        self._running.stdin.flush()

    def kill(self) -> None:
        """Kills all of it, by the runtime."""
        subprocess.run([*self._command, "kill", self.id, "KILL"], check=True)
        self._running.wait(20)

    def wait(self) -> int:
        return self._running.wait(60)

    def end(self) -> None:
        subprocess.run([*self._command, "delete", "--force", self.id], stderr=subprocess.DEVNULL)
        if self._running.poll() is None:
            self._running.kill()
        self._running.wait(20)
        for stream in (self._running.stdin, self._running.stdout):
            if stream is not None:
                stream.close()


class InContainers(unittest.TestCase):
    """What such a test needs, or it is skipped."""

    binary: str
    rootfs: str

    @classmethod
    def setUpClass(cls) -> None:
        if os.geteuid() != 0:
            raise unittest.SkipTest("containers are made as root here")
        found = isorun()
        if found is None:
            raise unittest.SkipTest("isorun is not built (cargo build)")
        cls.binary = found
        cls.rootfs = cls.find_root()

    @classmethod
    def find_root(cls) -> str:
        return root()

    def setUp(self) -> None:
        self.work = tempfile.mkdtemp(prefix="isorun-channel-test-")
        self.addCleanup(shutil.rmtree, self.work)
        self.name = f"isotest-py-{uuid.uuid4().hex[:12]}"
        known = subprocess.run([self.binary, "channel", "list"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.by_annotation = known.returncode == 0
        if self.by_annotation:
            made = subprocess.run([self.binary, "channel", "create", self.name, "--size", "64m"],
                                  stdout=subprocess.PIPE, text=True, check=True)
            self.addCleanup(subprocess.run, [self.binary, "channel", "remove", "--force", self.name], check=True)
            self.channel_path = made.stdout.strip()
        else:
            self.channel_path = f"{self.work}/channel"
            os.mkdir(self.channel_path)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec,size=64m,mode=1777", "channel",
                            self.channel_path], check=True)
            self.addCleanup(subprocess.run, ["umount", "--lazy", self.channel_path], check=True)
        self.channel = ic.Channel(self.name if self.by_annotation else self.channel_path)
        self.addCleanup(self.channel.close)

    def container(self, code: str, **options: Any) -> Container:
        return Container(self, code, **options)


class Containers(InContainers):
    SUBSCRIBE = """
def connect():
    while True:
        try:
            return channel.subscribe("e")
        except ic.NotFound:
            time.sleep(0.02)
subscriber = connect()
print("ready")
"""

    def test_container_to_container(self) -> None:
        """The same pages: one inode in both, and what the one writes the other sees."""
        producer = self.container("""
publisher = channel.publisher("e")
publisher.wait_for_subscribers(1, 30)
tensor = channel.empty((4, 1024), "f32")
view = tensor.buffer()
view[3, 7] = 2.5
delivery = publisher.publish(tensor, name="w", shared=True)
print(os.fstat(tensor.fileno()).st_ino, os.getpid(), os.readlink("/proc/self/ns/ipc"))
sys.stdin.readline()
view[3, 7] = 4.5
print("written")
delivery.wait(30)
frozen = channel.empty(1 << 22, "u8")
frozen.bytes_view()[-1] = 1
publisher.publish(frozen).wait(30)
""")
        consumer = self.container(self.SUBSCRIBE + """
with subscriber.receive(30) as message:
    view = message.tensor.buffer()
    print(os.fstat(message.tensor.fileno()).st_ino, os.getpid(), os.readlink("/proc/self/ns/ipc"))
    print(message.name, view[3, 7])
    sys.stdin.readline()
    print(view[3, 7])
    del view
with subscriber.receive(30) as message:
    print(len(message.tensor.bytes_view()), message.tensor.bytes_view()[-1])
""")
        self.assertEqual(consumer.line(), "ready")
        here, there = producer.line().split(), consumer.line().split()
        self.assertEqual(here[0], there[0])
        self.assertEqual((here[1], there[1]), ("1", "1"))
        self.assertNotEqual(here[2], there[2])
        self.assertEqual(consumer.line(), "w 2.5")
        producer.tell()
        self.assertEqual(producer.line(), "written")
        consumer.tell()
        self.assertEqual(consumer.line(), "4.5")
        self.assertEqual(consumer.line(), f"{1 << 22} 1")
        self.assertEqual((producer.wait(), consumer.wait()), (0, 0))
        self.assertEqual(os.listdir(self.channel_path), [])

    def test_host_and_container(self) -> None:
        """The host asks a container, and named tensors cross both ways."""
        container = self.container("""
with channel.server("double") as server:
    print("ready")
    with server.next_request(60) as request:
        view = request.tensor.buffer()
        request.reply(channel.tensor(memoryview(bytes(2 * x for x in view.tolist()))))
        del view
channel.put("made-inside", channel.tensor(channel.get("made-outside")))
""")
        self.channel.put("made-outside", ic.tensor(b"outside"))
        self.assertEqual(container.line(), "ready")
        with self.channel.requester("double") as requester:
            with requester.request(ic.tensor(bytes([1, 2, 3])), timeout=30) as answer:
                self.assertEqual(answer.tensor.tolist(), [2, 4, 6])
        self.assertEqual(container.wait(), 0)
        self.assertEqual(self.channel.get("made-inside").tobytes(), b"outside")

    def test_a_read_only_member_reads_and_cannot_listen_or_write(self) -> None:
        container = self.container("""
for step in (lambda: channel.publisher("e2"), lambda: channel.put("x", channel.empty(1))):
    try:
        step()
    except ic.ChannelError as error:
        print("EROFS" in str(error), error)
""" + self.SUBSCRIBE + "print(subscriber.receive(30).tensor.tobytes(), channel.get('n').tobytes())", read_only=True)
        self.channel.put("n", ic.tensor(b"named"))
        with self.channel.publisher("e") as publisher:
            self.assertRegex(container.line(), "^True .*read-only")
            self.assertRegex(container.line(), "^True ")
            self.assertEqual(container.line(), "ready")
            publisher.wait_for_subscribers(1, 30)
            publisher.publish(ic.tensor(b"sent"))
            self.assertEqual(container.line(), "b'sent' b'named'")
        self.assertEqual(container.wait(), 0)

    def test_in_a_user_namespace(self) -> None:
        os.chmod(self.work, 0o711)
        container = self.container(self.SUBSCRIBE + "print(subscriber.receive(30).tensor.tobytes(), os.getuid())",
                                   user=True)
        with self.channel.publisher("e") as publisher:
            self.assertEqual(container.line(), "ready")
            publisher.publish(ic.tensor(b"sent"))
            self.assertEqual(container.line(), "b'sent' 0")
        self.assertEqual(container.wait(), 0)

    def test_killed_containers(self) -> None:
        """A producer container that is killed in mid-transfer: what came stays whole; and a consumer's tensors come
        back; the memory of both is gone at the end."""
        with open("/proc/meminfo") as file:
            before = next(int(line.split()[1]) for line in file if line.startswith("Shmem:"))
        producer = self.container("""
publisher = channel.publisher("e")
publisher.wait_for_subscribers(1, 30)
i = 0
while True:
    publisher.publish(ic.tensor(bytes([i % 251]) * (1 << 20)), tag=i % 251)
    i += 1
""")
        self.assertTrue(eventually(lambda: os.path.exists(f"{self.channel_path}/e.sock"), 30))
        with self.channel.subscribe("e") as subscriber:
            for _ in range(5):
                subscriber.receive(30).release()
            held = subscriber.receive(30)
            producer.kill()
            kept = held.tensor.bytes_view()
            while True:
                try:
                    with subscriber.receive(30) as message:
                        self.assertEqual(message.tensor.tobytes(), bytes([message.tag]) * (1 << 20))
                except ic.Closed:
                    break
            self.assertEqual(bytes(kept), bytes([held.tag]) * (1 << 20))
            held.release()
            del kept
        with self.channel.publisher("e") as publisher:
            consumer = self.container(self.SUBSCRIBE + "kept = [subscriber.receive(30) for _ in range(2)]\nprint('holds')\n"
                                      "time.sleep(600)")
            publisher.wait_for_subscribers(1, 30)
            deliveries = [publisher.publish(ic.tensor(bytes(1 << 20)), shared=True) for _ in range(2)]
            consumer.line()
            self.assertEqual(consumer.line(), "holds")
            consumer.kill()
            for delivery in deliveries:
                delivery.wait(30)
        del deliveries, delivery

        def freed() -> bool:
            with open("/proc/meminfo") as file:
                now = next(int(line.split()[1]) for line in file if line.startswith("Shmem:"))
            return now < before + 65536

        self.assertTrue(eventually(freed, 20))

    def test_the_time_of_a_hand_over(self) -> None:
        """From one container to another: printed, and bounded loosely, because the machine may be busy."""
        producer = self.container("""
publisher = channel.publisher("e")
publisher.wait_for_subscribers(1, 30)
for size in (4096, 1 << 28):
    tensor = channel.empty(size, "u8").freeze()
    for _ in range(100):
        publisher.publish(tensor, tag=time.perf_counter_ns()).wait(30)
        time.sleep(0.001)
""")
        consumer = self.container(self.SUBSCRIBE + """
import statistics
for size in (4096, 1 << 28):
    times = []
    for _ in range(100):
        with subscriber.receive(30) as message:
            message.tensor.bytes_view()[size - 1]
            times.append((time.perf_counter_ns() - message.tag) / 1000)
    print(size, statistics.median(times), min(times))
""")
        consumer.line()
        small, large = ([float(word) for word in consumer.line().split()] for _ in range(2))
        print(f"container to container: 4 KiB median {small[1]:.0f} µs, best {small[2]:.0f}; 256 MiB median "
              f"{large[1]:.0f} µs, best {large[2]:.0f}")
        self.assertLess(large[2], max(5 * small[2], 2000))
        self.assertEqual((producer.wait(), consumer.wait()), (0, 0))


TORCH = """
import pickle, socket
import torch, torch.multiprocessing as mp
from multiprocessing.reduction import ForkingPickler
mp.set_sharing_strategy("file_system")
def connect(make):
    end = time.monotonic() + 60
    while True:
        try:
            return make()
        except (ic.NotFound, OSError):
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
"""


class Torch(InContainers):
    """torch in two containers. Its root is large, so it is only used where it was asked for."""

    @classmethod
    def setUpClass(cls) -> None:
        if not os.environ.get("ISORUN_TORCH_ROOT"):
            raise unittest.SkipTest("ISORUN_TORCH_ROOT names no root with torch "
                                    "(integration/channels/python-root --torch makes one)")
        super().setUpClass()

    @classmethod
    def find_root(cls) -> str:
        return os.environ["ISORUN_TORCH_ROOT"]

    def test_tensors_of_torch_by_the_client(self) -> None:
        consumer = self.container(TORCH + """
with connect(lambda: channel.subscribe("e")) as subscriber:
    print("ready")
    for message in subscriber:
        with message:
            t = message.tensor.torch()
            print(message.name, t.dtype, t.float().sum().item(), t.data_ptr() == message.tensor.address)
            del t
""")
        producer = self.container(TORCH + """
with channel.publisher("e") as publisher:
    publisher.wait_for_subscribers(1, 120)
    for kind in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        tensor = channel.empty((64, 64), kind)
        tensor.torch().copy_(torch.ones(64, 64))
        publisher.publish(tensor, name="in place")
        publisher.publish(torch.ones(3, 4).to(kind).t(), name="copied")
    publisher.drain(30)
    print("done")
""")
        self.assertEqual(consumer.line(), "ready")
        for kind in ("float32", "bfloat16", "float8_e4m3fn"):
            self.assertEqual(consumer.line(), f"in place torch.{kind} 4096.0 True")
            self.assertEqual(consumer.line(), f"copied torch.{kind} 12.0 True")
        self.assertEqual(producer.line(), "done")
        self.assertEqual((producer.wait(), consumer.wait()), (0, 0))

    def test_torch_multiprocessing_over_the_channels_shm(self) -> None:
        """torch's own way of sharing, with the channel as both containers' /dev/shm: a file there, mapped by both,
        and torch_shm_manager's socket beside it."""
        taker = self.container(TORCH + """
listener = socket.socket(socket.AF_UNIX)
listener.bind(channel.path + "/mp.sock")
listener.listen()
print("ready")
peer, _ = listener.accept()
with peer.makefile("rb") as file:
    tensor = pickle.load(file)
print(tensor.shape, tensor.sum().item(), tensor.is_shared())
tensor[0, 0] = 100
peer.sendall(b"x")
peer.recv(1)
print(tensor[0, 1].item())
""", shm=True)
        self.assertEqual(taker.line(), "ready")
        giver = self.container(TORCH + """
tensor = torch.ones(256, 1024)
tensor.share_memory_()
peer = connect(lambda: socket.socket(socket.AF_UNIX))
peer.connect(channel.path + "/mp.sock")
peer.sendall(bytes(ForkingPickler.dumps(tensor)))
peer.recv(1)
print(tensor[0, 0].item(), [name for name in os.listdir("/dev/shm") if name.startswith("torch_")] != [])
tensor[0, 1] = 200
peer.sendall(b"x")
print(os.readlink("/proc/self/ns/ipc"), os.getpid())
""", shm=True)
        self.assertEqual(taker.line(), "torch.Size([256, 1024]) 262144.0 True")
        self.assertEqual(giver.line(), "100.0 True")
        self.assertEqual(taker.line(), "200.0")
        where = giver.line().split()
        self.assertEqual(where[1], "1")
        self.assertNotEqual(where[0], os.readlink("/proc/self/ns/ipc"))
        self.assertEqual((giver.wait(), taker.wait()), (0, 0))
        # Nothing of torch's is left in the channel.
        self.assertTrue(eventually(lambda: not [name for name in os.listdir(self.channel_path)
                                                if name.startswith("torch_")], 20))


if __name__ == "__main__":
    unittest.main()
