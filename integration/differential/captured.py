"""The configurations that real engines handed to a runtime, made to run here."""

import json
from pathlib import Path

import cases


def adapted(path, view):
    """A captured config.json: only what exists on the machine that it came from is replaced, and told."""
    config = json.loads(path.read_text())
    name = f"captured-{path.stem}" + ("" if view == "v2" else "-v1")
    taken, files = [], {}
    config["root"]["path"] = "rootfs"
    process, linux = config["process"], config["linux"]
    process["args"] = ["/probe"]
    for number, mount in enumerate(config["mounts"]):
        source = mount.get("source", "")
        if "bind" in (mount.get("type"), *mount.get("options", [])) and not source.startswith(("/sys", "/proc")):
            directory = mount["destination"] in ("/dev/shm", "/data", "/vol") or Path(source).suffix == ".d"
            made = f"sources/{number}"
            files[f"{made}/file" if directory else made] = "from outside\n"
            mount["source"] = f"BUNDLE/{made}"
            taken.append(f"source of {mount['destination']}: a file or directory of our own")
    if process.pop("apparmorProfile", None):
        taken.append("AppArmor profile")
    if ":" in linux.get("cgroupsPath", ""):
        taken.append(f"cgroupsPath {linux['cgroupsPath']}: a plain path")
        linux["cgroupsPath"] = f"/differential/{name}"
    if view == "v2":
        for key in ("memory", "cpu", "pids", "blockIO"):
            if linux.get("resources", {}).pop(key, None):
                taken.append(f"limits of {key}: this view has no controllers")
    elif linux.get("resources", {}).get("memory", {}).pop("swap", None):
        taken.append("swap limit: no swap accounting here")
    for kind, names in (process.get("capabilities") or {}).items():
        if "CAP_SYS_RESOURCE" in names:
            names.remove("CAP_SYS_RESOURCE")
            taken.append(f"{kind} CAP_SYS_RESOURCE: this machine's root has it not")
    for limit in process.get("rlimits", []):
        limit["soft"], limit["hard"] = min(limit["soft"], 1024), min(limit["hard"], 2048)
        taken.append(f"{limit['type']} above what may be set here")
    if config.pop("hooks", None):
        taken.append("hooks: programs of that machine")
    if channels := config.get("annotations", {}).pop("io.isorun.channels", None):
        taken.append(f"channels {channels}: isorun's alone, and this host's administrator has no rule for them")
    terminal = {}
    if process.get("terminal"):
        terminal = {"command": "/work/probe pty 25 80 $RUN run --bundle $B $ID"}
    ask = [word for call in cases.CALLS for word in ("--call", call)]
    return cases.Case(name, config, view=view, against="", ask=ask, files=files, taken=taken, **terminal)
