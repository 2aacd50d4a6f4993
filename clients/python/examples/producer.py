#!/usr/bin/env python3
"""Publishes tensors on an endpoint, and answers requests.

    producer.py CHANNEL ENDPOINT [--count N] [--elements N] [--subscribers N] [--pause MS] [--shared] [--serve SECONDS]

CHANNEL is a name or a directory. Waits for the subscribers, then publishes f32 tensors: number i has i in every
element, the tag i and the name "step". With --shared it is one buffer, written again when it is free. With --serve it
answers requests for so long: "echo" with the question's tensor, "zeros" with 8 f64, "fail" with an error.
"""

import argparse
import array
import time

import isorun_channel as ic


def fill(tensor: ic.Tensor, value: float) -> None:
    """Without numpy, to run anywhere; with it: tensor.numpy()[:] = value."""
    tensor.bytes_view()[:] = array.array("f", [value]).tobytes() * tensor.size


def answer(request: ic.Request) -> None:
    if request.name == "echo":
        request.reply(request.tensor, name=request.name, tag=request.tag, meta=request.meta)
    elif request.name == "zeros":
        request.reply(ic.empty(8, "f64"), name=request.name, tag=request.tag)
    else:
        request.fail(f"no answer to {request.name!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description="publish tensors on an endpoint, and answer requests")
    parser.add_argument("channel")
    parser.add_argument("endpoint")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--elements", type=int, default=1024)
    parser.add_argument("--subscribers", type=int, default=1)
    parser.add_argument("--pause", type=int, default=0, metavar="MS")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--serve", type=float, default=0, metavar="SECONDS")
    options = parser.parse_args()

    with ic.Channel(options.channel) as channel, channel.listen(options.endpoint) as endpoint:
        print("listening", flush=True)
        endpoint.wait_for_subscribers(options.subscribers, 30)
        buffer = channel.empty(options.elements, "f32")
        for i in range(options.count):
            if not options.shared:
                buffer = channel.empty(options.elements, "f32")
            fill(buffer, i)
            delivery = endpoint.publish(buffer, name="step", tag=i, shared=options.shared)
            if options.shared:
                delivery.wait(30)
            time.sleep(options.pause / 1000)
        print(f"published {options.count}", flush=True)
        end = time.monotonic() + options.serve
        while time.monotonic() < end:
            try:
                with endpoint.next_request(max(end - time.monotonic(), 0)) as request:
                    answer(request)
            except ic.Timeout:
                pass
        endpoint.drain(30)


if __name__ == "__main__":
    main()
