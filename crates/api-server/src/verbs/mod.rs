//! What requests do, a verb each, on a [`Context`](crate::context::Context).

pub(crate) mod delete;
pub(crate) mod log;
pub(crate) mod proxy;
pub(crate) mod read;
pub(crate) mod scale;
pub(crate) mod subresource;
pub(crate) mod watch;
pub(crate) mod write;
