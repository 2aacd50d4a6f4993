//! Named tensors: safetensors files in a channel.

#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

use isorun_channel::{Channel, Dtype, Error, Layout, MAX_HEADER, Named, Tensor, TensorMut};
use safetensors::SafeTensors;
use support::Place;

fn tensor(values: &[f32]) -> Tensor {
    Tensor::copy_of(values, &[values.len() as u64]).unwrap()
}

#[test]
fn what_is_put_any_reader_of_safetensors_reads() {
    let place = Place::new();
    let bytes = Tensor::copy_of_bytes(Dtype::Bf16, &[1, 2, 3, 4], &[2, 1]).unwrap();
    let matrix = Tensor::copy_of(&(0..6).map(f64::from).collect::<Vec<_>>(), &[2, 3]).unwrap();
    let transposed = Layout {
        shape: vec![3, 2],
        strides: vec![1, 3],
        ..matrix.layout().clone()
    };
    let transposed = matrix.view(transposed).unwrap();
    let mut shared = TensorMut::zeros(Dtype::U8, &[3]).unwrap().share().unwrap();
    shared.as_mut_slice::<u8>().unwrap().fill(8);
    let empty = Tensor::copy_of::<i64>(&[], &[0]).unwrap();
    let all = [
        ("b", &bytes),
        ("t", &transposed),
        ("s", &shared.reader()),
        ("e", &empty),
    ];
    place.channel.put("Model-1", &all).unwrap();
    assert_eq!(place.entries(), ["Model-1.safetensors"]);

    let file = std::fs::read(place.path.join("Model-1.safetensors")).unwrap();
    let theirs = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(theirs.len(), 4);
    assert_eq!(theirs.tensor("b").unwrap().data(), [1, 2, 3, 4]);
    assert_eq!(theirs.tensor("s").unwrap().data(), [8, 8, 8]);
    let want: Vec<u8> = [0.0, 3.0, 1.0, 4.0, 2.0, 5.0_f64]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    assert_eq!(theirs.tensor("t").unwrap().data(), want);
    assert_eq!(theirs.tensor("t").unwrap().shape(), [3, 2]);

    let read = place.channel.read("Model-1").unwrap();
    // SAFETY: nobody else knows this directory.
    let mapped = unsafe { place.channel.map("Model-1") }.unwrap();
    assert!(mapped.is_mapped() && !read.is_mapped());
    for named in [&read, &mapped] {
        let mut names = named.names();
        names.sort();
        assert_eq!(names, ["b", "e", "s", "t"]);
        let view = named.get("t").unwrap().unwrap();
        assert_eq!(
            (view.dtype, view.shape, view.bytes),
            (Dtype::F64, &[3, 2][..], &want[..])
        );
        // Aligned, because it is the largest type and comes first.
        assert_eq!(
            view.bytes.as_ptr() as usize % 8 * usize::from(named.is_mapped()),
            0
        );
        assert!(named.get("x").unwrap().is_none());
    }
}

#[test]
fn replacing_is_all_or_nothing() {
    let place = Place::new();
    place
        .channel
        .put("w", &[("w", &tensor(&[0.0; 1000]))])
        .unwrap();
    let channel = place.channel.clone();
    let writer = std::thread::spawn(move || {
        for round in 1..300 {
            let length = 1000 + round % 7;
            channel
                .put("w", &[("w", &tensor(&vec![round as f32; length]))])
                .unwrap();
        }
    });
    let mut seen = 0.0;
    while !writer.is_finished() {
        let named = place.channel.read("w").unwrap();
        let bytes = named.get("w").unwrap().unwrap().bytes.to_vec();
        let values: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        assert!(values.iter().all(|&value| value == values[0]) && values[0] >= seen);
        seen = values[0];
    }
    writer.join().unwrap();
    // What a writer left that was killed, and what is nobody's to remove.
    let old = Command::new("sh")
        .args(["-c", "touch .w.1-2.tmp .w.keep.this .v.1.tmp"])
        .current_dir(&place.path)
        .status();
    assert!(old.unwrap().success());
    place.channel.put("w", &[("w", &tensor(&[1.0]))]).unwrap();
    assert_eq!(
        place.entries(),
        [".v.1.tmp", ".w.1-2.tmp", ".w.keep.this", "w.safetensors"]
    );
}

#[test]
fn what_cannot_be_put() {
    let place = Place::new();
    let one = tensor(&[1.0]);
    for name in ["a/b", "", ".x", &"n".repeat(65)] {
        assert!(matches!(
            place.channel.put(name, &[("w", &one)]),
            Err(Error::Name(_))
        ));
        assert!(matches!(place.channel.read(name), Err(Error::Name(_))));
    }
    assert!(matches!(
        place.channel.put("w", &[("a", &one), ("a", &one)]),
        Err(Error::Name(_))
    ));
    assert!(matches!(
        place.channel.put("w", &[("__metadata__", &one)]),
        Err(Error::Name(_))
    ));
    let complex = Tensor::copy_of_bytes(Dtype::C128, &[0; 16], &[1]).unwrap();
    assert!(matches!(
        place.channel.put("w", &[("a", &complex)]),
        Err(Error::Layout(_))
    ));
    assert_eq!(place.entries(), [""; 0]);
    assert!(matches!(place.channel.read("w"), Err(Error::Missing(_))));
}

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn files_that_are_none() {
    let place = Place::new();
    let good = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    assert!(Named::from_bytes(file(good, 8)).is_ok());
    let mut huge = file(good, 8);
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut large = file(good, 8);
    large[..8].copy_from_slice(&(MAX_HEADER + 1).to_le_bytes());
    let mut longer = file(good, 8);
    longer[..8].copy_from_slice(&200_u64.to_le_bytes());
    let bad = [
        huge,
        large,
        longer,
        file(good, 7),
        file(good, 9),
        file("", 8),
        file("[]", 8),
        file(&"[".repeat(100_000), 0),
        file(&good.replace("F32", "F33"), 8),
        file(&good.replace("[2]", "[3]"), 8),
        file(&good.replace("[2]", "[-2]"), 8),
        file(
            &good.replace("[2]", "[9223372036854775807,9223372036854775807]"),
            8,
        ),
        // Its end and the header's length add up to more than 64 bits hold.
        file(
            r#"{"a":{"dtype":"U8","shape":[18446744073709551614],"data_offsets":[0,18446744073709551614]},"b":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}}"#,
            0,
        ),
        file(&good.replace("[0,8]", "[8,16]"), 16),
        file(&good.replace("[0,8]", "[8,0]"), 8),
        vec![b'x'; 9],
        vec![0; 100],
        Vec::new(),
    ];
    for (number, bytes) in bad.iter().enumerate() {
        let error = Named::from_bytes(bytes.clone())
            .map(drop)
            .expect_err("refused");
        assert!(matches!(error, Error::Safetensors(_)), "{number}: {error}");
        std::fs::write(place.path.join("f.safetensors"), bytes).unwrap();
        let error = place.channel.read("f").map(drop).expect_err("refused");
        assert!(matches!(error, Error::Safetensors(_)), "{number}: {error}");
        // SAFETY: nobody else knows this directory.
        assert!(unsafe { place.channel.map("f") }.is_err(), "{number}");
    }
    // Not files at all: no waiting for who writes into a fifo, no following.
    std::fs::remove_file(place.path.join("f.safetensors")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", place.path.join("f.safetensors")).unwrap();
    assert!(place.channel.read("f").is_err());
    std::fs::create_dir(place.path.join("d.safetensors")).unwrap();
    assert!(matches!(
        place.channel.read("d"),
        Err(Error::Safetensors(_))
    ));
    let fifo = Command::new("mkfifo")
        .arg(place.path.join("p.safetensors"))
        .status();
    assert!(fifo.unwrap().success());
    assert!(matches!(
        place.channel.read("p"),
        Err(Error::Safetensors(_))
    ));
}

/// Runs itself in a mount namespace of its own, on a tmpfs of 2 MiB and 8 inodes.
#[test]
fn a_full_tmpfs() {
    if let Some(path) = std::env::var_os("ISOTEST_FULL") {
        return on_a_full_tmpfs(&path);
    }
    let place = Place::new();
    let script =
        "mount -t tmpfs -o size=2m,nr_inodes=8 full \"$0\" && exec \"$1\" --exact a_full_tmpfs";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(&place.path)
        .arg(std::env::current_exe().unwrap())
        .env("ISOTEST_FULL", &place.path)
        .output()
        .unwrap();
    let (out, error) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if error.contains("unshare failed") || error.contains("permission denied") {
        return support::skip(&format!("no mount namespace for the full tmpfs: {error}"));
    }
    assert!(
        output.status.success() && out.contains("1 passed"),
        "{out}{error}"
    );
}

fn on_a_full_tmpfs(path: &OsStr) {
    let channel = Channel::at(path).unwrap();
    let entries = || std::fs::read_dir(path).unwrap().count();
    let free = || {
        let output = Command::new("df")
            .arg("--output=avail,iavail")
            .arg(path)
            .output()
            .unwrap();
        output.stdout
    };
    channel
        .put("small", &[("w", &tensor(&[1.0; 1000]))])
        .unwrap();
    let before = free();
    let large = TensorMut::zeros(Dtype::U8, &[4 << 20])
        .unwrap()
        .freeze()
        .unwrap();
    for name in ["large", "small"] {
        match channel.put(name, &[("w", &large)]) {
            Err(Error::Io { operation, source }) => {
                assert_eq!(source.raw_os_error(), Some(28), "{source}");
                assert!(
                    operation.contains(name) && operation.contains("bytes"),
                    "{operation}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(free(), before, "something is left");
    }
    assert!(channel.read("small").is_ok());
    // A file that is mostly a hole: reading it would cost the reader what it never cost the writer.
    let good = file(
        r#"{"a":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}"#,
        0,
    );
    let hole = std::path::Path::new(path).join("hole.safetensors");
    std::fs::write(&hole, &good).unwrap();
    let made = std::fs::File::options().write(true).open(&hole).unwrap();
    made.set_len(good.len() as u64 + (1 << 40)).unwrap();
    let error = channel.read("hole").map(drop).expect_err("a hole");
    assert!(error.to_string().contains("allocated"), "{error}");
    std::fs::remove_file(&hole).unwrap();
    // Tensors themselves are no files of the channel: they still pass.
    let endpoint = channel.listen("e").unwrap();
    let subscriber = channel.subscribe("e").unwrap();
    endpoint.wait_for_subscribers(1, support::LONG).unwrap();
    endpoint.publish(&large).unwrap();
    assert!(subscriber.recv(support::LONG).unwrap().tensor.is_some());
    drop(endpoint);
    // No inode: one clear error, and no half-made endpoint.
    let mut number = 0;
    while std::fs::write(std::path::Path::new(path).join(format!("f{number}")), "").is_ok() {
        number += 1;
    }
    let count = entries();
    let error = channel.listen("e").map(drop).expect_err("no inode");
    assert!(error.to_string().contains("os error 28"), "{error}");
    assert!(channel.put("w", &[("w", &tensor(&[1.0]))]).is_err());
    assert_eq!(entries(), count);
    // One inode: the lock can be made, the socket not.
    std::fs::remove_file(std::path::Path::new(path).join("f0")).unwrap();
    assert!(channel.listen("e").is_err());
    std::fs::remove_file(std::path::Path::new(path).join("f1")).unwrap();
    channel.listen("e").unwrap();
}

/// Whether it runs as another user than root, too: nothing here needs root.
#[test]
fn without_root() {
    let place = Place::new();
    std::os::unix::fs::chown(&place.path, Some(12_345), Some(12_345)).unwrap_or(());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_is_put_any_reader_of_safetensors_reads"])
        .uid(12_345)
        .gid(12_345)
        .env("TMPDIR", &place.path)
        .output();
    match output {
        Ok(output) => {
            let out = String::from_utf8_lossy(&output.stdout);
            assert!(
                out.contains("1 passed"),
                "{out}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Err(error) => support::skip(&format!("not as another user: {error}")),
    }
}
