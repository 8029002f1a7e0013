//! The ring: what is kept, what is forgotten, and what each reader is told of it.

use std::thread;

use super::*;
use crate::telemetry::{Stream, child_line};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn say(ring: &Ring, service: &str, text: &str) {
    ring.push(at(1), service, None, Level::INFO, text);
}

fn texts(batch: &Batch) -> Vec<&str> {
    batch.lines.iter().map(|line| line.text.as_str()).collect()
}

/// Everything that `cursor` can get now.
fn all(ring: &Ring, cursor: &mut Cursor) -> Batch {
    let mut all = Batch::default();
    loop {
        let batch = ring.read(cursor, 1000);
        if batch.is_empty() {
            return all;
        }
        all.skipped += batch.skipped;
        all.lines.extend(batch.lines);
    }
}

#[test]
fn a_reader_gets_the_last_lines_of_whom_it_asked_for_and_a_follower_the_new_ones_too() {
    let ring = Ring::new(RING_SIZE);
    for number in 0..6 {
        say(&ring, if number % 2 == 0 { "worker-0" } else { "postgres" }, &format!("line {number}"));
    }
    ring.push(at(2), "tandem", Some("worker-0"), Level::WARN, "ended");

    let mut follower = ring.reader(Some("worker-0".into()), Some(2), true);
    let mut reader = ring.reader(None, None, false);
    let mut nothing = ring.reader(Some("worker-0".into()), Some(0), true);
    let batch = ring.read(&mut follower, 1000);
    assert_eq!(texts(&batch), ["line 4", "ended"], "Tandem's words about it are among its own");
    let last = &batch.lines[1];
    assert_eq!((last.service.as_str(), last.level, last.time, last.sequence), ("tandem", Level::WARN, at(2), 6));

    say(&ring, "postgres", "line 7");
    say(&ring, "worker-0", "line 8");
    assert_eq!(texts(&all(&ring, &mut follower)), ["line 8"]);
    assert_eq!(texts(&all(&ring, &mut nothing)), ["line 8"]);
    assert_eq!(all(&ring, &mut reader).lines.len(), 7, "one that does not follow ends where it began");
    assert_eq!(ring.services(), ["worker-0", "postgres", "tandem"]);
    assert!(all(&ring, &mut ring.reader(Some("worker-9".into()), None, true)).is_empty());
}

#[test]
fn it_is_bounded_and_a_slow_follower_is_told_how_much_it_missed() {
    let (size, count) = (4 * BLOCK_SIZE, 20_000);
    let ring = Ring::new(size);
    let mut all_lines = ring.reader(None, None, true);
    let mut one_service = ring.reader(Some("worker-1".into()), None, true);
    say(&ring, "worker-1", "first");
    assert_eq!(
        (texts(&all(&ring, &mut all_lines)), texts(&all(&ring, &mut one_service))),
        (vec!["first"], vec!["first"])
    );
    for number in 0..count {
        say(&ring, &format!("worker-{}", number % 4), &format!("{number:060}"));
    }
    let lines = ring.lock();
    let taken: usize =
        lines.blocks.iter().map(|block| block.text.capacity() + block.heads.capacity() * size_of::<Head>()).sum();
    assert!(lines.blocks.len() == 4 && taken <= size, "{taken} bytes in {} blocks", lines.blocks.len());
    drop(lines);

    for (cursor, total) in [(&mut all_lines, count), (&mut one_service, count / 4)] {
        let batch = all(&ring, cursor);
        assert_eq!(batch.skipped + batch.lines.len() as u64, total, "each line was either sent or counted");
        assert!(batch.skipped > 0 && !batch.lines.is_empty(), "{}", batch.skipped);
        assert!(batch.lines.is_sorted_by_key(|line| line.sequence));
        assert!(all(&ring, cursor).is_empty());
    }
    // A reader that begins now has missed nothing.
    assert_eq!(all(&ring, &mut ring.reader(Some("worker-1".into()), Some(3), false)).lines.len(), 3);

    ring.keep(0);
    say(&ring, "worker-1", "unheard");
    assert!(ring.services().is_empty() && ring.lock().blocks.is_empty());
    assert_eq!(all(&ring, &mut one_service), Batch { skipped: 1, lines: vec![] });
    ring.keep(1);
    say(&ring, "worker-1", "heard");
    assert_eq!(texts(&all(&ring, &mut one_service)), ["heard"]);
}

#[test]
fn a_line_longer_than_a_block_is_cut_between_letters() {
    let ring = Ring::new(RING_SIZE);
    say(&ring, "worker-0", &"ü".repeat(TEXT_MAX));
    let text = &all(&ring, &mut ring.reader(None, None, false)).lines[0].text;
    assert!(text.len() <= TEXT_MAX && text.len() > TEXT_MAX - 8 && text.ends_with("ü…"), "{}", text.len());
}

#[test]
fn news_come_to_a_follower_on_another_thread() {
    let ring = Ring::new(RING_SIZE);
    let mut news = ring.news();
    thread::scope(|scope| {
        scope.spawn(|| say(&ring, "worker-0", "hello"));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(news.changed()).unwrap();
    });
    assert_eq!(*news.borrow(), 1);
}

#[test]
fn the_layer_keeps_what_children_say_and_what_tandem_says_of_them() {
    use tracing_subscriber::layer::SubscriberExt;
    let ring: &Ring = Box::leak(Box::new(Ring::new(RING_SIZE)));
    let subscriber = tracing_subscriber::registry().with(Keep(ring));
    tracing::subscriber::with_default(subscriber, || {
        child_line("ring-test", Stream::Stdout, "\x1b[31mred\x1b[0m");
        tracing::warn!({ service.name = "ring-test", attempt = 2 }, "ended:\n  Traceback\n\x07  line 2");
        tracing::debug!({ service.name = "ring-test" }, "detail");
    });
    let batch = all(ring, &mut ring.reader(Some("ring-test".into()), None, false));
    let own = module_path!();
    let expected = [
        ("ring-test", Level::INFO, "red".to_owned()),
        ("tandem", Level::WARN, "ended: service.name=ring-test attempt=2\n  Traceback\n  line 2".to_owned()),
        ("tandem", Level::DEBUG, format!("{own}: detail service.name=ring-test")),
    ];
    let found = batch.lines.iter().map(|line| (line.service.as_str(), line.level, line.text.clone()));
    assert_eq!(found.collect::<Vec<_>>(), expected);
}
