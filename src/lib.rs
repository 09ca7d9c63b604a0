//! maos
