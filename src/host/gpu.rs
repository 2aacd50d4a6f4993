//! The GPU as the planner needs it: the driver, and the numbers of its device nodes. Asked only for a
//! container that is to share GPU memory. What `isorun doctor` tells is in [`super::facts`].

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The nodes that every use of CUDA needs, beside those of the GPUs.
pub const NEEDED: [&str; 2] = ["/dev/nvidiactl", "/dev/nvidia-uvm"];
/// The node of WSL2, which has no others.
pub const DXG: &str = "/dev/dxg";

/// The driver and its nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nodes {
    /// The version of NVIDIA's kernel driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Character devices: /dev/nvidia* and /dev/dxg.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Node>,
}

/// A device node of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its path.
    pub path: String,
    /// Its major number; that of /dev/nvidia-uvm differs from boot to boot.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
}

impl Nodes {
    /// Looks at this machine.
    pub fn read() -> Self {
        let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
        let wanted = |name: &str| name.starts_with("nvidia") || name == "dxg";
        let mut nodes: Vec<Node> = entries
            .filter(|entry| entry.file_name().to_str().is_some_and(wanted))
            .filter_map(|entry| node(&entry.path()))
            .collect();
        nodes.sort_by(|a, b| a.path.cmp(&b.path));
        let version = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
        Self {
            driver: version.map(|text| super::facts::driver_version(&text).unwrap_or_default()),
            nodes,
        }
    }

    /// The node at this path.
    pub fn node(&self, path: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.path == path)
    }
}

fn node(path: &Path) -> Option<Node> {
    let data = std::fs::metadata(path).ok()?;
    data.file_type().is_char_device().then(|| Node {
        path: path.display().to_string(),
        major: libc::major(data.rdev()),
        minor: libc::minor(data.rdev()),
    })
}

/// Whether a path is that of a GPU's own node: /dev/nvidia and a number.
pub fn is_card(path: &str) -> bool {
    let number = path.strip_prefix("/dev/nvidia").unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_a_number() {
        assert!(is_card("/dev/nvidia0") && is_card("/dev/nvidia12"));
        for other in [
            "/dev/nvidia",
            "/dev/nvidiactl",
            "/dev/nvidia-uvm",
            "/dev/x0",
        ] {
            assert!(!is_card(other), "{other}");
        }
        let null = node(Path::new("/dev/null")).unwrap();
        assert_eq!((null.major, null.minor), (1, 3));
        assert_eq!(node(Path::new("/dev")), None);
    }
}
