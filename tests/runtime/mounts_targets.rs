//! Where mounts go: links, files and nothing at the target, mounts in mounts, sources in the container,
//! and images that change while they are mounted into.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::harness::{Bundle, chown_tree, mount_at, parse_mountinfo, runtime};

/// A directory of the host with a file in it.
fn source(bundle: &Bundle) -> String {
    let dir = bundle.host("dir");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("file"), "of the host\n").unwrap();
    dir.to_str().unwrap().to_string()
}

/// Fails unless the sentence names the entry and the errno (isorun's part of the agreement).
#[track_caller]
fn names(stderr: &str, parts: &[&str]) {
    if runtime().isorun {
        for part in parts {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
        assert_eq!(stderr.trim().lines().count(), 1, "{stderr}");
    }
}

#[test]
fn a_link_to_a_directory() {
    for to in ["/real", "real", "../../real", "/./x/../real"] {
        let mut bundle = Bundle::sh("cat /real/file; ls -d /real");
        fs::create_dir(bundle.rootfs("/real")).unwrap();
        fs::create_dir(bundle.rootfs("/x")).unwrap();
        symlink(to, bundle.rootfs("/link")).unwrap();
        let dir = source(&bundle);
        bundle.mount("/link", "bind", &dir, &["bind"]);
        assert_eq!(bundle.run().ok().text(), "of the host\n/real", "{to}");
    }
}

#[test]
fn a_link_on_the_way() {
    let mut bundle = Bundle::sh("cat /real/deep/er/file");
    symlink("/real", bundle.rootfs("/link")).unwrap();
    fs::create_dir(bundle.rootfs("/real")).unwrap();
    let dir = source(&bundle);
    bundle.mount("/link/deep/er", "bind", &dir, &["bind"]);
    assert_eq!(bundle.run().ok().text(), "of the host");
    assert!(bundle.rootfs("/real/deep/er").is_dir());
}

#[test]
fn a_dangling_link_is_followed_inside() {
    for (to, made) in [
        ("/new/dir", "/new/dir"),
        ("new", "/new"),
        ("../../../out", "/out"),
    ] {
        let mut bundle = Bundle::sh(&format!("cat {made}/file"));
        symlink(to, bundle.rootfs("/link")).unwrap();
        let dir = source(&bundle);
        bundle.mount("/link", "bind", &dir, &["bind"]);
        assert_eq!(bundle.run().ok().text(), "of the host", "{to}");
        assert!(bundle.rootfs(made).is_dir(), "{to}");
        assert!(!std::path::Path::new("/out").exists() && !std::path::Path::new("/new").exists());
    }
}

#[test]
fn a_file_on_a_link_to_a_file() {
    let mut bundle = Bundle::sh("cat /etc/real /link /etc/new");
    fs::write(bundle.rootfs("/etc/real"), "of the image\n").unwrap();
    symlink("etc/real", bundle.rootfs("/link")).unwrap();
    symlink("/etc/new", bundle.rootfs("/dangling")).unwrap();
    let file = format!("{}/file", source(&bundle));
    bundle.mount("/link", "bind", &file, &["bind"]);
    bundle.mount("/dangling", "bind", &file, &["bind"]);
    assert_eq!(
        bundle.run().ok().text(),
        "of the host\nof the host\nof the host"
    );
    assert_eq!(
        fs::read_to_string(bundle.rootfs("/etc/real")).unwrap(),
        "of the image\n"
    );
}

#[test]
fn a_loop_of_links() {
    for (at, target) in [("loop", "/loop"), ("loop", "/loop/below"), ("a", "/a")] {
        let mut bundle = Bundle::sh("echo ran");
        symlink(at, bundle.rootfs(at)).unwrap();
        bundle.mount(target, "tmpfs", "tmpfs", &[]);
        let out = bundle.run().code(1);
        names(&out.stderr, &["mounts[6]", target, "ELOOP"]);
        bundle.assert_gone();
    }
    let mut bundle = Bundle::sh("echo ran");
    let link = bundle.host("link");
    symlink(&link, &link).unwrap();
    let link = link.to_str().unwrap().to_string();
    bundle.mount("/mnt", "bind", &link, &["bind"]);
    let out = bundle.run().code(1);
    names(&out.stderr, &["mounts[6]", &link, "ELOOP"]);
    bundle.assert_gone();
}

#[test]
fn a_directory_on_a_file_and_the_other_way_round() {
    for (file_first, kind) in [(true, "bind"), (false, "bind"), (true, "tmpfs")] {
        let mut bundle = Bundle::sh("echo ran");
        let dir = source(&bundle);
        let source = match file_first {
            true => {
                fs::write(bundle.rootfs("/mnt"), "").unwrap();
                dir
            }
            false => {
                fs::create_dir(bundle.rootfs("/mnt")).unwrap();
                format!("{dir}/file")
            }
        };
        bundle.mount(
            "/mnt",
            kind,
            &source,
            if kind == "bind" { &["bind"] } else { &[] },
        );
        let out = bundle.run().code(1);
        names(&out.stderr, &["mounts[6]", "/mnt", "ENOTDIR"]);
        bundle.assert_gone();
    }
    let mut bundle = Bundle::sh("echo ran");
    fs::write(bundle.rootfs("/file"), "").unwrap();
    bundle.mount("/file/below", "tmpfs", "tmpfs", &[]);
    let out = bundle.run().code(1);
    names(&out.stderr, &["mounts[6]", "/file/below", "ENOTDIR"]);
    bundle.assert_gone();
}

#[test]
fn mounts_in_mounts() {
    since_runc!(1, 2, "a mode that is not overruled by the directory below");
    let mut bundle =
        Bundle::sh("cat /a/b/c/file /a/b/c/sub/top; stat -c %a /a/b /a/b/c/sub; ls /a");
    let dir = source(&bundle);
    fs::create_dir(bundle.host("dir/sub")).unwrap();
    bundle.mount("/a", "tmpfs", "tmpfs", &["mode=755"]);
    bundle.mount("/a/b", "tmpfs", "tmpfs", &["mode=750"]);
    bundle.mount("/a/b/c", "bind", &dir, &["bind"]);
    bundle.mount("/a/b/c/sub", "tmpfs", "tmpfs", &["mode=700"]);
    bundle.mount(
        "/a/b/c/sub/top",
        "bind",
        &format!("{dir}/file"),
        &["bind", "ro"],
    );
    assert_eq!(
        bundle.run().ok().text(),
        "of the host\nof the host\n750\n700\nb"
    );
    assert!(
        !bundle.host("dir/sub/top").exists(),
        "made in the tmpfs, not below it"
    );
}

#[test]
fn a_later_mount_of_the_parent_hides_the_earlier() {
    let mut bundle = Bundle::sh("ls /a; cat /proc/self/mountinfo");
    let dir = source(&bundle);
    bundle.mount("/a/b", "bind", &dir, &["bind"]);
    bundle.mount("/a", "tmpfs", "tmpfs", &[]);
    let out = bundle.run().ok();
    let mounts = parse_mountinfo(&out.stdout);
    assert_eq!(mount_at(&mounts, "/a").kind, "tmpfs");
}

#[test]
fn sources_in_the_root_file_system() {
    since_runc!(1, 2, "sources that are opened when their mount comes");
    for user in [false, true] {
        let mut bundle = Bundle::sh("cat /one/file /two; ls /three");
        fs::create_dir_all(bundle.rootfs("/data/sub")).unwrap();
        fs::write(bundle.rootfs("/data/file"), "of the image\n").unwrap();
        symlink("/etc", bundle.rootfs("/data/link")).unwrap();
        let at = |path: &str| bundle.rootfs(path).to_str().unwrap().to_string();
        let (data, file, filled) = (at("/data"), at("/data/file"), at("/fresh"));
        fs::create_dir(&filled).unwrap();
        bundle.mount("/one", "bind", &data, &["rbind", "ro"]);
        bundle.mount("/two", "bind", &file, &["bind"]);
        // The root file system is a mount of its own by then: what was mounted in it is seen.
        bundle.mount("/fresh", "tmpfs", "tmpfs", &[]);
        bundle.mount("/fresh/entry", "bind", &data, &["bind"]);
        bundle.mount("/three", "bind", &filled, &["rbind"]);
        if user {
            let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
            bundle.namespace("user").namespace("cgroup");
            bundle
                .set("/linux/uidMappings", map.clone())
                .set("/linux/gidMappings", map);
            chown_tree(&bundle.rootfs("/"), 200_000);
        }
        assert_eq!(
            bundle.run().ok().text(),
            "of the image\nof the image\nentry",
            "user namespace: {user}"
        );
    }
}

#[test]
fn a_source_that_is_a_link_is_followed_on_the_host() {
    let mut bundle = Bundle::sh("cat /mnt/file");
    let dir = source(&bundle);
    symlink(dir, bundle.host("link")).unwrap();
    let link = bundle.host("link").to_str().unwrap().to_string();
    bundle.mount("/mnt", "bind", &link, &["bind"]);
    assert_eq!(bundle.run().ok().text(), "of the host");
}

#[test]
fn missing_parents_are_made_with_mode_755() {
    let mut bundle = Bundle::sh("stat -c %a /a /a/b /a/b/c /d /d/file");
    let dir = source(&bundle);
    bundle.mount("/a/b/c", "tmpfs", "tmpfs", &["mode=711"]);
    fs::set_permissions(bundle.host("dir/file"), fs::Permissions::from_mode(0o640)).unwrap();
    bundle.mount("/d/file", "bind", &format!("{dir}/file"), &["bind"]);
    assert_eq!(bundle.run().ok().text(), "755\n755\n711\n755\n640");
}

#[test]
fn copied_up_with_owners_links_and_modes() {
    let mut bundle =
        Bundle::sh("cd /t; stat -c '%n %a %u:%g' . dir dir/file file; readlink link; cat dir/file");
    for dir in ["/t", "/t/dir"] {
        fs::create_dir(bundle.rootfs(dir)).unwrap();
    }
    for file in ["/t/file", "/t/dir/file"] {
        fs::write(bundle.rootfs(file), "of the image\n").unwrap();
        std::os::unix::fs::chown(bundle.rootfs(file), Some(7), Some(8)).unwrap();
    }
    let mode = |path: &str, mode| {
        fs::set_permissions(bundle.rootfs(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("/t", 0o1751);
    mode("/t/dir", 0o700);
    mode("/t/file", 0o4755);
    mode("/t/dir/file", 0o604);
    symlink("/etc/passwd", bundle.rootfs("/t/link")).unwrap();
    bundle.mount("/t", "tmpfs", "tmpfs", &["tmpcopyup", "size=1m"]);
    let out = bundle.run().ok();
    let (stat, rest) = out.text().split_at(out.text().find("/etc").unwrap());
    assert_eq!(
        stat,
        ". 1751 0:0\ndir 700 0:0\ndir/file 604 7:8\nfile 4755 7:8\n"
    );
    assert_eq!(rest, "/etc/passwd\nof the image");
}

#[test]
fn a_tmpfs_that_is_too_small_for_its_copy_is_refused() {
    let mut bundle = Bundle::sh("echo ran");
    fs::create_dir(bundle.rootfs("/t")).unwrap();
    fs::write(bundle.rootfs("/t/file"), vec![1; 100 << 10]).unwrap();
    bundle.mount("/t", "tmpfs", "tmpfs", &["tmpcopyup", "size=16k"]);
    let out = bundle.run().code(1);
    names(&out.stderr, &["mounts[6]", "/t", "ENOSPC"]);
    bundle.assert_gone();
}

/// CVE-2021-30465, CVE-2024-45310: a directory of the image that is exchanged for a link to the host
/// while the runtime makes and mounts the target. Nothing may be made, and nothing mounted, on the host.
#[test]
fn an_image_that_exchanges_a_directory_for_a_link_meanwhile() {
    // Debian's 1.1.5 really makes directories on the host here, once in a while.
    since_runc!(1, 2, "the end of CVE-2024-45310");
    let mut bundle = Bundle::sh("true");
    let victim = bundle.host("victim");
    fs::create_dir(&victim).unwrap();
    fs::create_dir(bundle.rootfs("/swap")).unwrap();
    symlink(&victim, bundle.rootfs("/swap.link")).unwrap();
    let dir = source(&bundle);
    bundle.mount("/swap/a/b", "tmpfs", "tmpfs", &[]);
    bundle.mount("/swap/file", "bind", &format!("{dir}/file"), &["bind"]);
    bundle.mount("/swap/c", "bind", &dir, &["bind"]);
    let done = Arc::new(AtomicBool::new(false));
    let (one, other) = (bundle.rootfs("/swap"), bundle.rootfs("/swap.link"));
    let exchange = {
        let done = Arc::clone(&done);
        std::thread::spawn(move || {
            let here = nix::fcntl::AT_FDCWD;
            let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
            let mut times = 0u32;
            while !done.load(Ordering::Relaxed) {
                nix::fcntl::renameat2(here, &one, here, &other, flags).unwrap();
                times += 1;
            }
            times
        })
    };
    // It works or it fails, by chance; never on the host.
    let codes: Vec<i32> = (0..20).map(|_| bundle.run().code).collect();
    done.store(true, Ordering::Relaxed);
    assert!(exchange.join().unwrap() > 100);
    assert!(codes.iter().all(|code| matches!(code, 0 | 1)), "{codes:?}");
    let made: Vec<_> = fs::read_dir(&victim).unwrap().flatten().collect();
    assert!(made.is_empty(), "made on the host: {made:?}");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(victim.to_str().unwrap()));
}
