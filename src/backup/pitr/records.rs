//! What a recovery would replay, read from the records of its WAL; as far as it matters here (PostgreSQL's
//! src/include/access/xlogrecord.h and xlog_internal.h). Pure.

use super::header::LONG;
use super::wal::Lsn;

/// The size of a page of WAL, in bytes; PostgreSQL's own choice, with which its packages are built.
pub const PAGE: usize = 8192;
const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;
/// The flag of a page that begins with the rest of a record.
const CONTINUED: u16 = 1;
/// What comes before a record's own data, in bytes.
const RECORD_HEADER: usize = 24;
/// So much of a record is looked at, in bytes: a tablespace's path fits in.
const KEPT: usize = 2048;
/// PostgreSQL's resource managers.
const TRANSACTION: u8 = 1;
const TABLESPACE: u8 = 5;
/// From 1970 to 2000, where PostgreSQL's clock begins, in microseconds.
const EPOCH: i64 = 946_684_800_000_000;

/// A record that matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A transaction ended then, in microseconds since 1970.
    Ended(i64),
    /// A tablespace was made in this directory, or `""`: in the data directory itself.
    Tablespace(String),
}

/// A record that has begun.
struct Begun {
    at: Lsn,
    /// Its length, and how much of that was seen.
    length: usize,
    seen: usize,
    /// As much as is looked at.
    kept: Vec<u8>,
}

/// Reads pages in their order.
#[derive(Default)]
pub struct RecordReader {
    begun: Option<Begun>,
}

impl RecordReader {
    /// The records that end in the page at `address`, with where they begin; `None` where there is no more WAL. What is
    /// left in a file from its former use is of another address.
    pub fn page(&mut self, page: &[u8], address: Lsn) -> Option<Vec<(Lsn, Option<Record>)>> {
        let info = u16::from_ne_bytes(page.get(2..4)?.try_into().ok()?);
        if u64::from_ne_bytes(page.get(8..16)?.try_into().ok()?) != address.0 {
            return None;
        }
        let rest = number(page, 16)?;
        let mut at = if info & LONG == 0 { SHORT_HEADER } else { LONG_HEADER };
        let mut found = Vec::new();
        match self.begun.take() {
            // Begun on pages that were not read.
            None if info & CONTINUED != 0 => at += rest,
            // What continues another record was written over this one.
            Some(begun) if info & CONTINUED != 0 && begun.length - begun.seen == rest => {
                at += self.go_on(begun, page.get(at..)?, &mut found);
            }
            None | Some(_) => {}
        }
        // Every record begins at a multiple of eight, and its length is on one page.
        at = at.next_multiple_of(8);
        while at + 8 <= page.len() {
            let length = number(page, at)?;
            if length < RECORD_HEADER {
                break;
            }
            let begun = Begun { at: Lsn(address.0 + at as u64), length, seen: 0, kept: Vec::new() };
            at = (at + self.go_on(begun, &page[at..], &mut found)).next_multiple_of(8);
        }
        Some(found)
    }

    /// Take as much of the record as there is; how much that is.
    fn go_on(&mut self, mut begun: Begun, from: &[u8], found: &mut Vec<(Lsn, Option<Record>)>) -> usize {
        let taken = from.len().min(begun.length - begun.seen);
        let room = KEPT.saturating_sub(begun.kept.len());
        begun.kept.extend_from_slice(&from[..taken.min(room)]);
        begun.seen += taken;
        if begun.seen == begun.length {
            found.push((begun.at, record(&begun.kept)));
        } else {
            self.begun = Some(begun);
        }
        taken
    }
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?)).ok()
}

/// What the record that begins so is, where it matters.
fn record(bytes: &[u8]) -> Option<Record> {
    let (info, manager) = (*bytes.get(16)?, *bytes.get(17)?);
    match (manager, info & 0x70) {
        // Commit and abort, each also of what was prepared.
        (TRANSACTION, 0x00 | 0x20 | 0x30 | 0x40) => {
            let time = data(bytes)?.get(..8)?;
            Some(Record::Ended(i64::from_ne_bytes(time.try_into().ok()?).saturating_add(EPOCH)))
        }
        (TABLESPACE, 0x00) => {
            let path = data(bytes)?.get(4..)?.split(|byte| *byte == 0).next()?;
            Some(Record::Tablespace(String::from_utf8_lossy(path).into_owned()))
        }
        _ => None,
    }
}

/// The record's own data. The records that are looked at have no pages of tables in them.
fn data(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(RECORD_HEADER..)?;
    loop {
        match *rest.first()? {
            255 => return rest.get(2..),
            254 => return rest.get(5..),
            // Where it was replicated from, and the transaction that this one is a part of.
            253 => rest = rest.get(3..)?,
            252 => rest = rest.get(5..)?,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(manager: u8, info: u8, before: &[u8], data: &[u8]) -> Vec<u8> {
        let mut record = vec![0; RECORD_HEADER];
        (record[16], record[17]) = (info, manager);
        record.extend_from_slice(before);
        if data.len() < 256 {
            record.extend_from_slice(&[255, u8::try_from(data.len()).unwrap()]);
        } else {
            record.push(254);
            record.extend_from_slice(&u32::try_from(data.len()).unwrap().to_ne_bytes());
        }
        record.extend_from_slice(data);
        let length = u32::try_from(record.len()).unwrap();
        record[..4].copy_from_slice(&length.to_ne_bytes());
        record
    }

    /// Pages that hold `records`, from the beginning of a segment on.
    fn pages(records: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut pages: Vec<Vec<u8>> = Vec::new();
        let begin = |pages: &mut Vec<Vec<u8>>, rest: usize| {
            let first = pages.is_empty();
            let mut page = vec![0; if first { LONG_HEADER } else { SHORT_HEADER }];
            let info = if first { LONG } else { 0 } | if rest > 0 { CONTINUED } else { 0 };
            page[..2].copy_from_slice(&0xD113_u16.to_ne_bytes());
            page[2..4].copy_from_slice(&info.to_ne_bytes());
            page[8..16].copy_from_slice(&address(pages.len()).0.to_ne_bytes());
            page[16..20].copy_from_slice(&u32::try_from(rest).unwrap().to_ne_bytes());
            pages.push(page);
        };
        begin(&mut pages, 0);
        for record in records {
            let mut left = &record[..];
            while !left.is_empty() {
                if pages.last().unwrap().len() == PAGE {
                    let rest = if left.len() < record.len() { left.len() } else { 0 };
                    begin(&mut pages, rest);
                }
                let page = pages.last_mut().unwrap();
                let taken = left.len().min(PAGE - page.len());
                page.extend_from_slice(&left[..taken]);
                left = &left[taken..];
            }
            let page = pages.last_mut().unwrap();
            page.resize(page.len().next_multiple_of(8).min(PAGE), 0);
        }
        pages.last_mut().unwrap().resize(PAGE, 0);
        pages
    }

    fn tablespace(path: &str) -> Vec<u8> {
        made(TABLESPACE, 0, &[], &[&[1, 0, 0, 0], path.as_bytes(), &[0]].concat())
    }

    /// The records in pages that begin with the one of this number.
    fn read(pages: &[Vec<u8>], first: usize) -> Vec<Record> {
        let mut reader = RecordReader::default();
        let read = |(at, page): (usize, &Vec<u8>)| reader.page(page, address(first + at)).unwrap();
        pages.iter().enumerate().flat_map(read).filter_map(|(_, record)| record).collect()
    }

    fn address(page: usize) -> Lsn {
        Lsn((16 << 20) + (page * PAGE) as u64)
    }

    #[test]
    fn what_matters_is_found_wherever_pages_end() {
        let long = "/srv/".to_owned() + &"x".repeat(900);
        // A length of one page moves what comes after it over the page's end, eight bytes at a time.
        for size in (6000..8200).step_by(8) {
            let filler = made(0, 0, &[], &vec![7; size]);
            let time = 1_000_i64;
            let records = [
                filler.clone(),
                tablespace("/mnt/fast"),
                made(TABLESPACE, 0x10, &[], &[1, 0, 0, 0]),
                made(TRANSACTION, 0x80, &[253, 1, 0, 252, 1, 0, 0, 0], &[&time.to_ne_bytes()[..], &[9; 400]].concat()),
                filler,
                tablespace(&long),
                tablespace(""),
            ];
            let expected = [
                Record::Tablespace("/mnt/fast".into()),
                Record::Ended(EPOCH + time),
                Record::Tablespace(long.clone()),
                Record::Tablespace(String::new()),
            ];
            assert_eq!(read(&pages(&records), 0), expected, "{size}");
        }
    }

    #[test]
    fn what_began_before_the_first_page_is_passed_over_and_what_is_of_another_place_is_the_end() {
        let pages = pages(&[made(0, 0, &[], &vec![7; 20_000]), tablespace("/mnt/fast")]);
        assert_eq!(pages.len(), 3);
        assert_eq!(read(&pages[1..], 1), [Record::Tablespace("/mnt/fast".into())]);
        let mut reader = RecordReader::default();
        assert_eq!(reader.page(&pages[0], address(0)), Some(vec![]));
        assert_eq!((reader.page(&[0; PAGE], address(1)), reader.page(&[], address(1))), (None, None));
        assert_eq!(reader.page(&pages[1], address(9)), None, "of a former use of the file");
        let found = RecordReader::default().page(&pages[2], address(2)).unwrap();
        assert!(found[0].0 > address(2) && found[0].0 < address(3), "where it begins: {found:?}");
    }
}
