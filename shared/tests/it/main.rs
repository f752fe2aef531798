//! The integration tests of this package, and the checks of the whole repository that need no build of it.

mod tidy;
