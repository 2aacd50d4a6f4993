//! GPUs, as far as files tell: nodes, the driver, and the CDI files that engines inject them by.
//!
//! <https://github.com/cncf-tags/container-device-interface>: a CDI file is JSON or YAML with `kind`
//! (vendor/class) and a list of `devices` with names.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::text;

/// Where engines look for CDI files.
const CDI_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// What is taken of one CDI file; real ones are some ten kilobytes.
const MOST: u64 = 1 << 20;

/// What there is of GPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gpu {
    /// Device nodes: /dev/nvidia*, /dev/dri/*, /dev/kfd, /dev/dxg.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// The version of NVIDIA's kernel driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvidia_driver: Option<String>,
    /// CDI files with the names of their devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cdi: Vec<CdiFile>,
    /// NVIDIA's GPUs, as /proc/driver/nvidia/gpus tells them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cards: Vec<Card>,
    /// Parts of GPUs that MIG has made, as /proc/driver/nvidia/capabilities names them: `gpu0/mig/gi1/ci0`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mig: Vec<String>,
    /// Nodes in /dev/nvidia-caps, by which parts of GPUs are used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mig_nodes: Vec<String>,
    /// IMEX channels, for memory that is shared over an NVLink fabric.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub imex_channels: Vec<String>,
}

/// One GPU of NVIDIA.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Card {
    /// Where it is on the bus.
    pub bus: String,
    /// Its name.
    pub model: String,
    /// Its UUID, by which CUDA knows it; empty where the driver does not tell.
    pub uuid: String,
    /// The number of its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
}

impl Card {
    /// Of a file `information`: lines of a name, a colon and a value.
    fn parse(bus: String, text: &str) -> Self {
        let value = |name: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
            let found = pairs.find(|(key, _)| key.trim() == name);
            found.map_or(String::new(), |(_, value)| value.trim().to_string())
        };
        // Before the card was used for the first time it has question marks.
        let uuid = value("GPU UUID");
        Self {
            bus,
            model: value("Model"),
            uuid: if uuid.contains('?') {
                String::new()
            } else {
                uuid
            },
            minor: value("Device Minor").parse().ok(),
        }
    }
}

/// One CDI file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CdiFile {
    /// Where it is.
    pub path: String,
    /// Its vendor and class, as `nvidia.com/gpu`; empty where the file cannot be read as CDI.
    pub kind: String,
    /// The names of its devices.
    pub devices: Vec<String>,
}

impl Gpu {
    /// Looks at this machine.
    pub fn read() -> Self {
        Self::below(Path::new("/"))
    }

    fn below(root: &Path) -> Self {
        let dir = |path: &str| root.join(path.trim_start_matches('/'));
        let mut nodes = Vec::new();
        for name in names(&dir("/dev")) {
            let path = format!("/dev/{name}");
            let gpu = name.starts_with("nvidia") || ["kfd", "dxg"].contains(&name.as_str());
            if gpu && !dir(&path).is_dir() {
                nodes.push(path);
            }
        }
        for name in names(&dir("/dev/dri")) {
            if name.starts_with("card") || name.starts_with("render") {
                nodes.push(format!("/dev/dri/{name}"));
            }
        }
        let channels = "/dev/nvidia-caps-imex-channels";
        let imex_channels = names(&dir(channels))
            .into_iter()
            .map(|name| format!("{channels}/{name}"))
            .collect();
        let file = |path: &str| text(&dir(path).to_string_lossy());
        let gpus = "/proc/driver/nvidia/gpus";
        let cards = names(&dir(gpus))
            .into_iter()
            .map(|bus| {
                let text = file(&format!("{gpus}/{bus}/information"));
                Card::parse(bus, &text)
            })
            .collect();
        let caps = "/dev/nvidia-caps";
        let mig_nodes = names(&dir(caps))
            .into_iter()
            .map(|name| format!("{caps}/{name}"))
            .collect();
        let version = driver_version(&file("/proc/driver/nvidia/version"))
            .or_else(|| Some(file("/sys/module/nvidia/version").trim().to_string()))
            .filter(|version| !version.is_empty());
        let mut cdi = Vec::new();
        for place in CDI_DIRS {
            for name in names(&dir(place)) {
                let wanted = [".json", ".yaml", ".yml"];
                if wanted.iter().any(|end| name.ends_with(end)) {
                    let path = format!("{place}/{name}");
                    let small = std::fs::metadata(dir(&path)).is_ok_and(|data| data.len() < MOST);
                    let text = if small { file(&path) } else { String::new() };
                    cdi.push(CdiFile::parse(path, &text));
                }
            }
        }
        Self {
            nodes,
            nvidia_driver: version,
            cdi,
            cards,
            mig: parts(&dir("/proc/driver/nvidia/capabilities")),
            mig_nodes,
            imex_channels,
        }
    }

    /// There is nothing of a GPU.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl CdiFile {
    fn parse(path: String, text: &str) -> Self {
        let (kind, devices) = match path.ends_with(".json") {
            true => json(text),
            false => yaml(text),
        };
        Self {
            path,
            kind,
            devices,
        }
    }
}

fn json(text: &str) -> (String, Vec<String>) {
    #[derive(Deserialize)]
    struct Device {
        name: String,
    }
    #[derive(Deserialize)]
    struct File {
        kind: String,
        #[serde(default)]
        devices: Vec<Device>,
    }
    match serde_json::from_str::<File>(text) {
        Ok(file) => (
            file.kind,
            file.devices.into_iter().map(|device| device.name).collect(),
        ),
        Err(_) => Default::default(),
    }
}

/// `kind` and the names below `devices`, of YAML in block style, as nvidia-ctk writes it: a parser for all
/// of YAML would be larger than what is read here is worth.
fn yaml(text: &str) -> (String, Vec<String>) {
    let bare = |value: &str| value.trim().trim_matches(['"', '\'']).to_string();
    let (mut kind, mut devices) = (String::new(), Vec::new());
    let (mut inside, mut item) = (false, None);
    for line in text.lines() {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') || content == "---" {
            continue;
        }
        let indent = line.len() - content.len();
        if indent == 0 && !content.starts_with("- ") {
            inside = content.trim_end() == "devices:";
            if let Some(value) = content.strip_prefix("kind:") {
                kind = bare(value);
            }
            continue;
        }
        if !inside {
            continue;
        }
        // The first item of the list shows where its items begin; their keys stand two further in.
        let first = *item.get_or_insert(indent);
        let key = match content.strip_prefix("- ") {
            Some(key) if indent == first => Some(key),
            None if indent == first + 2 => Some(content),
            _ => None,
        };
        if let Some(name) = key.and_then(|key| key.trim_start().strip_prefix("name:")) {
            devices.push(bare(name));
        }
    }
    (kind, devices)
}

/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu …`: the first word that is a version.
pub(in crate::host) fn driver_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    let version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(version).map(str::to_string)
}

/// What MIG has made, below NVIDIA's directory of capabilities: compute instances, and GPU instances that
/// have none.
fn parts(capabilities: &Path) -> Vec<String> {
    let numbered = |name: &str, start: &str| {
        let number = name.strip_prefix(start).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let below = |dir: &Path, start: &str| {
        let mut found = names(dir);
        found.retain(|name| numbered(name, start));
        found
    };
    let mut parts = Vec::new();
    for gpu in below(capabilities, "gpu") {
        let mig = capabilities.join(&gpu).join("mig");
        for instance in below(&mig, "gi") {
            let one = format!("{gpu}/mig/{instance}");
            let computes = below(&mig.join(&instance), "ci");
            match computes.is_empty() {
                true => parts.push(one),
                false => parts.extend(computes.iter().map(|compute| format!("{one}/{compute}"))),
            }
        }
    }
    parts
}

/// The names in a directory, sorted; none where it is not there.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_gpus() {
        let root = std::env::temp_dir().join(format!("isorun-gpu-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for node in [
            "nvidia0",
            "nvidiactl",
            "kfd",
            "null",
            "nvidia-caps/nvidia-cap1",
            "dri/renderD128",
            "dri/by-path/x",
            "nvidia-caps-imex-channels/channel0",
        ] {
            write(&format!("dev/{node}"), "");
        }
        write(
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.45.04  Release Build\nGCC\n",
        );
        write(
            "etc/cdi/vendor.json",
            r#"{"cdiVersion": "0.6.0", "kind": "vendor.com/net", "devices": [{"name": "a"}]}"#,
        );
        write("etc/cdi/broken.json", "{");
        write("etc/cdi/notes.txt", "kind: x");
        write(
            "var/run/cdi/nvidia.yaml",
            "---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    \
             deviceNodes:\n    - path: /dev/nvidia0\n      name: not-this\n- containerEdits: {}\n  name: all\n\
             containerEdits:\n  env:\n  - name: nor-this\n",
        );
        let gpu = Gpu::below(&root);
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            gpu.nodes,
            [
                "/dev/kfd",
                "/dev/nvidia0",
                "/dev/nvidiactl",
                "/dev/dri/renderD128"
            ]
        );
        assert_eq!(gpu.nvidia_driver.as_deref(), Some("595.45.04"));
        assert_eq!(
            gpu.imex_channels,
            ["/dev/nvidia-caps-imex-channels/channel0"]
        );
        let cdi: Vec<(&str, &str, String)> = gpu
            .cdi
            .iter()
            .map(|file| (&*file.path, &*file.kind, file.devices.join(" ")))
            .collect();
        assert_eq!(
            cdi,
            [
                ("/etc/cdi/broken.json", "", String::new()),
                ("/etc/cdi/vendor.json", "vendor.com/net", "a".into()),
                ("/var/run/cdi/nvidia.yaml", "nvidia.com/gpu", "0 all".into()),
            ]
        );
    }

    /// tests/fixtures/gpu: files of machines, written by hand after what drivers and documents have.
    #[test]
    fn fixtures_of_machines() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpu");
        let gpu = Gpu::below(&fixtures.join("h200"));
        assert_eq!(gpu.nvidia_driver.as_deref(), Some("575.57.08"));
        let cards: Vec<String> = gpu
            .cards
            .iter()
            .map(|card| format!("{} {} {} {:?}", card.bus, card.model, card.uuid, card.minor))
            .collect();
        assert_eq!(
            cards,
            [
                "0000:18:00.0 NVIDIA H200 GPU-11111111-2222-3333-4444-555555555555 Some(0)",
                "0000:2a:00.0 NVIDIA H200  Some(1)"
            ]
        );
        assert_eq!(gpu.mig, [""; 0]);
        assert_eq!(gpu.cdi[0].devices, ["0", "1", "all"]);
        let mig = Gpu::below(&fixtures.join("h200-mig"));
        assert_eq!(mig.mig, ["gpu0/mig/gi1/ci0", "gpu0/mig/gi2"]);
        assert_eq!(mig.mig_nodes, ["/dev/nvidia-caps/nvidia-cap30"]);
    }

    #[test]
    fn yaml_with_indented_lists() {
        let text = "kind: 'a/b'\ndevices:\n  - name: one\n    containerEdits:\n      env: []\n  - name: two\n";
        assert_eq!(yaml(text), ("a/b".into(), vec!["one".into(), "two".into()]));
        assert_eq!(driver_version("NVRM version: none"), None);
    }
}
