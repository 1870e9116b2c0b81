//! Answers to requests whose body is not read to its end.
//!
//! Once nobody holds a chunked body any more, actix waits for its end before it closes the
//! connection, without a deadline: whoever never ends it keeps the connection without ever having
//! shown a signature. While somebody does hold it, actix closes the connection a second after the
//! answer. So the answer holds it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::{
    HttpResponse,
    body::{BodySize, BoxBody, MessageBody},
    web::{Bytes, Payload},
};

/// The body of an answer, and whatever is left of its request's.
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
