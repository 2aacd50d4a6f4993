"""Invalid configurations: a valid one with one thing wrong. Who takes it, who refuses it, and what is left?"""

import copy
import json
import random

import generate

# What stands in the place of a value of another type, or out of its range.
NUMBERS = [-1, 0, 7, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 63) - 1, 1.5, 1e30]
STRINGS = ["", "x", "../..", "relative/path", "/", "a" * 5000, "\u0000", "with space", "\u00e9\n", "-1", "SCMP_ACT_", "CAP_X"]
OTHERS = [None, True, {}, [], "text", 5, [None], {"x": 1}, [[]], ["text"], [5]]


def places(value, path=()):
    """Every path of a document, its root left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, below in items:
        yield (*path, name), below
        yield from places(below, (*path, name))


def at(config, path):
    for name in path:
        config = config[name]
    return config


def replace(rng, config):
    """Another value at some place: of another type, out of range, or none at all."""
    # Long lists of the probe's arguments, or of rules, are not to draw most of it.
    found = list(places(config))
    groups = sorted({tuple(name for name in path[:3] if isinstance(name, str)) for path, _ in found})
    group = rng.choice(groups)
    path, old = rng.choice([(path, old) for path, old in found
                            if tuple(name for name in path[:3] if isinstance(name, str)) == group])
    parent, name = at(config, path[:-1]), path[-1]
    how = rng.choice(["delete", "type", "value", "value", "twice"])
    if how == "delete":
        del parent[name]
    elif how == "twice" and isinstance(parent, list):
        parent.append(copy.deepcopy(old))
    elif how == "value" and isinstance(old, str):
        parent[name] = rng.choice(STRINGS)
    elif how == "value" and isinstance(old, (int, float)) and not isinstance(old, bool):
        parent[name] = rng.choice(NUMBERS)
    else:
        parent[name] = rng.choice(OTHERS)


def put(path, *values):
    """One of some values at a path with dots; numbers are places in a list, "+" a new one at its end."""
    def change(rng, config):
        parts = path.split(".")
        here = config
        for name in parts[:-1]:
            here = here[int(name)] if isinstance(here, list) else here.setdefault(name, {})
        value = copy.deepcopy(rng.choice(values))
        if parts[-1] == "+":
            here.append(value)
        elif isinstance(here, list):
            here[int(parts[-1])] = value
        else:
            here[parts[-1]] = value
    change.name = path
    return change


def listed(path, *values):
    """One more element of a list that need not be there yet."""
    def change(rng, config):
        *parents, last = path.split(".")
        here = config
        for name in parents:
            here = here.setdefault(name, {})
        here.setdefault(last, []).append(copy.deepcopy(rng.choice(values)))
    change.name = path
    return change


def without(kind, path, *values):
    """A setting that needs a namespace, without it."""
    def change(rng, config):
        spaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [space for space in spaces if space["type"] != kind]
        put(path, *values)(rng, config)
    change.name = f"without {kind}: {path}"
    return change


def maps(*lines):
    """A user namespace with maps that the kernel or the specification forbids."""
    def change(rng, config):
        spaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [s for s in spaces if s["type"] != "user"] + [{"type": "user"}]
        made = [dict(zip(("containerID", "hostID", "size"), line)) for line in lines]
        good = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        kinds = rng.choice([(made, good), (good, made), (made, made)])
        config["linux"]["uidMappings"], config["linux"]["gidMappings"] = kinds
    change.name = f"maps {lines}"
    return change


def hook(**more):
    return {"path": "/work/probe", "args": ["the-hook", "exit", "0"]} | more


def rule(**more):
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"} | more]}


def mount(**more):
    return {"destination": "/data", "type": "bind", "source": "/run/src/plain", "options": ["bind"]} | more


CHANGES = [
    put("ociVersion", "", "1", "2.0.0", "0.9.0", "1.0", "x.y.z", "1.0.2-dev", "v1.0.2", "1.99.0"),
    put("root", {}, {"path": ""}, {"path": "nothing"}, {"path": "config.json"}, None),
    put("process", {}, None), put("linux", {}, None), put("mounts", None, []),
    put("process.args", [], None, [""], ["nothing"], ["/nothing"], ["/etc/passwd"], ["/tmp"], ["probe"]),
    put("process.cwd", "", "relative", "/etc/passwd", "../..", "/proc/self/fd/3", "/outward"),
    put("process.env", ["x"], [""], ["=x"], ["A=\u0000"], ["PATH="], ["a b=c"]),
    put("process.user", {"uid": -1, "gid": 0}, {"uid": 1 << 32, "gid": 0}, {"uid": (1 << 32) - 1, "gid": 0}, {},
        {"uid": 0, "gid": (1 << 32) - 1}, {"uid": 0, "gid": 0, "umask": 0o7777}, {"uid": 0, "gid": 0, "umask": 1 << 20},
        {"uid": 0, "gid": 0, "additionalGids": [(1 << 32) - 1]}, {"uid": 0, "gid": 0, "additionalGids": [5, 5]}),
    put("process.consoleSize", {"height": 5, "width": 5}),
    put("process.rlimits", [{"type": "RLIMIT_NOFILE", "hard": 10, "soft": 20}], [{"type": "RLIMIT_X", "hard": 1, "soft": 1}],
        [{"type": "NOFILE", "hard": 1, "soft": 1}], [{"type": "RLIMIT_CORE", "hard": 1, "soft": 1}] * 2,
        [{"type": "RLIMIT_CORE"}], [{"hard": 1, "soft": 1}], [{"type": "RLIMIT_CORE", "hard": 1 << 63, "soft": 0}]),
    put("process.capabilities", {"bounding": ["CAP_KILL"], "ambient": ["CAP_KILL"]}, {"effective": ["CAP_KILL"]},
        {"bounding": ["kill"]}, {"bounding": ["KILL"]}, {"bounding": ["CAP_KILL", "CAP_KILL"]}, {"wrong": ["CAP_KILL"]},
        ["CAP_KILL"], {}),
    put("process.oomScoreAdj", 1001, -1001, 5000, 1 << 40),
    put("process.apparmorProfile", "nothing", "../x"), put("process.selinuxLabel", "x", "a:b:c:d"),
    put("process.scheduler", {}, {"policy": "SCHED_X"}, {"policy": ""}, {"policy": "SCHED_OTHER", "nice": 50},
        {"policy": "SCHED_FIFO", "priority": 0}, {"policy": "SCHED_FIFO", "priority": 200}, {"policy": "SCHED_OTHER", "priority": 5},
        {"policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_X"]}, {"policy": "SCHED_DEADLINE"}, {"policy": "SCHED_FIFO", "nice": 3}),
    put("process.ioPriority", {}, {"class": "IOPRIO_CLASS_X", "priority": 1}, {"class": "IOPRIO_CLASS_BE", "priority": 8},
        {"class": "IOPRIO_CLASS_BE", "priority": -1}, {"priority": 3}, {"class": "IOPRIO_CLASS_BE"}),
    put("process.execCPUAffinity", {"initial": "x"}, {"initial": "99999"}, {"final": "3-1"}, {"initial": ""}, {}),
    put("hostname", "a" * 65, "", "a b"), put("domainname", "a" * 65, ""),
    without("uts", "hostname", "x"), without("uts", "domainname", "x"),
    without("time", "linux.timeOffsets", {"monotonic": {"secs": 1}}), without("mount", "root.readonly", True),
    without("ipc", "linux.sysctl", {"kernel.sem": "1 2 3 4"}), without("network", "linux.sysctl", {"net.ipv4.ip_forward": "1"}),
    without("cgroup", "hostname", "x"), without("pid", "hostname", "x"),
    put("linux.sysctl", {"kernel.hostname": "x"}, {"kernel.domainname": "x"}, {"vm.swappiness": "1"}, {"net.nothing": "1"},
        {"net.ipv4.ip_forward": "x"}, {"../../x": "1"}, {"": "1"}, {"kernel.nothing": "1"}, {"fs.mqueue.nothing": "1"},
        {"net.ipv4.ip_forward": 1}, {"user.max_user_namespaces": "5"}),
    put("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}]),
    put("linux.timeOffsets", {"tomorrow": {"secs": 1}}, {"monotonic": {"secs": 1, "nanosecs": 1 << 30}}, {"monotonic": {"secs": -(1 << 40)}}),
    put("linux.namespaces", [], [{"type": "mount"}], [{"type": "x"}], [{}], [{"type": "mount", "path": "/run/held/uts"}]),
    listed("linux.namespaces", {"type": "network"}, {"type": "x"}, {"type": "mount"}, {"type": "network", "path": "/run/held/network"},
           {"type": "user"}, {"type": "time", "path": "relative"}, {"type": "user", "path": "/nothing"}, {"path": "/run/held/uts"}),
    maps(), maps((0, 100000, 0)), maps((0, 100000, 10), (5, 200000, 10)), maps((0, 100000, 10), (20, 100005, 10)),
    maps((1, 100000, 10)), maps((0, 1 << 32, 10)), maps((0, (1 << 32) - 5, 10)), maps(((1 << 32) - 1, 1, 1)),
    maps(*[(n, 100000 + n, 1) for n in range(400)]), maps((0, 0, (1 << 32) - 1)), maps((0, 100000, -1)),
    listed("linux.devices", {"path": "/dev/x", "type": "z", "major": 1, "minor": 3}, {"path": "dev/x", "type": "c", "major": 1, "minor": 3},
           {"path": "/dev/x", "type": "c"}, {"type": "c", "major": 1, "minor": 3}, {"path": "/dev/x", "type": "c", "major": -1, "minor": 3},
           {"path": "/dev/x", "type": "c", "major": 1 << 20, "minor": 1 << 30}, {"path": "/etc/passwd", "type": "c", "major": 1, "minor": 3},
           {"path": "/dev/../../x", "type": "c", "major": 1, "minor": 3}, {"path": "/dev", "type": "c", "major": 1, "minor": 3},
           {"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 1 << 20}, {"path": "/dev/x", "major": 1, "minor": 3},
           {"path": "/dev/x", "type": "p", "uid": -1}, {"path": "", "type": "c", "major": 1, "minor": 3}),
    put("linux.resources.devices", [{"allow": True, "access": "x"}], [{"allow": True, "type": "z", "access": "r"}], [{"access": "r"}],
        [{"allow": True}], [{"allow": True, "type": "c", "major": -5, "access": "r"}], [{"allow": True, "type": "c", "access": ""}],
        [{"allow": True, "type": "c", "minor": 3, "access": "rw"}], [{"allow": True, "access": "rwmrwm"}]),
    put("linux.resources", None, {"unified": {"nothing": "1"}}, {"unified": {"../x": "1"}}, {"unified": {"cgroup.procs": "x"}},
        {"unified": {"cgroup.max.depth": "x"}}, {"unified": {"a/b": "1"}}, {"unified": {"memory.nothing": "1"}},
        {"pids": {"limit": "x"}}, {"memory": {"limit": -5}}, {"cpu": {"cpus": "x"}}, {"hugepageLimits": [{"pageSize": "3KB", "limit": 1}]},
        {"network": {"classID": -1}}, {"rdma": {"x": {}}}, {"blockIO": {"weight": 5}}, {"pids": {}}, {"memory": {"limit": 5, "swap": 1}},
        {"cpu": {"idle": 5}}, {"cpu": {"quota": 10}}, {"pids": {"limit": 1}}, {"memory": {"swappiness": 200}}),
    put("linux.cgroupsPath", "../CONTAINER", "/../CONTAINER", "/a/../../CONTAINER", "a:b:CONTAINER", "/CONTAINER/", "//CONTAINER"),
    put("linux.rootfsPropagation", "x", "", "rro", "Shared"), put("linux.personality", {}, {"domain": "X"}, {"domain": ""}),
    put("linux.mountLabel", "x"), put("linux.intelRdt", {}, {"closID": "a/b"}, {"closID": ".."}),
    put("linux.memoryPolicy", {}, {"mode": "X"}, {"mode": "MPOL_BIND", "nodes": "x"}, {"mode": "MPOL_DEFAULT", "nodes": "0"}),
    put("linux.netDevices", {"nothing": {}}, {"lo": {}}, {"": {}}, {"a" * 16: {"name": "x"}}, {"lo": {"name": "a/b"}}),
    listed("linux.maskedPaths", "", "relative", "/proc/self/net", "/", "/dev/null", "../x"),
    listed("linux.readonlyPaths", "", "relative", "/", "/dev/null", "/proc/self", "../x"),
    put("linux.seccomp", {}, {"defaultAction": "X"}, {"defaultAction": ""}, {"syscalls": []}, rule(action="SCMP_ACT_X"), rule(names=[]),
        rule(names=[""]), rule(action=""), rule(errnoRet=5000), rule(errnoRet=-1), rule(args=[{"index": 7, "value": 1, "op": "SCMP_CMP_EQ"}]),
        rule(args=[{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]), rule(args=[{"index": 0, "value": 1, "op": "X"}]),
        rule(args=[{"index": 0, "value": 1}]), rule(args=[{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}] * 7), rule(action="SCMP_ACT_NOTIFY"),
        rule() | {"architectures": ["X"]}, rule() | {"architectures": ["SCMP_ARCH_X86_64"] * 2}, rule() | {"flags": ["X"]},
        rule(action="SCMP_ACT_ALLOW", errnoRet=5), rule() | {"defaultErrnoRet": 5}, rule() | {"listenerPath": "/nothing"},
        rule() | {"listenerMetadata": "x"}, {"defaultAction": "SCMP_ACT_NOTIFY"}, rule(action="SCMP_ACT_KILL", errnoRet=1)),
    listed("mounts", mount(destination=""), mount(destination="relative"), mount(destination="/"), mount(source="/nothing"),
           mount(source=""), mount(source=None), mount(options=[]), mount(options=["bind", "x"]), mount(options=["bind", "size=5"]),
           mount(type="tmpfs", options=["size=x"]), mount(type="tmpfs", options=["mode=9"]), mount(type="nothing"), mount(type=""),
           mount(options=["bind", "ro", "rw"]), mount(destination="/proc"), mount(destination="/proc/1"), mount(destination="/sys/kernel"),
           mount(destination="/dev/null"), mount(destination="/etc/passwd"), mount(source="/run/src/file", destination="/tmp"),
           mount(destination="/etc/passwd/x"), mount(type="proc", destination="/tmp"), mount(type="proc", destination="/proc/x"),
           mount(destination="/../../x"), mount(destination="/link"), mount(destination="/outward"), mount(options=None),
           mount(options=["rbind", "idmap"]), mount(uidMappings=[{"containerID": 0, "hostID": 5, "size": 1}]),
           mount(type="tmpfs", options=["bind"]), mount(type="sysfs", destination="/proc"), mount(type="cgroup", destination="/tmp/c"),
           mount(type="tmpfs", source="", options=["tmpcopyup", "ro"]), mount(destination="/data/kept/x"), {}, mount(options=["bind", ""])),
    put("hooks", {"x": [hook()]}, {"prestart": {}}, {"createRuntime": [{}]}, {"createRuntime": [hook(path="relative")]},
        {"createRuntime": [hook(path="/nothing")]}, {"prestart": [hook(args=["x", "exit", "3"])]}, {"createContainer": [hook(timeout=0)]},
        {"createContainer": [hook(timeout=-1)]}, {"startContainer": [hook()]}, {"poststart": [hook(path="/nothing")]},
        {"poststop": [hook(path="/nothing")]}, {"createRuntime": [hook(path="/etc")]}, {"createRuntime": [hook(env=["x"])]},
        {"createContainer": [hook(args=["x", "exit", "3"])]}, {"startContainer": [hook(path="/probe", args=["x", "exit", "3"])]},
        {"poststart": [hook(args=["x", "exit", "3"])]}, {"poststop": [hook(args=["x", "exit", "3"])]}, {"createRuntime": [hook(args=[])]}),
    put("annotations", {"x": 1}, {"": "x"}, {"x": None}, []), put("process.terminal", "true", 1), put("root.readonly", "true"),
    put("linux.rootfsPropagation", "unbindable", "runbindable"), put("process.noNewPrivileges", "x"),
]


def text(rng, config):
    """A file that is no configuration at all."""
    good = json.dumps(config)
    return rng.choice([
        "", "{", "[]", "null", "5", '"x"', good[:len(good) // 2], good[:-1] + ",}", good + "x", good + good, good + "\n\n",
        "\ufeff" + good, good.replace('"cwd": "/"', '"cwd": "/", "cwd": "/tmp"', 1), good.replace('"/probe"', "'/probe'", 1),
        good.replace("1024", "1024.0", 1), good.replace("1024", "1e3", 1), good.replace("1024", "01024", 1), good.replace("1024", "NaN", 1),
        good.replace('"hostname"', '"HostName"', 1), good.replace('"cwd"', '"CWD"', 1), good.replace('"/probe"', '"/pro\\u0062e"', 1),
        good.replace('"/probe"', '"/pro\\ud800be"', 1), good.replace('"/probe"', '"/pro\tbe"', 1), "// comment\n" + good,
        "[" * 20000, good.replace("{", '{"new": ' + "[" * 200 + "]" * 200 + ",", 1), None])


def invalid(seed, number, machine=False):
    """The invalid case of that seed and number."""
    name = f"invalid:{seed}:{number}"
    rng = random.Random(name)
    view = "machine" if machine else "v2"
    config = generate.configuration(rng, rng.choice([0, 0, 0, 1, 2]))
    content = {"config": config}
    if rng.random() < 0.06:
        content["text"] = text(rng, config)
    elif rng.random() < 0.5:
        replace(rng, config)
    else:
        try:
            rng.choice(CHANGES)(rng, config)
        except (KeyError, IndexError, AttributeError, TypeError):
            # What it is about has gone before.
            replace(rng, config)
    root = config.get("root")
    if isinstance(root, dict) and root.get("path") in ("/", "../.."):
        # Other cases would be seen in there.
        root["path"] = "../a/rootfs"
    return {"name": name, "view": view, "bundles": {"a": content}, "steps": generate.run_steps(config)}
