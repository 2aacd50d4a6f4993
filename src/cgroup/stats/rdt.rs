//! What `events` tells of Intel RDT: runc's types.IntelRdt. The engine fills it in, which has the
//! groups of resctrl; what the CPU or the kernel does not have is left out.

use serde::Serialize;

use super::zero;

/// The container's class of service, and what was measured of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IntelRdt {
    /// What the L3 caches can be divided into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_info: Option<L3CacheInfo>,
    /// The default group's line for L3.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema_root: String,
    /// The container's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema: String,
    /// What the memory bandwidth can be divided into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_info: Option<MemBwInfo>,
    /// The default group's line for MB.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema_root: String,
    /// The container's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema: String,
    /// Memory bandwidth, by L3 cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mbm_stats: Option<Vec<MbmStats>>,
    /// Cache in use, by L3 cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmt_stats: Option<Vec<CmtStats>>,
}

/// The files of resctrl's info/L3.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct L3CacheInfo {
    /// All bits of a mask, hexadecimal.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cbm_mask: String,
    /// How many bits a mask must have.
    #[serde(skip_serializing_if = "zero")]
    pub min_cbm_bits: u64,
    /// Classes of service.
    #[serde(skip_serializing_if = "zero")]
    pub num_closids: u64,
}

/// The files of resctrl's info/MB.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MemBwInfo {
    /// The step of a bandwidth, percent.
    #[serde(skip_serializing_if = "zero")]
    pub bandwidth_gran: u64,
    /// 1: the delay grows as the bandwidth falls.
    #[serde(skip_serializing_if = "zero")]
    pub delay_linear: u64,
    /// The least bandwidth, percent.
    #[serde(skip_serializing_if = "zero")]
    pub min_bandwidth: u64,
    /// Classes of service.
    #[serde(skip_serializing_if = "zero")]
    pub num_closids: u64,
}

/// Bytes moved since the group was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MbmStats {
    /// All.
    pub mbm_total_bytes: u64,
    /// To and from the memory of the cache's own node.
    pub mbm_local_bytes: u64,
}

/// What is in the cache now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CmtStats {
    /// Bytes.
    pub llc_occupancy: u64,
}
