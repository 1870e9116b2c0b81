//! What is tried, each from empty volumes to none.

pub(super) mod as_cloned;
pub(super) mod old_compose;
pub(super) mod own_secrets;
