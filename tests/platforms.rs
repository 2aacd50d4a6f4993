//! Platforms: captured hosts of tests/fixtures/hosts/platforms, each with what `isorun doctor` found there.
//!
//! For each one, a rootful, a rootless and a nested container is planned at every level, and the plan is
//! gone through with the answers that the host gave to the probes: [`Machine`] stands for the host, and what
//! is given up, in which order, and what is refused is decided by the code that decides it for real
//! (`degrade::reborn`, `Step::perform`). tests/golden/platforms holds what comes of it, and the table of
//! docs/platforms.md is generated from it. `ISORUN_UPDATE_GOLDEN=1 cargo test --test platforms` writes both
//! anew; read the difference before you commit it. That real machines do the same is what
//! integration/degrade/run shows.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read its files has failed"
)]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use isorun::doctor;
use isorun::error::{Error, Result};
use isorun::host::{Answer, Caps, Host, IdMap, Outcome};
use isorun::plan::degrade::{self, Stage};
use isorun::plan::{self, Action, Asked, Feature, MountKind, Plan};
use isorun::policy::Level;
use isorun::spec::{Loaded, check, parse};
use nix::errno::Errno;
use serde::Deserialize;

const BEGIN: &str = "<!-- generated: tests/platforms.rs -->\n";
const END: &str = "<!-- end of what is generated -->\n";

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// What a fixture says of itself, beside the host.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Platform {
    /// Its place in the table.
    row: u32,
    /// Its name in the table.
    title: String,
    /// How it came to be: `captured`, `captured in its place` (a host with the same restriction) or `by hand`.
    origin: String,
    /// Where it was captured, or what it was written from.
    source: String,
}

struct Fixture {
    name: String,
    platform: Platform,
    host: Host,
}

fn fixtures() -> Vec<Fixture> {
    #[derive(Deserialize)]
    struct About {
        platform: Platform,
    }
    let dir = tests().join("fixtures/hosts/platforms");
    let mut found: Vec<Fixture> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let text = std::fs::read(&path).unwrap();
            let about: About =
                serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            let host = Host::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            Fixture {
                name,
                platform: about.platform,
                host,
            }
        })
        .collect();
    found.sort_by_key(|fixture| fixture.platform.row);
    found
}

/// The three containers, with the file of tests/fixtures/specs that each one is.
const KINDS: [(&str, &str); 3] = [
    ("rootful", "podman"),
    ("rootless", "rootless"),
    ("nested", "shared-root"),
];

fn loaded(name: &str) -> Loaded {
    let path = tests().join(format!("fixtures/specs/{name}.json"));
    let text = std::fs::read(path).unwrap();
    let parsed = parse::parse(&text).unwrap();
    let (spec, mut ignored) = (parsed.spec, parsed.ignored);
    ignored.extend(check(&spec).unwrap());
    Loaded {
        warnings: Vec::new(),
        text: Vec::new(),
        spec,
        bundle: "/bundle".into(),
        rootfs: "/bundle/rootfs".into(),
        ignored,
    }
}

/// A captured host that answers steps as it answered doctor's probes.
struct Machine {
    host: Host,
    /// The chain of probes that a container's steps are like.
    chain: &'static str,
}

impl Machine {
    /// The host as the runtime of this kind of container sees it.
    fn new(host: &Host, kind: &str) -> Result<Self> {
        let machine = |host: Host, chain| Self { host, chain };
        match kind {
            "rootful" => Ok(machine(host.clone(), "root")),
            "rootless" => Ok(machine(host.clone(), "user")),
            _ => {
                // As in rootless Podman: isorun is root of a user namespace that the caller made.
                let above = machine(host.clone(), "user");
                for step in ["create", "map", "map-range", "mount"] {
                    above.answer(step)?;
                }
                let range = |inside, outside, count| IdMap {
                    inside,
                    outside,
                    count,
                };
                let map = vec![range(0, 1000, 1), range(1, 100_000, 65_536)];
                let inside = Host {
                    euid: 0,
                    user_namespace: true,
                    caps: Some(Caps(0x1ff_ffff_ffff)),
                    uid_map: map.clone(),
                    gid_map: map,
                    ..host.clone()
                };
                Ok(machine(inside, "user"))
            }
        }
    }

    fn outcome(&self, name: &str) -> Option<&Outcome> {
        self.host.probed.as_ref().unwrap().probes.get(name)
    }

    /// The failure of a probe, or of the one that it needs.
    fn failed(&self, name: &str) -> Result<()> {
        let Some(outcome) = self.outcome(name) else {
            return Ok(());
        };
        let errno = |otherwise| outcome.errno.map_or(otherwise, Errno::from_raw);
        match outcome.result {
            Answer::Ok | Answer::Absent => Ok(()),
            // "needs user.mount": that is the failure.
            Answer::Skipped => {
                let before = outcome.detail.rsplit(' ').next().unwrap_or_default();
                match self.outcome(before) {
                    Some(_) => self.failed(before),
                    None => Err(Error::os("do", name, Errno::EPERM)),
                }
            }
            _ => Err(Error::os("do", name, errno(Errno::EPERM))),
        }
    }

    /// The answer to a step of the chain.
    fn answer(&self, step: &str) -> Result<()> {
        self.failed(&format!("{}.{step}", self.chain))
    }

    /// The first stage of the birth that fails.
    fn birth(&self, plan: &Plan) -> std::result::Result<(), (Stage, Error)> {
        let at = |stage| move |error| (stage, error);
        for dir in &plan.cgroup.dirs {
            let asked = !dir.writes.is_empty() || dir.devices.is_some();
            match self.failed("cgroup.create") {
                Err(_) if plan.cgroup.lenient && !asked => continue,
                other => other.map_err(at(Stage::Cgroup))?,
            }
            for write in &dir.writes {
                let probe = format!("cgroup.{}", write.controller);
                self.failed(&probe).map_err(at(Stage::Cgroup))?;
            }
        }
        let user = plan.birth.namespaces.iter().any(|kind| kind == "user");
        for kind in &plan.birth.namespaces {
            let probe = match kind.as_str() {
                "user" => "create",
                "network" => "net",
                other => other,
            };
            match self.answer(probe) {
                // Made in one call with the user namespace, by who owns that: what AppArmor does to the
                // capabilities of who is in it comes to light at the child's first step.
                Err(error)
                    if user
                        && probe != "create"
                        && matches!(error.errno(), Some(Errno::EPERM | Errno::EACCES)) => {}
                other => other.map_err(at(Stage::Clone))?,
            }
        }
        let ids: u32 = plan.birth.uid_map.iter().map(|map| map.count).sum();
        match ids {
            0 => {}
            1 => self.answer("map").map_err(at(Stage::Maps))?,
            _ => self.answer("map-range").map_err(at(Stage::Maps))?,
        }
        Ok(())
    }

    /// What the host answers to a step.
    fn act(&self, action: &Action) -> Result<Option<String>> {
        let step = match action {
            Action::Mount(mount) => match &mount.what {
                MountKind::Fresh { fstype, .. } => fstype.as_str(),
                MountKind::Bind { .. } => "bind",
                MountKind::Remount { .. } => "readonly",
            },
            // A hierarchy of v1 is bound.
            Action::MountCgroup { or_bind: false, .. } if self.host.cgroups.v2.is_some() => {
                "cgroup-mount"
            }
            Action::MountCgroup { .. } | Action::BindSys { .. } | Action::MaskPath { .. } => "bind",
            Action::BindProc { .. } => "proc-bind",
            Action::Device(_) => "mknod",
            Action::BindDevice { .. } => "bind-node",
            Action::NetworkNamespace => "net",
            Action::IpcNamespace => "ipc",
            Action::CgroupNamespace => "cgroup",
            Action::TimeNamespace { .. } => "time",
            Action::LoopbackUp => "loopback",
            Action::Hostname { .. } => "hostname",
            Action::RootPropagation { .. } => "private",
            Action::PivotRoot => "pivot_root",
            Action::ReadonlyRoot | Action::ReadonlyMounts | Action::ReadonlyPath { .. } => {
                "readonly"
            }
            Action::Rlimit { hard, .. } => return self.over("limit.rlimit", |own| *hard > own),
            Action::OomScoreAdj { value } => {
                let value = i64::from(*value);
                return self.over("limit.oom_score_adj", |own| value < own as i64);
            }
            Action::SessionKeyring { .. } => return self.failed("keyring").map(|()| None),
            Action::NoNewPrivs => return self.failed("seccomp.no_new_privs").map(|()| None),
            Action::Seccomp => return self.failed("seccomp.filter").map(|()| None),
            Action::Capabilities { asked } => {
                // In a new user namespace all are there.
                let caps = match self.chain {
                    "user" => u64::MAX,
                    _ => self.host.caps.map_or(u64::MAX, |caps| caps.0),
                };
                return match asked & !caps {
                    0 => Ok(None),
                    _ => Err(Error::os("give", "capabilities", Errno::EPERM)),
                };
            }
            _ => return Ok(None),
        };
        self.answer(step).map(|()| None)
    }

    /// A limit, which is refused where doctor could not raise it ("from 1024 to 1025") and it is over that.
    fn over(&self, probe: &str, is_over: impl Fn(u64) -> bool) -> Result<Option<String>> {
        let own = self.outcome(probe).and_then(|outcome| {
            let rest = outcome.detail.split(" from ").nth(1)?;
            rest.split(' ').next()?.parse().ok()
        });
        match own {
            Some(own) if is_over(own) => self.failed(probe).map(|()| None),
            _ => Ok(None),
        }
    }

    /// The container is made on this host: the plan that was left at the end, and the rows that were lost.
    fn run(&self, spec: &Loaded, level: Level) -> (Option<Plan>, Result<Vec<String>>) {
        let mut asked = Asked {
            id: "golden".into(),
            degrade: level,
            ..Asked::default()
        };
        let mut first = None;
        // Asked for by the engine once something is lost.
        let landlock = self.landlock();
        let mut host = self.host.clone();
        loop {
            let plan = match plan::build(spec, &host, &asked) {
                Ok(plan) => plan,
                Err(error) => return (first, Err(error)),
            };
            first.get_or_insert_with(|| plan.clone());
            let root = self.host.euid == 0;
            let lost = match self.birth(&plan) {
                Ok(()) => match self.steps(&plan, level) {
                    Ok(rows) => return (first, Ok(rows)),
                    Err((None, error)) => Err(error),
                    Err((Some(row), error)) => degrade::given_up(row, error, plan.level, landlock),
                },
                Err((stage, error)) => degrade::reborn(stage, error, &plan, root, landlock),
            };
            host.landlock = landlock;
            match lost {
                Ok(lost) => asked.without.push(lost),
                Err(error) => return (first, Err(error)),
            }
        }
    }

    /// The version of Landlock that doctor has found; 0: none.
    fn landlock(&self) -> u32 {
        let found = self.outcome("landlock").filter(|found| found.is_ok());
        let version = found.and_then(|found| found.detail.split([' ', ',']).nth(1)?.parse().ok());
        version.unwrap_or(0)
    }

    /// The rows that are lost on the way; or the failure, with what the container is made again without.
    fn steps(
        &self,
        plan: &Plan,
        level: Level,
    ) -> std::result::Result<Vec<String>, (Option<Feature>, Error)> {
        let mut lost: Vec<_> = plan.degradations.iter().map(|one| one.row.name()).collect();
        for step in plan.birth.oom_score_adj.iter().chain(&plan.steps) {
            let done = step.perform(level, |action| self.act(action));
            let done = done.map_err(|error| (step.again(&error), error))?;
            if let Some(one) = done {
                lost.push(one.row.name());
            }
        }
        lost.dedup();
        Ok(lost)
    }
}

/// The rootless specification with the host's / as its root: what a process sandbox may take the place of.
fn of_host() -> Loaded {
    let mut loaded = loaded("rootless");
    let root = serde_json::json!({"path": "/", "readonly": true});
    loaded
        .spec
        .set_root(Some(serde_json::from_value(root).unwrap()));
    // Everything that is bound from elsewhere would have to be where it is.
    loaded.spec.set_mounts(None);
    loaded.rootfs = "/".into();
    loaded
}

/// What comes of one kind of container at one level, in a line.
fn told(result: &Result<Vec<String>>) -> String {
    match result {
        Ok(lost) if lost.is_empty() => "runs, and nothing is lost".into(),
        Ok(lost) => format!("runs without: {}", lost.join(", ")),
        Err(error) => format!("refused: {error}"),
    }
}

/// The golden file of a platform: what comes of each container at each level, and the plans: the one of
/// level any whole, of the stricter ones the lines that differ.
fn golden(fixture: &Fixture) -> String {
    let json = doctor::json(&fixture.host).unwrap();
    let mut text = format!(
        "doctor: {}, {}\n",
        json["mode"].as_str().unwrap(),
        json["restriction"].as_str().unwrap()
    );
    for (kind, spec) in KINDS {
        let spec = loaded(spec);
        let machine = match Machine::new(&fixture.host, kind) {
            Ok(machine) => machine,
            Err(error) => {
                let _ = write!(
                    text,
                    "\n== {kind}: there is no user namespace to be in: {error}\n"
                );
                continue;
            }
        };
        let _ = write!(text, "\n== {kind}\n");
        let mut any = String::new();
        for level in [Level::Any, Level::Safe, Level::Never] {
            let (plan, result) = machine.run(&spec, level);
            let _ = writeln!(text, "level {level}: {}", told(&result));
            let Some(plan) = plan.map(|plan| plan::text(&plan)) else {
                continue;
            };
            if level == Level::Any {
                any = plan;
                continue;
            }
            for line in plan
                .lines()
                .filter(|line| !any.lines().any(|known| known == *line))
            {
                let _ = writeln!(text, "    {}", line.trim_start());
            }
        }
        let _ = write!(text, "plan at level any:\n{any}");
    }
    if fixture.host.euid != 0 {
        let machine = Machine::new(&fixture.host, "rootless").unwrap();
        text += "\n== rootless, with the host's / as its root\n";
        for level in [Level::Any, Level::Safe, Level::Never] {
            let (_, result) = machine.run(&of_host(), level);
            let _ = writeln!(text, "level {level}: {}", told(&result));
        }
    }
    text
}

/// The cell of a kind of container: the strictest level at which it runs, and what it does without.
fn cell(fixture: &Fixture, kind: &str, spec: &str) -> String {
    let Ok(machine) = Machine::new(&fixture.host, kind) else {
        return "no: no user namespace".into();
    };
    if kind == "rootful" && fixture.host.euid != 0 {
        return "needs root".into();
    }
    let spec = loaded(spec);
    for level in Level::ALL {
        if let (_, Ok(lost)) = machine.run(&spec, level) {
            let lost: Vec<_> = lost.iter().map(|row| format!("`{row}`")).collect();
            return match lost.is_empty() {
                true => "whole".into(),
                false => format!("{level}: {}", lost.join(", ")),
            };
        }
    }
    // The step that no level goes without.
    let (_, refused) = machine.run(&spec, Level::Any);
    let sentence = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    let short = sentence.split([';', ',']).next().unwrap_or_default();
    format!("no: {}", short.trim_start_matches("do "))
}

fn repair(json: &serde_json::Value) -> String {
    let first = &json["firstFailure"];
    let Some(remedy) = first.get("remedy").filter(|remedy| !remedy.is_null()) else {
        return match first.is_null() {
            true => "nothing to repair".into(),
            false => "not known".into(),
        };
    };
    let commands = remedy["commands"].as_array();
    match commands.and_then(|list| list.first()) {
        Some(command) => format!(
            "{}: `{}`",
            remedy["text"].as_str().unwrap(),
            command.as_str().unwrap()
        ),
        None => remedy["text"].as_str().unwrap().into(),
    }
}

fn table(fixtures: &[Fixture]) -> String {
    let mut text = String::new();
    let mut line = |cells: [String; 7]| {
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    };
    let head = [
        "platform",
        "doctor",
        "rootful",
        "rootless",
        "nested",
        "repair of the first loss",
        "origin",
    ];
    line(head.map(str::to_string));
    line(["---"; 7].map(str::to_string));
    for fixture in fixtures {
        let json = doctor::json(&fixture.host).unwrap();
        let word = |key: &str| json[key].as_str().unwrap().to_string();
        let doctor = match word("restriction").as_str() {
            "NONE" => word("mode"),
            restriction => format!("{}: {restriction}", word("mode")),
        };
        let platform = &fixture.platform;
        let [rootful, rootless, nested] = KINDS.map(|(kind, spec)| cell(fixture, kind, spec));
        line([
            format!("{} (`{}`)", platform.title, fixture.name),
            doctor,
            rootful,
            rootless,
            nested,
            repair(&json),
            format!("{}: {}", platform.origin, platform.source),
        ]);
    }
    text
}

#[test]
fn what_comes_of_each_platform_is_as_the_files_say() {
    let update = std::env::var_os("ISORUN_UPDATE_GOLDEN").is_some();
    let dir = tests().join("golden/platforms");
    std::fs::create_dir_all(&dir).unwrap();
    let mut wrong = Vec::new();
    let mut known = Vec::new();
    for fixture in fixtures() {
        let file = dir.join(format!("{}.txt", fixture.name));
        let got = golden(&fixture);
        if update {
            std::fs::write(&file, &got).unwrap();
        } else if std::fs::read_to_string(&file).ok().as_deref() != Some(&got) {
            wrong.push(format!("{}\n{got}", file.display()));
        }
        known.push(file);
    }
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        assert!(
            known.contains(&path),
            "{} is of no platform",
            path.display()
        );
    }
    assert!(
        wrong.is_empty(),
        "differs from its file:\n{}",
        wrong.join("\n")
    );
}

/// docs/platforms.md has a row for each fixture, and none without one.
#[test]
fn the_document_has_a_row_for_each_platform() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/platforms.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (now, after) = rest.split_once(END).unwrap();
    let wanted = table(&fixtures());
    if std::env::var_os("ISORUN_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
    } else {
        assert_eq!(now, wanted, "docs/platforms.md is not what the plans do");
    }
}

/// A fixture says how it came to be, and holds the verdict that doctor comes to from its facts and answers:
/// one that was written by hand cannot claim another.
#[test]
fn fixtures_say_what_doctor_would_say() {
    let mut rows = Vec::new();
    for Fixture {
        name,
        platform,
        host,
    } in fixtures()
    {
        let known = ["captured", "captured in its place", "by hand"];
        assert!(
            known.contains(&platform.origin.as_str()),
            "{name}: {}",
            platform.origin
        );
        assert!(
            !platform.title.is_empty() && !platform.source.is_empty(),
            "{name}"
        );
        assert!(
            !rows.contains(&platform.row),
            "{name}: row {} twice",
            platform.row
        );
        rows.push(platform.row);
        let probed = host
            .probed
            .as_ref()
            .unwrap_or_else(|| panic!("{name}: no probes"));
        assert!(
            probed.probes.len() > 40,
            "{name}: {} answers",
            probed.probes.len()
        );
        let json = doctor::json(&host).unwrap();
        assert_eq!(
            json["mode"],
            serde_json::to_value(probed.mode).unwrap(),
            "{name}"
        );
        let restrictions = serde_json::to_value(&probed.restrictions).unwrap();
        assert_eq!(json["restrictions"], restrictions, "{name}");
    }
}

/// What doctor says of the whole is what comes of containers: with FULL every kind runs at level never (but
/// for what needs root), with DISABLED none runs at level safe.
#[test]
fn the_mode_is_what_comes_of_containers() {
    for fixture in fixtures() {
        let name = &fixture.name;
        let mode = fixture.host.probed.as_ref().unwrap().mode;
        for (kind, spec) in KINDS {
            if kind == "rootful" && fixture.host.euid != 0 {
                continue;
            }
            let run = |level| {
                let machine = Machine::new(&fixture.host, kind)?;
                machine.run(&loaded(spec), level).1
            };
            let (never, safe) = (run(Level::Never), run(Level::Safe));
            match mode {
                isorun::host::Sandboxing::Full => {
                    assert_eq!(
                        never.as_deref().map_err(ToString::to_string),
                        Ok(&[][..]),
                        "{name} {kind}"
                    );
                }
                isorun::host::Sandboxing::Disabled => {
                    assert!(safe.is_err(), "{name} {kind}: {safe:?}");
                }
                isorun::host::Sandboxing::Degraded => {}
            }
            // A stricter level loses no more.
            if let Ok(lost) = never {
                assert_eq!(lost, Vec::<String>::new(), "{name} {kind}");
                assert!(safe.is_ok(), "{name} {kind}");
            }
        }
    }
}
