//! Tests of the module on a live server. One binary: the harness and one file for each topic.

mod harness;
mod harness_test;
mod linear;
mod state;
