//! The plan for people: a line for each thing that will be done.

use std::fmt::Write;

use super::Plan;
use super::step::{Action, Mount, MountKind, Step};
use crate::spec::names::capability_names;

/// The plan as text, in the order in which it would be executed.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    let _ = write_plan(&mut out, plan);
    out
}

/// The same without the arguments of the program, which may be secrets: for logs, which engines keep.
pub fn text_for_log(plan: &Plan) -> String {
    let mut plan = plan.clone();
    let args = &mut plan.process.args;
    if args.len() > 1 {
        let told = format!("({} arguments)", args.len() - 1);
        args.truncate(1);
        args.push(told);
    }
    text(&plan)
}

fn write_plan(out: &mut String, plan: &Plan) -> std::fmt::Result {
    writeln!(out, "container  {}", plan.id)?;
    writeln!(out, "bundle     {}", plan.bundle.display())?;
    writeln!(out, "rootfs     {}", plan.rootfs.display())?;
    writeln!(out, "program    {}", plan.process.args.join(" "))?;
    writeln!(out, "degrade    {}", plan.level)?;
    for lost in &plan.degradations {
        writeln!(out, "  {lost}")?;
    }
    writeln!(out, "\nparent")?;
    if let Some(scope) = &plan.cgroup.scope {
        writeln!(out, "  systemd    {} in {}", scope.unit, scope.slice)?;
        for (name, value) in &scope.properties {
            writeln!(out, "  property   {name} = {value}")?;
        }
    }
    for dir in &plan.cgroup.dirs {
        writeln!(out, "  cgroup     {}", dir.path.display())?;
        for write in &dir.writes {
            writeln!(
                out,
                "  limit      {} = {}  ({})",
                write.file, write.value, write.field
            )?;
        }
        if dir.devices.is_some() {
            writeln!(out, "  limit      device rules  (linux.resources.devices)")?;
        }
    }
    for ignored in &plan.cgroup.ignored {
        writeln!(out, "  ignored    {}: {}", ignored.field, ignored.reason)?;
    }
    if let Some(rdt) = &plan.rdt {
        writeln!(out, "  resctrl    group /{}", rdt.group)?;
        for line in &rdt.schemata {
            writeln!(out, "  resctrl    schemata {line}")?;
        }
        if let Some(id) = &rdt.monitoring {
            writeln!(out, "  resctrl    monitoring group {id}")?;
        }
    }
    let by = if plan.birth.between {
        "a process in between"
    } else {
        "the child"
    };
    for channel in plan.channels.iter().flat_map(|all| &all.join) {
        let access = if channel.readonly { "ro" } else { "rw" };
        let by = match &channel.rule {
            Some(rule) => format!("rule {rule:?}"),
            None => "its maker's".to_string(),
        };
        let size = match channel.size {
            Some(size) => format!(", {size}"),
            None => String::new(),
        };
        writeln!(
            out,
            "  channel    join {} {access}{size}{}, by {by}",
            channel.key,
            if channel.cuda { ", GPU memory" } else { "" }
        )?;
    }
    for join in &plan.birth.joins {
        let (kind, path) = (&join.kind, join.path.display());
        writeln!(out, "  join       {kind} namespace {path}, by {by}")?;
    }
    writeln!(
        out,
        "  clone3     new namespaces: {}",
        list(&plan.birth.namespaces)
    )?;
    if plan.birth.deny_setgroups {
        writeln!(
            out,
            "  setgroups  denied, so that the gid map may be written"
        )?;
    }
    for (name, map) in [
        ("uid map", &plan.birth.uid_map),
        ("gid map", &plan.birth.gid_map),
    ] {
        for line in map {
            writeln!(
                out,
                "  {name:10} {} {} {}",
                line.inside, line.outside, line.count
            )?;
        }
    }
    for (stage, hooks) in &plan.host_hooks {
        for hook in hooks {
            writeln!(out, "  hook       {stage}: {}", hook.path().display())?;
        }
    }
    writeln!(out, "\nchild")?;
    for (number, step) in plan.steps.iter().enumerate() {
        writeln!(out, "  {number:3} {}", describe(step, plan))?;
        for way in &step.otherwise {
            let names: Vec<String> = way.on.iter().map(|code| errno_name(*code)).collect();
            writeln!(out, "        on {}: {}", names.join(", "), way.fallback)?;
        }
        for way in &step.refused {
            let names: Vec<String> = way.on.iter().map(|code| errno_name(*code)).collect();
            let why = way.row.row().refusal(plan.level).unwrap_or_default();
            writeln!(out, "        on {}: an error: {why}", names.join(", "))?;
        }
    }
    Ok(())
}

fn errno_name(code: i32) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(code))
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_string()
    } else {
        names.join(", ")
    }
}

fn describe(step: &Step, plan: &Plan) -> String {
    match &step.action {
        Action::NewSession => "new session".into(),
        Action::PidRange => "process ids that no other member of the channels has".into(),
        Action::AllCpus
        | Action::Scheduler(_)
        | Action::IoPriority { .. }
        | Action::MemoryPolicy(_)
        | Action::Personality { .. } => super::schedule::describe(&step.action),
        Action::SessionKeyring { name, .. } => format!("session keyring {name}"),
        Action::ExecLabel { kind, label } => format!("label at exec: {kind:?} {label}"),
        Action::FileLabel { path, label } => format!("label of {path}: {label}"),
        Action::CgroupNamespace => "cgroup namespace, rooted at the container's cgroup".into(),
        Action::TimeNamespace { offsets } => format!("time namespace: {}", offsets.join(", ")),
        Action::IpcNamespace => "IPC namespace".into(),
        Action::NetworkNamespace => "network namespace".into(),
        Action::LoopbackUp => "interface lo up".into(),
        Action::NetDevices { devices } => {
            let names: Vec<String> = devices
                .iter()
                .map(|device| match device.name == device.inside {
                    true => device.name.clone(),
                    false => format!("{} as {}", device.name, device.inside),
                })
                .collect();
            format!("network devices of the host: {}", names.join(", "))
        }
        Action::OomScoreAdj { value } => format!("oom_score_adj {value}"),
        Action::Hostname { name } => format!("hostname {name}"),
        Action::Domainname { name } => format!("domainname {name}"),
        Action::RootPropagation { flags } => {
            let which = match flags & libc::MS_REC {
                0 => "/",
                _ => "all mounts",
            };
            format!("mount propagation of {which}: {}", propagation(*flags))
        }
        Action::OpenRoot { path } => format!("root file system {}", path.display()),
        Action::Mount(mount) => describe_mount(mount),
        Action::MountCgroup { mount, .. } => {
            format!("mount cgroup on {}{}", mount.target, flags(mount))
        }
        Action::BindSys { mount, .. } | Action::BindProc { mount } => describe_mount(mount),
        Action::ShmDirectory { mount } => format!("directory {}{}", mount.target, flags(mount)),
        Action::Device(device) => {
            let (major, minor) = (device.major, device.minor);
            format!(
                "device {} {major}:{minor} mode {:o}",
                device.path, device.mode
            )
        }
        Action::BindDevice { device, .. } => format!("device {} from the host", device.path),
        Action::DevLinks { links } => {
            let names: Vec<&str> = links.iter().map(|(path, _)| path.as_str()).collect();
            format!("links {}", names.join(" "))
        }
        Action::HostHooks => "wait for the hooks of the host".into(),
        Action::Hooks { stage, hooks } => format!("hooks {stage}: {}", hooks.len()),
        Action::Terminal { size: None } => "terminal, also on /dev/console".into(),
        Action::Terminal {
            size: Some((rows, columns)),
        } => format!("terminal of {columns}x{rows}, also on /dev/console"),
        Action::ReadonlyMounts => "read-only what is to be, now that it is filled".into(),
        Action::MoveRoot => "the root file system is moved over the host's".into(),
        Action::ChangeRoot => "chroot: the mounts are the caller's".into(),
        Action::PivotRoot => "pivot_root, and the host's mounts go".into(),
        Action::FinalPropagation { flags } => format!("propagation of /: {}", propagation(*flags)),
        Action::Sysctl { key, value } => format!("sysctl {key} = {value}"),
        Action::CreateCwd { path } => format!("make {path} if it is missing"),
        Action::ReadonlyRoot => "/ read-only".into(),
        Action::NodevRoot => "/ without devices".into(),
        Action::ReadonlyPath { path } => format!("read-only {path}"),
        Action::MaskPath { path, .. } => format!("hide {path}"),
        Action::Umask { mask } => format!("umask {mask:03o}"),
        Action::FindProgram => "find the program, and HOME".into(),
        Action::Rlimit {
            name, soft, hard, ..
        }
        | Action::ClampedRlimit {
            name, soft, hard, ..
        } => {
            format!("{name} {soft}:{hard}")
        }
        Action::NoNewPrivs => "no_new_privs".into(),
        Action::Landlock(landlock) => super::confine::describe(landlock),
        Action::Supplement => match &plan.supplement {
            Some(filter) => format!("supplementary filter: no {}", filter.refuses.join(", ")),
            None => "supplementary filter".into(),
        },
        Action::Seccomp | Action::SeccompWithoutFlags => match &plan.seccomp {
            Some(program) => format!(
                "seccomp filter, {} instructions",
                program.instructions.len()
            ),
            None => "seccomp filter".into(),
        },
        Action::Capabilities { asked } => {
            format!("look for capabilities {}", list(&capability_names(*asked)))
        }
        Action::Identity(identity) => format!(
            "user {}:{}, groups {:?}, capabilities {}",
            identity.uid,
            identity.gid,
            identity.groups.as_deref().unwrap_or_default(),
            list(&capability_names(
                identity.caps.effective | identity.caps.permitted
            )),
        ),
        Action::Chdir { path } => format!("working directory {path}"),
        Action::CloseFrom { first } => format!("close descriptors from {first} on, at exec"),
        Action::AwaitStart => "tell the parent, wait for start".into(),
        Action::Exec if plan.has_init() => {
            format!("stay as init, exec {}", plan.process.args.join(" "))
        }
        Action::Exec => format!("exec {}", plan.process.args.join(" ")),
    }
}

fn describe_mount(mount: &Mount) -> String {
    let what = match &mount.what {
        MountKind::Fresh { fstype, data, .. } => {
            let data: Vec<String> = data
                .iter()
                .map(|(key, value)| match value {
                    Some(value) => format!("{key}={value}"),
                    None => key.clone(),
                })
                .collect();
            if data.is_empty() {
                fstype.clone()
            } else {
                format!("{fstype} ({})", data.join(","))
            }
        }
        MountKind::Remount { bind, .. } => {
            format!(
                "again, {}",
                if *bind {
                    "its flags"
                } else {
                    "the file system"
                }
            )
        }
        MountKind::Bind { source, recursive } => {
            format!(
                "{} {}",
                if *recursive { "rbind" } else { "bind" },
                source.display()
            )
        }
    };
    format!("mount {what} on {}{}", mount.target, flags(mount))
}

fn flags(mount: &Mount) -> String {
    use crate::sys::mount::attr;
    const NAMES: [(u64, &str); 8] = [
        (attr::RDONLY, "ro"),
        (attr::NOSUID, "nosuid"),
        (attr::NODEV, "nodev"),
        (attr::NOEXEC, "noexec"),
        (attr::NOATIME, "noatime"),
        (attr::STRICTATIME, "strictatime"),
        (attr::NODIRATIME, "nodiratime"),
        (attr::NOSYMFOLLOW, "nosymfollow"),
    ];
    let own = NAMES
        .iter()
        .filter(|(bit, _)| mount.set & bit != 0)
        .map(|(_, n)| (*n).to_string());
    let deep = NAMES
        .iter()
        .filter(|(bit, _)| mount.recursive_set & bit != 0);
    let deep = deep.map(|(_, name)| format!("r{name}"));
    let spread = mount.propagation.iter().map(|flags| propagation(*flags));
    let copyup = mount.copyup.then(|| "tmpcopyup".to_string());
    let idmap = mount.idmap.as_ref().map(|idmap| {
        let name = if idmap.recursive { "ridmap" } else { "idmap" };
        let lines = |map: &[super::IdMap]| {
            let line = |m: &super::IdMap| format!("{}:{}:{}", m.inside, m.outside, m.count);
            map.iter().map(line).collect::<Vec<_>>().join("+")
        };
        match idmap.uid_map.is_empty() {
            true => format!("{name} as the container"),
            false => format!("{name} {}/{}", lines(&idmap.uid_map), lines(&idmap.gid_map)),
        }
    });
    let all: Vec<String> = own
        .chain(deep)
        .chain(spread)
        .chain(copyup)
        .chain(idmap)
        .collect();
    if all.is_empty() {
        String::new()
    } else {
        format!(" [{}]", all.join(","))
    }
}

fn propagation(flags: u64) -> String {
    let recursive = if flags & libc::MS_REC != 0 { "r" } else { "" };
    let kind = match flags & !libc::MS_REC {
        libc::MS_SHARED => "shared",
        libc::MS_SLAVE => "slave",
        libc::MS_PRIVATE => "private",
        libc::MS_UNBINDABLE => "unbindable",
        _ => "unchanged",
    };
    format!("{recursive}{kind}")
}
