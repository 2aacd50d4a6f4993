//! Tests of the command line as a whole: what parses, what is refused in which words, the help.

use super::*;

fn args(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

fn parse(line: &str) -> std::result::Result<ArgMatches, clap::Error> {
    command().try_get_matches_from(args(line))
}

fn refusal(line: &str) -> String {
    let args = args(line);
    let early = global::Early::scan(&args);
    let command = early.command.as_deref();
    match super::parse(&args) {
        Err(Wrong::Word(error)) => usage::of_word(error, command).to_string(),
        Err(Wrong::Line(error)) => usage::sentence(&error, command).to_string(),
        Ok(_) => panic!("{line} must be refused"),
    }
}

#[test]
fn clap_finds_no_contradiction() {
    let mut whole = Command::new("isorun").args(global::arguments());
    for entry in COMMANDS {
        whole = whole.subcommand((entry.arguments)(Command::new(entry.name)));
    }
    whole.debug_assert();
}

#[test]
fn what_engines_write_is_taken() {
    // From captured/arguments.txt, without what later versions bring.
    for line in [
        "isorun --root /r --log /l --log-format json create --bundle /b --pid-file /p abc",
        "isorun --log-format=json --log=/l --root=/r start abc",
        "isorun --rootless true --criu criu state abc",
        "isorun --rootless=auto kill abc 15",
        "isorun kill --all abc KILL",
        "isorun kill abc KILL --all",
        "isorun delete --force abc",
        "isorun run -d -b /b --keep --no-subreaper --no-pivot --no-new-keyring abc",
        "isorun create --preserve-fds 3 abc",
        "isorun list -f json -q",
        "isorun --degrade never list --long",
        "isorun --degrade=any report abc --json",
        "isorun spec -b /b",
        "isorun plan /b --json",
        "isorun --version",
        "isorun -v",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn values_arrive() {
    let matches = parse("isorun --root /r run --bundle /b --preserve-fds 2 -d abc").unwrap();
    let global = Global::read(&matches).unwrap();
    assert_eq!(global.store.root(), std::path::Path::new("/r"));
    let (name, run) = matches.subcommand().unwrap();
    assert_eq!(name, "run");
    let request = create::request(&global, run).unwrap();
    assert_eq!((request.id.as_str(), request.preserve_fds), ("abc", 2));
    assert_eq!(request.bundle, std::path::Path::new("/b"));
    assert!(!request.no_new_keyring && request.pid_file.is_none());
}

#[test]
fn wrong_command_lines_are_told_in_one_sentence() {
    for (line, start) in [
        (
            "isorun start",
            "\"start\" requires exactly 1 argument(s): <container-id> is missing",
        ),
        (
            "isorun kill",
            "\"kill\" requires a minimum of 1 argument(s)",
        ),
        (
            "isorun kill a KILL b",
            "\"kill\" requires a maximum of 2 argument(s): \"b\"",
        ),
        ("isorun list x", "\"list\" requires exactly 0 argument(s)"),
        (
            "isorun run --foo x",
            "flag provided but not defined: -foo; see isorun run --help",
        ),
        ("isorun --foo list", "flag provided but not defined: -foo"),
        (
            "isorun state a b",
            "\"state\" requires exactly 1 argument(s): \"b\" is one too many",
        ),
        ("isorun bogus", "No help topic for 'bogus'"),
        (
            "isorun create --preserve-fds x a",
            "invalid value \"x\" for flag -preserve-fds: parse error",
        ),
        ("isorun create --bundle", "flag needs an argument: -bundle"),
        (
            "isorun run -d=x a",
            "invalid boolean value \"x\" for -d: parse error",
        ),
    ] {
        let sentence = refusal(line);
        assert!(sentence.starts_with(start), "{line}: {sentence}");
        assert!(
            !sentence.contains('\n') && sentence.contains("--help"),
            "{line}: {sentence}"
        );
    }
}

#[test]
fn systemd_as_the_manager() {
    let read = |line| Global::read(&parse(line).unwrap()).unwrap();
    assert!(read("isorun --systemd-cgroup list").systemd_cgroup);
    assert!(!read("isorun list").systemd_cgroup);
}

#[test]
fn the_help_tells_what_works_and_nothing_else() {
    let help = command().render_help().to_string();
    for entry in COMMANDS {
        assert_eq!(
            help.contains(&format!("\n  {} ", entry.name)),
            !entry.about.is_empty(),
            "{help}"
        );
    }
    for later in ["criu", "__probe"] {
        assert!(!help.contains(later), "{later}: {help}");
    }
    let create = parse("isorun create --help").unwrap_err().to_string();
    assert!(create.contains("--bundle"), "{create}");
}

#[test]
fn flags_in_gos_forms() {
    for line in [
        "isorun -root /r -log-format json run -bundle /b -d=true abc",
        "isorun --debug=true list -format json",
        "isorun delete --force=false abc",
        "isorun exec -t=false abc sh -c x",
        "isorun kill abc -9",
    ] {
        let args = args(line);
        if line.ends_with("-9") {
            assert!(super::parse(&args).is_err(), "{line}");
            continue;
        }
        assert!(super::parse(&args).is_ok(), "{line}");
    }
    let Ok(matches) = super::parse(&args("isorun -root /r run -bundle /b abc")) else {
        panic!("it is a good command line");
    };
    let global = Global::read(&matches).unwrap();
    assert_eq!(global.store.root(), std::path::Path::new("/r"));
    assert!(global.root_given);
}
