//! One child that borrows our memory until its exec, with a pidfd, and where the kernel can, born in its cgroup.
//!
//! A child that moves itself by a write to `cgroup.procs` takes a lock over every fork and exec of the machine, and on an idle machine
//! waits for an RCU grace period under it: 7 to 25 ms (docs/adr/0001). `CLONE_INTO_CGROUP` (clone(2), since Linux 5.7) needs
//! neither, but only clone3 has it, for which libc has no wrapper: hence a dozen instructions of our own where they are
//! known to work, and libc's `clone` everywhere else.
#![expect(
    unsafe_code,
    reason = "a child on a stack of its own is made by system calls that Rust cannot check"
)]

use std::{
    cell::Cell,
    ffi::{c_int, c_void},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicI32, Ordering::SeqCst},
};

use crate::sys::child::Child;

/// The child's stack until its exec; it calls nothing deep.
const STACK_BYTES: usize = 64 * 1024;
/// What nobody may touch below it; a multiple of every page size.
const GUARD_BYTES: usize = 64 * 1024;

/// What the child runs, with the pointer that [`Cloner::clone`] got; it must not return.
pub(super) type Entry = extern "C" fn(*mut c_void) -> c_int;

/// Makes children, one at a time: its stack is not for two threads, and it is not `Sync`.
pub(super) struct Cloner {
    stack: Stack,
    share_files: bool,
    into_cgroup: Cell<bool>,
}

impl Cloner {
    /// `share_files`: the child shares our descriptor table, and unshares it as its first step.
    pub(super) fn new(share_files: bool) -> io::Result<Self> {
        Ok(Self {
            stack: Stack::new()?,
            share_files,
            into_cgroup: Cell::new(cfg!(target_arch = "x86_64")),
        })
    }

    /// Can a child be made inside its cgroup, as far as is known?
    pub(super) fn can_enter_cgroup(&self) -> bool {
        self.into_cgroup.get()
    }

    /// This kernel, or a filter, does not let it: not tried again.
    pub(super) fn never_enter_cgroup(&self) {
        self.into_cgroup.set(false);
    }

    /// Runs `entry(argument)` in a child and returns when that has executed a program or ended; its errno if there is no child.
    /// The kernel writes its pidfd to `pidfd` before the child takes its first step. With `first` it is the first process of a PID
    /// namespace of its own.
    ///
    /// # Safety
    ///
    /// `entry` shares all our memory: it may make raw system calls only, and must not return. `argument` is what it takes.
    pub(super) unsafe fn clone(
        &self,
        entry: Entry,
        argument: *mut c_void,
        cgroup: Option<BorrowedFd<'_>>,
        first: bool,
        pidfd: &AtomicI32,
    ) -> Result<Child, i32> {
        let mut flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
        if first {
            flags |= libc::CLONE_NEWPID;
        }
        if self.share_files {
            flags |= libc::CLONE_FILES;
        }
        let blocked = BlockedSignals::all();
        let pid = match cgroup {
            Some(leaf) => {
                let arguments = Clone3 {
                    flags: flags as u64 | CLONE_INTO_CGROUP,
                    pidfd: pidfd.as_ptr() as u64,
                    exit_signal: libc::SIGCHLD as u64,
                    stack: self.stack.base as u64,
                    stack_size: (GUARD_BYTES + STACK_BYTES) as u64,
                    cgroup: leaf.as_raw_fd() as u64,
                    ..Clone3::default()
                };
                // SAFETY: as below; `arguments` describes the same stack by its lowest byte and its size.
                unsafe { clone3(&arguments, entry, argument) }
            }
            None => {
                // SAFETY: the stack is ours, mapped, 16-byte aligned at its top and used by one child at a time: CLONE_VFORK
                // suspends this thread until the child has executed or exited, which also keeps `argument` alive. All signals
                // are blocked, so no handler of ours can run in the child. The pidfd is written to the atomic, which clone(2)
                // takes as its first variadic argument.
                let pid = unsafe {
                    libc::clone(
                        entry,
                        self.stack.top(),
                        flags | libc::SIGCHLD,
                        argument,
                        pidfd.as_ptr(),
                    )
                };
                if pid < 0 { Err(last_errno()) } else { Ok(pid) }
            }
        };
        drop(blocked);
        let pid = pid?;
        // SAFETY: the call succeeded with CLONE_PIDFD, so the number is a fresh descriptor that nobody else closes.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd.load(SeqCst)) };
        Ok(Child::new(pid, pidfd))
    }
}

/// `struct clone_args` of clone(2), as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct Clone3 {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// clone3(2), whose child calls `entry(argument)` on the stack that `arguments` names.
///
/// # Safety
///
/// With CLONE_VM: that stack is nobody else's, and `entry` keeps the rules of [`Cloner::clone`].
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(arguments: &Clone3, entry: Entry, argument: *mut c_void) -> Result<i32, i32> {
    let result: i64;
    // SAFETY: in the parent this is an ordinary system call, which clobbers rax, rcx and r11. The child differs in rax and rsp alone
    // and never leaves the block: rsp is the top of its stack, 16-byte aligned as `call` wants it (System V ABI 3.2.2), rbp 0 marks
    // its first frame, and the two operands are in registers that the call keeps.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") ptr::from_ref(arguments),
            in("rsi") size_of::<Clone3>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    if result < 0 {
        Err(-result as i32)
    } else {
        Ok(result as i32)
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn clone3(_: &Clone3, _: Entry, _: *mut c_void) -> Result<i32, i32> {
    Err(libc::ENOSYS)
}

fn last_errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// All signals blocked for this thread until dropped.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn all() -> Self {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: both sets are valid for writing; sigfillset initialises the first, pthread_sigmask the second.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self(before.assume_init())
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set was filled in by `all`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// The child's stack, above a guard that nobody may touch.
struct Stack {
    base: *mut c_void,
}

impl Stack {
    fn new() -> io::Result<Self> {
        // SAFETY: a fresh private anonymous mapping; its lowest part is made inaccessible before use.
        unsafe {
            let base = libc::mmap(
                ptr::null_mut(),
                GUARD_BYTES + STACK_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            );
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            if libc::mprotect(base, GUARD_BYTES, libc::PROT_NONE) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { base })
        }
    }

    fn top(&self) -> *mut c_void {
        // SAFETY: one past the end of the mapping, page-aligned; stacks grow down from here.
        unsafe { self.base.add(GUARD_BYTES + STACK_BYTES) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no child uses it: `clone` returns only after the child has left it.
        unsafe { libc::munmap(self.base, GUARD_BYTES + STACK_BYTES) };
    }
}
