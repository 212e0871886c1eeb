//! allocator.
