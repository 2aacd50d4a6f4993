//! The driver's calls: the only file of the feature `cuda` with unsafe code.
//!
//! cudarc finds and loads libcuda, and has its types. Its functions are not used: they panic if an old driver lacks
//! one, and return a Rust enum, which a driver newer than the bindings can give values that it does not have. Here a
//! symbol that is not there is an error with its name, and a result is a number.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cudarc::driver::sys;

use crate::error::{Error, Result};

/// A driver's result that means "not yet".
const NOT_READY: u32 = 600;
const POSIX_FD: c_int = 1;
const FABRIC: c_int = 8;

type Handle = u64;
type Pointer = u64;
type Raw = *mut c_void;
#[derive(Clone, Copy)]
#[repr(C)]
struct Bytes64([u8; 64]);

macro_rules! calls {
    ($($name:ident($($argument:ty),*);)*) => {
        #[allow(non_snake_case)]
        struct Calls { $($name: Option<unsafe extern "C" fn($($argument),*) -> u32>,)* }

        impl Calls {
            fn load() -> Self {
                // SAFETY: is_culib_present has said that it can be loaded, so this does not panic; loading libcuda
                // runs its constructors, as every program that uses CUDA does.
                let library = unsafe { sys::culib() };
                Self { $(
                    // SAFETY: the type is that of the driver's documentation for this name.
                    $name: unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .ok()
                        .map(|symbol| *symbol),
                )* }
            }

            /// Which of them the driver has not.
            fn missing(&self, names: &[&'static str]) -> Option<&'static str> {
                $(if names.contains(&stringify!($name)) && self.$name.is_none() {
                    return Some(stringify!($name));
                })*
                None
            }
        }
    };
}

calls! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetName(*mut c_char, c_int, c_int);
    cuDeviceGetUuid(*mut [u8; 16], c_int);
    cuDeviceGetUuid_v2(*mut [u8; 16], c_int);
    cuDeviceGetAttribute(*mut c_int, c_int, c_int);
    cuDevicePrimaryCtxRetain(*mut Raw, c_int);
    cuCtxGetCurrent(*mut Raw);
    cuCtxSetCurrent(Raw);
    cuGetErrorName(u32, *mut *const c_char);
    cuMemAlloc_v2(*mut Pointer, usize);
    cuMemFree_v2(Pointer);
    cuMemAllocHost_v2(*mut Raw, usize);
    cuMemFreeHost(Raw);
    cuPointerGetAttribute(Raw, c_int, Pointer);
    cuMemGetAddressRange_v2(*mut Pointer, *mut usize, Pointer);
    cuMemcpyHtoD_v2(Pointer, *const c_void, usize);
    cuMemcpyDtoHAsync_v2(Raw, Pointer, usize, Raw);
    cuMemsetD8Async(Pointer, u8, usize, Raw);
    cuStreamCreate(*mut Raw, c_uint);
    cuStreamDestroy_v2(Raw);
    cuStreamWaitEvent(Raw, Raw, c_uint);
    cuEventCreate(*mut Raw, c_uint);
    cuEventRecord(Raw, Raw);
    cuEventQuery(Raw);
    cuEventDestroy_v2(Raw);
    cuIpcGetEventHandle(*mut Bytes64, Raw);
    cuIpcOpenEventHandle(*mut Raw, Bytes64);
    cuIpcGetMemHandle(*mut Bytes64, Pointer);
    cuIpcOpenMemHandle_v2(*mut Pointer, Bytes64, c_uint);
    cuIpcCloseMemHandle(Pointer);
    cuMemGetAllocationGranularity(*mut usize, *const sys::CUmemAllocationProp, c_uint);
    cuMemCreate(*mut Handle, usize, *const sys::CUmemAllocationProp, c_ulonglong);
    cuMemRelease(Handle);
    cuMemAddressReserve(*mut Pointer, usize, usize, Pointer, c_ulonglong);
    cuMemAddressFree(Pointer, usize);
    cuMemMap(Pointer, usize, usize, Handle, c_ulonglong);
    cuMemUnmap(Pointer, usize);
    cuMemSetAccess(Pointer, usize, *const sys::CUmemAccessDesc, usize);
    cuMemRetainAllocationHandle(*mut Handle, Raw);
    cuMemExportToShareableHandle(Raw, Handle, c_int, c_ulonglong);
    cuMemImportFromShareableHandle(*mut Handle, Raw, c_int);
    cuMemPoolCreate(*mut Raw, *const sys::CUmemPoolProps);
    cuMemPoolDestroy(Raw);
    cuMemPoolSetAccess(Raw, *const sys::CUmemAccessDesc, usize);
    cuMemAllocFromPoolAsync(*mut Pointer, usize, Raw, Raw);
    cuMemFreeAsync(Pointer, Raw);
    cuMemPoolExportToShareableHandle(Raw, Raw, c_int, c_ulonglong);
    cuMemPoolImportFromShareableHandle(*mut Raw, Raw, c_int, c_ulonglong);
    cuMemPoolExportPointer(*mut Bytes64, Pointer);
    cuMemPoolImportPointer(*mut Pointer, Raw, *mut Bytes64);
}

pub(super) const BASE: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuPointerGetAttribute",
    "cuMemGetAddressRange_v2",
    "cuMemcpyHtoD_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuStreamCreate",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
];
pub(super) const VMM: &[&str] = &[
    "cuMemGetAllocationGranularity",
    "cuMemCreate",
    "cuMemRelease",
    "cuMemAddressReserve",
    "cuMemAddressFree",
    "cuMemMap",
    "cuMemUnmap",
    "cuMemSetAccess",
    "cuMemRetainAllocationHandle",
    "cuMemExportToShareableHandle",
    "cuMemImportFromShareableHandle",
];
pub(super) const LEGACY: &[&str] = &[
    "cuIpcGetMemHandle",
    "cuIpcOpenMemHandle_v2",
    "cuIpcCloseMemHandle",
];
pub(super) const POOL: &[&str] = &[
    "cuMemPoolSetAccess",
    "cuMemFreeAsync",
    "cuMemPoolDestroy",
    "cuMemPoolExportToShareableHandle",
    "cuMemPoolImportFromShareableHandle",
    "cuMemPoolExportPointer",
    "cuMemPoolImportPointer",
];
pub(super) const EVENTS: &[&str] = &[
    "cuIpcGetEventHandle",
    "cuIpcOpenEventHandle",
    "cuStreamWaitEvent",
    "cuEventDestroy_v2",
];

/// libcuda, loaded and initialised.
pub(super) struct Driver {
    calls: Calls,
    pub(super) version: u32,
}

/// What is done, for errors.
macro_rules! call {
    ($driver:expr, $name:ident($($argument:expr),*)) => {
        match $driver.calls.$name {
            // SAFETY: the arguments are of the types that the driver documents, pointers point to living variables
            // of this function or to handles and memory that the caller holds.
            Some(function) => match unsafe { function($($argument),*) } {
                0 => Ok(()),
                code => Err($driver.failed(stringify!($name), code)),
            },
            None => Err(Error::Gpu(format!("the driver lacks {}: it is too old", stringify!($name)))),
        }
    };
}

/// An IPC handle as numbers, or an attribute.
pub(super) mod attribute {
    pub(crate) const BUFFER_ID: i32 = 7;
    pub(crate) const ORDINAL: i32 = 9;
    pub(crate) const LEGACY_CAPABLE: i32 = 10;
    pub(crate) const HANDLE_TYPES: i32 = 14;
    pub(crate) const POOL: i32 = 17;
}

impl Driver {
    /// The driver of this process; what is missing is said the same way each time.
    pub(super) fn get() -> Result<&'static Self> {
        static DRIVER: OnceLock<std::result::Result<Driver, String>> = OnceLock::new();
        DRIVER
            .get_or_init(|| Self::load().map_err(|error| error.to_string()))
            .as_ref()
            .map_err(|text| Error::Gpu(text.clone()))
    }

    fn load() -> Result<Self> {
        // SAFETY: it only tries to load libraries of fixed names.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Gpu(
                "there is no libcuda.so.1 here: no NVIDIA driver, or its library was not mounted into the container (CDI or the NVIDIA runtime does that)"
                    .into(),
            ));
        }
        let mut driver = Self {
            calls: Calls::load(),
            version: 0,
        };
        if let Some(name) = driver.calls.missing(BASE) {
            return Err(Error::Gpu(format!(
                "the driver lacks {name}: it is too old, or no libcuda"
            )));
        }
        call!(driver, cuInit(0))?;
        let mut version = 0;
        call!(driver, cuDriverGetVersion(&mut version))?;
        driver.version = version as u32;
        Ok(driver)
    }

    pub(super) fn missing(&self, names: &[&'static str]) -> Option<&'static str> {
        self.calls.missing(names)
    }

    fn failed(&self, operation: &str, code: u32) -> Error {
        let mut text = std::ptr::null();
        let name = match self.calls.cuGetErrorName {
            // SAFETY: it writes a pointer to a text of its own that stays.
            Some(function) if unsafe { function(code, &mut text) } == 0 && !text.is_null() => {
                // SAFETY: it said that the text is there; the driver's names end with a zero.
                unsafe { CStr::from_ptr(text) }
                    .to_string_lossy()
                    .into_owned()
            }
            _ => "an error without a name".into(),
        };
        Error::Gpu(format!("{operation}: {name} ({code})"))
    }

    pub(super) fn count(&self) -> Result<i32> {
        let mut count = 0;
        call!(self, cuDeviceGetCount(&mut count))?;
        Ok(count)
    }

    pub(super) fn device(&self, ordinal: i32) -> Result<i32> {
        let mut device = 0;
        call!(self, cuDeviceGet(&mut device, ordinal))?;
        Ok(device)
    }

    pub(super) fn name(&self, device: i32) -> String {
        let mut text = [0_u8; 128];
        let asked = call!(
            self,
            cuDeviceGetName(text.as_mut_ptr().cast(), text.len() as c_int - 1, device)
        );
        match asked {
            Ok(()) => CStr::from_bytes_until_nul(&text)
                .map(|text| text.to_string_lossy().into_owned())
                .unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// The UUID, and whether it is one of a MIG instance: the older call gives that of the whole GPU.
    pub(super) fn uuid(&self, device: i32) -> Result<([u8; 16], bool)> {
        let (mut whole, mut own) = ([0; 16], [0; 16]);
        let first = call!(self, cuDeviceGetUuid(&mut whole, device));
        match call!(self, cuDeviceGetUuid_v2(&mut own, device)) {
            Ok(()) => Ok((own, first.is_ok() && whole != own)),
            Err(_) => first.map(|()| (whole, false)),
        }
    }

    pub(super) fn device_attribute(&self, attribute: i32, device: i32) -> i32 {
        let mut value = 0;
        let asked = call!(self, cuDeviceGetAttribute(&mut value, attribute, device));
        // What it does not know it cannot do.
        asked.map_or(0, |()| value)
    }

    pub(super) fn primary_context(&self, device: i32) -> Result<usize> {
        let mut context = std::ptr::null_mut();
        call!(self, cuDevicePrimaryCtxRetain(&mut context, device))?;
        Ok(context as usize)
    }

    pub(super) fn current(&self) -> Result<usize> {
        let mut context = std::ptr::null_mut();
        call!(self, cuCtxGetCurrent(&mut context))?;
        Ok(context as usize)
    }

    pub(super) fn set_current(&self, context: usize) -> Result<()> {
        call!(self, cuCtxSetCurrent(context as Raw))
    }

    pub(super) fn allocate(&self, size: usize) -> Result<u64> {
        let mut pointer = 0;
        call!(self, cuMemAlloc_v2(&mut pointer, size))?;
        Ok(pointer)
    }

    pub(super) fn free(&self, pointer: u64) -> Result<()> {
        call!(self, cuMemFree_v2(pointer))
    }

    pub(super) fn pinned(&self, size: usize) -> Result<usize> {
        let mut memory = std::ptr::null_mut();
        call!(self, cuMemAllocHost_v2(&mut memory, size))?;
        Ok(memory as usize)
    }

    pub(super) fn free_pinned(&self, memory: usize) {
        let _ = call!(self, cuMemFreeHost(memory as Raw));
    }

    pub(super) fn attribute(&self, attribute: i32, pointer: u64) -> Result<u64> {
        // Every attribute that is asked for has at most 8 bytes, and is little where it has fewer.
        let mut value = [0_u8; 8];
        call!(
            self,
            cuPointerGetAttribute(value.as_mut_ptr().cast(), attribute, pointer)
        )?;
        Ok(u64::from_ne_bytes(value))
    }

    /// Beginning and size of the allocation that an address is in.
    pub(super) fn range(&self, pointer: u64) -> Result<(u64, u64)> {
        let (mut base, mut size) = (0, 0);
        call!(self, cuMemGetAddressRange_v2(&mut base, &mut size, pointer))?;
        Ok((base, size as u64))
    }

    pub(super) fn write(&self, to: u64, bytes: &[u8]) -> Result<()> {
        call!(
            self,
            cuMemcpyHtoD_v2(to, bytes.as_ptr().cast(), bytes.len())
        )
    }

    /// Begins to copy into pinned memory, which must stay until the stream is done.
    pub(super) fn read(&self, to: usize, from: u64, size: usize, stream: u64) -> Result<()> {
        call!(
            self,
            cuMemcpyDtoHAsync_v2(to as Raw, from, size, stream as Raw)
        )
    }

    /// What was copied into pinned memory.
    pub(super) fn pinned_bytes(&self, memory: usize, size: usize) -> &[u8] {
        // SAFETY: the only caller has allocated so much with pinned(), and waited for the copy into it.
        unsafe { std::slice::from_raw_parts(memory as *const u8, size) }
    }

    pub(super) fn fill(&self, to: u64, value: u8, size: usize, stream: u64) -> Result<()> {
        call!(self, cuMemsetD8Async(to, value, size, stream as Raw))
    }

    pub(super) fn stream(&self) -> Result<u64> {
        let mut stream = std::ptr::null_mut();
        // Not blocking: it waits for nobody's default stream.
        call!(self, cuStreamCreate(&mut stream, 1))?;
        Ok(stream as u64)
    }

    pub(super) fn destroy_stream(&self, stream: u64) {
        let _ = call!(self, cuStreamDestroy_v2(stream as Raw));
    }

    pub(super) fn wait_in_stream(&self, stream: u64, event: u64) -> Result<()> {
        call!(self, cuStreamWaitEvent(stream as Raw, event as Raw, 0))
    }

    /// An event without times; for other processes if `shared`.
    pub(super) fn event(&self, shared: bool) -> Result<u64> {
        let mut event = std::ptr::null_mut();
        call!(self, cuEventCreate(&mut event, if shared { 6 } else { 2 }))?;
        Ok(event as u64)
    }

    pub(super) fn record(&self, event: u64, stream: u64) -> Result<()> {
        call!(self, cuEventRecord(event as Raw, stream as Raw))
    }

    pub(super) fn destroy_event(&self, event: u64) {
        let _ = call!(self, cuEventDestroy_v2(event as Raw));
    }

    /// Whether it has happened.
    pub(super) fn happened(&self, event: u64) -> Result<bool> {
        let Some(query) = self.calls.cuEventQuery else {
            return Err(Error::Gpu("the driver lacks cuEventQuery".into()));
        };
        // SAFETY: the caller holds the event.
        match unsafe { query(event as Raw) } {
            0 => Ok(true),
            NOT_READY => Ok(false),
            code => Err(self.failed("cuEventQuery", code)),
        }
    }

    /// Waits for an event, and never longer than allowed: a GPU that hangs, or an event that its owner will never
    /// reach, is an error.
    pub(super) fn wait(&self, event: u64, deadline: Instant, what: &str) -> Result<()> {
        let begun = Instant::now();
        let mut pause = Duration::from_micros(5);
        while !self.happened(event)? {
            if Instant::now() >= deadline {
                return Err(Error::TimedOut {
                    waiting_for: what.to_owned(),
                    after: begun.elapsed(),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
        Ok(())
    }

    pub(super) fn export_event(&self, event: u64) -> Result<[u8; 64]> {
        let mut handle = Bytes64([0; 64]);
        call!(self, cuIpcGetEventHandle(&mut handle, event as Raw))?;
        Ok(handle.0)
    }

    pub(super) fn open_event(&self, handle: [u8; 64]) -> Result<u64> {
        let mut event = std::ptr::null_mut();
        call!(self, cuIpcOpenEventHandle(&mut event, Bytes64(handle)))?;
        Ok(event as u64)
    }

    pub(super) fn export_legacy(&self, pointer: u64) -> Result<[u8; 64]> {
        let mut handle = Bytes64([0; 64]);
        call!(self, cuIpcGetMemHandle(&mut handle, pointer))?;
        Ok(handle.0)
    }

    pub(super) fn open_legacy(&self, handle: [u8; 64]) -> Result<u64> {
        let mut pointer = 0;
        // 1: with peer access where it is needed, the only flag that there is.
        call!(
            self,
            cuIpcOpenMemHandle_v2(&mut pointer, Bytes64(handle), 1)
        )?;
        Ok(pointer)
    }

    pub(super) fn close_legacy(&self, pointer: u64) -> Result<()> {
        call!(self, cuIpcCloseMemHandle(pointer))
    }

    fn properties(device: i32, fabric: bool) -> sys::CUmemAllocationProp {
        // SAFETY: numbers and a pointer: all zeros is a valid value of it, and the driver's default.
        let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
        properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.requestedHandleTypes = match fabric {
            true => sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_FABRIC,
            false => sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        };
        properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        properties.location.id = device;
        properties
    }

    /// Memory of cuMemCreate: its handle and the size that it became.
    pub(super) fn create(&self, device: i32, size: u64, fabric: bool) -> Result<(u64, u64)> {
        let properties = Self::properties(device, fabric);
        let mut step = 0;
        call!(
            self,
            cuMemGetAllocationGranularity(&mut step, &properties, 0)
        )?;
        let size = size.next_multiple_of((step as u64).max(1));
        let mut handle = 0;
        call!(
            self,
            cuMemCreate(&mut handle, size as usize, &properties, 0)
        )?;
        Ok((handle, size))
    }

    pub(super) fn release(&self, handle: u64) {
        let _ = call!(self, cuMemRelease(handle));
    }

    /// Maps it for the device to read and write. Nothing is left if that fails.
    pub(super) fn map(&self, device: i32, handle: u64, size: u64) -> Result<u64> {
        let mut pointer = 0;
        let bytes = size as usize;
        call!(self, cuMemAddressReserve(&mut pointer, bytes, 0, 0, 0))?;
        let access = Self::access(device);
        let mapped = call!(self, cuMemMap(pointer, bytes, 0, handle, 0)).and_then(|()| {
            call!(self, cuMemSetAccess(pointer, bytes, &access, 1)).inspect_err(|_| {
                let _ = call!(self, cuMemUnmap(pointer, bytes));
            })
        });
        if let Err(error) = mapped {
            let _ = call!(self, cuMemAddressFree(pointer, bytes));
            return Err(error);
        }
        Ok(pointer)
    }

    fn access(device: i32) -> sys::CUmemAccessDesc {
        sys::CUmemAccessDesc {
            location: sys::CUmemLocation {
                type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
                id: device,
            },
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        }
    }

    pub(super) fn unmap(&self, pointer: u64, size: u64) -> Result<()> {
        call!(self, cuMemUnmap(pointer, size as usize))?;
        call!(self, cuMemAddressFree(pointer, size as usize))
    }

    /// The handle of memory that is mapped; to be released.
    pub(super) fn retain(&self, pointer: u64) -> Result<u64> {
        let mut handle = 0;
        call!(
            self,
            cuMemRetainAllocationHandle(&mut handle, pointer as Raw)
        )?;
        Ok(handle)
    }

    pub(super) fn export_fd(&self, handle: u64) -> Result<OwnedFd> {
        let mut fd: c_int = -1;
        call!(
            self,
            cuMemExportToShareableHandle((&raw mut fd).cast(), handle, POSIX_FD, 0)
        )?;
        // SAFETY: the driver has just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub(super) fn export_fabric(&self, handle: u64) -> Result<[u8; 64]> {
        let mut bytes = [0_u8; 64];
        call!(
            self,
            cuMemExportToShareableHandle(bytes.as_mut_ptr().cast(), handle, FABRIC, 0)
        )?;
        Ok(bytes)
    }

    pub(super) fn import_fd(&self, fd: BorrowedFd<'_>) -> Result<u64> {
        let mut handle = 0;
        let raw = fd.as_raw_fd() as usize as Raw;
        call!(
            self,
            cuMemImportFromShareableHandle(&mut handle, raw, POSIX_FD)
        )?;
        Ok(handle)
    }

    pub(super) fn import_fabric(&self, mut bytes: [u8; 64]) -> Result<u64> {
        let mut handle = 0;
        call!(
            self,
            cuMemImportFromShareableHandle(&mut handle, bytes.as_mut_ptr().cast(), FABRIC)
        )?;
        Ok(handle)
    }

    /// A pool whose memory other processes can have.
    pub(super) fn pool(&self, device: i32) -> Result<u64> {
        // SAFETY: numbers and a pointer: all zeros is a valid value of it, and the driver's default.
        let mut properties: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
        properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.handleTypes =
            sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
        properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        properties.location.id = device;
        let mut pool = std::ptr::null_mut();
        call!(self, cuMemPoolCreate(&mut pool, &properties))?;
        Ok(pool as u64)
    }

    pub(super) fn destroy_pool(&self, pool: u64) {
        let _ = call!(self, cuMemPoolDestroy(pool as Raw));
    }

    pub(super) fn allocate_from(&self, pool: u64, size: usize) -> Result<u64> {
        let mut pointer = 0;
        let null = std::ptr::null_mut();
        call!(
            self,
            cuMemAllocFromPoolAsync(&mut pointer, size, pool as Raw, null)
        )?;
        Ok(pointer)
    }

    pub(super) fn free_from_pool(&self, pointer: u64) -> Result<()> {
        call!(self, cuMemFreeAsync(pointer, std::ptr::null_mut()))
    }

    pub(super) fn export_pool(&self, pool: u64, pointer: u64) -> Result<(OwnedFd, [u8; 64])> {
        let mut fd: c_int = -1;
        let out = (&raw mut fd).cast();
        call!(
            self,
            cuMemPoolExportToShareableHandle(out, pool as Raw, POSIX_FD, 0)
        )?;
        // SAFETY: the driver has just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut data = Bytes64([0; 64]);
        call!(self, cuMemPoolExportPointer(&mut data, pointer))?;
        Ok((fd, data.0))
    }

    /// A pool of another process, and one address in it.
    pub(super) fn import_pool(
        &self,
        device: i32,
        fd: BorrowedFd<'_>,
        data: [u8; 64],
    ) -> Result<(u64, u64)> {
        let mut pool = std::ptr::null_mut();
        let raw = fd.as_raw_fd() as usize as Raw;
        call!(
            self,
            cuMemPoolImportFromShareableHandle(&mut pool, raw, POSIX_FD, 0)
        )?;
        let access = Self::access(device);
        let (mut pointer, mut data) = (0, Bytes64(data));
        let taken = call!(self, cuMemPoolSetAccess(pool, &access, 1))
            .and_then(|()| call!(self, cuMemPoolImportPointer(&mut pointer, pool, &mut data)));
        if let Err(error) = taken {
            self.destroy_pool(pool as u64);
            return Err(error);
        }
        Ok((pool as u64, pointer))
    }
}
