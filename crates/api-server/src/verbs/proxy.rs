//! `nodes/proxy`: pages that a node's agent serves, such as kubelet's `stats/summary`.

use http::StatusCode;

use super::read;
use crate::answer::{self, Answer, AnswerBody};
use crate::context::{Context, Target};
use crate::error::ApiError;
use crate::nodes::PageError;

/// Answers `GET nodes/NAME/proxy/PATH`.
pub(crate) async fn get(context: &Context, target: &Target) -> Result<Answer, ApiError> {
    read::fetch(context, target)?;
    let Some(nodes) = context.nodes.get() else {
        return Err(ApiError::Unavailable("no node agent of this server can be asked".into()));
    };
    let page = nodes.page(&target.name, target.page.as_deref().unwrap_or_default()).await;
    match page {
        Ok(page) => Ok(answer::with_type(StatusCode::OK, page.media_type, AnswerBody::whole(page.body))),
        Err(PageError::NotThere(why)) => Err(ApiError::NoPage(why)),
        Err(PageError::Failed(why)) => Err(ApiError::Unavailable(why)),
    }
}
