//! What a hostile image, or a hostile bundle, must not reach: one test for each class of advisory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{Bundle, Output, Running, run_command, runtime, wait_for};

/// A directory of the host that must stay as it is; gives its path.
fn victim(bundle: &Bundle) -> String {
    let dir = bundle.host("victim");
    fs::create_dir_all(&dir).unwrap();
    dir.to_str().unwrap().to_string()
}

#[track_caller]
fn untouched(bundle: &Bundle, out: &Output) {
    let entries: Vec<_> = fs::read_dir(bundle.host("victim"))
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(
        entries.is_empty(),
        "made on the host: {entries:?}, by {out:#?}"
    );
}

/// CVE-2021-30465, CVE-2024-45310 and their kin: a link in the image as, or on the way to, a target.
#[test]
fn mount_targets_through_links_stay_in_the_rootfs() {
    for (link, target, kind) in [
        ("data", "/data", "tmpfs"),
        ("data", "/data/sub", "tmpfs"),
        ("a", "/a/b/c", "dir"),
        ("a", "/a/new-file", "file"),
        ("a", "/a/b/new-file", "file"),
    ] {
        for absolute in [true, false] {
            let mut bundle = Bundle::sh("echo ran");
            let victim = victim(&bundle);
            let to = match absolute {
                true => victim.clone(),
                // More steps up than there are.
                false => format!("{}{}", "../".repeat(20), victim.trim_start_matches('/')),
            };
            symlink(to, bundle.rootfs(link)).unwrap();
            match kind {
                "tmpfs" => bundle.mount(target, "tmpfs", "tmpfs", &[]),
                "dir" => bundle.mount(target, "bind", "/usr", &["bind", "ro"]),
                _ => bundle.mount(target, "bind", "/etc/passwd", &["bind", "ro"]),
            };
            let out = bundle.run();
            untouched(&bundle, &out);
            assert!(out.code == 0 || out.code == 1, "{target}: {out:#?}");
            let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!host.contains(&victim), "mounted over the host's directory");
        }
    }
}

/// CVE-2023-27561, CVE-2023-28642: /proc or /sys of the image as a link.
#[test]
fn a_link_in_the_place_of_proc_sys_or_dev() {
    for name in ["proc", "sys", "dev"] {
        if name == "dev" && !runtime().isorun {
            continue; // runc 1.1 makes the links of /dev in the host's directory (CVE-2026-41579)
        }
        let bundle = Bundle::sh("cat /proc/self/mountinfo");
        let victim = victim(&bundle);
        fs::remove_dir(bundle.rootfs(name)).unwrap();
        symlink(&victim, bundle.rootfs(name)).unwrap();
        let out = bundle.run();
        untouched(&bundle, &out);
        if out.code == 0 {
            // Then it went to the link's target inside the rootfs.
            assert!(bundle.rootfs(&victim).is_dir(), "{name}: {out:#?}");
        }
    }
}

#[test]
fn proc_of_the_image_as_a_link_inside_the_image() {
    // The masks must not miss the real procfs.
    let bundle = Bundle::sh("wc -c < /proc/keys");
    fs::create_dir(bundle.rootfs("/fake")).unwrap();
    fs::remove_dir(bundle.rootfs("proc")).unwrap();
    symlink("/fake", bundle.rootfs("proc")).unwrap();
    let out = bundle.run();
    assert!(out.code == 1 || out.text() == "0", "{out:#?}");
}

/// CVE-2026-41579, CVE-2026-47766: entries of the image's /dev, where no tmpfs hides them.
#[test]
fn links_in_the_images_dev() {
    let mut bundle = Bundle::sh("echo ran");
    let victim = victim(&bundle);
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    for name in [
        "null", "zero", "fd", "ptmx", "pts", "shm", "console", "mine",
    ] {
        symlink(format!("{victim}/{name}"), bundle.rootfs("/dev").join(name)).unwrap();
    }
    bundle.set(
        "/linux/devices",
        json!([
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666},
            {"path": "/dev/pts/sub/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666}
        ]),
    );
    let out = bundle.run();
    untouched(&bundle, &out);
}

#[test]
fn device_path_that_climbs_out() {
    let mut bundle = Bundle::sh("echo ran");
    let victim = victim(&bundle);
    let path = format!("/dev/{}{victim}/node", "../".repeat(20));
    bundle.set(
        "/linux/devices",
        json!([{"path": path, "type": "c", "major": 1, "minor": 3, "fileMode": 0o666}]),
    );
    let out = bundle.run();
    untouched(&bundle, &out);
}

#[test]
fn mount_destination_that_climbs_out() {
    let mut bundle = Bundle::sh("echo ran");
    let victim = victim(&bundle);
    bundle.mount(
        &format!("/{}{victim}/sub", "../".repeat(20)),
        "tmpfs",
        "tmpfs",
        &[],
    );
    let out = bundle.run();
    untouched(&bundle, &out);
}

#[test]
fn cwd_that_climbs_out_is_made_inside() {
    let mut bundle = Bundle::new();
    let victim = victim(&bundle);
    bundle.args(&["true"]).set(
        "/process/cwd",
        json!(format!("/{}{victim}/sub", "../".repeat(20))),
    );
    let out = bundle.run();
    untouched(&bundle, &out);
    let bundle_two = &mut Bundle::new();
    let victim = self::victim(bundle_two);
    symlink(&victim, bundle_two.rootfs("/way")).unwrap();
    bundle_two
        .args(&["true"])
        .set("/process/cwd", json!("/way/sub"));
    let out = bundle_two.run();
    untouched(bundle_two, &out);
}

/// CVE-2024-21626: a working directory by a descriptor that the runtime left open.
#[test]
fn cwd_by_a_leaked_descriptor() {
    let mut bundle = Bundle::sh(
        "pwd; ls / > /dev/null; cat ../../../../../../../etc/hostname 2>/dev/null; true",
    );
    for fd in 3..24 {
        bundle.set("/process/cwd", json!(format!("/proc/self/fd/{fd}")));
        let out = bundle.run();
        assert_eq!(out.code, 1, "fd {fd}: {out:#?}");
        symlink(
            format!("/proc/self/fd/{fd}"),
            bundle.rootfs(&format!("/way{fd}")),
        )
        .unwrap();
        bundle.set("/process/cwd", json!(format!("/way{fd}/")));
        let out = bundle.run();
        assert_eq!(out.code, 1, "link to fd {fd}: {out:#?}");
    }
    bundle.assert_gone();
}

/// The same where the filter forbids to look: the working directory was seen to be inside before the
/// filter is loaded.
#[test]
fn cwd_under_a_filter_that_forbids_getcwd() {
    isorun_only!("runc calls getcwd under the filter, and refuses");
    for no_new_privileges in [false, true] {
        let mut bundle = Bundle::sh("cat here");
        let forbidden = json!({"names": ["getcwd", "chdir", "fchdir"], "action": "SCMP_ACT_ERRNO"});
        bundle
            .set("/process/noNewPrivileges", json!(no_new_privileges))
            .set("/process/cwd", json!("/tmp/deep"))
            .set(
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                       "syscalls": [forbidden]}),
            );
        std::fs::create_dir_all(bundle.rootfs("/tmp/deep")).unwrap();
        std::fs::write(bundle.rootfs("/tmp/deep/here"), "inside").unwrap();
        assert_eq!(
            bundle.run().ok().text(),
            "inside",
            "noNewPrivileges {no_new_privileges}"
        );
        for fd in 3..16 {
            bundle.set("/process/cwd", json!(format!("/proc/self/fd/{fd}")));
            assert_eq!(bundle.run().code, 1, "fd {fd}");
        }
        bundle
            .set("/process/cwd", json!("/"))
            .args(&["sleep", "60"]);
        bundle.run_detached().ok();
        let out = bundle.call(&["exec", "--cwd", "/tmp/deep", &bundle.id, "cat", "here"]);
        assert_eq!(out.ok().text(), "inside");
        bundle.delete_force().ok();
    }
}

#[test]
fn no_descriptor_is_leaked() {
    let mut bundle = Bundle::new();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    bundle.args(&["/probe", "fds"]).write();
    let dir = bundle.bundle_dir();
    for detach in [false, true] {
        // The caller's own descriptors are not for the container either.
        let mut args = vec!["run", "--bundle", dir.to_str().unwrap(), &bundle.id];
        if detach {
            args.insert(1, "--detach");
        }
        let inner = bundle.command(&args);
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "exec 5</etc/passwd 7</ 9>/dev/null; exec \"$@\"",
            "sh",
        ]);
        command
            .arg(inner.get_program())
            .args(inner.get_args())
            .env("ISORUN_TEST_ID", &bundle.id);
        command.stdin(std::process::Stdio::null());
        let running = Running::start(command, &bundle.dir.join("io"));
        let text = match detach {
            false => running.finish().ok().stdout,
            true => {
                wait_for("the probe's list", || running.stdout().contains("fd 2"));
                bundle.wait_status("stopped");
                let text = running.stdout();
                running.finish().ok();
                bundle.delete().ok();
                text
            }
        };
        let fds: Vec<&str> = text
            .lines()
            .map(|line| line.split(' ').nth(1).unwrap())
            .collect();
        assert_eq!(fds, ["0", "1", "2"], "detach {detach}: {text}");
    }
}

#[test]
fn no_descriptor_is_leaked_into_hooks() {
    let mut bundle = Bundle::new();
    let file = bundle.host("fds");
    let text = format!("ls /proc/self/fd > {}", file.display());
    bundle.set(
        "/hooks/createRuntime",
        json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/usr/bin:/bin"]}]),
    );
    bundle.run().ok();
    let seen = fs::read_to_string(file).unwrap();
    // 3 is the directory that ls reads.
    assert_eq!(
        seen.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"]
    );
}

/// A copy of the runtime that may come to harm.
fn expendable(bundle: &Bundle) -> std::path::PathBuf {
    let copy = bundle.host("runtime");
    fs::copy(&runtime().path, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

fn with(bundle: &Bundle, binary: &Path, args: &[&str]) -> Command {
    let usual = bundle.command(args);
    let mut command = Command::new(binary);
    command
        .args(usual.get_args())
        .env("ISORUN_TEST_ID", &bundle.id)
        .current_dir(&bundle.dir);
    command
}

/// CVE-2019-5736: the runtime's own file, by /proc/PID/exe of the init before it executes.
#[test]
fn the_runtimes_file_cannot_be_written_through_its_init() {
    let bundle = Bundle::sh("sleep 100");
    bundle.write();
    let copy = expendable(&bundle);
    let before = fs::read(&copy).unwrap();
    let io = bundle.dir.join("io");
    run_command(
        with(
            &bundle,
            &copy,
            &[
                "create",
                "--bundle",
                bundle.bundle_dir().to_str().unwrap(),
                &bundle.id,
            ],
        ),
        &io,
    )
    .ok();
    let exe = format!("/proc/{}/exe", bundle.pid());
    // While it runs, the kernel says ETXTBSY of itself; the descriptor outlives that.
    let held = fs::File::open(&exe).unwrap();
    let by_fd = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    assert!(
        fs::OpenOptions::new().write(true).open(&exe).is_err(),
        "{exe} opens for writing"
    );
    bundle.start().ok();
    wait_for("the program in the place of the init", || {
        fs::read(format!("/proc/{}/cmdline", bundle.pid()))
            .is_ok_and(|name| name.starts_with(b"sh") || name.starts_with(b"sleep"))
    });
    for truncate in [false, true] {
        let opened = fs::OpenOptions::new()
            .write(true)
            .truncate(truncate)
            .open(&by_fd);
        if let Ok(mut file) = opened {
            let wrote = std::io::Write::write(&mut file, b"#!/bin/false");
            assert!(
                wrote.is_err(),
                "the init's file can be written: truncate {truncate}"
            );
        }
    }
    assert!(
        fs::read(&copy).unwrap() == before,
        "the runtime's file has changed"
    );
}

#[test]
fn the_runtime_as_the_containers_program_cannot_write_itself() {
    for entry in ["/proc/self/exe", "/script"] {
        let mut bundle = Bundle::new();
        fs::write(bundle.rootfs("/script"), "#!/proc/self/exe\n").unwrap();
        fs::set_permissions(bundle.rootfs("/script"), fs::Permissions::from_mode(0o755)).unwrap();
        let all = json!(["CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]);
        bundle.set(
            "/process/capabilities",
            json!({"bounding": all, "permitted": all, "effective": all}),
        );
        bundle.args(&[entry, "--version"]).write();
        let copy = expendable(&bundle);
        let before = fs::read(&copy).unwrap();
        let io = bundle.dir.join("io");
        let dir = bundle.bundle_dir();
        let out = run_command(
            with(
                &bundle,
                &copy,
                &["run", "--bundle", dir.to_str().unwrap(), &bundle.id],
            ),
            &io,
        );
        assert!(out.code < 128, "{entry}: {out:#?}");
        assert!(
            fs::read(&copy).unwrap() == before,
            "the runtime's file has changed"
        );
    }
}

/// The same from inside: a second process of the container that waits for the runtime to come by.
#[test]
fn proc_of_the_container_shows_no_file_of_the_host_to_write() {
    let mut bundle = Bundle::new();
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    let all = json!(["CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]);
    bundle.set(
        "/process/capabilities",
        json!({"bounding": all, "permitted": all, "effective": all}),
    );
    bundle.args(&["/probe", "write", "/proc/self/exe", "/proc/1/exe"]);
    let out = bundle.run().ok();
    // ETXTBSY of the probe itself: nothing else is there.
    assert_eq!(out.text(), "/proc/self/exe 26\n/proc/1/exe 26");
}

/// CVE-2025-31133: a /dev/null of the image that is a link makes a mask of something else.
#[test]
fn masks_do_not_take_the_images_dev_null() {
    isorun_only!("runc 1.1 does not end on such an image");
    let mut bundle = Bundle::sh("cat /etc/secret; cat /tmp/target");
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    fs::write(bundle.rootfs("/etc/secret"), "secret\n").unwrap();
    fs::write(bundle.rootfs("/tmp/target"), "target\n").unwrap();
    symlink("/tmp/target", bundle.rootfs("/dev/null")).unwrap();
    bundle.set("/linux/maskedPaths", json!(["/etc/secret"]));
    let out = bundle.run();
    assert!(out.code == 1 || !out.stdout.contains("secret"), "{out:#?}");
    if out.code == 0 {
        assert_eq!(
            out.text(),
            "target",
            "the mask is empty, not another file: {out:#?}"
        );
    }
}

/// A masked or read-only path that is a link hides what the link means inside, nothing of the host.
#[test]
fn masked_and_readonly_paths_that_are_links() {
    let mut bundle = Bundle::sh(
        "cat /real/file; echo x > /ro-real/file 2>/dev/null || echo refused; ls /loop 2>/dev/null; echo end",
    );
    for dir in ["/real", "/ro-real"] {
        fs::create_dir(bundle.rootfs(dir)).unwrap();
        fs::write(bundle.rootfs(dir).join("file"), "text\n").unwrap();
    }
    symlink("/real/file", bundle.rootfs("/link")).unwrap();
    symlink("ro-real", bundle.rootfs("/ro-link")).unwrap();
    symlink("loop", bundle.rootfs("/loop")).unwrap();
    let victim = victim(&bundle);
    symlink(&victim, bundle.rootfs("/away")).unwrap();
    bundle.set(
        "/linux/maskedPaths",
        json!(["/link", "/away", "/away/below"]),
    );
    bundle.set("/linux/readonlyPaths", json!(["/ro-link", "/away"]));
    let out = bundle.run().ok();
    assert_eq!(out.text(), "refused\nend");
    fs::write(Path::new(&victim).join("still"), "writable").unwrap();
}

#[test]
fn files_of_the_state_are_for_root_alone() {
    let bundle = Bundle::sh("sleep 100");
    bundle.create().ok();
    let dir = bundle.state_root().join(&bundle.id);
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
    if !runtime().isorun {
        skip!("runc's are 0711 and 0622 (the fifo), which user namespaces made it do");
    }
    assert_eq!(mode(&dir), 0o700);
    for entry in fs::read_dir(&dir).unwrap().flatten() {
        assert_eq!(mode(&entry.path()) & 0o077, 0, "{}", entry.path().display());
    }
}

/// A rootfs that is the host's own root, or above the bundle, must not be turned against the host.
#[test]
fn the_rootfs_of_the_host_stays_the_hosts() {
    let mut bundle = Bundle::new();
    bundle
        .args(&["/bin/true"])
        .set("/root", json!({"path": "/", "readonly": true}));
    let before = fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .count();
    let out = bundle.run();
    assert!(out.code == 0 || out.code == 1, "{out:#?}");
    let probe = bundle.host("still-writable");
    fs::write(&probe, "x").unwrap();
    let after = fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .count();
    assert!(after <= before + 8, "mounts were left: {before} to {after}");
}

/// CVE-2016-9962, CVE-2024-21626: what is inside finds no way out through the waiting init.
#[test]
fn the_waiting_init_has_no_directory_of_the_host_open() {
    let bundle = Bundle::sh("sleep 100");
    bundle.create().ok();
    let pid = bundle.pid();
    let mut open = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let link = fs::read_link(entry.path()).unwrap_or_default();
        if link.is_dir() && link.is_absolute() {
            open.push((entry.file_name(), link));
        }
    }
    assert!(
        open.is_empty(),
        "directories open in the waiting init: {open:?}"
    );
}
