//! Inside against outside: one row for each promise, and whether it holds.

use super::bundle::{FIRST_ID, HOSTNAME, IDS, MEMORY, MILLICPUS, OPEN_FILES, PIDS};
use super::facts::Facts;
use super::host::{Denied, NAMESPACES};
use super::limits::Limits;

/// What comes of a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Holds(&'static str),
    /// It does not hold.
    Broken(String),
    /// This host does not allow it, for this reason.
    Denied(String),
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    what: String,
    inside: String,
    outside: String,
    verdict: Verdict,
}

/// The container's process as the host sees it, looked at while it runs.
#[derive(Debug, Clone, Default)]
pub struct FromOutside {
    /// Its process id on the host.
    pub pid: i32,
    /// Its user id on the host.
    pub uid: u32,
    /// The limits of its cgroups.
    pub limits: Limits,
}

/// Compares what the container told with what is so outside.
pub fn compare(inside: &Facts, outside: &Facts, seen: &FromOutside, denied: &Denied) -> Vec<Row> {
    let mut rows = identity(inside, outside, seen, denied);
    rows.extend(NAMESPACES.iter().map(|namespace| {
        let inode = |facts: &Facts| facts.namespaces.get(namespace.file).copied();
        let (a, b) = (inode(inside), inode(outside));
        let show = |inode: Option<u64>| inode.map_or("none".into(), |inode| inode.to_string());
        let what = format!("{} namespace", namespace.kind);
        match denied.namespace(namespace.kind) {
            Some(why) => denied_row(what, why),
            None => row(what, show(a), show(b), a.is_some() && a != b, "its own"),
        }
    }));
    rows.extend(privileges(inside, outside));
    rows.extend(surroundings(inside, outside));
    rows.extend(limits(inside, outside, seen, denied));
    rows
}

fn row(
    what: impl Into<String>,
    inside: impl Into<String>,
    outside: impl Into<String>,
    holds: bool,
    meaning: &'static str,
) -> Row {
    let verdict = match holds {
        true => Verdict::Holds(meaning),
        false => Verdict::Broken(format!("not {meaning}")),
    };
    Row {
        what: what.into(),
        inside: inside.into(),
        outside: outside.into(),
        verdict,
    }
}

fn denied_row(what: impl Into<String>, why: &str) -> Row {
    let verdict = Verdict::Denied(why.to_string());
    Row {
        what: what.into(),
        inside: "-".into(),
        outside: "-".into(),
        verdict,
    }
}

fn identity(inside: &Facts, outside: &Facts, seen: &FromOutside, denied: &Denied) -> Vec<Row> {
    let mut rows = Vec::new();
    if denied.namespace("user").is_none() {
        let holds = inside.uid == 0 && seen.uid == FIRST_ID;
        rows.push(row(
            "user id",
            inside.uid.to_string(),
            format!("{} (same process)", seen.uid),
            holds,
            "root only in here",
        ));
        let map = inside.uid_map.join(", ");
        let holds = map == format!("0 {FIRST_ID} {IDS}");
        rows.push(row(
            "user id map",
            map,
            outside.uid_map.join(", "),
            holds,
            "as configured",
        ));
    }
    if denied.namespace("pid").is_none() {
        let same = format!("{} (same process)", seen.pid);
        let holds = inside.pid == 1 && seen.pid != 1;
        rows.push(row(
            "process id",
            inside.pid.to_string(),
            same,
            holds,
            "first of its own",
        ));
        let count = |facts: &Facts| match facts.pids.len() {
            1 => "1 process".to_string(),
            count => format!("{count} processes"),
        };
        let holds = inside.pids == [1];
        rows.push(row(
            "sees",
            count(inside),
            count(outside),
            holds,
            "only itself",
        ));
    }
    rows
}

fn privileges(inside: &Facts, outside: &Facts) -> Vec<Row> {
    let set = |facts: &Facts, name: &str| match facts.capabilities.get(name) {
        Some(0) => "none".to_string(),
        Some(set) => set.count_ones().to_string(),
        None => "unknown".to_string(),
    };
    let named = |name: &'static str| {
        let empty = inside.capabilities.get(name) == Some(&0);
        let what = format!("{name} capabilities");
        row(
            what,
            set(inside, name),
            set(outside, name),
            empty,
            "dropped",
        )
    };
    let mode = |facts: &Facts| match facts.seccomp {
        0 => "none".to_string(),
        1 => "strict".to_string(),
        2 => "filter".to_string(),
        other => other.to_string(),
    };
    let on = |facts: &Facts| if facts.no_new_privileges { "on" } else { "off" };
    let call = inside.attempt("unshare");
    vec![
        named("effective"),
        named("permitted"),
        named("inheritable"),
        named("bounding"),
        named("ambient"),
        row(
            "no new privileges",
            on(inside),
            on(outside),
            inside.no_new_privileges,
            "in force",
        ),
        row(
            "seccomp",
            mode(inside),
            mode(outside),
            inside.seccomp == 2,
            "in force",
        ),
        row(
            "call unshare(0)",
            call,
            outside.attempt("unshare"),
            call == "EPERM",
            "refused",
        ),
    ]
}

fn surroundings(inside: &Facts, outside: &Facts) -> Vec<Row> {
    let root = |facts: &Facts| {
        let mode = facts.mounts.iter().rev().find(|(target, _)| target == "/");
        mode.map_or("unknown", |(_, mode)| mode.as_str())
            .to_string()
    };
    let attempt = |what: &str, refused: &[&str]| {
        let outcome = inside.attempt(what);
        row(
            what,
            outcome,
            outside.attempt(what),
            refused.contains(&outcome),
            "refused",
        )
    };
    let mounts = |facts: &Facts| format!("{} mounts", facts.mounts.len());
    // What the host has mounted anywhere but where the container has something of its own.
    let foreign = |target: &str| {
        let own = ["/proc", "/dev", "/sys", "/tmp"];
        target != "/" && !own.iter().any(|own| target.strip_prefix(own).is_some())
    };
    let no_foreign = !inside.mounts.iter().any(|(target, _)| foreign(target));
    let mut rows = vec![
        row(
            "root file system",
            root(inside),
            root(outside),
            root(inside) == "ro",
            "read-only",
        ),
        attempt("write /", &["EROFS"]),
        attempt("write /proc/sys", &["EROFS", "EACCES", "EPERM"]),
    ];
    if outside.attempt("read /proc/kcore") != "ENOENT" {
        rows.push(attempt(
            "read /proc/kcore",
            &["empty", "EACCES", "EPERM", "ENOENT"],
        ));
    }
    let list = |facts: &Facts| facts.interfaces.join(" ");
    // Some kernels make tunnel devices in every network namespace; none of them is the host's link.
    let links = [
        "eth", "en", "wl", "veth", "docker", "br", "virbr", "cni", "podman",
    ];
    let linked = |name: &String| {
        links.iter().any(|l| name.starts_with(l)) && outside.interfaces.contains(name)
    };
    let apart = !inside.interfaces.iter().any(linked);
    rows.extend([
        row(
            "sees",
            mounts(inside),
            mounts(outside),
            no_foreign,
            "only its own",
        ),
        row(
            "network interfaces",
            list(inside),
            list(outside),
            apart,
            "none of the host's",
        ),
        row(
            "host name",
            &inside.hostname,
            &outside.hostname,
            inside.hostname == HOSTNAME,
            "its own",
        ),
    ]);
    rows
}

fn limits(inside: &Facts, outside: &Facts, seen: &FromOutside, denied: &Denied) -> Vec<Row> {
    let files = |facts: &Facts| facts.open_files.to_string();
    let mut rows = vec![row(
        "open files",
        files(inside),
        files(outside),
        inside.open_files == OPEN_FILES,
        "limited",
    )];
    type Get = fn(&Limits) -> Option<u64>;
    type Show = fn(u64) -> String;
    type Wanted = (&'static str, &'static str, Get, u64, Show);
    let wanted: [Wanted; 3] = [
        (
            "memory",
            "memory limit",
            |l| l.memory,
            MEMORY,
            |bytes| format!("{} MiB", bytes >> 20),
        ),
        (
            "pids",
            "process limit",
            |l| l.pids,
            PIDS,
            |count| count.to_string(),
        ),
        (
            "cpu",
            "CPU limit",
            |l| l.millicpus,
            MILLICPUS,
            |part| format!("{} %", part / 10),
        ),
    ];
    for (controller, what, get, wanted, show) in wanted {
        if let Some(why) = denied.controller(controller) {
            rows.push(denied_row(what, why));
            continue;
        }
        // Seen from the host it counts; what the container sees of its cgroup is up to its mounts.
        let holds = get(&seen.limits) == Some(wanted)
            && get(&inside.limits).is_none_or(|limit| limit == wanted);
        let text = |limit: Option<u64>| limit.map_or("none".to_string(), show);
        let told = get(&inside.limits).or(get(&seen.limits));
        rows.push(row(
            what,
            text(told),
            text(get(&outside.limits)),
            holds,
            "in force",
        ));
    }
    rows
}

/// The rows as a table, headings first.
pub fn table(rows: &[Row]) -> String {
    let heading = ["".to_string(), "inside".to_string(), "outside".to_string()];
    let cells = rows
        .iter()
        .map(|row| [row.what.clone(), row.inside.clone(), row.outside.clone()]);
    let cells: Vec<[String; 3]> = std::iter::once(heading).chain(cells).collect();
    let widths: [usize; 3] = std::array::from_fn(|column| {
        cells
            .iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    });
    let verdicts =
        std::iter::once("verdict".to_string()).chain(rows.iter().map(|row| match &row.verdict {
            Verdict::Holds(meaning) => format!("ok: {meaning}"),
            Verdict::Broken(why) => format!("BROKEN: {why}"),
            Verdict::Denied(why) => format!("denied by this host: {why}"),
        }));
    let mut text = String::new();
    for (row, verdict) in cells.iter().zip(verdicts) {
        for (cell, width) in row.iter().zip(widths) {
            text.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(&verdict);
        text.push('\n');
    }
    text
}

/// How many rows hold, are broken, are denied.
pub fn count(rows: &[Row]) -> (usize, usize, usize) {
    let of = |wanted: fn(&Verdict) -> bool| rows.iter().filter(|row| wanted(&row.verdict)).count();
    (
        of(|verdict| matches!(verdict, Verdict::Holds(_))),
        of(|verdict| matches!(verdict, Verdict::Broken(_))),
        of(|verdict| matches!(verdict, Verdict::Denied(_))),
    )
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
