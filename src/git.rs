//! Git, asked about the repository that the project lies in.

use std::process::{Command, Stdio};

use camino::Utf8Path;

/// Variables by which git tells its hooks and aliases which repository is meant (`git rev-parse
/// --local-env-vars`). Here it is the one around the project, whoever started us. Those that carry
/// settings (`GIT_CONFIG_COUNT`) stay: a container's `safe.directory` may come by them.
const OF_ANOTHER_REPOSITORY: [&str; 12] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_GRAFT_FILE",
    "GIT_SHALLOW_FILE",
    "GIT_REPLACE_REF_BASE",
    "GIT_NO_REPLACE_OBJECTS",
];

/// `git ARGUMENTS` in `folder`, stdin closed.
pub(crate) fn command(folder: &Utf8Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    for variable in OF_ANOTHER_REPOSITORY {
        command.env_remove(variable);
    }
    command
}
