"""What the tests share: a channel of their own, other processes, and peers that break the rules."""

from __future__ import annotations

import array
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from typing import Any, Callable, List, Optional

import isorun_channel as ic
from isorun_channel import wire

SOURCE = pathlib.Path(__file__).resolve().parents[1] / "src"

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

needs_numpy = unittest.skipIf(numpy is None, "numpy is not installed")


class ChannelTest(unittest.TestCase):
    """A test with a channel: a directory on a tmpfs of the machine, if it has one."""

    def setUp(self) -> None:
        shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = tempfile.mkdtemp(prefix="isorun-channel-test-", dir=shm)
        self.addCleanup(shutil.rmtree, self.directory)
        self.channel = ic.Channel(self.directory)
        self.addCleanup(self.channel.close)

    def process(self, code: str, *arguments: Any) -> "Process":
        """Another process that runs ``code`` with the channel as ``channel``; it is ended with the test."""
        process = Process(code, self.directory, *arguments)
        self.addCleanup(process.end)
        return process

    def entries(self) -> List[str]:
        return sorted(os.listdir(self.directory))


class Lines:
    """Lines from a pipe, each within a minute: what hangs is a failure, not a wait."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._data = b""

    def next(self, timeout: float = 60) -> Optional[str]:
        """The next line; ``None``: the pipe has ended."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._data:
            if not select.select([self._pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise AssertionError(f"no line came in {timeout} s; before that: {self._data!r}")
            more = os.read(self._pipe.fileno(), 4096)
            if not more:
                return None
            self._data += more
        line, _, self._data = self._data.partition(b"\n")
        return line.decode()


class Process:
    """A process of ours that speaks by lines on its standard output, and is spoken to on its input."""

    def __init__(self, code: str, directory: str, *arguments: Any) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        preamble = "import sys, os, time\nimport isorun_channel as ic\nchannel = ic.Channel(sys.argv[1])\n"
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-c", preamble + code, directory, *map(str, arguments)], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lines = Lines(self._process.stdout)
        self.pid = self._process.pid

    def line(self) -> str:
        """The next line that it prints; an error if it ends instead."""
        line = self._lines.next()
        if line is None:
            raise AssertionError(f"the process ended with {self._process.wait(10)}")
        return line

    def tell(self, line: str = "") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait(10)

    def wait(self, timeout: float = 20) -> int:
        """Its exit status; minus the number of the signal that ended it."""
        return self._process.wait(timeout)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def eventually(what: Callable[[], bool], timeout: float = 10) -> bool:
    """Waits until something is so."""
    deadline = time.monotonic() + timeout
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


class BadPeer:
    """A socket that says what it is told to, byte for byte."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.socket.settimeout(10)
        self.sequence = 0

    @classmethod
    def client(cls, directory: str, endpoint: str, roles: int = 3, greet: bool = True) -> "BadPeer":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(f"{directory}/{endpoint}.sock")
        peer = cls(sock)
        if greet:
            peer.say(wire.HELLO, wire.hello(wire.Hello(1, 1, roles, 0, 0, wire.DEFAULT, 0)))
            header, _ = peer.hear()
            assert header.kind == wire.WELCOME, header
        return peer

    def say(self, kind: int, body: bytes = b"", refers: int = 0, flags: int = 0, fds: Any = ()) -> int:
        self.sequence += 1
        self.raw(wire.header(kind, len(body), self.sequence, refers, flags) + body, fds)
        return self.sequence

    def raw(self, packet: bytes, fds: Any = ()) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([packet], ancillary)

    def hear(self) -> Any:
        """The next message: its header and body. ``None``: the connection has ended."""
        try:
            data = self.socket.recv(8192)
        except ConnectionResetError:
            data = b""
        return (wire.read_header(data), data[wire.HEADER_SIZE:]) if data else None

    def error(self) -> Optional[int]:
        """Reads to the end of the connection; the code of the ERROR that it ended with."""
        code = None
        while True:
            message = self.hear()
            if message is None:
                return code
            if message[0].kind == wire.ERROR:
                code = wire.read_error(message[1])[0]

    def close(self) -> None:
        self.socket.close()


class BadListener:
    """An endpoint that greets as it should and then says what it is told to."""

    def __init__(self, directory: str, endpoint: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind(f"{directory}/{endpoint}.sock")
        self.socket.listen(8)
        self.socket.settimeout(10)

    def accept(self, credits: int = 4, features: int = 0) -> BadPeer:
        peer = BadPeer(self.socket.accept()[0])
        header, body = peer.hear()
        asked = wire.read_hello(body)
        peer.say(wire.WELCOME, wire.welcome(wire.Welcome(1, asked.roles, features, credits, 4, asked.policy)),
                 header.sequence)
        return peer

    def close(self) -> None:
        self.socket.close()
