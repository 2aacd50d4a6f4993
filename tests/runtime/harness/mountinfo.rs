//! /proc/PID/mountinfo, one line as a value.

/// One mount as its namespace sees it; fields as in proc_pid_mountinfo(5).
#[derive(Debug, Clone)]
pub struct Mount {
    /// The part of the file system that is mounted.
    pub root: String,
    /// Where.
    pub point: String,
    /// Options of the mount itself, sorted.
    pub options: Vec<String>,
    /// `shared:N`, `master:N`, `unbindable`; empty when private.
    pub propagation: Vec<String>,
    /// Type of the file system.
    pub kind: String,
    /// Options of the file system.
    pub super_options: Vec<String>,
}

impl Mount {
    /// Whether the mount has each of these options.
    pub fn has(&self, options: &[&str]) -> bool {
        options
            .iter()
            .all(|wanted| self.options.iter().any(|option| option == wanted))
    }

    /// Whether the file system has this option.
    pub fn super_has(&self, wanted: &str) -> bool {
        self.super_options.iter().any(|option| option == wanted)
    }
}

/// The mounts in a mountinfo text, in its order.
pub fn parse_mountinfo(text: &str) -> Vec<Mount> {
    let list = |text: &str| text.split(',').map(str::to_string).collect::<Vec<_>>();
    let mut mounts = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let dash = words
            .iter()
            .position(|word| *word == "-")
            .expect("a mountinfo line");
        mounts.push(Mount {
            root: words[3].to_string(),
            point: words[4].to_string(),
            options: list(words[5]),
            propagation: words[6..dash].iter().map(|word| word.to_string()).collect(),
            kind: words[dash + 1].to_string(),
            super_options: list(words.get(dash + 3).copied().unwrap_or("")),
        });
    }
    mounts
}

/// The last (topmost) mount at `point`.
#[track_caller]
pub fn mount_at(mounts: &[Mount], point: &str) -> Mount {
    let found = mounts.iter().rev().find(|mount| mount.point == point);
    found
        .unwrap_or_else(|| panic!("nothing is mounted at {point}: {mounts:#?}"))
        .clone()
}
