"""The listener's side: an endpoint that publishes to subscribers, or answers requests, or both."""

from __future__ import annotations

import atexit
import os
import selectors
import socket
import threading
import time
import warnings
import weakref
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, List, Optional, Set, Tuple, Type, Union

from . import wire
from .connection import Message, body_of, prepare
from .dlpack import sweep
from .errors import ChannelError, Closed, InvalidArgument, ProtocolError, Timeout
from .foreign import on_gpu
from .link import Link, Packet
from .memory import Memory
from .paths import Claim, Directory, not_for_children, time_limit
from .tensor import Tensor

if TYPE_CHECKING:
    from .cuda import Gpu, Lent, PeerGpus

HANDSHAKE = 5.0
DEFAULT_CREDITS = 4
DEFAULT_QUEUE = 4
MAX_PEERS = 128
MAX_WAITING = 256
# Packets that are taken from one peer before the others have a turn.
_TURN = 16


class Delivery:
    """One published tensor on its way: who may still be looking at it."""

    __slots__ = ("body", "memory", "receivers", "_open", "_changed", "__weakref__")

    def __init__(self, body: bytes, memory: Optional[Memory], changed: threading.Condition) -> None:
        self.body = body
        self.memory = memory
        #: To how many subscribers it was sent, or will be sent once they have credits.
        self.receivers = 0
        self._open = 0
        self._changed = changed

    def packet(self, peer: _Peer) -> Tuple[int, bytes, Optional[int]]:
        """What is sent to a peer: kind, body, descriptor."""
        return wire.TENSOR, self.body, self.memory.fd if self.memory is not None else None

    def is_for(self, peer: _Peer) -> bool:
        """Whether it is for a peer: not if the peer came while it was made ready."""
        return True

    @property
    def pending(self) -> int:
        """How many subscribers have not released it yet. One that has gone does not count."""
        return self._open

    def wait(self, timeout: Optional[float] = None) -> None:
        """Waits until all have released it: then a shared tensor may be written again.

        :raises Timeout: some have not, in the time given.
        """
        deadline = time_limit(timeout)
        with self._changed:
            while self._open:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise Timeout(f"{self._open} subscribers have not released the tensor in the time given")
                self._changed.wait(left)


class GpuDelivery(Delivery):
    """A tensor on a GPU on its way: to each subscriber as what it can take."""

    __slots__ = ("copy_reasons", "_lent", "_fields", "_packets", "_max_copy", "_without")

    def __init__(self, lent: Lent, fields: Tuple[str, int, bytes], changed: threading.Condition,
                 max_copy: Optional[int]) -> None:
        super().__init__(b"", None, changed)
        #: Why the tensor was copied for some: empty if everyone got the memory itself.
        self.copy_reasons: Set[str] = set()
        self._lent, self._fields = lent, fields
        self._packets: Dict[_Peer, Tuple[int, bytes, Optional[int]]] = {}
        self._max_copy = max_copy
        # Those that need a copy and do not get one.
        self._without: Set[_Peer] = set()

    def make_all(self, peers: List[Tuple[_Peer, bool]]) -> None:
        """What each subscriber gets; with whether it would take it. A copy that fails is tried once, and only those
        who need it lose anything."""
        failed = False
        for peer, takes in peers:
            copy = self._lent.needs_copy(peer.gpus)
            if copy and (failed or not takes):
                self._without.add(peer)
                continue
            try:
                self._packets[peer] = self.make(peer, peer.gpus)
            except (ChannelError, OSError, MemoryError) as error:
                if not copy:
                    raise
                failed = True
                self._without.add(peer)
                self.copy_reasons.add(f"no copy: {error}")

    def make(self, peer: _Peer, gpus: Optional[PeerGpus], plain: int = wire.TENSOR) -> Tuple[int, bytes, Optional[int]]:
        """What a peer gets. Waits for the kernel where the peer cannot."""
        from .cuda import GpuCopyWarning

        block, why = self._lent.block(gpus)
        if block is not None:
            fd = self._lent.export.fd
            body = wire.TensorBody(self._lent.layout(), True, self._lent.export.size, 0, self._fields[1],
                                   self._fields[0], self._fields[2])
            return wire.GPU, wire.tensor(body) + block, fd if fd >= 0 else None
        assert why is not None
        if why not in self.copy_reasons:
            self.copy_reasons.add(why)
            warnings.warn(GpuCopyWarning(f"a tensor on {self._lent.gpu.text()} is copied through the host's memory: "
                                         f"{why}"), stacklevel=4)
        memory, layout = self._lent.copy(self._max_copy)
        if memory.state == Memory.OPEN:
            memory.freeze()
        self.memory = memory
        raw = wire.tensor(wire.TensorBody(layout, False, memory.size, 0, self._fields[1], self._fields[0],
                                          self._fields[2]))
        if gpus is None:
            return plain, raw, memory.fd
        copy = wire.Block(wire.HOST_COPY, False, os.getpid(), self._lent.gpu.uuid, 0, bytes(64), bytes(64))
        return wire.GPU, raw + wire.block(copy), memory.fd

    def packet(self, peer: _Peer) -> Tuple[int, bytes, Optional[int]]:
        return self._packets[peer]

    def is_for(self, peer: _Peer) -> bool:
        return peer in self._packets


class Request(Message):
    """A request that came. Answer it with :meth:`reply` or :meth:`fail`; what nobody answers before it is
    forgotten is answered with an error."""

    __slots__ = ("_peer",)

    def __init__(self, tensor: Optional[Tensor], body: wire.TensorBody, sequence: int, peer: _Peer) -> None:
        super().__init__(tensor, body, sequence, None)
        self._peer: Optional[_Peer] = peer

    def reply(self, tensor: Any = None, *, name: str = "", tag: int = 0, meta: bytes = b"", shared: bool = False
              ) -> None:
        """Answers, with a tensor or without one; as :meth:`Endpoint.publish`.

        :raises Closed: whoever asked has gone.
        """
        foreign = on_gpu(tensor)
        if foreign is not None:
            self._answer_gpu(foreign, name, tag, meta)
            return
        mine = prepare(tensor, shared)
        body = wire.tensor(body_of(mine, shared, name, tag, meta))
        self._answer(wire.REPLY, body, mine.memory if mine is not None else None)

    def _answer_gpu(self, foreign: Any, name: str, tag: int, meta: bytes) -> None:
        from .cuda import Lent

        peer = self._peer
        if peer is None:
            raise InvalidArgument("the request was answered already")
        endpoint = peer.endpoint
        delivery = GpuDelivery(Lent(foreign, endpoint._cuda_events), (name, tag, meta), endpoint._changed,
                               endpoint._max_copy)
        kind, body, fd = delivery.make(peer, peer.gpus, wire.REPLY)
        if delivery.memory is not None:
            self._answer(kind, body, delivery.memory)
            return
        self._peer = None
        peer.lend(kind, body, self.sequence, delivery, fd)

    def fail(self, text: str) -> None:
        """Answers with an error: the other side's call raises :class:`PeerError` with this sentence."""
        self._answer(wire.ERROR, wire.error(wire.E_APPLICATION, text), None)

    def _answer(self, kind: int, body: bytes, memory: Optional[Memory]) -> None:
        peer, self._peer = self._peer, None
        if peer is None:
            raise InvalidArgument("the request was answered already")
        peer.answer(kind, body, self.sequence, memory)

    def __del__(self) -> None:
        peer = getattr(self, "_peer", None)
        if peer is not None:
            try:
                text = "the request was dropped without an answer"
                peer.answer(wire.ERROR, wire.error(wire.E_APPLICATION, text), self.sequence, None, now=False)
            except Closed:
                pass


class _Peer:
    """Another process at this endpoint."""

    def __init__(self, endpoint: Endpoint, link: Link) -> None:
        self.endpoint = endpoint
        self.link = link
        self.deadline: Optional[float] = time.monotonic() + HANDSHAKE
        self.roles = 0
        self.credits = 0
        self.queue: Deque[Delivery] = deque()
        self.queue_limit = 0
        self.policy = wire.OLDEST
        self.lost = 0
        self.outstanding: Dict[int, Delivery] = {}
        self.unanswered: Set[int] = set()
        # Kind, body, what it refers to, descriptor, and what keeps that open: memory, or a tensor on a GPU.
        self.answers: Deque[Tuple[int, bytes, int, Optional[int], Union[Memory, GpuDelivery, None]]] = deque()
        self.full_until = 0.0
        self.pause = 0.001
        #: What it has said about its GPUs, and tensors on ours in answers that it has not released.
        self.gpus: Optional[PeerGpus] = None
        self.lent: Dict[int, Delivery] = {}
        # Roles that it gets when it has said which GPUs it has.
        self.later = 0

    # With the endpoint's lock held:

    def offer(self, delivery: Delivery) -> bool:
        """Sends a tensor, or lets it wait; ``False``: this subscriber will not get it."""
        delivery._open += 1
        if not self.queue and self._send(delivery):
            return True
        if self.queue_limit == 0 or (len(self.queue) >= self.queue_limit and self.policy == wire.NEWEST):
            self._lose(delivery)
            return False
        if len(self.queue) >= self.queue_limit:
            dropped = self.queue.popleft()
            dropped.receivers -= 1
            self._lose(dropped)
        self.queue.append(delivery)
        return True

    def _lose(self, delivery: Delivery) -> None:
        self.lost += 1
        delivery._open -= 1

    def _send(self, delivery: Delivery) -> bool:
        if len(self.outstanding) >= self.credits:
            return False
        kind, body, fd = delivery.packet(self)
        number = self.link.send(kind, wire.with_lost(body, self.lost), fd=fd)
        if number is None:
            self._full()
            return False
        self.pause = 0.001
        self.outstanding[number] = delivery
        return True

    def _full(self) -> None:
        # Not by poll: too many descriptors in flight make a socket that looks writable.
        self.full_until = time.monotonic() + self.pause
        self.pause = min(self.pause * 2, 0.1)

    def push(self) -> None:
        """Sends what waits, as far as credits and the socket allow."""
        while self.answers:
            kind, body, refers, fd, keep = self.answers[0]
            number = self.link.send(kind, body, refers, fd=fd)
            if number is None:
                self._full()
                return
            if isinstance(keep, GpuDelivery):
                self.lent[number] = keep
            self.answers.popleft()
        while self.queue and self._send(self.queue[0]):
            self.queue.popleft()
        self.link.flush()

    def has_room(self) -> bool:
        """Whether a further tensor would be sent or wait, and none be dropped for it."""
        if not self.roles & wire.SUBSCRIBER:
            return True
        free = self.credits - len(self.outstanding)
        return len(self.queue) < max(self.queue_limit, 1 if free > 0 else 0)

    def would_take(self) -> bool:
        """Whether it would be sent the next tensor, or have it waiting."""
        if not self.queue and len(self.outstanding) < self.credits:
            return True
        return self.queue_limit > 0 and (len(self.queue) < self.queue_limit or self.policy == wire.OLDEST)

    def wants_to_send(self) -> bool:
        """Whether something waits for room in the socket."""
        return bool(self.answers or self.link.unsent or (self.queue and len(self.outstanding) < self.credits))

    def take(self, packet: Packet) -> None:
        """Deals with a message."""
        kind, header = packet.header.kind, packet.header
        if self.deadline is not None:
            if kind != wire.HELLO:
                if packet.fd is not None:
                    os.close(packet.fd)
                raise ProtocolError(f"{wire.KINDS[kind]} instead of HELLO")
            self._greet(wire.read_hello(packet.body), header.sequence)
        elif kind == wire.RELEASE:
            for number in wire.read_release(packet.body):
                delivery = self.outstanding.pop(number, None)
                if delivery is not None:
                    delivery._open -= 1
                self.endpoint._spent += [delivery, self.lent.pop(number, None)]
            self.endpoint._changed.notify_all()
        elif kind == wire.DEVICES and self.later:
            self._introduced(wire.read_devices(packet.body), header.sequence)
        elif kind == wire.REQUEST and self.roles & wire.REQUESTER:
            body, tensor = self.link.tensor(packet)
            self._ask(Request(tensor, body, header.sequence, self))
        elif kind == wire.PING:
            self.link.send(wire.PONG, b"", header.sequence)
        elif kind == wire.ERROR:
            wire.read_error(packet.body)
            if header.flags & wire.CLOSING:
                raise Closed("the peer ended the connection with an error")
        elif kind != wire.PONG:
            if packet.fd is not None:
                os.close(packet.fd)
            raise ProtocolError(f"an unexpected {wire.KINDS[kind]} message")

    def _greet(self, asked: wire.Hello, sequence: int) -> None:
        if not asked.lowest <= wire.VERSION <= asked.highest:
            self.link.say(wire.E_VERSION, f"version {wire.VERSION} is spoken here", sequence)
            raise Closed("no common version")
        self.roles = asked.roles & self.endpoint._roles
        if not self.roles:
            what = "publishes nothing" if asked.roles == wire.SUBSCRIBER else "takes no requests"
            self.link.say(wire.E_REFUSED, f"endpoint {self.endpoint.name} {what}", sequence)
            raise Closed("no common role")
        self.credits = min(asked.credits or DEFAULT_CREDITS, self.endpoint._credits)
        self.queue_limit = min(DEFAULT_QUEUE if asked.queue == wire.DEFAULT else asked.queue, self.endpoint._queue)
        self.policy = asked.policy
        self.deadline = None
        features = asked.features & wire.CUDA if self.endpoint._gpus else 0
        roles = self.roles
        if features:
            # It gets nothing before it has said which GPUs it has.
            self.later, self.roles = self.roles, 0
        self.link.send(wire.WELCOME, wire.welcome(wire.Welcome(
            wire.VERSION, roles, features, self.credits, self.queue_limit, self.policy)), sequence)
        self.endpoint._changed.notify_all()

    def _introduced(self, devices: wire.Devices, sequence: int) -> None:
        from .cuda import PeerGpus, introduction

        self.gpus = PeerGpus(self.endpoint._gpus, devices, self.endpoint._cuda_events)
        self.link.send(wire.DEVICES, introduction(self.endpoint._gpus, False, self.endpoint._cuda_events)[0],
                       sequence)
        self.roles, self.later = self.later, 0
        self.endpoint._changed.notify_all()

    def _ask(self, request: Request) -> None:
        # What is not sent is no answer; and one on a GPU pins an allocation until it is released.
        open_ = len(self.unanswered) + len(self.answers) + len(self.lent)
        if open_ >= self.credits or len(self.endpoint._requests) >= self.endpoint._waiting:
            request._peer = None
            self.link.say(wire.E_BUSY, "too many requests wait for an answer", request.sequence, closing=False)
            request.release()
            return
        self.unanswered.add(request.sequence)
        self.endpoint._requests.append(request)
        self.endpoint._changed.notify_all()

    # From any thread, and from the end of an object:

    def answer(self, kind: int, body: bytes, refers: int, memory: Optional[Memory], now: bool = True) -> None:
        """Sends an answer now, or as soon as the socket has room. Not now: it takes no lock."""
        self.unanswered.discard(refers)
        if self.link.closed:
            raise Closed("whoever asked has gone")
        if now and not self.answers:
            if self.link.send(kind, body, refers, fd=memory.fd if memory is not None else None) is not None:
                return
        self.answers.append((kind, body, refers, memory.fd if memory is not None else None, memory))
        self.endpoint._wake()

    def lend(self, kind: int, body: bytes, refers: int, delivery: GpuDelivery, fd: Optional[int]) -> None:
        """Answers with a tensor on a GPU, now or later: it is held from before its release can come."""
        with self.endpoint._lock:
            if self.link.closed:
                raise Closed("whoever asked has gone")
            self.unanswered.discard(refers)
            number = None if self.answers else self.link.send(kind, body, refers, fd=fd)
            if number is not None:
                self.lent[number] = delivery
                return
            self.answers.append((kind, body, refers, fd, delivery))
        self.endpoint._wake()


class Endpoint:
    """An endpoint of a channel at which this process listens, from :meth:`Channel.listen`,
    :meth:`Channel.publisher` or :meth:`Channel.server`. Close it, or use it in a ``with``.

    A thread of its own takes connections and releases; publishing itself happens in the caller's thread and
    never waits for a subscriber. All methods may be called from any thread, but not in a child made by fork.
    """

    def __init__(self, directory: Directory, name: str, roles: int, mode: int, credits: int, queue: int,
                 peers: int, waiting: int, cuda: bool = False, max_copy: Optional[int] = None, cuda_events: bool = True
                 ) -> None:
        for what, value, low, high in (("credits", credits, 1, wire.MAX_CREDITS), ("queue", queue, 0, wire.MAX_CREDITS),
                                       ("peers", peers, 1, 1 << 16), ("waiting", waiting, 1, 1 << 16)):
            if not low <= value <= high:
                raise InvalidArgument(f"{what} {value}: {low} to {high}")
        if max_copy is not None and max_copy < 0:
            raise InvalidArgument(f"max_copy {max_copy}: bytes, 0 for no copies, None for any")
        #: The endpoint's name.
        self.name = name
        self._roles, self._credits, self._queue = roles, credits, queue
        self._most_peers, self._waiting = peers, waiting
        self._max_copy, self._cuda_events = max_copy, cuda_events
        self._gpus: List[Gpu] = []
        if cuda:
            from .cuda import Gpu

            self._gpus = Gpu.all()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._peers: List[_Peer] = []
        # Their connections have ended; the thread closes the descriptors, because a number that is used again
        # while the selector still has it would be taken for the old one.
        self._dead: List[_Peer] = []
        # What nobody needs any more. The thread lets go of it without the lock, because the end of a tensor on a GPU
        # runs its owner's code and may wait.
        self._spent: List[Optional[Delivery]] = []
        self._requests: Deque[Request] = deque()
        self._closed = False
        self._pause = 0.0
        self._claim = Claim(directory, name, mode)
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        selector = selectors.DefaultSelector()
        selector.register(self._bell, selectors.EVENT_READ, "bell")
        selector.register(self._claim.socket, selectors.EVENT_READ, "accept")
        self._thread = threading.Thread(target=_run, args=(weakref.ref(self), self._bell, selector), daemon=True,
                                        name=f"isorun-channel {name}")
        not_for_children(self)
        self._thread.start()
        _open.add(self)

    # -- publishing

    def publish(self, tensor: Any = None, *, name: str = "", tag: int = 0, meta: bytes = b"", shared: bool = False
                ) -> Delivery:
        """Sends a tensor to every subscriber that is there. Never waits: one that is too slow loses tensors, and
        is told how many.

        :param tensor: a :class:`Tensor` of this package goes without a copy, and is made immutable unless ``shared``;
            one on a GPU (torch, ``__cuda_array_interface__``, DLPack) as memory of the GPU, or as a copy where that
            cannot be, and then :attr:`GpuDelivery.copy_reasons` and a warning tell why; anything else (numpy, torch,
            jax, bytes) is copied once. ``None``: a message without a tensor.
        :param shared: this process may go on to change it.
        :param name: up to 255 bytes of text; ``meta`` up to 2,048 bytes; ``tag`` a number below 2^64.
        :returns: to how many it went, and how many still hold it.
        """
        if not self._roles & wire.SUBSCRIBER:
            raise InvalidArgument(f"endpoint {self.name} does not publish")
        sweep()
        foreign = on_gpu(tensor)
        if foreign is not None:
            delivery = self._prepare_gpu(foreign, name, tag, meta)
        else:
            mine = prepare(tensor, shared)
            body = wire.tensor(body_of(mine, shared, name, tag, meta))
            delivery = Delivery(body, mine.memory if mine is not None else None, self._changed)
        with self._lock:
            self._check_open()
            for peer in list(self._peers):
                if isinstance(delivery, GpuDelivery) and peer in delivery._without:
                    peer.lost += 1
                elif peer.roles & wire.SUBSCRIBER and delivery.is_for(peer):
                    try:
                        if peer.offer(delivery):
                            delivery.receivers += 1
                    except Closed:
                        delivery._open -= 1
                        self._drop(peer)
            waits = any(peer.queue for peer in self._peers)
        if waits:
            self._wake()
        return delivery

    def _prepare_gpu(self, foreign: Any, name: str, tag: int, meta: bytes) -> Delivery:
        """What each subscriber will get of a tensor on a GPU: without the lock, because a copy takes time."""
        from .cuda import Lent

        delivery = GpuDelivery(Lent(foreign, self._cuda_events), (name, tag, meta), self._changed, self._max_copy)
        with self._lock:
            peers = [(peer, peer.would_take()) for peer in self._peers if peer.roles & wire.SUBSCRIBER]
        delivery.make_all(peers)
        return delivery

    @property
    def subscribers(self) -> int:
        """How many subscribers there are."""
        with self._lock:
            return sum(1 for peer in self._peers if peer.roles & wire.SUBSCRIBER)

    def wait_for_subscribers(self, count: int = 1, timeout: Optional[float] = None) -> None:
        """Waits until at least ``count`` subscribers are there.

        :raises Timeout: they are not, in the time given.
        """
        self._wait_until(lambda: self.subscribers >= count, timeout, f"fewer than {count} subscribers came")

    def wait_for_room(self, timeout: Optional[float] = None) -> None:
        """Waits until every subscriber would get the next tensor without losing one: for who must lose none, and
        would rather wait for the slowest.

        :raises Timeout: one has no room, in the time given.
        """
        self._wait_until(lambda: all(peer.has_room() for peer in self._peers), timeout,
                         "a subscriber has no room for a further tensor")

    def drain(self, timeout: Optional[float] = None) -> None:
        """Waits until everything that was published is on its way: what still waits for a slow subscriber when the
        endpoint is closed, it does not get.

        :raises Timeout: something still waits, in the time given.
        """
        self._wait_until(lambda: not any(peer.queue or peer.answers for peer in self._peers), timeout,
                         "tensors still wait for a slow subscriber")

    def _wait_until(self, so: Callable[[], bool], timeout: Optional[float], otherwise: str) -> None:
        deadline = time_limit(timeout)
        with self._changed:
            while not so():
                self._check_open()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise Timeout(f"endpoint {self.name}: {otherwise}, in the time given")
                self._changed.wait(left)

    # -- answering

    def next_request(self, timeout: Optional[float] = None) -> Request:
        """The next request.

        :raises Timeout: none came in the time given.
        """
        if not self._roles & wire.REQUESTER:
            raise InvalidArgument(f"endpoint {self.name} takes no requests")
        sweep()
        with self._changed:
            self._wait_until(lambda: bool(self._requests), timeout, "no request came")
            return self._requests.popleft()

    def serve(self, handler: Callable[[Request], Any]) -> None:
        """Answers requests with what ``handler`` returns (a tensor or ``None``) until the endpoint is closed.
        An exception in it becomes the answer's error."""
        while True:
            try:
                request = self.next_request()
            except Closed:
                return
            try:
                answer = handler(request)
                if request._peer is not None:
                    request.reply(answer)
            except Closed:
                pass
            except Exception as error:  # noqa: the requester is told
                if request._peer is not None:
                    try:
                        request.fail(f"{type(error).__name__}: {error}")
                    except Closed:
                        pass
            request.release()
            del request

    # -- the thread's

    def _wake(self) -> None:
        try:
            self._ringer.send(b"\0")
        except OSError:
            pass

    def _accept(self, selector: selectors.BaseSelector) -> None:
        for _ in range(_TURN):
            try:
                sock, _ = self._claim.socket.accept()
            except BlockingIOError:
                return
            except OSError:
                # No descriptors or no memory: those who wait stay in the backlog.
                self._pause = 0.05
                return
            link = Link(sock)
            if len(self._peers) >= self._most_peers:
                link.say(wire.E_BUSY, f"endpoint {self.name} has {self._most_peers} peers already")
                link.close()
                continue
            not_for_children(link)
            peer = _Peer(self, link)
            self._peers.append(peer)
            selector.register(link, selectors.EVENT_READ, peer)

    def _serve_peer(self, peer: _Peer) -> None:
        try:
            for _ in range(_TURN):
                packet = peer.link.receive()
                if packet is None:
                    break
                peer.take(packet)
            if peer.wants_to_send():
                peer.push()
                self._changed.notify_all()
        except ProtocolError as error:
            peer.link.tell(error)
            self._drop(peer)
        except Closed:
            self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        if peer not in self._peers:
            return
        self._peers.remove(peer)
        self._dead.append(peer)
        self._spent += [*peer.outstanding.values(), *peer.queue, *peer.lent.values()]
        # What it had, it has released; what waited for it, it does not get.
        for delivery in peer.outstanding.values():
            delivery._open -= 1
        for delivery in peer.queue:
            delivery._open -= 1
            delivery.receivers -= 1
        peer.outstanding.clear()
        peer.queue.clear()
        peer.answers.clear()
        peer.lent.clear()
        peer.roles = 0
        peer.link.shut()
        self._changed.notify_all()
        self._wake()

    def _turn(self, selector: selectors.BaseSelector, events: List[Tuple[selectors.SelectorKey, int]]) -> float:
        """One round of the thread; how long it may sleep after it."""
        sleep = self._round(selector, events)
        self._let_go()
        return sleep

    def _let_go(self) -> None:
        with self._lock:
            spent, self._spent = self._spent, []
        del spent

    def _round(self, selector: selectors.BaseSelector, events: List[Tuple[selectors.SelectorKey, int]]) -> float:
        with self._lock:
            if self._closed:
                return -1.0
            for key, _ in events:
                if isinstance(key.data, _Peer) and key.data in self._peers:
                    self._serve_peer(key.data)
                elif key.data == "accept":
                    self._accept(selector)
            now = time.monotonic()
            sleep = 60.0
            for peer in list(self._peers):
                if peer.deadline is not None and now >= peer.deadline:
                    self._drop(peer)
                    continue
                if peer.deadline is not None:
                    sleep = min(sleep, peer.deadline - now)
                if peer.wants_to_send():
                    if now >= peer.full_until:
                        try:
                            peer.push()
                            self._changed.notify_all()
                        except Closed:
                            self._drop(peer)
                            continue
                    if peer.wants_to_send():
                        sleep = min(sleep, max(peer.full_until - now, 0.001))
            for peer in self._dead:
                selector.unregister(peer.link)
                peer.link.close()
            self._dead.clear()
            return sleep

    # -- the end

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"endpoint {self.name} was closed")

    def close(self) -> None:
        """Gives the endpoint up and ends its connections. Tensors that were sent stay with their receivers."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._claim.close()
            for peer in list(self._peers):
                self._drop(peer)
            waiting = list(self._requests)
            self._requests.clear()
            for request in waiting:
                request._peer = None
                request.release()
            self._changed.notify_all()
        self._let_go()
        self._wake()
        if self._thread is not threading.current_thread():
            self._thread.join(5)
        self._ringer.close()
        for peer in self._dead:
            peer.link.close()
        self._dead.clear()

    def forget(self) -> None:
        """Closes nothing that belongs to the parent: for a child made by fork."""
        self._closed = True
        self._bell.close()
        self._ringer.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self.close()


def _run(reference: weakref.ReferenceType[Endpoint], bell: socket.socket, selector: selectors.BaseSelector) -> None:
    """The thread. Between two rounds it does not hold the endpoint, so that one that is forgotten ends."""
    pause = 0.0
    sleep = 60.0
    try:
        while sleep >= 0:
            if pause:
                time.sleep(pause)
            events = selector.select(sleep)
            try:
                while len(bell.recv(64)) == 64:
                    pass
            except BlockingIOError:
                pass
            endpoint = reference()
            if endpoint is None:
                return
            sleep = endpoint._turn(selector, events)
            pause, endpoint._pause = endpoint._pause, 0.0
            del endpoint
    except (OSError, ValueError):
        # A descriptor was closed under it: by a child made by fork, or at the end of the interpreter.
        pass
    finally:
        selector.close()
        bell.close()


_open: weakref.WeakSet[Endpoint] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    # A clean end leaves no names behind.
    for endpoint in list(_open):
        endpoint.close()
