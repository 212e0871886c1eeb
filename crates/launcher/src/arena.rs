//! Memory for what the child reads: mapped apart from the heap, so that the heap can be kept out of children.

use std::ptr;

use crate::sys::{Errno, errno};

/// A bump allocator over one private anonymous mapping, unmapped on drop.
pub(crate) struct Arena {
    base: *mut u8,
    size: usize,
    used: usize,
}

impl Arena {
    /// Maps at least `size` bytes, zeroed.
    pub(crate) fn new(size: usize) -> Result<Self, Errno> {
        let size = size.next_multiple_of(4096);
        // SAFETY: a fresh anonymous mapping.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(errno());
        }
        Ok(Arena { base: base.cast(), size, used: 0 })
    }

    /// Takes `size` bytes aligned to 16.
    ///
    /// Panics when the arena was sized too small, which is an error of the sum in `request.rs`.
    pub(crate) fn take(&mut self, size: usize) -> *mut u8 {
        let start = self.used.next_multiple_of(16);
        assert!(start + size <= self.size, "the arena holds what it was sized for");
        self.used = start + size;
        // SAFETY: within the mapping by the assertion above.
        unsafe { self.base.add(start) }
    }

    /// Copies a slice.
    pub(crate) fn copy<T: Copy>(&mut self, items: &[T]) -> *const T {
        const { assert!(align_of::<T>() <= 16) };
        let place = self.take(size_of_val(items)).cast::<T>();
        // SAFETY: `place` has room for the items and is aligned to 16.
        unsafe { ptr::copy_nonoverlapping(items.as_ptr(), place, items.len()) };
        place
    }

    /// Copies `bytes` and a closing NUL.
    pub(crate) fn c_string(&mut self, bytes: &[u8]) -> *const libc::c_char {
        let place = self.take(bytes.len() + 1);
        // SAFETY: `place` has room for the bytes; the mapping is zeroed, so the NUL is there.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        place.cast()
    }

    /// A null-terminated array of C strings.
    pub(crate) fn c_strings<T: AsRef<[u8]>>(&mut self, texts: &[T]) -> *const *const libc::c_char {
        let array = self.take((texts.len() + 1) * size_of::<*const libc::c_char>());
        let array = array.cast::<*const libc::c_char>();
        for (index, text) in texts.iter().enumerate() {
            let text = self.c_string(text.as_ref());
            // SAFETY: `index` is below the length the array was taken with; it is aligned to 16.
            unsafe { *array.add(index) = text };
        }
        array
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, no longer referred to by this process.
        unsafe { libc::munmap(self.base.cast(), self.size) };
    }
}
