//! Tests of the store: what is on disk, and what happens when several work on it at once.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use super::super::record::tests::record;
use super::super::record::{Phase, Status};
use super::*;

/// A store in a directory of its own, removed at the end.
struct Temporary(Store);

impl Temporary {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = format!("isorun-store-{}-{number}", std::process::id());
        // One level more than exists, so that the root has to be made.
        Self(Store::new(std::env::temp_dir().join(root).join("root")))
    }
}

impl std::ops::Deref for Temporary {
    type Target = Store;
    fn deref(&self) -> &Store {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.root.parent().unwrap());
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_life() {
    let store = Temporary::new();
    assert!(store.ids().unwrap().is_empty(), "no root yet");
    let dir = store.create("one").unwrap();
    assert_eq!((mode(store.root()), mode(dir.path())), (0o700, 0o700));
    assert_eq!(dir.record().unwrap(), None);
    let mut written = record("one");
    dir.save(&written).unwrap();
    assert_eq!(mode(&dir.path().join(RECORD)), 0o600);
    written.pid = Some(1);
    dir.save(&written).unwrap();
    assert_eq!(dir.record().unwrap().as_ref(), Some(&written));
    // Reading needs no lock, and the lock is held here.
    assert_eq!(store.peek("one").unwrap(), written);
    assert_eq!(store.list().unwrap().count(), 1);
    let names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, [RECORD], "no temporary file is left");
    dir.remove().unwrap();
    assert!(!store.path("one").exists());
    for error in [
        store.open("one").unwrap_err(),
        store.peek("one").unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(
            error.to_string().starts_with("container does not exist"),
            "{error}"
        );
    }
}

#[test]
fn an_id_is_taken_once() {
    let store = Temporary::new();
    let dir = store.create("one").unwrap();
    let error = store.create("one").unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    assert!(
        error
            .to_string()
            .starts_with("container with given ID already exists"),
        "{error}"
    );
    drop(dir);
    assert_eq!(store.create("one").unwrap_err().kind(), Kind::Exists);
    assert_eq!(store.create("../one").unwrap_err().kind(), Kind::Usage);
    assert_eq!(store.open("..").unwrap_err().kind(), Kind::Usage);
}

#[test]
fn of_many_creators_one_wins() {
    let store = Temporary::new();
    for round in 0..20 {
        let id = format!("c{round}");
        let barrier = Arc::new(Barrier::new(8));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (store, id, barrier) = (store.0.clone(), id.clone(), barrier.clone());
                thread::spawn(move || {
                    barrier.wait();
                    store.create(&id)
                })
            })
            .collect();
        let results: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(
            results.iter().filter(|r| r.is_ok()).count(),
            1,
            "round {round}"
        );
        for error in results.into_iter().filter_map(|r| r.err()) {
            assert_eq!(error.kind(), Kind::Exists, "{error}");
        }
    }
}

#[test]
fn who_waits_for_a_lock_sees_the_deletion() {
    let store = Temporary::new();
    let dir = store.create("one").unwrap();
    let waiter = thread::spawn({
        let store = store.0.clone();
        move || store.open("one")
    });
    thread::sleep(Duration::from_millis(50));
    dir.remove().unwrap();
    assert_eq!(waiter.join().unwrap().unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_lock_that_is_not_given_back_is_an_error_that_names_the_holder() {
    let store = Temporary::new();
    let _held = store.create("one").unwrap();
    let impatient = store.0.clone().with_patience(Duration::from_millis(30));
    let error = impatient.open("one").unwrap_err();
    assert_eq!(error.kind(), Kind::State);
    assert!(
        error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
}

#[test]
fn creating_and_deleting_at_once_leaves_nothing_and_loses_no_lock() {
    let store = Temporary::new();
    let inside = Arc::new(AtomicUsize::new(0));
    let made = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..6)
        .map(|number| {
            let (store, inside, made) = (store.0.clone(), inside.clone(), made.clone());
            thread::spawn(move || {
                for _ in 0..200 {
                    let got = match number % 2 {
                        0 => store.create("one"),
                        _ => store.open("one"),
                    };
                    let dir = match got {
                        Ok(dir) => dir,
                        Err(error) => {
                            let expected = [Kind::Exists, Kind::NotFound];
                            assert!(expected.contains(&error.kind()), "{error}");
                            continue;
                        }
                    };
                    assert_eq!(
                        inside.fetch_add(1, Ordering::SeqCst),
                        0,
                        "two hold one lock"
                    );
                    if number % 2 == 0 {
                        made.fetch_add(1, Ordering::SeqCst);
                        dir.save(&record("one")).unwrap();
                    }
                    inside.fetch_sub(1, Ordering::SeqCst);
                    match number % 2 {
                        0 => drop(dir),
                        _ => dir.remove().unwrap(),
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert!(made.load(Ordering::SeqCst) > 0);
    match store.open("one") {
        Ok(dir) => dir.remove().unwrap(),
        Err(error) => assert_eq!(error.kind(), Kind::NotFound),
    }
    assert_eq!(fs::read_dir(store.root()).unwrap().count(), 0);
}

#[test]
fn readers_see_whole_records_while_they_are_replaced() {
    let store = Temporary::new();
    let dir = store.create("one").unwrap();
    dir.save(&record("one")).unwrap();
    let reader = thread::spawn({
        let store = store.0.clone();
        move || (0..500).for_each(|_| assert_eq!(store.peek("one").unwrap().id, "one"))
    });
    let mut long = record("one");
    for round in 0..200 {
        long.annotations
            .insert(format!("key-{round}"), "v".repeat(round));
        dir.save(&long).unwrap();
    }
    reader.join().unwrap();
}

#[test]
fn listing_survives_what_comes_and_goes() {
    let store = Temporary::new();
    store
        .create("stays")
        .unwrap()
        .save(&record("stays"))
        .unwrap();
    let churn = thread::spawn({
        let store = store.0.clone();
        move || {
            for _ in 0..300 {
                let dir = store.create("comes-and-goes").unwrap();
                dir.save(&record("comes-and-goes")).unwrap();
                dir.remove().unwrap();
            }
        }
    });
    while !churn.is_finished() {
        let entries: Vec<_> = store.list().unwrap().collect();
        assert!(entries.iter().any(|entry| entry.id == "stays"));
        entries
            .iter()
            .for_each(|entry| assert!(!entry.status().as_str().is_empty()));
    }
    churn.join().unwrap();
}

#[test]
fn what_a_killed_creator_left_is_listed_and_can_be_removed() {
    let store = Temporary::new();
    drop(store.create("empty").unwrap());
    let held = store.create("held").unwrap();
    let torn = store.create("torn").unwrap();
    fs::write(torn.path().join(RECORD), "{").unwrap();
    drop(torn);
    let dead = store.create("dead").unwrap();
    let mut left = record("dead");
    (left.creator_start, left.phase) = (1, Phase::Creating);
    dead.save(&left).unwrap();
    drop(dead);
    // Neither a file nor a link is a container.
    fs::write(store.root().join("file"), "").unwrap();
    symlink("empty", store.root().join("link")).unwrap();

    let found: Vec<_> = store
        .list()
        .unwrap()
        .map(|e| (e.id.clone(), e.status(), e.record.is_ok()))
        .collect();
    let expected = [
        ("dead", Status::Stopped, true),
        ("empty", Status::Stopped, false),
        ("held", Status::Creating, false),
        ("torn", Status::Stopped, false),
    ];
    assert_eq!(
        found,
        expected.map(|(id, status, good)| (id.to_string(), status, good))
    );
    let without = store.peek("empty").unwrap_err();
    assert!(without.to_string().contains("delete --force"), "{without}");
    drop(held);
    for id in ["empty", "held", "torn", "dead"] {
        store.open(id).unwrap().remove().unwrap();
    }
    assert!(store.ids().unwrap().is_empty());
}

#[test]
fn removing_follows_no_link_and_deletes_no_directory() {
    let store = Temporary::new();
    let dir = store.create("one").unwrap();
    let precious = store.root().join("precious");
    fs::write(&precious, "kept").unwrap();
    symlink(&precious, dir.fifo_path()).unwrap();
    symlink(store.root(), dir.path().join("other")).unwrap();
    dir.remove().unwrap();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");

    let dir = store.create("two").unwrap();
    dir.save(&record("two")).unwrap();
    fs::create_dir(dir.path().join("inside")).unwrap();
    let path = dir.path().to_path_buf();
    let error = dir.remove().unwrap_err();
    assert!(error.to_string().contains("inside"), "{error}");
    assert!(path.join(RECORD).exists(), "the record goes last");
}

#[test]
fn a_record_is_not_written_through_a_link() {
    let store = Temporary::new();
    let dir = store.create("one").unwrap();
    let victim = store.root().join("victim");
    fs::write(&victim, "kept").unwrap();
    symlink(&victim, dir.path().join(RECORD_NEW)).unwrap();
    assert_eq!(
        dir.save(&record("one")).unwrap_err().errno(),
        Some(Errno::ELOOP)
    );
    assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
}

#[test]
fn holders_are_read_from_proc_locks() {
    let locks = "1: POSIX  ADVISORY  WRITE 10 00:19:77 0 EOF\n\
                 2: FLOCK  ADVISORY  WRITE 11 fe:01:78 0 EOF\n\
                 2: -> FLOCK  ADVISORY  WRITE 12 fe:01:78 0 EOF\n\
                 3: FLOCK  ADVISORY  READ 13 fe:01:79 0 EOF\n";
    assert_eq!(holder_in(locks, 78), Some(11));
    assert_eq!(holder_in(locks, 77), None);
    assert_eq!(holder_in(locks, 79), None);
}

/// Records of every length around that of the buffer that they are read into.
#[test]
fn records_of_any_length() {
    let store = Temporary::new();
    let dir = store.create("long").unwrap();
    let mut written = record("long");
    written.annotations.insert("k".into(), String::new());
    let rest = serde_json::to_vec(&written).unwrap().len();
    for length in [4095, 4096, 4097, 8191, 8192, 8193, 100_000] {
        written
            .annotations
            .insert("k".into(), "x".repeat(length - rest));
        dir.save(&written).unwrap();
        let size = fs::metadata(dir.path().join(RECORD)).unwrap().len();
        assert_eq!(size, length as u64);
        assert_eq!(store.peek("long").unwrap(), written);
    }
}
