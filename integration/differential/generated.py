"""The generator: random configurations, wrong ones and sequences of commands, under runc and isorun.

A case is known by its name, KIND:SEED:NUMBER, and made from it alone. Where isorun does otherwise than runc, the
case runs again (a race shows once), then under crun (who is alone?), and is made small by itself. What is left
is a failure, or stands in generated.toml with its reason and an example in found/, which is run each time.

The last line is: N passed, N failed, N skipped. One case is one test.
"""

import argparse
import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import generate
import judge
import mutate
import sequences
import shrink
import world
from view import build_probe

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
ORACLES = HERE.parent / "oracles"
FOUND = HERE / "found"
PATH = "/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KINDS = {"valid": generate.valid, "invalid": mutate.invalid, "sequence": sequences.sequence}
# What CI runs: cases of each kind, of these seeds.
QUICK = {"valid": 100, "invalid": 100, "sequence": 45}
FULL = {"valid": 900, "invalid": 900, "sequence": 400}
SEED = 1
# Of cgroup v2: what generated limits need.
CONTROLLERS = {"cpu", "cpuset", "memory", "pids"}
# Seconds after which the quick part begins no further cases, on a machine that is busy with other things.
QUICK_LIMIT = 300
# Shrinking takes this many cases at most, and tries so often.
SHRUNK, TRIES = 6, 120


def arguments(argv):
    parser = argparse.ArgumentParser(prog="differential/run --generate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED, help=f"another seed than CI's ({SEED})")
    parser.add_argument("--count", type=int, help="cases of each kind (default: " + ", ".join(
        f"{count} {kind}" for kind, count in FULL.items()) + ")")
    parser.add_argument("--quick", action="store_true", help="the part that tests/run runs")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; may be repeated")
    parser.add_argument("--case", action="append", default=[], metavar="NAME|FILE",
                        help="only this one: KIND:SEED:NUMBER, or a file with a case as it is printed")
    parser.add_argument("--all", action="store_true", help="also show the differences that are explained")
    parser.add_argument("--show", action="store_true", help="print each case of --case and what both say")
    parser.add_argument("--no-shrink", action="store_true", help="leave failures as they are")
    parser.add_argument("--save", metavar="DIR", help="write the small cases into this directory")
    parser.add_argument("--limit", type=int, metavar="S",
                        help=f"begin no further cases after S seconds (default: none; {QUICK_LIMIT} with --quick)")
    parser.add_argument("--machine", action="store_true",
                        help="in this machine as it is, with its runc and v2 controllers (the lab)")
    return parser.parse_args(argv)


def wanted(options):
    """The cases to run, those in found/ first."""
    if options.case:
        return [json.loads(Path(name).read_text()) if os.path.exists(name) else
                KINDS[name.split(":")[0]](*map(int, name.split(":")[1:]), machine=options.machine)
                for name in options.case]
    cases = [json.loads(path.read_text()) for path in sorted(FOUND.glob("*.json"))]
    if options.machine:
        # Limits of v1 files show nothing there.
        cases = [case | {"view": "machine"} for case in cases if case["view"] == "v2"]
    counts = QUICK if options.quick else FULL
    for kind, make in KINDS.items():
        if not options.kind or kind in options.kind:
            cases += [make(options.seed, number, machine=options.machine)
                      for number in range(options.count or counts[kind])]
    return cases


def limited(content):
    """Whether a bundle asks for limits of a controller."""
    linux = (content.get("config") or {}).get("linux") or {}
    return any(name != "devices" for name in linux.get("resources") or {})


class Runner:
    """Runs cases in their views, and keeps what came out."""

    def __init__(self, work, isorun):
        self.work, self.isorun = work, isorun
        self.pools, self.keepers, self.outside = {}, [], {}
        self.runs = 0

    def pool(self, view):
        if view not in self.pools:
            keeper, pid = world.start(self.work, view, self.isorun, ORACLES / "enter")
            self.keepers.append(keeper)
            document = json.loads((self.work / f"outside-{view}.json").read_text())
            self.outside[view] = {"outside": {name.removeprefix("namespace "): value for name, value in document.items()
                                              if name.startswith("namespace ")}}
            self.pools[view] = world.Pool(view, pid, PATH, 2)
        return self.pools[view]

    def fields(self, cases, runtimes):
        """(index of the case, runtime) -> fields, for all of one call."""
        found = {}
        for view in dict.fromkeys(case["view"] for case in cases):
            pool = self.pool(view)
            jobs = (((number, runtime), case, runtime) for number, case in enumerate(cases) if case["view"] == view
                    for runtime in runtimes)
            for key, raw in pool.run(jobs):
                self.runs += 1
                found[key] = judge.fields(raw, self.outside[view])
        return found

    def close(self):
        for pool in self.pools.values():
            pool.close()
        for keeper in self.keepers:
            world.stop(keeper)


class Judgement:
    """Compares, tries again, asks crun, makes small, prints."""

    def __init__(self, runner, entries, options):
        self.runner, self.entries, self.options = runner, entries, options
        self.counts = collections.Counter()
        self.seen = collections.Counter()
        self.shrunk = 0
        self.pending = []

    def unexplained(self, case, found, number=0):
        """What differs between isorun and runc, and nothing explains."""
        ours = found[number, "isorun"]
        said = [value for name, value in ours.items() if name.rpartition("| ")[2] == "refused"]
        left = []
        self.pending = []
        for difference in judge.differences(ours, found[number, "runc"]):
            entry = judge.excuse(self.entries, case, difference, said)
            if entry is None:
                left.append(difference)
            elif entry.get("pending"):
                self.pending.append(entry["reason"])
            elif self.options.all:
                print(f"explained: {case['name']}: {difference}: {entry['reason']}")
        return left

    def again(self, case, left):
        """What still differs after further runs, and what isorun alone did otherwise than before."""
        unsteady = []
        for _ in range(2):
            found = self.runner.fields([case], ("isorun", "runc"))
            names = {difference[0] for difference in self.unexplained(case, found)}
            gone = [difference for difference in left if difference[0] not in names]
            unsteady += judge.unsteady(gone, found[0, "isorun"], found[0, "runc"])
            left = [difference for difference in left if difference[0] in names]
            if not left:
                break
        return left + unsteady

    def judge(self, case, found, number):
        left = self.unexplained(case, found, number)
        if left:
            first = left
            left = self.again(case, left)
            if not left:
                self.counts["races"] += 1
                print(f"race: {case['name']}: {first[0]}: not again")
        if not left and self.pending:
            self.counts["skipped"] += 1
            print(f"skipped: {case['name']}: pending: {self.pending[0]}")
            return
        if not left:
            self.counts["passed"] += 1
            return
        self.counts["failed"] += 1
        kind = re.sub(r"\d+", "N", "{} {:.99} {:.99}".format(*left[0]))
        self.seen[kind] += 1
        print(f"\nFAILED {case['name']}")
        self.tell(case, left)
        if self.seen[kind] > 1:
            print("    as one before: not made small")
        elif not self.options.no_shrink and self.shrunk < SHRUNK * (10 if self.options.save else 1):
            self.shrunk += 1
            self.make_small(case, left)
        sys.stdout.flush()

    def tell(self, case, left):
        crun = self.runner.fields([case], ("crun",))[0, "crun"] if case["view"] == "v2" else None
        for field, a, b in left[:6]:
            third = ""
            if crun is not None:
                plain = field.removesuffix("verdict")
                c = crun.get(field, "-") if plain == field else \
                    "refused: " + crun[plain + "refused"] if plain + "refused" in crun else "taken"
                third = f", crun {c!r}"
            print(f"    {field}: isorun {a!r}, runc {b!r}{third}")
        if len(left) > 6:
            print(f"    and {len(left) - 6} more")

    def make_small(self, case, left):
        field = left[0][0].rpartition("| ")[2]
        # The end of an error says what it is about.
        ours, theirs = (re.sub(r"\d+", "N", text)[-60:] for text in left[0][1:])

        def still(candidate):
            found = self.runner.fields([candidate], ("isorun", "runc"))
            return any(name.rpartition("| ")[2] == field and re.sub(r"\d+", "N", a)[-60:] == ours and
                       re.sub(r"\d+", "N", b)[-60:] == theirs
                       for name, a, b in self.unexplained(candidate, found))

        small = shrink.shrink(case, still, TRIES)
        target = Path(self.options.save or tempfile.gettempdir()) / (case["name"].replace(":", "-") + ".json")
        target.write_text(json.dumps(small, indent=1) + "\n")
        print(f"    small: {json.dumps(small)}")
        print(f"    again: integration/differential/run --generate --case {case['name']}; the small one: --case {target}")


def stale(entries):
    """Entries of generated.toml that explain nothing any more."""
    return [entry for entry in entries if entry.get("own") and not entry.get("used") and
            (entry.get("pending") or not entry.get("optional"))]


def load():
    """Both tables; those of generated.toml are marked."""
    entries = []
    for name in ("generated.toml", "differences.toml"):
        with (HERE / name).open("rb") as file:
            for entry in tomllib.load(file).get("difference", []):
                entries.append(entry | {"own": name == "generated.toml"})
    return entries


def main(argv, isorun):
    options = arguments(argv)
    # Each line as it comes, into a pipe, too.
    sys.stdout.reconfigure(line_buffering=True)
    cases, unable = wanted(options), 0
    if os.geteuid():
        sys.exit("differential/run: the runtimes make containers: run it as root")
    if not options.machine:
        if subprocess.run([ORACLES / "build"], stdout=subprocess.DEVNULL, check=False).returncode:
            print(f"skipped: none of the {len(cases)} generated cases could run: the sid root with runc and crun "
                  "could not be downloaded (see above)")
            print("0 passed, 0 failed, 1 skipped")
            return 0
        if not Path("/sys/fs/cgroup/memory").is_dir():
            skipped = [case for case in cases if case["view"] == "v1"]
            cases = [case for case in cases if case["view"] != "v1"]
            for case in skipped:
                unable += 1
                print(f"skipped: {case['name']}: this machine has no v1 controllers")
    elif missing := CONTROLLERS - set(Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()):
        skipped = [case for case in cases if any(limited(content) for content in case["bundles"].values())]
        cases = [case for case in cases if case not in skipped]
        for case in skipped:
            unable += 1
            print(f"skipped: {case['name']}: it has limits, and this machine has no controller {' '.join(sorted(missing))}")
    start = time.monotonic()
    entries = load()
    work = Path(tempfile.mkdtemp(prefix="isorun-generated-"))
    work.chmod(0o755)
    runner = Runner(work, isorun)
    judgement = Judgement(runner, entries, options)
    late = []
    # Ended by a signal, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("differential/run: ended by SIGTERM"))
    # An emulated machine is slow: what is known comes soon.
    size = 4 if options.machine else 40
    limit = options.limit or (QUICK_LIMIT if options.quick else None)
    try:
        if "ISORUN_PROBE" in os.environ:
            shutil.copy(os.environ["ISORUN_PROBE"], work / "probe")
        else:
            build_probe(work)
        for at in range(0, len(cases), size):
            if limit and time.monotonic() - start > limit:
                late = cases[at:]
                break
            batch = cases[at:at + size]
            found = runner.fields(batch, ("isorun", "runc"))
            for number, case in enumerate(batch):
                if options.show:
                    print(json.dumps(case))
                    for runtime in ("isorun", "runc"):
                        words = {name: value for name, value in found[number, runtime].items()
                                 if options.all or re.search(r"exit status|refused|output|left|verdict", name)}
                        print(f"  {runtime}: {json.dumps(words)}")
                judgement.judge(case, found, number)
            if options.machine:
                print(f"{at + len(batch)} of {len(cases)} cases after {time.monotonic() - start:.0f} s")
    finally:
        runner.close()
        shutil.rmtree(work, ignore_errors=True)
    counts = judgement.counts
    counts["skipped"] += unable
    for case in late:
        counts["skipped"] += 1
        print(f"skipped: {case['name']}: {limit} s were over")
    if not (late or options.case or options.kind or options.machine or options.count or options.seed != SEED):
        for entry in stale(entries):
            counts["failed"] += 1
            print(f"generated.toml: matches nothing any more: {entry['reason']}")
    print(f"seed {options.seed}: {len(cases)} cases in {time.monotonic() - start:.0f} s, {runner.runs} runs, "
          f"{counts['races']} races")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 1 if counts["failed"] else 0
