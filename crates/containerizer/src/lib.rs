//! containerizer.
