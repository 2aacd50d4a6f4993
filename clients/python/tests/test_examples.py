"""The example programs, and the two clients with each other: Python's programs and Rust's."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import unittest
from typing import Dict, List

from .support import ChannelTest

HERE = pathlib.Path(__file__).resolve()
PYTHON = HERE.parents[1] / "examples"
RUST = HERE.parents[2] / "rust" / "target"


def programs(client: str, which: str) -> "List[str] | None":
    """How to run a client's example; ``None``: it is not built."""
    if client == "python":
        return [sys.executable, "-u", str(PYTHON / f"{which}.py")]
    found = sorted(RUST.glob(f"**/debug/examples/{which}"), key=os.path.getmtime)
    return [str(found[-1])] if found else None


class Examples(ChannelTest):
    def run_pair(self, producer: str, consumer: str, give: List[str], take: List[str]) -> str:
        environment: Dict[str, str] = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        first, second = programs(producer, "producer"), programs(consumer, "consumer")
        if first is None or second is None:
            self.skipTest("the Rust client's examples are not built (cargo build --examples in clients/rust)")
        running = subprocess.Popen([*first, self.directory, "frames", *give], env=environment, stdout=subprocess.PIPE,
                                   text=True)
        try:
            done = subprocess.run([*second, self.directory, "frames", *take], env=environment, stdout=subprocess.PIPE,
                                  text=True, timeout=60)
            self.assertEqual(done.returncode, 0, done.stdout)
            if "--serve" in give:
                running.kill()  # it would go on; the next one takes its socket over
            else:
                self.assertEqual(running.wait(60), 0)
                self.assertEqual(self.entries(), [])
        finally:
            if running.poll() is None:
                running.kill()
            running.wait(10)
            if running.stdout is not None:
                running.stdout.close()
        return done.stdout

    def all_of_it(self, producer: str, consumer: str) -> None:
        for extra in ([], ["--shared"]):
            with self.subTest(shared=bool(extra)):
                said = self.run_pair(producer, consumer, ["--count", "4", "--elements", "1000", *extra], ["--count", "4"])
                self.assertEqual(said.splitlines(),
                                 [f"{i} step f32 [1000] first={i} last={i} lost=0" for i in range(4)])
        # The asking consumer does not subscribe.
        serve = ["--count", "0", "--subscribers", "0", "--serve", "60"]
        self.assertEqual(self.run_pair(producer, consumer, serve, ["--ask", "echo", "--elements", "3"]),
                         "7 echo f32 [3] first=42 last=42 lost=0\n")
        self.assertEqual(self.run_pair(producer, consumer, serve, ["--ask", "zeros"]).split()[1:4],
                         ["zeros", "f64", "[8]"])

    def test_python_to_python(self) -> None:
        self.all_of_it("python", "python")

    def test_python_to_rust(self) -> None:
        self.all_of_it("python", "rust")

    def test_rust_to_python(self) -> None:
        self.all_of_it("rust", "python")


if __name__ == "__main__":
    unittest.main()
