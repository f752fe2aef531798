//! Errors on the wire: a code for the program (what the caller should do), prose for the person.
//!
//! `message` says what happened, `detail` where or why, `hint` what to do. `sqlstate` is PostgreSQL's five-letter code.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the caller should do, nothing else. Adding a variant is a protocol change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Code {
    /// Ask another node; the address, where known, is in [`WireError::redirect`].
    Redirect,
    /// Nothing happened; the same request may be sent again.
    Retry,
    /// It may or may not have happened.
    Unknown,
    /// The statement lost against a concurrent one; nothing happened.
    Conflict,
    /// Too much in flight; nothing happened, later is better.
    Busy,
    /// This replica has not applied far enough for the read level asked for.
    Behind,
    /// The statement or request is at fault.
    Invalid,
    /// Something named does not exist.
    NotFound,
    /// Not allowed.
    Denied,
    /// This node or session takes no writes.
    ReadOnly,
    /// Our bug, or local damage; logged at ERROR.
    Internal,
}

impl Code {
    /// All of them, in their order on the wire.
    pub const ALL: [Code; 11] = [
        Code::Redirect,
        Code::Retry,
        Code::Unknown,
        Code::Conflict,
        Code::Busy,
        Code::Behind,
        Code::Invalid,
        Code::NotFound,
        Code::Denied,
        Code::ReadOnly,
        Code::Internal,
    ];
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Code::Redirect => "redirect",
            Code::Retry => "retry",
            Code::Unknown => "unknown",
            Code::Conflict => "conflict",
            Code::Busy => "busy",
            Code::Behind => "behind",
            Code::Invalid => "invalid",
            Code::NotFound => "not found",
            Code::Denied => "denied",
            Code::ReadOnly => "read only",
            Code::Internal => "internal",
        })
    }
}

/// An error as a client sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WireError {
    /// What the caller should do.
    pub code: Code,
    /// PostgreSQL's SQLSTATE, where the error is about SQL.
    pub sqlstate: Option<String>,
    /// What happened: one lower-case sentence without a full stop.
    pub message: String,
    /// Where, why, which values.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// Offset in characters into the statement, from 0.
    pub position: Option<u32>,
    /// The address to ask instead (`Redirect`, `ReadOnly`).
    pub redirect: Option<String>,
}

impl WireError {
    /// An error with a code and a message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, sqlstate: None, message: message.into(), detail: None, hint: None, position: None, redirect: None }
    }
    /// The statement is at fault, with a SQLSTATE.
    pub fn sql(sqlstate: &str, message: impl Into<String>) -> Self {
        let code = match sqlstate {
            "42P01" | "42703" | "42704" | "3D000" | "42883" => Code::NotFound,
            "40001" => Code::Conflict,
            "25006" => Code::ReadOnly,
            _ => Code::Invalid,
        };
        Self { sqlstate: Some(sqlstate.into()), ..Self::new(code, message) }
    }
    /// A feature that is refused by name (SQLSTATE 0A000).
    pub fn unsupported(what: impl fmt::Display) -> Self {
        Self::sql("0A000", format!("{what} is not supported"))
    }
    /// Adds a detail.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// Adds a position (characters from 0).
    #[must_use]
    pub fn at(mut self, position: u32) -> Self {
        self.position = Some(position);
        self
    }
    /// Adds the address to ask instead.
    #[must_use]
    pub fn redirect(mut self, address: Option<String>) -> Self {
        self.redirect = address;
        self
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for WireError {}
