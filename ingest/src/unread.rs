//! Answers to requests whose body is not read to its end.
//!
//! When a chunked body is dropped before its end, actix waits for that end without a deadline before it
//! closes the connection. A client that never ends its body would keep the connection without a
//! signature. While the body is held, actix closes the connection a second after the answer. So the
//! answer holds the body.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::{
    HttpResponse,
    body::{BodySize, BoxBody, MessageBody},
    web::{Bytes, Payload},
};

/// The body of an answer, together with the unread rest of the request's body.
pub struct HoldingUnread {
    answer: BoxBody,
    _unread: Payload,
}

/// Holds the request's body until the answer is sent. Makes no difference where it was read to its
/// end.
pub fn hold(response: HttpResponse, unread: Payload) -> HttpResponse<HoldingUnread> {
    response.map_body(|_head, answer| HoldingUnread {
        answer,
        _unread: unread,
    })
}

impl MessageBody for HoldingUnread {
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
