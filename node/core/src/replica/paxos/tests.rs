//! Tests of what the wrapper adds to the library.
