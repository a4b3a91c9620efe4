//! Where the server's data lies, for whoever meets a full disk there.

use super::state::{self, DockerState, PoolState, State};
use crate::config::EngineKind;
use crate::context::Context;

/// What to do where the disk below Docker's volumes is full.
pub(super) const BELOW: &str =
    "make room on the disk of Docker's volumes: `docker system df` shows what takes it";

/// What to do where a pool is full.
pub(super) fn in_pool(pool: &str) -> String {
    format!(
        "make room in the pool `{pool}`, which environments share (`seedbed images prune --yes`; `seedbed \
         branch delete NAME` or `seedbed down --volumes` for one that nobody needs), or on the disk below \
         it: it promises no more than that has"
    )
}

/// What to do about a full disk of this environment's server; `None`: its server is not ours, or there
/// is none.
pub(crate) fn hint(ctx: &Context) -> Option<String> {
    let database = &ctx.config.database;
    let elsewhere = database.named && !database.target().is_loopback();
    if ctx.config.engine.kind == EngineKind::External || elsewhere {
        return None;
    }
    of_state(&state::read(ctx).ok()?)
}

fn of_state(state: &State) -> Option<String> {
    match (&state.docker, &state.native) {
        (Some(DockerState { pool: Some(PoolState { name, .. }), .. }), _) => Some(in_pool(name)),
        (Some(docker), _) if docker.provisioned => Some(BELOW.to_owned()),
        (_, Some(native)) => Some(format!("make room on the file system of `{}`", native.data)),
        (_, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_that_is_full_is_named() {
        let mut state = State::default();
        assert_eq!(of_state(&state), None);
        state.docker = Some(DockerState { provisioned: true, ..DockerState::default() });
        assert_eq!(of_state(&state).as_deref(), Some(BELOW));
        if let Some(docker) = &mut state.docker {
            docker.pool = Some(PoolState { name: "ours".to_owned(), mounted: "m".to_owned() });
        }
        let hint = of_state(&state).expect("there is a server");
        assert!(hint.starts_with("make room in the pool `ours`"), "{hint}");
    }
}
