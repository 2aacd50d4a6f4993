//! bundles/channels/kubernetes.yaml and its rule: what containerd's CRI makes of the two pods meets in the channel.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::channels::{apart, of};
use crate::harness::Bundle;

const PODS: &str = include_str!("../../bundles/channels/kubernetes.yaml");
const RULE: &str = include_str!("../../bundles/channels/kubernetes-rule.toml");

/// What a test needs of a pod.
#[derive(Debug, PartialEq)]
struct Pod {
    name: String,
    namespace: String,
    annotations: BTreeMap<String, String>,
    command: Vec<String>,
}

/// The pods, by the lines of the file.
fn pods() -> Vec<Pod> {
    let documents = PODS
        .split("\n---\n")
        .filter(|text| text.lines().any(|line| line == "kind: Pod"));
    documents.map(pod).collect()
}

fn pod(text: &str) -> Pod {
    let field = |start: &str| {
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix(start));
        line.unwrap_or_else(|| panic!("{start} in {text}"))
            .to_string()
    };
    let below = text.lines().skip_while(|line| *line != "  annotations:");
    let pairs = below
        .skip(1)
        .map_while(|line| line.strip_prefix("    ")?.split_once(": "));
    let command = field("      command: [");
    let words = command.strip_suffix("']").unwrap().splitn(3, ", ");
    Pod {
        name: field("  name: "),
        namespace: field("  namespace: "),
        annotations: pairs
            .map(|(key, value)| (key.to_string(), value.trim_matches('"').to_string()))
            .collect(),
        command: words
            .map(|word| word.trim_start_matches('\'').to_string())
            .collect(),
    }
}

/// A container of the pod, with the annotations that the CRI adds.
fn container(pod: &Pod, namespace: &str) -> Bundle {
    let mut annotations = json!(pod.annotations);
    for (key, value) in [
        ("container-type", "container"),
        ("container-name", &pod.name),
        ("sandbox-name", &pod.name),
        ("sandbox-namespace", namespace),
    ] {
        annotations[format!("io.kubernetes.cri.{key}")] = json!(value);
    }
    let mut bundle = Bundle::new();
    let [shell, option, program] = &pod.command[..] else {
        panic!("{pod:?}");
    };
    // The server is to end here, once it has read.
    let program = match pod.name.as_str() {
        "server" => program.strip_suffix("; sleep 3600").unwrap(),
        _ => program,
    };
    bundle
        .args(&[shell, option, program])
        .set("/annotations", annotations);
    bundle
}

#[test]
fn the_pods_of_the_example_meet() {
    isorun_only!("channels are isorun's");
    let pods = pods();
    let [loader, server] = &pods[..] else {
        panic!("{pods:#?}");
    };
    let writer = container(loader, "serving");
    let reader = container(server, "serving");
    let stranger = container(server, "other");
    let script = format!(
        "runtime run {stranger} && exit 9\n\
         runtime run --detach --bundle $B $ID; runtime run {reader}; runtime channel list -q\n\
         sha256sum $C/serving@weights/w; runtime delete --force $ID; ls -A $C",
        stranger = of(&stranger),
        reader = of(&reader)
    );
    let out = apart(&writer, RULE, &script).ok();
    let lines: Vec<&str> = out.stdout.lines().collect();
    let [inside, key, outside, left] = lines[..] else {
        panic!("{out:#?}");
    };
    assert_eq!((inside[..64].len(), &inside[..64]), (64, &outside[..64]));
    assert!(
        inside.ends_with("/run/isorun/channels/weights/w"),
        "{inside}"
    );
    assert_eq!((key, left), ("serving/weights", ".lock"));
    assert!(
        out.stderr
            .contains("only a rule that names \"other/weights\" lets a pod in"),
        "{out:#?}"
    );
    let refused = apart(&writer, "", "runtime run --bundle $B $ID && exit 9; true").ok();
    let says = "only a rule that names \"serving/weights\" lets a pod in";
    assert!(refused.stderr.contains(says), "{refused:#?}");
}

/// What the lines are taken for is what a reader of YAML sees.
#[test]
fn the_example_is_yaml() {
    isorun_only!("it is about a file");
    let program = "import json, sys, yaml; json.dump([d for d in yaml.safe_load_all(sys.stdin) if d['kind'] == 'Pod'], sys.stdout)";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("bundles/channels/kubernetes.yaml");
    let mut python = Command::new("python3");
    python
        .args(["-c", program])
        .stdin(std::fs::File::open(file).unwrap());
    let Some(out) = python.output().ok().filter(|out| out.status.success()) else {
        skip!("python3 with yaml is not there");
    };
    let all: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
    let read = |value: &Value| Pod {
        name: value["metadata"]["name"].as_str().unwrap().into(),
        namespace: value["metadata"]["namespace"].as_str().unwrap().into(),
        annotations: serde_json::from_value(value["metadata"]["annotations"].clone()).unwrap(),
        command: serde_json::from_value(value["spec"]["containers"][0]["command"].clone()).unwrap(),
    };
    assert_eq!(all.iter().map(read).collect::<Vec<_>>(), pods());
    assert!(
        all.iter()
            .all(|pod| pod["spec"]["runtimeClassName"] == "isorun")
    );
}
