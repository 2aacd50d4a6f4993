#!/usr/bin/env python3
"""The Python client's hand-over, in the form of channels-bench: one JSON object a line.

An immutable tensor is published; a time begins before publish() and ends when the other process, which sleeps until
then, has read the first and the last byte through a memoryview.
"""

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import isorun_channel

SIZES = [4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30]


def consume(directory):
    with isorun_channel.Channel(directory) as channel, channel.subscribe("python") as subscriber:
        while True:
            with subscriber.receive(timeout=60) as message:
                view = message.tensor.buffer()
                view[0], view[-1]
                took = time.monotonic_ns() - message.tag
                del view
            sys.stdout.buffer.write(struct.pack("<Q", took))
            sys.stdout.buffer.flush()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=1 << 62)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--consume", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.consume:
        return consume(options.consume)
    directory = tempfile.mkdtemp(prefix="isotest-bench-", dir="/dev/shm")
    channel = isorun_channel.Channel(directory)
    publisher = channel.publisher("python")
    child = subprocess.Popen([sys.executable, __file__, "--consume", directory], stdout=subprocess.PIPE)
    try:
        publisher.wait_for_subscribers(1, 30)
        for size in (size for size in SIZES if size <= options.most):
            tensor = channel.empty((size,), "u8").freeze()
            taken = []
            end = time.monotonic() + options.seconds
            while len(taken) < 2005 and (time.monotonic() < end or len(taken) < 8):
                publisher.wait_for_room(30)
                time.sleep(0.0001)
                publisher.publish(tensor, tag=time.monotonic_ns())
                taken += struct.unpack("<Q", child.stdout.read(8))
            taken = sorted(taken[5:])
            print(json.dumps({"way": "isorun-python", "size": size, "samples": len(taken),
                              "median": taken[(len(taken) - 1) // 2], "best": taken[0],
                              "p99": taken[(len(taken) - 1) * 99 // 100]}), flush=True)
    finally:
        child.kill()
        child.wait()
        publisher.close()
        channel.close()
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
