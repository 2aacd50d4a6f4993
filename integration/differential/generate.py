"""Valid configurations, made at random: each a few properties of the specification in combination.

A case is made by its name alone ("valid:SEED:NUMBER"), so that a printed name makes it again.
"""

import random

import cases as table

# name: a harmless call of it, as the probe's --call takes it.
CALLS = {
    "mincore": "27", "getpid": "39", "getppid": "110", "kill": "62,0,0", "flock": "73,-1,8", "umask": "95",
    "personality": "135,0xffffffff", "acct": "163,0xfff", "swapon": "167", "sethostname": "170,0,-1",
    "add_key": "248", "request_key": "249", "keyctl": "250,0,0x7fffffff", "ioprio_get": "252,1,0",
    "unshare": "272,0", "kexec_load": "246", "perf_event_open": "298", "name_to_handle_at": "303",
    "setns": "308,-1", "kcmp": "312,-1", "bpf": "321,-1", "userfaultfd": "323,-1", "clone3": "435",
    "io_uring_setup": "425", "pidfd_open": "434,-1", "mount_setattr": "442,-1", "landlock_create_ruleset": "444",
    "socket": "41,40,1,0", "chroot": "161,0", "sysfs": "139,3", "sched_yield": "24", "uname": "63,0",
}
CAPABILITIES = [f"CAP_{name}" for name in (
    "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD "
    "AUDIT_WRITE SETFCAP SYS_PTRACE NET_ADMIN LEASE IPC_LOCK").split()]
STAGES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


def maybe(rng, chance=0.5):
    return rng.random() < chance


def some(rng, items, least=1, most=None):
    items = list(items)
    return rng.sample(items, rng.randint(least, min(len(items), most or len(items))))


def user(rng, config):
    value = {"uid": rng.choice([0, 0, 1, 1000, 1000, 4321, 65534]), "gid": rng.choice([0, 0, 5, 1001, 4322])}
    if maybe(rng):
        value["additionalGids"] = some(rng, [0, 5, 7, 44, 1001, 2000, 60000], most=4)
    if maybe(rng, 0.4):
        value["umask"] = rng.choice([0, 0o22, 0o27, 0o77, 0o777])
    config["process"]["user"] = value


def environment(rng, config):
    pool = ["A=1", "B=two words", "EMPTY=", "C=a=b", "A=2", "HOME=/elsewhere", "HOME=", "PATH=/bin", "LANG=C.UTF-8",
            "X=\u00e9", "TERM=dumb", "lower=x", "D=line\nbreak", "TAB=\t"]
    config["process"]["env"] = some(rng, pool, least=0, most=7)
    rng.shuffle(config["process"]["env"])


def directory(rng, config):
    config["process"]["cwd"] = rng.choice(["/", "/tmp", "/data", "/made/by/runtime", "/proc", "/dev/shm", "//tmp/./",
                                           "/tmp/..", "/sys"])


def capabilities(rng, config):
    kinds = ("bounding", "effective", "permitted", "inheritable", "ambient")
    if maybe(rng, 0.1):
        config["process"].pop("capabilities")
        return
    names = some(rng, CAPABILITIES, most=8)
    if maybe(rng, 0.6):
        sets = {kind: names for kind in some(rng, kinds)}
    else:
        sets = {kind: some(rng, names, least=0) for kind in some(rng, kinds)}
    config["process"]["capabilities"] = sets


def rlimits(rng, config):
    ceilings = {"AS": 1 << 40, "CORE": 1 << 20, "CPU": 1000, "DATA": 1 << 40, "FSIZE": 1 << 40, "LOCKS": 100,
                "MEMLOCK": 4096, "MSGQUEUE": 4096, "NICE": 0, "NOFILE": 1024, "NPROC": 2000, "RSS": 1 << 30,
                "RTPRIO": 0, "RTTIME": 10000000, "SIGPENDING": 100, "STACK": 8 << 20}
    least = {"STACK": 1 << 20, "NOFILE": 64, "AS": 1 << 30, "DATA": 1 << 30, "FSIZE": 1 << 30, "NPROC": 500, "CPU": 60,
             "RTTIME": 1000000}
    chosen = []
    for name in some(rng, ceilings, most=5):
        hard = rng.randint(least.get(name, 0), ceilings[name])
        chosen.append({"type": f"RLIMIT_{name}", "hard": hard, "soft": rng.randint(min(least.get(name, 0), hard), hard)})
    config["process"]["rlimits"] = chosen


def process_flags(rng, config):
    process = config["process"]
    for part in some(rng, ("nnp", "oom", "scheduler", "io", "personality", "label", "affinity"), most=3):
        if part == "nnp":
            process["noNewPrivileges"] = maybe(rng)
        elif part == "oom":
            process["oomScoreAdj"] = rng.choice([0, 1, 100, 999, 1000])
        elif part == "io":
            process["ioPriority"] = {"class": "IOPRIO_CLASS_" + rng.choice(["BE", "IDLE", "RT"]),
                                     "priority": rng.randint(0, 7)}
        elif part == "personality":
            config["linux"]["personality"] = {"domain": rng.choice(["LINUX", "LINUX32"])}
        elif part == "affinity":
            process["execCPUAffinity"] = {"initial": "0", "final": rng.choice(["0", "0-1"])}
        elif part == "scheduler":
            process["scheduler"] = rng.choice([
                {"policy": "SCHED_OTHER", "nice": rng.randint(0, 19)}, {"policy": "SCHED_IDLE"},
                {"policy": "SCHED_BATCH", "nice": rng.randint(0, 19)},
                {"policy": "SCHED_FIFO", "priority": rng.randint(1, 99)},
                {"policy": "SCHED_RR", "priority": 7, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}])
        else:
            config["linux"]["mountLabel"] = ""


def names(rng, config):
    for key in some(rng, ("hostname", "domainname")):
        config[key] = rng.choice(["another.name", "x", "a" * 63, "example.org", "UPPER_case-1"])
    if maybe(rng, 0.1):
        config.pop("hostname", None)


def mounts(rng, config):
    flags = ("ro nosuid nodev noexec noatime nodiratime relatime strictatime nosymfollow sync dirsync lazytime rw suid "
             "dev exec atime diratime async private rprivate slave rslave shared rshared unbindable").split()
    for _ in range(rng.randint(1, 3)):
        where = rng.choice(["/data", "/data/in", "/new/place", "/tmp", "/link-not", "/outward/x", "/etc/file", "/run",
                            "/data/../tmp/y", "/proc/scratch" if maybe(rng, 0.1) else "/mnt", "/dev/extra"])
        kind = rng.choice(["bind", "bind", "rbind", "tmpfs", "tmpfs", "file", "mqueue", "ramfs", "proc"])
        options = some(rng, flags, least=0, most=3)
        if kind in ("bind", "rbind"):
            mount = {"destination": where, "type": rng.choice(["bind", "none", ""]), "options": [kind, *options],
                     "source": rng.choice(["/run/src/plain", "/run/src/flagged", "/run/src/plain/owned"])}
            if maybe(rng, 0.2):
                mount["options"].append("r" + rng.choice(flags[:9]))
            if mount["type"] == "":
                mount.pop("type")
        elif kind == "file":
            mount = {"destination": rng.choice(["/etc/made", "/tmp/deep/file", "/etc/passwd"]), "type": "bind",
                     "source": "/run/src/file", "options": ["bind", *options]}
        elif kind == "tmpfs":
            extra = some(rng, ["size=1m", "mode=1700", "uid=7", "gid=8", "nr_inodes=77", "tmpcopyup"], least=0, most=2)
            mount = {"destination": where, "type": "tmpfs", "source": rng.choice(["tmpfs", "scratch"]),
                     "options": options + extra}
        else:
            mount = {"destination": where, "type": kind, "source": kind, "options": options}
        config["mounts"].append(mount)


def fewer_mounts(rng, config):
    for mount in some(rng, config["mounts"][2:], most=3):
        config["mounts"].remove(mount)


def cgroup_mount(rng, config):
    mount = next((m for m in config["mounts"] if m["type"] == "cgroup"), None)
    if mount:
        mount["options"] = some(rng, ["nosuid", "noexec", "nodev", "relatime", "ro"], least=2)


def paths(rng, config):
    pool = ["/proc/version", "/proc/kcore", "/sys/kernel", "/etc/group", "/not/there", "/tmp", "/proc/sys", "/etc", "/link",
            "/proc/sysrq-trigger", "/sys/firmware", "/data", "/proc/bus", "/dev/shm", "/etc/passwd"]
    for kind in some(rng, ("maskedPaths", "readonlyPaths")):
        config["linux"][kind] = some(rng, pool, least=0, most=6)
        if maybe(rng, 0.1):
            config["linux"].pop(kind)


def root(rng, config):
    config["root"]["readonly"] = maybe(rng, 0.7)
    if maybe(rng, 0.5):
        config["linux"]["rootfsPropagation"] = rng.choice(["shared", "slave", "private", "unbindable", "rshared",
                                                           "rslave", "rprivate"])
    if maybe(rng, 0.2):
        config["root"]["path"] = rng.choice(["./rootfs", "rootfs/", "BUNDLE/rootfs", "./rootfs/../rootfs"])


def namespaces(rng, config):
    for kind in some(rng, ("pid", "network", "ipc", "uts", "cgroup", "time"), most=3):
        present = [n for n in config["linux"]["namespaces"] if n["type"] != kind]
        how = rng.choice(["host", "path", "path", "new"])
        if how == "path":
            present.append({"type": kind, "path": f"/run/held/{kind}"})
        elif how == "new":
            present.append({"type": kind})
        if kind == "uts" and how != "new":
            config.pop("hostname", None)
            config.pop("domainname", None)
        config["linux"]["namespaces"] = present
    rng.shuffle(config["linux"]["namespaces"])


def user_namespace(rng, config):
    if any(n["type"] == "user" for n in config["linux"]["namespaces"]):
        return
    if maybe(rng, 0.2):
        config["linux"]["namespaces"].append({"type": "user", "path": "/run/held/user"})
        return
    table.mapped(config)
    if maybe(rng, 0.3):
        parts = [{"containerID": 0, "hostID": 100000, "size": 1001}, {"containerID": 1001, "hostID": 300000, "size": 5000}]
        config["linux"]["uidMappings"], config["linux"]["gidMappings"] = parts, [dict(part) for part in reversed(parts)]


def time_offsets(rng, config):
    if not any(n["type"] == "time" for n in config["linux"]["namespaces"]):
        config["linux"]["namespaces"].append({"type": "time"})
    config["linux"]["timeOffsets"] = {kind: {"secs": rng.choice([0, 5, 100000, -1]), "nanosecs": rng.choice([0, 5, 999999999])}
                                      for kind in some(rng, ("monotonic", "boottime"))}


def sysctl(rng, config):
    pool = {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "net.ipv4.ping_group_range": "0 7",
            "fs.mqueue.msg_max": "20", "kernel.sem": "100 200 10 20", "kernel.msgmax": "9000",
            "net.ipv4.ip_unprivileged_port_start": "0", "net/ipv4/conf/lo/forwarding": "1"}
    config["linux"]["sysctl"] = {name: pool[name] for name in some(rng, pool, most=3)}


def seccomp(rng, config):
    profile = {"defaultAction": "SCMP_ACT_ALLOW"}
    if maybe(rng):
        profile["architectures"] = some(rng, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"])
    if maybe(rng, 0.3):
        profile["flags"] = some(rng, ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                                      "SECCOMP_FILTER_FLAG_TSYNC"])
    rules, asked = [], set()
    # What the probe itself calls is not for these rules.
    free = [name for name in CALLS if name not in ("getpid", "getppid", "umask", "personality", "keyctl", "ioprio_get",
                                                   "socket", "uname", "clone3", "kill")]
    for _ in range(rng.randint(1, 4)):
        listed = some(rng, free, most=3)
        asked.update(listed)
        rule = {"names": listed, "action": "SCMP_ACT_" + rng.choice(["ERRNO", "ERRNO", "KILL", "KILL_PROCESS", "TRAP", "LOG",
                                                                    "KILL_THREAD", "ALLOW", "TRACE"])}
        if rule["action"] in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") and maybe(rng):
            rule["errnoRet"] = rng.choice([1, 13, 38, 61, 95, 0])
        if maybe(rng, 0.4):
            rule["args"] = [{"index": rng.randint(0, 3), "value": rng.choice([0, 1, 8, 0xfff, 1 << 32, (1 << 64) - 1]),
                             "op": "SCMP_CMP_" + rng.choice(["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"])}
                            for _ in range(rng.randint(1, 2))]
            for argument in rule["args"]:
                if argument["op"].endswith("MASKED_EQ"):
                    argument["valueTwo"] = rng.choice([0, 1, 8, 0xfff])
        if maybe(rng, 0.1):
            rule["names"] = [*listed, "call_of_tomorrow"]
        rules.append(rule)
    profile["syscalls"] = rules
    config["linux"]["seccomp"] = profile
    config["process"]["args"] += [word for name in sorted(asked) for word in ("--call", CALLS[name])]


def devices(rng, config):
    pool = [("/dev/made", "c", 10, 229), ("/dev/blocks/one", "b", 7, 3), ("/dev/pipe", "p", None, None),
            ("/dev/u", "u", 10, 200), ("/tmp/null", "c", 1, 3), ("/dev/zero", "c", 1, 5), ("/dev/net/tun", "c", 10, 200)]
    chosen = []
    for path, kind, major, minor in some(rng, pool, most=3):
        device = {"path": path, "type": kind}
        if major is not None:
            device |= {"major": major, "minor": minor}
        if maybe(rng):
            device["fileMode"] = rng.choice([0o600, 0o640, 0o666, 0o622])
        if maybe(rng, 0.4):
            device |= {"uid": rng.choice([0, 7, 1000]), "gid": rng.choice([0, 8])}
        chosen.append(device)
    config["linux"]["devices"] = chosen


def device_rules(rng, config):
    table.every_capability(config)
    rules = [{"allow": False, "access": "rwm"}] if maybe(rng, 0.8) else []
    for _ in range(rng.randint(0, 4)):
        rule = {"allow": maybe(rng, 0.8), "access": rng.choice(["r", "w", "m", "rw", "rwm", "rm"])}
        kind, major, minor = rng.choice([("c", 10, 229), ("b", 7, None), ("c", 240, None), ("c", 1, 3), ("c", 4, 0),
                                         ("b", None, None), ("c", None, None), ("a", None, None)])
        rule |= {"type": kind} | ({"major": major} if major is not None else {})
        rules.append(rule | ({"minor": minor} if minor is not None else {}))
    config["linux"].setdefault("resources", {})["devices"] = rules


def hooks(rng, config):
    chosen = {}
    for stage in some(rng, STAGES, most=4):
        inside = stage == "startContainer"
        for _ in range(rng.randint(1, 2)):
            hook = {"path": "/probe" if inside else "/work/probe",
                    "args": ["the-hook", "hook", "/log" if inside else "BUNDLE/log", stage],
                    "env": some(rng, ["HOOK=1", "X=1", "PATH=/x", "EMPTY="])}
            if maybe(rng, 0.4):
                hook["timeout"] = 30
            chosen.setdefault(stage, []).append(hook)
    config["hooks"] = chosen


def annotations(rng, config):
    config["annotations"] = {rng.choice(["org.example.key", "a", "x/y", "dotted.name.of.it"]): rng.choice(["a value", "", "\u00e9"])
                             for _ in range(rng.randint(1, 3))}
    if maybe(rng):
        hooks(rng, config)


def cgroup(rng, config):
    config["linux"]["cgroupsPath"] = rng.choice(["/differential/CONTAINER", "/differential/a/b/CONTAINER", "CONTAINER",
                                                 "relative/CONTAINER"])
    if maybe(rng, 0.3):
        config["linux"]["resources"]["unified"] = {"cgroup.max.descendants": "7", "cgroup.max.depth": "3"}
        config["process"]["args"] += ["--cat", "/sys/fs/cgroup/cgroup.max.descendants"]


def terminal(rng, config):
    config["process"]["terminal"] = True
    if maybe(rng):
        config["process"]["consoleSize"] = {"height": rng.randint(1, 200), "width": rng.randint(1, 300)}


def version(rng, config):
    config["ociVersion"] = rng.choice(["1.0.0", "1.0.2", "1.1.0", "1.2.0", "1.2.1", "1.3.0"])


FEATURES = {user: 5, environment: 3, directory: 3, capabilities: 5, rlimits: 4, process_flags: 4, names: 2, mounts: 8,
            fewer_mounts: 1, cgroup_mount: 2, paths: 5, root: 4, namespaces: 5, user_namespace: 4, time_offsets: 1,
            sysctl: 2, seccomp: 5, devices: 3, device_rules: 3, hooks: 4, annotations: 1, cgroup: 3, terminal: 2, version: 1}

# Limits that the machine's v1 controllers, or those of v2 in the lab, can hold; files of both that show them.
LIMIT_FILES = ("memory/memory.limit_in_bytes memory/memory.soft_limit_in_bytes memory/memory.swappiness pids/pids.max "
               "cpu/cpu.shares cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpuset/cpuset.cpus memory.max memory.low "
               "memory.swap.max pids.max cpu.max cpu.weight cpuset.cpus cpu.idle memory.high").split()


def limits(rng, config):
    resources = config["linux"]["resources"]
    for part in some(rng, ("memory", "cpu", "pids", "cpuset", "network")):
        if part == "memory":
            limit = rng.choice([-1, 16 << 20, 64 << 20, (64 << 20) + 1])
            resources["memory"] = {"limit": limit}
            if maybe(rng):
                resources["memory"]["reservation"] = rng.choice([-1, 8 << 20, 12345678])
            if maybe(rng, 0.3):
                resources["memory"]["swappiness"] = rng.choice([0, 10, 60, 100])
        elif part == "cpu":
            resources.setdefault("cpu", {})
            if maybe(rng):
                resources["cpu"]["shares"] = rng.choice([0, 1, 2, 512, 1024, 262144, 300000])
            if maybe(rng):
                resources["cpu"] |= {"quota": rng.choice([-1, 1000, 20000, 150000])}
            if maybe(rng):
                resources["cpu"] |= {"period": rng.choice([1000, 50000, 100000, 1000000])}
        elif part == "pids":
            resources["pids"] = {"limit": rng.choice([-1, 0, 20, 77, 4096])}
        elif part == "cpuset":
            resources.setdefault("cpu", {})["cpus"] = rng.choice(["0", "0-1", "0,1"])
            if maybe(rng):
                resources["cpu"]["mems"] = "0"
    config["process"]["args"] += [word for name in LIMIT_FILES for word in ("--cat", f"/sys/fs/cgroup/{name}")]


def with_stats(config):
    """The probe looks at every place that the configuration says something about."""
    asked = [mount["destination"] for mount in config["mounts"]]
    asked += config["linux"].get("maskedPaths") or []
    asked += config["linux"].get("readonlyPaths") or []
    config["process"]["args"] += [word for path in dict.fromkeys(asked) for word in ("--stat", path)]


def configuration(rng, features, view="v2"):
    """A valid configuration with that many properties changed."""
    config = table.base()
    if view != "v2":
        limits(rng, config)
    pool = list(FEATURES)
    weights = [FEATURES[feature] for feature in pool]
    chosen = []
    while len(chosen) < features:
        feature = rng.choices(pool, weights)[0]
        if feature not in chosen:
            chosen.append(feature)
    # In one order, so that what needs another's list finds it.
    for feature in sorted(chosen, key=pool.index):
        feature(rng, config)
    with_stats(config)
    return config


def run_steps(config):
    """The command line of a configuration that just runs."""
    process = config.get("process") if isinstance(config, dict) else None
    asked = isinstance(process, dict) and process.get("terminal") is True
    return [(["tty"] if asked else []) + ["run", "--bundle", "{bundle:a}", "{a}"]]


def valid(seed, number, machine=False):
    """The valid case of that seed and number; every sixth is about limits."""
    name = f"valid:{seed}:{number}"
    rng = random.Random(name)
    view = "machine" if machine else "v1" if number % 6 == 5 else "v2"
    config = configuration(rng, rng.randint(1, 6), view)
    return {"name": name, "view": view, "bundles": {"a": {"config": config}}, "steps": run_steps(config)}
