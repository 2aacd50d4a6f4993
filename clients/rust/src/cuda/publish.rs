//! The listener's side: what each client gets of a GPU's tensor, the memory itself or a copy.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use super::export::{Export, export};
use super::{Event, Gpu, GpuTensor, PATIENCE, Stream, devices, driver, events_work};
use crate::device::{DeviceBlock, Devices, Transport};
use crate::endpoint::{Endpoint, EndpointOptions, Published, Shared, State};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::memory::Memory;
use crate::message::Outgoing;
use crate::peer::{Answer, Gone, Offered, Peer, Publication};
use crate::wire::{Body, Content, Described, Message, Sharing};

/// What a client of a GPU endpoint has said about itself.
pub(crate) struct PeerDevices {
    devices: Devices,
    /// Its events are found here, so ours are there.
    events: bool,
}

/// A tensor that is being handed over: it and its allocation are held until everyone has released it.
pub(crate) struct Lent {
    tensor: GpuTensor,
    stream: Stream,
    export: std::result::Result<Arc<Export>, String>,
    event: Event,
    handle: Option<[u8; 64]>,
}

impl Lent {
    fn new(tensor: &GpuTensor, stream: Stream, events: bool) -> Result<Arc<Self>> {
        let gpu = tensor.gpu();
        let _entered = gpu.enter()?;
        tensor.check()?;
        if tensor.came_by().is_some() {
            // Its owner may free it once this process has released it: whoever got it from here would not know.
            return Err(Error::Gpu(
                "a tensor that came from another process cannot be handed on: copy it first".into(),
            ));
        }
        let (low, high) = tensor.extent();
        let shared = events && gpu.driver().missing(driver::EVENTS).is_none();
        // Not every driver gives events for other processes (WSL2): then the kernel is waited for here.
        let (event, handle) = match shared
            .then(|| Event::record(gpu, stream, true))
            .and_then(Result::ok)
        {
            Some(event) => {
                let handle = gpu.driver().export_event(event.raw).ok();
                (event, handle)
            }
            None => (Event::record(gpu, stream, false)?, None),
        };
        Ok(Arc::new(Self {
            tensor: tensor.clone(),
            stream,
            export: export(gpu, low, high.max(low + 1)),
            event,
            handle,
        }))
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        let export = self.export.as_ref().ok()?;
        export.fd.as_ref().map(AsFd::as_fd)
    }

    /// The message's block for a client; the error says why it must get a copy.
    fn block(&self, peer: &PeerDevices) -> std::result::Result<DeviceBlock, String> {
        let export = self.export.as_ref().map_err(Clone::clone)?;
        export.suits(&peer.devices)?;
        let event = self.handle.filter(|_| peer.events);
        Ok(DeviceBlock {
            transport: export.transport,
            has_event: event.is_some(),
            pid: std::process::id(),
            uuid: self.tensor.gpu().0.uuid,
            allocation: export.allocation,
            handle: export.handle,
            event: event.unwrap_or([0; 64]),
        })
    }

    /// The tensor in its allocation.
    fn described(&self, export: &Export) -> Described {
        Described {
            layout: Layout {
                offset: self.tensor.pointer() - export.base,
                ..self.tensor.layout().clone()
            },
            sharing: Sharing::Shared,
            size: export.size,
            memory: 0,
        }
    }
}

fn copied(gpu: Option<&Gpu>) -> DeviceBlock {
    DeviceBlock {
        transport: Transport::HostCopy,
        has_event: false,
        pid: std::process::id(),
        uuid: gpu.map_or([0; 16], |gpu| gpu.0.uuid),
        allocation: 0,
        handle: [0; 64],
        event: [0; 64],
    }
}

/// The messages for all kinds of clients, each made once.
struct Messages {
    lent: Arc<Lent>,
    content: Content,
    refers: u64,
    made: HashMap<(u8, bool), Arc<Publication>>,
    copy: Option<(Arc<Memory>, Layout)>,
    /// The largest copy that is made, in bytes.
    max_copy: u64,
    reasons: Vec<String>,
}

impl Messages {
    fn new(what: &Outgoing, refers: u64, options: &EndpointOptions) -> Result<Self> {
        let (tensor, stream) = what
            .gpu
            .as_ref()
            .ok_or_else(|| Error::Gpu("there is no tensor of a GPU".into()))?;
        let mut bare = what.clone();
        bare.gpu = None;
        Ok(Self {
            lent: Lent::new(tensor, *stream, options.cuda_events)?,
            content: bare.content()?,
            refers,
            made: HashMap::new(),
            copy: None,
            max_copy: options.max_copy,
            reasons: Vec::new(),
        })
    }

    /// Whether a client would get a copy.
    fn is_copy_for(&self, peer: Option<&PeerDevices>) -> bool {
        peer.is_none_or(|peer| self.lent.block(peer).is_err())
    }

    /// What a client gets, and whether that is a copy. Waits for the kernel where the client cannot do so.
    fn for_peer(&mut self, peer: Option<&PeerDevices>) -> Result<(Arc<Publication>, bool)> {
        let block = match peer {
            Some(peer) => self.lent.block(peer),
            None => Err("the other side takes no memory of GPUs".into()),
        };
        let (block, key) = match block {
            Ok(block) => {
                let key = (block.transport as u8, block.has_event);
                (Some(block), key)
            }
            Err(reason) => {
                if !self.reasons.contains(&reason) {
                    self.reasons.push(reason);
                }
                // A client that knows nothing of GPUs gets an ordinary tensor.
                (None, (u8::MAX, peer.is_some()))
            }
        };
        let is_copy = block.is_none();
        if let Some(made) = self.made.get(&key) {
            return Ok((made.clone(), is_copy));
        }
        let publication = Arc::new(match block {
            Some(block) => self.in_place(block)?,
            None => self.copied(peer.is_some())?,
        });
        self.made.insert(key, publication.clone());
        Ok((publication, is_copy))
    }

    fn in_place(&self, block: DeviceBlock) -> Result<Publication> {
        let export = self
            .lent
            .export
            .as_ref()
            .map_err(|why| Error::Gpu(why.clone()))?;
        if !export.is_there() {
            return Err(Error::Gpu(format!(
                "the tensor's memory at {:#x} was freed: what others would open is none of it",
                export.base
            )));
        }
        if export.ordinal() != self.lent.tensor.gpu().ordinal() as i32 {
            return Err(Error::Gpu("the tensor's memory is on another GPU".into()));
        }
        if !block.has_event {
            let gpu = self.lent.tensor.gpu();
            let _entered = gpu.enter()?;
            self.lent.event.wait(
                Instant::now() + PATIENCE,
                "the kernel that writes the tensor",
            )?;
        }
        let described = self.lent.described(export);
        described
            .layout
            .check(described.size)
            .map_err(Error::Layout)?;
        let content = Content {
            tensor: Some(described),
            ..self.content.clone()
        };
        Ok(self.publication(Body::Gpu(content, Box::new(block)), None))
    }

    fn copied(&mut self, says_so: bool) -> Result<Publication> {
        if self.copy.is_none() {
            let (low, high) = self.lent.tensor.extent();
            if high - low > self.max_copy {
                return Err(Error::Gpu(format!(
                    "a copy of {} bytes through the host's memory is not made: max_copy of the endpoint is {}",
                    high - low,
                    self.max_copy
                )));
            }
            self.copy = Some(self.lent.tensor.copy_out(self.lent.stream)?);
        }
        let Some((memory, layout)) = self.copy.clone() else {
            return Err(Error::Gpu("there is no copy".into()));
        };
        let content = Content {
            tensor: Some(Described {
                layout,
                sharing: Sharing::Immutable,
                size: memory.size(),
                memory: 0,
            }),
            ..self.content.clone()
        };
        let body = match (says_so, self.refers) {
            (true, _) => Body::Gpu(content, Box::new(copied(Some(self.lent.tensor.gpu())))),
            (false, 0) => Body::Tensor(content),
            (false, _) => Body::Reply(content),
        };
        Ok(self.publication(body, Some(memory)))
    }

    fn publication(&self, body: Body, memory: Option<Arc<Memory>>) -> Publication {
        let message = Message {
            sequence: 1,
            refers: self.refers,
            body,
        };
        Publication {
            bytes: message.encode(),
            lent: memory.is_none().then(|| self.lent.clone()),
            memory,
        }
    }
}

/// Publishes a tensor of a GPU. What the clients can take is looked at first, because a copy takes time and nobody
/// must wait for it.
pub(crate) fn publish(endpoint: &Endpoint, what: &Outgoing) -> Result<Published> {
    let shared = endpoint.shared();
    let mut messages = Messages::new(what, 0, &shared.options)?;
    let peers: Vec<_> = shared
        .state()
        .peers
        .iter()
        .filter(|(_, peer)| peer.is_subscriber())
        .map(|(&id, peer)| (id, peer.devices.clone(), peer.would_take()))
        .collect();
    let mut wanted = HashMap::new();
    // Why no copy could be made: tried once, and only those who need one lose anything by it.
    let mut failed = false;
    for (id, devices, would_take) in peers {
        let devices = devices.as_deref();
        let is_copy = messages.is_copy_for(devices);
        if is_copy && (failed || !would_take) {
            wanted.insert(id, None);
            continue;
        }
        match messages.for_peer(devices) {
            Ok(made) => drop(wanted.insert(id, Some(made))),
            Err(error) if is_copy => {
                failed = true;
                messages.reasons.push(format!("no copy: {error}"));
                wanted.insert(id, None);
            }
            Err(error) => return Err(error),
        }
    }
    let mut published = Published::default();
    let mut gone = Vec::new();
    let mut state = shared.state();
    let State { peers, spent, .. } = &mut *state;
    for (id, made) in wanted {
        let Some(peer) = peers.get_mut(&id) else {
            continue;
        };
        let Some((publication, is_copy)) = made else {
            peer.lose();
            published.lost += 1;
            continue;
        };
        published.copied += usize::from(is_copy);
        match peer.offer(&publication, spent) {
            Ok(Offered::Sent) => published.sent += 1,
            Ok(Offered::Queued) => published.queued += 1,
            Ok(Offered::Lost) => published.lost += 1,
            Err(Gone) => gone.push(id),
        }
    }
    let retry = state.peers.values().any(|peer| peer.blocked);
    for id in gone {
        state.remove(id);
    }
    state.note_copies(messages.reasons);
    drop(state);
    if retry {
        shared.wake();
    }
    Ok(published)
}

/// The answer to a request with a tensor of a GPU.
pub(crate) fn answer(shared: &Shared, peer: u64, refers: u64, what: &Outgoing) -> Result<Answer> {
    let devices = shared
        .state()
        .peers
        .get(&peer)
        .and_then(|peer| peer.devices.clone());
    let mut messages = Messages::new(what, refers, &shared.options)?;
    let (publication, _) = messages.for_peer(devices.as_deref())?;
    shared.state().note_copies(messages.reasons);
    Ok(Answer::Made(publication))
}

/// DEVICES of a client: kept, and answered with our own.
pub(crate) fn introduced(
    options: &EndpointOptions,
    peer: &mut Peer,
    sequence: u64,
    devices_of_peer: Devices,
) -> rustix::io::Result<()> {
    let events = options.cuda_events && events_work(&options.cuda, &devices_of_peer);
    let (mine, _) = devices(&options.cuda, false, options.cuda_events);
    peer.devices = Some(Arc::new(PeerDevices {
        devices: devices_of_peer,
        events,
    }));
    peer.send(sequence, Body::Devices(mine))
}
