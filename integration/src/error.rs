//! What can go wrong.

use std::error::Error as StdError;
use std::fmt;

use maos_core::{Refusal, Stamp};

/// Why a call gave no answer.
///
/// A lost race is none of these: it is an [`Outcome`](crate::Outcome) with data.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A setting is missing, unknown, or has a value that makes no sense.
    Config {
        /// The field of the file, or the environment variable.
        field: String,
        /// What is wrong with it. Never contains a secret.
        text: String,
    },
    /// The server could not be reached, or the connection was lost, and repeating was no use or not
    /// allowed.
    Transport {
        /// What happened.
        text: String,
        /// Whether the request may have been carried out nevertheless.
        applied: Applied,
        /// How often the request was tried.
        attempts: u32,
        /// The cause below, if there was one.
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// The server answered in a shape that its command does not have.
    Protocol(String),
    /// The store said no: nothing was changed.
    Refused(Refusal),
    /// The server answered with an error of its own (`WRONGPASS`, `CROSSSLOT`, `MISCONF` …).
    Server {
        /// The first word.
        word: String,
        /// The rest of the line.
        text: String,
    },
    /// A value could not be turned into JSON; nothing was sent.
    Encode(serde_json::Error),
    /// A value in the store is not what the caller's type expects.
    Decode {
        /// The key.
        key: String,
        /// The version that was read.
        version: Stamp,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// [`update`](crate::Client::update) lost the race for a key every time it tried.
    Contended {
        /// The key.
        key: String,
        /// How often it tried.
        attempts: u32,
        /// The version that won the last race.
        version: Stamp,
    },
}

/// Whether a request without an answer may have been carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Applied {
    /// It was not: it never left, or the server refused to look at it.
    No,
    /// Nobody knows: it was sent, or may have been.
    Unknown,
}

impl Error {
    pub(crate) fn config(field: impl Into<String>, text: impl Into<String>) -> Error {
        Error::Config {
            field: field.into(),
            text: text.into(),
        }
    }

    /// The refusal's code, if the store said no.
    pub fn code(&self) -> Option<maos_core::Code> {
        match self {
            Error::Refused(refusal) => Some(refusal.code),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config { field, text } => write!(f, "{field}: {text}"),
            Error::Transport {
                text,
                applied,
                attempts,
                ..
            } => {
                f.write_str(text)?;
                if *attempts > 1 {
                    write!(f, " (tried {attempts} times)")?;
                }
                match applied {
                    Applied::No => Ok(()),
                    Applied::Unknown => f.write_str("; it may have been carried out all the same"),
                }
            }
            Error::Protocol(text) => write!(f, "unexpected answer: {text}"),
            Error::Refused(refusal) => refusal.fmt(f),
            Error::Server { word, text } => write!(f, "{word} {text}"),
            Error::Encode(e) => write!(f, "the value cannot be written as JSON: {e}"),
            Error::Decode {
                key,
                version,
                source,
            } => write!(
                f,
                "version {version} of {key} does not have the shape expected: {source}"
            ),
            Error::Contended {
                key,
                attempts,
                version,
            } => write!(
                f,
                "{key} was written by others each of the {attempts} times an update was tried; it is now at version {version}"
            ),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::Transport { source, .. } => {
                source.as_deref().map(|e| e as &(dyn StdError + 'static))
            }
            Error::Encode(e) | Error::Decode { source: e, .. } => Some(e),
            _ => None,
        }
    }
}

/// A key or other bytes as text for a person: UTF-8 where it is, `\xNN` where it is not.
pub(crate) fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}
