//! What a test must not leave behind: mounts, cgroups, processes, state directories.

use std::fs;
use std::path::{Path, PathBuf};

/// Every cgroup directory, in every hierarchy, whose name contains `id`.
pub fn cgroups_named(id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // In the v2 view the machine's own v1 hierarchies are out of sight, and nothing is made there.
    walk(Path::new("/sys/fs/cgroup"), 8, &mut |dir| {
        if dir
            .file_name()
            .is_some_and(|name| name.to_string_lossy().contains(id))
        {
            found.push(dir.to_path_buf());
        }
    });
    found
}

fn walk(dir: &Path, depth: u32, visit: &mut dyn FnMut(&Path)) {
    // Other tests' cgroups come and go meanwhile: what vanishes is no error.
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), depth - 1, visit);
            visit(&entry.path());
        }
    }
}

/// Living processes that belong to `id`: by cgroup, command line or environment.
pub fn processes_tagged(id: &str) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if pid == i32::try_from(std::process::id()).unwrap() || is_zombie(pid) {
            continue;
        }
        let read = |file: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let (command, rest) = (read("cmdline"), read("cgroup") + &read("environ"));
        if command.contains(id) || rest.contains(id) {
            found.push((pid, command));
        }
    }
    found
}

/// Whether a process has ended and only waits to be reaped (by whoever adopted it), or has gone.
pub fn is_zombie(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    match status.lines().find_map(|line| line.strip_prefix("State:")) {
        Some(state) => matches!(state.trim().chars().next(), Some('Z' | 'X')),
        None => true,
    }
}

/// Mount points of this mount namespace below `dir`.
pub fn mounts_below(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .filter(|point| Path::new(point).starts_with(dir))
        .map(str::to_string)
        .collect()
}

/// Everything that is left of a container, one line each; empty when it left nothing.
pub fn left_behind(id: &str, state_root: &Path, dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for entry in fs::read_dir(state_root).into_iter().flatten().flatten() {
        // crun keeps its caches there, under names that no container can have had.
        let cache = entry.file_name().to_string_lossy().starts_with('.');
        if !cache || super::runtime().isorun {
            left.push(format!("state {}", entry.path().display()));
        }
    }
    for cgroup in cgroups_named(id) {
        left.push(format!("cgroup {}", cgroup.display()));
    }
    for (pid, command) in processes_tagged(id) {
        left.push(format!("process {pid} {command}"));
    }
    for mount in mounts_below(dir) {
        left.push(format!("mount {mount}"));
    }
    left
}
