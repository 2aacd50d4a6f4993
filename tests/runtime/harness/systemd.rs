//! A stand-in for systemd on a bus of its own: it makes the cgroups that are asked for, moves processes
//! there, and remembers what it was told. What it does not know it refuses, as systemd does.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::{View, view};

const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// The stand-in; ends when it is dropped.
pub struct Systemd {
    socket: PathBuf,
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

/// A call of the manager: member, unit, properties as text.
type ManagerCall = (String, String, BTreeMap<String, String>);

#[derive(Default)]
struct Inner {
    calls: Mutex<Vec<ManagerCall>>,
    /// Directories of the units that are there.
    units: Mutex<BTreeMap<String, Vec<PathBuf>>>,
    /// How the next job ends, instead of `done`.
    result: Mutex<Option<String>>,
    ends: AtomicBool,
}

impl Systemd {
    /// Listens at this path.
    pub fn at(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let inner = Arc::new(Inner::default());
        let shared = Arc::clone(&inner);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.ends.load(Ordering::Relaxed) {
                    return;
                }
                // A client that goes is no reason to end.
                let _ = shared.serve(stream.unwrap());
            }
        });
        Self {
            socket: socket.to_path_buf(),
            inner,
            thread: Some(thread),
        }
    }

    /// What is put in front of the runtime, so that it finds this one.
    pub fn prefix(&self) -> Vec<String> {
        let address = format!(
            "DBUS_SYSTEM_BUS_ADDRESS=unix:path={}",
            self.socket.display()
        );
        vec!["env".into(), address]
    }

    /// The next job ends like this.
    pub fn next_result(&self, result: &str) {
        *self.inner.result.lock().unwrap() = Some(result.into());
    }

    /// The calls so far, by name.
    pub fn calls(&self) -> Vec<String> {
        let calls = self.inner.calls.lock().unwrap();
        calls.iter().map(|(member, ..)| member.clone()).collect()
    }

    /// The unit and the properties of the last call of this name.
    pub fn last(&self, member: &str) -> (String, BTreeMap<String, String>) {
        let calls = self.inner.calls.lock().unwrap();
        let found = calls.iter().rev().find(|(name, ..)| name == member);
        let (_, unit, properties) = found.unwrap_or_else(|| panic!("no {member} in {calls:?}"));
        (unit.clone(), properties.clone())
    }

    /// The units that are there.
    pub fn units(&self) -> Vec<String> {
        self.inner.units.lock().unwrap().keys().cloned().collect()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.inner.ends.store(true, Ordering::Relaxed);
        let _ = UnixStream::connect(&self.socket);
        let _ = self.thread.take().unwrap().join();
    }
}

/// The trees in which systemd makes units: v2, and v1's name=systemd where it is.
fn trees() -> Vec<PathBuf> {
    match view() {
        View::V2 => vec!["/sys/fs/cgroup".into()],
        View::Hybrid => ["unified", "systemd"]
            .iter()
            .map(|name| Path::new("/sys/fs/cgroup").join(name))
            .filter(|tree| tree.is_dir())
            .collect(),
    }
}

impl Inner {
    fn serve(&self, mut stream: UnixStream) -> std::io::Result<()> {
        let mut greeting = [0; 29];
        stream.read_exact(&mut greeting)?;
        stream.write_all(b"DATA\r\nOK 0123\r\n")?;
        loop {
            let mut start = [0; 16];
            stream.read_exact(&mut start)?;
            let number = |at: usize| u32::from_le_bytes(start[at..at + 4].try_into().unwrap());
            let fields = number(12) as usize;
            let padding = (16 + fields).next_multiple_of(8) - 16;
            let mut rest = vec![0; padding + number(4) as usize];
            stream.read_exact(&mut rest)?;
            let member = member(&rest[..fields]);
            let answers = self.answer(&member, &rest[padding..], number(8));
            stream.write_all(&answers)?;
        }
    }

    fn answer(&self, member: &str, body: &[u8], serial: u32) -> Vec<u8> {
        let (driver, systemd) = ("org.freedesktop.DBus", ":1.3");
        let mut body = In { bytes: body, at: 0 };
        match member {
            "Hello" => return answer(driver, serial, "s", &text(":1.9")),
            "GetNameOwner" => return answer(driver, serial, "s", &text(systemd)),
            "AddMatch" => return answer(driver, serial, "", &[]),
            "Get" => {
                let variant = [&[1, b's', 0, 0][..], &text("257.9")].concat();
                return answer(systemd, serial, "v", &variant);
            }
            _ => {}
        }
        let unit = body.text();
        let properties = match member {
            "StartTransientUnit" => {
                body.text();
                body.properties()
            }
            "SetUnitProperties" => {
                body.u32();
                body.properties()
            }
            _ => BTreeMap::new(),
        };
        let told = (member.to_string(), unit.clone(), properties.clone());
        self.calls.lock().unwrap().push(told);
        let mut units = self.units.lock().unwrap();
        let result = match (member, units.contains_key(&unit)) {
            ("SetUnitProperties", true) => return answer(systemd, serial, "", &[]),
            ("StartTransientUnit", true) => return refuse(serial, "UnitExists"),
            ("StartTransientUnit", false) => match self.result.lock().unwrap().take() {
                Some(result) => result,
                None => {
                    units.insert(unit.clone(), make(&unit, &properties));
                    "done".into()
                }
            },
            ("StopUnit", true) => {
                for dir in units.remove(&unit).unwrap() {
                    let _ = fs::remove_dir(&dir);
                    let _ = fs::remove_dir(dir.parent().unwrap());
                }
                "done".into()
            }
            _ => return refuse(serial, "NoSuchUnit"),
        };
        let job = format!("{OBJECT}/job/{serial}");
        let mut all = answer(systemd, serial, "o", &text(&job));
        let mut ended = serial.to_le_bytes().to_vec();
        for part in [job.as_str(), &unit, &result] {
            ended.resize(ended.len().next_multiple_of(4), 0);
            ended.extend(text(part));
        }
        let fields = [
            (1, 'o', OBJECT),
            (2, 's', MANAGER),
            (3, 's', "JobRemoved"),
            (7, 's', systemd),
            (8, 'g', "uoss"),
        ];
        all.extend(message(4, None, &fields, &ended));
        all
    }
}

/// Makes a scope's directories with the processes in them.
fn make(unit: &str, properties: &BTreeMap<String, String>) -> Vec<PathBuf> {
    let slice = &properties["Slice"];
    assert!(!slice.contains('/') && !slice.contains('-') && !unit.contains('/'));
    let mut dirs = Vec::new();
    for tree in trees() {
        let dir = tree.join(slice).join(unit);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cgroup.procs"), &properties["PIDs"]).unwrap();
        dirs.push(dir);
    }
    dirs
}

/// The member in a header's fields: the code 3, of type `s`.
fn member(fields: &[u8]) -> String {
    let mut fields = In {
        bytes: fields,
        at: 0,
    };
    while fields.at < fields.bytes.len() {
        fields.align(8);
        let code = fields.byte();
        let kind = fields.signature();
        let value = match kind.as_str() {
            "g" => fields.signature(),
            _ => fields.text(),
        };
        if code == 3 {
            return value;
        }
    }
    String::new()
}

struct In<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl In<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn byte(&mut self) -> u8 {
        self.at += 1;
        self.bytes[self.at - 1]
    }

    fn u32(&mut self) -> u32 {
        self.align(4);
        self.at += 4;
        u32::from_le_bytes(self.bytes[self.at - 4..self.at].try_into().unwrap())
    }

    fn take(&mut self, length: usize) -> String {
        let text = &self.bytes[self.at..self.at + length];
        self.at += length + 1;
        String::from_utf8(text.to_vec()).unwrap()
    }

    fn text(&mut self) -> String {
        let length = self.u32() as usize;
        self.take(length)
    }

    fn signature(&mut self) -> String {
        let length = usize::from(self.byte());
        self.take(length)
    }

    fn properties(&mut self) -> BTreeMap<String, String> {
        let length = self.u32() as usize;
        self.align(8);
        let end = self.at + length;
        let mut found = BTreeMap::new();
        while self.at < end {
            self.align(8);
            let name = self.text();
            let kind = self.signature();
            let value = self.value(&kind);
            found.insert(name, value);
        }
        found
    }

    fn value(&mut self, kind: &str) -> String {
        match kind {
            "b" | "u" => self.u32().to_string(),
            "s" => self.text(),
            "t" => {
                self.align(8);
                self.at += 8;
                let bytes = self.bytes[self.at - 8..self.at].try_into().unwrap();
                u64::from_le_bytes(bytes).to_string()
            }
            "au" | "ay" | "a(ss)" => {
                let length = self.u32() as usize;
                if kind == "a(ss)" {
                    self.align(8);
                }
                let end = self.at + length;
                let mut words = Vec::new();
                while self.at < end {
                    words.push(match kind {
                        "au" => self.u32().to_string(),
                        "ay" => self.byte().to_string(),
                        _ => {
                            self.align(8);
                            format!("{} {}", self.text(), self.text())
                        }
                    });
                }
                words.join(",")
            }
            other => panic!("a property of type {other}"),
        }
    }
}

fn text(text: &str) -> Vec<u8> {
    let length = (text.len() as u32).to_le_bytes();
    [&length[..], text.as_bytes(), &[0]].concat()
}

fn answer(sender: &str, serial: u32, signature: &str, body: &[u8]) -> Vec<u8> {
    let fields = [(7, 's', sender), (8, 'g', signature)];
    message(2, Some(serial), &fields, body)
}

fn refuse(serial: u32, name: &str) -> Vec<u8> {
    let name = format!("org.freedesktop.systemd1.{name}");
    let fields = [(4, 's', name.as_str()), (7, 's', ":1.3"), (8, 'g', "s")];
    message(3, Some(serial), &fields, &text("refused"))
}

fn message(kind: u8, reply: Option<u32>, fields: &[(u8, char, &str)], body: &[u8]) -> Vec<u8> {
    let mut list = Vec::new();
    if let Some(serial) = reply {
        list.extend([5, 1, b'u', 0]);
        list.extend(serial.to_le_bytes());
    }
    for (code, kind, value) in fields {
        list.resize(list.len().next_multiple_of(8), 0);
        list.extend([*code, 1, *kind as u8, 0]);
        match kind {
            'g' => {
                list.push(value.len() as u8);
                list.extend(value.as_bytes());
                list.push(0);
            }
            _ => list.extend(text(value)),
        }
    }
    let mut all = vec![b'l', kind, 0, 1];
    all.extend((body.len() as u32).to_le_bytes());
    all.extend(1u32.to_le_bytes());
    all.extend((list.len() as u32).to_le_bytes());
    all.extend(list);
    all.resize(all.len().next_multiple_of(8), 0);
    all.extend(body);
    all
}
