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
    let error = command().try_get_matches_from(&args).unwrap_err();
    usage::answer(&error, early.command.as_deref())
        .unwrap_err()
        .to_string()
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
        ("isorun start", "\"start\" requires <container-id>"),
        (
            "isorun run --foo x",
            "\"run\" flag provided but not defined: --foo",
        ),
        (
            "isorun --foo list",
            "\"list\" flag provided but not defined: --foo",
        ),
        (
            "isorun state a b",
            "\"state\" takes no further argument: \"b\"",
        ),
        ("isorun bogus", "there is no command \"bogus\""),
        (
            "isorun create --preserve-fds x a",
            "\"create\" invalid value 'x'",
        ),
        (
            "isorun create --bundle",
            "\"create\" a value is required for '--bundle <DIR>'",
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
