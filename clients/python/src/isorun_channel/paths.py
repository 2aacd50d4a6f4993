"""Names and files of a channel's directory: docs/channel-protocol.md, section 1."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import time
import weakref
from typing import Any, Dict, Optional, Union

from .errors import ChannelError, InUse, InvalidArgument, NotFound, Timeout, from_os

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_CHANNEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")


def check_name(what: str, name: str) -> str:
    """That ``name`` may be the name of an endpoint or a named tensor.

    :raises InvalidArgument: it may not.
    """
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidArgument(f"{what} {name!r}: 1 to 64 of a-z A-Z 0-9 . _ -, the first one a letter or a digit")
    return name


def variable(channel: str) -> str:
    """The environment variable that says where a channel is."""
    return "ISORUN_CHANNEL_" + channel.upper().replace("-", "_").replace(".", "_")


def find(channel: Union[str, "os.PathLike[str]"]) -> str:
    """The directory of a channel, by its name; what has a slash in it, or is a path object, is the directory.

    :raises InvalidArgument: no name of a channel.
    :raises NotFound: there is no such channel here.
    """
    if not isinstance(channel, str) or "/" in channel:
        return os.fspath(channel)
    if not _CHANNEL.match(channel):
        raise InvalidArgument(f"channel {channel!r}: 1 to 64 of a-z 0-9 . _ -, the first one a letter or a digit")
    told = os.environ.get(variable(channel))
    if told:
        return told
    tried = [f"/run/isorun/channels/{channel}"]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        tried.append(f"{runtime}/isorun/channels/{channel}")
    for path in tried:
        if os.path.isdir(path):
            return path
    raise NotFound(f"channel {channel!r}: {variable(channel)} is not set, and there is no {' and no '.join(tried)}; "
                   "has this container joined it (annotation io.isorun.channels), or does the host have it "
                   "(isorun channel list)?")


class Directory:
    """A channel's directory, held open: whatever happens to its path, it stays the same channel."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise from_os(f"open the channel's directory {path}", error) from None

    def close(self) -> None:
        """Closes it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def entry(self, name: str) -> str:
        """A path of an entry that is short enough for bind(2) and connect(2)."""
        through = f"/proc/self/fd/{self.fd}/{name}"
        return through if os.path.isdir("/proc/self/fd") else f"{self.path}/{name}"

    def unlink(self, name: str) -> None:
        """Removes an entry, if it is there and may be removed."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except OSError:
            pass


# Listening sockets and locks: a child made by fork must not keep them alive when its parent has gone.
_claims: "weakref.WeakSet[Claim]" = weakref.WeakSet()


class Claim:
    """This process's right to an endpoint: the lock, and the socket that listens."""

    def __init__(self, directory: Directory, endpoint: str, mode: int, backlog: int = 64) -> None:
        """:raises InUse: somebody listens there."""
        self._directory = directory
        self.endpoint = endpoint
        self._lock = self._take(f".{endpoint}.lock")
        try:
            self.socket = self._listen(mode, backlog)
        except OSError as error:
            self._drop()
            raise from_os(f"listen at endpoint {endpoint} of {directory.path}", error) from None
        except BaseException:
            self._drop()
            raise
        _claims.add(self)

    def _take(self, name: str) -> int:
        what = f"lock endpoint {self.endpoint} of {self._directory.path}"
        for _ in range(16):
            try:
                fd = os.open(name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600,
                             dir_fd=self._directory.fd)
            except OSError as error:
                if error.errno == errno.EROFS:
                    raise ChannelError(f"{what}: EROFS: the channel is joined read-only here, so nobody can listen "
                                       "in it") from None
                raise from_os(what, error) from None
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held, there = os.fstat(fd), os.stat(name, dir_fd=self._directory.fd, follow_symlinks=False)
                if (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino):
                    return fd
            except FileNotFoundError:
                pass
            except OSError as error:
                os.close(fd)
                if error.errno == errno.EWOULDBLOCK:
                    raise InUse(f"endpoint {self.endpoint} of {self._directory.path} is in use: another process "
                                "listens there") from None
                raise from_os(what, error) from None
            os.close(fd)
        raise InUse(f"{what}: somebody removes the lock file again and again")

    def _listen(self, mode: int, backlog: int) -> socket.socket:
        at, new = self._directory.fd, f".{self.endpoint}.new"
        self._directory.unlink(new)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.bind(self._directory.entry(new))
            try:
                # Not by path: somebody could have put a symbolic link there since.
                held = os.open(new, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
                try:
                    if not stat.S_ISSOCK(os.fstat(held).st_mode):
                        raise ChannelError(f"{self._directory.path}/{new} was replaced while it was made")
                    os.chmod(f"/proc/self/fd/{held}", mode)
                finally:
                    os.close(held)
                sock.listen(backlog)
                os.rename(new, f"{self.endpoint}.sock", src_dir_fd=at, dst_dir_fd=at)
            except BaseException:
                self._directory.unlink(new)
                raise
        except BaseException:
            sock.close()
            raise
        return sock

    def _drop(self) -> None:
        self._directory.unlink(f".{self.endpoint}.lock")
        os.close(self._lock)
        self._lock = -1

    def close(self) -> None:
        """Gives the endpoint up. Its names go first, so that nobody meets a socket that refuses."""
        if self._lock < 0:
            return
        _claims.discard(self)
        self._directory.unlink(f"{self.endpoint}.sock")
        self.socket.close()
        self._drop()

    def forget(self) -> None:
        """Closes this process's descriptors, and leaves the endpoint to the others that have it."""
        if self._lock >= 0:
            self.socket.close()
            os.close(self._lock)
            self._lock = -1


def connect(directory: Directory, endpoint: str, deadline: float) -> socket.socket:
    """A socket connected to an endpoint.

    :raises NotFound: there is no such endpoint, or nobody listens there any more.
    :raises Timeout: it did not take the connection in time.
    """
    where = f"endpoint {endpoint} of {directory.path}"
    try:
        fd = os.open(f"{endpoint}.sock", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
    except FileNotFoundError:
        raise NotFound(f"{where}: nobody listens there (there is no {endpoint}.sock)") from None
    except OSError as error:
        raise from_os(f"open {where}", error) from None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ChannelError(f"{where} is no socket: a member of the channel put something else there")
        path = f"/proc/self/fd/{fd}" if os.path.isdir("/proc/self/fd") else f"{directory.path}/{endpoint}.sock"
        while True:
            try:
                sock.connect(path)
                return sock
            except ConnectionRefusedError:
                raise NotFound(f"{where}: nobody listens there any more; the socket is left from a process that "
                               "was killed") from None
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Timeout(f"{where}: its backlog of connections is full") from None
                time.sleep(0.005)
            except OSError as error:
                raise from_os(f"connect to {where}", error) from None
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(fd)


# What else must not live on in a child, by weak reference: connections and their sockets.
_links: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()


def not_for_children(thing: Any) -> None:
    """Has ``thing.forget()`` called in every child that fork makes."""
    _links[id(thing)] = thing


def _in_child() -> None:
    forgotten: Dict[int, Any] = dict(_links.items())
    for thing in [*forgotten.values(), *_claims]:
        try:
            thing.forget()
        except OSError:
            pass
    _links.clear()
    _claims.clear()


os.register_at_fork(after_in_child=_in_child)


def time_limit(timeout: Optional[float]) -> Optional[float]:
    """The deadline of a timeout in seconds; ``None`` waits for ever.

    :raises InvalidArgument: negative, or no number.
    """
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise InvalidArgument(f"timeout {timeout!r}: seconds, at least 0, or None to wait for ever")
    return time.monotonic() + timeout
