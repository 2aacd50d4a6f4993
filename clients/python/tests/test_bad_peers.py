"""Peers that break the rules: each is told so and cut off, nothing is left open, and the others notice nothing."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import socket
import time
import unittest
from typing import Any, Dict, Tuple

import isorun_channel as ic
from isorun_channel import wire
from isorun_channel.layout import dense
from isorun_channel.memory import IMMUTABLE, SHARED

from .support import BadListener, BadPeer, ChannelTest, descriptors, eventually

SIZE = 8192


def memfd(size: int = SIZE, seals: int = IMMUTABLE, allocated: bool = True, flags: int = 0) -> int:
    fd = os.memfd_create("bad", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, size)
    if allocated:
        os.posix_fallocate(fd, 0, size)
    fcntl.fcntl(fd, 1033, seals)
    return fd


def message(size: int = SIZE, shared: bool = False, shape: Any = (4,), **changes: Any) -> bytes:
    layout = dense(shape, "u8")._replace(**changes)
    return wire.tensor(wire.TensorBody(layout, shared, size, 0, 0, "bad", b""))


class Descriptors(ChannelTest):
    """What a receiver refuses of the descriptors that come with a tensor."""

    def kinds(self) -> Dict[str, Tuple[Any, bytes]]:
        pipe = os.pipe()
        self.addCleanup(os.close, pipe[1])
        plain = os.open(self.directory, os.O_TMPFILE | os.O_RDWR)
        os.write(plain, bytes(SIZE))
        disk = os.open("/", os.O_RDONLY)
        kinds = {
            "unsealed": (memfd(seals=0), message()),
            "not against growing": (memfd(seals=IMMUTABLE & ~4), message()),
            "not against shrinking": (memfd(seals=IMMUTABLE & ~2), message()),
            "not against writing": (memfd(seals=IMMUTABLE & ~8), message()),
            "seals not sealed": (memfd(seals=IMMUTABLE & ~1), message()),
            "shared, sold as immutable": (memfd(seals=SHARED), message()),
            "shared without its seal": (memfd(seals=7), message(shared=True)),
            "no seals possible": (os.memfd_create("bad"), message()),
            "smaller": (memfd(4096), message()),
            "larger": (memfd(SIZE * 2), message()),
            "with holes": (memfd(allocated=False), message()),
            "a pipe": (pipe[0], message()),
            "a file of the tmpfs": (plain, message()),
            "a directory": (disk, message()),
            "a socket": (os.dup(self.deaf.fileno()), message()),
            "a device": (os.open("/dev/zero", os.O_RDWR), message()),
            "a file of the disk": (os.open(__file__, os.O_RDONLY), message(os.stat(__file__).st_size)),
            "a file of /proc": (os.open("/proc/self/status", os.O_RDONLY), message()),
        }
        try:
            huge = os.memfd_create("bad", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
            os.ftruncate(huge, 2 << 20)
            fcntl.fcntl(huge, 1033, IMMUTABLE)
            kinds["huge pages"] = (huge, message(2 << 20))
        except OSError as error:
            print(f"skipped: huge pages: {error}")
        return kinds

    def setUp(self) -> None:
        super().setUp()
        self.deaf = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(self.deaf.close)

    def test_a_requester_is_refused(self) -> None:
        with self.channel.server("e") as server:
            for name, (fd, body) in self.kinds().items():
                with self.subTest(name):
                    before = descriptors()
                    peer = BadPeer.client(self.directory, "e", wire.REQUESTER)
                    peer.say(wire.REQUEST, body, fds=[fd])
                    self.assertEqual(peer.error(), wire.E_DESCRIPTOR)
                    peer.close()
                    self.assertTrue(eventually(lambda: descriptors() <= before))
                os.close(fd)
            self.assertRaises(ic.Timeout, server.next_request, 0)

    def test_a_publisher_is_refused(self) -> None:
        listener = BadListener(self.directory, "e")
        for name, (fd, body) in self.kinds().items():
            with self.subTest(name):
                import threading

                peers = []
                thread = threading.Thread(target=lambda: peers.append(listener.accept()))
                thread.start()
                subscriber = self.channel.subscribe("e")
                thread.join(10)
                before = descriptors()
                peers[0].say(wire.TENSOR, body, fds=[fd])
                with self.assertRaises(ic.DescriptorRefused):
                    subscriber.receive(10)
                self.assertEqual(peers[0].error(), wire.E_DESCRIPTOR)
                # It stays so.
                self.assertRaises(ic.ProtocolError, subscriber.receive, 0)
                self.assertEqual(descriptors(), before - 1)
                peers[0].close()
            os.close(fd)
        listener.close()

    def test_nobody_dies_of_what_is_accepted(self) -> None:
        """The peer tries to shrink and to punch what was accepted, from its own descriptor."""
        libc = ctypes.CDLL(None, use_errno=True)
        with self.channel.server("e") as server:
            for seals, shared in ((IMMUTABLE, False), (SHARED, True), (IMMUTABLE, True)):
                fd = memfd(seals=seals)
                peer = BadPeer.client(self.directory, "e", wire.REQUESTER)
                peer.say(wire.REQUEST, message(shared=shared, shape=(SIZE,)), fds=[fd])
                request = server.next_request(10)
                view = request.tensor.bytes_view()
                with self.assertRaises(OSError):
                    os.ftruncate(fd, 0)
                libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(SIZE))
                self.assertEqual(bytes(view), bytes(SIZE))
                self.assertEqual(os.fstat(fd).st_blocks * 512, SIZE)
                request.reply()
                peer.close()
                os.close(fd)


class Messages(ChannelTest):
    def bad(self) -> Dict[str, Any]:
        fd = memfd()
        self.addCleanup(os.close, fd)
        good = message()
        header = wire.header(wire.PING, 0, 2)
        return {
            "noise": lambda peer: peer.raw(random.Random(1).randbytes(300)),
            "one byte": lambda peer: peer.raw(b"I"),
            "too long": lambda peer: peer.raw(wire.header(wire.ERROR, 5000, 2) + bytes(5000)),
            "another version": lambda peer: peer.raw(header[:4] + b"\2" + header[5:]),
            "wrong length": lambda peer: peer.raw(header + b"x"),
            "old sequence": lambda peer: peer.raw(wire.header(wire.PING, 0, 1)),
            "a second HELLO": lambda peer: peer.say(wire.HELLO, wire.hello(wire.Hello(1, 1, 3, 0, 0, 0, 0))),
            "WELCOME": lambda peer: peer.say(wire.WELCOME, bytes(32), 1),
            "a body in PING": lambda peer: peer.say(wire.PING, b"x"),
            "PING with a descriptor": lambda peer: peer.say(wire.PING, fds=[fd]),
            "bad RELEASE": lambda peer: peer.say(wire.RELEASE, b"123"),
            "bad ERROR": lambda peer: peer.say(wire.ERROR, b"\0"),
            "no descriptor": lambda peer: peer.say(wire.REQUEST, good),
            "two descriptors": lambda peer: peer.say(wire.REQUEST, good, fds=[fd, fd]),
            "a flood of descriptors": lambda peer: peer.say(wire.REQUEST, good, fds=[fd] * 200),
            "a descriptor and no tensor": lambda peer: peer.say(wire.REQUEST, wire.tensor(
                wire.TensorBody(None, False, 0, 0, 0, "", b"")), fds=[fd]),
            "outside": lambda peer: peer.say(wire.REQUEST, message(offset=SIZE), fds=[fd]),
            "a wrong size": lambda peer: peer.say(wire.REQUEST, message(size=SIZE * 2, shape=(SIZE + 1,)), fds=[fd]),
            "TENSOR": lambda peer: peer.say(wire.TENSOR, good, fds=[fd]),
            "cut": lambda peer: peer.raw(wire.header(wire.REQUEST, len(good), 2) + good[:-3], [fd]),
        }

    def test_a_listener_refuses(self) -> None:
        with self.channel.listen("e") as endpoint, self.channel.connect("e") as other:
            for name, act in self.bad().items():
                with self.subTest(name):
                    before = descriptors()
                    peer = BadPeer.client(self.directory, "e")
                    act(peer)
                    self.assertIn(peer.error(), (wire.E_MALFORMED, wire.E_DESCRIPTOR))
                    peer.close()
                    self.assertTrue(eventually(lambda: descriptors() <= before))
            # The others go on.
            endpoint.publish(ic.tensor(b"x"))
            self.assertEqual(other.receive(5).tensor.tobytes(), b"x")
            self.assertRaises(ic.Timeout, endpoint.next_request, 0)
            self.assertEqual(len(endpoint._peers), 1)

    def test_a_subscriber_refuses(self) -> None:
        import threading

        fd = memfd()
        listener = BadListener(self.directory, "e")
        bad = {**self.bad(),
               "REQUEST": lambda peer: peer.say(wire.REQUEST, message(), fds=[fd]),
               "HELLO": lambda peer: peer.say(wire.HELLO, bytes(32)),
               "TENSOR without a descriptor": lambda peer: peer.say(wire.TENSOR, message()),
               "TENSOR with two": lambda peer: peer.say(wire.TENSOR, message(), fds=[fd, fd]),
               "a REPLY to a subscriber": lambda peer: peer.say(wire.REPLY, message(), 1, fds=[fd])}
        for name in ("TENSOR", "a second HELLO"):
            del bad[name]
        for name, act in bad.items():
            with self.subTest(name):
                peers = []
                thread = threading.Thread(target=lambda: peers.append(listener.accept()))
                thread.start()
                subscriber = self.channel.subscribe("e")
                thread.join(10)
                before = descriptors()
                act(peers[0])
                with self.assertRaises(ic.ProtocolError):
                    subscriber.receive(10)
                self.assertIn(peers[0].error(), (wire.E_MALFORMED, wire.E_DESCRIPTOR))
                self.assertEqual(descriptors(), before - 1)
                peers[0].close()
        listener.close()
        os.close(fd)

    def test_what_is_no_welcome(self) -> None:
        import threading

        fd = memfd()
        answers = {
            "TENSOR": lambda peer: peer.say(wire.TENSOR, message(), fds=[fd]),
            "TENSOR with two": lambda peer: peer.say(wire.TENSOR, message(), fds=[fd, fd]),
            "PONG": lambda peer: peer.say(wire.PONG, b"", 1),
            "WELCOME to somebody else": lambda peer: peer.say(
                wire.WELCOME, wire.welcome(wire.Welcome(1, 1, 0, 4, 4, 0)), 7),
        }
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(f"{self.directory}/e.sock")
        listener.listen(8)
        listener.settimeout(10)
        for name, act in answers.items():
            with self.subTest(name):
                def answer(act=act) -> None:
                    peer = BadPeer(listener.accept()[0])
                    peer.hear()
                    act(peer)
                    peer.error()
                    peer.close()
                before = descriptors()
                thread = threading.Thread(target=answer)
                thread.start()
                with self.assertRaises(ic.ProtocolError):
                    self.channel.subscribe("e")
                thread.join(10)
                self.assertEqual(descriptors(), before)
        listener.close()
        os.close(fd)

    def test_bad_greetings(self) -> None:
        hello = wire.Hello(1, 1, 3, 0, 4, 4, 0)
        with self.channel.listen("e") as endpoint:
            for name, code, body in (("a newer version", wire.E_VERSION, wire.hello(hello._replace(lowest=2, highest=3))),
                                     ("no role", wire.E_MALFORMED, wire.hello(hello._replace(roles=0))),
                                     ("credits", wire.E_MALFORMED, wire.hello(hello._replace(credits=1000))),
                                     ("short", wire.E_MALFORMED, b"x")):
                with self.subTest(name):
                    peer = BadPeer.client(self.directory, "e", greet=False)
                    peer.say(wire.HELLO, body)
                    self.assertEqual(peer.error(), code)
                    peer.close()
            peer = BadPeer.client(self.directory, "e", greet=False)
            peer.say(wire.PING)
            self.assertEqual(peer.error(), wire.E_MALFORMED)
            peer.close()
            # One that is newer, but speaks our version, too, and asks for features that we do not have.
            peer = BadPeer.client(self.directory, "e", greet=False)
            peer.say(wire.HELLO, wire.hello(hello._replace(highest=9, features=0xFF)))
            self.assertEqual(wire.read_welcome(peer.hear()[1], hello._replace(features=0xFF)).features, 0)
            peer.close()
            self.assertTrue(eventually(lambda: not endpoint._peers))

    def test_a_silent_peer_is_cut_off_in_the_handshake_only(self) -> None:
        from isorun_channel import endpoint as module

        kept, module.HANDSHAKE = module.HANDSHAKE, 0.2
        try:
            with self.channel.listen("e"):
                silent = BadPeer.client(self.directory, "e", greet=False)
                greeted = BadPeer.client(self.directory, "e")
                begin = time.monotonic()
                self.assertIsNone(silent.hear())
                self.assertLess(time.monotonic() - begin, 5)
                time.sleep(0.3)
                greeted.say(wire.PING)
                self.assertEqual(greeted.hear()[0].kind, wire.PONG)
                silent.close()
                greeted.close()
        finally:
            module.HANDSHAKE = kept

    def test_bad_welcomes(self) -> None:
        import threading

        listener = BadListener(self.directory, "e")
        good = wire.Welcome(1, 1, 0, 4, 4, 0)
        answers = {"roles": good._replace(roles=2), "version": good._replace(version=2),
                   "features": good._replace(features=1), "no credits": good._replace(credits=0),
                   "policy": good._replace(policy=1)}
        for name, answer in answers.items():
            def accept() -> None:
                peer = BadPeer(listener.socket.accept()[0])
                header, _ = peer.hear()
                peer.say(wire.WELCOME, wire.welcome(answer), header.sequence)
                peer.error()
                peer.close()

            with self.subTest(name):
                thread = threading.Thread(target=accept)
                thread.start()
                self.assertRaises(ic.ProtocolError, self.channel.subscribe, "e")
                thread.join(10)
        listener.close()

    def test_foreign_releases_and_answers_are_ignored(self) -> None:
        with self.channel.listen("e") as endpoint:
            peer = BadPeer.client(self.directory, "e")
            peer.say(wire.RELEASE, wire.release([1, 99, 1 << 60]))
            delivery = endpoint.publish(ic.tensor(b"x"), shared=True)
            header, _ = peer.hear()
            self.assertEqual(delivery.pending, 1)
            peer.say(wire.RELEASE, wire.release([header.sequence, header.sequence]))
            delivery.wait(5)
            peer.close()

    def test_credits_are_kept_to(self) -> None:
        """A subscriber that releases nothing gets its credits' worth, and no more."""
        with self.channel.publisher("e") as publisher:
            peer = BadPeer.client(self.directory, "e", wire.SUBSCRIBER)
            peer.socket.settimeout(0.2)
            for i in range(50):
                publisher.publish(ic.tensor(b"x"))
            got = 0
            try:
                while peer.hear() is not None:
                    got += 1
            except socket.timeout:
                pass
            self.assertEqual(got, 4)
            peer.close()

    def test_noise_on_live_connections(self) -> None:
        """Good messages with changed bytes against a living endpoint: it answers, or cuts off, and goes on."""
        seconds = float(os.environ.get("ISORUN_FUZZ_SECONDS", "2"))
        chance = random.Random(int(os.environ.get("ISORUN_FUZZ_SEED", "7")))
        fd = memfd()
        count = cut = 0
        with self.channel.listen("e", peers=256) as endpoint:
            before = descriptors()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                peer = BadPeer.client(self.directory, "e")
                peer.socket.settimeout(0.01)
                for _ in range(8):
                    peer.sequence += 1
                    packet = bytearray(wire.header(wire.REQUEST, len(message()), peer.sequence) + message())
                    for _ in range(chance.randrange(3)):
                        packet[chance.randrange(len(packet))] = chance.choice((0, 1, 0x80, 0xFF, chance.randrange(256)))
                    count += 1
                    try:
                        peer.raw(bytes(packet), [fd] * chance.choice((1, 1, 1, 0, 2)))
                    except (BrokenPipeError, ConnectionResetError):
                        cut += 1
                        break
                peer.close()
                try:
                    while True:
                        request = endpoint.next_request(0)
                        # With stride 0 it may claim to be large; but all of it is there.
                        low, high = request.tensor.layout.extent()
                        self.assertTrue(0 <= low <= high <= SIZE)
                        request.tensor.memory.buffer(low, high - low).tobytes()
                        request._peer = None
                except (ic.Timeout, AttributeError):
                    pass
                request = None
            self.assertTrue(eventually(lambda: not endpoint._peers))
            while endpoint._requests:
                endpoint._requests.pop()._peer = None
            self.assertTrue(eventually(lambda: descriptors() <= before), (descriptors(), before))
            self.assertTrue(endpoint._thread.is_alive())
        os.close(fd)
        self.assertGreater(cut, 0)
        if seconds > 10:
            print(f"{count} packets, {cut} connections cut off while they sent")


if __name__ == "__main__":
    unittest.main()
