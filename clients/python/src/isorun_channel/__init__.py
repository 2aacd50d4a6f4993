"""Tensors shared with zero copies between containers and processes, over isorun's channels.

>>> import tempfile, isorun_channel as ic
>>> directory = tempfile.mkdtemp()               # in a container: ic.Channel("name")
>>> channel = ic.Channel(directory)
>>> with channel.publisher("updates") as publisher, channel.subscribe("updates") as subscriber:
...     tensor = channel.empty((2, 2), "f32")    # memory of the channel: it is sent without a copy
...     tensor.buffer()[1, 1] = 7.0
...     delivery = publisher.publish(tensor, name="w", tag=1)
...     with subscriber.receive(timeout=5) as message:
...         message.name, message.tag, message.tensor.tolist()
('w', 1, [[0.0, 0.0], [0.0, 7.0]])
>>> channel.close()

Pure Python, for Linux. numpy, torch and jax are used where they are there, and not needed.
"""

from __future__ import annotations

from .channel import Channel
from .connection import Connection, Message
from .cuda import CudaError, GpuCopyWarning, GpuTensor
from .dtypes import DTYPES, DType, dtype
from .endpoint import Delivery, Endpoint, Request
from .errors import (ChannelError, Closed, DescriptorRefused, FileFormatError, InUse, InvalidArgument, LayoutError,
                     NoSpace, NotFound, PeerError, ProtocolError, SystemFailure, Timeout, UnsupportedTensor)
from .layout import Layout
from .named import NewFile
from .tensor import Tensor, empty, tensor

__version__ = "0.1.0"

__all__ = [
    "Channel", "ChannelError", "Closed", "Connection", "CudaError", "DTYPES", "DType", "Delivery", "DescriptorRefused",
    "Endpoint", "FileFormatError", "GpuCopyWarning", "GpuTensor", "InUse", "InvalidArgument", "Layout", "LayoutError",
    "Message", "NewFile", "NoSpace", "NotFound", "PeerError", "ProtocolError", "Request", "SystemFailure", "Tensor",
    "Timeout", "UnsupportedTensor", "dtype", "empty", "tensor",
]
