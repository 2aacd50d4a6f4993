//! The demo's bundle: a temporary directory with a root file system that holds isorun alone.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use serde_json::{Value, json};

use super::host::{Denied, NAMESPACES};
use super::probe;
use crate::error::{Error, Kind, Result};

/// Host id of the container's user 0. Nobody's files have it; a range of this size is free there.
pub const FIRST_ID: u32 = 1_000_000;
/// Number of ids that the container has.
pub const IDS: u32 = 65_536;
/// The container's host name.
pub const HOSTNAME: &str = "isorun-demo";
/// Its limit of open files.
pub const OPEN_FILES: u64 = 256;
/// Its limit of memory in bytes.
pub const MEMORY: u64 = 64 << 20;
/// Its limit of processes.
pub const PIDS: u64 = 32;
/// Its share of CPU time in thousandths of a CPU.
pub const MILLICPUS: u64 = 500;

/// Where the program is in the root file system.
const PROGRAM: &str = "isorun";

/// System calls that the profile refuses with EPERM: namespaces, mounts, modules, tracing, keys,
/// clocks, and what else a program in a container has no use for.
const REFUSED: &str = "unshare setns mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree \
    move_mount mount_setattr init_module finit_module delete_module kexec_load \
    kexec_file_load reboot swapon swapoff bpf perf_event_open ptrace process_vm_readv \
    process_vm_writev kcmp add_key request_key keyctl settimeofday clock_settime \
    clock_adjtime acct quotactl userfaultfd io_uring_setup open_by_handle_at syslog vhangup";

/// The temporary directory. Whoever made it removes it: [`Bundle::remove`].
#[derive(Debug)]
pub struct Bundle {
    directory: PathBuf,
}

impl Bundle {
    /// Makes the directory, copies this program into its root file system and writes config.json.
    ///
    /// # Errors
    /// Where no directory can be used, or the file system refuses; nothing is left then.
    pub fn make(denied: &Denied) -> Result<Self> {
        let bundle = Self {
            directory: temporary()?,
        };
        match bundle.fill(denied) {
            Ok(()) => Ok(bundle),
            Err(error) => {
                bundle.remove()?;
                Err(error)
            }
        }
    }

    /// The bundle's directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// The state directory of the demo's containers.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Writes config.json, whose program is `isorun __probe <request>`.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write_config(&self, denied: &Denied, request: &str) -> Result<()> {
        let path = self.directory.join("config.json");
        let text = config(denied, request).to_string();
        fs::write(&path, text)
            .map_err(|error| Error::io("write", path.display().to_string(), &error))
    }

    /// Removes the directory and everything in it.
    ///
    /// # Errors
    /// Where something cannot be removed.
    pub fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.directory)
            .map_err(|error| Error::io("remove", self.directory.display().to_string(), &error))
    }

    fn fill(&self, denied: &Denied) -> Result<()> {
        let rootfs = self.directory.join("rootfs");
        let failed = |error| {
            Error::io(
                "make the root file system",
                rootfs.display().to_string(),
                &error,
            )
        };
        // The mount points have to be there: the container's root is read-only.
        for directory in ["", "proc", "dev", "sys", "tmp"] {
            let path = rootfs.join(directory);
            DirBuilder::new()
                .mode(0o755)
                .create(&path)
                .map_err(failed)?;
        }
        let program = rootfs.join(PROGRAM);
        fs::copy("/proc/self/exe", &program).map_err(failed)?;
        fs::set_permissions(&program, Permissions::from_mode(0o755)).map_err(failed)?;
        if denied.namespace("user").is_none() {
            for name in ["", "proc", "dev", "sys", "tmp", PROGRAM] {
                chown(rootfs.join(name), Some(FIRST_ID), Some(FIRST_ID)).map_err(failed)?;
            }
        }
        self.write_config(denied, "facts")
    }
}

/// Makes a directory that the container's user can reach and whose programs can run.
fn temporary() -> Result<PathBuf> {
    let candidates = [
        std::env::temp_dir(),
        "/tmp".into(),
        "/var/tmp".into(),
        "/run".into(),
    ];
    let Some(parent) = candidates.iter().find(|path| is_usable(path)) else {
        let sentence = "no directory for the demo's bundle: /tmp, /var/tmp and /run are not there, \
                        not open to all users or mounted noexec";
        return Err(Error::new(Kind::System, sentence)
            .remedy("set TMPDIR to a directory that is none of that"));
    };
    // Root's umask may be 077; create() must not find an old directory of somebody else's.
    for number in 0..100 {
        let path = parent.join(format!("isorun-demo-{}-{number}", std::process::id()));
        match DirBuilder::new().mode(0o755).create(&path) {
            Ok(()) => {
                fs::set_permissions(&path, Permissions::from_mode(0o755))
                    .map_err(|error| Error::io("chmod", path.display().to_string(), &error))?;
                return Ok(path);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(Error::io(
                    "create directory",
                    path.display().to_string(),
                    &error,
                ));
            }
        }
    }
    Err(Error::new(
        Kind::System,
        format!("{} is full of old demos", parent.display()),
    ))
}

fn is_usable(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else {
        return false;
    };
    let open = path
        .ancestors()
        .all(|part| fs::metadata(part).is_ok_and(|data| data.is_dir() && data.mode() & 0o001 != 0));
    open && statvfs(&path).is_ok_and(|fs| !fs.flags().contains(FsFlags::ST_NOEXEC))
}

/// The whole specification of the demo's container, without what this host denies.
fn config(denied: &Denied, request: &str) -> Value {
    let namespaces: Vec<Value> = NAMESPACES
        .iter()
        .filter(|namespace| denied.namespace(namespace.kind).is_none())
        .map(|namespace| json!({ "type": namespace.kind }))
        .collect();
    let mut linux = json!({
        "namespaces": namespaces,
        "seccomp": seccomp(),
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        "resources": resources(denied),
    });
    if denied.namespace("user").is_none() {
        let map = json!([{ "containerID": 0, "hostID": FIRST_ID, "size": IDS }]);
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
    }
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs", "readonly": true },
        "hostname": HOSTNAME,
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "cwd": "/",
            "args": [format!("/{PROGRAM}"), probe::NAME, request],
            "env": ["PATH=/"],
            "capabilities": {},
            "noNewPrivileges": true,
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": OPEN_FILES, "hard": OPEN_FILES }],
        },
        "mounts": mounts(),
        "linux": linux,
    })
}

fn mounts() -> Value {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    json!([
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"]
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620"
            ]
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=1m"]
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "ro"]
        ),
        mount(
            "/tmp",
            "tmpfs",
            &["nosuid", "nodev", "mode=1777", "size=1m"]
        ),
    ])
}

fn resources(denied: &Denied) -> Value {
    let mut resources = json!({});
    if denied.controller("memory").is_none() {
        resources["memory"] = json!({ "limit": MEMORY });
    }
    if denied.controller("pids").is_none() {
        resources["pids"] = json!({ "limit": PIDS });
    }
    if denied.controller("cpu").is_none() {
        let period = 100_000;
        resources["cpu"] = json!({ "quota": period * MILLICPUS / 1000, "period": period });
    }
    resources
}

fn seccomp() -> Value {
    let architectures = match std::env::consts::ARCH {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        _ => json!([]),
    };
    let names: Vec<&str> = REFUSED.split_whitespace().collect();
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures,
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Spec;

    #[test]
    fn the_config_is_a_specification() {
        let spec: Spec = serde_json::from_value(config(&Denied::default(), "facts")).unwrap();
        assert_eq!(crate::spec::check(&spec).unwrap(), Vec::<String>::new());
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 8);
        assert_eq!(
            linux.uid_mappings().as_ref().unwrap()[0].host_id(),
            FIRST_ID
        );
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
        let capabilities = spec
            .process()
            .as_ref()
            .unwrap()
            .capabilities()
            .as_ref()
            .unwrap();
        assert!(
            capabilities
                .effective()
                .as_ref()
                .is_none_or(|set| set.is_empty())
        );
        let memory = linux
            .resources()
            .as_ref()
            .unwrap()
            .memory()
            .as_ref()
            .unwrap();
        assert_eq!(memory.limit(), Some(MEMORY as i64));
    }

    #[test]
    fn what_the_host_denies_is_not_asked_for() {
        let denied = Denied {
            namespaces: vec![("user", "EPERM".into()), ("time", "EINVAL".into())],
            controllers: vec![("memory", "none".into()), ("cpu", "none".into())],
        };
        let config = config(&denied, "facts");
        assert_eq!(config["linux"]["namespaces"].as_array().unwrap().len(), 6);
        assert!(config["linux"].get("uidMappings").is_none());
        assert_eq!(
            config["linux"]["resources"],
            json!({ "pids": { "limit": PIDS } })
        );
    }

    #[test]
    fn a_bundle_is_made_and_leaves_nothing() {
        let bundle = Bundle::make(&Denied {
            // Unprivileged test runs cannot chown.
            namespaces: vec![("user", String::new())],
            controllers: Vec::new(),
        })
        .unwrap();
        let program = bundle.path().join("rootfs").join(PROGRAM);
        assert_eq!(fs::metadata(&program).unwrap().mode() & 0o777, 0o755);
        assert!(bundle.path().join("config.json").exists());
        bundle.remove().unwrap();
        assert!(!bundle.path().exists());
    }

    #[test]
    fn a_directory_that_others_cannot_reach_is_not_taken() {
        let closed = std::env::temp_dir().join(format!("isorun-closed-{}", std::process::id()));
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
        assert!(!is_usable(&closed));
        assert!(!is_usable(&closed.join("missing")));
        fs::set_permissions(&closed, Permissions::from_mode(0o711)).unwrap();
        assert!(is_usable(&closed));
        fs::remove_dir(&closed).unwrap();
    }
}
