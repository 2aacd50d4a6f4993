//! What messages say about memory of a GPU: docs/channel-protocol.md, section 8. Pure, as `wire` is, and always there:
//! only what to do with it needs the feature `cuda`.

use crate::wire::Reader;

/// Bit of HELLO's and WELCOME's features: DEVICES and GPU are understood.
pub const FEATURE_CUDA: u64 = 1;
/// GPUs in one DEVICES.
pub const MAX_DEVICES: usize = 64;
/// Bytes of the block at the end of GPU.
pub const BLOCK: usize = 160;
const BLOCK_VERSION: u8 = 1;

/// How a GPU's memory, or a copy of it, is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Transport {
    /// Not at all: the message has sealed memory of the host with a copy of the tensor.
    HostCopy = 0,
    /// Memory of cuMemCreate as a descriptor.
    VmmFd = 1,
    /// The 64 bytes of cuIpcGetMemHandle.
    Legacy = 2,
    /// A pool as a descriptor, and the 64 bytes of cuMemPoolExportPointer.
    Pool = 3,
    /// The 64 bytes of a fabric handle.
    Fabric = 4,
}

impl Transport {
    /// Those that hand over the GPU's own memory, the best one first.
    pub const ALL: [Self; 4] = [Self::VmmFd, Self::Legacy, Self::Pool, Self::Fabric];

    fn from_code(code: u8) -> Option<Self> {
        [Self::HostCopy]
            .into_iter()
            .chain(Self::ALL)
            .find(|transport| *transport as u8 == code)
    }

    /// Its bit in [`Devices::transports`].
    pub fn bit(self) -> u32 {
        1 << (self as u32)
    }

    /// Its name for people, and for command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::HostCopy => "host-copy",
            Self::VmmFd => "vmm-fd",
            Self::Legacy => "legacy",
            Self::Pool => "pool",
            Self::Fabric => "fabric",
        }
    }

    /// Whether a descriptor comes with it.
    pub fn has_descriptor(self) -> bool {
        matches!(self, Self::HostCopy | Self::VmmFd | Self::Pool)
    }
}

/// One GPU as a process sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DeviceEntry {
    pub uuid: [u8; 16],
    /// A MIG instance; `uuid` is that of the instance.
    pub mig: bool,
}

/// DEVICES: what the sender can take, or give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    /// What getpid says there: two processes with the same value cannot open each other's legacy handles.
    pub pid: u32,
    /// Bits of [`Transport::bit`].
    pub transports: u32,
    /// As cuDriverGetVersion says it.
    pub driver: u32,
    /// Whether events of other processes are understood. With it come 64 bytes of cuIpcGetEventHandle to try it with,
    /// or zeros.
    pub events: bool,
    /// Zeros, or an event to try.
    pub probe: [u8; 64],
    /// The GPUs.
    pub list: Vec<DeviceEntry>,
}

/// The block at the end of GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceBlock {
    /// How.
    pub transport: Transport,
    /// Whether `event` must have happened before the memory is read; else it has been written already.
    pub has_event: bool,
    /// What getpid says at the sender.
    pub pid: u32,
    /// The GPU.
    pub uuid: [u8; 16],
    /// The sender's number of the allocation: the same number is the same allocation, in one connection.
    pub allocation: u64,
    /// Zeros, or a handle.
    pub handle: [u8; 64],
    /// Zeros, or an event.
    pub event: [u8; 64],
}

impl Devices {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let count = self.list.len().min(MAX_DEVICES);
        out.extend(self.pid.to_le_bytes());
        out.extend(self.transports.to_le_bytes());
        out.extend(self.driver.to_le_bytes());
        out.extend((count as u16).to_le_bytes());
        out.extend(u16::from(self.events).to_le_bytes());
        out.extend(self.probe);
        for entry in &self.list[..count] {
            out.extend(entry.uuid);
            out.extend(u32::from(entry.mig).to_le_bytes());
            out.extend([0; 4]);
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, String> {
        let (pid, transports, driver) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let count = usize::from(reader.u16()?);
        let events = flag(u32::from(reader.u16()?), "events")?;
        let probe = reader.array()?;
        if transports & !0b1_1110 != 0 {
            return Err(format!(
                "DEVICES with the unknown transports {transports:#x}"
            ));
        }
        if count > MAX_DEVICES {
            return Err(format!(
                "DEVICES with {count} GPUs, at most {MAX_DEVICES} are allowed"
            ));
        }
        let list = (0..count)
            .map(|_| {
                let uuid = reader.array()?;
                let mig = flag(reader.u32()?, "a GPU's flags")?;
                reader.reserved(4)?;
                Ok(DeviceEntry { uuid, mig })
            })
            .collect::<Result<_, String>>()?;
        Ok(Self {
            pid,
            transports,
            driver,
            events,
            probe,
            list,
        })
    }
}

fn flag(value: u32, what: &str) -> Result<bool, String> {
    match value {
        0 | 1 => Ok(value == 1),
        _ => Err(format!("{what} {value:#x}")),
    }
}

impl DeviceBlock {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([
            BLOCK_VERSION,
            self.transport as u8,
            u8::from(self.has_event),
            0,
        ]);
        out.extend(self.pid.to_le_bytes());
        out.extend(self.uuid);
        out.extend(self.allocation.to_le_bytes());
        out.extend(self.handle);
        out.extend(self.event);
        debug_assert_eq!(out.len() - start, BLOCK);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, String> {
        let version = reader.u8()?;
        if version != BLOCK_VERSION {
            return Err(format!("a GPU block of version {version}"));
        }
        let code = reader.u8()?;
        let transport =
            Transport::from_code(code).ok_or_else(|| format!("the unknown transport {code}"))?;
        let has_event = flag(u32::from(reader.u8()?), "sync")?;
        reader.reserved(1)?;
        let block = Self {
            transport,
            has_event,
            pid: reader.u32()?,
            uuid: reader.array()?,
            allocation: reader.u64()?,
            handle: reader.array()?,
            event: reader.array()?,
        };
        let handle = matches!(
            transport,
            Transport::Legacy | Transport::Pool | Transport::Fabric
        );
        if !handle && block.handle != [0; 64] {
            return Err(format!("a handle in a {} message", transport.name()));
        }
        if !has_event && block.event != [0; 64] {
            return Err("an event that is none".into());
        }
        if transport == Transport::HostCopy && (has_event || block.allocation != 0) {
            return Err("a copy with an event or an allocation".into());
        }
        Ok(block)
    }
}

/// A GPU's UUID as nvidia-smi writes it.
pub fn uuid_text(uuid: &[u8; 16], mig: bool) -> String {
    let hex: Vec<_> = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let hex = hex.concat();
    format!(
        "{}-{}-{}-{}-{}-{}",
        if mig { "MIG" } else { "GPU" },
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
