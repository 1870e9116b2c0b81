//! The rounds of checks, each from empty volumes until they are deleted.

pub(super) mod as_cloned;
pub(super) mod old_compose;
pub(super) mod own_secrets;
