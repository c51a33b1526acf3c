//! The few ioctl shapes that this crate needs.

use std::{ffi::c_void, os::fd::BorrowedFd};

use rustix::{
    io::{Errno, Result},
    ioctl::{Ioctl, IoctlOutput, NoArg, Opcode, Updater, ioctl},
};

/// An ioctl without an argument.
///
/// # Safety
/// `CODE` must be an ioctl that takes none.
pub(crate) unsafe fn plain<const CODE: Opcode>(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the caller answers for the opcode.
    unsafe { ioctl(fd, NoArg::<CODE>::new()) }
}

/// An ioctl that reads, and may write, a value.
///
/// # Safety
/// `CODE` must be an ioctl whose argument is a pointer to a `T`, and any bytes that it writes must make a valid `T`.
pub(crate) unsafe fn with<const CODE: Opcode, T>(fd: BorrowedFd<'_>, value: &mut T) -> Result<()> {
    // SAFETY: the caller answers for opcode and type.
    unsafe { ioctl(fd, Updater::<CODE, T>::new(value)) }
}

/// An ioctl with an integer argument (by value) whose return value is the answer.
///
/// # Safety
/// `CODE` must be such an ioctl.
pub(crate) unsafe fn number<const CODE: Opcode>(fd: BorrowedFd<'_>, argument: usize) -> Result<u32> {
    struct Number<const CODE: Opcode>(usize);

    // SAFETY: the argument is an integer, never dereferenced, and the output is the return value.
    unsafe impl<const CODE: Opcode> Ioctl for Number<CODE> {
        type Output = u32;

        const IS_MUTATING: bool = false;

        fn opcode(&self) -> Opcode {
            CODE
        }

        fn as_ptr(&mut self) -> *mut c_void {
            std::ptr::without_provenance_mut(self.0)
        }

        unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> Result<u32> {
            u32::try_from(output).map_err(|_| Errno::RANGE)
        }
    }

    // SAFETY: the caller answers for the opcode.
    unsafe { ioctl(fd, Number::<CODE>(argument)) }
}

/// The error of the last raw system call of this thread.
pub(crate) fn last_error() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
