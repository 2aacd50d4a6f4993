#!/usr/bin/env python3
"""Writes an image that every engine loads (docker-archive): a busybox with its applets, two users.

usage: image.py [--run COMMAND] FILE [NAME:TAG]...
  names default to docker.io/library/box:latest; COMMAND is the entry point, in words
"""
import hashlib
import io
import json
import subprocess
import sys
import tarfile

BUSYBOX = "/bin/busybox"
FILES = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nann:x:1000:\n",
}


def layer() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:

        def add(name, kind, mode, content=b"", link=""):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.size, info.linkname = kind, mode, len(content), link
            tar.addfile(info, io.BytesIO(content))

        for name in ["bin", "etc", "proc", "sys", "dev", "run", "root"]:
            add(name, tarfile.DIRTYPE, 0o755)
        add("tmp", tarfile.DIRTYPE, 0o1777)
        with open(BUSYBOX, "rb") as file:
            add("bin/busybox", tarfile.REGTYPE, 0o755, file.read())
        applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
        for applet in applets.stdout.split():
            if applet != "busybox":
                add("bin/" + applet, tarfile.SYMTYPE, 0o777, link="busybox")
        for name, content in FILES.items():
            add(name, tarfile.REGTYPE, 0o644, content.encode())
    return data.getvalue()


def main() -> None:
    args = sys.argv[1:]
    run = {"Cmd": ["/bin/sh"]}
    if args[0] == "--run":
        run = {"Entrypoint": args[1].split()}
        args = args[2:]
    path = args[0]
    names = args[1:] or ["docker.io/library/box:latest"]
    content = layer()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {**run, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(content).hexdigest()]},
    }
    config = json.dumps(config).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": names, "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        for name, data in [
            (config_name, config),
            ("layer.tar", content),
            ("manifest.json", json.dumps(manifest).encode()),
        ]:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))


main()
