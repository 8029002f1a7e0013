//! A body of several parts whose bytes are shared: a large answer that many read is in memory once, however slowly they read.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

/// The parts that are still to be sent.
#[derive(Clone, Debug, Default)]
pub struct Parts(VecDeque<Bytes>);

impl Parts {
    pub fn new(parts: impl IntoIterator<Item = Bytes>) -> Self {
        Self(parts.into_iter().filter(|part| !part.is_empty()).collect())
    }
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|part| part.len() as u64).sum())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn the_parts_come_in_order_and_their_length_is_known() {
        let shared = Bytes::from(vec![b'b'; 100_000]);
        let parts = Parts::new([Bytes::from_static(b"a"), shared.clone(), Bytes::new(), Bytes::from_static(b"c")]);
        assert_eq!(parts.size_hint().exact(), Some(100_002));
        let all = parts.collect().await.unwrap().to_bytes();
        assert!(all.starts_with(b"ab") && all.ends_with(b"bc") && all.len() == 100_002);
        assert!(Parts::default().is_end_stream());
    }
}
