//! Session settings: `SET name = value`, `SHOW name`, `RESET name`.
//!
//! Each has one canonical text form, which is what `SHOW` prints, what a client restores after a reconnect, and what
//! [`Settings::set`] reads back. Settings of other databases that dumps and drivers send are accepted and ignored with
//! a notice; anything else unknown is refused with the nearest name.

use quorate_shared::error::WireError;
use quorate_shared::ids::{Index, ShardId, Token};
use quorate_shared::limits::DATABASE_DEFAULT;
use quorate_shared::wire::ReadLevel;

/// A session's settings.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Where names without a database are looked up, in lower case.
    pub database: String,
    /// Which state reads must see.
    pub read_level: ReadLevel,
    /// Log-shipped replicas a write waits for.
    pub wait_for_replicas: u32,
    /// How long it waits for them, in milliseconds.
    pub wait_timeout_ms: u32,
    /// How long a statement may take, in milliseconds; `None`: as long as its client waits for it.
    pub statement_timeout_ms: Option<u64>,
    /// Offset of the session's time zone, e.g. `+00:00`.
    pub timezone: String,
    /// Refuse anything that writes.
    pub read_only: bool,
    /// What the client calls itself.
    pub application_name: String,
}

/// How long a statement may take when neither session nor client says.
const STATEMENT_MS: u64 = 60_000;
/// Every statement has a deadline.
const STATEMENT_MS_MAX: u64 = 86_400_000;

impl Default for Settings {
    fn default() -> Self {
        Self {
            database: DATABASE_DEFAULT.to_owned(),
            read_level: ReadLevel::Linearizable,
            wait_for_replicas: 0,
            wait_timeout_ms: 1_000,
            statement_timeout_ms: None,
            timezone: "+00:00".to_owned(),
            read_only: false,
            application_name: String::new(),
        }
    }
}

/// Name and meaning of every setting.
pub const SETTINGS: &[(&str, &str)] = &[
    ("application_name", "what the client calls itself"),
    ("database", "where names without a database are looked up (USE)"),
    ("read_level", "linearizable, local, max_staleness <ms> or after <shard>:<epoch>:<index>"),
    ("read_only", "refuse anything that writes"),
    ("statement_timeout", "how long a statement may take"),
    ("timezone", "time zone of timestamps shown, as an offset"),
    ("wait_for_replicas", "log-shipped replicas a write waits for"),
    ("wait_timeout", "how long a write waits for them"),
];

/// Settings of other databases that are accepted and have no effect here.
const FOREIGN: &[&str] = &[
    "autocommit",
    "bytea_output",
    "character_set_client",
    "character_set_connection",
    "character_set_results",
    "check_function_bodies",
    "client_encoding",
    "client_min_messages",
    "collation_connection",
    "datestyle",
    "default_table_access_method",
    "default_tablespace",
    "default_with_oids",
    "extra_float_digits",
    "foreign_key_checks",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "lock_timeout",
    "names",
    "row_security",
    "search_path",
    "session_replication_role",
    "sql_mode",
    "sql_notes",
    "sql_safe_updates",
    "standard_conforming_strings",
    "transaction_timeout",
    "unique_checks",
    "xmloption",
];

/// What became of a `SET`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetOutcome {
    /// It has an effect.
    Set,
    /// A setting of another database, ignored.
    Ignored,
}

impl Settings {
    /// Sets one, in canonical or a usual other form.
    ///
    /// # Errors
    /// `42704` for an unknown name, `22023` for a value that does not fit.
    pub fn set(&mut self, name: &str, value: &str) -> Result<SetOutcome, WireError> {
        let name = canonical_name(name);
        let value = value.trim();
        if value.eq_ignore_ascii_case("default") && SETTINGS.iter().any(|(n, _)| *n == name) {
            return self.reset(&name).map(|()| SetOutcome::Set);
        }
        match name.as_str() {
            "database" => self.database = value.to_lowercase(),
            "read_level" => self.read_level = parse_read_level(value)?,
            "wait_for_replicas" => self.wait_for_replicas = number(&name, value)?,
            "wait_timeout" => {
                self.wait_timeout_ms =
                    u32::try_from(duration_ms(&name, value)?).map_err(|_| bad(&name, value, "a shorter time"))?
            }
            "statement_timeout" => {
                let ms = duration_ms(&name, value)?;
                // 0 means "none" elsewhere.
                self.statement_timeout_ms = Some(if ms == 0 { STATEMENT_MS_MAX } else { ms.min(STATEMENT_MS_MAX) });
            }
            "timezone" => self.timezone = parse_timezone(value)?,
            "read_only" => self.read_only = boolean(&name, value)?,
            "application_name" => self.application_name = value.chars().take(64).collect(),
            other if FOREIGN.contains(&other) || other.starts_with('@') => return Ok(SetOutcome::Ignored),
            other => return Err(unknown(other)),
        }
        Ok(SetOutcome::Set)
    }

    /// Back to its default.
    ///
    /// # Errors
    /// `42704` for an unknown name.
    pub fn reset(&mut self, name: &str) -> Result<(), WireError> {
        let value = Settings::default().get(name)?;
        self.set(name, &value)?;
        if canonical_name(name) == "statement_timeout" {
            self.statement_timeout_ms = None;
        }
        Ok(())
    }

    /// How long a statement may take, in milliseconds, if its client waits so long (0: it does not say).
    pub fn patience_ms(&self, client_ms: u64) -> u64 {
        match (self.statement_timeout_ms, client_ms) {
            (Some(set), 0) => set,
            (Some(set), client) => set.min(client),
            (None, 0) => STATEMENT_MS,
            (None, client) => client,
        }
    }

    /// The canonical text of one.
    ///
    /// # Errors
    /// `42704` for an unknown name.
    pub fn get(&self, name: &str) -> Result<String, WireError> {
        Ok(match canonical_name(name).as_str() {
            "database" => self.database.clone(),
            "read_level" => show_read_level(&self.read_level),
            "wait_for_replicas" => self.wait_for_replicas.to_string(),
            "wait_timeout" => format!("{}ms", self.wait_timeout_ms),
            "statement_timeout" => format!("{}ms", self.patience_ms(0)),
            "timezone" => self.timezone.clone(),
            "read_only" => if self.read_only { "on" } else { "off" }.to_owned(),
            "application_name" => self.application_name.clone(),
            other => return Err(unknown(other)),
        })
    }
}

fn canonical_name(name: &str) -> String {
    let name = name.to_lowercase();
    match name.as_str() {
        "time zone" | "time_zone" => "timezone".to_owned(),
        "transaction_read_only" | "default_transaction_read_only" => "read_only".to_owned(),
        _ => name,
    }
}

fn unknown(name: &str) -> WireError {
    let nearest = SETTINGS.iter().map(|(n, _)| (strsim::damerau_levenshtein(n, name), *n)).min();
    let error = WireError::sql("42704", format!("there is no setting \"{name}\""));
    match nearest {
        Some((distance, nearest)) if distance <= 3 => error.hint(format!("did you mean {nearest}?")),
        _ => error.hint("SHOW ALL lists the settings"),
    }
}

fn bad(name: &str, value: &str, wanted: &str) -> WireError {
    WireError::sql("22023", format!("invalid value for {name}: \"{value}\"")).hint(format!("it takes {wanted}"))
}

fn number(name: &str, value: &str) -> Result<u32, WireError> {
    value.parse().map_err(|_| bad(name, value, "a whole number, 0 or more"))
}

fn boolean(name: &str, value: &str) -> Result<bool, WireError> {
    match value.to_lowercase().as_str() {
        "on" | "true" | "yes" | "1" | "t" => Ok(true),
        "off" | "false" | "no" | "0" | "f" => Ok(false),
        _ => Err(bad(name, value, "on or off")),
    }
}

/// `1500`, `1500ms`, `2s`, `5min`, `1h`.
pub(super) fn duration_ms(name: &str, value: &str) -> Result<u64, WireError> {
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (count, unit) = value.split_at(digits);
    let factor = match unit.trim().to_lowercase().as_str() {
        "" | "ms" => 1,
        "s" | "sec" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad(name, value, "a time such as 500ms, 30s or 5min")),
    };
    count
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor))
        .ok_or_else(|| bad(name, value, "a time such as 500ms, 30s or 5min"))
}

fn parse_timezone(value: &str) -> Result<String, WireError> {
    let wanted = "UTC or an offset such as +02:00";
    if matches!(value.to_lowercase().as_str(), "utc" | "gmt" | "z" | "system" | "default" | "local") {
        return Ok("+00:00".to_owned());
    }
    let (sign, rest) = match value.as_bytes().first() {
        Some(b'+') => ('+', &value[1..]),
        Some(b'-') => ('-', &value[1..]),
        _ => ('+', value),
    };
    let (hours, minutes) = rest.split_once(':').unwrap_or((rest, "0"));
    match (hours.parse::<u8>(), minutes.parse::<u8>()) {
        (Ok(h), Ok(m)) if h <= 14 && m < 60 => Ok(format!("{sign}{h:02}:{m:02}")),
        _ => Err(bad("timezone", value, wanted)),
    }
}

fn parse_read_level(value: &str) -> Result<ReadLevel, WireError> {
    let wanted = "linearizable, local, max_staleness <ms> or after <shard>:<epoch>:<index>";
    let lower = value.to_lowercase();
    let (name, rest) = lower.split_once([' ', '=', ':']).unwrap_or((&lower, ""));
    let words = rest.split([' ', ',', '=']).filter(|word| !word.is_empty());
    let mut words = std::iter::once(name.trim()).chain(words);
    match words.next() {
        Some("linearizable" | "strong") => Ok(ReadLevel::Linearizable),
        Some("local") => Ok(ReadLevel::Local),
        Some("max_staleness") => words
            .next()
            .and_then(|w| duration_ms("read_level", w).ok())
            .map(ReadLevel::MaxStaleness)
            .ok_or_else(|| bad("read_level", value, wanted)),
        Some("after") => {
            let tokens: Option<Vec<Token>> = words.map(parse_token).collect();
            tokens.filter(|t| !t.is_empty()).map(ReadLevel::After).ok_or_else(|| bad("read_level", value, wanted))
        }
        _ => Err(bad("read_level", value, wanted)),
    }
}

fn parse_token(word: &str) -> Option<Token> {
    let mut parts = word.trim_matches(',').split(':');
    let shard = parts.next()?.trim_start_matches('s').parse().ok()?;
    let epoch = parts.next()?.parse().ok()?;
    let index = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some(Token { shard: ShardId::new(shard), epoch, index: Index::new(index) })
}

fn show_read_level(level: &ReadLevel) -> String {
    match level {
        ReadLevel::Linearizable => "linearizable".to_owned(),
        ReadLevel::Local => "local".to_owned(),
        ReadLevel::MaxStaleness(ms) => format!("max_staleness {ms}ms"),
        ReadLevel::After(tokens) => {
            let tokens: Vec<String> = tokens.iter().map(|t| format!("{}:{}:{}", t.shard, t.epoch, t.index)).collect();
            format!("after {}", tokens.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_reads_back_what_it_shows() {
        let mut settings = Settings::default();
        for (name, value) in [
            ("read_level", "max_staleness 500"),
            ("read_level", "max_staleness:2s"),
            ("read_level", "max_staleness = 2s"),
            ("read_level", "after s1:1:17 s0:1:3"),
            ("statement_timeout", "2min"),
            ("timezone", "-3:30"),
            ("read_only", "true"),
            ("wait_for_replicas", "2"),
            ("database", "Chinook"),
        ] {
            assert_eq!(settings.set(name, value).unwrap(), SetOutcome::Set);
            let shown = settings.get(name).unwrap();
            let mut other = settings.clone();
            other.set(name, &shown).unwrap();
            assert_eq!(other, settings, "{name}");
        }
        for (name, _) in SETTINGS {
            let shown = settings.get(name).unwrap();
            settings.set(name, &shown).unwrap();
        }
    }

    #[test]
    fn unknown_settings_name_the_nearest_and_foreign_ones_are_ignored() {
        let mut settings = Settings::default();
        let error = settings.set("read_levle", "local").unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("did you mean read_level?"));
        assert_eq!(settings.set("client_encoding", "UTF8").unwrap(), SetOutcome::Ignored);
        assert!(settings.set("statement_timeout", "soon").is_err());
        settings.set("statement_timeout", "300ms").unwrap();
        assert_eq!([0, 100, 60_000].map(|client| settings.patience_ms(client)), [300, 100, 300]);
        settings.reset("statement_timeout").unwrap();
        assert_eq!([0, 100, 90_000].map(|client| settings.patience_ms(client)), [60_000, 100, 90_000]);
    }
}
