"""Sequences of commands on one or two containers, also in the wrong order.

What is compared: exit statuses, the words of errors that tools look for, and what is printed.
"""

import random

import cases as table
import generate

# Programs of a container: one that waits for a signal, and ones that end by themselves.
SIT, QUICK = ["/probe", "sit"], [["/probe", "exit", "0"], ["/probe", "exit", "7"], ["/nothing"]]
SIGNALS = ["KILL", "9", "SIGKILL", "TERM", "15", "sigterm", "USR1", "0", "CONT", "WINCH", "NONSENSE", "99", "", "RTMIN+2", "STOP"]


def bundle(rng, key):
    """A container of a sequence, often with a few properties more."""
    config = table.base()
    for feature in rng.sample([generate.user, generate.environment, generate.names, generate.annotations, generate.root,
                               generate.user_namespace, generate.rlimits, generate.capabilities, generate.hooks], rng.choice([0, 0, 0, 1, 2])):
        feature(rng, config)
    sits = rng.random() < 0.75
    config["process"]["args"] = [*SIT, key] if sits else list(rng.choice(QUICK))
    if rng.random() < 0.1:
        config["linux"]["namespaces"] = [space for space in config["linux"]["namespaces"] if space["type"] != "pid"]
    config["linux"]["cgroupsPath"] = rng.choice(["/differential/CONTAINER", "/CONTAINER"])
    return config, sits


def executed(rng, who):
    """An exec, with some of its flags."""
    flags = []
    for flag in rng.sample([["--cwd", rng.choice(["/tmp", "/", "/nothing", "tmp"])], ["--env", "X=1"], ["--env", "Y"],
                            ["--user", rng.choice(["1000", "1000:1001", "0:5", "x", "-1", "1000:x"])],
                            ["--cap", rng.choice(["CAP_KILL", "CAP_NET_RAW", "CAP_X", "kill"])], ["--no-new-privs"],
                            ["--additional-gids", "5"], ["-g", "7"], ["--ignore-paused"],
                            ["--preserve-fds", "0"], ["--cgroup", rng.choice(["/", "nothing", "../x"])]],
                           rng.choice([0, 0, 1, 1, 2, 3])):
        flags += flag
    if "-g" in flags and "--additional-gids" in flags:
        # runc's command line does not take both forms of one flag.
        at = flags.index("-g")
        del flags[at:at + 2]
    program = rng.choice([["/probe"], ["/probe"], ["/probe", "exit", "0"], ["/probe", "exit", "3"], ["/nothing"], ["nothing"], ["/tmp"],
                          ["/etc/passwd"], []])
    if rng.random() < 0.1:
        return ["exec", *flags, "--detach", who, "/probe", "exit", "3"]
    return ["exec", *flags, who, *program]


def command(rng, key, may_keep=True):
    """One command, and what has to be waited for after it."""
    who = "{%s}" % key
    bundle_of = ["--bundle", "{bundle:%s}" % key]
    pid_file = ["--pid-file", "{dir}/pid-%s" % key]
    # Of a program that cannot be executed only runc keeps anything: found/keep-of-a-failure.
    keeps = rng.random() < 0.15 and may_keep
    word = rng.choices(("create", "start", "run", "detached", "state", "kill", "delete", "force", "list", "ps", "events", "pause", "resume",
                        "exec", "update", "wrong"), (4, 4, 1, 4, 4, 5, 4, 1, 3, 3, 2, 3, 3, 6, 2, 1))[0]
    if word == "create":
        return [["create", *bundle_of, *pid_file, who]]
    if word == "start":
        return [["start", who], ["ready", key]]
    if word in ("run", "detached"):
        # In the foreground only what ends by itself: see `sequence`.
        flags = [] if word == "run" else ["--detach"]
        if keeps:
            flags.append("--keep")
        return [["run", *flags, *bundle_of, *pid_file, who], ["ready", key]]
    if word == "kill":
        signal = rng.choice(SIGNALS)
        everything = ["--all"] if rng.random() < 0.1 else []
        return [["kill", *everything, who, *([signal] if signal or rng.random() < 0.5 else [])], ["gone", key]]
    if word == "delete":
        return [["delete", who]]
    if word == "force":
        return [["delete", "--force", who]]
    if word == "list":
        return [["list", *rng.choice([[], ["--format", "json"], ["-q"], ["--format", "x"], ["-f", "table"]])]]
    if word == "ps":
        return [["ps", *rng.choice([["--format", "json"], ["-f", "json"], ["--format", "x"]]), who]]
    if word == "events":
        return [["events", *rng.choice([["--stats"], ["--stats"], ["--stats", "--interval", "1s"], ["--interval", "0s"]]), who]]
    if word == "exec":
        return [executed(rng, who)]
    if word == "update":
        return [["update", *rng.choice([["--pids-limit", "20"], ["--memory", "x"], ["--cpu-share", "-5"], [], ["--nothing"],
                                        ["--resources", "/nothing"], ["--cpuset-cpus", "0"], ["--memory", "64000000"]]), who]]
    if word == "wrong":
        return [rng.choice([["nothing"], ["create"], ["state"], ["start", who, "more"], ["kill"], ["delete"], ["exec", who], ["run", "--nothing", who],
                            ["state", "a/b"], ["create", *bundle_of, "../x"], ["delete", "--force", "{%s}-not" % key], ["state", ""],
                            ["create", "--bundle", "/nothing", who], ["pause"], ["resume", who, who], ["ps"], ["list", "more"], ["events"],
                            ["create", *bundle_of, "a b"], ["create", *bundle_of, "a" * 300], ["create", *bundle_of, ".."],
                            ["run", *bundle_of], ["kill", who, "KILL", "more"], ["delete", who, "more"], ["state", who, "more"], ["features"]])]
    return [[word, who]]


def sequence(seed, number, machine=False):
    """The sequence of that seed and number."""
    name = f"sequence:{seed}:{number}"
    rng = random.Random(name)
    keys = ["a", "b"] if rng.random() < 0.3 else ["a"]
    bundles, sits = {}, {}
    for key in keys:
        config, sits[key] = bundle(rng, key)
        bundles[key] = {"config": config}
    steps = []
    if rng.random() < 0.7:
        # Most begin with a container that is there.
        steps += command_of(rng, "detached", "a") if rng.random() < 0.5 else command_of(rng, "create", "a")
    for _ in range(rng.randint(3, 9)):
        key = rng.choice(keys)
        for step in command(rng, key, bundles[key]["config"]["process"]["args"] != ["/nothing"]):
            if step[0] == "run" and "--detach" not in step and sits[key]:
                step.insert(1, "--detach")
            steps.append(step)
    return {"name": name, "view": "machine" if machine else "v2", "bundles": bundles, "steps": steps}


def command_of(rng, word, key):
    """A command of that kind."""
    while True:
        steps = command(rng, key, may_keep=False)
        if steps[0][0] == ("run" if word == "detached" else word) and (word != "detached" or "--detach" in steps[0]):
            return steps
