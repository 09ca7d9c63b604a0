//! codec/mod
