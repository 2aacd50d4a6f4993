//! events: what a container uses, in the form that engines read, and memory that runs out.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::exec::{exec, idle};
use crate::harness::{Bundle, View, controller_usable, view, wait_for};

fn stats(bundle: &Bundle) -> Value {
    let out = bundle.call(&["events", "--stats", &bundle.id]).ok();
    assert_eq!(out.stdout.lines().count(), 1, "{out:#?}");
    let line: Value = serde_json::from_str(&out.stdout).unwrap();
    assert_eq!(
        (&line["type"], &line["id"]),
        (&json!("stats"), &json!(bundle.id))
    );
    line["data"].clone()
}

#[test]
fn the_form_that_engines_read() {
    let bundle = idle();
    let data = stats(&bundle);
    let keys: Vec<&String> = data.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "blkio",
            "cpu",
            "cpuset",
            "hugetlb",
            "intel_rdt",
            "memory",
            "network_interfaces",
            "pids"
        ]
    );
    assert!(
        data["cpu"]["usage"]["total"].as_u64().unwrap() > 0,
        "{data:#}"
    );
    assert!(data["cpu"]["usage"]["kernel"].is_u64() && data["cpu"]["usage"]["user"].is_u64());
    assert!(data["cpu"]["throttling"].is_object());
    assert_eq!(data["pids"]["current"], 1);
    for kind in ["usage", "swap", "kernel", "kernelTCP"] {
        assert!(data["memory"][kind]["limit"].is_u64(), "{kind}: {data:#}");
        assert!(data["memory"][kind]["failcnt"].is_u64(), "{kind}: {data:#}");
    }
    assert!(data["network_interfaces"].is_null());
    if view() == View::V2 {
        since_runc!(1, 2, "pressure");
        let psi = &data["cpu"]["psi"]["some"];
        assert!(
            psi["avg10"].is_number() && psi["total"].is_u64(),
            "{data:#}"
        );
    } else {
        assert_eq!(data["cpuset"]["mems"][0], 0);
        let cpus = data["cpu"]["usage"]["percpu"].as_array().unwrap().len();
        assert_eq!(
            data["cpu"]["usage"]["percpu_user"]
                .as_array()
                .unwrap()
                .len(),
            cpus
        );
        assert!(data["memory"]["raw"]["total_rss"].is_u64(), "{data:#}");
    }
}

#[test]
fn numbers_are_those_of_the_cgroup() {
    if !controller_usable("memory") || !controller_usable("pids") {
        skip!(
            "this view has no memory and pids controllers ({:?})",
            view()
        );
    }
    let mut bundle = Bundle::sh("exec sleep 1000");
    bundle.set(
        "/linux/resources",
        json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 77}}),
    );
    bundle.run_detached().ok();
    let before = stats(&bundle);
    assert_eq!(before["memory"]["usage"]["limit"], 64 << 20);
    assert!(before["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
    assert_eq!(before["pids"]["limit"], 77);
    let script = "i=0; while test $i -lt 20000; do i=$((i+1)); done";
    exec(&bundle, &["sh", "-c", script]).ok();
    bundle
        .call(&["exec", "-d", &bundle.id, "sleep", "1000"])
        .ok();
    // runc's own threads may be there for a moment.
    wait_for("two processes", || stats(&bundle)["pids"]["current"] == 2);
    let after = stats(&bundle);
    let used = |data: &Value| data["cpu"]["usage"]["total"].as_u64().unwrap();
    assert!(used(&after) > used(&before), "{after:#}");
}

#[test]
fn wrong_states_and_times() {
    let bundle = Bundle::sh("exit 0");
    let out = bundle.call(&["events", "--stats", "nonesuch"]).code(1);
    assert!(out.stderr.contains("container does not exist"), "{out:#?}");
    bundle.create().ok();
    stats(&bundle);
    for time in ["0", "0s", "-1s"] {
        let out = bundle
            .call(&["events", "--interval", time, &bundle.id])
            .code(1);
        assert!(
            out.stderr
                .contains("duration interval must be greater than 0"),
            "{time}: {out:#?}"
        );
    }
    for time in ["foo", "5", "99999999999h"] {
        let out = bundle
            .call(&["events", "--interval", time, &bundle.id])
            .code(1);
        // Older runc prints it without its quotes.
        assert!(out.stderr.contains("invalid value"), "{time}: {out:#?}");
    }
    bundle.start().ok();
    bundle.wait_status("stopped");
    for flags in [&["--stats"][..], &[]] {
        let args = [&["events"], flags, &[bundle.id.as_str()]].concat();
        let out = bundle.call(&args).code(1);
        let text = format!("container with id {} is not running", bundle.id);
        assert!(out.stderr.contains(&text), "{out:#?}");
    }
}

#[test]
fn lines_come_until_the_container_ends() {
    isorun_only!("runc goes on until the cgroup has gone, and without a memory controller fails");
    let bundle = idle();
    let running = bundle.spawn(&["events", "--interval", "30ms", &bundle.id]);
    wait_for("three lines", || running.stdout().lines().count() >= 3);
    bundle.kill("KILL").ok();
    let out = running.finish().ok();
    for line in out.stdout.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["type"], "stats");
    }
}

#[test]
fn a_time_of_centuries_is_waited_for() {
    let bundle = idle();
    let mut running = bundle.spawn(&["events", "--interval", "2000000h", &bundle.id]);
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        running.alive() || !crate::harness::runtime().isorun,
        "it ended"
    );
    if running.alive() {
        running.signal(Signal::SIGTERM);
        running.finish();
    }
}

#[test]
fn nobody_reads_any_more() {
    let bundle = idle();
    let inner = bundle.command(&["events", "--interval", "20ms", &bundle.id]);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "\"$@\" | head -n 1", "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    isorun_only!("runc ends by SIGPIPE, or not, by its version");
    let out = crate::harness::run_command(command, &bundle.dir.join("io")).ok();
    assert_eq!(out.stdout.lines().count(), 1);
}

#[test]
fn memory_that_runs_out() {
    if !controller_usable("memory") {
        skip!("this view has no memory controller to use ({:?})", view());
    }
    let mut bundle = Bundle::sh(
        "while ! test -e /tmp/go; do sleep 0.02; done; /probe memory 200; \
        echo over > /tmp/over; sleep 1000",
    );
    if let Err(why) = bundle.add_probe() {
        skip!("{why}");
    }
    bundle.set(
        "/linux/resources/memory",
        json!({"limit": 32 << 20, "swap": 32 << 20}),
    );
    bundle.run_detached().ok();
    let running = bundle.spawn(&["events", "--interval", "1h", &bundle.id]);
    // It must be watching before the memory runs out.
    std::thread::sleep(Duration::from_millis(300));
    std::fs::write(bundle.rootfs("/tmp/go"), "").unwrap();
    wait_for("the event", || running.stdout().contains("\"oom\""));
    let text = running.stdout();
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(line, json!({"type": "oom", "id": bundle.id}));
    assert_eq!(bundle.status(), "running", "only the child was killed");
    // The end of the container is no such event, but the end of the command.
    bundle.delete_force().ok();
    let out = running.finish().ok();
    assert_eq!(
        out.stdout.matches("oom").count(),
        text.matches("oom").count()
    );
}
