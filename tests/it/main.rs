//! The integration suite: one binary, so that the AWS SDK is linked once.
//!
//! One module per journey or subject. Everything runs against real servers: PostgreSQL started by
//! the harness, an S3 protocol server over HTTP, Docker where a daemon answers.

mod bad_input;
mod deploy;
mod doctor;
mod engine;
mod equality;
mod example;
mod faults;
mod guards;
mod harness;
mod harness_holds;
mod interrupts;
mod journeys;
mod local_state;
mod migrate;
mod real_data;
mod retention;
mod seed_files;
mod snapshot;
mod store;
mod tls;
mod users;
mod versions;
