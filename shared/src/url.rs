//! `quorate://` URLs.
