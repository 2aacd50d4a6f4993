"""What can go wrong, as one tree of exceptions.

Everything that this package raises on purpose is a :class:`ChannelError`. Its text is a sentence for the
reader: what was tried, on which object, why it failed.
"""

from __future__ import annotations

import errno as _errno
import os


class ChannelError(Exception):
    """The root of the tree."""


class InvalidArgument(ChannelError, ValueError):
    """A name, a shape, a dtype or an option that the caller gave is not allowed."""


class UnsupportedTensor(InvalidArgument, TypeError):
    """An object that is no tensor in this machine's memory, or of a type that a channel cannot carry."""


class NotFound(ChannelError, KeyError):
    """The channel, the endpoint or the named tensor is not there."""

    def __str__(self) -> str:
        # KeyError would print the sentence in quotes.
        return str(self.args[0]) if self.args else ""


class InUse(ChannelError):
    """The endpoint has a living listener, or the memory is mapped writable elsewhere and cannot be sealed."""


class Closed(ChannelError):
    """The peer has gone, or this side was closed."""


class Timeout(ChannelError, TimeoutError):
    """Nothing came within the time given."""


class NoSpace(ChannelError, OSError):
    """The channel's size limit, or the machine's memory, is used up."""


class ProtocolError(ChannelError):
    """A message that the protocol does not allow. The connection that it came from is closed."""


class DescriptorRefused(ProtocolError):
    """A descriptor that is no memfd, is not sealed as promised, or is smaller than its header says."""


class LayoutError(ProtocolError):
    """A dtype, shape, strides or offset that is unknown, over a limit, or outside its memory."""


class FileFormatError(ChannelError):
    """A file that is no valid safetensors file."""


class PeerError(ChannelError):
    """The other side answered a request with an error; :attr:`code` is the number that it gave."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class SystemFailure(ChannelError, OSError):
    """A system call failed for a reason that has no class of its own."""


def from_os(what: str, error: OSError) -> ChannelError:
    """The exception for a failed system call: ``what`` says the step and the object."""
    number = error.errno or 0
    text = f"{what}: {_errno.errorcode.get(number, 'errno %d' % number)}: {os.strerror(number)}"
    if number in (_errno.ENOSPC, _errno.EDQUOT):
        return NoSpace(number, text + "; the channel or the machine has no memory left")
    if number == _errno.ENOMEM:
        return NoSpace(number, text)
    if number in (_errno.ENOENT, _errno.ENOTDIR):
        return NotFound(text)
    if number in (_errno.EPIPE, _errno.ECONNRESET, _errno.ESHUTDOWN, _errno.ENOTCONN):
        return Closed(text)
    return SystemFailure(number, text)
