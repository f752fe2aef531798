//! `quorate verify` and `quorate anchor`: the log that proves itself, from the command line.
//!
//! An anchor is read and checked here first, so a file that is none is refused as a mistake of usage (exit 2) without
//! asking anybody. What does not match is exit 1.

use std::path::Path;

use quorate_shared::admin::AdminAction;
use quorate_shared::anchor::{ANCHOR_BYTES_MAX, Anchor};
use quorate_shared::error::{Code, WireError};

use crate::admin::{Document, How, act, taken};
use crate::args::{AnchorArgs, VerifyArgs};
use crate::config::Options;
use crate::exit::Exit;
use crate::render::error::{Paint, plain_error};

/// `quorate verify`; its exit code.
pub async fn verify(options: &Options, args: &VerifyArgs, paint: Paint) -> u8 {
    let anchor = match args.anchor.as_deref().map(read).transpose() {
        Ok(anchor) => anchor,
        Err(why) => {
            eprint!("{}", plain_error(&WireError::new(Code::Invalid, why), paint));
            return Exit::Usage.code();
        }
    };
    let how = How { dry_run: args.dry_run, json: args.json, ..How::default() };
    act(options, AdminAction::Verify { anchor }, how, paint).await
}

/// `quorate anchor`; its exit code.
pub async fn anchor(options: &Options, args: &AnchorArgs, paint: Paint) -> u8 {
    let document = match &args.out {
        Some(path) if path.exists() => {
            eprint!("{}", plain_error(&WireError::new(Code::Invalid, taken(path)), paint));
            return Exit::Usage.code();
        }
        Some(path) => Document::Written(path.clone()),
        None => Document::Printed,
    };
    let how = How { dry_run: args.dry_run, json: args.json, document: Some(document), ..How::default() };
    act(options, AdminAction::Anchor, how, paint).await
}

/// The text of an anchor's file.
fn read(path: &Path) -> Result<String, String> {
    let name = path.display();
    let bytes = std::fs::metadata(path).map_err(|e| format!("cannot read {name}: {e}"))?.len();
    if bytes > ANCHOR_BYTES_MAX as u64 {
        return Err(format!("{name} is no anchor: it has {bytes} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {name}: {e}"))?;
    Anchor::parse(&text).map_err(|e| format!("{name}: {e}"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_anchor_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert!(read(&path).unwrap_err().contains("cannot read"));
        std::fs::write(&path, "{}").unwrap();
        assert!(read(&path).unwrap_err().contains("a.json: this is no anchor"));
    }
}
