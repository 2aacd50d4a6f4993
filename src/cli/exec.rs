//! `isorun exec`: a further process in a container that runs.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use oci_spec::runtime::{Capabilities, Capability, Process};

use super::{Entry, Global};
use crate::cgroup::SubCgroups;
use crate::engine::{self, ExecProcess, ExecRequest};
use crate::error::{Error, Kind, Result};
use crate::exit::Exit;
use crate::log;
use crate::spec::capabilities;

pub const ENTRY: Entry = Entry {
    name: "exec",
    about: "Execute a further process in a container",
    arguments: |command| {
        command.args(flags()).arg(
            // Everything after the id is the command, flags of its own included.
            Arg::new("id-and-command")
                .value_names(["container-id", "command"])
                .required(true)
                .num_args(1..)
                .trailing_var_arg(true)
                .allow_hyphen_values(true)
                .help("The container, and what to execute in it; without --process"),
        )
    },
    run,
};

/// The status of a failure of isorun itself: engines tell it from the program's own by that.
const FAILED: u8 = 255;

fn flags() -> Vec<Arg> {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .action(ArgAction::SetTrue)
            .help(help)
    };
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let list = |name: &'static str, value: &'static str, help: &'static str| {
        text(name, value, help).action(ArgAction::Append)
    };
    let path = |name: &'static str, help: &'static str| {
        text(name, "FILE", help).value_parser(value_parser!(PathBuf))
    };
    vec![
        path(
            "process",
            "Execute the process that this JSON file describes",
        )
        .short('p'),
        flag("detach", "Return when the program has started").short('d'),
        text("cwd", "DIR", "The directory to start in"),
        list("env", "NAME=VALUE", "Set a variable of the environment").short('e'),
        text("user", "UID[:GID]", "The user and group, by number").short('u'),
        list("additional-gids", "GID", "A further group, by number").short('g'),
        list("cap", "CAP", "Add a capability").short('c'),
        flag("no-new-privs", "The program can gain no privileges"),
        text("apparmor", "PROFILE", "The AppArmor profile"),
        text("process-label", "LABEL", "The SELinux label"),
        path("pid-file", "Write the process id to this file"),
        text(
            "preserve-fds",
            "N",
            "Pass this many descriptors more to the program, from 3 on",
        )
        .value_parser(value_parser!(u32))
        .default_value("0"),
        list(
            "cgroup",
            "[CONTROLLER:]PATH",
            "Run it in this cgroup below the container's",
        ),
        flag(
            "ignore-paused",
            "Also in a paused container; it starts when that is resumed",
        ),
        flag("tty", "Give it a terminal").short('t'),
        path(
            "console-socket",
            "Send the terminal's master to this Unix socket",
        ),
        path(
            "pidfd-socket",
            "Send a pidfd of the process to this Unix socket",
        ),
        // An older runc had it, and engines may still pass it; it never was a subreaper.
        flag("no-subreaper", "").hide(true),
    ]
}

fn run(global: &Global, matches: &ArgMatches) -> Result<Exit> {
    if let Some(flag) = words(matches).next().filter(|word| word.starts_with('-')) {
        let name = flag.trim_start_matches('-');
        let sentence = format!("flag provided but not defined: -{name}");
        return Err(Error::new(Kind::Usage, sentence).remedy("see isorun exec --help"));
    }
    // As with runc: what is no number at all is a wrong command line, and any other number a failure.
    let gids = strings(matches, "additional-gids");
    if let Some(gid) = gids.iter().find(|gid| gid.parse::<i64>().is_err()) {
        let sentence = format!("invalid value {gid:?} for flag -additional-gids: parse error");
        return Err(Error::new(Kind::Usage, sentence).remedy("see isorun exec --help"));
    }
    let request = request(global, matches).or_else(|wrong| {
        // First that the container cannot be had, as runc: tools look for these words.
        if let Some(id) = words(matches).next() {
            engine::reachable(&global.store, id, matches.get_flag("ignore-paused"))?;
        }
        Err(wrong)
    });
    match request.and_then(|request| engine::exec(&request)) {
        Ok(status) => Ok(Exit::of_container(status)),
        Err(error) => {
            log::error(&error.context("exec failed").to_string());
            Ok(Exit::Container(FAILED))
        }
    }
}

/// The container's id, and the command.
fn words(matches: &ArgMatches) -> impl Iterator<Item = &String> {
    let words = matches.get_many::<String>("id-and-command");
    words.into_iter().flatten()
}

fn request(global: &Global, matches: &ArgMatches) -> Result<ExecRequest> {
    let mut words = words(matches);
    let id = words
        .next()
        .ok_or_else(|| Error::new(Kind::Usage, "the container ID is missing"))?
        .clone();
    crate::state::check_id(&id)?;
    let absolute = |name| match matches.get_one::<PathBuf>(name) {
        Some(path) => std::path::absolute(path)
            .map(Some)
            .map_err(|error| Error::io("resolve", path.display().to_string(), &error)),
        None => Ok(None),
    };
    let process = match matches.get_one::<PathBuf>("process") {
        Some(path) => {
            let (process, warning) = crate::spec::load_process(path)?;
            warning.iter().for_each(|sentence| log::warning(sentence));
            ExecProcess::Own(Box::new(process))
        }
        None => {
            let changes = Changes::read(matches, words.cloned().collect())?;
            ExecProcess::Changed(Box::new(move |process| changes.apply(process)))
        }
    };
    Ok(ExecRequest {
        degrade: global.degrade.clone(),
        id,
        store: global.store.clone(),
        process,
        detach: matches.get_flag("detach"),
        ignore_paused: matches.get_flag("ignore-paused"),
        pid_file: absolute("pid-file")?,
        preserve_fds: matches.get_one("preserve-fds").copied().unwrap_or(0),
        console_socket: matches.get_one::<PathBuf>("console-socket").cloned(),
        pidfd_socket: matches.get_one::<PathBuf>("pidfd-socket").cloned(),
        cgroups: SubCgroups::parse(&strings(matches, "cgroup"))?,
    })
}

fn strings(matches: &ArgMatches, name: &str) -> Vec<String> {
    let values = matches.get_many::<String>(name);
    values.into_iter().flatten().cloned().collect()
}

/// What the flags change in the container's own process.
#[derive(Debug, Default)]
struct Changes {
    args: Vec<String>,
    cwd: Option<String>,
    env: Vec<String>,
    user: Option<(u32, Option<u32>)>,
    groups: Vec<u32>,
    caps: Vec<Capability>,
    /// Names in `--cap` that are no capabilities.
    unknown: Vec<String>,
    no_new_privs: bool,
    apparmor: Option<String>,
    label: Option<String>,
    tty: bool,
}

impl Changes {
    fn read(matches: &ArgMatches, args: Vec<String>) -> Result<Self> {
        if args.is_empty() {
            return Err(Error::new(Kind::Usage, "exec args cannot be empty")
                .remedy("say what to execute, or give a file with --process"));
        }
        let text = |name| {
            let value = matches.get_one::<String>(name);
            value.filter(|value| !value.is_empty()).cloned()
        };
        let groups = strings(matches, "additional-gids");
        let lists = strings(matches, "cap");
        let names = lists.iter().flat_map(|list| list.split(','));
        let (caps, unknown) = parse_caps(names.map(String::from).collect());
        Ok(Self {
            args,
            cwd: text("cwd"),
            env: strings(matches, "env"),
            user: text("user").map(|user| parse_user(&user)).transpose()?,
            groups: groups
                .iter()
                .flat_map(|list| list.split(','))
                .map(|gid| parse_id("--additional-gids", gid))
                .collect::<Result<_>>()?,
            caps,
            unknown,
            no_new_privs: matches.get_flag("no-new-privs"),
            apparmor: text("apparmor"),
            label: text("process-label"),
            tty: matches.get_flag("tty"),
        })
    }

    fn apply(&self, process: &mut Process) {
        process.set_args(Some(self.args.clone()));
        if let Some(cwd) = &self.cwd {
            process.set_cwd(cwd.into());
        }
        if let Some(profile) = &self.apparmor {
            process.set_apparmor_profile(Some(profile.clone()));
        }
        if let Some(label) = &self.label {
            process.set_selinux_label(Some(label.clone()));
        }
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(self.env.iter().cloned());
        process.set_env(Some(env));
        // The container's own process may have a terminal; a further one has what is asked for.
        process.set_terminal(Some(self.tty));
        if self.no_new_privs {
            process.set_no_new_privileges(Some(true));
        }
        let mut user = process.user().clone();
        if let Some((uid, gid)) = self.user {
            user.set_uid(uid);
            if let Some(gid) = gid {
                user.set_gid(gid);
            }
        }
        if !self.groups.is_empty() {
            let mut groups = user.additional_gids().clone().unwrap_or_default();
            groups.extend(&self.groups);
            user.set_additional_gids(Some(groups));
        }
        process.set_user(user);
        // As with config.json's: told when the container is there to have it.
        if let Some(sentence) = capabilities::warning(self.unknown.clone()) {
            log::warning(&format!("--cap: {sentence}"));
        }
        self.add_caps(process);
    }

    /// As runc: to the bounding, effective and permitted sets, and to the ambient one where the
    /// process has inheritable ones, without which there can be no ambient.
    fn add_caps(&self, process: &mut Process) {
        if self.caps.is_empty() {
            return;
        }
        let mut caps = process.capabilities().clone().unwrap_or_default();
        let with = |set: &Option<Capabilities>| {
            let mut set = set.clone().unwrap_or_default();
            set.extend(self.caps.iter().copied());
            Some(set)
        };
        caps.set_bounding(with(caps.bounding()));
        caps.set_effective(with(caps.effective()));
        caps.set_permitted(with(caps.permitted()));
        if caps.inheritable().is_some() {
            caps.set_ambient(with(caps.ambient()));
        }
        process.set_capabilities(Some(caps));
    }
}

/// `uid` or `uid:gid`. Nothing but digits is a number here: what wraps around or is cut off would be
/// another user's, root's for one (CVE-2026-30892).
fn parse_user(text: &str) -> Result<(u32, Option<u32>)> {
    match text.split_once(':') {
        Some((uid, gid)) => Ok((parse_id("bad uid", uid)?, Some(parse_id("bad gid", gid)?))),
        None => Ok((parse_id("bad uid", text)?, None)),
    }
}

/// The kernel's "no change", which is no user's number.
const NOBODY: u32 = u32::MAX;

fn parse_id(what: &str, text: &str) -> Result<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let id = text.parse::<u32>().ok();
    id.filter(|id| digits && *id != NOBODY).ok_or_else(|| {
        let sentence = format!("{what}: {text:?} is not a number from 0 to {}", NOBODY - 1);
        Error::new(Kind::Usage, sentence).remedy("names are not looked up")
    })
}

/// The capabilities of these names; and the names that are none's.
fn parse_caps(names: Vec<String>) -> (Vec<Capability>, Vec<String>) {
    let mut caps = Vec::new();
    let mut unknown = Vec::new();
    for name in names {
        match capabilities::by_name(&name) {
            Some(capability) => caps.push(capability),
            None => unknown.push(name),
        }
    }
    (caps, unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_and_nothing_else() {
        assert_eq!(parse_user("0").unwrap(), (0, None));
        assert_eq!(parse_user("1000:1001").unwrap(), (1000, Some(1001)));
        assert_eq!(parse_user("4294967294").unwrap().0, 4_294_967_294);
        for bad in [
            "",
            ":",
            "1:",
            ":1",
            "-1",
            "+1",
            "4294967295",
            "4294967296",
            "18446744073709551616",
            "0x10",
            "1 ",
            " 1",
            "root",
            "1:2:3",
            "1:-1",
            "1:4294967295",
            "\u{661}",
        ] {
            let error = parse_user(bad).unwrap_err().to_string();
            assert!(error.starts_with("bad "), "{bad:?}: {error}");
        }
    }

    #[test]
    fn flags_change_the_containers_process() {
        let mut process: Process = serde_json::from_value(serde_json::json!({
            "terminal": true, "user": {"uid": 1, "gid": 2, "additionalGids": [3]}, "args": ["a"],
            "cwd": "/", "env": ["A=1"], "capabilities": {"bounding": ["CAP_KILL"]}}))
        .unwrap();
        let changes = Changes {
            args: vec!["b".into(), "-c".into()],
            env: vec!["B=2".into()],
            user: Some((7, None)),
            groups: vec![9],
            caps: vec![Capability::NetRaw],
            ..Changes::default()
        };
        changes.apply(&mut process);
        assert_eq!(process.terminal(), Some(false));
        assert_eq!(process.args().as_deref().unwrap(), ["b", "-c"]);
        assert_eq!(process.env().as_deref().unwrap(), ["A=1", "B=2"]);
        let user = process.user();
        assert_eq!((user.uid(), user.gid()), (7, 2));
        assert_eq!(user.additional_gids().as_deref().unwrap(), [3, 9]);
        let caps = process.capabilities().as_ref().unwrap();
        assert_eq!(caps.bounding().as_ref().unwrap().len(), 2);
        assert_eq!(caps.permitted().as_ref().unwrap().len(), 1);
        assert!(caps.ambient().is_none());
    }

    #[test]
    fn names_of_capabilities_are_the_specifications() {
        let names = ["CAP_KILL", "NET_RAW", "CAP_NONE", "cap_kill", ""].map(String::from);
        let (caps, unknown) = parse_caps(names.into());
        assert_eq!(caps, [Capability::Kill]);
        assert_eq!(unknown, ["NET_RAW", "CAP_NONE", "cap_kill", ""]);
    }
}
