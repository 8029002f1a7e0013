//! What others see of a Tandem that serves, from before its tree to the end: the health port, the control socket, and what the
//! supervisor above is told.
//!
//! All of it is open before the first wait, so that `tandem status`, `stop` and `logs` reach a Tandem that waits for the
//! server of an earlier run. The control socket lies in the state directory, which that wait is about; it is safe to open
//! because the lock of the state directory is taken before and is never waited for. A second Tandem is refused there (exit
//! 73), so it never comes to take the socket of the first.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::view::View;
use crate::config::Settings;
use crate::control::{self, Answer, Ask, Order};
use crate::event_loop;
use crate::exit::Code;
use crate::health::viewers::Viewers;
use crate::page;
use crate::phase::Phase;
use crate::postgres::home::Home;
use crate::process::ports;
use crate::systemd::Upstream;
use crate::workers::listener;

/// Length of the health port's listening queue.
const HEALTH_BACKLOG: u32 = 128;
/// How long a stop may take before there is a tree: what runs on other threads is given up.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// So many may follow the events at the control socket: each is a person's terminal.
const FOLLOWERS_MAX: usize = 10;

/// What others see, and the tasks behind it.
pub struct Front {
    pub view: View,
    /// Who looks at it closely.
    pub viewers: Viewers,
    pub upstream: Rc<Upstream>,
    pub tasks: Vec<JoinHandle<()>>,
    pub control: Option<ServedControl>,
    /// The orders that come through the control socket.
    pub orders: Option<UnboundedReceiver<Ask>>,
}

/// The control socket that is answered.
pub struct ServedControl {
    close: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl ServedControl {
    /// Close it: those that follow the log get the last lines, and answers under way are sent.
    pub async fn close(self) {
        drop(self.close);
        let _ = self.served.await;
    }
}

/// The task that sends OTLP, where this binary can and the environment says where to.
fn telemetry_sent(view: &View) -> Option<JoinHandle<()>> {
    #[cfg(feature = "otlp")]
    match crate::config::otlp::of_process() {
        Ok(target) => target.map(|target| event_loop::spawn("OTLP", crate::otlp::run(target, view.pictures()))),
        Err(why) => {
            tracing::warn!("OTLP is not sent: {why}");
            None
        }
    }
    #[cfg(not(feature = "otlp"))]
    {
        let _ = view;
        None
    }
}

impl Front {
    /// Bind the health port and the control socket and answer on them, and tell the supervisor above that the start began.
    /// The caller holds the state directory.
    ///
    /// # Errors
    /// The port is taken, or not ours to take; the control socket cannot be bound.
    pub fn open(settings: &Settings, home: &Home) -> anyhow::Result<Self> {
        let view = View::new(settings);
        let port = listener::bind_place(&settings.health.listen, HEALTH_BACKLOG, "health.listen", ports::holder)?;
        let port = tokio::net::TcpListener::from_std(port.try_clone_std()?)?;
        let socket = control::open(&home.control)?;
        let (never, viewers) = (std::future::pending(), Viewers::default());
        let audience = page::Audience::of(&settings.health, &viewers);
        let health = event_loop::spawn("the health port", page::serve(port, view.pictures(), audience, never));
        let (asks, orders) = unbounded_channel();
        let (close, closing) = oneshot::channel();
        let closing = async {
            let _ = closing.await;
        };
        let door = viewers.door(FOLLOWERS_MAX);
        let control = control::serve(socket, view.pictures(), asks, door, closing);
        let served = event_loop::spawn("the control socket", control);
        let (upstream, telling) = Upstream::of_process();
        let telling = event_loop::spawn("the supervisor above", telling);
        upstream.show(view.phase(), "starting", Duration::ZERO);
        let tasks = [health, telling].into_iter().chain(telemetry_sent(&view)).collect();
        Ok(Self {
            view,
            viewers,
            upstream: Rc::new(upstream),
            tasks,
            control: Some(ServedControl { close, served }),
            orders: Some(orders),
        })
    }

    /// What an errand has: nobody asks. It is over when it ends, and says so by its exit code.
    pub fn closed(settings: &Settings) -> Self {
        let (view, upstream) = (View::new(settings), Rc::default());
        Self { view, viewers: Viewers::default(), upstream, tasks: Vec::new(), control: None, orders: None }
    }

    /// Until a stop is ordered. Other orders are refused: there are no workers yet that they could be about.
    pub async fn ordered_to_stop(&mut self) {
        let Some(orders) = &mut self.orders else { return std::future::pending().await };
        while let Some(Ask { order, answer }) = orders.recv().await {
            // Whoever asked may have gone.
            let _ = answer.send(match order {
                Order::Stop => Answer::begun(vec!["stopping".into()], STOP_LIMIT),
                Order::Reload
                | Order::Deploy { .. }
                | Order::Restart { .. }
                | Order::Scale(_)
                | Order::RotatePassword => {
                    let text = "Tandem is still starting and has no workers yet; ask again when it serves";
                    Answer::failed(Code::Temporary, text)
                }
            });
            if order == Order::Stop {
                return;
            }
        }
        std::future::pending().await
    }

    /// Close it all before there was a tree.
    pub async fn close(self) {
        self.upstream.show(Phase::Stopping, "stopping", STOP_LIMIT);
        if let Some(control) = self.control {
            control.close().await;
        }
        for task in self.tasks {
            task.abort();
        }
    }
}
