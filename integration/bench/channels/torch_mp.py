#!/usr/bin/env python3
"""torch.multiprocessing's hand-over, in the form of channels-bench: one JSON object a line.

A tensor in shared memory goes through a torch.multiprocessing queue, with the file_system strategy, which is the one
that works between containers that share /dev/shm. A time begins before put() and ends when the other process has read
the first and the last element.
"""

import argparse
import json
import time

import torch
import torch.multiprocessing as mp

SIZES = [4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30]


def consume(queue, times):
    while True:
        item = queue.get()
        if item is None:
            return
        begun, tensor = item
        tensor[0].item(), tensor[-1].item()
        took = time.monotonic_ns() - begun
        del tensor, item
        times.put(took)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=1 << 62)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    mp.set_sharing_strategy("file_system")
    context = mp.get_context("spawn")
    queue, times = context.SimpleQueue(), context.SimpleQueue()
    consumer = context.Process(target=consume, args=(queue, times))
    consumer.start()
    for way in ("torch-shared", "torch-copied"):
        for size in (size for size in SIZES if size <= options.most):
            tensor = torch.ones(size, dtype=torch.uint8)
            if way == "torch-shared":
                tensor.share_memory_()
            taken = []
            end = time.monotonic() + options.seconds
            while len(taken) < 2005 and (time.monotonic() < end or len(taken) < 6):
                time.sleep(0.0001)
                begun = time.monotonic_ns()
                # What is not in shared memory yet, the queue copies there.
                queue.put((begun, tensor if way == "torch-shared" else tensor.clone()))
                taken.append(times.get())
            taken = sorted(taken[5:])
            pick = lambda part: taken[(len(taken) - 1) * part // 100]
            print(json.dumps({"way": way, "size": size, "samples": len(taken), "median": pick(50), "best": taken[0],
                              "p99": pick(99)}), flush=True)
    queue.put(None)
    consumer.join()


if __name__ == "__main__":
    main()
