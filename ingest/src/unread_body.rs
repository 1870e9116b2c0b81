//! Keeps a request's body alive until the answer is sent.
//!
//! If a handler drops a chunked body before its end, actix waits for that end without a deadline
//! before it closes the connection. A client that never ends its body could so keep its connection
//! without a signature. If the body is still held when the answer is sent, actix closes the
//! connection one second later. So the response holds it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::{
    HttpResponse,
    body::{BodySize, BoxBody, MessageBody},
    web::{Bytes, Payload},
};

/// A response body that also holds the rest of the request's body.
pub struct WithUnreadBody {
    answer: BoxBody,
    _unread: Payload,
}

/// Holds the request's body until the answer is sent. If the body was read to its end, this changes
/// nothing.
pub fn hold(response: HttpResponse, unread: Payload) -> HttpResponse<WithUnreadBody> {
    response.map_body(|_head, answer| WithUnreadBody {
        answer,
        _unread: unread,
    })
}

impl MessageBody for WithUnreadBody {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.answer.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.answer).poll_next(context)
    }
}
