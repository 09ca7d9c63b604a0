//! Where the server ends and the rules begin. Together with `persist`, the only place that may say
//! `unsafe`; everything it hands on is safe to use for as long as its types allow.
//!
//! Every entry from the server goes through [`guard`]: a panic is an answer, not a crash.
#![allow(unsafe_code)]

pub mod alloc;
pub mod api;
pub mod background;
pub mod backup;
pub mod bus;
pub mod call;
pub mod chain;
pub mod cluster;
pub mod config;
pub mod conflicts;
pub mod events;
pub mod failpoint;
pub mod feed;
pub mod function;
pub mod guard;
pub mod index;
pub mod info;
pub mod jobs;
pub mod keys;
pub mod ledger;
pub mod lineage;
pub mod listeners;
pub mod load;
pub mod log;
pub mod members;
pub mod metrics;
pub mod native;
pub mod newcomers;
pub mod node;
pub mod nodes;
pub mod offload;
pub mod partitions;
pub mod pause;
pub mod propagate;
pub mod register;
pub mod restoring;
pub mod rolling;
pub mod schedule;
pub mod scribe;
pub mod vault;
pub mod waiting;
