//! Ready databases that were frozen: templates and images.

mod blank;
mod carried;
mod freeze;
mod ground;
mod serve;
mod take;

pub(crate) use carried::{forget_carried, give_what_is_left};
pub(crate) use freeze::{
    Frozen, forget_kept, freeze_image, freeze_or_give_up, move_in_first, prune,
};
pub(crate) use ground::{freeze_ground, make_way};
pub(crate) use serve::{Serving, go_back, grant, serve, settle};
pub(crate) use take::{
    Live, cloned, cloned_from_nearest, from_image, from_nearest_image, migrate_out_of_sight,
    nearest_image, template_is_here,
};
