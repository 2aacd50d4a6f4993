//! What is told of GPU memory, on machines that are described by hand (tests/fixtures/gpu has their files).

use super::super::gpu::{Can, lines, transports};
use super::*;

use crate::host::facts::{Card, Gpu};

fn with_gpu() -> Machine {
    let mut machine = Machine::root();
    let nodes = ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"];
    machine.probed.facts.gpu = Gpu {
        nodes: nodes.map(str::to_string).to_vec(),
        nvidia_driver: Some("575.57.08".into()),
        cards: vec![Card {
            bus: "0000:18:00.0".into(),
            model: "NVIDIA H200".into(),
            uuid: "GPU-1".into(),
            minor: Some(0),
        }],
        ..Gpu::default()
    };
    machine
}

fn can(machine: &Machine) -> Vec<(&'static str, Can)> {
    let all = transports(&machine.probed);
    all.into_iter().map(|one| (one.name, one.can)).collect()
}

fn why(machine: &Machine, name: &str) -> String {
    let all = transports(&machine.probed);
    all.into_iter().find(|one| one.name == name).unwrap().why
}

const NONE: [(&str, Can); 5] = [
    ("vmm-fd", Can::No),
    ("legacy-ipc", Can::No),
    ("pool", Can::No),
    ("fabric", Can::No),
    ("host-copy", Can::Yes),
];

#[test]
fn without_a_gpu_only_the_copy_is_left() {
    let machine = Machine::root();
    assert_eq!(can(&machine), NONE);
    assert!(why(&machine, "vmm-fd").contains("no NVIDIA driver"));
    assert!(lines(&machine.probed).is_empty());
    let mut wsl = Machine::root();
    wsl.probed.facts.gpu.nodes = vec!["/dev/dxg".into()];
    assert_eq!(can(&wsl), NONE);
    assert!(why(&wsl, "legacy-ipc").contains("WSL2"));
    let mut half = with_gpu();
    half.probed
        .facts
        .gpu
        .nodes
        .retain(|node| node != "/dev/nvidia-uvm");
    assert_eq!(can(&half), NONE);
    let told = why(&half, "pool");
    assert!(
        told.starts_with("no device node /dev/nvidia-uvm (the module"),
        "{told}"
    );
}

#[test]
fn with_one_files_tell_so_much() {
    let machine = with_gpu();
    let mut expected = NONE;
    for way in &mut expected[..3] {
        way.1 = Can::Maybe;
    }
    assert_eq!(can(&machine), expected);
    assert!(why(&machine, "fabric").contains("no IMEX channel"));
    let text = lines(&machine.probed).join("\n");
    for says in [
        "NVIDIA H200 GPU-1 0000:18:00.0 /dev/nvidia0",
        "maybe memory of cudaMalloc, by an IPC handle: members need one /dev/shm",
        "no    memory of cuMemCreate, by a fabric handle: no IMEX channel",
        "yes   a copy through host memory",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    let verdict = judge(&machine.host, &machine.probed);
    let json = report::json(&machine.host, &machine.probed, &verdict).unwrap();
    assert_eq!(json["cudaIpc"][0]["name"], "vmm-fd");
    assert_eq!(json["cudaIpc"][0]["can"], "maybe");
    assert_eq!(json["facts"]["gpu"]["cards"][0]["uuid"], "GPU-1");
    let table = report::text(
        &machine.host,
        &machine.probed,
        &verdict,
        report::Colour::Never,
    );
    assert!(
        table.contains("\nGPU memory in channels\n  NVIDIA H200"),
        "{table}"
    );

    let mut parted = with_gpu();
    parted.probed.facts.gpu.mig = vec!["gpu0/mig/gi1/ci0".into()];
    parted.probed.facts.gpu.imex_channels = vec!["/dev/nvidia-caps-imex-channels/channel0".into()];
    assert!(why(&parted, "vmm-fd").contains("within one GPU instance only"));
    assert!(why(&parted, "fabric").contains("nvidia-imex"));
    assert!(
        lines(&parted.probed)
            .iter()
            .any(|line| line == "MIG: gpu0/mig/gi1/ci0")
    );
}

#[test]
fn handles_of_the_older_kind_need_process_ids() {
    let mut machine = with_gpu();
    machine.breaks("root", "ns_last_pid", EACCES);
    machine.breaks("user", "ns_last_pid", EACCES);
    assert_eq!(can(&machine)[1], ("legacy-ipc", Can::No));
    assert!(why(&machine, "legacy-ipc").contains("ns_last_pid"));
}
