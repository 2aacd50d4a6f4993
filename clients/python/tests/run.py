"""Runs the tests and ends with the line `N passed, N failed, N skipped`.

usage: python tests/run.py [MODULE]...      (test_wire, test_tensor, ...; all of them without one)
"""

from __future__ import annotations

import pathlib
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent


def main() -> int:
    # For `tests.`; the package itself is where the interpreter finds it.
    sys.path.insert(0, str(HERE.parent))
    loader = unittest.TestLoader()
    if len(sys.argv) > 1:
        suite = loader.loadTestsFromNames([f"tests.{name}" for name in sys.argv[1:]])
    else:
        suite = loader.discover(str(HERE), top_level_dir=str(HERE.parent))
    result = unittest.TextTestRunner(verbosity=1).run(suite)
    for test, reason in result.skipped:
        print(f"skipped: {test.id()}: {reason}")
    failed = len({test.id().partition(" ")[0] for test, _ in result.failures + result.errors})
    failed += len(result.unexpectedSuccesses)
    # A class that is skipped as a whole did not count as a test that ran.
    skipped = sum(isinstance(test, unittest.TestCase) for test, _ in result.skipped)
    print(f"{max(result.testsRun - failed - skipped, 0)} passed, {failed} failed, "
          f"{len(result.skipped)} skipped", flush=True)
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main())
