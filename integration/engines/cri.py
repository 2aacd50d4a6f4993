#!/usr/bin/env python3
"""A small client of Kubernetes' Container Runtime Interface: one call, JSON in, JSON out.

usage: cri.py METHOD [JSON]     such as: cri.py ExecSync '{"container_id": "…", "cmd": ["id"]}'
       cri.py --serve FIFO      answers lines "REPLY METHOD JSON" from FIFO into the file REPLY, the first
                                line 0 or 1: under emulation, starting Python takes longer than a call
environment: CRI_SOCKET         default /run/containerd/containerd.sock

gRPC is python3-grpcio's; the messages are written here, from the field numbers of cri-api's
runtime/v1/api.proto, for the fields that the scenarios use. An unknown field is an error.
"""
import json
import os
import sys
import threading

import grpc

# name: (number, kind). Kinds: "str", "int", "bool", "bytes", "map", another message; "*" repeats.
MESSAGES = {
    "VersionRequest": {"version": (1, "str")},
    "VersionResponse": {"runtime_name": (2, "str"), "runtime_version": (3, "str")},
    "RunPodSandboxRequest": {"config": (1, "PodSandboxConfig"), "runtime_handler": (2, "str")},
    "RunPodSandboxResponse": {"pod_sandbox_id": (1, "str")},
    "PodSandboxConfig": {
        "metadata": (1, "PodSandboxMetadata"),
        "hostname": (2, "str"),
        "log_directory": (3, "str"),
        "labels": (6, "map"),
        "annotations": (7, "map"),
        "linux": (8, "LinuxPodSandboxConfig"),
    },
    "PodSandboxMetadata": {
        "name": (1, "str"),
        "uid": (2, "str"),
        "namespace": (3, "str"),
        "attempt": (4, "int"),
    },
    "LinuxPodSandboxConfig": {"cgroup_parent": (1, "str"), "security_context": (2, "SandboxSecurity")},
    "SandboxSecurity": {"namespace_options": (1, "NamespaceOption"), "privileged": (6, "bool")},
    "NamespaceOption": {
        "network": (1, "int"),
        "pid": (2, "int"),
        "ipc": (3, "int"),
        "userns_options": (5, "UserNamespace"),
    },
    "UserNamespace": {"mode": (1, "int"), "uids": (2, "*IDMapping"), "gids": (3, "*IDMapping")},
    "IDMapping": {"host_id": (1, "int"), "container_id": (2, "int"), "length": (3, "int")},
    "CreateContainerRequest": {
        "pod_sandbox_id": (1, "str"),
        "config": (2, "ContainerConfig"),
        "sandbox_config": (3, "PodSandboxConfig"),
    },
    "CreateContainerResponse": {"container_id": (1, "str")},
    "ContainerConfig": {
        "metadata": (1, "ContainerMetadata"),
        "image": (2, "ImageSpec"),
        "command": (3, "*str"),
        "args": (4, "*str"),
        "working_dir": (5, "str"),
        "envs": (6, "*KeyValue"),
        "annotations": (10, "map"),
        "log_path": (11, "str"),
        "linux": (15, "LinuxContainerConfig"),
    },
    "ContainerMetadata": {"name": (1, "str"), "attempt": (2, "int")},
    "ImageSpec": {"image": (1, "str")},
    "KeyValue": {"key": (1, "str"), "value": (2, "str")},
    "LinuxContainerConfig": {"resources": (1, "Resources"), "security_context": (2, "Security")},
    "Resources": {
        "cpu_period": (1, "int"),
        "cpu_quota": (2, "int"),
        "cpu_shares": (3, "int"),
        "memory_limit_in_bytes": (4, "int"),
    },
    "Security": {
        "capabilities": (1, "Capability"),
        "privileged": (2, "bool"),
        "namespace_options": (3, "NamespaceOption"),
        "run_as_user": (5, "Int64Value"),
        "readonly_rootfs": (7, "bool"),
        "no_new_privs": (11, "bool"),
    },
    "Capability": {"add_capabilities": (1, "*str"), "drop_capabilities": (2, "*str")},
    "Int64Value": {"value": (1, "int")},
    "StartContainerRequest": {"container_id": (1, "str")},
    "StartContainerResponse": {},
    "StopContainerRequest": {"container_id": (1, "str"), "timeout": (2, "int")},
    "StopContainerResponse": {},
    "RemoveContainerRequest": {"container_id": (1, "str")},
    "RemoveContainerResponse": {},
    "UpdateContainerResourcesRequest": {"container_id": (1, "str"), "linux": (2, "Resources")},
    "UpdateContainerResourcesResponse": {},
    "ContainerStatusRequest": {"container_id": (1, "str")},
    "ContainerStatusResponse": {"status": (1, "ContainerStatus")},
    "ContainerStatus": {"id": (1, "str"), "state": (3, "int"), "exit_code": (7, "int")},
    "ContainerStatsRequest": {"container_id": (1, "str")},
    "ContainerStatsResponse": {"stats": (1, "ContainerStats")},
    "ContainerStats": {"cpu": (2, "CpuUsage"), "memory": (3, "MemoryUsage")},
    "CpuUsage": {"timestamp": (1, "int"), "usage_core_nano_seconds": (2, "UInt64Value")},
    "MemoryUsage": {
        "timestamp": (1, "int"),
        "working_set_bytes": (2, "UInt64Value"),
        "usage_bytes": (4, "UInt64Value"),
    },
    "UInt64Value": {"value": (1, "int")},
    "ExecSyncRequest": {"container_id": (1, "str"), "cmd": (2, "*str"), "timeout": (3, "int")},
    "ExecSyncResponse": {"stdout": (1, "bytes"), "stderr": (2, "bytes"), "exit_code": (3, "int")},
    "StopPodSandboxRequest": {"pod_sandbox_id": (1, "str")},
    "StopPodSandboxResponse": {},
    "RemovePodSandboxRequest": {"pod_sandbox_id": (1, "str")},
    "RemovePodSandboxResponse": {},
}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, kind: str, value) -> bytes:
    if kind in ("int", "bool"):
        return varint(number << 3) + varint(int(value))
    if kind == "map":
        pairs = ({"key": key, "value": value[key]} for key in value)
        return b"".join(field(number, "KeyValue", pair) for pair in pairs)
    data = value.encode() if kind == "str" else encode(kind, value)
    return varint(number << 3 | 2) + varint(len(data)) + data


def encode(message: str, values: dict) -> bytes:
    out = b""
    for name, value in values.items():
        number, kind = MESSAGES[message][name]
        many = value if kind.startswith("*") else [value]
        out += b"".join(field(number, kind.lstrip("*"), one) for one in many)
    return out


def take_varint(data: bytes, at: int) -> tuple:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def decode(message: str, data: bytes) -> dict:
    names = {number: (name, kind) for name, (number, kind) in MESSAGES[message].items()}
    out = {name: 0 for name, (_, kind) in MESSAGES[message].items() if kind == "int"}
    at = 0
    while at < len(data):
        tag, at = take_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = take_varint(data, at)
        elif wire == 2:
            size, at = take_varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            at += {1: 8, 5: 4}[wire]
            continue
        if number not in names:
            continue
        name, kind = names[number]
        if kind in ("str", "bytes"):
            value = value.decode(errors="replace")
        elif kind not in ("int", "bool"):
            value = decode(kind, value)
        out[name] = value
    return out


def call(method: str, request: str) -> str:
    """Makes one call; SystemExit with a sentence when it fails."""
    data = encode(method + "Request", json.loads(request))
    socket = os.environ.get("CRI_SOCKET", "/run/containerd/containerd.sock")
    with grpc.insecure_channel("unix://" + socket) as channel:
        try:
            answer = channel.unary_unary("/runtime.v1.RuntimeService/" + method)(data, timeout=120)
        except grpc.RpcError as error:
            sys.exit(f"cri.py: {method}: {error.code().name}: {error.details()}")
    return json.dumps(decode(method + "Response", answer))


def answer(line: str) -> None:
    reply, method, request = line.split(" ", 2)
    try:
        text = "0\n" + call(method, request)
    except SystemExit as error:
        text = f"1\n{error}"
    except (KeyError, ValueError) as error:
        text = f"1\ncri.py: {method}: {error!r} in {request}"
    with open(reply, "w") as file:
        print(text, file=file)


def main() -> None:
    if sys.argv[1] == "--serve":
        # Open for both directions: the end of one writer is not the end of the requests.
        with open(os.open(sys.argv[2], os.O_RDWR)) as requests:
            for line in requests:
                threading.Thread(target=answer, args=(line,)).start()
    else:
        print(call(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "{}"))


main()
