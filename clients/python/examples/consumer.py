#!/usr/bin/env python3
"""Subscribes to an endpoint and prints a line for each tensor, or asks it.

    consumer.py CHANNEL ENDPOINT [--count N] [--timeout MS] [--hold N] [--work MS]
    consumer.py CHANNEL ENDPOINT --ask NAME [--elements N]

CHANNEL is a name or a directory. The endpoint may come later than the consumer: it is tried until the time-out. A
line: tag, name, dtype, shape, first and last element, how many were lost so far. --hold keeps so many tensors.
"""

import argparse
import array
import time
from collections import deque
from typing import Any, Callable

import isorun_channel as ic


def patiently(seconds: float, connect: Callable[[], Any]) -> Any:
    end = time.monotonic() + seconds
    while True:
        try:
            return connect()
        except ic.NotFound:
            if time.monotonic() >= end:
                raise
            time.sleep(0.005)


def line(message: ic.Message) -> str:
    tensor = message.tensor
    if tensor is None:
        return f"{message.tag} {message.name} none lost={message.lost}"
    text = f"{message.tag} {message.name} {tensor.dtype} {list(tensor.shape)}"
    if tensor.size:
        flat = tensor.bytes_view().cast({"f32": "f", "f64": "d"}.get(tensor.dtype.name, "B"))
        text += f" first={flat[0]:g} last={flat[-1]:g}"
    return f"{text} lost={message.lost}"


def main() -> None:
    parser = argparse.ArgumentParser(description="subscribe to an endpoint, or ask it")
    parser.add_argument("channel")
    parser.add_argument("endpoint")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--timeout", type=int, default=10000, metavar="MS")
    parser.add_argument("--hold", type=int, default=0)
    parser.add_argument("--work", type=int, default=0, metavar="MS")
    parser.add_argument("--ask", metavar="NAME")
    parser.add_argument("--elements", type=int, default=0)
    options = parser.parse_args()
    seconds = options.timeout / 1000

    with ic.Channel(options.channel) as channel:
        if options.ask:
            question = None
            if options.elements:
                question = channel.tensor(array.array("f", [42]) * options.elements)
            with patiently(seconds, lambda: channel.requester(options.endpoint)) as requester:
                with requester.request(question, name=options.ask, tag=7, meta=b"meta", timeout=seconds) as answer:
                    print(line(answer), flush=True)
            return
        held: "deque[ic.Message]" = deque()
        with patiently(seconds, lambda: channel.subscribe(options.endpoint)) as subscriber:
            for _ in range(options.count):
                message = subscriber.receive(seconds)
                print(line(message), flush=True)
                held.append(message)
                while len(held) > options.hold:
                    held.popleft().release()
                time.sleep(options.work / 1000)


if __name__ == "__main__":
    main()
