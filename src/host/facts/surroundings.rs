//! What isorun itself runs in: a distribution, a container, a virtual machine of Windows.

use serde::{Deserialize, Serialize};

use super::text;

/// The distribution, by os-release(5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Distro {
    /// `ID`: debian, ubuntu, fedora, alpine.
    pub id: String,
    /// `VERSION_ID`.
    pub version: String,
    /// `PRETTY_NAME`.
    pub name: String,
}

impl Distro {
    /// Reads /etc/os-release or /usr/lib/os-release.
    pub fn read() -> Self {
        let found = ["/etc/os-release", "/usr/lib/os-release"]
            .iter()
            .map(|file| text(file))
            .find(|text| !text.is_empty());
        Self::parse(&found.unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            let line = line.unwrap_or_default().trim();
            line.trim_matches(['"', '\'']).to_string()
        };
        Self {
            id: value("ID"),
            version: value("VERSION_ID"),
            name: value("PRETTY_NAME"),
        }
    }
}

/// Which kind of container isorun itself is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxKind {
    /// None.
    #[default]
    None,
    /// Docker's.
    Docker,
    /// Podman's, or one of another engine that leaves the same mark.
    Podman,
    /// A pod of Kubernetes.
    Kubernetes,
    /// LXC or Incus.
    Lxc,
    /// systemd-nspawn.
    Nspawn,
    /// One that nothing names: a pid namespace that is not the machine's.
    Container,
}

/// What isorun itself runs in, and how that was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Surroundings {
    /// The kind of container.
    pub kind: SandboxKind,
    /// What tells so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
    /// Windows Subsystem for Linux: its version, 1 or 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wsl: Option<u8>,
}

/// What can be seen from inside.
#[derive(Debug, Default)]
struct Marks<'a> {
    kernel: &'a str,
    dockerenv: bool,
    containerenv: bool,
    /// The variable `container`, which systemd, LXC and Podman set.
    variable: &'a str,
    kubernetes: bool,
    cgroup: &'a str,
    /// The pid namespace is not the machine's first one.
    foreign_pids: bool,
    /// Some namespace is not.
    foreign: bool,
}

impl Surroundings {
    /// Looks from inside; `foreign`: the kinds of namespaces that are not the machine's first ones.
    pub fn read(kernel: &str, foreign: &[String]) -> Self {
        let there = |path: &str| std::path::Path::new(path).exists();
        Self::by(&Marks {
            kernel,
            dockerenv: there("/.dockerenv"),
            containerenv: there("/run/.containerenv"),
            variable: &std::env::var("container").unwrap_or_default(),
            kubernetes: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
                || there("/var/run/secrets/kubernetes.io"),
            cgroup: &text("/proc/self/cgroup"),
            foreign_pids: foreign.iter().any(|kind| kind == "pid"),
            // A user namespace alone is no container: engines without root make one, too.
            foreign: foreign.iter().any(|kind| kind != "user"),
        })
    }

    fn by(marks: &Marks<'_>) -> Self {
        use SandboxKind::{Container, Docker, Kubernetes, Lxc, None, Nspawn, Podman};
        let path = |part: &str| marks.cgroup.contains(part);
        // Those that say most come first: a pod of Docker's or containerd's has a mark of both. A mark that
        // an image left on a virtual machine's disk says nothing: a container has namespaces of its own.
        let signs = [
            (
                marks.kubernetes,
                Kubernetes,
                "Kubernetes' environment or secrets",
            ),
            (
                path("kubepods"),
                Kubernetes,
                "the cgroup's path has kubepods",
            ),
            (marks.dockerenv, Docker, "/.dockerenv"),
            (path("/docker"), Docker, "the cgroup's path has docker"),
            (marks.containerenv, Podman, "/run/.containerenv"),
            (marks.variable == "podman", Podman, "container=podman"),
            // A process of the host is in libpod's tree only below a container's own directory.
            (
                path("libpod-") && marks.foreign_pids,
                Podman,
                "the cgroup's path has libpod",
            ),
            (marks.variable.starts_with("lxc"), Lxc, "container=lxc"),
            (
                marks.variable == "systemd-nspawn",
                Nspawn,
                "container=systemd-nspawn",
            ),
            (
                marks.foreign_pids,
                Container,
                "the pid namespace is not the machine's",
            ),
        ];
        let seen: Vec<_> = signs
            .iter()
            .filter(|(seen, ..)| *seen && marks.foreign)
            .collect();
        let lower = marks.kernel.to_lowercase();
        let wsl = match () {
            () if lower.contains("wsl2") => Some(2),
            // 4.4.0-19041-Microsoft: a kernel that is none; WSL2's says microsoft-standard.
            () if lower.contains("microsoft") => Some(if lower.contains("microsoft-standard") {
                2
            } else {
                1
            }),
            () => Option::None,
        };
        Self {
            kind: seen.first().map_or(None, |(_, kind, _)| *kind),
            evidence: seen.iter().map(|(.., what)| (*what).to_string()).collect(),
            wsl,
        }
    }

    /// isorun is in a container.
    pub fn contained(&self) -> bool {
        self.kind != SandboxKind::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release() {
        let ubuntu = "NAME=\"Ubuntu\"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\n\
            PRETTY_NAME=\"Ubuntu 24.04.1 LTS\"\n";
        let distro = Distro::parse(ubuntu);
        assert_eq!(
            (&*distro.id, &*distro.version, &*distro.name),
            ("ubuntu", "24.04", "Ubuntu 24.04.1 LTS")
        );
        assert_eq!(Distro::parse(""), Distro::default());
    }

    #[test]
    fn what_it_runs_in() {
        let rows = [
            (Marks::default(), SandboxKind::None, None),
            (
                Marks {
                    dockerenv: true,
                    foreign_pids: true,
                    foreign: true,
                    ..Marks::default()
                },
                SandboxKind::Docker,
                None,
            ),
            (
                Marks {
                    dockerenv: true,
                    cgroup: "0::/",
                    ..Marks::default()
                },
                SandboxKind::None,
                None,
            ),
            (
                Marks {
                    cgroup: "0::/kubepods.slice/x",
                    dockerenv: true,
                    foreign: true,
                    ..Marks::default()
                },
                SandboxKind::Kubernetes,
                None,
            ),
            (
                Marks {
                    containerenv: true,
                    variable: "oci",
                    foreign: true,
                    ..Marks::default()
                },
                SandboxKind::Podman,
                None,
            ),
            (
                Marks {
                    foreign_pids: true,
                    foreign: true,
                    ..Marks::default()
                },
                SandboxKind::Container,
                None,
            ),
            (
                Marks {
                    kernel: "5.15.153.1-microsoft-standard-WSL2",
                    ..Marks::default()
                },
                SandboxKind::None,
                Some(2),
            ),
            (
                Marks {
                    kernel: "4.4.0-19041-Microsoft",
                    ..Marks::default()
                },
                SandboxKind::None,
                Some(1),
            ),
        ];
        for (marks, kind, wsl) in rows {
            let found = Surroundings::by(&marks);
            assert_eq!((found.kind, found.wsl), (kind, wsl), "{marks:?}");
            assert_eq!(
                found.contained(),
                !found.evidence.is_empty(),
                "what is said has evidence: {marks:?}"
            );
        }
    }
}
