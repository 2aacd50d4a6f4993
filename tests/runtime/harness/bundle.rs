//! A bundle in a directory of its own, and the container made of it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::leaks::left_behind;
use super::run::{Output, Running, run_command, wait_for};
use super::{cgroups_named, config, probe, processes_tagged, runtime};

/// A bundle, its own state directory, and one container id. Dropping it deletes the container by
/// force and fails the test if anything is left.
pub struct Bundle {
    /// The container's id, unique on this machine.
    pub id: String,
    /// The directory that holds everything of this test.
    pub dir: PathBuf,
    /// The config.json to be; written before each call.
    pub config: Value,
    /// What stands before the runtime in each call, such as a change of user.
    pub prefix: Vec<String>,
}

/// The applets that tests use; all of busybox's would be most of a test's time.
const APPLETS: &str = "[ awk cat chmod chown cut date dd echo env expr false find grep head hostname id \
    kill ln ls mkdir mknod mount od ps pwd readlink rm sed seq setsid sh sleep sort stat tail test touch \
    tr true umount uname wc";

/// Copies a program. Not by this process: a test beside this one that forks would for a moment hold the
/// copy open for writing, and who executes it then gets ETXTBSY.
pub fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new(super::busybox())
        .args([OsStr::new("cp"), from.as_os_str(), to.as_os_str()])
        .status()
        .expect("tests need busybox-static at /bin/busybox");
    assert!(
        copied.success(),
        "copy {} to {}",
        from.display(),
        to.display()
    );
}

/// Fills `root` with busybox, its applets, and the directories that an image has.
pub fn busybox_tree(root: &Path) {
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "run"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    copy_program(&super::busybox(), &root.join("bin/busybox"));
    for applet in APPLETS.split_whitespace() {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n",
    )
    .unwrap();
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nann:x:1001:\nextra:x:2000:ann\n",
    )
    .unwrap();
}

impl Bundle {
    /// A bundle with a busybox tree and the base config.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        // The dot ends the number, so that no id contains another one.
        let id = format!("isotest-{}-{n}.", std::process::id());
        let dir = std::env::temp_dir().join(&id);
        for sub in ["bundle/rootfs", "state", "io", "host"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        busybox_tree(&dir.join("bundle/rootfs"));
        Self {
            id,
            dir,
            config: config::base(),
            prefix: Vec::new(),
        }
    }

    /// A bundle that runs this shell script.
    pub fn sh(script: &str) -> Self {
        let mut bundle = Self::new();
        bundle.args(&["sh", "-c", script]);
        bundle
    }

    /// The bundle's directory.
    pub fn bundle_dir(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// A path inside the rootfs, seen from outside.
    pub fn rootfs(&self, path: &str) -> PathBuf {
        self.dir
            .join("bundle/rootfs")
            .join(path.trim_start_matches('/'))
    }

    /// The state directory given with `--root`.
    pub fn state_root(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// A directory of the host for bind mounts and files that hooks write.
    pub fn host(&self, name: &str) -> PathBuf {
        self.dir.join("host").join(name)
    }

    /// Sets process.args.
    pub fn args(&mut self, args: &[&str]) -> &mut Self {
        self.set("/process/args", json!(args))
    }

    /// Sets the value at a JSON pointer, with the objects on the way.
    pub fn set(&mut self, pointer: &str, value: Value) -> &mut Self {
        let mut at = &mut self.config;
        for key in pointer.trim_start_matches('/').split('/') {
            at = match key.parse::<usize>() {
                Ok(index) if at.is_array() => at.get_mut(index).expect("an element of the array"),
                _ => &mut at[key],
            };
        }
        *at = value;
        self
    }

    /// Appends to the array at a JSON pointer, made where it is not there.
    pub fn push(&mut self, pointer: &str, value: Value) -> &mut Self {
        let mut list = self
            .config
            .pointer(pointer)
            .cloned()
            .unwrap_or_else(|| json!([]));
        list.as_array_mut().unwrap().push(value);
        self.set(pointer, list)
    }

    /// Removes the value at a JSON pointer.
    pub fn unset(&mut self, pointer: &str) -> &mut Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = self
            .config
            .pointer_mut(parent)
            .and_then(Value::as_object_mut);
        parent.expect("the object to remove from").remove(key);
        self
    }

    /// Adds a mount.
    pub fn mount(
        &mut self,
        destination: &str,
        kind: &str,
        source: &str,
        options: &[&str],
    ) -> &mut Self {
        self.push(
            "/mounts",
            json!({"destination": destination, "type": kind, "source": source, "options": options}),
        )
    }

    /// Adds a new namespace.
    pub fn namespace(&mut self, kind: &str) -> &mut Self {
        self.push("/linux/namespaces", json!({"type": kind}))
    }

    /// Takes a namespace out: the container shares the host's.
    pub fn without_namespace(&mut self, kind: &str) -> &mut Self {
        let list = self.config["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|namespace| namespace["type"] != kind);
        self
    }

    /// Puts the probe program at /probe; the reason when it cannot be built.
    pub fn add_probe(&self) -> Result<(), &'static str> {
        copy_program(probe()?, &self.rootfs("/probe"));
        Ok(())
    }

    /// Writes config.json as it is now.
    pub fn write(&self) {
        let text = serde_json::to_string_pretty(&self.config).unwrap();
        fs::write(self.bundle_dir().join("config.json"), text).unwrap();
    }

    /// The runtime with the global flags and these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.bare_command();
        command.arg("--root").arg(self.state_root()).args(args);
        // Tags the processes that the runtime leaves, for the leak check.
        command
            .env("ISORUN_TEST_ID", &self.id)
            .env_remove("XDG_RUNTIME_DIR");
        command.env_remove("LISTEN_FDS").env_remove("NOTIFY_SOCKET");
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// The runtime after the prefix, without any arguments.
    pub fn bare_command(&self) -> Command {
        match self.prefix.split_first() {
            None => Command::new(&runtime().path),
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(&runtime().path);
                command
            }
        }
    }

    /// Runs the runtime with these arguments to its end.
    pub fn call(&self, args: &[&str]) -> Output {
        run_command(self.command(args), &self.dir.join("io"))
    }

    /// Starts the runtime with these arguments and leaves it under way.
    pub fn spawn(&self, args: &[&str]) -> Running {
        Running::start(self.command(args), &self.dir.join("io"))
    }

    fn bundle_flag(&self) -> String {
        self.bundle_dir().to_str().unwrap().to_string()
    }

    /// `run` in the foreground, to its end.
    pub fn run(&self) -> Output {
        self.write();
        self.call(&["run", "--bundle", &self.bundle_flag(), &self.id])
    }

    /// `run` in the foreground, left under way.
    pub fn spawn_run(&self) -> Running {
        self.write();
        self.spawn(&["run", "--bundle", &self.bundle_flag(), &self.id])
    }

    /// `run --detach`.
    pub fn run_detached(&self) -> Output {
        self.write();
        self.call(&["run", "--detach", "--bundle", &self.bundle_flag(), &self.id])
    }

    /// `create`.
    pub fn create(&self) -> Output {
        self.write();
        self.call(&["create", "--bundle", &self.bundle_flag(), &self.id])
    }

    /// `create`, left under way.
    pub fn spawn_create(&self) -> Running {
        self.write();
        self.spawn(&["create", "--bundle", &self.bundle_flag(), &self.id])
    }

    /// `start`.
    pub fn start(&self) -> Output {
        self.call(&["start", &self.id])
    }

    /// `kill` with a signal.
    pub fn kill(&self, signal: &str) -> Output {
        self.call(&["kill", &self.id, signal])
    }

    /// `delete`.
    pub fn delete(&self) -> Output {
        self.call(&["delete", &self.id])
    }

    /// `delete --force`.
    pub fn delete_force(&self) -> Output {
        self.call(&["delete", "--force", &self.id])
    }

    /// What `state` prints.
    #[track_caller]
    pub fn state(&self) -> Value {
        let out = self.call(&["state", &self.id]).ok();
        serde_json::from_str(&out.stdout).unwrap_or_else(|error| panic!("{error} in {out:#?}"))
    }

    /// The status that `state` tells, or `none` where there is no such container.
    pub fn status(&self) -> String {
        let out = self.call(&["state", &self.id]);
        let state: Value = serde_json::from_str(&out.stdout).unwrap_or_default();
        state["status"].as_str().unwrap_or("none").to_string()
    }

    /// The pid of the container's init.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.state()["pid"].as_i64().unwrap()).unwrap()
    }

    /// Waits for a status.
    pub fn wait_status(&self, status: &str) {
        wait_for(&format!("{} to be {status}", self.id), || {
            self.status() == status
        });
    }

    /// Waits for a file below the `host` directory and gives its text.
    pub fn wait_file(&self, name: &str) -> String {
        let path = self.host(name);
        wait_for(&format!("{} to be written", path.display()), || {
            fs::metadata(&path).is_ok_and(|data| data.len() > 0)
        });
        fs::read_to_string(&path).unwrap()
    }

    /// What is left of the container now; processes that are ending get a moment.
    pub fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        for _ in 0..100 {
            left = left_behind(&self.id, &self.state_root(), &self.dir);
            if left.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        left
    }

    /// Fails if the container left anything behind.
    #[track_caller]
    pub fn assert_gone(&self) {
        let left = self.left_behind();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }

    /// Takes away what a runtime left: processes, cgroups and mounts of this bundle.
    pub fn sweep(&self) {
        for (pid, _) in processes_tagged(&self.id) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        for cgroup in cgroups_named(&self.id) {
            remove_cgroup(&cgroup);
        }
        let mut points = super::leaks::mounts_below(&self.dir);
        points.reverse();
        for point in points {
            let _ = nix::mount::umount2(point.as_str(), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// Removes a cgroup and those below it, whose names may be anything.
fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    for _ in 0..100 {
        // rmdir says EBUSY until the killed processes are gone.
        if fs::remove_dir(dir).is_ok() || !dir.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let states = fs::read_dir(self.state_root())
            .into_iter()
            .flatten()
            .flatten();
        for entry in states {
            let id = entry.file_name().to_string_lossy().into_owned();
            let mut delete = self.spawn(&["delete", "--force", &id]);
            let start = std::time::Instant::now();
            // No panic here for a hang: what is left is told below.
            while delete.alive() && start.elapsed().as_secs() < 20 {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        let left = self.left_behind();
        self.sweep();
        if std::env::var_os("ISORUN_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
        if !std::thread::panicking() {
            assert!(
                left.is_empty(),
                "left behind after delete --force: {left:#?}"
            );
        }
    }
}
