//! Every engine's change, on directories of their own: install, look, take back, compare.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{Engine, Request, apply, changes, difference};

/// A directory in place of /etc; gone at the end.
struct Etc(PathBuf);

impl Etc {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("isotest-install-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.join(path)).unwrap()
    }

    /// Every path below, with the text of files.
    fn all(&self) -> Vec<(PathBuf, String)> {
        fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    out.push((path.clone(), String::new()));
                    walk(&path, out);
                } else {
                    out.push((path.clone(), fs::read_to_string(&path).unwrap()));
                }
            }
        }
        let mut out = Vec::new();
        walk(&self.0, &mut out);
        out.sort();
        out
    }

    fn request(&self, engine: Engine) -> Request {
        Request {
            engine,
            etc: self.0.clone(),
            may_make_etc: false,
            binary: "/opt/is\"o/isorun".to_string(),
            default: false,
            uninstall: false,
        }
    }

    fn run(&self, request: &Request) -> Result<usize, String> {
        let found = changes(request).map_err(|error| error.to_string())?;
        apply(request, &found.changes).map_err(|error| error.to_string())?;
        Ok(found.changes.len())
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn uninstall(request: &Request) -> Request {
    Request {
        uninstall: true,
        ..request.clone()
    }
}

const CONTAINERD: &str = "version = 2 # two\nroot = \"/data\"\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = 'pause'\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"overlayfs\"";

/// Files that are there before, for each engine: none, and somebody's own.
fn situations() -> Vec<(Engine, Vec<(&'static str, &'static str)>)> {
    let mut all: Vec<(Engine, Vec<(&str, &str)>)> = Engine::ALL
        .iter()
        .map(|engine| (*engine, Vec::new()))
        .collect();
    all.push((
        Engine::Podman,
        vec![("containers/containers.conf.d/10-own.conf", "[engine]\n")],
    ));
    all.push((Engine::Crio, vec![("crio/crio.conf", "[crio]\n")]));
    for text in [
        "{}",
        "{\n  \"z\": [1,  2],\n  \"runtimes\": {\"kata\": {\"path\":\"/k\"}},\n  \"a\": 1.50\n}",
        "{\"default-runtime\":\"runc\",\"x\":{}}\n",
        "\n",
    ] {
        all.push((Engine::Docker, vec![("docker/daemon.json", text)]));
    }
    for text in [
        CONTAINERD,
        "version = 3\n",
        "# only a remark",
        "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\", \"/nope/x\", \"../x\"]\n",
    ] {
        all.push((Engine::Containerd, vec![("containerd/config.toml", text)]));
    }
    all
}

#[test]
fn taken_back_exactly() {
    for (number, (engine, files)) in situations().into_iter().enumerate() {
        for default in [false, true] {
            if default && engine == Engine::Containerd {
                continue;
            }
            let etc = Etc::new(&format!("back-{number}-{default}"));
            for (path, text) in &files {
                etc.write(path, text);
            }
            let before = etc.all();
            let request = Request {
                default,
                ..etc.request(engine)
            };
            assert!(etc.run(&request).unwrap() > 0, "{engine:?} {files:?}");
            let installed = etc.all();
            assert_ne!(before, installed);
            assert_eq!(
                etc.run(&request),
                Ok(0),
                "a second time nothing changes: {engine:?} {files:?}"
            );
            // Another path and back: still one block, one key, one file.
            let moved = Request {
                binary: "/other".to_string(),
                ..request.clone()
            };
            assert!(etc.run(&moved).unwrap() > 0);
            assert!(etc.run(&request).unwrap() > 0);
            assert_eq!(etc.all(), installed);
            etc.run(&uninstall(&request)).unwrap();
            assert_eq!(etc.all(), before, "{engine:?} {files:?}");
            assert_eq!(etc.run(&uninstall(&request)), Ok(0));
        }
    }
}

#[test]
fn a_new_users_directory_is_made_when_something_is_written() {
    let etc = Etc::new("user");
    let mut request = etc.request(Engine::Podman);
    request.etc = etc.0.join("home/.config");
    let error = changes(&request).unwrap_err().to_string();
    assert!(error.contains("home/.config: ENOENT"), "{error}");
    request.may_make_etc = true;
    for asked in [&request, &uninstall(&request)] {
        changes(asked).unwrap();
        assert_eq!(etc.all(), [], "nothing is written by looking");
    }
    assert_eq!(etc.run(&uninstall(&request)), Ok(0));
    assert_eq!(etc.all(), []);
    assert_eq!(etc.run(&request), Ok(1));
    assert!(
        etc.read("home/.config/containers/containers.conf.d/90-isorun.conf")
            .contains("isorun")
    );
}

#[test]
fn what_the_engines_read() {
    let etc = Etc::new("read");
    for engine in Engine::ALL {
        let request = Request {
            default: engine != Engine::Containerd,
            ..etc.request(engine)
        };
        etc.run(&request).unwrap();
    }
    let table = |path: &str| -> toml::Table { etc.read(path).parse().unwrap() };
    let podman = table("containers/containers.conf.d/90-isorun.conf");
    assert_eq!(podman["engine"]["runtime"].as_str(), Some("isorun"));
    let path = &podman["engine"]["runtimes"]["isorun"];
    assert_eq!(path[0].as_str(), Some("/opt/is\"o/isorun"));
    let crio = table("crio/crio.conf.d/90-isorun.conf");
    let handler = &crio["crio"]["runtime"]["runtimes"]["isorun"];
    assert_eq!(handler["runtime_path"].as_str(), Some("/opt/is\"o/isorun"));
    assert_eq!(
        crio["crio"]["runtime"]["default_runtime"].as_str(),
        Some("isorun")
    );
    let containerd = table("containerd/config.toml");
    assert_eq!(containerd["version"].as_integer(), Some(2));
    let cri = &containerd["plugins"]["io.containerd.grpc.v1.cri"];
    let handler = &cri["containerd"]["runtimes"]["isorun"];
    assert_eq!(
        handler["options"]["BinaryName"].as_str(),
        Some("/opt/is\"o/isorun")
    );
    assert_eq!(handler["pod_annotations"][0].as_str(), Some("io.isorun.*"));
    // Written runtimes replace the built-in ones, so the default one is written, too.
    let runc = &cri["containerd"]["runtimes"]["runc"];
    assert_eq!(runc["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
    let docker: serde_json::Value = serde_json::from_str(&etc.read("docker/daemon.json")).unwrap();
    assert_eq!(docker["runtimes"]["isorun"]["path"], "/opt/is\"o/isorun");
    assert_eq!(docker["default-runtime"], "isorun");
}

#[test]
fn other_keys_of_docker_keep_place_and_text() {
    let etc = Etc::new("keys");
    let text =
        "{\n  \"z\": [1,  2],\n  \"runtimes\": {\"kata\": {\"path\":\"/k\"}},\n  \"a\": 1.50\n}\n";
    etc.write("docker/daemon.json", text);
    fs::set_permissions(
        etc.0.join("docker/daemon.json"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let request = etc.request(Engine::Docker);
    etc.run(&request).unwrap();
    let wanted = "{\n  \"z\": [1,  2],\n  \"runtimes\": {\n    \"kata\": {\"path\":\"/k\"},\n    \"isorun\": { \"path\": \"/opt/is\\\"o/isorun\" }\n  },\n  \"a\": 1.50\n}\n";
    assert_eq!(etc.read("docker/daemon.json"), wanted);
    assert_eq!(etc.read("docker/daemon.json.before-isorun"), text);
    // A proxy's password may be in it: neither the new text nor the copy of the old is for others.
    for name in ["docker/daemon.json", "docker/daemon.json.before-isorun"] {
        let mode = fs::metadata(etc.0.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    // Changed since by somebody: only what is ours goes.
    etc.write("docker/daemon.json", &wanted.replace("1.50", "2"));
    etc.run(&uninstall(&request)).unwrap();
    let left = "{\n  \"z\": [1,  2],\n  \"runtimes\": {\n    \"kata\": {\"path\":\"/k\"}\n  },\n  \"a\": 2\n}\n";
    assert_eq!(etc.read("docker/daemon.json"), left);
}

#[test]
fn the_section_that_counts_for_containerd() {
    let etc = Etc::new("import");
    etc.write(
        "containerd/config.toml",
        "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n",
    );
    let own = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nvidia]\nruntime_type = \"io.containerd.runc.v2\"\n";
    etc.write("containerd/conf.d/99-own.toml", own);
    etc.write("containerd/conf.d/10-other.toml", "version = 2\n");
    let before = etc.all();
    let request = etc.request(Engine::Containerd);
    etc.run(&request).unwrap();
    assert!(
        etc.read("containerd/conf.d/99-own.toml")
            .contains("runtimes.isorun")
    );
    assert!(!etc.read("containerd/config.toml").contains("isorun"));
    let text = etc.read("containerd/conf.d/99-own.toml");
    assert!(
        !text.contains("runtimes.runc"),
        "runtimes of their own stay as they are: {text}"
    );
    etc.run(&uninstall(&request)).unwrap();
    assert_eq!(etc.all(), before);
}

/// One situation: what is there, and a part of the refusal.
fn refused(engine: Engine, path: &str, text: &str, wanted: &str) {
    let etc = Etc::new(&format!(
        "refused-{}",
        wanted.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
    ));
    etc.write(path, text);
    let error = etc.run(&etc.request(engine)).unwrap_err();
    assert!(error.contains(wanted), "{error}");
    assert!(error.contains(path), "names the file: {error}");
    assert_eq!(etc.read(path), text);
}

#[test]
fn left_as_it_is() {
    refused(
        Engine::Docker,
        "docker/daemon.json",
        "{\"a\": 1,}",
        "cannot be parsed",
    );
    refused(
        Engine::Docker,
        "docker/daemon.json",
        "[]",
        "expected an object",
    );
    refused(
        Engine::Docker,
        "docker/daemon.json",
        "{\"a\":1,\"a\":2}",
        "there twice",
    );
    let own = "{\"runtimes\":{\"isorun\":{\"path\":\"/mine\"}}}";
    refused(Engine::Docker, "docker/daemon.json", own, "did not write");
    let drop_in = "containers/containers.conf.d/90-isorun.conf";
    refused(Engine::Podman, drop_in, "[engine]\n", "did not write it");
    let toml = "containerd/config.toml";
    refused(Engine::Containerd, toml, "version = 2\nx = \n", "line 2");
    refused(Engine::Containerd, toml, "root = \"/x\"\n", "version is 1");
    refused(Engine::Containerd, toml, "version = 9\n", "neither 2 nor 3");
    let inline = "version = 2\nplugins = { \"io.containerd.grpc.v1.cri\" = { a = 1 } }\n";
    refused(Engine::Containerd, toml, inline, "written inline");
    let own =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.isorun]\na = 1\n";
    refused(Engine::Containerd, toml, own, "a runtime isorun that");
}

#[test]
fn no_link_is_followed() {
    let etc = Etc::new("links");
    let outside = Etc::new("outside");
    outside.write("daemon.json", "{}");
    // The directory, the file, and the backup.
    symlink(&outside.0, etc.0.join("docker")).unwrap();
    let request = etc.request(Engine::Docker);
    let error = etc.run(&request).unwrap_err();
    assert!(error.contains("docker is a symbolic link"), "{error}");
    fs::remove_file(etc.0.join("docker")).unwrap();
    for name in ["daemon.json", "daemon.json.before-isorun"] {
        fs::create_dir_all(etc.0.join("docker")).unwrap();
        symlink(
            outside.0.join("daemon.json"),
            etc.0.join("docker").join(name),
        )
        .unwrap();
        let error = etc.run(&request).unwrap_err();
        assert!(error.contains("is a symbolic link"), "{error}");
        fs::remove_dir_all(etc.0.join("docker")).unwrap();
    }
    symlink(&outside.0, etc.0.join("containers")).unwrap();
    assert!(etc.run(&etc.request(Engine::Podman)).is_err());
    assert_eq!(outside.all().len(), 1);
    assert_eq!(outside.read("daemon.json"), "{}");
}

#[test]
fn differences_as_diff_shows_them() {
    assert_eq!(difference("f", Some("a\n"), Some("a\n")), "");
    assert_eq!(
        difference("f", None, Some("a\n")),
        "--- /dev/null\n+++ f\n@@ -0,0 +1,1 @@\n+a\n"
    );
    assert_eq!(
        difference("f", Some("1\n2\n3\n4\n5\n6"), Some("1\n2\n3\n4\nx\n6")),
        "--- f\n+++ f\n@@ -2,5 +2,5 @@\n 2\n 3\n 4\n-5\n+x\n 6\n\\ No newline at end of file\n"
    );
    assert_eq!(
        difference("f", Some("a\n"), None),
        "--- f\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-a\n"
    );
}
