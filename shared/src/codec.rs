//! Frames over a byte stream.
