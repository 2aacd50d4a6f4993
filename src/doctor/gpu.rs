//! What can be told of sharing GPU memory without loading libcuda: by files alone.
//!
//! docs/cuda.md says what the ways are. isorun is static and never loads libcuda, so what only that tells (the
//! attributes of a device) is said to be open, and not guessed.

use serde::Serialize;

use crate::host::gpu::{DXG, NEEDED, is_card};
use crate::host::{Answer, Facts, Probed};

/// Whether a way of sharing GPU memory can work on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Can {
    /// It can.
    Yes,
    /// What files tell is there; the rest only libcuda knows.
    Maybe,
    /// It cannot.
    No,
}

/// One way of handing GPU memory over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Transport {
    /// Its name in JSON.
    pub name: &'static str,
    /// What it is, for people.
    pub title: &'static str,
    /// Whether it can work.
    pub can: Can,
    /// Why not, or what is still open.
    pub why: String,
}

const TITLES: [(&str, &str); 4] = [
    ("vmm-fd", "memory of cuMemCreate, by a descriptor"),
    ("legacy-ipc", "memory of cudaMalloc, by an IPC handle"),
    (
        "pool",
        "memory of cudaMallocAsync, by its pool's descriptor",
    ),
    ("fabric", "memory of cuMemCreate, by a fabric handle"),
];

/// All ways, the best first; the copy through host memory last.
pub fn transports(probed: &Probed) -> Vec<Transport> {
    let nothing = missing(&probed.facts);
    let mut all: Vec<Transport> = TITLES
        .iter()
        .map(|&(name, title)| {
            let (can, why) = match &nothing {
                Some(why) => (Can::No, why.clone()),
                None => one(name, probed),
            };
            Transport {
                name,
                title,
                can,
                why,
            }
        })
        .collect();
    all.push(Transport {
        name: "host-copy",
        title: "a copy through host memory",
        can: Can::Yes,
        why: "it needs no GPU of the receiver".into(),
    });
    all
}

/// What every way but the copy needs, and is not there.
fn missing(facts: &Facts) -> Option<String> {
    let gpu = &facts.gpu;
    let has = |path: &str| gpu.nodes.iter().any(|node| node == path);
    if gpu.nvidia_driver.is_none() {
        return Some(match has(DXG) {
            true => format!("the GPU is that of WSL2 ({DXG}): taken as not supported"),
            false => "no NVIDIA driver: there is no /proc/driver/nvidia/version".into(),
        });
    }
    let mut missing: Vec<&str> = NEEDED.into_iter().filter(|path| !has(path)).collect();
    if !gpu.nodes.iter().any(|node| is_card(node)) {
        missing.push("/dev/nvidia0 and so on");
    }
    (!missing.is_empty()).then(|| {
        let why = format!("no device node {}", missing.join(", "));
        match missing.contains(&"/dev/nvidia-uvm") {
            true => format!("{why} (the module nvidia-uvm: nvidia-modprobe -u -c 0)"),
            false => why,
        }
    })
}

/// One way, where there is a GPU.
fn one(name: &str, probed: &Probed) -> (Can, String) {
    let gpu = &probed.facts.gpu;
    let mut open: Vec<String> = Vec::new();
    match name {
        "vmm-fd" => open.push(
            "libcuda tells whether the device has virtual memory management and exports descriptors".into(),
        ),
        "legacy-ipc" => {
            let works = |name: &str| {
                let outcome = probed.probes.get(name);
                outcome.is_some_and(|outcome| outcome.result == Answer::Ok)
            };
            if !["root.ns_last_pid", "user.ns_last_pid"].into_iter().any(works) {
                return (
                    Can::No,
                    "containers cannot be given process ids of their own (the step ns_last_pid)".into(),
                );
            }
            open.push("members need one /dev/shm, which io.isorun.cuda-ipc gives them".into());
        }
        "pool" => open.push("libcuda tells whether the device's pools export descriptors".into()),
        _ => {
            if gpu.imex_channels.is_empty() {
                return (
                    Can::No,
                    "no IMEX channel: there is no node in /dev/nvidia-caps-imex-channels".into(),
                );
            }
            open.push("it needs the daemon nvidia-imex, and GPUs on one NVLink fabric".into());
        }
    }
    if !gpu.mig.is_empty() {
        open.push("GPUs are parted by MIG: within one GPU instance only".into());
    }
    (Can::Maybe, open.join("; "))
}

/// The lines of the table about GPUs; none where there is nothing of one.
pub fn lines(probed: &Probed) -> Vec<String> {
    let gpu = &probed.facts.gpu;
    if gpu.is_empty() {
        return Vec::new();
    }
    let mut lines: Vec<String> = gpu
        .cards
        .iter()
        .map(|card| {
            let node = card
                .minor
                .map_or_else(String::new, |minor| format!(" /dev/nvidia{minor}"));
            let uuid = match card.uuid.as_str() {
                "" => "no UUID told",
                uuid => uuid,
            };
            format!("{} {uuid} {}{node}", card.model, card.bus)
        })
        .collect();
    if !gpu.mig.is_empty() {
        lines.push(format!("MIG: {}", gpu.mig.join(" ")));
    }
    lines.push("CUDA's version: only libcuda tells (nvidia-smi shows it)".into());
    for way in transports(probed) {
        let can = match way.can {
            Can::Yes => "yes",
            Can::Maybe => "maybe",
            Can::No => "no",
        };
        lines.push(format!("{can:<6}{}: {}", way.title, way.why));
    }
    lines
}
