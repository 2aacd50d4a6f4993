//! On a tree of files in the place of resctrl, which few machines have: what the kernel makes in a
//! new group and removes with it, [`create_dir`] and [`remove_dir`] do here.

use std::io;

use super::change::{Schemata, below as change_below};
use super::*;
use crate::cgroup::{CmtStats, MbmStats};

/// A group of this name has no schemata to write to.
const BROKEN: &str = "broken";

/// mkdir(2) in resctrl: the new group has its files.
pub(super) fn create_dir(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    fill(dir)
}

fn fill(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("tasks"), "")?;
    let cache = dir.join("mon_data/mon_L3_00");
    fs::create_dir_all(&cache)?;
    for file in ["mbm_total_bytes", "mbm_local_bytes", "llc_occupancy"] {
        fs::write(cache.join(file), "0\n")?;
    }
    if dir
        .parent()
        .is_some_and(|parent| parent.ends_with("mon_groups"))
    {
        return Ok(());
    }
    fs::create_dir_all(dir.join("mon_groups"))?;
    match dir.ends_with(BROKEN) {
        true => Ok(()),
        false => fs::write(dir.join("schemata"), ""),
    }
}

/// rmdir(2) in resctrl: a group goes with all that is in it.
pub(super) fn remove_dir(dir: &Path) -> io::Result<()> {
    match dir.join("tasks").exists() {
        true => fs::remove_dir_all(dir),
        false => fs::remove_dir(dir),
    }
}

struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("isorun-rdt-{name}-{}", std::process::id()));
        for resource in ["L3", "MB", "L3_MON"] {
            fs::create_dir_all(dir.join("info").join(resource)).unwrap();
        }
        let tree = Self(dir);
        tree.fill("", "    MB:0=100;1=100\n    L3:0=fffff;1=fffff\n");
        tree
    }

    /// Makes a group that has these schemata.
    fn fill(&self, group: &str, schemata: &str) {
        let dir = self.0.join(group);
        fs::create_dir_all(&dir).unwrap();
        fill(&dir).unwrap();
        fs::write(dir.join("schemata"), schemata).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn plan(group: &str, named: bool, schemata: &[&str], monitoring: bool) -> Rdt {
    Rdt {
        group: group.into(),
        named,
        schemata: schemata.iter().map(|line| (*line).to_string()).collect(),
        monitoring: monitoring.then(|| "box".into()),
    }
}

#[test]
fn a_group_of_its_own_is_made_filled_and_removed() {
    let tree = Tree::new("own");
    let plan = plan("box", false, &["L3:0=f", "MB:0=20"], true);
    let prepared = Prepared::below(&plan, tree.0.clone()).unwrap();
    // As create does it.
    let mut kept = None;
    prepared
        .admit(4711, |groups| {
            assert!(!tree.0.join("box").exists(), "recorded before it is made");
            kept = Some(groups.clone());
            Ok(())
        })
        .unwrap();
    let record = kept.unwrap();
    assert_eq!(tree.read("box/schemata"), "L3:0=f\nMB:0=20\n");
    let tasks = ["box/tasks", "box/mon_groups/box/tasks"];
    assert_eq!(tasks.map(|file| tree.read(file)), ["4711\n", "4711\n"]);
    // As exec does.
    enter(&record, 4712).unwrap();
    assert_eq!(tasks.map(|file| tree.read(file)), ["4712\n", "4712\n"]);
    // As delete does, and one more.
    let own = ["box/mon_groups/box", "box"].map(|dir| tree.0.join(dir));
    assert_eq!(record.remove, own, "from within");
    remove(&record).unwrap();
    assert!(!tree.0.join("box").exists());
    assert!(tree.0.join("schemata").exists());
    remove(&record).unwrap();
}

#[test]
fn what_cannot_be_recorded_is_not_made() {
    let tree = Tree::new("kept");
    let plan = plan("box", false, &[], false);
    let prepared = Prepared::below(&plan, tree.0.clone()).unwrap();
    let error = prepared.admit(4711, |_| Err(Error::spec("state.json", "full")));
    assert!(error.unwrap_err().to_string().contains("full"));
    assert!(!tree.0.join("box").exists());
}

#[test]
fn a_named_group_that_is_there_is_used_and_stays() {
    let tree = Tree::new("named");
    tree.fill("gold", "    MB:0=20;1=70\n    L3:0=007f0;1=0001f\n");
    for lines in [
        &[][..],
        &["L3:0=7f0;1=1f"],
        &["L3:1=1F", "MB: 0 = 20 ;"],
        &["MB:1=70;0=20"],
    ] {
        let plan = plan("gold", true, lines, false);
        let prepared = Prepared::below(&plan, tree.0.clone()).unwrap();
        let before = tree.read("gold/schemata");
        prepared.make().unwrap();
        prepared.set_up().unwrap();
        assert_eq!(tree.read("gold/schemata"), before, "nobody may write it");
        assert_eq!(prepared.record().remove, Vec::<PathBuf>::new());
        assert_eq!(prepared.record().tasks, [tree.0.join("gold")]);
    }
    for line in [
        "L3:0=7f1",
        "L3:2=7f0",
        "MB:0=30",
        "L2:0=f",
        "L3:0=7f0;1=ff",
        "nonsense",
    ] {
        let plan = plan("gold", true, &[line], false);
        let error = Prepared::below(&plan, tree.0.clone()).err().unwrap();
        assert!(
            error.to_string().contains("there already"),
            "{line}: {error}"
        );
    }
}

#[test]
fn a_named_group_without_schemata_must_be_there() {
    let tree = Tree::new("missing");
    let missing = plan("gold", true, &[], true);
    let error = Prepared::below(&missing, tree.0.clone()).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("linux.intelRdt.closID: there is no group"),
        "{error}"
    );
    assert!(!tree.0.join("gold").exists());
    // The default group, whose directory is resctrl's own.
    let root = plan("", true, &[], true);
    let prepared = Prepared::below(&root, tree.0.clone()).unwrap();
    prepared.make().unwrap();
    prepared.set_up().unwrap();
    assert_eq!(prepared.record().remove, [tree.0.join("mon_groups/box")]);
    remove(&prepared.record()).unwrap();
    assert!(tree.0.join("schemata").exists());
}

#[test]
fn what_the_kernel_says_about_schemata_is_told_and_a_new_group_goes() {
    let tree = Tree::new("refused");
    fs::write(tree.0.join("info/last_cmd_status"), "Mask out of range\n").unwrap();
    let plan = plan(BROKEN, true, &["L3:0=fffffff"], false);
    let prepared = Prepared::below(&plan, tree.0.clone()).unwrap();
    prepared.make().unwrap();
    let error = prepared.set_up().unwrap_err().to_string();
    assert!(
        error.contains("the kernel says: Mask out of range"),
        "{error}"
    );
    assert!(error.contains("broken/schemata: ENOENT"), "{error}");
    assert!(!tree.0.join(BROKEN).exists(), "it was made for nothing");
}

#[test]
fn a_group_that_was_there_under_the_containers_id_stays() {
    let tree = Tree::new("id");
    tree.fill("box", "L3:0=1\n");
    let plan = plan("box", false, &["L3:0=3"], false);
    let prepared = Prepared::below(&plan, tree.0.clone()).unwrap();
    prepared.make().unwrap();
    prepared.set_up().unwrap();
    assert_eq!(tree.read("box/schemata"), "L3:0=3\n");
    assert_eq!(prepared.record().remove, Vec::<PathBuf>::new());
}

fn groups(tree: &Tree, group: &str, own: bool) -> Resctrl {
    let dir = tree.0.join(group);
    Resctrl {
        remove: own.then(|| dir.clone()).into_iter().collect(),
        tasks: vec![dir],
    }
}

fn asked(l3_cache: &str, mem_bw: &str) -> Schemata {
    Schemata {
        l3_cache: Some(l3_cache.into()),
        mem_bw: Some(mem_bw.into()),
    }
}

/// A file keeps what is behind what was written: the values here are of one length.
#[test]
fn schemata_change_and_change_back() {
    let tree = Tree::new("change");
    let all = "    L3:0=0f;1=0f\n    MB:0=50;1=50\n    L2:0=1\n";
    let change = |asked: &Schemata| {
        let groups = groups(&tree, "box", true);
        change_below(tree.0.clone(), asked, &groups, &groups.tasks[0]).map(|changed| {
            let now = tree.read("box/schemata");
            tree.fill("box", "");
            changed.back().unwrap();
            (now, tree.read("box/schemata"))
        })
    };
    for (l3_cache, mem_bw, written, old) in [
        ("L3:0=03;1=03", "", "L3:0=03;1=03\n", "L3:0=0f;1=0f\n"),
        ("", "MB:0=20;1=20", "MB:0=20;1=20\n", "MB:0=50;1=50\n"),
        // What the second says of MB counts.
        (
            "L3:1=03\nMB:0=70\n",
            "MB:0=20",
            "L3:1=03\nMB:0=20\n",
            "L3:0=0f;1=0f\nMB:0=50;1=50\n",
        ),
    ] {
        tree.fill("box", all);
        let (now, back) = change(&asked(l3_cache, mem_bw)).unwrap();
        assert!(now.starts_with(written), "{l3_cache} {mem_bw}: {now}");
        assert_eq!(back, old, "{l3_cache} {mem_bw}: only what was changed");
    }
}

#[test]
fn refused_changes_name_the_flag() {
    let tree = Tree::new("change-refused");
    let change = |group: &str, asked: &Schemata| {
        let groups = groups(&tree, group, true);
        let result = change_below(tree.0.clone(), asked, &groups, &groups.tasks[0]);
        result.err().unwrap().to_string()
    };
    let says = change("gone", &asked("L3:0=f", "MB:0=20"));
    let wanted = "--l3-cache-schema and --mem-bw-schema: read";
    assert!(
        says.contains(wanted) && says.contains("gone/schemata: ENOENT"),
        "{says}"
    );
    for (resource, asked, wanted) in [
        (
            "L3",
            asked("L3:0=f", ""),
            "--l3-cache-schema: Intel RDT: this host has no",
        ),
        (
            "MB",
            asked("", "MB:0=2"),
            "--mem-bw-schema: Intel RDT: this host has no",
        ),
    ] {
        tree.fill("box", "L3:0=1\n");
        fs::remove_dir(tree.0.join("info").join(resource)).unwrap();
        let says = change("box", &asked);
        assert!(says.contains(wanted), "{says}");
        assert_eq!(tree.read("box/schemata"), "L3:0=1\n");
    }
    // With CDP there are two kinds of L3.
    fs::create_dir(tree.0.join("info/L3CODE")).unwrap();
    let groups = groups(&tree, "box", true);
    let asked = asked("L3CODE:0=f", "");
    let changed = change_below(tree.0.clone(), &asked, &groups, &groups.tasks[0]);
    assert!(changed.is_ok(), "{changed:?}");
}

#[test]
fn a_wrong_schema_and_a_container_without_a_group() {
    let record: crate::state::Record = serde_json::from_value(serde_json::json!({
        "version": 1, "ociVersion": "1.2.0", "id": "box", "creatorPid": 1, "creatorStart": 1,
        "bundle": "/", "rootfs": "/", "created": "", "owner": 0, "phase": "made",
    }))
    .unwrap();
    assert!(change(&asked("", ""), &record).unwrap().is_none());
    for (asked, wanted) in [
        (
            asked("", "L3:0=f"),
            "--mem-bw-schema: \"L3:0=f\" does not begin with",
        ),
        (
            asked("", "MB:0=2\nL3:0=f"),
            "--mem-bw-schema: it has more than one line",
        ),
        (asked("L3:0=\0", ""), "--l3-cache-schema"),
    ] {
        let says = change(&asked, &record).unwrap_err().to_string();
        assert!(says.contains(wanted), "{says}");
    }
}

#[test]
fn statistics_of_what_there_is() {
    let tree = Tree::new("stats");
    for (file, text) in [
        ("schemata", "    MB:0=100\n    SMBA:0=2\n    L3:0=fffff\n"),
        ("info/L3/cbm_mask", "fffff\n"),
        ("info/L3/min_cbm_bits", "1\n"),
        ("info/L3/num_closids", "16\n"),
        ("info/MB/bandwidth_gran", "10\n"),
        ("info/MB/delay_linear", "1\n"),
        ("info/MB/min_bandwidth", "10\n"),
        ("info/MB/num_closids", "8\n"),
        (
            "info/L3_MON/mon_features",
            "llc_occupancy\nmbm_total_bytes\nmbm_local_bytes\n",
        ),
    ] {
        fs::write(tree.0.join(file), text).unwrap();
    }
    tree.fill("box", "    L3:0=0000f\n    MB:0= 20\n");
    let cache = tree.0.join("box/mon_data/mon_L3_00");
    for (file, text) in [
        ("llc_occupancy", "4096\n"),
        ("mbm_total_bytes", "18446744073709551615\n"),
        ("mbm_local_bytes", "7\n"),
    ] {
        fs::write(cache.join(file), text).unwrap();
    }
    let own = groups(&tree, "box", true);
    let found = stats::below(&tree.0, &own).unwrap();
    // As Go's encoder writes runc's types.IntelRdt.
    let expected = concat!(
        r#"{"l3_cache_info":{"cbm_mask":"fffff","min_cbm_bits":1,"num_closids":16},"#,
        r#""l3_cache_schema_root":"L3:0=fffff","l3_cache_schema":"L3:0=0000f","#,
        r#""mem_bw_info":{"bandwidth_gran":10,"delay_linear":1,"min_bandwidth":10,"num_closids":8},"#,
        r#""mem_bw_schema_root":"MB:0=100","mem_bw_schema":"MB:0= 20","#,
        r#""mbm_stats":[{"mbm_total_bytes":18446744073709551615,"mbm_local_bytes":7}],"#,
        r#""cmt_stats":[{"llc_occupancy":4096}]}"#
    );
    assert_eq!(serde_json::to_string(&found).unwrap(), expected);
    // What others do in a group of a closID is not the container's.
    let shared = stats::below(&tree.0, &groups(&tree, "box", false)).unwrap();
    assert_eq!((shared.mbm_stats, shared.cmt_stats), (None, None));
    // What the kernel cannot tell is not zero.
    fs::write(cache.join("llc_occupancy"), "Unavailable\n").unwrap();
    let found = stats::below(&tree.0, &own).unwrap();
    assert_eq!(found.cmt_stats, None);
    assert_eq!(found.mbm_stats.unwrap().len(), 1);
    fs::write(tree.0.join("info/L3_MON/mon_features"), "mbm_local_bytes\n").unwrap();
    let found = stats::below(&tree.0, &own).unwrap();
    let local = MbmStats {
        mbm_total_bytes: 0,
        mbm_local_bytes: 7,
    };
    assert_eq!(
        (found.mbm_stats, found.cmt_stats),
        (Some(vec![local]), None::<Vec<CmtStats>>)
    );
    // A CPU that can only measure.
    fs::remove_dir_all(tree.0.join("info/L3")).unwrap();
    fs::remove_dir_all(tree.0.join("info/MB")).unwrap();
    let text = serde_json::to_string(&stats::below(&tree.0, &own).unwrap()).unwrap();
    assert_eq!(
        text,
        r#"{"mbm_stats":[{"mbm_total_bytes":0,"mbm_local_bytes":7}]}"#
    );
    fs::remove_dir_all(tree.0.join("box")).unwrap();
    let says = stats::below(&tree.0, &own).unwrap_err().to_string();
    assert!(
        says.contains("intel_rdt: read") && says.contains("box/schemata: ENOENT"),
        "{says}"
    );
}
