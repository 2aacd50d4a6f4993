//! bpf(2), as far as device rules of cgroup v2 need it: build, load, attach, find and replace a program.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// One eBPF instruction (linux/bpf.h, `struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    /// The operation.
    pub code: u8,
    /// Destination register in the low half, source register in the high one.
    pub registers: u8,
    /// Jump distance or memory offset.
    pub offset: i16,
    /// Constant operand.
    pub immediate: i32,
}

/// A register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(u8);

/// The result of the program.
pub const R0: Register = Register(0);
/// The context, when the program starts.
pub const R1: Register = Register(1);
/// For free use.
pub const R2: Register = Register(2);
/// For free use.
pub const R3: Register = Register(3);
/// For free use.
pub const R4: Register = Register(4);
/// For free use.
pub const R5: Register = Register(5);
/// For free use.
pub const R6: Register = Register(6);

// Instruction classes, sizes and operations of linux/bpf_common.h and linux/bpf.h.
const LDX_MEM_W: u8 = 0x61;
const ALU_AND: u8 = 0x54;
const ALU_OR_REGISTER: u8 = 0x4c;
const ALU_LSH: u8 = 0x64;
const ALU_RSH: u8 = 0x74;
const ALU_MOV: u8 = 0xb4;
const ALU_MOV_REGISTER: u8 = 0xbc;
const JMP32_JEQ: u8 = 0x16;
const JMP32_JNE: u8 = 0x56;
const JMP32_JSET: u8 = 0x46;
const JMP_EXIT: u8 = 0x95;

fn insn(code: u8, to: Register, from: Register, offset: i16, immediate: i32) -> Insn {
    Insn {
        code,
        registers: to.0 | (from.0 << 4),
        offset,
        immediate,
    }
}

/// `to = *(u32 *)(from + offset)`.
pub fn load_u32(to: Register, from: Register, offset: i16) -> Insn {
    insn(LDX_MEM_W, to, from, offset, 0)
}

/// `to &= bits`, 32 bits wide.
pub fn and(to: Register, bits: i32) -> Insn {
    insn(ALU_AND, to, R0, 0, bits)
}

/// `to |= from`, 32 bits wide.
pub fn or(to: Register, from: Register) -> Insn {
    insn(ALU_OR_REGISTER, to, from, 0, 0)
}

/// `to = from`, 32 bits wide.
pub fn copy(to: Register, from: Register) -> Insn {
    insn(ALU_MOV_REGISTER, to, from, 0, 0)
}

/// `to <<= count`, 32 bits wide.
pub fn shift_left(to: Register, count: i32) -> Insn {
    insn(ALU_LSH, to, R0, 0, count)
}

/// `to >>= count`, 32 bits wide.
pub fn shift_right(to: Register, count: i32) -> Insn {
    insn(ALU_RSH, to, R0, 0, count)
}

/// `to = value`, 32 bits wide.
pub fn set(to: Register, value: i32) -> Insn {
    insn(ALU_MOV, to, R0, 0, value)
}

/// Skips `over` instructions unless the lower 32 bits of `register` are `value`.
pub fn jump_unless_equal(register: Register, value: i32, over: i16) -> Insn {
    insn(JMP32_JNE, register, R0, over, value)
}

/// Skips `over` instructions if the lower 32 bits of `register` are `value`.
pub fn jump_if_equal(register: Register, value: i32, over: i16) -> Insn {
    insn(JMP32_JEQ, register, R0, over, value)
}

/// Skips `over` instructions if `register` has any of `bits`.
pub fn jump_if_any(register: Register, bits: i32, over: i16) -> Insn {
    insn(JMP32_JSET, register, R0, over, bits)
}

/// Ends the program; the result is in R0.
pub fn exit() -> Insn {
    insn(JMP_EXIT, R0, R0, 0, 0)
}

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_DETACH: i32 = 9;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_PROG_QUERY: i32 = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;
/// The most programs of one type in one cgroup (BPF_CGROUP_MAX_PROGS).
const MAX_PROGRAMS: usize = 64;
/// The name that our programs have.
const NAME: &str = "isorun_devices";

/// The first fields of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes the rest as zero.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// The fields of `union bpf_attr` for BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// The fields of `union bpf_attr` for BPF_PROG_QUERY, to the last one that a kernel writes to.
#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The fields of `union bpf_attr` for BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The fields of `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The first fields of `struct bpf_prog_info`; the kernel fills as many as are asked for.
#[repr(C)]
struct ProgramInfo {
    before: [u8; 64],
    name: [u8; 16],
}

/// A program that is attached to a cgroup itself, not to one above it.
#[derive(Debug)]
pub struct Attached {
    /// The program: it lives as long as this is open, attached or not.
    pub program: OwnedFd,
    /// Its number, which no other program has.
    pub id: u32,
    /// The name that it was loaded under.
    pub name: String,
}

impl Attached {
    /// True if isorun has loaded it.
    pub fn is_ours(&self) -> bool {
        self.name == NAME
    }
}

/// The device programs of one cgroup.
#[derive(Debug, Default)]
pub struct Programs {
    /// Those that are attached to it.
    pub attached: Vec<Attached>,
    /// How they are (BPF_F_*): all of one cgroup are attached in the same way.
    flags: u32,
}

/// Loads a device program (Linux 4.15). Needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN.
///
/// # Errors
/// The errno: EPERM without the capabilities, EINVAL or EACCES if the verifier refuses it.
pub fn load_device_program(code: &[Insn]) -> Result<OwnedFd, Errno> {
    let mut name = [0; 16];
    name[..NAME.len()].copy_from_slice(NAME.as_bytes());
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: code.len() as u32,
        insns: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: name,
    };
    // SAFETY: attr is initialised, lives through the call and is passed with its own size; insns
    // points to insn_cnt instructions laid out as the kernel's, license to a NUL-terminated string.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attr,
            size_of::<LoadAttr>(),
        )
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor (close-on-exec), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches a device program to a v2 cgroup, beside those that are there: all must allow.
///
/// # Errors
/// The errno: EPERM without CAP_NET_ADMIN or where the parent's program allows no others.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    change(BPF_PROG_ATTACH, cgroup, program, BPF_F_ALLOW_MULTI, None)
}

/// Takes a device program off a v2 cgroup.
///
/// # Errors
/// ENOENT where it is not attached to it.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    change(BPF_PROG_DETACH, cgroup, program, 0, None)
}

fn change(
    what: i32,
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    flags: u32,
    instead_of: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let attr = AttachAttr {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: flags,
        replace_bpf_fd: instead_of.map_or(0, |old| old.as_raw_fd() as u32),
    };
    // SAFETY: attr is initialised, lives through the call and is passed with its own size; it
    // holds no pointers.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            what,
            &raw const attr,
            size_of::<AttachAttr>(),
        )
    };
    Errno::result(done).map(drop)
}

impl Programs {
    /// Finds the device programs that are attached to a v2 cgroup (Linux 4.15).
    ///
    /// # Errors
    /// The errno: EPERM without CAP_NET_ADMIN and CAP_SYS_ADMIN.
    pub fn of(cgroup: BorrowedFd<'_>) -> Result<Self, Errno> {
        let mut ids = [0u32; MAX_PROGRAMS];
        let mut attr = QueryAttr {
            target_fd: cgroup.as_raw_fd() as u32,
            attach_type: BPF_CGROUP_DEVICE,
            query_flags: 0,
            attach_flags: 0,
            prog_ids: ids.as_mut_ptr() as u64,
            prog_cnt: MAX_PROGRAMS as u32,
            padding: 0,
            prog_attach_flags: 0,
            link_ids: 0,
            link_attach_flags: 0,
            revision: 0,
        };
        // SAFETY: attr is initialised, writable, lives through the call and is passed with its own
        // size, which reaches to the last field that the kernel writes; prog_ids points to as many
        // numbers as prog_cnt says.
        let done = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_QUERY,
                &raw mut attr,
                size_of::<QueryAttr>(),
            )
        };
        Errno::result(done)?;
        let mut attached = Vec::new();
        for id in ids.into_iter().take(attr.prog_cnt as usize) {
            match by_id(id) {
                Ok(program) => attached.push(Attached {
                    name: name(&program)?,
                    program,
                    id,
                }),
                // It has gone since.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(Self {
            attached,
            flags: attr.attach_flags,
        })
    }

    /// Attaches `new` in the place of `old`, so that at every moment one of them is in force: at one
    /// stroke from Linux 5.6 on; on older kernels both are for a moment, which together allow what
    /// both allow. `old` must be one of these.
    ///
    /// # Errors
    /// The errno of the step that failed: the old program alone is in force then.
    pub fn replace(
        &self,
        cgroup: BorrowedFd<'_>,
        old: BorrowedFd<'_>,
        new: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        if self.flags & BPF_F_ALLOW_MULTI == 0 {
            // There can be one only, which the new one takes the place of.
            return change(BPF_PROG_ATTACH, cgroup, new, self.flags, None);
        }
        let flags = BPF_F_ALLOW_MULTI | BPF_F_REPLACE;
        match change(BPF_PROG_ATTACH, cgroup, new, flags, Some(old)) {
            Err(Errno::EINVAL) => replace_in_two_steps(cgroup, old, new),
            other => other,
        }
    }
}

/// [`Programs::replace`] for kernels before Linux 5.6.
///
/// # Errors
/// The errno of the step that failed. If it is the second one, the new program is taken off again.
pub fn replace_in_two_steps(
    cgroup: BorrowedFd<'_>,
    old: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
) -> Result<(), Errno> {
    attach_device_program(cgroup, new)?;
    detach_device_program(cgroup, old).inspect_err(|_| {
        // It was attached a moment ago; who is refused this is told of the first refusal.
        let _ = detach_device_program(cgroup, new);
    })
}

fn by_id(id: u32) -> Result<OwnedFd, Errno> {
    let attr = IdAttr {
        id,
        next_id: 0,
        open_flags: 0,
    };
    // SAFETY: attr is initialised, lives through the call and is passed with its own size; it
    // holds no pointers.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_GET_FD_BY_ID,
            &raw const attr,
            size_of::<IdAttr>(),
        )
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor (close-on-exec), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn name(program: &OwnedFd) -> Result<String, Errno> {
    let mut info = ProgramInfo {
        before: [0; 64],
        name: [0; 16],
    };
    let mut attr = InfoAttr {
        bpf_fd: program.as_raw_fd() as u32,
        info_len: size_of::<ProgramInfo>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: attr is initialised, writable, lives through the call and is passed with its own size;
    // info points to as many writable bytes as info_len says, all zero, so the kernel takes none of
    // them for an address.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw mut attr,
            size_of::<InfoAttr>(),
        )
    };
    Errno::result(done)?;
    let end = info.name.iter().position(|byte| *byte == 0);
    let name = &info.name[..end.unwrap_or(info.name.len())];
    Ok(String::from_utf8_lossy(name).into_owned())
}
