//! Messages as bytes: docs/channel-protocol.md, section 2. Pure: no system calls, nothing that can fail but a
//! message that breaks a rule, and then the text says which.

use crate::device::{DeviceBlock, Devices, Transport};
use crate::dtype::Dtype;
use crate::layout::{ByteOrder, Layout, MAX_DIMENSIONS};

/// The longest message in bytes.
pub const MAX_MESSAGE: usize = 4096;
/// The only version there is.
pub const VERSION: u16 = 1;
/// Credits and places in a queue that a peer may ask for.
pub const MAX_CREDITS: u32 = 256;
/// In HELLO: the listener is to say how long the queue is.
pub const DEFAULT_QUEUE: u32 = u32::MAX;
/// Sequences in one RELEASE.
pub const MAX_RELEASES: usize = 64;
/// Bytes of meta.
pub const MAX_META: usize = 2048;
/// Bytes of an error's text.
pub const MAX_TEXT: usize = 1024;

const MAGIC: [u8; 4] = *b"ISCH";
const HEADER: usize = 32;
const HELLO: usize = HEADER + 32;
const TENSOR: usize = 80;
pub(crate) const SEQUENCE_AT: usize = 16;
pub(crate) const MEMORY_AT: usize = 42;
pub(crate) const LOST_AT: usize = 64;

/// Roles of a client, bits of HELLO and WELCOME.
pub mod role {
    /// Gets what the endpoint publishes.
    pub const SUBSCRIBER: u32 = 1;
    /// Asks the endpoint.
    pub const REQUESTER: u32 = 2;
}

/// Features of a connection, bits of HELLO and WELCOME.
pub mod feature {
    /// Tensors in memory that the client has already come by shared memory instead of the socket: section 8.
    pub const LANE: u64 = 1 << 16;
}

/// Codes of ERROR.
#[allow(missing_docs)]
pub mod code {
    pub const VERSION: u16 = 1;
    pub const MALFORMED: u16 = 2;
    pub const DESCRIPTOR: u16 = 3;
    pub const BUSY: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const NO_SUCH_REQUEST: u16 = 6;
    pub const APPLICATION: u16 = 7;
}

/// Whether the memory can change while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody can change it any more.
    Immutable,
    /// The sender goes on writing.
    Shared,
}

/// What is dropped when a subscriber's queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The tensor that has waited longest: the subscriber gets the newest ones.
    #[default]
    DropOldest,
    /// The tensor that is published: the subscriber gets the first ones.
    DropNewest,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The sender's number of it.
    pub sequence: u64,
    /// The other side's message that it answers, or 0.
    pub refers: u64,
    /// The rest.
    pub body: Body,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A client's first message.
    Hello(Hello),
    /// The listener's first message.
    Welcome(Welcome),
    /// What was published.
    Tensor(Content),
    /// A question.
    Request(Content),
    /// Its answer.
    Reply(Content),
    /// Messages whose memory is not used any more.
    Release(Vec<u64>),
    /// Something did not work.
    Error(Failure),
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
    /// The sender's side of a lane: a descriptor comes with it.
    Lane,
    /// There is something in the lane.
    Wake,
    /// The GPUs of a peer; only with [`FEATURE_CUDA`](crate::device::FEATURE_CUDA).
    Devices(Devices),
    /// A tensor in a GPU's memory, or a copy of one: published, or an answer.
    Gpu(Content, Box<DeviceBlock>),
}

/// HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Hello {
    pub lowest: u16,
    pub highest: u16,
    pub roles: u32,
    pub features: u64,
    pub credits: u32,
    pub queue: u32,
    pub policy: Policy,
}

/// WELCOME.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Welcome {
    pub version: u16,
    pub roles: u32,
    pub features: u64,
    pub credits: u32,
    pub queue: u32,
    pub policy: Policy,
}

/// TENSOR, REQUEST and REPLY.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Content {
    /// The tensor, if the message has one: then a descriptor comes with it.
    pub tensor: Option<Described>,
    pub lost: u64,
    pub tag: u64,
    pub name: String,
    pub meta: Vec<u8>,
}

/// A tensor as a message describes it. Its layout was checked against `size`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Described {
    pub layout: Layout,
    pub sharing: Sharing,
    pub size: u64,
    /// The number under which the receiver keeps the memory, or 0: only of shared memory, and only with a lane.
    pub memory: u16,
}

/// ERROR.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Failure {
    pub code: u16,
    pub text: String,
    pub closes: bool,
}

impl Body {
    fn kind(&self) -> u16 {
        match self {
            Self::Hello(_) => 1,
            Self::Welcome(_) => 2,
            Self::Tensor(_) => 3,
            Self::Request(_) => 4,
            Self::Reply(_) => 5,
            Self::Release(_) => 6,
            Self::Error(_) => 7,
            Self::Ping => 8,
            Self::Pong => 9,
            Self::Lane => 32,
            Self::Wake => 33,
            Self::Devices(_) => 10,
            Self::Gpu(..) => 11,
        }
    }

    /// Its name in the protocol.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "HELLO",
            Self::Welcome(_) => "WELCOME",
            Self::Tensor(_) => "TENSOR",
            Self::Request(_) => "REQUEST",
            Self::Reply(_) => "REPLY",
            Self::Release(_) => "RELEASE",
            Self::Error(_) => "ERROR",
            Self::Ping => "PING",
            Self::Pong => "PONG",
            Self::Lane => "LANE",
            Self::Wake => "WAKE",
            Self::Devices(_) => "DEVICES",
            Self::Gpu(..) => "GPU",
        }
    }

    /// Whether a descriptor belongs to it.
    pub fn has_descriptor(&self) -> bool {
        match self {
            Self::Tensor(content) | Self::Request(content) | Self::Reply(content) => {
                content.tensor.is_some()
            }
            Self::Lane => true,
            Self::Gpu(_, block) => block.transport.has_descriptor(),
            _ => false,
        }
    }
}

impl Message {
    /// The message as bytes. What it says must keep the limits: [`Message::decode`] refuses it otherwise.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(self.body.kind().to_le_bytes());
        out.extend([0; 8]);
        out.extend(self.sequence.to_le_bytes());
        out.extend(self.refers.to_le_bytes());
        match &self.body {
            Body::Hello(hello) => {
                out.extend(hello.lowest.to_le_bytes());
                out.extend(hello.highest.to_le_bytes());
                out.extend(hello.roles.to_le_bytes());
                out.extend(hello.features.to_le_bytes());
                put_flow(&mut out, hello.credits, hello.queue, hello.policy);
            }
            Body::Welcome(welcome) => {
                out.extend(welcome.version.to_le_bytes());
                out.extend([0; 2]);
                out.extend(welcome.roles.to_le_bytes());
                out.extend(welcome.features.to_le_bytes());
                put_flow(&mut out, welcome.credits, welcome.queue, welcome.policy);
            }
            Body::Tensor(content) | Body::Request(content) | Body::Reply(content) => {
                put_content(&mut out, content);
            }
            Body::Release(sequences) => {
                sequences.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
            Body::Error(failure) => {
                if failure.closes {
                    out[12] = 1;
                }
                let mut end = failure.text.len().min(MAX_TEXT);
                while !failure.text.is_char_boundary(end) {
                    end -= 1;
                }
                out.extend(failure.code.to_le_bytes());
                out.extend((end as u16).to_le_bytes());
                out.extend(&failure.text.as_bytes()[..end]);
            }
            Body::Ping | Body::Pong | Body::Lane | Body::Wake => {}
            Body::Devices(devices) => devices.put(&mut out),
            Body::Gpu(content, block) => {
                put_content(&mut out, content);
                block.put(&mut out);
            }
        }
        let length = out.len() as u32;
        out[8..12].copy_from_slice(&length.to_le_bytes());
        out
    }

    /// Reads a message and checks every rule that needs nothing but its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_MESSAGE {
            return Err(format!(
                "{} bytes, at most {MAX_MESSAGE} are allowed",
                bytes.len()
            ));
        }
        let mut reader = Reader(bytes);
        if reader.take(4).map_err(|_| "shorter than a header")? != MAGIC {
            return Err("the magic number is not ISCH".into());
        }
        let version = reader.u16()?;
        if version != VERSION {
            return Err(format!("version {version}, this speaks {VERSION}"));
        }
        let kind = reader.u16()?;
        let length = reader.u32()?;
        if length as usize != bytes.len() {
            return Err(format!(
                "length says {length}, the packet has {} bytes",
                bytes.len()
            ));
        }
        let flags = reader.u32()?;
        if flags > u32::from(kind == 7) {
            return Err(format!("flags {flags:#x}"));
        }
        let sequence = reader.u64()?;
        if sequence == 0 {
            return Err("sequence 0".into());
        }
        let refers = reader.u64()?;
        let answers = matches!(kind, 2 | 5 | 9);
        if !matches!(kind, 7 | 10 | 11) && answers != (refers != 0) {
            return Err(format!("kind {kind} refers to {refers}"));
        }
        let body = match kind {
            1 => Body::Hello(hello(&mut reader)?),
            2 => Body::Welcome(welcome(&mut reader)?),
            3 => Body::Tensor(content(&mut reader)?),
            4 => Body::Request(content(&mut reader)?),
            5 => Body::Reply(content(&mut reader)?),
            6 => Body::Release(release(&mut reader)?),
            7 => Body::Error(failure(&mut reader, flags == 1)?),
            8 => Body::Ping,
            9 => Body::Pong,
            32 => Body::Lane,
            33 => Body::Wake,
            10 => Body::Devices(Devices::read(&mut reader)?),
            11 => gpu(&mut reader, refers)?,
            _ => return Err(format!("kind {kind} is not known")),
        };
        if !reader.0.is_empty() {
            return Err(format!(
                "{} bytes too many in {}",
                reader.0.len(),
                body.name()
            ));
        }
        if let Body::Request(content) | Body::Reply(content) = &body {
            if content.lost != 0 {
                return Err(format!("lost {} in {}", content.lost, body.name()));
            }
            if content.tensor.as_ref().is_some_and(|t| t.memory != 0) {
                return Err(format!("a number of memory in {}", body.name()));
            }
        }
        Ok(Self {
            sequence,
            refers,
            body,
        })
    }
}

/// Whether a name may be in a message: at most 255 bytes, no control characters.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.len() > 255 {
        return Err(format!(
            "a name of {} bytes, at most 255 are allowed",
            name.len()
        ));
    }
    match name.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        true => Err("a control character in a name".into()),
        false => Ok(()),
    }
}

fn put_flow(out: &mut Vec<u8>, credits: u32, queue: u32, policy: Policy) {
    out.extend(credits.to_le_bytes());
    out.extend(queue.to_le_bytes());
    out.extend(u32::from(policy == Policy::DropNewest).to_le_bytes());
    out.extend([0; 4]);
    debug_assert_eq!(out.len(), HELLO);
}

fn put_content(out: &mut Vec<u8>, content: &Content) {
    let tensor = content.tensor.as_ref();
    let layout = tensor.map(|tensor| &tensor.layout);
    out.extend(layout.map_or(0, |l| l.dtype.code()).to_le_bytes());
    out.push(layout.map_or(0, |l| l.shape.len() as u8));
    out.push(u8::from(
        layout.is_some_and(|l| l.byte_order == ByteOrder::Big),
    ));
    out.push(u8::from(
        tensor.is_some_and(|t| t.sharing == Sharing::Shared),
    ));
    out.push(0);
    out.push(content.name.len() as u8);
    out.push(0);
    out.extend((content.meta.len() as u16).to_le_bytes());
    out.extend(tensor.map_or(0, |t| t.memory).to_le_bytes());
    out.extend([0; 4]);
    out.extend(layout.map_or(0, |l| l.offset).to_le_bytes());
    out.extend(tensor.map_or(0, |t| t.size).to_le_bytes());
    out.extend(content.lost.to_le_bytes());
    out.extend(content.tag.to_le_bytes());
    debug_assert_eq!(out.len(), TENSOR);
    if let Some(layout) = layout {
        layout
            .shape
            .iter()
            .for_each(|n| out.extend(n.to_le_bytes()));
        layout
            .strides
            .iter()
            .for_each(|n| out.extend(n.to_le_bytes()));
    }
    out.extend(content.name.as_bytes());
    out.extend(&content.meta);
}

/// What is left to read of a message.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| format!("ends {} bytes early", count - self.0.len()))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, String> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn reserved(&mut self, count: usize) -> Result<(), String> {
        match self.take(count)?.iter().all(|&byte| byte == 0) {
            true => Ok(()),
            false => Err("a reserved field is not 0".into()),
        }
    }

    fn text(&mut self, count: usize) -> Result<&'a str, String> {
        std::str::from_utf8(self.take(count)?).map_err(|_| "text that is not UTF-8".into())
    }
}

fn roles(reader: &mut Reader<'_>) -> Result<u32, String> {
    match reader.u32()? {
        roles @ 1..=3 => Ok(roles),
        roles => Err(format!("roles {roles:#x}")),
    }
}

fn queue_and_policy(reader: &mut Reader<'_>) -> Result<(u32, Policy), String> {
    let queue = reader.u32()?;
    let policy = match reader.u32()? {
        0 => Policy::DropOldest,
        1 => Policy::DropNewest,
        policy => return Err(format!("policy {policy}")),
    };
    reader.reserved(4)?;
    Ok((queue, policy))
}

fn hello(reader: &mut Reader<'_>) -> Result<Hello, String> {
    let (lowest, highest) = (reader.u16()?, reader.u16()?);
    if lowest == 0 || highest < lowest {
        return Err(format!("versions {lowest} to {highest}"));
    }
    let (roles, features, credits) = (roles(reader)?, reader.u64()?, reader.u32()?);
    let (queue, policy) = queue_and_policy(reader)?;
    if credits > MAX_CREDITS || (queue > MAX_CREDITS && queue != DEFAULT_QUEUE) {
        return Err(format!("credits {credits}, queue {queue}"));
    }
    Ok(Hello {
        lowest,
        highest,
        roles,
        features,
        credits,
        queue,
        policy,
    })
}

fn welcome(reader: &mut Reader<'_>) -> Result<Welcome, String> {
    let version = reader.u16()?;
    reader.reserved(2)?;
    let (roles, features, credits) = (roles(reader)?, reader.u64()?, reader.u32()?);
    let (queue, policy) = queue_and_policy(reader)?;
    if credits == 0 || credits > MAX_CREDITS || queue > MAX_CREDITS {
        return Err(format!("credits {credits}, queue {queue}"));
    }
    Ok(Welcome {
        version,
        roles,
        features,
        credits,
        queue,
        policy,
    })
}

fn content(reader: &mut Reader<'_>) -> Result<Content, String> {
    let dtype = reader.u16()?;
    let ndim = usize::from(reader.u8()?);
    let byte_order = match reader.u8()? {
        0 => ByteOrder::Little,
        1 => ByteOrder::Big,
        order => return Err(format!("byte order {order}")),
    };
    let sharing = match reader.u8()? {
        0 => Sharing::Immutable,
        1 => Sharing::Shared,
        sharing => return Err(format!("sharing {sharing}")),
    };
    let device = reader.u8()?;
    if device != 0 {
        return Err(format!("device {device}: only host memory is known"));
    }
    let name_length = usize::from(reader.u8()?);
    reader.reserved(1)?;
    let meta_length = usize::from(reader.u16()?);
    let memory = reader.u16()?;
    reader.reserved(4)?;
    let (offset, size) = (reader.u64()?, reader.u64()?);
    let (lost, tag) = (reader.u64()?, reader.u64()?);
    if ndim > MAX_DIMENSIONS {
        return Err(format!(
            "{ndim} dimensions, at most {MAX_DIMENSIONS} are allowed"
        ));
    }
    if meta_length > MAX_META {
        return Err(format!(
            "{meta_length} bytes of meta, at most {MAX_META} are allowed"
        ));
    }
    let shape = (0..ndim)
        .map(|_| reader.u64())
        .collect::<Result<Vec<_>, _>>()?;
    let strides = (0..ndim)
        .map(|_| Ok(reader.u64()? as i64))
        .collect::<Result<Vec<_>, String>>()?;
    let name = reader.text(name_length)?;
    check_name(name)?;
    let meta = reader.take(meta_length)?.to_vec();
    let tensor = match dtype {
        0 if ndim == 0
            && offset == 0
            && size == 0
            && byte_order == ByteOrder::Little
            && sharing == Sharing::Immutable
            && memory == 0 =>
        {
            None
        }
        0 => return Err("a message without a tensor describes one".into()),
        code => {
            let dtype =
                Dtype::from_code(code).ok_or_else(|| format!("dtype {code} is not known"))?;
            if size == 0 || size >= 1 << 63 {
                return Err(format!("size {size}"));
            }
            if memory != 0 && (u32::from(memory) > MAX_CREDITS || sharing == Sharing::Immutable) {
                return Err(format!("memory {memory}"));
            }
            let layout = Layout {
                dtype,
                shape,
                strides,
                offset,
                byte_order,
            };
            layout.check(size)?;
            Some(Described {
                layout,
                sharing,
                size,
                memory,
            })
        }
    };
    Ok(Content {
        tensor,
        lost,
        tag,
        name: name.to_owned(),
        meta,
    })
}

fn gpu(reader: &mut Reader<'_>, refers: u64) -> Result<Body, String> {
    let content = content(reader)?;
    let block = DeviceBlock::read(reader)?;
    match &content.tensor {
        None => return Err("GPU without a tensor".into()),
        Some(tensor) if tensor.memory != 0 => return Err("a number of memory in GPU".into()),
        Some(tensor) => {
            let copy = block.transport == Transport::HostCopy;
            if (tensor.sharing == Sharing::Immutable) != copy {
                return Err(format!(
                    "{:?} memory by {}",
                    tensor.sharing,
                    block.transport.name()
                ));
            }
        }
    }
    match refers != 0 && content.lost != 0 {
        true => Err(format!("lost {} in an answer", content.lost)),
        false => Ok(Body::Gpu(content, Box::new(block))),
    }
}

fn release(reader: &mut Reader<'_>) -> Result<Vec<u64>, String> {
    let count = reader.0.len() / 8;
    if count == 0 || count > MAX_RELEASES {
        return Err(format!("a RELEASE of {count} messages"));
    }
    (0..count).map(|_| reader.u64()).collect()
}

fn failure(reader: &mut Reader<'_>, closes: bool) -> Result<Failure, String> {
    let code = reader.u16()?;
    let length = usize::from(reader.u16()?);
    if !(1..=7).contains(&code) || length > MAX_TEXT {
        return Err(format!("error code {code} with {length} bytes of text"));
    }
    // Shown to people, on terminals.
    let text = reader.text(length)?.replace(char::is_control, "\u{fffd}");
    Ok(Failure { code, text, closes })
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
