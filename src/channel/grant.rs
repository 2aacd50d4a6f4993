//! Who gets what: a request, the administrator's rules and the channels that are there give what a
//! container joins, or a refusal. Denied by default.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::rules::DIRECTORY;
use super::{
    Access, CHANNELS, CUDA, Cuda, Key, Place, Request, Rules, Size, Wanted, rules, size_annotation,
};
use crate::error::{Error, Result};

/// What decides, gathered before a container is planned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Where channels are.
    pub root: PathBuf,
    /// They are those of a user without privileges: directories without a tmpfs of their own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rootless: bool,
    /// The user id of isorun's caller, as the host has it.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
    /// The administrator's rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Rules,
    /// The channels that are asked for and there, by their key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub made: BTreeMap<String, Made>,
}

/// A channel that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Made {
    /// The user id of who made it with `isorun channel create`; nothing: a container did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<u32>,
    /// Its size limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
}

impl Facts {
    /// Reads the rules and looks for the channels of a request. `(uid, gid)` are the caller's.
    ///
    /// # Errors
    /// Rules or metadata that cannot be read or are not understood.
    pub fn gather(place: &Place, (uid, gid): (u32, u32), request: &Request) -> Result<Self> {
        let mut made = BTreeMap::new();
        for wanted in &request.channels {
            if let Some(found) = place.metadata(&wanted.key)? {
                let by = place.maker(&wanted.key, &found, uid);
                let size = found.size;
                made.insert(wanted.key.to_string(), Made { by, size });
            }
        }
        Ok(Self {
            root: place.root().to_path_buf(),
            rootless: place.rootless(),
            uid,
            gid,
            rules: rules::read()?,
            made,
        })
    }
}

/// A channel that a container joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Channel {
    /// Which.
    pub key: Key,
    /// Its directory on the host.
    pub source: PathBuf,
    /// It is only read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub readonly: bool,
    /// The rule that allows it; nothing: its maker joins it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// It is made where it is not there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create: bool,
    /// The size that the container asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Size>,
    /// The size that it is made with; nothing: half of the memory, as the kernel has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// How many files it may hold where it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// GPU memory is shared in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cuda: bool,
    /// The SELinux label of its files where it is made: [`shared_label`] of the container's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// The label of files that containers share whose own files have the label `of`: without the categories that
/// tell containers apart, as the option `z` of a volume has it.
pub fn shared_label(of: &str) -> String {
    let mut parts: Vec<&str> = of.splitn(4, ':').collect();
    if let [_, _, _, level] = &mut parts[..] {
        // "s0:c1,c2" and "s0-s0:c0.c1023": the lowest sensitivity alone.
        *level = level.split([':', '-']).next().unwrap_or(level);
    }
    parts.join(":")
}

/// What a container may join of what it asks for: all of it. `admin`: it has CAP_SYS_ADMIN in its bounding
/// set, with which it can take `ro` off a mount again.
///
/// # Errors
/// The first channel that is refused, with the rule's name.
pub fn grant<'a>(
    request: &Request,
    facts: &Facts,
    admin: bool,
    annotation: impl Fn(&str) -> Option<&'a String>,
) -> Result<Vec<Channel>> {
    let one = |wanted: &Wanted| granted(wanted, request, facts, admin, &annotation);
    request.channels.iter().map(one).collect()
}

fn granted<'a>(
    wanted: &Wanted,
    request: &Request,
    facts: &Facts,
    admin: bool,
    annotation: &impl Fn(&str) -> Option<&'a String>,
) -> Result<Channel> {
    let key = &wanted.key;
    let refuse = |why: String| {
        let field = format!("annotations[{CHANNELS:?}]");
        Error::spec(
            field,
            format!("channel {:?} is refused: {why}", key.to_string()),
        )
    };
    let made = facts.made.get(&key.to_string());
    let who = (facts.uid, facts.gid);
    let about = |rule: &&super::Rule| rule.is_about(key, who, annotation);
    let mut channel = Channel {
        key: key.clone(),
        source: facts.root.join(key.directory()),
        readonly: wanted.readonly,
        rule: None,
        create: false,
        asked: wanted.size,
        size: wanted.size,
        inodes: None,
        cuda: request
            .cuda
            .channels()
            .iter()
            .any(|name| name == key.name()),
        label: None,
    };
    if let Some(rule) = facts.rules.iter().find(about) {
        let told = rule.told();
        match (rule.access, wanted.readonly) {
            (Access::None, _) => return Err(refuse(format!("{told} allows nobody in"))),
            (Access::Ro, false) => {
                let name = key.name();
                return Err(refuse(format!("{told} allows ro, and rw is asked for"))
                    .remedy(format!("ask for {name}:ro")));
            }
            (Access::Ro, true) if admin => {
                let why = format!(
                    "{told} allows ro, and the container has CAP_SYS_ADMIN, with which it could make it rw"
                );
                return Err(refuse(why).remedy("leave CAP_SYS_ADMIN out of its bounding set"));
            }
            _ => {}
        }
        if made.is_none() && !rule.create {
            return Err(refuse(format!("{told} lets no container make it"))
                .remedy(format!("isorun channel create {key}")));
        }
        if let (Some(asked), Some(most)) = (wanted.size, rule.size)
            && asked > most
        {
            let field = format!("annotations[{:?}]", size_annotation(key.name()));
            return Err(Error::spec(
                field,
                format!("{told} allows at most {most}, not {asked}"),
            ));
        }
        if channel.cuda && !rule.cuda {
            // What only the environment asks for is a loss, which the planner tells.
            if let Cuda::Annotation(_) = request.cuda {
                let field = format!("annotations[{CUDA:?}]");
                let sentence = format!(
                    "GPU memory in the channel {:?} is refused: {told} does not allow it",
                    key.to_string()
                );
                return Err(Error::spec(field, sentence)
                    .remedy("the administrator allows it with cuda-ipc = true in the rule"));
            }
            channel.cuda = false;
        }
        channel.rule = Some(rule.name.clone());
        channel.create = rule.create;
        channel.size = wanted.size.or(rule.size);
        channel.inodes = rule.inodes;
    } else {
        by_default(wanted, request.kubernetes, facts.uid, made).map_err(refuse)?;
    }
    // Without privileges none has a size: what is asked for is a loss, which the planner weighs.
    if let (Some(asked), Some(made), false) = (wanted.size, made, facts.rootless) {
        same_size(key, asked, made.size)?;
    }
    Ok(channel)
}

/// The rule where there is no rule: a channel serves who made it with `isorun channel create`, outside
/// Kubernetes.
fn by_default(
    wanted: &Wanted,
    kubernetes: bool,
    uid: u32,
    made: Option<&Made>,
) -> std::result::Result<(), String> {
    let key = &wanted.key;
    match made {
        _ if kubernetes => Err(format!(
            "no rule in {DIRECTORY} is about it, and in Kubernetes only a rule that names {:?} lets a pod in",
            key.to_string()
        )),
        Some(Made { by: Some(by), .. }) if *by == uid => Ok(()),
        Some(_) => Err(format!(
            "no rule in {DIRECTORY} is about it, and without one it serves only the user who made it with \
             isorun channel create, who is not uid {uid}"
        )),
        None => Err(format!(
            "it is not there, and no rule in {DIRECTORY} lets a container make it; isorun channel create \
             {key} makes it for the containers of uid {uid}"
        )),
    }
}

/// Refuses a size that is not the channel's.
///
/// # Errors
/// With the annotation that asks for it.
pub(super) fn same_size(key: &Key, asked: Size, has: Option<Size>) -> Result<()> {
    if has == Some(asked) {
        return Ok(());
    }
    let has = match has {
        Some(size) => format!("its size is {size}"),
        None => "it has no size of its own".to_string(),
    };
    let field = format!("annotations[{:?}]", size_annotation(key.name()));
    let sentence = format!("{asked} is asked for, and the channel {key} is there already: {has}");
    Err(Error::spec(field, sentence).remedy("ask for the same size, or leave the annotation out"))
}
