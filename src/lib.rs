//! Seedbed: a real, current, production-like PostgreSQL on any machine with one command.
//!
//! Start with [`journeys`]: the five things people do, each on half a page. Below it stand the verbs
//! (`migrate`, `snapshot`, `users`, `seed`, `check`), below those the adapters (`pg`, `store`,
//! `engine`), and arrows never point up. Deciding is pure (`plan`, `choose`); acting is elsewhere.
//! Two acts carry the promises: *build beside, then swap* ([`database`]) and *publish, manifest
//! last* ([`snapshot`]).

pub(crate) mod ancestor;
mod at_hand;
mod beside;
pub mod branch;
mod build;
pub mod check;
pub mod cli;
pub mod config;
pub mod connect;
pub mod context;
mod copy;
pub mod database;
pub mod doctor;
pub mod engine;
pub mod env;
pub mod error;
pub(crate) mod fingerprint;
mod frozen;
pub(crate) mod git;
pub mod guard;
pub mod image;
pub mod init;
pub mod journeys;
pub mod lend;
pub mod lock;
pub mod migrate;
pub mod pg;
pub mod platform;
pub mod prove;
pub mod published;
pub mod reference;
pub mod report;
pub mod saved;
pub mod scratch_server;
pub mod seed;
mod site;
pub mod snapshot;
pub mod source;
pub mod status;
pub mod store;
pub mod template;
pub mod users;
