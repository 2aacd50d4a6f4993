//! The rules for linux.netDevices, linux.intelRdt and linux.memoryPolicy.

use serde_json::json;

use super::{accepted, noted, refused};

#[test]
fn network_devices() {
    let network = (
        "/linux/namespaces",
        json!([{"type": "mount"}, {"type": "network"}]),
    );
    let with = |value| [network.clone(), ("/linux/netDevices", value)];
    for (value, field, why) in [
        (json!({"": {}}), "linux.netDevices.", "no name"),
        (json!({".": {}}), "linux.netDevices..", "no name that"),
        (json!({"a b": {}}), "linux.netDevices.a b", "has ' ' in it"),
        (json!({"a/b": {}}), "linux.netDevices.a/b", "has '/' in it"),
        (json!({"a\0b": {}}), "linux.netDevices.a\\0b", "in it"),
        (json!({"a%d": {}}), "linux.netDevices.a%d", "has '%' in it"),
        (
            json!({"abcdefghijklmnop": {}}),
            "linux.netDevices.abcdefghijklmnop",
            "16 bytes",
        ),
        (
            json!({"a": {"name": ".."}}),
            "linux.netDevices.a.name",
            "no name that",
        ),
        (
            json!({"a": {"name": "b:1"}}),
            "linux.netDevices.a.name",
            "has ':' in it",
        ),
        (
            json!({"a": {"name": "b%d%d"}}),
            "linux.netDevices.a.name",
            "has '%' in it",
        ),
        (
            json!({"a": {"name": "b%s"}}),
            "linux.netDevices.a.name",
            "has '%' in it",
        ),
        (
            json!({"a": {"name": "same"}, "b": {"name": "same"}}),
            "linux.netDevices.b.name",
            "the name of \"a\"",
        ),
        (
            json!({"a": {"name": "b"}, "b": {}}),
            "linux.netDevices.b.name",
            "the name of \"a\"",
        ),
    ] {
        refused(&[(&with(value), field, why)]);
    }
    refused(&[(
        &[
            ("/linux/namespaces", json!([{"type": "mount"}])),
            ("/linux/netDevices", json!({"a": {}})),
        ],
        "linux.netDevices",
        "without a private NET namespace",
    )]);
    for value in [
        json!({}),
        json!({"eth0": {}, "eth1": {"name": ""}}),
        json!({"eth0": {"name": "eth1"}, "eth1": {"name": "eth0"}}),
        json!({"a": {"name": "eth%d"}, "b": {"name": "eth%d"}}),
        json!({"abcdefghijklmno": {"name": "x.y-z_1"}}),
    ] {
        accepted(&[&with(value)]);
    }
}

#[test]
fn memory_policies() {
    let policy = |value| [("/linux/memoryPolicy", value)];
    for (value, field, why) in [
        (json!({}), "linux.memoryPolicy.mode", "missing"),
        (
            json!({"mode": "MPOL_FROB"}),
            "linux.memoryPolicy.mode",
            "unknown variant",
        ),
        (
            json!({"mode": "MPOL_BIND"}),
            "linux.memoryPolicy.nodes",
            "missing",
        ),
        (
            json!({"mode": "MPOL_INTERLEAVE", "nodes": " , "}),
            "linux.memoryPolicy.nodes",
            "missing",
        ),
        (
            json!({"mode": "MPOL_PREFERRED_MANY"}),
            "linux.memoryPolicy.nodes",
            "missing",
        ),
        (
            json!({"mode": "MPOL_WEIGHTED_INTERLEAVE"}),
            "linux.memoryPolicy.nodes",
            "missing",
        ),
        (
            json!({"mode": "MPOL_LOCAL", "nodes": "0"}),
            "linux.memoryPolicy.nodes",
            "takes no nodes",
        ),
        (
            json!({"mode": "MPOL_DEFAULT", "nodes": "0"}),
            "linux.memoryPolicy.nodes",
            "takes no nodes",
        ),
        (
            json!({"mode": "MPOL_BIND", "nodes": "3-1"}),
            "linux.memoryPolicy.nodes",
            "ends before",
        ),
        (
            json!({"mode": "MPOL_BIND", "nodes": "-1"}),
            "linux.memoryPolicy.nodes",
            "not a number",
        ),
        (
            json!({"mode": "MPOL_BIND", "nodes": "0-4294967295"}),
            "linux.memoryPolicy.nodes",
            "over",
        ),
        (
            json!({"mode": "MPOL_BIND", "nodes": "1024"}),
            "linux.memoryPolicy.nodes",
            "over 1023",
        ),
        (
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_FROB"]}),
            "linux.memoryPolicy.flags[0]",
            "unknown variant",
        ),
        (
            json!({"mode": "MPOL_BIND", "nodes": "0",
                "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}),
            "linux.memoryPolicy.flags",
            "exclude each other",
        ),
        (
            json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}),
            "linux.memoryPolicy.flags",
            "not for MPOL_INTERLEAVE",
        ),
        (
            json!({"mode": "MPOL_PREFERRED", "flags": ["MPOL_F_STATIC_NODES"]}),
            "linux.memoryPolicy.flags",
            "without nodes",
        ),
        (
            json!({"mode": "MPOL_LOCAL", "flags": ["MPOL_F_RELATIVE_NODES"]}),
            "linux.memoryPolicy.flags",
            "without nodes",
        ),
    ] {
        refused(&[(&policy(value), field, why)]);
    }
    for value in [
        json!({"mode": "MPOL_DEFAULT"}),
        json!({"mode": "MPOL_LOCAL", "nodes": "", "flags": []}),
        json!({"mode": "MPOL_PREFERRED"}),
        json!({"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}),
        json!({"mode": "MPOL_BIND", "nodes": "0-3, 1023", "flags": ["MPOL_F_NUMA_BALANCING"]}),
        json!({"mode": "MPOL_PREFERRED_MANY", "nodes": "1", "flags": ["MPOL_F_RELATIVE_NODES"]}),
        json!({"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0,2"}),
    ] {
        accepted(&[&policy(value)]);
    }
}

#[test]
fn intel_rdt() {
    let rdt = |value| [("/linux/intelRdt", value)];
    for (value, field, why) in [
        (
            json!({"closID": "a/b"}),
            "linux.intelRdt.closID",
            "not the name",
        ),
        (
            json!({"closID": "/etc"}),
            "linux.intelRdt.closID",
            "not the name",
        ),
        (
            json!({"closID": ".."}),
            "linux.intelRdt.closID",
            "not the name",
        ),
        (
            json!({"closID": "a\0"}),
            "linux.intelRdt.closID",
            "null byte",
        ),
        (
            json!({"closID": "info"}),
            "linux.intelRdt.closID",
            "resctrl's own",
        ),
        (
            json!({"memBwSchema": "L3:0=f"}),
            "linux.intelRdt.memBwSchema",
            "begin with",
        ),
        (
            json!({"memBwSchema": "MB:0=1\nL3:0=f"}),
            "linux.intelRdt.memBwSchema",
            "one line",
        ),
        (
            json!({"l3CacheSchema": "L3:\0"}),
            "linux.intelRdt.l3CacheSchema",
            "null byte",
        ),
        (
            json!({"schemata": ["a", "b\nc"]}),
            "linux.intelRdt.schemata[1]",
            "one line",
        ),
    ] {
        refused(&[(&rdt(value), field, why)]);
    }
    for value in [
        json!({}),
        json!({"closID": "/", "enableMonitoring": true}),
        json!({"closID": "", "memBwSchema": ""}),
        json!({"closID": "gold", "l3CacheSchema": "L3:0=f\nMB:0=9", "memBwSchema": "MB:0=20",
            "schemata": ["L2:0=f"]}),
    ] {
        accepted(&[&rdt(value)]);
    }
    for (name, says) in [
        (
            "enableCMT",
            "linux.intelRdt.enableCMT: ignored, enableMonitoring",
        ),
        (
            "enableMBM",
            "linux.intelRdt.enableMBM: ignored, enableMonitoring",
        ),
        ("enableCmt", "the specification's was \"enableCMT\""),
        ("enableMbm", "the specification's was \"enableMBM\""),
    ] {
        noted(&[(&rdt(json!({name: true})), says)]);
    }
}
