//! bpf(2), as far as device rules of cgroup v2 need it: build, load and attach a program.

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
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

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

/// The fields of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a device program (Linux 4.15). Needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN.
///
/// # Errors
/// The errno: EPERM without the capabilities, EINVAL or EACCES if the verifier refuses it.
pub fn load_device_program(code: &[Insn]) -> Result<OwnedFd, Errno> {
    let mut name = [0; 16];
    name[..15].copy_from_slice(b"isorun_devices\0");
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
    let attr = AttachAttr {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: attr is initialised, lives through the call and is passed with its own size; it
    // holds no pointers.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attr,
            size_of::<AttachAttr>(),
        )
    };
    Errno::result(done).map(drop)
}
