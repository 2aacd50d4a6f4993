#!/usr/bin/env python3
"""Asks the driver itself, without a channel: what becomes of a handle in another process.

probe.py export KIND      prints a handle and waits for a line; KIND is legacy, event, torch or torch-expandable
probe.py import KIND      reads the handle, opens it, and prints `passed`, or what the driver said
"""

from __future__ import annotations

import base64
import os
import pathlib
import pickle
import sys
from ctypes import byref, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "clients/python/src"))
from isorun_channel import cuda  # noqa: E402

SIZE = 4 << 20


def torch_tensor(kind: str):
    if kind == "torch-expandable":
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    import torch

    return torch.full((SIZE,), 7, dtype=torch.uint8, device="cuda")


def export(kind: str) -> None:
    if kind.startswith("torch"):
        from torch.multiprocessing.reductions import reduce_tensor

        tensor = torch_tensor(kind)
        raw = pickle.dumps(reduce_tensor(tensor))
    else:
        gpu, driver = cuda.Gpu.all()[0], cuda.driver()
        gpu.__enter__()
        if kind == "event":
            event = cuda._Event(gpu, 0, True)
            raw = event.handle()
        else:
            pointer, handle = c_uint64(), cuda._Handle()
            driver("cuMemAlloc_v2", byref(pointer), c_size_t(SIZE))
            driver("cuMemsetD8Async", pointer, c_ubyte(7), c_size_t(SIZE), c_void_p(0))
            cuda._Event(gpu, 0, False).wait("the fill")
            driver("cuIpcGetMemHandle", byref(handle), pointer)
            raw = bytes(handle.bytes)
    print(base64.b64encode(raw).decode(), flush=True)
    sys.stdin.readline()


def take(kind: str) -> None:
    raw = base64.b64decode(sys.stdin.readline())
    if kind.startswith("torch"):
        import torch  # noqa: F401

        rebuild, arguments = pickle.loads(raw)
        tensor = rebuild(*arguments)
        print("passed" if bool((tensor == 7).all()) else "wrong data")
        return
    gpu, driver = cuda.Gpu.all()[0], cuda.driver()
    gpu.__enter__()
    if kind == "event":
        cuda._Event.opened(gpu, raw).wait("an event of another process", 20)
        print("passed")
        return
    pointer = c_uint64()
    driver("cuIpcOpenMemHandle_v2", byref(pointer), cuda._handle(raw), c_uint(1))
    data = bytes(cuda.copied(gpu, pointer.value, SIZE).buffer(0, SIZE))
    driver("cuIpcCloseMemHandle", pointer)
    print("passed" if data == b"\7" * SIZE else "wrong data")


if __name__ == "__main__":
    try:
        export(sys.argv[2]) if sys.argv[1] == "export" else take(sys.argv[2])
    except Exception as error:  # noqa: BLE001: the cell of the table
        print(f"{type(error).__name__}: {error}".splitlines()[0], flush=True)
        sys.exit(1)
