"""What came out of a generated case, as fields that two runtimes can be compared by, and the table that excuses.

A field has the step before it ("2 exec| status Groups") where a case has several; the table names fields
without that.
"""

import fnmatch
import json
import posixpath
import re

import facts

# What tools look for in a runtime's errors: containerd, Podman, CRI-O and Docker decide by these words.
PHRASES = (
    "container does not exist", "container not running", "process already finished", "already exists",
    "cannot start an already running container", "cannot start a container that has stopped",
    "cannot exec in a stopped container", "cannot exec in a paused container", "container not paused",
    "is not stopped", "cannot pause", "cannot be paused", "invalid ID", "executable file not found",
    "no such file or directory: unknown", "requires at least", "unknown signal", "flag needs an argument",
)
# Members of a status document whose value is of the moment.
MOMENT = {"pid": "PID", "created": "TIME", "owner": "OWNER"}


def message(text):
    """The error that a runtime told: the msg of the last error line, else all it said."""
    told = re.findall(r'level=(?:error|fatal) msg=("(?:[^"\\]|\\.)*"|\S+)', text)
    if told:
        last = told[-1]
        try:
            return json.loads(last) if last.startswith('"') else last
        except ValueError:
            return last.strip('"')
    return text.strip()[:400]


def phrases(text):
    return " + ".join(phrase for phrase in PHRASES if phrase in text)


def leaves(prefix, value, found):
    """A JSON document as fields, one for each leaf; lists of plain values in one, in their order."""
    if isinstance(value, dict):
        if not value:
            found[prefix] = "{}"
        for name, below in value.items():
            leaves(f"{prefix}.{name}", below, found)
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for number, below in enumerate(value):
            leaves(f"{prefix}[{number}]", below, found)
    else:
        found[prefix] = json.dumps(value, sort_keys=True)
    return found


def members(prefix, value, found):
    """A JSON document as fields, where each word of a list is one: what one has and the other lacks shows by name."""
    if isinstance(value, dict):
        for name, below in value.items():
            members(f"{prefix}.{name}", below, found)
    elif isinstance(value, list):
        for item in value:
            found[f"{prefix} {item}"] = "listed"
    else:
        found[prefix] = json.dumps(value)
    return found


def moment(value):
    """What is another thing in each run, under a name; 0 stays, because it says that there is none."""
    if isinstance(value, dict):
        return {name: MOMENT[name] if name in MOMENT and below not in (0, "", None) else moment(below)
                for name, below in value.items()}
    return [moment(item) for item in value] if isinstance(value, list) else value


def shape(value):
    """A document of measurements: what there is, not how much of it."""
    if isinstance(value, dict):
        return {name: shape(below) for name, below in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def table(text):
    """A table of `list` or `ps`: its head, and the rows without what is of the moment."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]
    found = {"head": " ".join(rows[0]) if rows else "", "rows": str(len(rows) - 1)}
    if rows and rows[0][0] == "ID":
        for row in sorted(rows[1:]):
            plain = [re.sub(r"^\d{4}-\d\d-\d\dT\S+$", "TIME", cell) for cell in row]
            plain[1] = "0" if plain[1] == "0" else "PID"
            found[f"row {plain[0]}"] = " ".join(plain)
    return found


def output(words, text):
    """The fields of what a command printed."""
    command = words[0]
    json_asked = "json" in words or "--format=json" in words
    try:
        if command == "features":
            return members("features", json.loads(text), {})
        if command == "state" or (command in ("list", "ps") and json_asked):
            document = json.loads(text)
            if command == "ps":
                return {"processes": str(len(document or []))}
            if command == "list":
                document = sorted(document or [], key=lambda row: row["id"])
            return leaves(command, moment(document), {})
        if command == "events" and text.strip():
            return leaves("events", shape(json.loads(text.splitlines()[0])), {})
    except ValueError:
        return {"output": "no JSON: " + text.strip()[:200]}
    if command in ("list", "ps") and "-q" not in words and "--quiet" not in words and text.strip():
        return table(text)
    if command in ("run", "create", "start"):
        # The container's program says so later, or not before the step's output is read.
        text = re.sub(r"^ready \w+$", "", text, flags=re.M)
    return {"output": " ".join(text.split())}


def of_exec(found):
    """Without the pid, which depends on how many helpers a runtime starts in the namespace."""
    return {name: value for name, value in found.items() if name not in (
        "pid", "parent", "status Tgid", "status NSpid", "status NSpgid", "status NSsid", "session", "process group")}


def step_fields(taken, outside, names):
    """The fields of one step."""
    words = taken["step"][1:] if taken["step"][0] == "tty" else taken["step"]
    text, error = taken["out"], taken["err"]
    if taken["step"][0] == "tty" and "\n{" in text:
        # On a terminal a runtime's warnings come before what the program prints.
        warnings, brace, rest = text.partition("\n{")
        text, error = brace.strip() + rest, error + warnings
    if not text.startswith("{") and words[0] in ("run", "exec"):
        error += text
    found = {"exit status": taken["status"]}
    document = None
    if text.startswith("{") and words[0] in ("run", "exec"):
        try:
            document = json.loads(text)
        except ValueError:
            found["document"] = "broken"
    if document is not None:
        flat = facts.flat(document, outside, names)
        found |= of_exec(flat) if words[0] == "exec" else flat
    elif taken["status"] == "0" or not error.strip():
        for old, new in names:
            text = text.replace(old, new)
        found |= output(words, text)
    if taken["status"] != "0" and document is None and error.strip():
        said = message(error)
        for old, new in names:
            said = said.replace(old, new)
        found["refused"] = said
        found["phrases"] = phrases(said)
    return found


def fields(raw, outside):
    """All fields of a case under one runtime."""
    names = [tuple(pair) for pair in raw["names"]]
    names += [(old.removeprefix("/work"), new) for old, new in names if old.startswith("/work/")]
    names.append(("/workBUNDLE", "BUNDLE"))
    several = len(raw["steps"]) > 1
    found = {"left behind": " ".join(raw["left"])}
    for number, taken in enumerate(raw["steps"]):
        word = taken["step"][taken["step"][0] == "tty"]
        prefix = f"{number} {word}| " if several else ""
        for name, value in step_fields(taken, outside, names).items():
            found[prefix + name] = value
    for key, log in raw["logs"].items():
        log = log.replace("\\/", "/")
        for old, new in names:
            log = log.replace(old, new)
        found |= facts.hook_log(log, outside.get("outside", {}))
    return found


def differences(ours, theirs):
    """(field, isorun's value, the other's) of all that differs.

    A step that one refuses and the other takes differs in that alone, whatever else its output lacks; of one
    that both refuse the words do not count, only those that tools look for."""
    found = []
    prefixes = {name[:-len("refused")] for name in ours.keys() | theirs.keys()
                if name == "refused" or name.endswith("| refused")}
    alone = {prefix for prefix in prefixes if (prefix + "refused" in ours) != (prefix + "refused" in theirs)}
    for name in sorted(ours.keys() | theirs.keys()):
        prefix, bar, plain = name.rpartition("| ")
        prefix += bar
        if plain == "refused":
            if prefix in alone:
                words = ["refused: " + side[name] if name in side else "taken" for side in (ours, theirs)]
                found.append((prefix + "verdict", *words))
            continue
        if prefix in alone and (prefix or plain != "left behind"):
            continue
        a, b = ours.get(name, "-"), theirs.get(name, "-")
        if a != b:
            found.append((name, a, b))
    return found


def value_of(found, field):
    """A runtime's value of a field, as `differences` tells it."""
    prefix, bar, plain = field.rpartition("| ")
    if plain == "verdict":
        refused = prefix + bar + "refused"
        return "refused: " + found[refused] if refused in found else "taken"
    return found.get(field, "-")


def unsteady(gone, ours, theirs):
    """Of differences that are not there again: those of a field that isorun changed, and the other runtime did not."""
    return [(field, f"unsteady: {before!r}, then {value_of(ours, field)!r}", reference)
            for field, before, reference in gone
            if value_of(ours, field) != before and value_of(theirs, field) == reference]


def reach(value, parts):
    """The values at a path; [] is every element, {} every member."""
    if not parts:
        yield value
    elif parts[0] in ("[]", "{}"):
        below = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
        for item in below:
            yield from reach(item, parts[1:])
    elif isinstance(value, dict) and parts[0] in value:
        yield from reach(value[parts[0]], parts[1:])


def holds(config, condition):
    """Whether a configuration has a path ("linux.seccomp"), or a value there ("linux.namespaces[].type=user")."""
    path, equals, wanted = condition.partition("=")
    parts = path.replace("[]", ".[]").replace("{}", ".{}").split(".")
    values = [value for value in reach(config, parts) if value is not None]
    return any(fnmatch.fnmatchcase(str(value), wanted) for value in values) if equals else bool(values)


def fits(patterns, value):
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(value, pattern) for pattern in patterns)


# Links in the roots (world.make_root; masked-link in cases.py): a path that is one is what it points at.
LINKS = {"/link": "/etc/group", "/masked-link": "/etc/group", "/outward/x": "/tmp/x"}
# What an entry may have.
KEYS = {"runtimes", "reason", "cases", "fields", "isorun", "other", "pending", "optional", "with", "without", "said",
        "view", "at", "option", "after", "stacked"}


def place(mount):
    """Where a mount is in the end."""
    where = posixpath.normpath("/" + str(mount.get("destination")).lstrip("/"))
    return LINKS.get(where, where)


def about(entry, configs, field):
    """Whether an entry's conditions on configurations, and on the path that the field names, hold."""
    if not all(any(holds(config, condition) for config in configs) for condition in entry.get("with", [])):
        return False
    if any(holds(config, condition) for config in configs for condition in entry.get("without", [])):
        return False
    path = field.rpartition("| ")[2].partition(" ")[2].partition(" ")[0]
    if path.startswith("/"):
        path = posixpath.normpath(path)
    if entry.get("stacked"):
        places = [place(mount) for config in configs for mount in reach(config, ["mounts", "[]"]) if isinstance(mount, dict)]
        if places.count(path) < 2:
            return False
    if "at" in entry:
        parts = entry["at"].replace("[]", ".[]").split(".")
        values = [posixpath.normpath(value) for config in configs for value in reach(config, parts) if isinstance(value, str)]
        if path not in [LINKS.get(value, value) for value in values]:
            return False
    if "option" in entry:
        mounts = [mount for config in configs for mount in reach(config, ["mounts", "[]"]) if isinstance(mount, dict)]
        return any(fits(entry["option"], option) for mount in mounts
                   if place(mount) == path for option in mount.get("options") or [])
    return True


def follows(patterns, case, field):
    """Whether the last step with that command before the field's own is one of these ("kill * TERM")."""
    number, space, rest = field.partition(" ")
    if not (space and number.isdigit() and "| " in rest):
        return False
    steps = [step for step in case["steps"] if step[0] not in ("ready", "gone")][:int(number)]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    words = {pattern.split()[0] for pattern in patterns}
    last = next((step for step in reversed(steps) if step[step[0] == "tty"] in words), None)
    return last is not None and fits(patterns, " ".join(last))


def configuration(content):
    """The configuration of a bundle: what its config.json says, where that is written by hand."""
    if "text" not in content:
        return content.get("config")
    try:
        return json.loads(content["text"] or "")
    except (ValueError, RecursionError):
        return None


def excuse(entries, case, difference, said=(), reference="runc"):
    """The entry that explains a difference, marked as used. `said`: isorun's errors."""
    field, ours, theirs = difference
    plain = re.sub(r"^\d+ (\S+\| )", r"\1", field)
    bare = plain.rpartition("| ")[2]
    configs = [configuration(content) for content in case["bundles"].values()]
    for entry in entries:
        if entry.get("view", case["view"]) != case["view"]:
            continue
        if reference not in entry["runtimes"] or not fits(entry.get("cases", "*"), case["name"]):
            continue
        pattern = entry.get("fields", "*")
        if not (fits(pattern, bare) or fits(pattern, plain)):
            continue
        if not (fits(entry.get("isorun", "*"), ours) and fits(entry.get("other", "*"), theirs)):
            continue
        if "said" in entry and not any(fits(entry["said"], error) for error in said):
            continue
        if not about(entry, configs, field) or "after" in entry and not follows(entry["after"], case, field):
            continue
        entry["used"] = entry.get("used", 0) + 1
        return entry
    return None
