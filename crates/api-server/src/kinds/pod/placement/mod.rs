//! Where a pod may and would like to run.

mod defaults;
mod rules;

pub(super) use defaults::default;
pub(super) use rules::check;
