#!/usr/bin/env python3
"""Command lines, right and wrong, under isorun and runc: exit status, where the text goes, and its phrases.

Each line of the table runs under both, among the oracles (integration/oracles/enter), on a container of its
own in the state that it asks for. Compared are the exit status, whether there is something on stdout, on
stderr and as an error in --log (JSON), what is in the state root afterwards, and the words that the table
names. Where no container is left there may be no cgroup either, and no process in one. What isorun does
otherwise stands in the table with its reason; a reason for something that is not so any more is a failure.

usage: integration/differential/commands.py [--show] [WORD]...
  Only lines with one of these words; --show prints what both said.
The last line is: N passed, N failed, N skipped.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "x86_64-unknown-linux-gnu"
RUNTIMES = ("isorun", "runc")


@dataclass
class Line:
    """One command line: `@` stands for the runtime with its global flags, `c` for the container."""
    command: str
    # What the container is when the line runs: none, created, running, paused, stopped.
    state: str = ""
    # A pattern that what both say has to have; or one for isorun and one for runc.
    says: object = None
    # The exit statuses, where they are not the same: isorun's and runc's.
    status: tuple = ()
    # What else differs: stdout, stderr, log, left.
    streams: tuple = ()
    # Why it differs.
    why: str = ""


TABLE = []


def line(command, state="", says=None, **rest):
    TABLE.append(Line(command, state, says, **rest))


# Run in the oracles' root: reads `number state` and takes line number from /work/lines.
DRIVER = r"""
mkdir /tmp/bin; busybox --install -s /tmp/bin; export PATH=$PATH:/tmp/bin
rt=$1
g() { timeout -k 1 20 $rt --root /run/s "$@" </dev/null; }
cgroups() {
	for at in $(find /sys/fs/cgroup -mindepth 1 -type d ! -path '*/self'); do
		[ ! -d $at ] || echo "$at: $(wc -l <$at/cgroup.procs) processes"
	done
}
while read -r number state; do
	out=/work/out/$rt/$number; mkdir -p $out
	case $state in
	none) ;;
	created) g create -b /work/b c ;;
	running|paused) g run -d -b /work/b c ;;
	stopped) g run -d -b /work/b c; g kill c KILL; until g state c | grep -q stopped; do sleep 0.02; done ;;
	esac >$out/setup 2>&1
	[ $state != paused ] || g pause c >>$out/setup 2>&1
	[ $state = none ] || g state c >>$out/setup 2>&1 || echo "$number $state" >>/work/out/$rt/broken
	cd /run
	R="timeout -k 1 20 $rt --root /run/s --log $out/log --log-format json"
	( . /work/lines/$number ) >$out/stdout 2>$out/stderr </dev/null
	echo $? >$out/status
	ls -A /run/s >$out/left 2>/dev/null
	if [ ! -s $out/left ]; then
		# What has been killed needs a moment to be gone.
		for wait in 1 2 3 4 5 6 7 8 9 10; do
			cgroups >$out/cgroups; [ -s $out/cgroups ] || break; sleep 0.05
		done
	fi
	g delete --force c >/dev/null 2>&1
	for left in $(ls /run/s 2>/dev/null); do
		g delete --force $left >/dev/null 2>&1
	done
	rm -f /run/pid /run/config.json
done </work/todo
"""


def config(args, **changes):
    process = {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/",
               "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}}
    process.update(changes)
    return {"ociVersion": "1.2.0", "process": process, "root": {"path": "/work/rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                       {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                       {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                        "options": ["newinstance", "ptmxmode=0666"]}],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]}}


def prepare(work, lines):
    root = work / "rootfs"
    for name in ("bin", "etc", "proc", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "true", "false", "sleep", "id", "kill", "cat"):
        (root / "bin" / applet).symlink_to("busybox")
    bundles = {"b": config(["sleep", "1000"]), "tty": config(["true"], terminal=True), "noprog": config(["/no/such"]),
               "dirprog": config(["/etc"]), "seven": config(["sh", "-c", "exit 7"]),
               "killed": config(["sh", "-c", "kill -9 $$"], cwd="/")}
    # Who takes over an orphan: without a pid namespace not the container's first process.
    orphan = "sleep 0.3; read -r pid name state parent rest </proc/self/stat; echo by $(cat /proc/$parent/comm)"
    bundles["orphan"] = config(["sh", "-c", f"sh -c '({orphan}) &'; sleep 1"])
    bundles["orphan"]["linux"]["namespaces"] = [{"type": kind} for kind in ("ipc", "uts", "mount", "network")]
    for name, content in bundles.items():
        (work / name).mkdir()
        (work / name / "config.json").write_text(json.dumps(content))
    (work / "proc.json").write_text(json.dumps({"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/",
                                                "env": ["PATH=/bin"]}))
    (work / "bad.json").write_text("{")
    (work / "lines").mkdir()
    for number, entry in enumerate(lines):
        # Double quotes are the table's; the runtime's words are split.
        (work / "lines" / str(number)).write_text(re.sub(r"(^|[ ;|(])@( |$)", r"\1$R\2", entry.command) + "\n")
    (work / "todo").write_text("".join(f"{number} {entry.state or 'none'}\n" for number, entry in enumerate(lines)))
    (work / "driver").write_text(DRIVER)


def run(work, runtime):
    (work / "out" / runtime).mkdir(parents=True)
    environment = dict(os.environ)
    environment.setdefault("ISORUN", str(TARGET / "debug/isorun"))
    done = subprocess.run([HERE.parent / "oracles/enter", "--work", work, "--", "busybox", "sh", "/work/driver", runtime],
                          env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500)
    if done.returncode != 0:
        sys.exit(f"commands: {runtime}: {done.stderr.strip()[-500:]}")
    broken = work / "out" / runtime / "broken"
    if broken.exists():
        sys.exit(f"commands: {runtime}: the container of these lines could not be made: {broken.read_text()}")


@dataclass
class Said:
    status: int
    stdout: str
    stderr: str
    log: str
    # The names in the state root; cgroups where that is empty.
    left: str
    cgroups: str

    @staticmethod
    def read(folder):
        text = {name: (folder / name).read_text(errors="replace") if (folder / name).exists() else ""
                for name in ("status", "stdout", "stderr", "log", "left", "cgroups")}
        errors = []
        for entry in text["log"].splitlines():
            entry = json.loads(entry)
            if entry["level"] in ("error", "fatal"):
                errors.append(entry["msg"])
        # What is told of less than an error is the runtime's own affair; it may be of the machine.
        stderr = "\n".join(entry for entry in text["stderr"].splitlines()
                           if "level=warning" not in entry and not entry.startswith("isorun: warning"))
        return Said(int(text["status"]), text["stdout"], stderr, "\n".join(errors), text["left"], text["cgroups"])


def differences(entry, isorun, runc):
    """What is wrong with a line, in sentences."""
    found = []
    wanted = entry.status or (runc.status, runc.status)
    if (isorun.status, runc.status) != wanted:
        found.append(f"exit status {isorun.status} and {runc.status}, wanted {wanted[0]} and {wanted[1]}")
    if entry.status and entry.why and isorun.status == runc.status:
        found.append("the exit status is the same: take the difference out of the table")
    for name in ("stdout", "stderr", "log"):
        same = bool(getattr(isorun, name)) == bool(getattr(runc, name))
        if same == (name in entry.streams):
            found.append(f"{name} {'does not differ: take it out of the table' if same else 'is empty with one only'}")
    if (isorun.left == runc.left) == ("left" in entry.streams):
        found.append(f"left in the state root: {isorun.left.split()} and {runc.left.split()}")
    if isorun.cgroups:
        found.append(f"cgroups are left without a container: {isorun.cgroups.splitlines()}")
    patterns = entry.says if isinstance(entry.says, tuple) else (entry.says, entry.says)
    for runtime, said, pattern in (("isorun", isorun, patterns[0]), ("runc", runc, patterns[1])):
        text = "\n".join((said.stdout, said.stderr, said.log))
        if pattern and not re.search(pattern, text, re.M):
            found.append(f"{runtime} does not say {pattern!r}")
        # What engines read of the log is what a person reads.
        if runtime == "isorun" and said.log and said.log.splitlines()[-1] not in said.stderr:
            found.append("the log has another sentence than stderr")
    if (len(set(entry.status)) > 1 or entry.streams) and not entry.why:
        found.append("a difference without a reason")
    return found


def main():
    parser = argparse.ArgumentParser(description="isorun and runc, by the command line")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    lines = [entry for entry in TABLE if not options.words or any(word in entry.command for word in options.words)]
    if subprocess.run([HERE.parent / "oracles/build"], stdout=subprocess.DEVNULL, check=False).returncode:
        print(f"skipped: none of the {len(lines)} command lines could run: the sid root with runc could not be "
              "downloaded (see above)")
        print("0 passed, 0 failed, 1 skipped")
        return
    work = Path(tempfile.mkdtemp(prefix="isorun-commands."))
    failed = 0
    try:
        prepare(work, lines)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda runtime: run(work, runtime), RUNTIMES))
        for number, entry in enumerate(lines):
            said = {runtime: Said.read(work / "out" / runtime / str(number)) for runtime in RUNTIMES}
            wrong = differences(entry, *said.values())
            if wrong:
                failed += 1
                print(f"FAILED: {entry.command} [{entry.state or 'none'}]: {'; '.join(wrong)}")
            if wrong or options.show:
                if not wrong:
                    print(f"{entry.command} [{entry.state or 'none'}]")
                for runtime, it in said.items():
                    print(f"    {runtime} {it.status}: stdout {it.stdout[:160]!r} stderr {it.stderr[:400]!r} log {it.log[:40]!r}")
    finally:
        shutil.rmtree(work)
    print(f"{len(lines) - failed} passed, {failed} failed, 0 skipped")
    sys.exit(1 if failed else 0)


# The command lines.

HELP = "a wrong command line is told in one sentence; runc prints the command's whole help on stdout, too"
MISSING = "container does not exist"
BAD_ID = "invalid container ID format"
NOT_RUNNING = "container not running"
CONFIG = "JSON specification file config.json not found"
NO_FILE = "[Nn]o such file or directory"
SOCKET = "cannot use console socket if (isorun|runc) will not detach or allocate tty"
NOTHING_LEFT = "a command that fails leaves nothing behind; runc leaves a directory in its state root"
FLAG = "flag provided but not defined: -bogus"


def wrong(command, says, state="", **rest):
    """A command line that is wrong by itself."""
    line(command, state, says, streams=("stdout",), why=HELP, **rest)


# Global flags, and no command.
for command in ("@", "@ --help", "@ -h", "@ help"):
    line(command, says="(?i)commands:")
line("@ help run", says="(?i)usage:")
line("@ --version", says=r"^(isorun|runc) version \S+\ncommit: .*\nspec: 1\.")
line("@ -v", says="version")
for command in ("version", "bogus"):
    line(f"@ {command}", says=f"No help topic for '{command}'")
for command in ("@ --bogus", "@ --bogus list"):
    line(command, says=FLAG, streams=("stdout", "log"), why=HELP + ", and does not open its log")
line("@ --root", says="flag needs an argument: -root", streams=("stdout", "log"), why=HELP + ", and does not open its log")
for command in ("--log-format xml", "--log-format=xml", "-log-format xml"):
    line(f"@ {command} list", says="invalid log-format: xml")
line("@ --log /no/such/dir/log list", says=f"/no/such/dir/log.*{NO_FILE}")
line("@ --rootless maybe list", says=("neither true nor false nor auto", NO_FILE))
for flags in ("--rootless=true", "--rootless auto", "--debug"):
    line(f"@ {flags} list", "running", says=r"(?m)^c +\d+ +running +/work/b ")
line("@ --criu /usr/sbin/criu list", "running", streams=("stderr",), why="runc warns that the flag does nothing")
line("@ --root /run/none --root /run/other list", says=f"open /run/other.*{NO_FILE}")
line("@ --systemd-cgroup state c", says=MISSING)
line("@ -root /run/other list", says=f"open /run/other.*{NO_FILE}")

# What every command answers.
for command in ("create", "run", "start", "state", "delete", "events", "pause", "resume", "update"):
    wrong(f"@ {command}", f'"{command}" requires exactly 1 argument')
    wrong(f"@ {command} a b", f'"{command}" requires exactly 1 argument')
for command in ("kill", "ps", "exec"):
    wrong(f"@ {command}", f'"{command}" requires a minimum of 1 argument')
wrong("@ kill a KILL b", '"kill" requires a maximum of 2 argument')
for command in ("list", "spec", "features"):
    wrong(f"@ {command} extra", f'"{command}" requires exactly 0 argument')
for command in ("create", "run", "start", "state", "delete", "events", "pause", "resume", "update", "kill", "ps", "exec"):
    wrong(f"@ {command} --bogus c", FLAG)
    wrong(f"@ {command} -bogus c", FLAG)
    line(f"@ {command} --help", says="(?i)usage:")
    line(f"@ {command} -h", says="(?i)usage:")
for command in ("list", "spec", "features"):
    wrong(f"@ {command} --bogus", FLAG)
    line(f"@ {command} --help", says="(?i)usage:")
for command in ("start", "state", "delete", "pause", "resume", "kill", "ps", "events", "update"):
    line(f"@ {command} c", says=MISSING)
    line(f"@ {command} -- c", says=MISSING)
for command in ("state a/b", "delete a/b", "delete --force ..", "kill a/b KILL", "start 'a b'", "exec a/b true", "pause a/b",
                "create -b /work/b a/b", "create -b /work/b ..", "create -b /work/b 'a b'", "run -b /work/b a:b"):
    line(f"@ {command}", says=BAD_ID)

# create and run.
for command in ("create", "run"):
    wrong(f"@ {command} --bundle", "flag needs an argument: -bundle")
    wrong(f"@ {command} --preserve-fds x c", 'invalid value "x" for flag -preserve-fds: parse error')
    line(f"@ {command} --bundle /no/such c", says=f"/no/such.*{NO_FILE}")
    line(f"@ {command} -bundle /no/such c", says=f"/no/such.*{NO_FILE}")
    line(f"@ {command} --bundle /tmp c", says=CONFIG)
    line(f"@ {command} --preserve-fds 5 -b /work/b c", says=("descriptor 3 was not handed over", "unable to stat preserved-fd"),
         streams=("left",), why=NOTHING_LEFT)
    line(f"@ {command} -b /work/b ''", says="(?i)container id cannot be empty")
    line(f"@ {command} -b /work/b $(seq -s x 200)", says="(?i)file name too long")
    line(f"@ {command} --console-socket /no/such -b /work/b c", says=SOCKET)
    line(f"@ {command} --pidfd-socket /no/such -b /work/b c", says=NO_FILE, streams=("left",), why=NOTHING_LEFT)
    line(f"@ {command} --pid-file /no/such/pid -b /work/seven c", says=f"/no/such/.*{NO_FILE}")
    line(f"@ {command} -b /work/b c", "running", says="container with (given )?(ID|id)( .*)? (already )?exists")
    line(f"@ {command} -b /work/b c", "stopped", says="container with (given )?(ID|id)( .*)? (already )?exists")
    line(f"@ {command} -b /work/noprog c", says='exec: "/no/such".*no such file or directory')
    line(f"@ {command} -b /work/dirprog c", says='exec: "/etc": is a directory')
wrong("@ create --detach -b /work/b c", "flag provided but not defined: -detach")
line("@ create --pid-file /run/pid -b /work/b c; cat /run/pid >/dev/null")
line("@ create -b /work/tty c", says="cannot allocate tty if (isorun|runc) will detach without setting console socket")
line("@ create --console-socket /no/such -b /work/tty c", says=NO_FILE)
line("@ run --detach -b /work/tty c", says="cannot allocate tty if (isorun|runc) will detach without setting console socket")
line("@ run -d --console-socket /no/such -b /work/tty c", says=NO_FILE)
line("@ run --console-socket /no/such -b /work/tty c", says=SOCKET)
wrong("@ run --detach=maybe -b /work/b c", 'invalid boolean value "maybe" for -detach: parse error')
wrong("@ run -d=x c", 'invalid boolean value "x" for -d: parse error')
for flags in ("--detach=true", "-detach", "-d=1 --keep=false"):
    line(f"@ run {flags} -b /work/b c")
for flags in ("", "--keep ", "--no-pivot ", "--no-new-keyring ", "--no-subreaper ", "-no-pivot "):
    line(f"@ run {flags}-b /work/seven c")
line("@ run -b /work/killed c")
line("@ run -b /work/orphan c", says=("^by isorun$", "^by runc$"))
line("@ run --no-subreaper -b /work/orphan c", says=("^by (?!isorun$)", "^by (?!runc$)"))
line("@ run -- -x", says=CONFIG)

# start, state, delete.
for state, says in (("created", None), ("running", "cannot start an already running container"),
                    ("stopped", "cannot start a container that has stopped"),
                    ("paused", "cannot start a container in the paused state")):
    line("@ start c", state, says)
for state in ("created", "running", "stopped", "paused"):
    line("@ state c", state, f'"status": "{state}"')
    line("@ delete --force c", state)
for state in ("running", "paused"):
    line("@ delete c", state, f"cannot delete container c that is not stopped: {state}")
for state in ("created", "stopped"):
    line("@ delete c", state)
line("@ delete --force c")
line("@ delete -f=true c")
line("@ delete --force=false c", "running", "cannot delete container c that is not stopped")

# kill.
line("@ kill c BOGUS", says=MISSING)
for signal, says in (("BOGUS", 'unknown signal "BOGUS"'), ("99", ('unknown signal "99"', "invalid argument")),
                     ("65", ('unknown signal "65"', "invalid argument")), ("-1", None), ("0", None), ("SIGKILL", None), ("kill", None), ("Term", None),
                     ("9", None)):
    line(f"@ kill c {signal}", "running", says)
for signal in ("RTMIN", "SIGRTMIN+1"):
    line(f"@ kill c {signal}", "running", (None, f"unknown signal \"{re.escape(signal)}\""), status=(0, 1),
         streams=("stderr", "log"), why="real-time signals have names, which runc's table lacks")
for flags in ("--all", "-a", "-all"):
    line(f"@ kill {flags} c KILL", "running")
line("@ kill c KILL", "stopped", NOT_RUNNING)
line("@ kill --all c KILL", "stopped")
for state in ("created", "paused"):
    line("@ kill c KILL", state)

# list and ps.
wrong("@ list --format", "flag needs an argument: -format")
line("@ list --format xml", "running", "invalid format option")
line("@ list -q -f xml", "running", "^c$")
line("@ list -q", "running", "^c$")
for flags in ("-f json", "--format=json", "-format json"):
    line(f"@ list {flags}", "running", '"status":"running"')
wrong("@ list -qf json", "flag provided but not defined: -qf", "running")
line("@ ps --format xml c", says=MISSING)
line("@ ps --format xml c", "running", "invalid format option")
for state in ("running", "paused"):
    line("@ ps c", state, r"^PID +USER +COMMAND\n *\d+ 0 +sleep 1000")
line("@ ps c", "created", r"^PID +USER +COMMAND\n")
line("@ ps c", "stopped", r"^PID +USER +COMMAND\n$")
for flags in ("-f json", "--format=json", "-format json"):
    line(f"@ ps {flags} c", "running", r"^\[\d+\]\n$")
line("@ ps c -o pid", "running", r"^PID\n *\d+\n$")
line("@ ps c -eo pid,args", "running", r"^ *\d+ sleep 1000\n$")
line("@ ps c aux", "running", r" sleep 1000\n$")
line("@ ps c -bogus", "running", status=(1, 1))

# events.
for state in ("created", "running", "paused"):
    line("@ events --stats c", state, r'^\{"type":"stats","id":"c","data":\{')
line("@ events --stats c", "stopped", "container with id c is not running")
line("@ events c", "stopped", "container with id c is not running")
for flags in ("--interval 0", "--interval 0s", "--interval -1s", "--interval 0 --stats", "-interval=0"):
    line(f"@ events {flags} c", "running", "duration interval must be greater than 0")
line("@ events --interval 0s c", says=MISSING)
for value in ("5", "x"):
    wrong(f"@ events --interval {value} c", f'invalid value "{value}" for flag -interval: parse error', "running")

# pause and resume.
line("@ pause c", "running")
line("@ pause c", "created")
line("@ resume c", "paused")
for state in ("paused", "stopped"):
    line("@ pause c", state, NOT_RUNNING)
for state in ("running", "stopped", "created"):
    line("@ resume c", state, "container not paused")

# exec.
line("@ exec c true", says=f"exec failed: {MISSING}")
line("@ exec c", "running", "exec failed: exec args cannot be empty")
for command in ("c true", "c false", "c sh -c 'exit 3'", "c sh -c 'kill -9 $$'", "-- c true", "-d c true", "-t=false c true",
                "--cap CAP_KILL c true", "--process /work/proc.json c", "--process /work/proc.json c true", "-process /work/proc.json c"):
    line(f"@ exec {command}", "running")
line("@ exec -u 1:2 c id", "running", "uid=1 gid=2")
line("@ exec -t c sh -c 'exit 3'", "running")
for program, says in (("/no/such", NO_FILE), ("nosuch", r"executable file not found in \$PATH"), ("/etc", "is a directory"),
                      ("-- true", r'"--": executable file not found in \$PATH')):
    line(f"@ exec c {program}", "running", f"exec failed: .*{says}")
for flags, says in (
        ("--cwd relative", ("not an absolute path", "must be an absolute path")), ("--cwd /no/such", NO_FILE),
        ("--user x", "bad uid"), ("--user 1:x", "bad gid"), ("-u 1:2:3", "bad gid"), ("--user -1", "uid"),
        ("--additional-gids -5", "additional-gids"), ("--env NOEQUALS", '(missing|there is no) .?"?='),
        ("--env =x", "name"), ("--process /no/such", NO_FILE), ("--process /work/bad.json", "EOF"),
        ("--pid-file /no/such/x", NO_FILE), ("--tty --detach", "cannot allocate tty if .* will detach without setting console socket"),
        ("--tty --detach --console-socket /no/such", NO_FILE), ("--console-socket /no/such", SOCKET),
        ("--detach --console-socket /no/such", SOCKET), ("--tty --console-socket /no/such", SOCKET),
        ("--pidfd-socket /no/such", NO_FILE), ("--preserve-fds 5", "preserve"), ("--cgroup no-such", NO_FILE),
        ("--cgroup ../x", r"\.\./x is not a sub cgroup path"), ("--cgroup memory:x", "unknown controller memory"),
        ("--apparmor nope", "apparmor"), ("--process-label nope", "selinux label is specified in config, but selinux is disabled")):
    line(f"@ exec {flags} c true", "running", f"exec failed: .*{says}" if isinstance(says, str) else says)
wrong("@ exec --additional-gids x c true", 'invalid value "x" for flag -additional-gids', "running")
wrong("@ exec --preserve-fds x c true", 'invalid value "x" for flag -preserve-fds: parse error', "running")
line("@ exec -dt c true", "running", ("cannot allocate tty", "flag provided but not defined: -dt"), status=(255, 1),
     streams=("stdout",), why="switches of one letter may stand together")
line("@ exec --cap BOGUS c true", "running")
line("@ exec c true", "stopped", "exec failed: cannot exec in a stopped container")
line("@ exec c true", "paused", r"exec failed: cannot exec in a paused container \(use --ignore-paused to override\)")
line("@ exec c true", "created")

# update.
line("@ update c", "running")
line("echo '{}' | @ update -r - c", "running")
line("@ update --kernel-memory 1000 c", "running")
line("@ update --pids-limit 5 c", "stopped", NOT_RUNNING)
for flag in ("memory", "memory-swap", "memory-reservation"):
    line(f"@ update --{flag} x c", "running", f"invalid value for {flag}: invalid size: 'x'")
for flag in ("cpu-quota", "cpu-period", "cpu-share", "cpu-idle", "cpu-burst", "cpu-rt-period", "cpu-rt-runtime"):
    line(f"@ update --{flag} x c", "running", f'invalid value for {flag}: .*"x"')
for flag in ("pids-limit", "blkio-weight"):
    wrong(f"@ update --{flag} x c", f"invalid value (\"x\" )?for (flag -)?{flag}", "running")
# The view has no such controllers.
for flags in ("--memory 10M", "--cpuset-cpus bogus", "--cpu-idle 7", "--pids-limit 5 --memory 10M"):
    line(f"@ update {flags} c", "running")
for flags, says in (("--resources /no/such", NO_FILE), ("-r /work/bad.json", "EOF")):
    line(f"@ update {flags} c", "running", says)
for source in ("/work/bad.json", "/dev/null"):
    line(f"@ update -r - c <{source}", "running", "EOF")
for flag in ("l3-cache-schema L3:0=f", "mem-bw-schema MB:0=10"):
    line(f"@ update --{flag} c", "running", "Intel RDT")

# spec and features.
line("cd /run; rm -f config.json; @ spec; cat config.json >/dev/null")
line("cd /run; echo >config.json; @ spec", says="(?i)file .*config.json exists[.;] remove it first")
line("@ spec --bundle /no/such", says=f"/no/such.*{NO_FILE}")
line("rm -f /run/config.json; @ spec -b /run --rootless; grep -c uidMappings /run/config.json", says="^1$")
line("@ features", says='"ociVersionMin": "1.0.0"')

# What is not supported: one sentence, and not in the help.
for command in ("checkpoint c", "restore c"):
    line(f"@ {command}", says=(f"{command.split()[0]} is not supported yet", None))
for command in ("checkpoint", "restore"):
    wrong(f"@ {command}", ("is not supported yet", "requires exactly 1 argument"))
    line(f"@ {command} --help", says=("is not supported yet", "(?i)usage:"), status=(1, 0), streams=("stdout", "stderr", "log"),
         why="a command that is not there yet has no help")
line("@ checkpoint c", "running", ("is not supported yet", None))


if __name__ == "__main__":
    main()
