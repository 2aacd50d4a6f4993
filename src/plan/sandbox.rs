//! A process sandbox in the place of a container, for who is not root and gets no user namespace: no
//! namespaces and no mounts, only Landlock and a system call filter around the process.
//!
//! Only what these two can hold is planned, and everything else of the specification is refused or told:
//! the root is the host's `/`, and read-only; bind mounts are of a path onto itself, and say what may be
//! changed; masked paths and those that a new file system would cover are left out of what may be read.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, Process as SpecProcess, Spec};

use super::Plan;
use super::build::id_map;
use super::confine::{May, Rule};
use super::degrade::{Feature, Lost};
use super::labels;
use super::step::{Action, IdMap, Step};
use crate::error::{Error, Result};
use crate::spec::mounts::parse_mount;
use crate::spec::names;
use crate::sys::mount::attr;

/// File systems whose host's instance is looked at in the place of a new one.
const SEEN: [&str; 4] = ["proc", "sysfs", "cgroup", "cgroup2"];

/// Whether there is nothing but the sandbox.
pub(super) fn is_all(without: &[Lost]) -> bool {
    without
        .iter()
        .any(|lost| lost.feature == Feature::UsernsUser)
}

/// What is left of a specification for the sandbox.
///
/// # Errors
/// What a sandbox cannot hold, by its field.
pub(super) fn specification(spec: &Spec, rootfs: &Path, euid: u32) -> Result<Spec> {
    let mut new = spec.clone();
    let Some(linux) = spec.linux() else {
        return Ok(new);
    };
    check(spec, linux, rootfs)?;
    rules(spec)?;
    if let Some(done) = spec.process() {
        new.set_process(Some(process(linux, done, euid)?));
    }
    let mut linux = linux.clone();
    linux
        .set_namespaces(Some(Vec::new()))
        .set_uid_mappings(None)
        .set_gid_mappings(None)
        .set_sysctl(None);
    new.set_linux(Some(linux))
        .set_hostname(None)
        .set_domainname(None);
    Ok(new)
}

fn refuse(field: &str, why: &str) -> Error {
    let name = Feature::UsernsUser.name();
    Error::spec(
        field,
        format!("the degradation {name:?} cannot be had with it: {why}"),
    )
    .remedy(Feature::UsernsUser.row().remedy)
}

fn check(spec: &Spec, linux: &Linux, rootfs: &Path) -> Result<()> {
    let root = spec.root().as_ref();
    if rootfs != Path::new("/") {
        return Err(refuse(
            "root.path",
            "a process sandbox has the host's / as its root",
        ));
    }
    if !root.and_then(|root| root.readonly()).unwrap_or(false) {
        return Err(refuse(
            "root.readonly",
            "false, and the host's / is only read",
        ));
    }
    let listed = linux.namespaces().iter().flatten();
    for (index, namespace) in listed.enumerate() {
        if names::joined(namespace).is_some() {
            let field = format!("linux.namespaces[{index}].path");
            return Err(refuse(&field, "no namespace is joined"));
        }
    }
    let some = |list: Option<usize>| list.unwrap_or(0) != 0;
    for (field, asked) in [
        (
            "linux.devices",
            some(linux.devices().as_ref().map(Vec::len)),
        ),
        (
            "linux.sysctl",
            some(linux.sysctl().as_ref().map(|all| all.len())),
        ),
        (
            "linux.rootfsPropagation",
            some(linux.rootfs_propagation().as_ref().map(String::len)),
        ),
        (
            "linux.timeOffsets",
            some(linux.time_offsets().as_ref().map(|all| all.len())),
        ),
    ] {
        if asked {
            return Err(refuse(
                field,
                "it is made in namespaces of the container's own",
            ));
        }
    }
    let terminal = spec.process().as_ref().and_then(SpecProcess::terminal);
    if terminal.unwrap_or(false) {
        return Err(refuse(
            "process.terminal",
            "it is made in a devpts of the container's own",
        ));
    }
    Ok(())
}

/// A process of the sandbox, which has the caller's ids.
///
/// # Errors
/// An id that is not mapped to the caller's; groups.
pub(super) fn process(linux: &Linux, process: &SpecProcess, euid: u32) -> Result<SpecProcess> {
    let mut new = process.clone();
    let mut user = process.user().clone();
    let outside = |map: Vec<IdMap>, id: u32| {
        let mut lines = map.into_iter();
        lines.find_map(|line| {
            let offset = id.checked_sub(line.inside)?;
            (offset < line.count).then(|| line.outside.checked_add(offset))?
        })
    };
    let (uid, gid) = (user.uid(), user.gid());
    let uid = outside(id_map(linux.uid_mappings()), uid).filter(|uid| *uid == euid);
    let uid =
        uid.ok_or_else(|| refuse("process.user.uid", "it is not mapped to the caller's own"))?;
    let gid = outside(id_map(linux.gid_mappings()), gid)
        .ok_or_else(|| refuse("process.user.gid", "it is not mapped"))?;
    if process
        .user()
        .additional_gids()
        .iter()
        .flatten()
        .next()
        .is_some()
    {
        return Err(refuse(
            "process.user.additionalGids",
            "only root sets groups",
        ));
    }
    user.set_uid(uid).set_gid(gid);
    new.set_user(user);
    new.set_capabilities(None).set_no_new_privileges(Some(true));
    Ok(new)
}

/// Whether the specification asks for a namespace of this kind.
pub(super) fn asks(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    let mut listed = linux.namespaces().iter().flatten();
    listed.any(|namespace| namespace.typ() == kind)
}

/// A path by its name, and without the links on the way to it.
struct Known {
    name: String,
    real: PathBuf,
}

impl Known {
    /// What is not there yet is where the last directory on the way to it is.
    fn of(path: &str) -> Self {
        let name = format!("/{}", names::clean(path));
        let whole = Path::new(&name);
        let there = whole.ancestors().find_map(|ancestor| {
            let real = ancestor.canonicalize().ok()?;
            Some(real.join(whole.strip_prefix(ancestor).ok()?))
        });
        let real = there.unwrap_or_else(|| whole.to_path_buf());
        Self { name, real }
    }

    /// Whether it is `other` or below it, by one of its names.
    fn is_in(&self, other: &Self) -> bool {
        let other = [Path::new(&other.name), &other.real];
        let own = [Path::new(&self.name), &self.real];
        own.iter()
            .any(|own| other.iter().any(|other| own.starts_with(other)))
    }
}

/// What the mounts say of paths of the host.
#[derive(Default)]
struct Mounted {
    writable: Vec<Known>,
    /// Those that are read-only by an option of theirs.
    readonly: Vec<Known>,
    /// In the order of the mounts.
    rules: Vec<Rule>,
    hidden: Vec<String>,
}

impl Mounted {
    /// Something else is mounted over `target`.
    fn cover(&mut self, target: &Known) {
        for list in [&mut self.writable, &mut self.readonly] {
            list.retain(|one| !one.is_in(target));
        }
        self.rules
            .retain(|rule| !Known::of(&rule.path).is_in(target));
    }

    /// Notes a mount that is read-only, or one that may be changed.
    ///
    /// # Errors
    /// A read-only one in, or over, one that may be changed: Landlock adds up what is allowed on the way to
    /// a file, so that it could be changed, too.
    fn note(&mut self, field: &str, target: Known, readonly: bool) -> Result<()> {
        let both = |readonly: &Known, writable: &Known| {
            let (readonly, writable) = (&readonly.name, &writable.name);
            let why = format!("{readonly} is to be read-only, and {writable} may be changed");
            refuse(field, &why)
        };
        match readonly {
            true => {
                let mut others = self.writable.iter();
                let other = others.find(|other| target.is_in(other) || other.is_in(&target));
                if let Some(other) = other {
                    return Err(both(&target, other));
                }
                self.readonly.push(target);
            }
            false => {
                if let Some(other) = self.readonly.iter().find(|other| other.is_in(&target)) {
                    return Err(both(other, &target));
                }
                self.writable.push(target);
            }
        }
        Ok(())
    }
}

/// What is allowed by the mounts.
fn mounted(spec: &Spec, readonly: &[Known]) -> Result<Mounted> {
    let mut all = Mounted::default();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let field = format!("mounts[{index}]");
        let options = parse_mount(index, mount)?;
        let target = Known::of(&mount.destination().to_string_lossy());
        let kind = mount.typ().clone().unwrap_or_default();
        if options.remount {
            return Err(refuse(&field, "nothing is mounted that could be changed"));
        }
        let set = options.set | options.recursive_set;
        if !options.bind {
            all.cover(&target);
            if !SEEN.contains(&kind.as_str()) {
                all.hidden.push(target.name);
            } else if set & attr::RDONLY != 0 {
                all.note(&field, target, true)?;
            }
            continue;
        }
        let source = mount.source().clone().unwrap_or_default();
        if source != Path::new(&target.name)
            || options.idmap.is_some()
            || mount.uid_mappings().is_some()
        {
            return Err(refuse(
                &field,
                "a path is only shown where it is, with its owners",
            ));
        }
        // The kernel executes nothing in its own file systems (SB_I_NOEXEC), whatever their mounts say.
        let mut kernels = ["/proc", "/sys"].iter();
        let kernels = kernels.any(|own| target.real.starts_with(own));
        for (flag, option, held) in [
            (attr::NOEXEC, "noexec", kernels),
            (attr::NOSYMFOLLOW, "nosymfollow", false),
        ] {
            if set & flag != 0 && !held {
                let why = format!("nothing is mounted that {option} could be a flag of");
                return Err(refuse(&format!("{field}.options"), &why));
            }
        }
        let mut may = vec![May::Read, May::Execute];
        let writable = set & attr::RDONLY == 0;
        if writable {
            if target.name == "/" {
                return Err(refuse(&field, "the host's / is only read"));
            }
            if let Some(path) = readonly.iter().find(|path| path.is_in(&target)) {
                let why = format!("{} below it is to be read-only", path.name);
                return Err(refuse(&field, &why));
            }
            may.push(May::Change);
        }
        all.rules.push(rule(&target.name, &may));
        all.note(&field, target, !writable)?;
    }
    Ok(all)
}

fn rule(path: &str, may: &[May]) -> Rule {
    Rule {
        path: path.to_string(),
        may: may.to_vec(),
    }
}

/// What Landlock allows, and the paths that nothing is allowed on.
///
/// # Errors
/// A bind mount from one path to another, or with a flag that there would have to be a mount for; a path that
/// is to be read-only in one that may be changed, or over it.
pub(super) fn rules(spec: &Spec) -> Result<(Vec<Rule>, Vec<String>)> {
    let linux = spec.linux().as_ref();
    let known = |list: Option<&Vec<String>>| -> Vec<Known> {
        list.into_iter()
            .flatten()
            .map(|path| Known::of(path))
            .collect()
    };
    let masked = known(linux.and_then(|linux| linux.masked_paths().as_ref()));
    let readonly = known(linux.and_then(|linux| linux.readonly_paths().as_ref()));
    let Mounted {
        rules: own,
        mut hidden,
        ..
    } = mounted(spec, &readonly)?;
    let mut rules = vec![rule("/", &[May::Read, May::Execute])];
    rules.extend(own);
    let devices = super::mounts::DEFAULT_DEVICES
        .iter()
        .filter(|(name, ..)| *name != "tty");
    rules.extend(devices.map(|(name, ..)| {
        rule(
            &format!("/dev/{name}"),
            &[May::Read, May::Change, May::Ioctl],
        )
    }));
    // Masks come last, over all that is mounted below them.
    rules.retain(|rule| {
        let path = Known::of(&rule.path);
        !masked.iter().any(|masked| path.is_in(masked))
    });
    hidden.extend(masked.into_iter().map(|path| path.name));
    hidden.sort();
    hidden.dedup();
    Ok((rules, hidden))
}

/// Steps in the place of those that make a file system.
pub(super) fn root() -> Vec<Step> {
    vec![Action::OpenRoot { path: "/".into() }.into()]
}

/// Steps in the place of those that close it.
pub(super) fn finish(process: &SpecProcess, apparmor: bool) -> Vec<Step> {
    labels::process(process, apparmor)
}

/// Notes what only the sandbox's process has: the caller's groups, and a bounding set that no_new_privs
/// makes void.
pub(super) fn settle(plan: &mut Plan, uid: u32) {
    plan.sandbox = true;
    plan.shares_mounts = false;
    for step in &mut plan.steps {
        if let Action::Identity(identity) = &mut step.action {
            identity.inside = Some(uid);
            identity.groups = None;
            identity.caps.bounding = u64::MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(change: impl Fn(&mut serde_json::Value)) -> Spec {
        let map = serde_json::json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        let mut value = serde_json::json!({
            "ociVersion": "1.2.0",
            "root": {"path": "/", "readonly": true},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/"},
            "hostname": "inside",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev/shm/early", "type": "bind", "source": "/dev/shm/early", "options": ["bind"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/shm/late", "type": "bind", "source": "/dev/shm/late", "options": ["bind"]},
                {"destination": "/data", "type": "bind", "source": "/data", "options": ["bind", "ro"]},
                {"destination": "/work", "type": "bind", "source": "/work", "options": ["bind"]},
                {"destination": "/work/masked/x", "type": "bind", "source": "/work/masked/x", "options": ["bind"]}
            ],
            "linux": {
                "namespaces": [{"type": "user"}, {"type": "mount"}, {"type": "pid"}],
                "uidMappings": map, "gidMappings": map,
                "maskedPaths": ["/proc/keys", "/work/masked"], "readonlyPaths": ["/proc/sys"]
            }
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn rules_are_what_the_mounts_say() {
        let (rules, hidden) = rules(&spec(|_| {})).unwrap();
        assert_eq!(hidden, ["/dev/shm", "/proc/keys", "/work/masked"]);
        let may = |path: &str| {
            rules
                .iter()
                .find(|rule| rule.path == path)
                .map(|rule| rule.may.clone())
        };
        let read = vec![May::Read, May::Execute];
        let change = vec![May::Read, May::Execute, May::Change];
        assert_eq!(may("/"), Some(read.clone()));
        assert_eq!(may("/data"), Some(read));
        assert_eq!(may("/work"), Some(change.clone()));
        assert_eq!(may("/dev/shm/late"), Some(change));
        assert_eq!(
            may("/dev/shm/early"),
            None,
            "covered by what is mounted later"
        );
        assert_eq!(may("/work/masked/x"), None, "masks come last");
        assert_eq!(may("/proc"), None, "only read");
        assert!(may("/dev/null").unwrap().contains(&May::Change));
        assert_eq!(may("/dev/tty"), None);
    }

    #[test]
    fn nothing_is_left_that_the_sandbox_has_not() {
        let new = specification(&spec(|_| {}), Path::new("/"), 1000).unwrap();
        let linux = new.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().map(Vec::len), Some(0));
        assert!(linux.uid_mappings().is_none() && new.hostname().is_none());
        let process = new.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (1000, 1000));
        assert_eq!(process.no_new_privileges(), Some(true));
    }

    #[test]
    fn what_is_refused() {
        use serde_json::json;
        let refused = |pointer: &str, value: serde_json::Value, said: &str| {
            let spec = spec(|spec| {
                let (at, key) = pointer.rsplit_once('/').unwrap();
                spec.pointer_mut(at).unwrap()[key] = value.clone();
            });
            let error = specification(&spec, Path::new("/"), 1000)
                .unwrap_err()
                .to_string();
            assert!(error.contains(said), "{said}: {error}");
        };
        refused("/root/readonly", json!(false), "root.readonly");
        refused("/process/terminal", json!(true), "process.terminal");
        refused("/process/user/uid", json!(7), "process.user.uid");
        refused(
            "/process/user/additionalGids",
            json!([0]),
            "process.user.additionalGids",
        );
        refused(
            "/linux/readonlyPaths",
            json!(["/work/deep"]),
            "/work/deep below it",
        );
        refused(
            "/linux/sysctl",
            json!({"kernel.domainname": "x"}),
            "linux.sysctl",
        );
        refused(
            "/linux/namespaces",
            json!([{"type": "network", "path": "/proc/1/ns/net"}]),
            "no namespace is joined",
        );
        refused(
            "/mounts",
            json!([{"destination": "/a", "type": "bind", "source": "/b", "options": ["bind"]}]),
            "mounts[0]",
        );
        let elsewhere = specification(&spec(|_| {}), Path::new("/bundle/rootfs"), 1000);
        assert!(elsewhere.unwrap_err().to_string().contains("root.path"));
        let other = specification(&spec(|_| {}), Path::new("/"), 1001);
        assert!(other.unwrap_err().to_string().contains("process.user.uid"));
    }

    /// What mounts of these paths with these options, each onto itself, come to.
    fn binds(mounts: &[(&str, &[&str])]) -> Result<(Vec<Rule>, Vec<String>)> {
        let mounts: Vec<_> = mounts
            .iter()
            .map(|(path, options)| {
                let kind = match options.contains(&"bind") {
                    true => "bind",
                    false => options[0],
                };
                serde_json::json!({"destination": path, "type": kind, "source": path, "options": options[1..]})
            })
            .collect();
        rules(&spec(|spec| {
            spec["mounts"] = serde_json::Value::from(mounts.clone());
        }))
    }

    #[test]
    fn nothing_read_only_meets_what_may_be_changed() {
        let (rw, ro) = (&["bind", "bind"][..], &["bind", "bind", "ro"][..]);
        let sys = &["sysfs", "ro"][..];
        for refused in [
            &[("/w", rw), ("/w/deep", ro)][..],
            &[("/w/deep", ro), ("/w", rw)],
            &[("/w", rw), ("/w", ro)],
            &[("/w", ro), ("/w", rw)],
            &[("/w/deep", rw), ("/w", ro)],
            &[("/w", rw), ("/w/deep", &["bind", "rbind", "rro"][..])],
            &[("/sys", sys), ("/sys", rw)],
            &[("/sys/fs", rw), ("/sys/fs/cgroup", &["cgroup", "ro"][..])],
        ] {
            let error = binds(refused).unwrap_err().to_string();
            for said in ["mounts[1]", "is to be read-only", "may be changed"] {
                assert!(error.contains(said), "{refused:?}: {error}");
            }
        }
        for fine in [
            &[("/w", ro), ("/w/deep", rw)][..],
            &[("/w", rw), ("/www", ro)],
            &[("/sys", &["bind", "rbind", "noexec", "ro"][..])],
            &[("/w/deep", rw), ("/w", &["tmpfs"][..]), ("/w/deep", ro)],
        ] {
            binds(fine).unwrap();
        }
        let covered = binds(&[("/sys/fs", rw), ("/sys", sys)]).unwrap();
        assert!(covered.0.iter().all(|rule| rule.path != "/sys/fs"));
        let error = binds(&[("/", rw)]).unwrap_err().to_string();
        assert!(error.contains("mounts[0]"), "{error}");
        for option in ["noexec", "nosymfollow", "rnoexec"] {
            let error = binds(&[("/w", &["bind", "rbind", option])]).unwrap_err();
            let said = "mounts[0].options: the degradation \"userns-user\"";
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    /// A directory, and a link to it beside it; removed with this value.
    struct Linked(PathBuf);

    impl Linked {
        fn new() -> Self {
            let name = format!("isorun-sandbox-links-{}", std::process::id());
            let dir = std::env::temp_dir().canonicalize().unwrap().join(name);
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(dir.join("work")).unwrap();
            std::os::unix::fs::symlink("work", dir.join("link")).unwrap();
            Self(dir)
        }

        fn at(&self, path: &str) -> String {
            self.0.join(path).to_str().unwrap().to_string()
        }
    }

    impl Drop for Linked {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_link_is_what_it_leads_to() {
        let dir = Linked::new();
        let (work, deep) = (dir.at("work"), dir.at("work/deep"));
        let at = dir.at("link/deep");
        let with = |list: &str, paths: &[&str]| {
            rules(&spec(|spec| {
                spec["mounts"] = serde_json::json!([
                    {"destination": work, "type": "bind", "source": work, "options": ["bind"]},
                    {"destination": deep, "type": "bind", "source": deep, "options": ["bind"]}
                ]);
                spec["linux"][list] = serde_json::json!(paths);
            }))
        };
        let error = with("readonlyPaths", &[&at]).unwrap_err().to_string();
        assert!(error.contains("below it is to be read-only"), "{error}");
        let (rules, hidden) = with("maskedPaths", &[&at]).unwrap();
        assert_eq!(hidden, [at.as_str()]);
        assert!(rules.iter().any(|rule| rule.path == work));
        assert!(rules.iter().all(|rule| rule.path != deep), "{rules:?}");
        let (rw, ro) = (&["bind", "bind"][..], &["bind", "bind", "ro"][..]);
        let error = binds(&[(&work, rw), (&at, ro)]).unwrap_err().to_string();
        assert!(error.contains("mounts[1]"), "{error}");
    }
}
