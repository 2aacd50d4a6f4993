//! Quick containers, and several commands on one container at the same time.

use std::thread;

use crate::harness::{Bundle, Output};

/// A program that ends before its parent looks must never leave the parent waiting.
#[test]
fn two_hundred_quick_runs() {
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut bundle = Bundle::new();
                bundle.args(&["true"]).write();
                for _ in 0..100 {
                    bundle.run().ok();
                }
                bundle.assert_gone();
            });
        }
    });
}

#[test]
fn quick_detached_runs() {
    let bundle = Bundle::sh("exit 0");
    for _ in 0..20 {
        bundle.run_detached().ok();
        bundle.wait_status("stopped");
        bundle.delete().ok();
    }
    bundle.assert_gone();
}

#[test]
fn many_containers_side_by_side() {
    thread::scope(|scope| {
        for n in 0..8 {
            scope.spawn(move || {
                let bundle = Bundle::sh(&format!("echo {n}"));
                for _ in 0..5 {
                    assert_eq!(bundle.run().ok().text(), n.to_string());
                }
            });
        }
    });
}

/// Calls the same several times at once and gives what each of them said.
fn at_once(bundle: &Bundle, times: usize, args: &[&str]) -> Vec<Output> {
    let running: Vec<_> = (0..times).map(|_| bundle.spawn(args)).collect();
    running.into_iter().map(|one| one.finish()).collect()
}

fn succeeded(outs: &[Output]) -> usize {
    outs.iter().filter(|out| out.code == 0).count()
}

#[test]
fn creates_of_one_id() {
    isorun_only!("runc has no lock: a create that loses may remove the winner's state");
    for _ in 0..5 {
        let bundle = Bundle::sh("sleep 100");
        bundle.write();
        let dir = bundle.bundle_dir();
        let outs = at_once(
            &bundle,
            4,
            &["create", "--bundle", dir.to_str().unwrap(), &bundle.id],
        );
        assert_eq!(succeeded(&outs), 1, "{outs:#?}");
        for out in outs.iter().filter(|out| out.code != 0) {
            assert!(out.code == 1 && out.stderr.contains("exist"), "{out:#?}");
        }
        assert_eq!(bundle.status(), "created", "the losers take nothing away");
        bundle.start().ok();
        bundle.delete_force().ok();
        bundle.assert_gone();
    }
}

#[test]
fn starts_of_one_container() {
    isorun_only!("runc has no lock: of several starts one may wait for the fifo for ever");
    for _ in 0..5 {
        let mut bundle = Bundle::sh("echo started >> /h/count; sleep 100");
        let host = bundle.host("").to_str().unwrap().to_string();
        bundle.mount("/h", "bind", &host, &["bind"]);
        bundle.create().ok();
        let outs = at_once(&bundle, 4, &["start", &bundle.id]);
        assert_eq!(succeeded(&outs), 1, "{outs:#?}");
        assert_eq!(bundle.wait_file("count"), "started\n");
        assert_eq!(bundle.status(), "running");
    }
}

#[test]
fn deletes_of_one_container() {
    for flag in ["--force", "--force"] {
        let bundle = Bundle::sh("sleep 100");
        bundle.run_detached().ok();
        let outs = at_once(&bundle, 4, &["delete", flag, &bundle.id]);
        assert!(succeeded(&outs) >= 1, "{outs:#?}");
        bundle.assert_gone();
    }
}

#[test]
fn a_second_delete_does_no_harm() {
    isorun_only!("runc has no lock: two deletes at once may see each other's half-removed files");
    for _ in 0..5 {
        let bundle = Bundle::sh("true");
        bundle.run_detached().ok();
        bundle.wait_status("stopped");
        let outs = at_once(&bundle, 4, &["delete", &bundle.id]);
        assert_eq!(succeeded(&outs), 1, "{outs:#?}");
        for out in outs.iter().filter(|out| out.code != 0) {
            assert!(
                out.code == 1 && out.stderr.contains("does not exist"),
                "{out:#?}"
            );
        }
        bundle.assert_gone();
    }
}

#[test]
fn kill_and_delete_at_once() {
    for _ in 0..5 {
        let bundle = Bundle::sh("sleep 100");
        bundle.run_detached().ok();
        let kill = bundle.spawn(&["kill", &bundle.id, "KILL"]);
        let delete = bundle.spawn(&["delete", "--force", &bundle.id]);
        let (kill, delete) = (kill.finish(), delete.finish());
        assert_eq!(delete.code, 0, "{delete:#?}");
        assert!(kill.code == 0 || kill.code == 1, "{kill:#?}");
        bundle.assert_gone();
    }
}

#[test]
fn state_and_list_while_others_come_and_go() {
    let bundle = Bundle::sh("true");
    bundle.write();
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            for _ in 0..15 {
                bundle.run().ok();
            }
        });
        while !worker.is_finished() {
            bundle.call(&["list"]).ok();
            let state = bundle.call(&["state", &bundle.id]);
            assert!(
                state.code == 0 || state.stderr.contains("does not exist"),
                "{state:#?}"
            );
        }
    });
}
