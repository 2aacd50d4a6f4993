"""The channel: where everything begins."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Dict, List, Mapping, Optional, Tuple, Type, Union

from . import named, wire
from .connection import Connection
from .dtypes import DTypeLike
from .endpoint import DEFAULT_CREDITS, MAX_PEERS, MAX_WAITING, Endpoint
from .errors import Closed, InvalidArgument
from .paths import Directory, check_name, find
from .tensor import Tensor, empty, tensor

# What a peer gets if it asks for more than the default.
_DEFAULT_MOST = DEFAULT_CREDITS * 4


class Channel:
    """A tensor channel that this process is a member of.

    :param where: its name, as in the annotation ``io.isorun.channels``, or its directory (a path object, or a text
        with a slash in it).
    :raises NotFound: there is no such channel here.

    >>> import tempfile, isorun_channel as ic
    >>> with tempfile.TemporaryDirectory() as directory, ic.Channel(directory) as channel:
    ...     channel.put("weights", ic.tensor(b"abc"))
    ...     channel.get("weights").tobytes()
    b'abc'
    """

    def __init__(self, where: Union[str, "os.PathLike[str]"]) -> None:
        self._directory: Optional[Directory] = Directory(find(where))

    @property
    def directory(self) -> Directory:
        """Its directory.

        :raises Closed: the channel was closed.
        """
        if self._directory is None:
            raise Closed("the channel was closed")
        return self._directory

    @property
    def path(self) -> str:
        """The path of its directory."""
        return self.directory.path

    # -- tensors

    def empty(self, shape: Any, dtype: DTypeLike = "f32") -> Tensor:
        """A new tensor of zeros that can be sent without a copy: fill it through :meth:`Tensor.numpy` or
        :meth:`Tensor.torch`, then send it."""
        return empty(shape, dtype)

    def tensor(self, thing: Any, dtype: Optional[DTypeLike] = None) -> Tensor:
        """A new tensor with a copy of ``thing`` (numpy, torch, jax, a buffer, a list): its only copy on the way."""
        return tensor(thing, dtype)

    # -- named tensors

    def put(self, name: str, tensors: Any, metadata: Optional[Mapping[str, str]] = None) -> None:
        """Writes a tensor, or a map of names to tensors, to ``<name>.safetensors``, in the place of an older file.
        Copies once; :meth:`new` does not.

        :raises NoSpace: the channel is full. Nothing has changed then.
        """
        named.put(self.directory, name, tensors, metadata)

    def new(self, name: str, spec: Mapping[str, Tuple[Any, DTypeLike]], metadata: Optional[Mapping[str, str]] = None
            ) -> named.NewFile:
        """A file of named tensors to fill in place, without a copy: ``spec`` says shape and dtype of each.
 The file appears at the end
        of a ``with``, or by :meth:`NewFile.commit`::

            with channel.new("weights", {"w": ((2, 3), "f32")}) as file:
                file.tensors["w"].numpy()[:] = 1
        """
        return named.new(self.directory, name, spec, metadata)

    def get(self, name: str, key: Optional[str] = None, *, copy: bool = False) -> Tensor:
        """A named tensor, mapped, not copied.

        :param key: which one of the file; not needed if there is one.
        :param copy: a copy of your own. **Do so if you do not trust those who may write in the channel**: one that
            truncates a file ends every process that has it mapped (SIGBUS).
        :raises NotFound: there is no such file, or no such tensor in it.
        """
        file = named.NamedFile(self.directory, name, copy)
        if key is None:
            if len(file.entries) != 1:
                raise InvalidArgument(f"named tensor {name} has {len(file.entries)} tensors "
                                      f"({', '.join(map(repr, sorted(file.entries)))}): say which, or use get_all()")
            key = next(iter(file.entries))
        return file.tensor(key)

    def get_all(self, name: str, *, copy: bool = False) -> Dict[str, Tensor]:
        """All tensors of a file, by their names; otherwise as :meth:`get`."""
        file = named.NamedFile(self.directory, name, copy)
        return {key: file.tensor(key) for key in file.entries}

    def metadata(self, name: str) -> Dict[str, str]:
        """The texts that were put with a named tensor."""
        return named.NamedFile(self.directory, name, False).metadata

    def names(self) -> List[str]:
        """The names of the named tensors that are there."""
        return named.names(self.directory)

    def remove(self, name: str) -> None:
        """Removes a named tensor. Whoever has it mapped keeps it."""
        check_name("named tensor", name)
        self.get_all(name)  # it is there, and is what we think
        self.directory.unlink(name + named.SUFFIX)

    # -- endpoints

    def listen(self, endpoint: str, *, publish: bool = True, serve: bool = True, mode: int = 0o666,
               credits: int = _DEFAULT_MOST, queue: int = _DEFAULT_MOST, peers: int = MAX_PEERS,
               waiting: int = MAX_WAITING, cuda: bool = False, max_copy: Optional[int] = None,
               cuda_events: bool = True) -> Endpoint:
        """Listens at an endpoint, to publish tensors, to answer requests, or both.

        :param mode: the socket's mode.
        :param credits: the most tensors that one peer may hold at once; ``queue``: that may wait for it beyond that.
        :param peers: the most peers; ``waiting``: the most requests that wait for an answer, of all peers.
        :param cuda: tensors on GPUs are handed over as memory of the GPU where that can be done.
        :param max_copy: the largest copy, in bytes, that is made of a tensor on a GPU for peers that cannot open the
            memory; 0 for none, ``None`` for any. Who would need a larger one loses the tensor. Any peer can make an
            endpoint copy, so bound it where peers are not trusted.
        :param cuda_events: events of other processes are used, so that publishing need not wait for a kernel. They
            are files in the /dev/shm that both have: a peer that truncates one can end this process by SIGBUS.
        :raises InUse: another process listens there.
        """
        roles = (wire.SUBSCRIBER if publish else 0) | (wire.REQUESTER if serve else 0)
        if not roles:
            raise InvalidArgument("an endpoint publishes, serves, or both")
        return Endpoint(self.directory, check_name("endpoint", endpoint), roles, mode, credits, queue, peers, waiting,
                        cuda, max_copy, cuda_events)

    def publisher(self, endpoint: str, **options: Any) -> Endpoint:
        """Listens at an endpoint to publish tensors only; options as for :meth:`listen`."""
        return self.listen(endpoint, publish=True, serve=False, **options)

    def server(self, endpoint: str, **options: Any) -> Endpoint:
        """Listens at an endpoint to answer requests only; options as for :meth:`listen`."""
        return self.listen(endpoint, publish=False, serve=True, **options)

    def connect(self, endpoint: str, *, subscribe: bool = True, request: bool = True, credits: int = 0,
                queue: Optional[int] = None, policy: str = "oldest", timeout: float = 5.0, cuda: bool = False,
                cuda_events: bool = True) -> Connection:
        """Connects to an endpoint, to subscribe, to send requests, or both.

        :param credits: tensors to hold at once, 0 for the listener's default.
        :param queue: tensors that may wait at the listener beyond that, ``None`` for its default.
        :param policy: which one is dropped when they are too many, ``"oldest"`` or ``"newest"``.
        :param timeout: seconds for the handshake.
        :param cuda: tensors on GPUs come as memory of the GPU where that can be done, else as a copy.
        :param cuda_events: as for :meth:`listen`.
        :raises NotFound: nobody listens there.
        :raises PeerError: the listener has too many peers, or does not do what is asked for.
        """
        roles = (wire.SUBSCRIBER if subscribe else 0) | (wire.REQUESTER if request else 0)
        if not roles:
            raise InvalidArgument("a connection subscribes, sends requests, or both")
        return Connection(self.directory, check_name("endpoint", endpoint), roles, credits, queue, policy, timeout,
                          cuda, cuda_events)

    def subscribe(self, endpoint: str, **options: Any) -> Connection:
        """Subscribes to what an endpoint publishes; options as for :meth:`connect`."""
        return self.connect(endpoint, subscribe=True, request=False, **options)

    def requester(self, endpoint: str, **options: Any) -> Connection:
        """Connects to an endpoint to send requests; options as for :meth:`connect`."""
        return self.connect(endpoint, subscribe=False, request=True, **options)

    # -- the end

    def close(self) -> None:
        """Lets go of the directory. Tensors, endpoints and connections go on; close them by themselves."""
        directory, self._directory = self._directory, None
        if directory is not None:
            directory.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<isorun_channel.Channel {self._directory.path if self._directory else 'closed'}>"
