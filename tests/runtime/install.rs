//! `isorun install` as it is called: on a directory in place of /etc.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Output, run_command, runtime};

struct Etc(PathBuf);

impl Etc {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("isotest-etc-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("docker")).unwrap();
        Self(path)
    }

    fn install(&self, args: &[&str]) -> Output {
        let mut command = Command::new(&runtime().path);
        command.arg("install").args(args);
        command.arg("--etc").arg(&self.0);
        run_command(command, &self.0)
    }

    fn daemon(&self) -> String {
        fs::read_to_string(self.0.join("docker/daemon.json")).unwrap()
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn shown_made_and_taken_back() {
    isorun_only!("install is a command of isorun's own");
    let etc = Etc::new("docker");
    let own = "{\n  \"debug\": true\n}\n";
    fs::write(etc.0.join("docker/daemon.json"), own).unwrap();

    let shown = etc.install(&["docker", "--dry-run"]);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    assert!(
        shown.stdout.contains("+  \"runtimes\": {"),
        "{}",
        shown.stdout
    );
    assert!(
        shown.stdout.contains("-  \"debug\": true\n"),
        "{}",
        shown.stdout
    );
    assert_eq!(etc.daemon(), own, "a dry run changes nothing");
    assert!(!etc.0.join("docker/daemon.json.before-isorun").exists());

    let made = etc.install(&["docker"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert!(
        made.stdout.contains("docker run --runtime isorun"),
        "{}",
        made.stdout
    );
    let value: serde_json::Value = serde_json::from_str(&etc.daemon()).unwrap();
    let path = value["runtimes"]["isorun"]["path"].as_str().unwrap();
    assert_eq!(
        PathBuf::from(path),
        fs::canonicalize(&runtime().path).unwrap()
    );
    assert_eq!(value["debug"], true);

    let back = etc.install(&["docker", "--uninstall"]);
    assert_eq!(back.code, 0, "{}", back.stderr);
    assert_eq!(etc.daemon(), own);
    let again = etc.install(&["docker", "--uninstall"]);
    assert_eq!(again.stdout, "nothing to take back\n");
}

#[test]
fn refused_in_one_sentence() {
    isorun_only!("install is a command of isorun's own");
    let etc = Etc::new("refused");
    fs::write(etc.0.join("docker/daemon.json"), "{\"debug\": }").unwrap();
    let cases: [(&[&str], &str); 5] = [
        (
            &["docker"],
            "daemon.json is left as it is: it cannot be parsed",
        ),
        (&["docker", "--dry-run"], "it cannot be parsed"),
        (
            &["containerd", "--default"],
            "--default is not for containerd",
        ),
        (&["podman", "--binary", "isorun"], "not an absolute path"),
        (&["lxc"], "lxc"),
    ];
    for (args, wanted) in cases {
        let output = etc.install(args);
        assert_eq!(output.code, 1, "{args:?}");
        assert!(
            output.stderr.contains(wanted),
            "{args:?}: {}",
            output.stderr
        );
        assert_eq!(etc.daemon(), "{\"debug\": }");
    }
    // Without --etc, the engine itself has to be there.
    let mut command = Command::new(&runtime().path);
    command.args(["install", "crio", "--dry-run"]);
    let there = ["/usr/bin/crio", "/usr/local/bin/crio", "/usr/sbin/crio"];
    if there.iter().any(|path| PathBuf::from(path).exists()) {
        skip!("CRI-O is installed here");
    }
    let output = run_command(command, &etc.0);
    assert_eq!(output.code, 1);
    assert!(
        output.stderr.contains("crio is not installed"),
        "{}",
        output.stderr
    );
}
