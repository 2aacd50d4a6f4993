"""Where generated cases run: workers inside a view, one case under one runtime at a time.

A view is made once (integration/oracles/enter, or the lab's machine as it is) and kept by a shell. Workers are
forks of this program that join its namespaces, so that a case costs what its runtime costs and little more.
A worker takes over what a runtime leaves without a parent, as engines do, and tells what is left at the end.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import view as around

CLONE_NEWNS, CLONE_NEWCGROUP = 0x00020000, 0x02000000
PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG = 36, 1
MS_PRIVATE, MS_SHARED = 1 << 18, 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
# Seconds for one command of a case (foreground programs end by themselves), and for a case as a whole.
LIMIT, CASE_LIMIT = 20, 90
CHOWNED = 100000
# Where a view has the directory that is shared with it.
WORK = Path("/work")


def start(work, kind, isorun, enter):
    """Makes a view of a kind ("v2", "v1" or "machine") with `work` at /work; the shell that keeps it."""
    script = around.PROLOGUE + (around.V1_VIEW if kind == "v1" else "") + around.HOLD
    # Only the links of namespaces are looked at.
    script += f"/work/probe --out /work/outside-{kind}.json </dev/null\n"
    script += f"echo $$ >/work/keeper-{kind}.new && mv /work/keeper-{kind}.new /work/keeper-{kind}\ncat\n"
    (work / f"view-{kind}").write_text(script)
    if kind == "machine":
        command = ["sh", "-c", around.ON_THE_MACHINE, "sh", work, f"/work/view-{kind}"]
    else:
        command = [enter, "--work", work, "--", "sh", f"/work/view-{kind}"]
    keeper = subprocess.Popen(command, env={**os.environ, "ISORUN": str(isorun)}, stdin=subprocess.PIPE,
                              stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(6000):
            if (work / f"keeper-{kind}").exists():
                return keeper, int((work / f"keeper-{kind}").read_text())
            if keeper.poll() is not None:
                break
            time.sleep(0.01)
    except BaseException:
        stop(keeper)
        raise
    stop(keeper)
    raise RuntimeError(f"the {kind} view could not be made (exit status {keeper.poll()})")


def stop(keeper):
    """Ends a view and all that runs in it: its shell reads to the end of its input."""
    keeper.stdin.close()
    # enter cleans up at the first of these.
    for end, seconds in ((lambda: None, 10), (keeper.terminate, 30), (keeper.kill, 5)):
        end()
        try:
            keeper.wait(seconds)
            break
        except subprocess.TimeoutExpired:
            pass
    # A machine's own view has no one else to clean up after it (view.ON_THE_MACHINE).
    sweep(Path(f"/sys/fs/cgroup/isorun-generated-{keeper.pid}"))


def sweep(top):
    """Kills what runs in a cgroup of v2 and takes it away with all below, where it is there."""
    for _ in range(100):
        if not top.is_dir():
            return
        try:
            (top / "cgroup.kill").write_text("1")
            for at, _, _ in os.walk(top, topdown=False):
                os.rmdir(at)
        except OSError:
            # What was killed takes a moment to be gone.
            time.sleep(0.05)


def join(pid):
    """Takes this process into the namespaces of a view."""
    mount, cgroup = (os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("mnt", "cgroup"))
    for fd, flag in ((mount, CLONE_NEWNS), (None, 0), (cgroup, CLONE_NEWCGROUP)):
        if fd is None:
            for path in ("/sys/fs/cgroup/self", "/sys/fs/cgroup/unified/self"):
                if os.path.isdir(path):
                    Path(path, "cgroup.procs").write_text("0")
        elif LIBC.setns(fd, flag):
            raise OSError(ctypes.get_errno(), "setns")
        else:
            os.close(fd)
    os.chdir("/work")


class Pool:
    """Workers in one view."""

    def __init__(self, view, keeper_pid, runtimes_path, count):
        # No name is a part of another one; v1's cgroups are the machine's, where other generators may run, too.
        self.workers = [self.fork(keeper_pid, runtimes_path, f"{os.getpid():07}{view}{number}")
                        for number in range(count)]

    def fork(self, keeper_pid, runtimes_path, number):
        down, up = os.pipe(), os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                # Nothing of other workers and views: an end of file must reach them.
                kept = sorted((2, down[0], up[1], 1 << 16))
                for low, high in zip(kept, kept[1:]):
                    os.closerange(low + 1, high)
                LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                fresh_signals()
                join(keeper_pid)
                serve(os.fdopen(down[0]), os.fdopen(up[1], "w"), number, runtimes_path)
                status = 0
            except BaseException:  # The child must not go on as its parent.
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(down[0])
        os.close(up[1])
        return {"pid": pid, "in": os.fdopen(down[1], "w"), "out": os.fdopen(up[0]), "job": None}

    def run(self, jobs):
        """Runs (key, case, runtime) jobs; gives (key, result) as they end."""
        jobs = iter(jobs)
        while True:
            for worker in self.workers:
                if worker["job"] is None and (job := next(jobs, None)) is not None:
                    worker["job"] = job[0]
                    worker["in"].write(json.dumps(job[1:]) + "\n")
                    worker["in"].flush()
            busy = {worker["out"]: worker for worker in self.workers if worker["job"] is not None}
            if not busy:
                return
            answers = select.select(list(busy), [], [], CASE_LIMIT + 60)[0]
            if not answers:
                raise RuntimeError("no worker answers any more: " + ", ".join(str(worker["job"]) for worker in busy.values()))
            for ready in answers:
                line = ready.readline()
                if not line:
                    raise RuntimeError("a worker has ended: see above")
                key, busy[ready]["job"] = busy[ready]["job"], None
                yield key, json.loads(line)

    def close(self):
        """Ends the workers; one that has no job ends at once."""
        for worker in self.workers:
            worker["in"].close()
            worker["out"].close()
            if not within(worker["pid"], 0 if worker["job"] is not None else 5):
                os.kill(worker["pid"], signal.SIGKILL)
                os.waitpid(worker["pid"], 0)


def fresh_signals():
    """No signal is ignored. A shell has its background jobs ignore SIGINT and SIGQUIT, and programs started
    from them, so containers, inherit that: what comes out must not depend on how the generator was started."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def serve(jobs, answers, number, path):
    """A worker: one line in, one line out."""
    os.environ.clear()
    os.environ.update({"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"})
    os.umask(0o022)
    devnull = os.open("/dev/null", os.O_RDONLY)
    os.dup2(devnull, 0)
    os.close(devnull)
    for line in jobs:
        case, runtime = json.loads(line)
        answer = WORK / f"answer{number}"
        # In a mount namespace of its own: what one case mounts is not there for the next.
        pid = os.fork()
        if pid == 0:
            try:
                alone()
                answer.write_text(json.dumps(Run(case, runtime, number).result()) + "\n")
                os._exit(0)
            except BaseException:  # As above.
                traceback.print_exc()
            os._exit(1)
        status = within(pid, CASE_LIMIT)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            answer.write_text(json.dumps(abandoned(case, runtime, number)) + "\n")
        elif status[1]:
            raise RuntimeError(f"{case['name']} under {runtime}: see above")
        shutil.rmtree(WORK / f"g{number}-{runtime}", ignore_errors=True)
        answers.write(answer.read_text())
        answers.flush()


def within(pid, seconds):
    """What waitpid says of a child that ends in this time, else None."""
    pidfd = os.pidfd_open(pid)
    try:
        return os.waitpid(pid, 0) if select.select([pidfd], [], [], seconds)[0] else None
    finally:
        os.close(pidfd)


def abandoned(case, runtime, number):
    """The result of a case that did not end in its time; what runs of it is ended by its cgroups."""
    run = Run(case, runtime, number)
    for at in run.cgroups():
        # Of v1 there is no such file; the view's end takes those away.
        if os.path.exists(f"{at}/cgroup.kill"):
            sweep(Path(at))
    shutil.rmtree(run.state, ignore_errors=True)
    return {"steps": [], "left": ["everything: it did not end"], "logs": {}, "names": []}


def alone():
    """A mount namespace for one case. What is shared is so among its own."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
    if LIBC.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    for path in (b"/run/src/plain", b"/run/src/flagged"):
        for flag in (MS_PRIVATE, MS_SHARED):
            if LIBC.mount(None, path, None, flag, None):
                raise OSError(ctypes.get_errno(), f"propagation of {path}")


def make_root(made, owner):
    """The container's root file system, made anew: what a runtime leaves in it must not be there for the next."""
    for name in ("proc", "sys", "dev", "tmp", "etc", "bin", "run", "data"):
        (made / name).mkdir(parents=True)
    (made / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n")
    (made / "etc/group").write_text("root:x:0:\nann:x:1001:\nextra:x:2000:ann\n")
    (made / "data/kept").write_text("here\n")
    (made / "link").symlink_to("/etc/group")
    (made / "outward").symlink_to("../../../../tmp")
    if owner:
        for at, dirs, files in os.walk(made):
            for name in [".", *dirs, *files]:
                os.lchown(Path(at) / name, owner, owner)
    os.link("/work/probe", made / "probe")


class Run:
    """One case under one runtime."""

    def __init__(self, case, runtime, worker):
        self.case, self.runtime = case, runtime
        self.at = WORK / f"g{worker}-{runtime}"
        self.state = f"/run/state-{runtime}-{worker}"
        self.ids = {key: f"is.g{worker}{key}." for key in case["bundles"]}

    def known(self, text):
        """A text of the case with its names replaced."""
        for key, name in self.ids.items():
            text = text.replace("{bundle:%s}" % key, f"{self.at}/{key}").replace("{%s}" % key, name)
        return text.replace("{dir}", str(self.at))

    def bundle(self, key, content):
        made = self.at / key
        made.mkdir(parents=True)
        config, owner = content.get("config"), 0
        if isinstance(config, dict) and '"user"' in json.dumps((config.get("linux") or {}).get("namespaces") or []
                                                                if isinstance(config.get("linux"), dict) else []):
            owner = CHOWNED
        make_root(made / "rootfs", owner)
        text = content["text"] if "text" in content else json.dumps(config)
        if text is not None:
            text = text.replace("BUNDLE", str(made)).replace("CONTAINER", self.ids[key])
            (made / "config.json").write_text(text, errors="surrogatepass")

    def result(self):
        for key, content in self.case["bundles"].items():
            self.bundle(key, content)
        mounts, steps = mountinfo(), []
        for number, step in enumerate(self.case["steps"]):
            if step[0] in ("ready", "gone"):
                self.wait(*step)
            else:
                steps.append(self.step(number, step))
        return {"steps": steps, "left": self.left(mounts), "logs": {
            key: read(self.at / key / "log") + read(self.at / key / "rootfs/log") for key in self.ids},
            "names": [[f"{self.at}/{key}", "BUNDLE" if key == "a" else f"BUNDLE-{key}"] for key in self.ids] +
                     [[name, "ID" if key == "a" else f"ID-{key}"] for key, name in self.ids.items()] +
                     [[self.state, "STATE"], [f"{self.at}", "BUNDLE"]]}

    def step(self, number, step):
        """One command, "tty" before it for one on a terminal."""
        tty = step[0] == "tty"
        words = [self.known(word) for word in step[tty:]]
        argv = [self.runtime, "--root", self.state, *words]
        if tty:
            argv = ["/work/probe", "pty", "25", "80", *argv]
        out, err = self.at / f"doc{number or ''}", self.at / f"err{number or ''}"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=self.at,
                                     start_new_session=True)
            status = ended(child)
        reap()
        return {"step": step, "status": status, "out": read(out), "err": read(err)}

    def wait(self, word, key):
        """Until the container's program says that it is ready ("ready"), or has ended (both); not for ever."""
        pid = read(self.at / f"pid-{key}").strip()
        for _ in range(1500 if word == "ready" else 150):
            reap()
            if not pid or not os.path.exists(f"/proc/{pid}"):
                break
            if word == "ready" and any(f"ready {key}" in read(path) for path in self.at.glob("doc*")):
                break
            time.sleep(0.002)

    def cgroups(self):
        """The cgroups of this case's containers that are there."""
        return [at for at, _, _ in os.walk("/sys/fs/cgroup") if any(name in at for name in self.ids.values())]

    def left(self, mounts):
        """What is still there, taken away after."""
        found = []
        if os.path.isdir(self.state):
            for name in sorted(os.listdir(self.state)):
                if name in self.ids.values():
                    found.append("state")
                    self.step("-end", ["delete", "--force", name])
        reap()
        cgroups = self.cgroups()
        for path in sorted(cgroups, reverse=True):
            try:
                kill = Path(path, "cgroup.kill")
                if kill.exists():
                    kill.write_text("1")
                    time.sleep(0.05)
                    reap()
                os.rmdir(path)
            except OSError:
                pass
        found += ["cgroup"] * bool(cgroups)
        orphans = children()
        for pid in orphans:
            found.append(f"process {read(Path(f'/proc/{pid}/comm')).strip()}")
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        found += ["mount"] * (mountinfo() != mounts)
        shutil.rmtree(self.state, ignore_errors=True)
        return found


def read(path):
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def mountinfo():
    return len(read("/proc/self/mountinfo").splitlines())


def reap():
    """Takes what has ended; True while children are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def ended(child):
    """The exit status of a command; what else ends meanwhile is taken, as an engine would."""
    pidfd = os.pidfd_open(child.pid)
    deadline = time.monotonic() + LIMIT
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == child.pid:
                child.returncode = os.waitstatus_to_exitcode(status)
                return str(child.returncode)
            if pid == 0:
                select.select([pidfd], [], [], 0.005)
            if time.monotonic() > deadline:
                os.killpg(child.pid, signal.SIGKILL)
                child.returncode = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
                return "does not end"
    finally:
        os.close(pidfd)


def children():
    """Children that live on: adopted ones; those that end by themselves in a moment are not meant."""
    for _ in range(50):
        if not reap():
            return []
        time.sleep(0.01)
    mine = f"{os.getpid()}"
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and
            read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1:2] == [mine]]
