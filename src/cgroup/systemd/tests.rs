//! Against recorded bytes, and against a bus in a thread that can be told to lie.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::bus::Bus;
use super::wire::{self, Call, Malformed, Message, Reader, Value};
use super::*;

// Recorded from jeepney 0.9 (Python), an implementation that has nothing to do with this one.
const START: &str = "6c010001e0010000070000009e00000001016f00190000002f6f72672f667265656465736b746f702f737973\
     74656d64310000000000000002017300200000006f72672e667265656465736b746f702e73797374656d6431\
     2e4d616e616765720000000000000000030173001200000053746172745472616e7369656e74556e69740000\
     0000000006017300040000003a312e3300000000080167001073736128737629612873612873762929000000\
     09000000782d792e73636f7065000000070000007265706c61636500b80100000b0000004465736372697074\
     696f6e00017300001300000069736f72756e20636f6e7461696e657220c3a900000000000800000044656c65\
     6761746500016200010000000000000004000000504944730002617500000000040000009210000009000000\
     4d656d6f72794d6178000174000000000000000000001000000000000b000000446576696365416c6c6f7700\
     056128737329000000000000000000000b000000446576696365416c6c6f7700056128737329000037000000\
     000000000d0000002f6465762f636861722f313a330000000300000072776d00000000000800000063686172\
     2d3133360000000002000000727700000b000000416c6c6f7765644350557300026179000200000003020000\
     0000000001000000580001640000000000000000000000000000f83f0200000041730002617300000f000000\
     0100000061000000020000006263000001000000510001710000070000000000010000004e00016e0000f9ff\
     00000000010000005900017900ff00000000000002000000587800017800000000000000fbffffffffffffff\
     010000004900016900000000faffffff010000005500017500000000060000000000000000000000";
const HELLO: &str = "6c01000100000000010000006d00000001016f00150000002f6f72672f667265656465736b746f702f444275\
     7300000002017300140000006f72672e667265656465736b746f702e44427573000000000301730005000000\
     48656c6c6f00000006017300140000006f72672e667265656465736b746f702e4442757300000000";
const SIGNAL: &str = "6c040001450000002c0100008a00000001016f00190000002f6f72672f667265656465736b746f702f737973\
     74656d64310000000000000002017300200000006f72672e667265656465736b746f702e73797374656d6431\
     2e4d616e616765720000000000000000030173000a0000004a6f6252656d6f76656400000000000007017300\
     040000003a312e33000000000801670004756f73730000000000000063000000200000002f6f72672f667265\
     656465736b746f702f73797374656d64312f6a6f622f39390000000009000000782d792e73636f7065000000\
     04000000646f6e6500";
const RETURN: &str = "6c020001180000000c0000002f000000050175000100000006017300040000003a312e390000000007017300\
     040000003a312e33000000000801670001760000017300000f0000003235372e392d317e6465623133753100";

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|c| c.to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

#[test]
fn calls_are_encoded_as_others_do() {
    let hello = Call {
        destination: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        member: "Hello",
        signature: "",
        body: Vec::new(),
    };
    assert_eq!(hello.encode(1), unhex(HELLO));
    let pairs = vec![
        ("/dev/char/1:3".to_string(), "rwm".to_string()),
        ("char-136".into(), "rw".into()),
    ];
    let properties = [
        ("Description", Value::Text("isorun container é".into())),
        ("Delegate", Value::Bool(true)),
        ("PIDs", Value::Uint32s(vec![4242])),
        ("MemoryMax", Value::Uint64(1_048_576)),
        ("DeviceAllow", Value::Pairs(Vec::new())),
        ("DeviceAllow", Value::Pairs(pairs)),
        ("AllowedCPUs", Value::Bytes(vec![3, 2])),
        ("X", Value::Double(1.5)),
        ("As", Value::Texts(vec!["a".into(), "bc".into()])),
        ("Q", Value::Uint16(7)),
        ("N", Value::Int16(-7)),
        ("Y", Value::Byte(255)),
        ("Xx", Value::Int64(-5)),
        ("I", Value::Int32(-6)),
        ("U", Value::Uint32(6)),
    ];
    let properties = properties.map(|(name, value)| (name.to_string(), value));
    let start = Call {
        destination: ":1.3",
        path: OBJECT,
        interface: MANAGER,
        member: "StartTransientUnit",
        signature: "ssa(sv)a(sa(sv))",
        body: bus::transient("x-y.scope", &properties),
    };
    assert_eq!(start.encode(7), unhex(START));
}

#[test]
fn messages_of_others_are_understood() {
    let signal = wire::decode(&unhex(SIGNAL)).unwrap();
    assert_eq!(
        (signal.kind, signal.sender.as_str(), signal.member.as_str()),
        (wire::SIGNAL, ":1.3", "JobRemoved")
    );
    assert_eq!(signal.signature, "uoss");
    let mut body = Reader::new(&signal.body);
    assert_eq!(body.u32(), Ok(99));
    let texts = [body.text(), body.text(), body.text()];
    let job = "/org/freedesktop/systemd1/job/99";
    assert_eq!(texts, [Ok(job), Ok("x-y.scope"), Ok("done")]);
    let reply = wire::decode(&unhex(RETURN)).unwrap();
    assert_eq!((reply.kind, reply.reply_to), (wire::RETURN, Some(1)));
    let version = Reader::new(&reply.body).text_variant();
    assert_eq!(version, Ok("257.9-1~deb13u1"));
    assert_eq!(number(version.unwrap()), Some(257));
    assert_eq!(number("v245.4-1.fc32"), Some(245));
    assert_eq!(number("systemd"), None);
}

/// Every message that is cut off anywhere, or has another byte somewhere, is understood or refused:
/// nothing is read beyond its end, and no length is believed.
#[test]
fn bytes_that_lie() {
    for text in [START, HELLO, SIGNAL, RETURN] {
        let good = unhex(text);
        for cut in 0..good.len() {
            assert!(wire::decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..good.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                if let Ok(message) = wire::decode(&bad) {
                    let mut reader = Reader::new(&message.body);
                    while reader.text().is_ok() {}
                }
            }
        }
    }
    let mut huge = [0; wire::FIXED];
    huge[..4].copy_from_slice(&[b'l', 2, 0, 1]);
    huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let refused = Err(Malformed("a message of more than a megabyte"));
    assert_eq!(wire::length(&huge), refused);
    huge[4..8].fill(0);
    huge[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(wire::length(&huge), refused);
}

/// What a bus in a thread says to one call: messages, as they are.
type Answers = Vec<Vec<u8>>;

/// A bus with systemd as `:1.3`: `answer` is asked for what a call of systemd's gets.
fn fake(
    mut answer: impl FnMut(&Message, u32) -> Answers + Send + 'static,
) -> (Bus, JoinHandle<()>, mpsc::Receiver<Message>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        let mut greeting = [0; 29];
        theirs.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n");
        theirs.write_all(b"DATA\r\nOK 0123\r\n").unwrap();
        let mut start = [0; wire::FIXED];
        while theirs.read_exact(&mut start).is_ok() {
            let serial = u32::from_le_bytes(start[8..12].try_into().unwrap());
            let mut bytes = start.to_vec();
            bytes.resize(wire::length(&start).unwrap(), 0);
            theirs.read_exact(&mut bytes[wire::FIXED..]).unwrap();
            let call = wire::decode(&bytes).unwrap();
            let answers = match call.member.as_str() {
                "Hello" => vec![from_bus(serial, ":1.9")],
                "GetNameOwner" => vec![from_bus(serial, ":1.3")],
                "AddMatch" => vec![from_bus(serial, "")],
                _ => answer(&call, serial),
            };
            // The test may have seen enough, and its end may be closed.
            let _ = tell.send(call);
            for bytes in answers {
                let _ = theirs.write_all(&bytes);
            }
        }
    });
    let mut bus = Bus::over(ours, false).unwrap();
    bus.limit(Duration::from_secs(20));
    (bus, thread, told)
}

/// On its own socket, without a bus, systemd gives no sender and nobody else can write.
#[test]
fn without_a_bus() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || {
        theirs.read_exact(&mut [0; 29]).unwrap();
        theirs.write_all(b"DATA\r\nOK 0123\r\n").unwrap();
        let mut start = [0; wire::FIXED];
        let mut calls = Vec::new();
        while theirs.read_exact(&mut start).is_ok() {
            let serial = u32::from_le_bytes(start[8..12].try_into().unwrap());
            let mut bytes = start.to_vec();
            bytes.resize(wire::length(&start).unwrap(), 0);
            theirs.read_exact(&mut bytes[wire::FIXED..]).unwrap();
            calls.push(wire::decode(&bytes).unwrap().member);
            theirs.write_all(&job("", serial, 7)).unwrap();
            theirs.write_all(&removed("", 7, "done")).unwrap();
        }
        calls
    });
    let mut bus = Bus::over(ours, true).unwrap();
    a_scope().start_over(&mut bus, 42).unwrap();
    drop(bus);
    assert_eq!(thread.join().unwrap(), ["StartTransientUnit"]);
}

fn from_bus(serial: u32, text: &str) -> Vec<u8> {
    let fields = [(7, "s", "org.freedesktop.DBus"), (8, "g", "s")];
    let body = bus::body(&[text]).finish();
    wire::message(wire::RETURN, 1, &fields, Some(serial), &body)
}

fn job(sender: &str, serial: u32, number: u32) -> Vec<u8> {
    let body = bus::body(&[&format!("{OBJECT}/job/{number}")]).finish();
    let fields = [(7, "s", sender), (8, "g", "o")];
    wire::message(wire::RETURN, 2, &fields, Some(serial), &body)
}

fn refusal(serial: u32, name: &str) -> Vec<u8> {
    let fields = [(7, "s", ":1.3"), (4, "s", name), (8, "g", "s")];
    let body = bus::body(&["no."]).finish();
    wire::message(wire::ERROR, 2, &fields, Some(serial), &body)
}

fn removed(sender: &str, number: u32, result: &str) -> Vec<u8> {
    let mut body = wire::Writer::default();
    body.u32(number).text(&format!("{OBJECT}/job/{number}"));
    let body = body.text("x.scope").text(result).finish();
    let fields = [
        (1, "o", OBJECT),
        (2, "s", MANAGER),
        (3, "s", "JobRemoved"),
        (7, "s", sender),
        (8, "g", "uoss"),
    ];
    wire::message(wire::SIGNAL, 3, &fields, None, &body)
}

fn a_scope() -> Scope {
    let systemd = Systemd {
        version: 257,
        user: false,
        control_group: String::new(),
    };
    scope(None, None, "c1", Mode::V2, &systemd).unwrap().0
}

fn ended(thread: JoinHandle<()>, bus: Bus) {
    drop(bus);
    thread.join().unwrap();
}

#[test]
fn a_unit_is_there_when_its_job_is_done() {
    let (mut bus, thread, told) = fake(|call, serial| match call.member.as_str() {
        "StartTransientUnit" => vec![
            job(":1.3", serial, 7),
            // Somebody else's job, and another end of a job with this number before.
            removed(":1.3", 6, "failed"),
            removed(":1.3", 7, "done"),
        ],
        other => panic!("{other}"),
    });
    a_scope().start_over(&mut bus, 42).unwrap();
    ended(thread, bus);
    let calls: Vec<Message> = told.iter().collect();
    let names: Vec<&str> = calls.iter().map(|call| call.member.as_str()).collect();
    assert_eq!(
        names,
        ["Hello", "GetNameOwner", "AddMatch", "StartTransientUnit"]
    );
    let mut body = Reader::new(&calls[3].body);
    assert_eq!(body.text(), Ok("isorun-c1.scope"));
    assert_eq!(body.text(), Ok("replace"));
}

/// A job can end before systemd's answer to the call that started it.
#[test]
fn an_end_that_comes_early_is_not_lost() {
    let (mut bus, thread, _told) =
        fake(|_, serial| vec![removed(":1.3", 7, "done"), job(":1.3", serial, 7)]);
    a_scope().start_over(&mut bus, 42).unwrap();
    ended(thread, bus);
}

/// Anybody on the bus may send what looks like systemd's: it does not count.
#[test]
fn what_others_say_does_not_count() {
    let (mut bus, thread, _told) = fake(|call, serial| match call.member.as_str() {
        "StartTransientUnit" => vec![
            // An answer and an end from a liar, before those of systemd.
            job(":1.66", serial, 7),
            removed(":1.66", 7, "done"),
            job(":1.3", serial, 8),
            removed(":1.66", 8, "done"),
            removed(":1.3", 8, "failed"),
        ],
        _ => vec![refusal(serial, "org.freedesktop.systemd1.NoSuchUnit")],
    });
    let error = a_scope().start_over(&mut bus, 42).unwrap_err().to_string();
    assert!(
        error.starts_with("error creating systemd unit `isorun-c1.scope`: got `failed`"),
        "{error}"
    );
    ended(thread, bus);
}

#[test]
fn a_unit_that_failed_before_is_reset_once() {
    let mut there = 1;
    let (mut bus, thread, told) = fake(move |call, serial| match call.member.as_str() {
        "StartTransientUnit" if there > 0 => {
            there -= 1;
            vec![refusal(serial, "org.freedesktop.systemd1.UnitExists")]
        }
        "StartTransientUnit" => vec![job(":1.3", serial, 1), removed(":1.3", 1, "done")],
        "ResetFailedUnit" => vec![job(":1.3", serial, 0)],
        other => panic!("{other}"),
    });
    a_scope().start_over(&mut bus, 42).unwrap();
    ended(thread, bus);
    assert_eq!(
        told.iter()
            .filter(|call| call.member == "ResetFailedUnit")
            .count(),
        1
    );

    let (mut bus, thread, _told) =
        fake(|_, serial| vec![refusal(serial, "org.freedesktop.systemd1.UnitExists")]);
    let error = a_scope().start_over(&mut bus, 42).unwrap_err().to_string();
    assert!(
        error.starts_with("unable to start unit \"isorun-c1.scope\": systemd says \"no.\"")
            && error.contains("another linux.cgroupsPath"),
        "{error}"
    );
    ended(thread, bus);
}

#[test]
fn silence_ends() {
    let (mut bus, thread, _told) = fake(|_, _| Vec::new());
    bus.limit(Duration::from_millis(200));
    let error = a_scope().start_over(&mut bus, 42).unwrap_err().to_string();
    assert!(error.starts_with("systemd has not answered in"), "{error}");
    ended(thread, bus);
    // A liar who never stops talking does not make it longer.
    let (mut bus, thread, _told) = fake(|_, _| vec![removed(":1.66", 1, "done"); 4_000]);
    bus.limit(Duration::from_millis(500));
    let error = a_scope().start_over(&mut bus, 42).unwrap_err().to_string();
    assert!(error.starts_with("systemd has not answered in"), "{error}");
    ended(thread, bus);
}

#[test]
fn a_bus_that_breaks() {
    for (answer, part) in [
        (
            b"nonsense nonsense nonsense".to_vec(),
            "is no D-Bus message",
        ),
        (START.as_bytes()[..8].to_vec(), "is no D-Bus message"),
    ] {
        let (mut bus, thread, _told) = fake(move |_, _| vec![[&answer[..], &[0; 16]].concat()]);
        let error = a_scope().start_over(&mut bus, 42).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        ended(thread, bus);
    }
    for (said, part) in [
        (
            &b"REJECTED EXTERNAL\r\n"[..],
            "does not let this process in",
        ),
        (&b"DATA\r\nERROR\r\n"[..], "does not let this process in"),
        (&b"DATA\r\n"[..], "talk to systemd over its bus"),
        (&[b'x'; 2000][..], "does not let this process in"),
    ] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(said).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let error = Bus::over(ours, false).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_unit_ends() {
    let unit = a_scope().unit();
    let (mut bus, thread, told) = fake(|call, serial| match call.member.as_str() {
        "StopUnit" => vec![removed(":1.3", 3, "done"), job(":1.3", serial, 3)],
        _ => vec![refusal(serial, "org.freedesktop.systemd1.NoSuchUnit")],
    });
    unit.stop_over(&mut bus).unwrap();
    ended(thread, bus);
    let names: Vec<String> = told.iter().map(|call| call.member).collect();
    assert_eq!(names[2..], ["AddMatch", "StopUnit", "ResetFailedUnit"]);
    // One that is gone needs no waiting.
    let (mut bus, thread, _told) =
        fake(|_, serial| vec![refusal(serial, "org.freedesktop.systemd1.NoSuchUnit")]);
    unit.stop_over(&mut bus).unwrap();
    ended(thread, bus);
}

#[test]
fn a_unit_is_changed() {
    let linux: Linux = serde_json::from_value(serde_json::json!({
        "resources": {"memory": {"limit": 1_048_576}, "pids": {"limit": 5}}
    }))
    .unwrap();
    let host: super::super::Hierarchies = serde_json::from_value(serde_json::json!({
        "mode": "v2", "v2": {"mount": "/m", "own": "/"}
    }))
    .unwrap();
    let dirs = super::super::plan(Some(&linux), "c", &host).unwrap().dirs;
    let version = |serial| {
        let mut body = wire::Writer::default();
        let value = Value::Text("257.9".into());
        body.variant(&value);
        let fields = [(7, "s", ":1.3"), (8, "g", "v")];
        wire::message(wire::RETURN, 4, &fields, Some(serial), &body.finish())
    };
    let (mut bus, thread, told) = fake(move |call, serial| match call.member.as_str() {
        "Get" => vec![version(serial)],
        "SetUnitProperties" => vec![job(":1.3", serial, 0)],
        other => panic!("{other}"),
    });
    let unit = a_scope().unit();
    unit.set_over(&mut bus, &dirs).unwrap();
    ended(thread, bus);
    let calls: Vec<Message> = told.iter().collect();
    let mut want = bus::body(&["isorun-c1.scope"]);
    let want = want.u32(1).properties(&[
        ("DevicePolicy".into(), Value::Text("strict".into())),
        ("DeviceAllow".into(), Value::Pairs(Vec::new())),
        (
            "DeviceAllow".into(),
            Value::Pairs(dirs[0].devices.as_ref().unwrap().allow_list().unwrap()),
        ),
        ("MemoryMax".into(), Value::Uint64(1_048_576)),
        ("TasksMax".into(), Value::Uint64(5)),
    ]);
    assert_eq!(calls[3].signature, "sba(sv)");
    assert_eq!(calls[3].body, want.finish());

    let (mut bus, thread, told) = fake(|_, serial| vec![job(":1.3", serial, 0)]);
    unit.attach_over(&mut bus, "/sub", 42).unwrap();
    ended(thread, bus);
    let call = told.iter().last().unwrap();
    let mut body = Reader::new(&call.body);
    assert_eq!(
        (call.member.as_str(), body.text(), body.text()),
        ("AttachProcessesToUnit", Ok("isorun-c1.scope"), Ok("/sub"))
    );
    assert_eq!((body.u32(), body.u32()), (Ok(4), Ok(42)));
}

#[test]
fn a_scope_is_planned() {
    let linux: Linux = serde_json::from_value(serde_json::json!({
        "cgroupsPath": "a-b.slice:p:n",
        "resources": {"cpu": {"quota": 50_000}, "devices": [{"allow": false, "access": "rwm"}]}
    }))
    .unwrap();
    let annotations = HashMap::from([(
        "org.systemd.property.CollectMode".to_string(),
        "'inactive'".to_string(),
    )]);
    let user = Systemd {
        version: 257,
        user: true,
        control_group: "/user.slice/user-1000.slice/user@1000.service".into(),
    };
    let host: super::super::Hierarchies = serde_json::from_value(serde_json::json!({
        "mode": "v2", "v2": {"mount": "/sys/fs/cgroup", "own": "/x"}
    }))
    .unwrap();
    let plan = |systemd, root: bool| {
        let mut plan =
            super::super::plan_scope(Some(&linux), Some(&annotations), "c", &host, systemd)
                .map(|(plan, _)| plan)
                .unwrap();
        plan.adapt(!root, true, root);
        plan
    };
    let rootless = plan(&user, false);
    assert_eq!(
        rootless.dirs[0].path.to_str().unwrap(),
        "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/a.slice/a-b.slice/p-n.scope"
    );
    let scope = rootless.scope.as_ref().unwrap();
    let told: Vec<String> = scope
        .properties
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(
        told,
        [
            "Description=isorun container c",
            "Slice=a-b.slice",
            "Delegate=yes",
            "MemoryAccounting=yes",
            "CPUAccounting=yes",
            "IOAccounting=yes",
            "TasksAccounting=yes",
            "DefaultDependencies=no",
            "CollectMode=inactive",
            "CPUQuotaPeriodUSec=100000",
            "CPUQuotaPerSecUSec=500000",
        ]
    );
    assert!(!rootless.clone_into && !rootless.lenient);
    // The plan survives being written down.
    let text = serde_json::to_string(&rootless).unwrap();
    let read: super::super::CgroupPlan = serde_json::from_str(&text).unwrap();
    assert_eq!(read, rootless);
    // The machine's root has device rules: a list that systemd can say as well.
    let root = Systemd {
        user: false,
        control_group: String::new(),
        ..user
    };
    let root = plan(&root, true);
    assert_eq!(
        root.dirs[0].path.to_str().unwrap(),
        "/sys/fs/cgroup/a.slice/a-b.slice/p-n.scope"
    );
    let allowed = root.scope.unwrap().properties;
    let allowed = allowed.iter().rev().find(|(name, _)| name == "DeviceAllow");
    let Some((_, Value::Pairs(allowed))) = allowed else {
        panic!("{allowed:?}");
    };
    for entry in [
        ("/dev/char/1:3", "rwm"),
        ("char-136", "rwm"),
        ("char-*", "m"),
    ] {
        let entry = (entry.0.to_string(), entry.1.to_string());
        assert!(allowed.contains(&entry), "{entry:?} {allowed:?}");
    }

    let v1 = super::scope(
        None,
        None,
        "c",
        Mode::Hybrid,
        &Systemd {
            user: true,
            ..systemd_257()
        },
    );
    assert!(
        v1.unwrap_err()
            .to_string()
            .starts_with("cannot use rootless systemd cgroups manager on cgroup v1")
    );
}

fn systemd_257() -> Systemd {
    Systemd {
        version: 257,
        user: false,
        control_group: String::new(),
    }
}
