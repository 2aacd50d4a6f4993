"""The configurations that run under every runtime: one for each property with an effect, and the captured ones.

A case is a config.json (made from `base`), what has to stand beside it, and the properties of the
specification that it shows. `against` names the case that it is compared with to see whether a runtime acts
on them at all.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
CAPTURED = HERE.parent.parent / "tests" / "data" / "captured"

USERNS_BASE = 100000


@dataclass
class Case:
    """One configuration. Shell texts know $B, the bundle, and $RUN, the runtime's command line."""

    name: str
    config: dict
    properties: tuple = ()
    against: str = "base"
    view: str = "v2"
    # Shell before each runtime, and the command itself.
    before: str = ""
    command: str = "$RUN run --bundle $B $ID"
    # Further arguments for the probe.
    ask: list = field(default_factory=list)
    # The file of the bundle that the probe's document gets into.
    out: str = "doc"
    # Files and directories below the bundle, made before.
    files: dict = field(default_factory=dict)
    # Directories and links of the rootfs, instead of those of `run`'s plain one.
    links: dict = field(default_factory=dict)
    # It is a failure that shows the effect.
    fails: bool = False
    # What was taken out of a captured file.
    taken: list = field(default_factory=list)


def base():
    """What `runc spec` writes, without a terminal, with a cgroup namespace and its mount."""
    capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    def mount(destination, kind, *options):
        return {"destination": destination, "type": kind, "source": kind, "options": list(options)}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ["/probe"],
            "env": ["PATH=/usr/bin:/bin", "TERM=xterm"], "cwd": "/",
            "capabilities": {kind: capabilities for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "differential",
        "mounts": [
            mount("/proc", "proc"),
            mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
            mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
            mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            mount("/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def put(config, path, value):
    """Sets the value at a path with dots; None takes it out."""
    *parents, last = path.split(".")
    for name in parents:
        config = config.setdefault(name, {})
    if value is None:
        config.pop(last, None)
    else:
        config[last] = value


CASES = []


def case(name, *properties, at=None, change=None, start=base, **more):
    """Adds a case: the base with the values of `at`, and what `change` does to it."""
    config = start()
    for path, value in (at or {}).items():
        put(config, path, copy.deepcopy(value))
    if change:
        change(config)
    made = Case(name.replace("=", "-").replace(",", "-"), config, properties, **more)
    CASES.append(made)
    return made


def without(kind):
    """Takes a namespace out: the container shares the host's."""
    def change(config):
        config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != kind]
    return change


def namespace(kind, path=None, *also):
    """A namespace, new or joined, in the place of the one that the base has."""
    def change(config):
        without(kind)(config)
        entry = {"type": kind} | ({"path": path} if path else {})
        config["linux"]["namespaces"].append(entry)
        for other in also:
            other(config)
    return change


def mapped(config):
    """A new user namespace with a range of ids."""
    config["linux"]["namespaces"].append({"type": "user"})
    mapping = [{"containerID": 0, "hostID": USERNS_BASE, "size": 65536}]
    config["linux"] |= {"uidMappings": mapping, "gidMappings": copy.deepcopy(mapping)}


def userns():
    config = base()
    mapped(config)
    return config


def mounted(destination, kind, source, *options, **more):
    def change(config):
        config["mounts"].append({"destination": destination, "type": kind, "source": source,
                                 "options": list(options)} | more)
    return change


def every_capability(config):
    names = ["CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN", "CAP_KILL"]
    config["process"]["capabilities"] = {kind: names for kind in ("bounding", "effective", "permitted")}


def cases_of_the_process():
    case("cwd", "process.cwd", at={"process.cwd": "/tmp"})
    case("cwd-made", at={"process.cwd": "/made/by/runtime"})
    case("env", "process.env", at={"process.env": ["PATH=/bin", "A=1", "B=two words", "EMPTY="]})
    case("env-home", at={"process.env": ["PATH=/bin", "HOME=/elsewhere"]})
    case("env-twice", at={"process.env": ["PATH=/bin", "A=1", "A=2"]})
    case("env-none", at={"process.env": None})
    case("args", "process.args", at={"process.args": ["/probe", "--cat", "/etc/passwd"]})
    case("args-by-path", at={"process.args": ["probe-by-path"]})
    case("user", "process.user.uid", "process.user.gid",
         at={"process.user": {"uid": 1000, "gid": 1001}})
    case("user-without-passwd", at={"process.user": {"uid": 4321, "gid": 4322}})
    case("umask", "process.user.umask", at={"process.user.umask": 0o027})
    case("groups", "process.user.additionalGids", at={"process.user.additionalGids": [5, 2000, 44]})
    case("terminal", "process.terminal", at={"process.terminal": True},
         command="/work/probe pty 25 80 $RUN run --bundle $B $ID")
    case("console-size", "process.consoleSize", "process.consoleSize.height", "process.consoleSize.width",
         at={"process.terminal": True, "process.consoleSize": {"height": 33, "width": 101}}, against="terminal",
         command="/work/probe pty 25 80 $RUN run --bundle $B $ID")
    for name, size in (("console-socket", {}), ("console-socket-size", {"height": 33, "width": 101})):
        case(name, *(f"process.consoleSize{part}" for part in ("", ".height", ".width") if size),
             at={"process.terminal": True, "process.consoleSize": size or None}, out="tty",
             against="console-socket" if size else "base",
             before="/work/probe console $B/tty.sock >$B/tty 2>$B/console & console=$!\n"
             "\tuntil [ -e $B/tty.sock ]; do sleep 0.01; done",
             command="$RUN run --detach --console-socket $B/tty.sock --bundle $B $ID && wait $console")
    case("terminal-user", at={"process.terminal": True, "process.user": {"uid": 1000, "gid": 1001}},
         command="/work/probe pty 25 80 $RUN run --bundle $B $ID")
    for kind in ("bounding", "effective", "inheritable", "permitted", "ambient"):
        def change(config, kind=kind):
            names = ["CAP_KILL", "CAP_CHOWN"]
            sets = {"bounding": names, "permitted": names}
            if kind in ("inheritable", "ambient"):
                sets["inheritable"] = names
            config["process"]["capabilities"] = sets | {kind: names}
        case(f"capabilities-{kind}", "process.capabilities", f"process.capabilities.{kind}", change=change)
    case("capabilities-none", at={"process.capabilities": None})
    case("capabilities-user", at={"process.user": {"uid": 1000, "gid": 1000}})
    case("capabilities-ambient-user", change=lambda config: put(config, "process", config["process"] | {
        "user": {"uid": 1000, "gid": 1000}, "capabilities": {
            kind: ["CAP_KILL", "CAP_NET_RAW"] for kind in ("bounding", "effective", "permitted",
                                                           "inheritable", "ambient")}}))
    case("capability-unknown", at={"process.capabilities.bounding": ["CAP_KILL", "CAP_OF_TOMORROW"]})
    limits = {"AS": 1 << 40, "CORE": 0, "CPU": 100, "DATA": 1 << 40, "FSIZE": 1 << 40, "LOCKS": 100,
              "MEMLOCK": 4096, "MSGQUEUE": 4096, "NICE": 0, "NOFILE": 512, "NPROC": 1000, "RSS": 1 << 30,
              "RTPRIO": 0, "RTTIME": 10000000, "SIGPENDING": 100, "STACK": 4 << 20}
    for name, value in limits.items():
        case(f"rlimit-{name.lower()}", "process.rlimits", "process.rlimits[].type", "process.rlimits[].soft",
             "process.rlimits[].hard",
             at={"process.rlimits": [{"type": f"RLIMIT_{name}", "soft": value, "hard": value}]})
    case("rlimits-none", at={"process.rlimits": None})
    case("new-privileges", "process.noNewPrivileges", at={"process.noNewPrivileges": False})
    case("signals-ignored", command="trap '' INT USR1; $RUN run --bundle $B $ID")
    for value in (-500, 0, 100, 1000):
        case(f"oom-score{value:+}", "process.oomScoreAdj", at={"process.oomScoreAdj": value})
    case("apparmor", "process.apparmorProfile", at={"process.apparmorProfile": "isorun-differential"})
    case("selinux", "process.selinuxLabel",
         at={"process.selinuxLabel": "system_u:system_r:container_t:s0:c1,c2"})
    schedulers = {
        "other": {"policy": "SCHED_OTHER", "nice": 5},
        "batch": {"policy": "SCHED_BATCH", "nice": 3},
        "idle": {"policy": "SCHED_IDLE"},
        "fifo": {"policy": "SCHED_FIFO", "priority": 10},
        "rr": {"policy": "SCHED_RR", "priority": 7, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
        "deadline": {"policy": "SCHED_DEADLINE", "runtime": 1000000, "deadline": 10000000, "period": 10000000,
                     "flags": ["SCHED_FLAG_RECLAIM"]},
    }
    for name, value in schedulers.items():
        case(f"scheduler-{name}", "process.scheduler", *(f"process.scheduler.{part}" for part in value),
             at={"process.scheduler": value})
    for name, level in (("BE", 6), ("RT", 3), ("IDLE", 7)):
        case(f"io-priority-{name.lower()}", "process.ioPriority", "process.ioPriority.class",
             "process.ioPriority.priority",
             at={"process.ioPriority": {"class": f"IOPRIO_CLASS_{name}", "priority": level}})
    case("exec-affinity", "process.execCPUAffinity", "process.execCPUAffinity.initial",
         "process.execCPUAffinity.final", at={"process.execCPUAffinity": {"initial": "0", "final": "0"}})


# What sets a flag, on a mount that has none, and what clears one, on a mount that has it.
SETTING = ("ro rro nosuid rnosuid nodev rnodev noexec rnoexec noatime rnoatime nodiratime rnodiratime relatime "
           "rrelatime strictatime rstrictatime nosymfollow rnosymfollow sync dirsync lazytime mand silent iversion "
           "private rprivate shared rshared slave rslave unbindable runbindable defaults tmpcopyup").split()
CLEARING = ("rw rrw suid rsuid dev rdev exec rexec atime ratime diratime rdiratime norelatime rnorelatime "
            "nostrictatime rnostrictatime symfollow rsymfollow async nolazytime nomand loud noiversion").split()
OF_TMPFS = ("ro nosuid nodev noexec noatime nodiratime relatime strictatime nosymfollow sync dirsync lazytime silent "
            "mand iversion private shared slave unbindable defaults mode=1700 size=1m uid=7 nr_inodes=77 "
            "tmpcopyup").split()


def cases_of_mounts():
    # The one to compare the options with: nothing but the bind.
    case("bind", "mounts[].destination", "mounts[].type", "mounts[].source",
         change=mounted("/data", "bind", "/run/src/plain", "bind"))
    case("rbind", change=mounted("/data", "bind", "/run/src/plain", "rbind"))
    case("bind-flagged", change=mounted("/data", "bind", "/run/src/flagged", "rbind"))
    for option in SETTING:
        case(f"bind-{option}", "mounts[].options", change=mounted("/data", "bind", "/run/src/plain", "rbind", option),
             against="rbind")
    for option in CLEARING:
        case(f"bind-{option}", change=mounted("/data", "bind", "/run/src/flagged", "rbind", option),
             against="bind-flagged")
    case("tmpfs", change=mounted("/data", "tmpfs", "tmpfs"))
    for option in OF_TMPFS:
        case(f"tmpfs-{option}", "mounts[].options", change=mounted("/data", "tmpfs", "scratch", option),
             against="tmpfs", files={"rootfs/data/kept": "here\n"}, ask=["--cat", "/data/kept"])
    case("bind-type-none", change=mounted("/data", "none", "/run/src/plain", "bind", "ro"))
    case("bind-unknown-option", change=mounted("/data", "bind", "/run/src/plain", "bind", "wonderful"))
    case("bind-relative-source", change=mounted("/data", "bind", "beside", "bind"), files={"beside/file": "x\n"},
         ask=["--cat", "/data/file"])
    case("bind-file", change=mounted("/etc/made", "bind", "/run/src/file", "bind", "ro"), ask=["--cat", "/etc/made"])
    case("bind-on-link", change=mounted("/link/below", "bind", "/run/src/plain", "bind"),
         links={"link": "-> /tmp"})
    case("bind-on-dangling-link", change=mounted("/dangling", "bind", "/run/src/plain", "bind"),
         links={"dangling": "-> tmp/not-there"})
    case("bind-on-outward-link", change=mounted("/outward/x", "bind", "/run/src/plain", "bind"),
         links={"outward": "-> ../../../../tmp"})
    case("bind-nested", change=lambda config: (mounted("/data", "tmpfs", "tmpfs")(config),
         mounted("/data/in", "bind", "/run/src/plain", "bind")(config),
         mounted("/data/in/nested", "tmpfs", "tmpfs", "ro")(config)))
    case("bind-covered", change=lambda config: (mounted("/data", "bind", "/run/src/plain", "bind")(config),
         mounted("/data", "tmpfs", "tmpfs")(config)))
    case("mount-relative-destination", change=mounted("data", "tmpfs", "tmpfs"))
    case("mount-none", "mounts", at={"mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}]})
    case("proc-hidepid", change=lambda config: config["mounts"][0].update(options=["hidepid=2", "nosuid"]))
    case("cgroup-mount-rw", change=lambda config: config["mounts"][-1].update(options=["nosuid", "noexec", "nodev"]))
    case("cgroup-mount-shared", change=lambda config: (without("cgroup")(config), None))
    case("cgroup2-mount", change=lambda config: config["mounts"][-1].update(type="cgroup2", source="cgroup2"))
    case("mount-ramfs", change=mounted("/data", "ramfs", "ramfs", "nosuid"))
    case("mount-unknown-type", change=mounted("/data", "nosuchfs", "none"))
    ids = [{"containerID": 0, "hostID": USERNS_BASE, "size": 65536}]
    parts = tuple(f"mounts[].{kind}Mappings{part}" for kind in ("uid", "gid")
                  for part in ("", "[].containerID", "[].hostID", "[].size"))
    owned = ["--stat", "/data/owned"]
    case("userns-bind", start=userns, change=mounted("/data", "bind", "/run/src/plain", "rbind"), ask=owned)
    case("idmap", *parts, start=userns, against="userns-bind", ask=owned,
         change=mounted("/data", "bind", "/run/src/plain", "rbind", uidMappings=ids, gidMappings=ids))
    for option in ("idmap", "ridmap"):
        case(f"idmap-option-{option}", start=userns, against="userns-bind", ask=[*owned, "--stat", "/data/nested/owned"],
             change=mounted("/data", "bind", "/run/src/plain", "rbind", option))
        case(f"idmap-{option}-mappings", start=userns, against="userns-bind",
             ask=[*owned, "--stat", "/data/nested/owned"],
             change=mounted("/data", "bind", "/run/src/plain", "rbind", option, uidMappings=ids, gidMappings=ids))
    other = [{"containerID": 0, "hostID": 3000, "size": 100}]
    case("idmap-without-userns", ask=owned,
         change=mounted("/data", "bind", "/run/src/plain", "bind", "idmap", uidMappings=other, gidMappings=other))
    for option in ("ro", "nosuid,nodev", "rw"):
        case(f"userns-flagged-{option}", start=userns, against="userns-bind",
             change=mounted("/data", "bind", "/run/src/flagged", "rbind", *option.split(",")))


def cases_of_the_root():
    everything = ("ociVersion", "root", "root.path", "process", "process.args", "process.user", "linux",
                  "linux.namespaces", "linux.namespaces[].type", "process.capabilities", "mounts",
                  "linux.resources")
    case("base", *everything, against="")
    case("root-readonly", "root.readonly", at={"root.readonly": True}, files={"rootfs/data/x": ""})
    case("root-link", at={"root.path": "root-link"}, files={"root-link": "-> rootfs"})
    case("root-dots", at={"root.path": "./x/../rootfs"}, files={"x/y": ""})
    case("hostname", "hostname", at={"hostname": "another.name"})
    case("hostname-none", at={"hostname": None})
    case("domainname", "domainname", at={"domainname": "example.org"})
    case("version-1.3", at={"ociVersion": "1.3.0"})
    others = {"solaris": {"milestone": "x"}, "windows": {"layerFolders": ["x"]}, "zos": {},
              "vm": {"kernel": {"path": "/x"}}, "freebsd": {"devices": []}}
    for name, value in others.items():
        case(f"platform-{name}", name, at={name: value})
    case("platform-command-line", "process.commandLine", at={"process.commandLine": "x"})
    case("platform-username", "process.user.username", at={"process.user.username": "ann"})
    case("unknown-property", at={"linux.tomorrow": {"x": 1}, "process.tomorrow": True})
    hooks = {kind: [{"path": "/work/probe" if kind != "startContainer" else "/probe",
                     "args": ["the-hook", "hook", "BUNDLE/log" if kind != "startContainer" else "/log", kind],
                     "env": [f"HOOK={kind}", "X=1"], "timeout": 30}]
             for kind in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")}
    for kind, value in hooks.items():
        case(f"hook-{kind.lower()}", "hooks", f"hooks.{kind}", *(f"hooks.{kind}[].{part}" for part in
             ("path", "args", "env")), at={f"hooks.{kind}": value})
        slow = [value[0] | {"args": ["the-hook", "wait", value[0]["args"][2]], "timeout": 1}]
        if kind == "poststop":
            # Its failure ends nothing any more: seen by what it would have written.
            case("hook-poststop-waited-for", at={"hooks.poststop": [slow[0] | {"timeout": 10}]})
            case("hook-poststop-timeout", "hooks.poststop[].timeout", at={"hooks.poststop": slow},
                 against="hook-poststop-waited-for")
            continue
        case(f"hook-{kind.lower()}-timeout", f"hooks.{kind}[].timeout", at={f"hooks.{kind}": slow}, fails=True)
    case("hooks-all", at={"hooks": hooks | {"prestart": hooks["prestart"] * 2}})
    case("hook-without-env", at={"hooks.createRuntime": [
        {"path": "/work/probe", "args": ["the-hook", "hook", "BUNDLE/log", "createRuntime"]}]})
    case("annotations", "annotations", at={"annotations": {"org.example.key": "a value"},
         "hooks.createRuntime": hooks["createRuntime"]}, against="hook-createruntime")


def cases_of_linux():
    for kind in ("pid", "network", "ipc", "uts", "cgroup"):
        def change(config, kind=kind):
            without(kind)(config)
            if kind == "uts":
                config.pop("hostname")
        case(f"namespace-{kind}-host", change=change)
    case("namespace-mount-host", change=without("mount"))
    case("namespace-user", "linux.uidMappings", "linux.gidMappings", *(f"linux.{kind}Mappings[].{part}"
         for kind in ("uid", "gid") for part in ("containerID", "hostID", "size")), change=mapped)
    case("namespace-user-two-ranges", against="namespace-user", start=userns, change=lambda config: [
        config["linux"].update({f"{kind}Mappings": [{"containerID": 0, "hostID": 200000, "size": 10},
                                                    {"containerID": 10, "hostID": 100000, "size": 1000}]})
        for kind in ("uid", "gid")])
    case("namespace-user-as-user", start=userns, against="namespace-user",
         at={"process.user": {"uid": 1000, "gid": 1001, "additionalGids": [7]}})
    case("namespace-time", change=namespace("time"))
    case("time-offsets", "linux.timeOffsets", "linux.timeOffsets{}.secs", "linux.timeOffsets{}.nanosecs",
         against="namespace-time", change=namespace("time"), at={"linux.timeOffsets": {
             "monotonic": {"secs": 1000, "nanosecs": 5}, "boottime": {"secs": 2000}}})
    for kind in ("network", "ipc", "uts", "cgroup", "time", "pid"):
        def change(config, kind=kind):
            namespace(kind, f"/run/held/{kind}")(config)
            if kind == "uts":
                config.pop("hostname")
        case(f"namespace-{kind}-path", "linux.namespaces[].path", change=change)
    case("namespace-user-path", change=namespace("user", "/run/held/user"))
    case("namespace-user-network-path", change=lambda config: (
        namespace("user", "/run/held/user")(config), namespace("network", "/run/held/user-net")(config)))
    case("namespace-pod", change=lambda config: [namespace(kind, f"/run/held/{kind}")(config)
         for kind in ("network", "ipc", "uts")] and config.pop("hostname"))
    case("namespace-path-of-another-kind", change=namespace("network", "/run/held/uts"))
    case("namespace-path-of-none", change=namespace("network", "/run/src/file"))
    case("namespace-path-missing", change=namespace("network", "/run/held/nothing"))
    numbers = ("linux.devices", "linux.devices[].path", "linux.devices[].type", "linux.devices[].major",
               "linux.devices[].minor", "linux.devices[].fileMode", "linux.devices[].uid", "linux.devices[].gid")
    def device(path, kind, **more):
        return {"path": path, "type": kind} | more
    case("device-char", *numbers, at={"linux.devices": [
        device("/dev/made", "c", major=10, minor=229, fileMode=0o640, uid=7, gid=8)]})
    case("device-block", at={"linux.devices": [device("/dev/blocks/one", "b", major=7, minor=3, fileMode=0o600)]})
    case("device-fifo", at={"linux.devices": [device("/dev/pipe", "p", fileMode=0o622, uid=1, gid=2)]})
    case("device-u", at={"linux.devices": [device("/dev/u", "u", major=10, minor=200)]})
    case("device-elsewhere", at={"linux.devices": [device("/tmp/null", "c", major=1, minor=3, fileMode=0o666)]})
    case("device-default-again", at={"linux.devices": [device("/dev/null", "c", major=1, minor=3, fileMode=0o600)]})
    case("device-userns", start=userns, against="namespace-user", at={"linux.devices": [
        device("/dev/fuse", "c", major=10, minor=229, fileMode=0o666)]})
    rules = tuple("linux.resources.devices" + part for part in
                  ("", "[].allow", "[].type", "[].major", "[].minor", "[].access"))
    case("mknod", change=every_capability)
    case("device-rules", *rules, change=every_capability, against="mknod", at={"linux.resources.devices": [
        {"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        {"allow": True, "type": "b", "major": 7, "access": "r"}, {"allow": True, "type": "c", "major": 240,
                                                                  "access": "m"}]})
    case("device-rules-all", change=every_capability, against="mknod",
         at={"linux.resources.devices": [{"allow": True, "access": "rwm"}]})
    case("device-rules-none", change=every_capability, against="mknod", at={"linux.resources": {}})
    case("device-rules-denied-again", change=every_capability, against="mknod", at={"linux.resources.devices": [
        {"allow": True, "access": "rwm"}, {"allow": False, "type": "c", "major": 10, "access": "w"}]})
    case("net-device", "linux.netDevices", "linux.netDevices{}.name",
         at={"linux.netDevices": {"veth9": {"name": "inside0"}}},
         command="busybox unshare -n sh -c 'ip link add veth9 type veth && exec \"$@\"' sh "
                 "$RUN run --bundle $B $ID")
    case("cgroups-path", "linux.cgroupsPath", change=without("cgroup"), against="namespace-cgroup-host",
         at={"linux.cgroupsPath": "/differential/deep/one"})
    case("cgroups-path-relative", change=without("cgroup"), against="namespace-cgroup-host",
         at={"linux.cgroupsPath": "relative/two"})
    case("unified", "linux.resources.unified", at={"linux.resources.unified": {"cgroup.max.descendants": "7"}},
         ask=["--cat", "/sys/fs/cgroup/cgroup.max.descendants"])
    case("intel-rdt", "linux.intelRdt", "linux.intelRdt.closID", "linux.intelRdt.l3CacheSchema",
         at={"linux.intelRdt": {"closID": "x", "l3CacheSchema": "L3:0=f"}})
    case("intel-rdt-monitoring", "linux.intelRdt.enableCMT", "linux.intelRdt.enableMBM",
         "linux.intelRdt.enableMonitoring",
         at={"linux.intelRdt": {"closID": "y", "enableCMT": True, "enableMBM": True, "enableMonitoring": True}})
    case("intel-rdt-schemata", "linux.intelRdt.schemata", "linux.intelRdt.memBwSchema",
         at={"linux.intelRdt": {"closID": "z", "schemata": ["L3:0=f"], "memBwSchema": "MB:0=20"}})
    case("personality-flags", "linux.personality.flags",
         at={"linux.personality": {"domain": "LINUX32", "flags": ["ADDR_NO_RANDOMIZE"]}}, against="personality")
    case("memory-policy", "linux.memoryPolicy", "linux.memoryPolicy.mode", "linux.memoryPolicy.nodes",
         at={"linux.memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}})
    case("memory-policy-flags", "linux.memoryPolicy.flags", at={"linux.memoryPolicy": {
        "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}})
    case("personality", "linux.personality", "linux.personality.domain",
         at={"linux.personality": {"domain": "LINUX32"}})
    case("personality-64", at={"linux.personality": {"domain": "LINUX"}})
    case("mount-label", "linux.mountLabel", at={"linux.mountLabel": "system_u:object_r:container_file_t:s0:c1,c2"})
    case("sysctl", "linux.sysctl", at={"linux.sysctl": {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1",
         "net.ipv4.ping_group_range": "0 7", "fs.mqueue.msg_max": "20", "kernel.sem": "100 200 10 20"}})
    case("sysctl-slashes", at={"linux.sysctl": {"net/ipv4/ip_forward": "1"}})
    for name in ("shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate"):
        case(f"root-propagation-{name}", "linux.rootfsPropagation", at={"linux.rootfsPropagation": name})
    case("masked-paths", "linux.maskedPaths", at={"linux.maskedPaths": ["/proc/version", "/sys/kernel", "/etc/group",
                                                                        "/not/there", "/tmp"]})
    case("masked-none", at={"linux.maskedPaths": None}, ask=["--stat", "/proc/kcore", "--stat", "/sys/firmware"])
    case("masked-link", at={"linux.maskedPaths": ["/masked-link"]}, links={"masked-link": "-> /etc/group"},
         ask=["--stat", "/etc/group"])
    case("readonly-paths", "linux.readonlyPaths", at={"linux.readonlyPaths": ["/etc", "/tmp", "/proc/sys/kernel",
                                                                              "/not/there"]})
    case("readonly-none", at={"linux.readonlyPaths": None}, ask=["--stat", "/proc/sys"])


# Calls without an effect: their arguments are wrong, or ask for nothing.
CALLS = ("39", "79,0,0", "41,40,1,0", "41,38,5,0", "101,9999", "103,10,0,0", "135,0", "135,8", "135,0x20008",
         "163,0xfff", "165", "166", "167", "169", "171,0,0", "175", "179", "237", "246", "248", "250,0,0x7fffffff",
         "272,0", "272,0x10000000", "298", "303", "304", "308,-1", "310,-1", "312,-1", "321,-1", "323,-1", "425",
         "428,-1", "430", "434,-1", "435", "437,-1", "442,-1", "449", "462", "999")


def seccomp(name, *properties, calls=CALLS, against="base", more=None, **profile):
    parts = tuple("linux.seccomp" + ("." if part else "") + part for part in properties)
    return case(f"seccomp-{name}", *parts, at={"linux.seccomp": profile}, against=against,
         ask=[word for call in calls for word in ("--call", call)], **(more or {}))


def cases_of_seccomp():
    def rule(action, *names, **extra):
        return {"names": list(names), "action": f"SCMP_ACT_{action}"} | extra
    allow, arch = "SCMP_ACT_ALLOW", ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    seccomp("allow", "", "defaultAction", defaultAction=allow, architectures=arch)
    for action in ("ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "TRACE", "LOG", "ALLOW"):
        seccomp(f"action-{action.lower()}", "syscalls", "syscalls[].names", "syscalls[].action", against="seccomp-allow",
                defaultAction=allow, syscalls=[rule(action, "acct", "swapon")])
    seccomp("errno", "syscalls[].errnoRet", against="seccomp-action-errno", defaultAction=allow,
            syscalls=[rule("ERRNO", "acct", "swapon", errnoRet=61)])
    # Everything that the probe itself needs, and nothing else.
    needed = [call for call in json.loads((CAPTURED / "podman.json").read_text())["linux"]["seccomp"]["syscalls"]
              if call["action"] == allow and not call.get("args")]
    seccomp("default-errno", "defaultErrnoRet", against="seccomp-allow", defaultAction="SCMP_ACT_ERRNO",
            defaultErrnoRet=95, architectures=arch, syscalls=needed)
    for name, listed in (("none", []), ("x86", ["SCMP_ARCH_X86"]), ("foreign", ["SCMP_ARCH_AARCH64"])):
        # acct is 51 for 32-bit programs.
        made = seccomp(f"architectures-{name}", "architectures", against="seccomp-architectures-none",
                       defaultAction=allow, architectures=listed, syscalls=[rule("ERRNO", "acct", errnoRet=61)])
        made.ask += ["--call32", "51", "--call32", "20"]
    for flag in ("LOG", "SPEC_ALLOW", "TSYNC", "WAIT_KILLABLE_RECV"):
        seccomp(f"flag-{flag.lower()}", "flags", against="seccomp-action-errno", defaultAction=allow,
                flags=[f"SECCOMP_FILTER_FLAG_{flag}"], syscalls=[rule("ERRNO", "acct", "swapon")])
    for op, value, two in (("NE", 8, 0), ("LT", 8, 0), ("LE", 8, 0), ("EQ", 8, 0), ("GE", 8, 0), ("GT", 8, 0),
                           ("MASKED_EQ", 8, 8)):
        seccomp(f"op-{op.lower()}", *("syscalls[].args" + part for part in
                ("", "[].index", "[].value", "[].valueTwo", "[].op")), against="seccomp-allow", defaultAction=allow,
                calls=("135,0", "135,8", "135,0x20008", "135,7"), syscalls=[rule("ERRNO", "personality", args=[
                    {"index": 0, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{op}"}])])
    seccomp("two-arguments", against="seccomp-allow", defaultAction=allow, calls=("135,0", "135,8", "41,40,1,0"),
            syscalls=[rule("ERRNO", "socket", args=[{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"},
                                                    {"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}])])
    seccomp("unknown-name", against="seccomp-allow", defaultAction=allow,
            syscalls=[rule("ERRNO", "acct", "call_of_tomorrow")])
    seccomp("notify", "listenerPath", "listenerMetadata", against="seccomp-allow", defaultAction=allow,
            listenerPath="BUNDLE/listener", listenerMetadata="a note", syscalls=[rule("NOTIFY", "acct")],
            more={"before": "/work/probe listener $B/listener >$B/listened 2>$B/listener-err & listener=$!\n"
                            "\tuntil [ -e $B/listener ]; do sleep 0.01; done",
                  "command": "$RUN run --bundle $B $ID; status=$?; wait $listener; (exit $status)"})
    seccomp("empty", calls=("163,0xfff",), syscalls=[])


# The files of the v1 controllers that a limit can be seen in.
V1_FILES = {
    "memory": "limit_in_bytes soft_limit_in_bytes memsw.limit_in_bytes kmem.limit_in_bytes kmem.tcp.limit_in_bytes "
              "swappiness oom_control use_hierarchy",
    "cpu": "shares cfs_quota_us cfs_period_us cfs_burst_us rt_runtime_us rt_period_us idle",
    "cpuset": "cpus mems",
    "pids": "max",
    "blkio": "weight bfq.weight leaf_weight weight_device bfq.weight_device throttle.read_bps_device "
             "throttle.write_bps_device throttle.read_iops_device throttle.write_iops_device",
    "devices": "list",
}


def v1(name, *properties, at=None, **more):
    asked = [f"/sys/fs/cgroup/{controller}/{controller}.{file}" for controller, files in V1_FILES.items()
             for file in files.split()]
    case(f"v1-{name}", *(f"linux.resources.{part}" for part in properties), view="v1", at=at, against="v1-base",
         ask=[word for path in asked for word in ("--cat", path)], **more)


def cases_of_limits():
    def limit(part, value, *properties, **more):
        v1(part.replace(".", "-").lower(), part, *properties, at={f"linux.resources.{part}": value}, **more)
    v1("base")
    v1("userns", start=userns)
    v1("cgroup-host", change=without("cgroup"))
    v1("cgroup-mount-rw", change=lambda config: config["mounts"][-1].update(options=["nosuid", "noexec", "nodev"]))
    limit("memory.limit", 64 << 20, "memory")
    limit("memory.reservation", 32 << 20)
    limit("memory.kernel", 16 << 20)
    limit("memory.kernelTCP", 16 << 20)
    limit("memory.swappiness", 10)
    limit("memory.disableOOMKiller", True)
    limit("memory.useHierarchy", True)
    v1("memory-swap", "memory.swap", at={"linux.resources.memory": {"limit": 64 << 20, "swap": 128 << 20}})
    v1("memory-check", "memory.checkBeforeUpdate",
       at={"linux.resources.memory": {"limit": 64 << 20, "checkBeforeUpdate": True}})
    limit("cpu.shares", 512, "cpu")
    v1("cpu-quota", "cpu.quota", "cpu.period", at={"linux.resources.cpu": {"quota": 20000, "period": 50000}})
    v1("cpu-burst", "cpu.burst", at={"linux.resources.cpu": {"quota": 20000, "period": 50000, "burst": 10000}})
    v1("cpu-realtime", "cpu.realtimeRuntime", "cpu.realtimePeriod",
       at={"linux.resources.cpu": {"realtimeRuntime": 1000, "realtimePeriod": 1000000}})
    limit("cpu.cpus", "0")
    # There is but one node: that it is looked at shows by asking for another.
    limit("cpu.mems", "7", fails=True)
    limit("cpu.idle", 1)
    limit("pids.limit", 77, "pids")
    limit("blockIO.weight", 200, "blockIO")
    limit("blockIO.leafWeight", 200)
    v1("blockio-weightdevice", "blockIO.weightDevice", *(f"blockIO.weightDevice[].{part}" for part in
       ("major", "minor", "weight", "leafWeight")), at={"linux.resources.blockIO": {"weightDevice": [
           {"major": 254, "minor": 0, "weight": 300, "leafWeight": 200}]}})
    for part in ("ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS"):
        name = f"blockIO.throttle{part}Device"
        limit(name, [{"major": 254, "minor": 0, "rate": 1 << 20}], *(f"{name}[].{word}" for word in
              ("major", "minor", "rate")))
    limit("hugepageLimits", [{"pageSize": "2MB", "limit": 2 << 20}], "hugepageLimits[].pageSize",
          "hugepageLimits[].limit")
    limit("network.classID", 0x100001, "network")
    v1("network-priorities", "network.priorities", "network.priorities[].name", "network.priorities[].priority",
       at={"linux.resources.network": {"priorities": [{"name": "lo", "priority": 5}]}})
    limit("rdma", {"mlx5_0": {"hcaHandles": 3, "hcaObjects": 100}}, "rdma{}.hcaHandles", "rdma{}.hcaObjects")
    v1("unified", at={"linux.resources.unified": {"memory.high": "1048576"}})


def all_cases():
    """Every case, those that others are compared with first."""
    if not CASES:
        import captured  # It makes cases itself.
        cases_of_the_root()
        cases_of_the_process()
        cases_of_mounts()
        cases_of_linux()
        cases_of_seccomp()
        cases_of_limits()
        for path in sorted(CAPTURED.glob("*.json")):
            if not path.stem.endswith("-process"):
                CASES.append(captured.adapted(path, "v2"))
                CASES.append(captured.adapted(path, "v1"))
    names = [made.name for made in CASES]
    assert len(names) == len(set(names)), "two cases of one name"
    return CASES
