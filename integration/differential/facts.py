"""Makes one container's probe document comparable: a flat map from field to value.

What differs between two runs of one and the same runtime (ids of mounts and namespaces, sizes, the names
of the bundle and of the container) is replaced or left out here, and nothing else is: what two runtimes
do differently must come out as a difference.
"""

import re

# Lines of /proc/self/status that say what a runtime set; the others are memory, times and ids.
STATUS = ("Umask Tgid NSpid NSpgid NSsid Uid Gid Groups CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp "
          "Seccomp_filters SigPnd ShdPnd SigBlk SigIgn SigCgt Speculation_Store_Bypass "
          "SpeculationIndirectBranch Cpus_allowed_list Mems_allowed_list THP_enabled TracerPid").split()

PROPAGATION = re.compile(r"^(shared|master|propagate_from):\d+$")


def unescape(text):
    """mountinfo's octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mounts(text, known):
    """mountinfo: for each mount point, in the order of the table, what is mounted there."""
    found, points, seen = {}, {}, {}
    rows = [line.split(" ") for line in text.splitlines()]
    for row in rows:
        points[row[0]] = row[4]
    order = []
    for row in rows:
        dash = row.index("-")
        point = unescape(row[4])
        seen[point] = seen.get(point, 0) + 1
        name = f"mount {point}" + (f" #{seen[point]}" if seen[point] > 1 else "")
        order.append(point)
        tags = sorted(PROPAGATION.sub(r"\1", tag) for tag in row[6:dash])
        fields = {
            "root": known(unescape(row[3])),
            "flags": row[5],
            "propagation": " ".join(tags) or "private",
            "type": row[dash + 1],
            "source": known(unescape(row[dash + 2])),
            # Sizes that the kernel computes from the machine's memory are the same for all.
            "options": ",".join(sorted(known(row[dash + 3]).split(","))),
            "on": unescape(points.get(row[1], "/")) if row[4] != "/" else "",
        }
        for field, value in fields.items():
            found[f"{name} {field}"] = value
    found["mounts in order"] = " ".join(order)
    return found


def keyed(prefix, lines):
    """A list whose elements start with a name, as one field for each."""
    found = {}
    for line in lines:
        name, _, rest = line.partition(" ")
        found[f"{prefix} {name}"] = rest
    return found


def environment(lines):
    found = {"environment in order": " ".join(line.partition("=")[0] for line in lines)}
    for line in lines:
        name, _, value = line.partition("=")
        found[f"environment {name}"] = value
    return found


def cgroups(text):
    """One field for each hierarchy."""
    found = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        found[f"cgroup {names or 'v2'}"] = path
    return found


def hook_log(text, outside):
    """What each hook saw, as a field for each word; repeated calls are numbered."""
    found, order = {}, []
    for line in text.splitlines():
        stage, word, rest = (line.split(" ", 2) + ["", ""])[:3]
        if word == "argc":
            order.append(stage)
        if word == "namespace":
            kind, _, link = rest.partition(" ")
            found[f"hook {stage} namespace {kind}"] = "outside" if link == outside.get(kind) else "inside"
            continue
        if word == "env":
            name, _, rest = rest.partition("=")
            word = f"env {name}"
        if word == "state":
            rest = re.sub(r'"pid": ?\d+', '"pid": PID', re.sub(r"\s+", " ", rest))
            rest = re.sub(r' ?([{}:,]) ?', r"\1", rest)
            found.update(state(f"hook {stage}", rest))
            continue
        found[f"hook {stage} {word}"] = rest
    if order:
        found["hooks in order"] = " ".join(order)
    return found


def state(prefix, text):
    """The members of a state document, without its order."""
    found = {}
    for name, value in re.findall(r'"([^"]+)":("[^"]*"|[^,{}]+)', text):
        found[f"{prefix} state {name}"] = value.strip('"')
    return found


def own_pids(document):
    """The pid of the probe itself where it is not 1, by which it is known outside."""
    return {document["pid"]: "PID"} if document["pid"] != "1" else {}


def flat(document, outside, replaced):
    """The probe's document as fields. `outside`: the namespaces around; `replaced`: (text, name) pairs."""
    def known(text):
        for old, new in replaced:
            text = text.replace(old, new)
        return text

    found = {}
    for name, value in document.items():
        if name in ("mountinfo", "status", "cgroup") and value.startswith("!"):
            # A container without /proc.
            found[name] = value
        elif name == "mountinfo":
            found.update(mounts(value, known))
        elif name == "status":
            rows = dict(line.split(":\t", 1) for line in value.splitlines() if ":\t" in line)
            pids = own_pids(document)
            found.update({f"status {row}": pids.get(rows[row].strip(), rows[row].strip())
                          if row in ("Tgid", "NSpid", "NSpgid", "NSsid") else rows[row].strip()
                          for row in STATUS if row in rows})
        elif name == "environment":
            found.update(environment([known(line) for line in value]))
        elif name == "cgroup":
            found.update(cgroups(known(value)))
        elif name == "fds":
            found.update(keyed("fd", [re.sub(r":\[\d+\]", ":[N]", known(line)) for line in value]))
        elif name in ("dev", "root"):
            found.update(keyed("node" if name == "dev" else "top", [known(line) for line in value]))
        elif name == "device rules":
            found.update({f"device {line.split(' mknod')[0]}": "mknod" + line.partition(" mknod")[2] for line in value})
        elif name.startswith("namespace "):
            kind = name.removeprefix("namespace ")
            base = kind.removesuffix("_for_children")
            place = next((where for where, links in outside.items() if links.get(base) == value), None)
            found[name] = place or ("new" if base == kind or value != document.get(f"namespace {base}")
                                    else "as its own")
        elif name == "session keyring":
            found[name] = known(value)
        elif name == "parent" and document["pid"] != "1":
            continue
        elif name in ("pid", "parent", "cmdline"):
            found[name] = known(value) if value in "01" or name == "cmdline" else "outside"
        elif isinstance(value, list):
            found[name] = ", ".join(known(item) for item in value)
        else:
            found[name] = known(value)
    return found
