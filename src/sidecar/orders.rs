//! Carries out what is asked through the control socket.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::control::{Answer, Ask, Order};
use crate::exit::Code;
use crate::supervise::tree::Event;

/// Answer each of `asks`, for ever.
pub async fn carry_out(mut asks: UnboundedReceiver<Ask>, events: UnboundedSender<Event>) {
    while let Some(Ask { order, answer }) = asks.recv().await {
        let done = match order {
            Order::Stop => match events.send(Event::Stop) {
                Ok(()) => Answer::done(vec!["stopping".into()]),
                Err(_) => Answer::failed(Code::Temporary, "it is ending already"),
            },
            Order::Reload => not_possible("reload"),
            Order::Restart { service } => not_possible(&format!("restart {service}")),
            Order::Scale(_) => not_possible("scale"),
        };
        // Whoever asked may have gone: what was asked for happens all the same.
        let _ = answer.send(done);
    }
}

fn not_possible(what: &str) -> Answer {
    Answer::failed(Code::Failed, format!("{what}: not possible"))
}
