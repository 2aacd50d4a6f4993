//! Tests on the running kernel: on its own hierarchies, and in a private mount namespace whose
//! /sys/fs/cgroup is pure v2.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::*;
use super::linux;

/// Set in the child that runs in the private mount namespace.
const INSIDE: &str = "ISORUN_TEST_V2";

/// A name below which nobody else works.
pub(in crate::cgroup) fn name(test: &str) -> String {
    format!("isorun-test-{}-{test}", std::process::id())
}

pub(in crate::cgroup) fn planned(path: &str, resources: Value) -> (Hierarchies, CgroupPlan) {
    let linux = linux(json!({"cgroupsPath": path, "resources": resources}));
    let host = detect(Some(&linux)).unwrap();
    let plan = plan(Some(&linux), "c", &host).unwrap();
    (host, plan)
}

/// True with a writable hierarchy of v1, after telling why not.
pub(in crate::cgroup) fn can_v1() -> bool {
    let host = detect(None).unwrap();
    let why = match (nix::unistd::geteuid().is_root(), host.mode) {
        (false, _) => "not root",
        (_, Mode::V2 | Mode::None) => "no v1 hierarchies are mounted here",
        _ if fs::create_dir(host.v1[0].mount.join(name("probe"))).is_err() => {
            "cgroups are read-only"
        }
        _ => {
            fs::remove_dir(host.v1[0].mount.join(name("probe"))).unwrap();
            return true;
        }
    };
    println!("skipped: {why}");
    false
}

/// Runs this test again in a private pure v2 view. True in there, where the test shall go on.
pub(super) fn inside_v2(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return false;
    }
    let script = "mount --make-rprivate / && umount -l /sys/fs/cgroup && \
        mount -t cgroup2 none /sys/fs/cgroup || { echo no private v2 view; exit 77; }; \
        exec \"$0\" --exact \"$1\" --nocapture";
    let status = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(format!("cgroup::tests::{test}"))
        .env(INSIDE, "1")
        .status();
    match status {
        Ok(status) if status.code() == Some(77) => println!("skipped: no private v2 view"),
        Ok(status) => assert!(status.success(), "in the v2 view: {status}"),
        Err(error) => println!("skipped: unshare: {error}"),
    }
    false
}

/// A shell that does what it is told line by line on its standard input, killed at the end.
pub(super) struct Shell(Child);

impl Shell {
    pub(super) fn new() -> Self {
        let child = Command::new("sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    pub(super) fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    pub(super) fn tell(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The next line that it prints.
    pub(super) fn line(&mut self) -> String {
        use std::io::Read;
        let out = self.0.stdout.as_mut().unwrap();
        let mut text = Vec::new();
        let mut byte = [0];
        while out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn own_paths(pid: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.lines()
        .map(|line| line.splitn(3, ':').nth(2).unwrap().to_string())
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap().trim().to_string()
}

#[test]
fn a_life_on_v1() {
    if !can_v1() {
        return;
    }
    let path = format!("/{}/a", name("life"));
    let asked = json!({
        "memory": {"limit": 100_000_000, "swap": 200_000_000},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
        "pids": {"limit": 50},
        "devices": [{"allow": false, "access": "rwm"}],
    });
    let (host, plan) = planned(&path, asked);
    let before = Placed::planned(&plan);
    let cgroup = Cgroup::create(&plan).unwrap();
    assert_eq!(
        cgroup.placed(),
        &before,
        "what was foretold is what was made"
    );
    assert!(cgroup.clone_fd().is_none());
    let of = |controller: &str| {
        let has = |dir: &&PlannedDir| dir.controllers.iter().any(|name| name == controller);
        plan.dirs.iter().find(has).unwrap().path.clone()
    };
    assert_eq!(
        read(&of("memory").join("memory.limit_in_bytes")),
        "99999744"
    );
    assert_eq!(read(&of("cpu").join("cpu.shares")), "512");
    assert_eq!(read(&of("pids").join("pids.max")), "50");
    assert!(
        read(&of("devices").join("devices.list"))
            .lines()
            .all(|line| line != "a *:* rwm")
    );

    let mut shell = Shell::new();
    cgroup.join(shell.pid()).unwrap();
    assert!(
        own_paths(&shell.pid().to_string())
            .iter()
            .all(|own| *own == path)
    );
    assert_eq!(cgroup.placed().processes().unwrap(), [shell.pid()]);
    shell.tell(
        "(: < /dev/kmsg) 2>/dev/null && echo open || echo refused; : < /dev/null && echo null",
    );
    assert_eq!(
        (shell.line(), shell.line()),
        ("refused".into(), "null".into())
    );

    // Nobody else may have it now, and what exists is left alone by the one who was refused.
    let error = Cgroup::create(&plan).unwrap_err().to_string();
    assert!(
        error.starts_with("container's cgroup is not empty: 1 process(es) found"),
        "{error}"
    );
    let foreign = Placed::planned(&plan);
    assert_eq!(foreign.processes().unwrap(), [0; 0]);
    foreign.kill().unwrap();
    foreign.remove().unwrap();
    assert!(shell.0.try_wait().unwrap().is_none() && of("memory").exists());

    // A paused container dies as well, with what it made inside.
    fs::create_dir(of("pids").join("inner")).unwrap();
    if host
        .v1
        .iter()
        .any(|v1| v1.controllers.contains(&"freezer".into()))
    {
        fs::write(of("freezer").join("freezer.state"), "FROZEN").unwrap();
        assert!(cgroup.placed().frozen());
    }
    let text = serde_json::to_string(cgroup.placed()).unwrap();
    let placed: Placed = serde_json::from_str(&text).unwrap();
    placed.kill().unwrap();
    assert!(!shell.0.wait().unwrap().success());
    placed.remove().unwrap();
    for dir in &plan.dirs {
        assert!(
            !dir.path.parent().unwrap().exists(),
            "{}",
            dir.path.display()
        );
    }
    placed.remove().unwrap();
    placed.kill().unwrap();
}

/// A thread moves itself by "0" into the tasks files, as a cloned child does.
#[test]
fn a_child_enters_by_itself() {
    if !can_v1() {
        return;
    }
    let path = format!("/{}", name("entry"));
    let (_, plan) = planned(&path, json!({}));
    let cgroup = Cgroup::create(&plan).unwrap();
    // As exec would, from the record.
    let entry = Cgroup::open(cgroup.placed()).unwrap().entry().unwrap();
    let thread = std::thread::spawn(move || {
        entry.enter().unwrap();
        own_paths("thread-self")
    });
    let paths = thread.join().unwrap();
    let entered = paths.iter().filter(|own| **own == path).count();
    let v1 = plan
        .dirs
        .iter()
        .filter(|dir| dir.version == Version::V1)
        .count();
    assert_eq!(entered, v1, "{paths:?}");
    cgroup.placed().remove().unwrap();
}

/// Every kind of limit of v1 that this kernel has: create compares each with what is read back.
#[test]
fn all_limits_on_v1() {
    if !can_v1() {
        return;
    }
    let mut asked = json!({
        "memory": {"limit": 64 << 20, "swap": -1, "reservation": 1_000_001, "swappiness": 11,
            "disableOOMKiller": true},
        "cpu": {"shares": 300, "quota": 20_000, "period": 50_000, "burst": 5_000, "cpus": "0",
            "mems": "0"},
        "pids": {"limit": -1},
    });
    // Any disk of this machine: which one does not matter, nothing is read or written.
    let disks = fs::read_dir("/sys/block")
        .unwrap()
        .map(|disk| disk.unwrap().path());
    let numbers = disks
        .filter_map(|disk| fs::read_to_string(disk.join("dev")).ok())
        .next();
    if let Some((major, minor)) = numbers
        .as_deref()
        .and_then(|dev| dev.trim().split_once(':'))
    {
        let (major, minor): (i64, i64) = (major.parse().unwrap(), minor.parse().unwrap());
        let rate = json!([{"major": major, "minor": minor, "rate": 1 << 20}]);
        asked["blockIO"] = json!({"throttleReadBpsDevice": rate, "throttleWriteIOPSDevice": rate});
    }
    let (_, plan) = planned(&format!("/{}", name("all")), asked);
    let cgroup = Cgroup::create(&plan).unwrap();
    assert!(plan.dirs.iter().map(|dir| dir.writes.len()).sum::<usize>() >= 12);
    cgroup.placed().remove().unwrap();
    let (_, plan) = planned(
        &format!("/{}", name("all")),
        json!({"cpu": {"idle": 1, "shares": 9}}),
    );
    Cgroup::create(&plan).unwrap().placed().remove().unwrap();
    assert_eq!(plan.ignored.len(), 1);
}

/// A limit that fails leaves nothing behind, and the sentence names field, file and values.
#[test]
fn a_refused_limit_on_v1() {
    if !can_v1() {
        return;
    }
    let path = format!("/{}/deep/er", name("refused"));
    for (asked, words) in [
        (
            json!({"cpu": {"cpus": "4000"}}),
            ["linux.resources.cpu.cpus", "cpuset.cpus", "does not take"],
        ),
        (
            json!({"cpu": {"shares": 1}}),
            [
                "linux.resources.cpu.shares",
                "the minimum allowed cpu-shares is 2",
                "1 is not",
            ],
        ),
    ] {
        let (_, plan) = planned(&path, asked);
        let error = Cgroup::create(&plan).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        for dir in &plan.dirs {
            let top = dir.mount.join(name("refused"));
            assert!(!top.exists(), "{}", top.display());
        }
    }
}

#[test]
fn a_life_on_v2() {
    if !inside_v2("kernel::a_life_on_v2") {
        return;
    }
    let path = format!("/{}/a", name("life"));
    let asked = json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"},
    ]});
    let (host, plan) = planned(&path, asked);
    assert_eq!(
        (host.mode, host.v2.as_ref().unwrap().controllers.as_ref()),
        (Mode::V2, None)
    );
    let before = Placed::planned(&plan);
    let cgroup = Cgroup::create(&plan).unwrap();
    assert_eq!(cgroup.placed(), &before);
    assert!(cgroup.clone_fd().is_some() && cgroup.entry().unwrap().is_empty());
    let mut shell = Shell::new();
    cgroup.join(shell.pid()).unwrap();
    assert!(own_paths(&shell.pid().to_string()).contains(&path));
    // The program allows writing to kmsg (1:11) and everything with null, and nothing else.
    shell.tell(
        "(: < /dev/kmsg) 2>/dev/null && echo open || echo refused; \
         (: > /dev/kmsg) 2>/dev/null && echo open || echo refused; : <> /dev/null && echo null",
    );
    assert_eq!(
        [shell.line(), shell.line(), shell.line()],
        ["refused", "open", "null"]
    );
    let error = Cgroup::create(&plan).unwrap_err().to_string();
    assert!(
        error.starts_with("container's cgroup is not empty: 1 process(es) found"),
        "{error}"
    );

    // Fork on in a nested cgroup, frozen: all of it dies at once.
    let inner = plan.dirs[0].path.join("inner");
    fs::create_dir(&inner).unwrap();
    shell.tell("sleep 1000 & sleep 1000 & echo on");
    assert_eq!(shell.line(), "on");
    assert_eq!(cgroup.placed().processes().unwrap().len(), 3);
    fs::write(inner.join("cgroup.procs"), shell.pid().to_string()).unwrap();
    fs::write(plan.dirs[0].path.join("cgroup.freeze"), "1").unwrap();
    assert!(cgroup.placed().frozen());
    cgroup.placed().kill().unwrap();
    assert_eq!(cgroup.placed().processes().unwrap(), [0; 0]);
    shell.0.wait().unwrap();
    cgroup.placed().remove().unwrap();
    assert!(!plan.dirs[0].path.parent().unwrap().exists());
}

/// A signal reaches every process; a cgroup that stays busy is told after a bounded time.
#[test]
fn signals_and_a_busy_cgroup_on_v2() {
    if !inside_v2("kernel::signals_and_a_busy_cgroup_on_v2") {
        return;
    }
    let (_, plan) = planned(&format!("/{}", name("busy")), json!({}));
    let cgroup = Cgroup::create(&plan).unwrap();
    let mut shell = Shell::new();
    cgroup.join(shell.pid()).unwrap();
    let start = Instant::now();
    let limit = Duration::from_millis(300);
    let error = cgroup
        .placed()
        .remove_within(limit)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("EBUSY") && error.contains(&shell.pid().to_string()),
        "{error}"
    );
    assert!(start.elapsed() >= limit && start.elapsed() < Duration::from_secs(8));
    shell.tell("trap 'echo got' USR1; echo ready");
    assert_eq!(shell.line(), "ready");
    cgroup.placed().signal_all(libc::SIGUSR1).unwrap();
    shell.tell(":");
    assert_eq!(shell.line(), "got");
    cgroup.placed().kill().unwrap();
    shell.0.wait().unwrap();
    cgroup.placed().remove().unwrap();
}

/// Limits on v2 with the one controller that a hybrid machine leaves to it.
#[test]
fn limits_on_v2() {
    if !inside_v2("kernel::limits_on_v2") {
        return;
    }
    let offered = read(Path::new("/sys/fs/cgroup/cgroup.controllers"));
    if !offered.split(' ').any(|name| name == "hugetlb")
        || !Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists()
    {
        return println!("skipped: no hugetlb controller on v2, only {offered:?}");
    }
    let control = Path::new("/sys/fs/cgroup/cgroup.subtree_control");
    let handed_on = read(control).contains("hugetlb");
    let path = format!("/{}/x/y", name("limits"));
    let asked = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 5_000_000}]});
    let (_, plan) = planned(&path, asked);
    let cgroup = Cgroup::create(&plan).unwrap();
    assert_eq!(read(&plan.dirs[0].path.join("hugetlb.2MB.max")), "4194304");
    cgroup.placed().remove().unwrap();
    assert!(!Path::new("/sys/fs/cgroup").join(name("limits")).exists());
    if !handed_on {
        // The hierarchy is the machine's own: it stays as it was.
        fs::write(control, "-hugetlb").unwrap();
    }
    let (_, plan) = planned(&path, json!({"unified": {"cgroup.max.depth": "no"}}));
    let error = Cgroup::create(&plan).unwrap_err().to_string();
    assert!(
        error.contains("linux.resources.unified[\"cgroup.max.depth\"]"),
        "{error}"
    );
    assert!(!Path::new("/sys/fs/cgroup").join(name("limits")).exists());
    let linux = linux(json!({"resources": {"memory": {"limit": 1_000_000}}}));
    if !offered.contains("memory") {
        let host = detect(Some(&linux)).unwrap();
        let error = super::super::plan(Some(&linux), "c", &host)
            .unwrap_err()
            .to_string();
        assert!(error.contains("linux.resources.memory.limit needs the cgroup controller memory"));
    }
}

/// As deep as a container can make them: 1,000 levels, with a process at the end, gone through with a
/// small stack.
#[test]
fn a_deep_tree_on_v2() {
    if !inside_v2("kernel::a_deep_tree_on_v2") {
        return;
    }
    let (_, plan) = planned(&format!("/{}", name("deep")), json!({}));
    let cgroup = Cgroup::create(&plan).unwrap();
    let level = Path::new("levels-of-this-name");
    let mut dir = fs::File::open(&plan.dirs[0].path).unwrap();
    for depth in 0..1_000 {
        let below = format!("/proc/self/fd/{}", dir.as_raw_fd());
        let below = Path::new(&below).join(level);
        match fs::create_dir(&below) {
            Ok(()) => dir = fs::File::open(&below).unwrap(),
            Err(error) => {
                cgroup.placed().remove().unwrap();
                return println!("skipped: no {depth} levels can be made here: {error}");
            }
        }
    }
    let mut shell = Shell::new();
    let procs = format!("/proc/self/fd/{}/cgroup.procs", dir.as_raw_fd());
    fs::write(procs, shell.pid().to_string()).unwrap();
    let placed = cgroup.placed().clone();
    let pid = shell.pid();
    let small = std::thread::Builder::new().stack_size(64 << 10);
    let walker = small.spawn(move || {
        assert_eq!(placed.processes().unwrap(), [pid]);
        placed.kill().unwrap();
        placed.remove().unwrap();
    });
    let walked = walker.unwrap().join();
    shell.0.wait().unwrap();
    assert!(walked.is_ok());
    assert!(!plan.dirs[0].path.exists());
}
