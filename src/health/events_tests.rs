//! The stream of events, from its body.

use http_body_util::BodyExt;

use super::*;
use crate::health::overview::tests::picture;
use crate::health::viewers::Viewers;
use crate::telemetry::RING_SIZE;

struct Open {
    body: Body,
    pictures: watch::Sender<Arc<Picture>>,
    ring: &'static Ring,
    viewers: Viewers,
    close: tokio::sync::oneshot::Sender<()>,
}

fn open() -> Open {
    let (pictures, receiver) = watch::channel(Arc::new(picture()));
    let ring: &Ring = Box::leak(Box::new(Ring::new(RING_SIZE)));
    let viewers = Viewers::default();
    let viewer = viewers.door(1).enter().unwrap();
    let (close, closing) = tokio::sync::oneshot::channel::<()>();
    let source = Source { pictures: receiver, ring, viewer };
    let response = stream(source, json, async {
        let _ = closing.await;
    });
    assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
    Open { body: response.into_body(), pictures, ring, viewers, close }
}

impl Open {
    async fn next(&mut self) -> Option<Overview> {
        let frame = self.body.frame().await?.unwrap().into_data().unwrap();
        let text = String::from_utf8(frame.to_vec()).unwrap();
        let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        assert!(text.ends_with("\n\n"));
        Some(serde_json::from_str(data).unwrap())
    }

    fn say(&self, text: &str) {
        self.ring.push(SystemTime::now(), "worker-0", None, tracing::Level::INFO, text);
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_comes_at_once_then_on_change_and_at_the_latest_after_five_seconds() {
    let mut open = open();
    let begun = Instant::now();
    let first = open.next().await.unwrap();
    assert!(begun.elapsed().is_zero() && first.statistics.is_some(), "{first:#?}");
    let second = open.next().await.unwrap();
    assert_eq!((begun.elapsed(), second.statistics), (INTERVAL_MAX, None));
    open.pictures.send_modify(|picture| Arc::make_mut(picture).roll = None);
    assert_eq!(open.next().await.unwrap().roll, None);
    assert_eq!(begun.elapsed(), INTERVAL_MAX + INTERVAL_MIN, "a second apart at least");
    let statistics = Statistics { taken: Some(SystemTime::now()), ..Statistics::default() };
    open.pictures.send_modify(|picture| Arc::make_mut(picture).details.statistics = Arc::new(statistics));
    assert!(open.next().await.unwrap().statistics.unwrap().taken.is_some());
    assert_eq!(begun.elapsed(), INTERVAL_MAX + INTERVAL_MIN * 2);
}

#[tokio::test(start_paused = true)]
async fn the_log_follows_without_repeating_itself_and_says_what_it_left_out() {
    let mut open = open();
    for number in 0..LOG_LINES + 5 {
        open.say(&format!("line {number}"));
    }
    let texts = |overview: &Overview| overview.log.iter().map(|line| line.text.clone()).collect::<Vec<_>>();
    let first = open.next().await.unwrap();
    assert_eq!((first.log.len(), first.log[0].text.as_str()), (LOG_LINES, "line 5"));
    open.say("one more");
    let next = open.next().await.unwrap();
    assert_eq!((texts(&next), next.log_skipped), (vec!["one more".to_owned()], false));
    for number in 0..LOG_LINES * 5 {
        open.say(&format!("{number} {}", "x".repeat(500)));
    }
    let burst = open.next().await.unwrap();
    assert!(burst.log_skipped && burst.log.len() == LOG_LINES, "{}", burst.log.len());
    assert!(burst.log[LOG_LINES - 1].text.starts_with("499 "));
    assert!(texts(&open.next().await.unwrap()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_makes_room_and_a_socket_that_closes_ends_the_stream() {
    let mut open = open();
    open.next().await.unwrap();
    assert_eq!(open.viewers.count(), 1);
    drop(open.close);
    assert!(open.body.frame().await.is_none());
    drop(open.body);
    assert_eq!(open.viewers.count(), 0);
}
