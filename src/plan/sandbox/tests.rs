//! Tests of what a process sandbox takes and refuses.

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
