//! What the command line, the environment and the configuration file come to together.
//!
//! Precedence: flags, then `QUORATE_*`, then a URL's parts, then the configuration file, then the defaults. An unknown key in the file
//! is an error that names file, line and the nearest valid key.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_shared::limits::PORT_DEFAULT;
use quorate_shared::url::{Address, Url, parse_hosts};

use crate::args::{self, ConnectionArgs, Format};

/// Where and how to connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Nodes to try, in order.
    pub hosts: Vec<Address>,
    /// User name.
    pub user: String,
    /// Database to begin in.
    pub database: Option<String>,
    /// Session settings to begin with.
    pub settings: Vec<(String, String)>,
    /// Give up on a statement, or on connecting, after this long.
    pub timeout: Option<Duration>,
    /// Refuse everything that writes.
    pub read_only: bool,
    /// The file's other keys.
    pub file: FileConfig,
}

/// The configuration file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileConfig {
    /// `HOST[:PORT],...` or a URL.
    pub host: Option<String>,
    /// Port of hosts without one.
    pub port: Option<u16>,
    /// Database to begin in.
    pub database: Option<String>,
    /// User name.
    pub user: Option<String>,
    /// Time to give up after.
    pub timeout: Option<Duration>,
    /// Refuse writes.
    pub read_only: bool,
    /// What reads must see.
    pub read_level: Option<String>,
    /// How results are written.
    pub format: Option<Format>,
    /// Where the history is kept; empty keeps none.
    pub history_file: Option<PathBuf>,
    /// `emacs` (default) or `vi`.
    pub vi: bool,
}

const KEYS: [&str; 10] =
    ["host", "port", "database", "user", "timeout", "read_only", "read_level", "format", "history_file", "edit_mode"];

/// Puts everything together; the error is ready to be shown.
pub fn resolve(given: &ConnectionArgs, positional: Option<&str>) -> Result<Options, String> {
    let file = read_file(given.config.as_deref())?;
    let host = given.host.as_deref().filter(|h| !h.is_empty());
    let url_text = match (positional, host) {
        (Some(_), Some(host)) if given_as_flag(host) => {
            return Err("give the nodes either as a URL or with -h, not both".to_owned());
        }
        (Some(url), _) => Some(url),
        (None, Some(host)) => Some(host).filter(|h| args::is_url(h)),
        (None, None) => file.host.as_deref().filter(|h| args::is_url(h)),
    };
    let url: Url = url_text
        .map(str::parse)
        .transpose()
        .map_err(|e: quorate_shared::url::UrlError| e.to_string())?
        .unwrap_or_default();
    let port = given.port.or(file.port).unwrap_or(PORT_DEFAULT);
    let hosts = if url_text.is_some() {
        url.hosts
    } else {
        parse_hosts(host.or(file.host.as_deref()).unwrap_or("127.0.0.1"), port).map_err(|e| e.to_string())?
    };
    let mut settings = url.settings;
    if let Some(level) = given.read_level.clone().or_else(|| file.read_level.clone()) {
        settings.retain(|(name, _)| name != "read_level");
        settings.push(("read_level".to_owned(), level));
    }
    Ok(Options {
        hosts,
        user: given.user.clone().or(url.user).or_else(|| file.user.clone()).unwrap_or_else(system_user),
        database: given.database.clone().or(url.database).or_else(|| file.database.clone()),
        settings,
        timeout: given.timeout.or(file.timeout),
        read_only: given.read_only || file.read_only,
        file,
    })
}

/// Whether `-h` itself was given: `QUORATE_HOST` beside a URL is merely overruled.
fn given_as_flag(host: &str) -> bool {
    env::var("QUORATE_HOST").map_or(true, |from_env| from_env != host)
}

/// The operating system's user.
fn system_user() -> String {
    ["USER", "LOGNAME"].iter().find_map(|name| env::var(name).ok().filter(|v| !v.is_empty())).unwrap_or_else(|| {
        let id = rustix::process::getuid().as_raw();
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        user_of(&users, id).unwrap_or_else(|| format!("uid{id}"))
    })
}

/// The name of a user in the text of `/etc/passwd`.
fn user_of(users: &str, id: u32) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    })
}

/// A directory of the XDG base directory specification: `variable`, or `fallback` under the home directory.
pub fn xdg(variable: &str, fallback: &str) -> Option<PathBuf> {
    let set = env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    set.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(fallback)))
}

fn read_file(given: Option<&Path>) -> Result<FileConfig, String> {
    let standard = xdg("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("quorate/config.toml"));
    let Some(path) = given.map(Path::to_path_buf).or(standard) else { return Ok(FileConfig::default()) };
    match fs::read_to_string(&path) {
        Ok(text) => parse_file(&text).map_err(|(line, why)| format!("{}:{line}: {why}", path.display())),
        Err(e) if given.is_none() && e.kind() == ErrorKind::NotFound => Ok(FileConfig::default()),
        Err(e) => Err(format!("cannot read {}: {e}", path.display())),
    }
}

/// Reads the file's text; an error comes with its line.
pub fn parse_file(text: &str) -> Result<FileConfig, (usize, String)> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| line_of_offset(text, span.start));
        (line, e.message().to_owned())
    })?;
    let mut config = FileConfig::default();
    for (key, value) in &table {
        let fail = |why: String| (line_of_key(text, key), why);
        if !KEYS.contains(&key.as_str()) {
            let near = args::nearest(key, KEYS).map(|k| format!("; did you mean '{k}'?"));
            let hint = near.unwrap_or_else(|| format!("; valid keys are {}", KEYS.join(", ")));
            return Err(fail(format!("unknown key '{key}'{hint}")));
        }
        config.set(key, value).map_err(fail)?;
    }
    Ok(config)
}

impl FileConfig {
    fn set(&mut self, key: &str, value: &toml::Value) -> Result<(), String> {
        let text = || match value {
            toml::Value::String(s) => Ok(s.clone()),
            other => Err(format!("'{key}' must be a string, not {}", other.type_str())),
        };
        match key {
            "host" => self.host = Some(text()?),
            "port" => {
                let port = value.as_integer().and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
                self.port = Some(port.ok_or_else(|| "'port' must be a number from 1 to 65535".to_owned())?);
            }
            "database" => self.database = Some(text()?),
            "user" => self.user = Some(text()?),
            "timeout" => {
                let text = value.as_integer().map_or_else(text, |n| Ok(n.to_string()))?;
                self.timeout = Some(args::duration(&text)?);
            }
            "read_only" => {
                self.read_only = value.as_bool().ok_or_else(|| "'read_only' must be true or false".to_owned())?
            }
            "read_level" => self.read_level = Some(args::read_level(&text()?)?),
            "format" => {
                let name = text()?;
                self.format = Some(Format::of(&name).ok_or_else(|| format!("'{name}' is no format"))?);
            }
            "history_file" => self.history_file = Some(text()?.into()),
            "edit_mode" => match text()?.as_str() {
                "emacs" => self.vi = false,
                "vi" => self.vi = true,
                other => return Err(format!("'edit_mode' must be emacs or vi, not '{other}'")),
            },
            _ => {}
        }
        Ok(())
    }
}

fn line_of_offset(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

fn line_of_key(text: &str, key: &str) -> usize {
    let names = |line: &str| {
        let line = line.trim_start().trim_start_matches(['[', '"', '\'']);
        line.strip_prefix(key).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    text.lines().position(names).map_or(1, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_its_mistakes_are_named() {
        let config =
            parse_file("host = 'a,b'\nport = 99\ntimeout = 5\nformat = 'CSV'\nedit_mode = 'vi'").expect("valid");
        assert_eq!((config.host.as_deref(), config.port), (Some("a,b"), Some(99)));
        assert_eq!(config.timeout, Some(Duration::from_secs(5)));
        assert_eq!((config.format, config.vi), (Some(Format::Csv), true));
        let mistake = |text: &str| parse_file(text).expect_err("a mistake");
        assert_eq!(mistake("# x\n\nhots = 'a'"), (3, "unknown key 'hots'; did you mean 'host'?".to_owned()));
        assert_eq!(mistake("port = 0").1, "'port' must be a number from 1 to 65535");
        assert_eq!(mistake("[zebra]\nx = 1").0, 1);
        assert_eq!(mistake("a = 1\nb = = 2").0, 2);
    }

    #[test]
    fn users_have_names() {
        let users = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(user_of(users, 1000).as_deref(), Some("ann"));
        assert_eq!(user_of(users, 7), None);
    }

    #[test]
    fn parts_come_together() {
        let given = ConnectionArgs { config: Some("/dev/null".into()), ..ConnectionArgs::default() };
        let options = resolve(&given, Some("quorate://ann@db1,db2:99/shop?read_level=local")).expect("valid");
        assert_eq!(options.hosts, [Address::new("db1", PORT_DEFAULT), Address::new("db2", 99)]);
        assert_eq!((options.user.as_str(), options.database.as_deref()), ("ann", Some("shop")));
        assert_eq!(options.settings, [("read_level".to_owned(), "local".to_owned())]);

        let flags = ConnectionArgs {
            host: Some("x,y:5".into()),
            port: Some(77),
            user: Some("bob".into()),
            read_level: Some("linearizable".into()),
            ..given.clone()
        };
        let options = resolve(&flags, None).expect("valid");
        assert_eq!(options.hosts, [Address::new("x", 77), Address::new("y", 5)]);
        assert_eq!(options.user, "bob");
        assert!(resolve(&flags, Some("quorate://z")).is_err());
        assert!(resolve(&ConnectionArgs { host: Some("a b".into()), ..given }, None).is_err());
    }
}
