"""The client's side: a connection that subscribes to an endpoint, or sends it requests, or both."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Deque, Dict, Iterator, List, Optional, Set, Type, Union

from . import wire
from .dlpack import sweep
from .errors import Closed, InvalidArgument, PeerError, ProtocolError, Timeout
from .link import Link, Packet
from .paths import Directory, connect, not_for_children, time_limit
from .tensor import Tensor, copied, place


if TYPE_CHECKING:
    from .cuda import Gpu


class Message:
    """A tensor that came, with what its sender said about it.

    Let go of it as soon as you can, by ``with`` or :meth:`release`: the sender sends only a few tensors
    (*credits*) before it hears that earlier ones are not needed any more. Views (numpy arrays and so on) stay
    valid after that, and the sender hears of it when the last one is gone.
    """

    __slots__ = ("tensor", "name", "tag", "meta", "lost", "sequence", "copied_from_gpu", "_link")

    def __init__(self, tensor: Any, body: wire.TensorBody, sequence: int, link: Optional[Link]) -> None:
        #: The tensor: a :class:`Tensor`, or a :class:`GpuTensor` if it came as memory of a GPU. ``None``: the message
        #: has none.
        self.tensor: Any = tensor
        #: Whether it is a copy of one on a GPU, made because the memory itself could not be handed over.
        self.copied_from_gpu = False
        #: The sender's name for it.
        self.name = body.name
        #: The sender's number for it, a step or the like.
        self.tag = body.tag
        #: The sender's bytes.
        self.meta = body.meta
        #: How many earlier tensors this subscriber has not got, because it was too slow.
        self.lost = body.lost
        #: The number of the message in its connection.
        self.sequence = sequence
        # A tensor's memory says by itself when it is gone; a message without one has to be released here.
        self._link = link if tensor is None else None

    def release(self) -> None:
        """Lets go of the tensor."""
        if self.tensor is not None:
            self.tensor.close()
        link, self._link = self._link, None
        if link is not None:
            link.release(self.sequence)

    def __enter__(self) -> Message:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.release()

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link is not None:
            link.release(self.sequence)

    def __repr__(self) -> str:
        return f"<isorun_channel.Message {self.name!r} tag {self.tag} {self.tensor!r}>"


class Connection:
    """A connection to an endpoint, from :meth:`Channel.subscribe`, :meth:`Channel.requester` or
    :meth:`Channel.connect`. Close it, or use it in a ``with``.

    Several threads may use one, but only one at a time waits for messages.
    """

    def __init__(self, directory: Directory, endpoint: str, roles: int, credits: int, queue: Optional[int],
                 policy: str, timeout: float, cuda: bool = False, cuda_events: bool = True) -> None:
        if not 0 <= credits <= wire.MAX_CREDITS:
            raise InvalidArgument(f"credits {credits}: 0 (the listener's default) to {wire.MAX_CREDITS}")
        if queue is not None and not 0 <= queue <= wire.MAX_CREDITS:
            raise InvalidArgument(f"queue {queue}: 0 to {wire.MAX_CREDITS}, or None for the listener's default")
        if policy not in ("oldest", "newest"):
            raise InvalidArgument(f"policy {policy!r}: 'oldest' or 'newest' is what is dropped when the queue is full")
        deadline = time_limit(timeout)
        if deadline is None:
            raise InvalidArgument("the handshake needs a timeout")
        self._where = f"endpoint {endpoint} of {directory.path}"
        self._link = Link(connect(directory, endpoint, deadline))
        not_for_children(self._link)
        self._reading = threading.Lock()
        self._inbox: Deque[Message] = deque()
        self._replies: Dict[int, Union[Message, PeerError]] = {}
        self._asked: Set[int] = set()
        self._end: Optional[Exception] = None
        self._gpus: List[Gpu] = []
        self._cuda_events = cuda_events
        if cuda:
            from .cuda import Gpu

            self._gpus = Gpu.all()
        features = wire.CUDA if self._gpus else 0
        asked = wire.Hello(wire.VERSION, wire.VERSION, roles, features, credits,
                           wire.DEFAULT if queue is None else queue,
                           wire.NEWEST if policy == "newest" else wire.OLDEST)
        try:
            try:
                self._link.send(wire.HELLO, wire.hello(asked))
            except Closed:
                pass  # a listener that has too many peers does not wait for it: its reason is there to be read
            found = self._handshake(deadline, asked)
            if found.features & wire.CUDA:
                self._introduce(deadline)
            else:
                self._gpus = []
        except BaseException:
            self._link.close()
            raise
        self._roles = found.roles
        #: How many tensors this side may hold at once.
        self.credits = found.credits
        #: How many more may wait at the listener.
        self.queue = found.queue
        if roles & ~found.roles:
            missing = "publishes nothing" if roles & ~found.roles == wire.SUBSCRIBER else "takes no requests"
            self._link.close()
            raise PeerError(f"{self._where} {missing}", wire.E_REFUSED)

    def _handshake(self, deadline: float, asked: wire.Hello) -> wire.Welcome:
        if not self._link.wait(deadline):
            raise Timeout(f"{self._where}: the listener did not answer the handshake in time")
        try:
            packet = self._plain()
            if packet is None:
                raise Timeout(f"{self._where}: the listener did not answer the handshake in time")
            if packet.header.kind == wire.ERROR:
                raise self._error(packet)
            if packet.header.kind != wire.WELCOME or packet.header.refers != 1:
                raise ProtocolError(f"{wire.KINDS[packet.header.kind]} instead of WELCOME")
            return wire.read_welcome(packet.body, asked)
        except ProtocolError as error:
            self._link.refuse(error)
            raise
        except Closed:
            raise Closed(f"{self._where}: the listener has gone in the handshake") from None

    def _plain(self) -> Optional[Packet]:
        """A message of the handshake: none of them has a descriptor."""
        packet = self._link.receive()
        if packet is not None and packet.fd is not None:
            os.close(packet.fd)
            raise ProtocolError(f"{wire.KINDS[packet.header.kind]} in the handshake")
        return packet

    def _introduce(self, deadline: float) -> None:
        """Says which GPUs there are, and waits for the other side to say so."""
        from .cuda import introduction

        mine, event = introduction(self._gpus, True, self._cuda_events)
        number = self._link.send(wire.DEVICES, mine)
        while self._link.wait(deadline):
            try:
                packet = self._plain()
                if packet is None:
                    continue
                if packet.header.kind == wire.ERROR:
                    raise self._error(packet)
                if packet.header.kind != wire.DEVICES or packet.header.refers != number:
                    raise ProtocolError(f"{wire.KINDS[packet.header.kind]} instead of DEVICES")
                wire.read_devices(packet.body)
            except ProtocolError as error:
                self._link.refuse(error)
                raise
            del event  # the other side has tried it
            return
        raise Timeout(f"{self._where}: the listener did not say in time which GPUs it has")

    # -- receiving

    def receive(self, timeout: Optional[float] = None) -> Message:
        """The next tensor that is published.

        :param timeout: seconds to wait, 0 not to wait; ``None`` waits for ever.
        :raises Timeout: nothing came.
        :raises Closed: the publisher has gone; what it sent before has been given out.
        """
        if not self._roles & wire.SUBSCRIBER:
            raise InvalidArgument("this connection does not subscribe")
        sweep()
        deadline = time_limit(timeout)
        self._take_turn(deadline)
        try:
            while not self._inbox:
                self._read_one(deadline, "no tensor came")
            return self._inbox.popleft()
        finally:
            self._reading.release()

    def __iter__(self) -> Iterator[Message]:
        """Every tensor that is published, until the publisher goes."""
        while True:
            try:
                message = self.receive()
            except Closed:
                return
            yield message

    def fileno(self) -> int:
        """The socket, for poll(2) and selectors: readable when :meth:`receive` has something to do."""
        return self._link.fileno()

    def _take_turn(self, deadline: Optional[float]) -> None:
        left = -1.0 if deadline is None else max(deadline - time.monotonic(), 0.0)
        if not self._reading.acquire(timeout=left):
            raise Timeout(f"{self._where}: another thread waited for messages all the time")

    def _read_one(self, deadline: Optional[float], what: str) -> None:
        """Takes in one message."""
        try:
            packet = self._link.receive()
            if packet is None:
                if self._end is not None or not self._link.wait(deadline):
                    if self._end is not None:
                        raise self._end
                    raise Timeout(f"{self._where}: {what} in the time given{self._why()}")
                return
            self._take(packet)
        except ProtocolError as error:
            # Before it is told to anyone: the other side must not go on.
            self._link.refuse(error)
            self._end = error
            raise
        except Closed as error:
            raise self._end or Closed(f"{self._where}: {error}") from None

    def _why(self) -> str:
        if not self._roles & wire.SUBSCRIBER:
            return ""
        return f" (a publisher waits when its subscriber holds {self.credits} tensors: release messages)"

    def _take(self, packet: Packet) -> None:
        kind, header = packet.header.kind, packet.header
        if kind == wire.TENSOR and self._roles & wire.SUBSCRIBER:
            self._check_credit(packet)
            body, tensor = self._link.tensor(packet)
            self._inbox.append(Message(tensor, body, header.sequence, self._link))
        elif kind == wire.REPLY and self._roles & wire.REQUESTER:
            body, tensor = self._link.tensor(packet)
            if header.refers in self._asked:
                self._asked.discard(header.refers)
                self._replies[header.refers] = Message(tensor, body, header.sequence, None)
        elif kind == wire.GPU and self._gpus:
            self._take_gpu(packet)
        elif kind == wire.ERROR:
            error = self._error(packet)
            if header.refers in self._asked and not header.flags & wire.CLOSING:
                self._asked.discard(header.refers)
                self._replies[header.refers] = error
            elif header.flags & wire.CLOSING:
                self._end = error
        elif kind == wire.PING:
            self._link.send(wire.PONG, b"", header.sequence)
        elif kind == wire.RELEASE:
            wire.read_release(packet.body)
        elif kind != wire.PONG:
            if packet.fd is not None:
                os.close(packet.fd)
            raise ProtocolError(f"an unexpected {wire.KINDS[kind]} message")

    def _take_gpu(self, packet: Packet) -> None:
        header = packet.header
        if not self._roles & (wire.REQUESTER if header.refers else wire.SUBSCRIBER):
            if packet.fd is not None:
                os.close(packet.fd)
            raise ProtocolError("a GPU message for a role that this connection has not")
        if header.refers and header.refers not in self._asked:
            # Nobody waits for it: it is not opened.
            if packet.fd is not None:
                os.close(packet.fd)
            wire.read_gpu(packet.body)
            self._link.release(header.sequence)
            return
        if not header.refers:
            self._check_credit(packet)
        body, tensor, copied = self._link.gpu(packet, self._gpus, self._cuda_events)
        message = Message(tensor, body, header.sequence, None)
        message.copied_from_gpu = copied
        if header.refers == 0:
            self._inbox.append(message)
        else:
            self._asked.discard(header.refers)
            self._replies[header.refers] = message

    def _check_credit(self, packet: Packet) -> None:
        # While a request waits nobody takes what is published: a listener that knows no credits would fill the memory.
        if len(self._inbox) >= self.credits:
            if packet.fd is not None:
                os.close(packet.fd)
            raise ProtocolError(f"a further tensor, with {self.credits} credits and none released")

    def _error(self, packet: Packet) -> PeerError:
        code, text = wire.read_error(packet.body)
        return PeerError(f"{self._where}: {wire.ERRORS[code]}: {text}", code)

    # -- asking

    def request(self, tensor: Any = None, *, name: str = "", tag: int = 0, meta: bytes = b"", shared: bool = False,
                timeout: Optional[float] = 5.0) -> Message:
        """Sends a tensor (or none) and waits for the answer.

        :param tensor: a :class:`Tensor` of this package goes without a copy, and is made immutable unless
            ``shared``; anything else is copied once.
        :param timeout: seconds for all of it; ``None`` waits for ever.
        :raises PeerError: the other side answered with an error.
        :raises Timeout: there was no answer in time. One that comes later is dropped.
        """
        if not self._roles & wire.REQUESTER:
            raise InvalidArgument("this connection does not send requests")
        sweep()
        deadline = time_limit(timeout)
        mine = prepare(tensor, shared)
        body = wire.tensor(body_of(mine, shared, name, tag, meta))
        fd = mine.fileno() if mine is not None else None
        self._take_turn(deadline)
        try:
            answer = self._ask(body, fd, deadline)
        finally:
            self._reading.release()
        if isinstance(answer, PeerError):
            raise answer
        return answer

    def _ask(self, body: bytes, fd: Optional[int], deadline: Optional[float]) -> Union[Message, PeerError]:
        while True:
            number = self._link.send(wire.REQUEST, body, fd=fd)
            if number is not None:
                break
            if deadline is not None and time.monotonic() >= deadline:
                raise Timeout(f"{self._where}: the other side does not read its requests")
            time.sleep(0.001)
        self._asked.add(number)
        try:
            while number not in self._replies:
                self._read_one(deadline, "no answer came")
        finally:
            self._asked.discard(number)
        return self._replies.pop(number)

    def ping(self) -> None:
        """Asks the other side for a sign of life; nothing waits for it."""
        self._link.send(wire.PING)

    def close(self) -> None:
        """Ends the connection. Tensors that came by it stay valid."""
        self._link.close()
        self._inbox.clear()
        self._replies.clear()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._link.closed

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link is not None:
            link.close()


def prepare(thing: Any, shared: bool) -> Optional[Tensor]:
    """The tensor to send: sealed, and copied if it is not in memory of ours."""
    if thing is None:
        return None
    tensor = thing if isinstance(thing, Tensor) else copied(place(thing))
    memory = tensor.memory
    if memory.state == memory.FILE:
        tensor = copied(place(tensor))  # a file's memory has no seals
        memory = tensor.memory
    if memory.state == memory.OPEN:
        memory.share() if shared else memory.freeze()
    elif shared and memory.state == memory.IMMUTABLE:
        raise InvalidArgument("the tensor is immutable already, so it cannot be sent as shared")
    elif not shared and memory.state in (memory.OWNED, memory.SHARED):
        raise InvalidArgument("the tensor is shared, so its content can change: send it with shared=True, or a copy")
    return tensor


def body_of(tensor: Optional[Tensor], shared: bool, name: str, tag: int, meta: bytes) -> wire.TensorBody:
    """The fields of the message that sends a tensor."""
    if tensor is None:
        return wire.TensorBody(None, False, 0, 0, tag, name, meta)
    return wire.TensorBody(tensor.layout, shared, tensor.memory.size, 0, tag, name, meta)
