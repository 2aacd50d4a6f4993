"""One connection: packets out, packets and descriptors in, each checked as far as it can be by itself."""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Deque, List, NamedTuple, Optional, Tuple, Union

from . import wire
from .errors import Closed, DescriptorRefused, ProtocolError, Timeout, from_os
from .memory import Memory, check
from .tensor import Tensor

if TYPE_CHECKING:
    from .cuda import Gpu, GpuTensor

_NOT_YET = (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS)
# As plain numbers: the enumeration's operators are slow.
_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RECEIVE = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_SOL_SOCKET, _SCM_RIGHTS = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS)
_FD = struct.Struct("@i")
_ONE_DESCRIPTOR = socket.CMSG_LEN(_FD.size)


_numbers = itertools.count(1)


class Packet(NamedTuple):
    """A message that was received. Its descriptor, if it has one, is the reader's to close."""

    header: wire.Header
    body: bytes
    fd: Optional[int]


class Link:
    """A connected socket. Sending never blocks and is safe from several threads; receiving is for one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        # Tells its allocations on GPUs from those of others. Not id(): that is used again.
        self._number = next(_numbers)
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)
        self._sent = 0
        self._seen = 0
        self._sending = threading.Lock()
        self._releases: Deque[int] = deque()
        self.closed = False

    def fileno(self) -> int:
        """The socket, for poll(2)."""
        return self._sock.fileno()

    def shut(self) -> None:
        """Ends the connection for the other side, at once; the descriptor stays until :meth:`close`."""
        if not self.closed:
            self.closed = True
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        """Ends the connection."""
        self.shut()
        # What was not read makes the kernel say ECONNRESET to the other side before it shows it our last message.
        try:
            for _ in range(64):
                data, ancillary, _, _ = self._sock.recvmsg(1, _ONE_DESCRIPTOR, _RECEIVE)
                for _, _, payload in ancillary:
                    os.close(_FD.unpack_from(payload)[0])
                if not data:
                    break
        except OSError:
            pass
        self._sock.close()

    def forget(self) -> None:
        """Closes this process's descriptor only: for a child made by fork."""
        self.closed = True
        self._sock.close()

    def send(self, kind: int, body: bytes = b"", refers: int = 0, flags: int = 0, fd: Optional[int] = None
             ) -> Optional[int]:
        """Sends one message and returns its sequence; ``None``: the socket is full, nothing was sent.

        :raises Closed: the other side has gone.
        """
        with self._sending:
            sent = self._send(kind, body, refers, flags, fd)
        self._flush()
        return sent

    def _send(self, kind: int, body: bytes, refers: int = 0, flags: int = 0, fd: Optional[int] = None
              ) -> Optional[int]:
        sequence = self._sent + 1
        packet = wire.header(kind, len(body), sequence, refers, flags) + body
        try:
            if fd is None:
                self._sock.send(packet, _SEND)
            else:
                self._sock.sendmsg([packet], [(_SOL_SOCKET, _SCM_RIGHTS, _FD.pack(fd))], _SEND)
        except OSError as error:
            if error.errno in _NOT_YET:
                return None
            raise self._gone(error) from None
        self._sent = sequence
        return sequence

    def _gone(self, error: OSError) -> Closed:
        if self.closed or error.errno == errno.EBADF:
            return Closed("the connection was closed")
        if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
            return Closed("the other side has gone")
        return Closed(str(from_os("use the connection", error)))

    def release(self, sequence: int) -> None:
        """Tells the other side that a tensor is not used any more. May be called from anywhere, also from an
        object's end in the middle of another call: it takes no lock that it would have to wait for."""
        self._releases.append(sequence)
        self._flush()

    def _flush(self) -> None:
        while self._releases and self._sending.acquire(blocking=False):
            try:
                while self._releases:
                    batch = [self._releases[0]]
                    while len(batch) < min(64, len(self._releases)):
                        batch.append(self._releases[len(batch)])
                    if self._send(wire.RELEASE, wire.release(batch)) is None:
                        return  # with the next message
                    for _ in batch:
                        self._releases.popleft()
            except Closed:
                self._releases.clear()  # the end of a connection releases everything
            finally:
                self._sending.release()

    @property
    def unsent(self) -> bool:
        """Whether releases wait for room in the socket."""
        return bool(self._releases)

    def flush(self) -> None:
        """Sends releases that did not go through."""
        self._flush()

    def receive(self) -> Optional[Packet]:
        """The next message, or ``None``: there is none yet.

        :raises Closed: the other side has gone.
        :raises ProtocolError: it breaks the protocol. The caller closes the link.
        """
        for last in (False, True):
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(wire.MAX_MESSAGE, _ONE_DESCRIPTOR, _RECEIVE)
                break
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return None
                # It is said once, before messages that are still there: an ERROR that tells why, for example.
                if error.errno != errno.ECONNRESET or last:
                    raise self._gone(error) from None
        if not ancillary and data and not flags & _CUT:
            return Packet(self._header(data), data[wire.HEADER_SIZE:], None)
        if len(ancillary) == 1 and data and not flags & _CUT:
            level, kind, payload = ancillary[0]
            if level == _SOL_SOCKET and kind == _SCM_RIGHTS and len(payload) == _FD.size:
                fd: int = _FD.unpack(payload)[0]
                try:
                    header = self._header(data)
                    if header.kind not in wire.WITH_DESCRIPTOR:
                        raise ProtocolError(f"a {wire.KINDS[header.kind]} message with a descriptor")
                except ProtocolError:
                    os.close(fd)
                    raise
                return Packet(header, data[wire.HEADER_SIZE:], fd)
        for level, kind, payload in ancillary:
            if level == _SOL_SOCKET and kind == _SCM_RIGHTS:
                for at in range(0, len(payload) - _FD.size + 1, _FD.size):
                    os.close(_FD.unpack_from(payload, at)[0])
        if not data and not ancillary:
            raise Closed("the other side has gone")
        raise ProtocolError("a message that is too long, or with more than one descriptor")

    def _header(self, data: bytes) -> wire.Header:
        header = wire.read_header(data)
        if header.sequence <= self._seen:
            raise ProtocolError(f"message {header.sequence} after message {self._seen}")
        self._seen = header.sequence
        return header

    def wait(self, deadline: Optional[float]) -> bool:
        """Waits until there is something to read; ``False``: the deadline (of time.monotonic) has passed."""
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if self.closed:
                raise Closed("the connection was closed")
            # In turns, so that a close by another thread is seen, and releases that wait for room go out.
            turn = 10.0 if self._releases else 1000.0
            if self._poller.poll(turn if left is None else min(left * 1000 + 1, turn)):
                return True
            self._flush()

    def say(self, code: int, text: str, refers: int = 0, closing: bool = True) -> bool:
        """Sends an ERROR, if there is room for it; whether there was."""
        try:
            return self.send(wire.ERROR, wire.error(code, text), refers, wire.CLOSING if closing else 0) is not None
        except Closed:
            return False

    def tell(self, error: ProtocolError) -> None:
        """Tells the other side what it did wrong."""
        self.say(wire.E_DESCRIPTOR if isinstance(error, DescriptorRefused) else wire.E_MALFORMED, str(error))

    def refuse(self, error: ProtocolError) -> None:
        """Tells the other side what it did wrong, and closes."""
        self.tell(error)
        self.close()

    def connected(self) -> bool:
        """Whether the other side is still there."""
        if self.closed:
            return False
        poller = select.poll()
        poller.register(self._sock, select.POLLRDHUP)
        return not any(events for _, events in poller.poll(0))

    def gpu(self, packet: Packet, gpus: List[Gpu], events: bool
            ) -> Tuple[wire.TensorBody, Union[Tensor, GpuTensor], bool]:
        """The tensor of a GPU message, and whether it is a copy. Takes the descriptor.

        :raises ProtocolError: message or descriptor break a rule.
        :raises CudaError: it cannot be opened; it was released.
        """
        from . import cuda

        sequence, fd = packet.header.sequence, packet.fd
        try:
            body, block = wire.read_gpu(packet.body)
            if (fd is not None) != (block.transport in (wire.HOST_COPY, wire.VMM_FD, wire.POOL)):
                raise ProtocolError(f"a GPU message by {wire.TRANSPORTS[block.transport]} with "
                                    f"{'no' if fd is None else 'a'} descriptor")
            if block.transport == wire.HOST_COPY:
                assert fd is not None and body.layout is not None
                state = check(fd, body.size, body.shared)
                memory, fd = Memory(fd, body.size, state, lambda: self.release(sequence)), None
                return body, Tensor(memory, body.layout), True
            try:
                if block.has_event and not events:
                    raise cuda.CudaError("the tensor came with an event, and this client said that it takes none")
                return body, cuda.take(gpus, self._number, body, block, fd, lambda: self.release(sequence),
                                       self.connected), False
            except (cuda.CudaError, Timeout):
                self.release(sequence)
                raise
        finally:
            if fd is not None:
                os.close(fd)

    def tensor(self, packet: Packet) -> Tuple[wire.TensorBody, Optional[Tensor]]:
        """The tensor of a message, checked against its descriptor. Takes the descriptor.

        :raises ProtocolError: message or descriptor break a rule; the descriptor was closed then.
        """
        kind, sequence, fd = packet.header.kind, packet.header.sequence, packet.fd
        try:
            body = wire.read_tensor(kind, packet.body)
            if (fd is None) != (body.layout is None):
                raise ProtocolError(f"a {wire.KINDS[kind]} message with {'no' if fd is None else 'a'} descriptor and "
                                    f"{'no' if body.layout is None else 'a'} tensor")
            if fd is None or body.layout is None:
                return body, None
            state = check(fd, body.size, body.shared)
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise
        memory = Memory(fd, body.size, state, lambda: self.release(sequence))
        return body, Tensor(memory, body.layout)
