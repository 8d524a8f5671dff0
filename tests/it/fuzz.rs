//! Whatever is on disk or in a reply, the parsers of the component take it or refuse it with a short reason: they
//! never panic, use little stack, and read back what they write. The cases are the files of tests/corpus/, the
//! fixtures, and mutants of both: `OUTBOX_FUZZ_CASES` of them for each property, from the seed
//! `OUTBOX_FUZZ_SEED`. tests/corpus/ is also where a case belongs that was found to fail.

use crate::kit::{self, builder, replay, root, send};
use crate::rng::Rng;
use crate::upstream::Upstream;
use ::outbox::backoff::retry_after;
use ::outbox::id::EntryId;
use ::outbox::key::{Key, Keys};
use ::outbox::layout::{self, FORMAT, Name};
use ::outbox::meta::{Meta, Unusable};
use ::outbox::state::State;
use ::outbox::{cached, clock, error, request};
use outbox_host::{Durability, Place};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SEED: &str = "OUTBOX_FUZZ_SEED";

/// The id in the corpus' records.
const ID: &str = "18ea4ba277c322d7-873e00";

/// Less than a guest has, of frames that are larger without optimisation.
const STACK: usize = 256 * 1024;

/// A reason is read by people, in a log line and in reason.txt.
const LONGEST_REASON: usize = 850;

/// How many cases each property is tried with.
fn cases() -> usize {
    std::env::var("OUTBOX_FUZZ_CASES").map_or(20_000, |text| text.parse().unwrap())
}

/// All files of this name below a directory; all files, where there is none.
fn files(dir: &Path, name: Option<&str>, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, name, found);
        } else if name.is_none_or(|name| path.file_name().unwrap() == name) {
            found.push(path);
        }
    }
}

/// The corpus of `meta` or `state`, and the records of that kind in the fixtures.
fn corpus(kind: &str) -> Vec<Vec<u8>> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
    let mut found = Vec::new();
    files(&tests.join("corpus").join(kind), None, &mut found);
    let own = found.len();
    files(&tests.join("fixtures"), Some(&format!("{kind}.json")), &mut found);
    assert!(own > 20 && found.len() > own, "{kind}: {found:?}");
    found.sort();
    found.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// What parsers trip over.
const TOKENS: [&str; 60] = [
    "null",
    "true",
    "-1",
    "0",
    "1",
    "1.5",
    "1e999",
    "4294967296",
    "18446744073709551616",
    "\"\"",
    "\"x\"",
    "[]",
    "{}",
    "[[[[[[[[",
    "{\"a\":",
    "]",
    "}",
    ",",
    ":",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "\\udc00\\ud83d",
    "\u{feff}",
    "\u{0}",
    "\r\n",
    "\u{1b}[31m",
    "\u{202e}",
    "\u{fc}",
    "\u{10ffff}",
    "\"id\":",
    "\"format\":",
    "\"headers\":",
    "\"attempts\":",
    "\"not_before\":",
    "2024-05-01T10:00:00Z",
    "9999-12-31T23:59:59.999999999Z",
    "-23:59",
    "+14:00",
    ".000000001",
    "0001-01-01T00:00:00Z",
    "Wed, 01 May 2024 08:00:00 GMT",
    "Wednesday, 01-May-24 08:00:00 GMT",
    "Wed May  1 08:00:00 2024",
    "Fri, 31 Dec 9999 23:59:59 GMT",
    "120",
    "%2e%2e",
    "%2F",
    "%00",
    "%",
    "/..",
    "/",
    "//",
    "?",
    "#",
    ".zddc-outbox",
    "18ea4ba277c322d7-873e00",
    ".conflict-",
    "20261122T065602Z",
];

/// A mutant of one of these.
fn mutant(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = rng.pick(corpus).clone();
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len() + 1);
        let end = at + rng.below((bytes.len() - at).min(40) + 1);
        match rng.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => {
                let other = rng.pick(corpus);
                let from = rng.below(other.len() + 1);
                let piece = &other[from..(from + rng.below(60)).min(other.len())];
                bytes.splice(at..end, piece.iter().copied());
            }
            _ => drop(bytes.splice(at..end, rng.pick(&TOKENS).bytes())),
        }
    }
    bytes
}

/// The same for text.
fn text(rng: &mut Rng, corpus: &[Vec<u8>]) -> String {
    String::from_utf8_lossy(&mutant(rng, corpus)).into_owned()
}

/// Holds a property up against the corpus itself and against mutants, on a small stack. A case that fails is
/// printed.
fn check(corpus: Vec<Vec<u8>>, property: impl Fn(&[u8]) + Send + 'static) {
    let run = move || {
        let mut rng = Rng::seeded(SEED);
        let mutants = (0..cases()).map(|_| mutant(&mut rng, &corpus));
        for case in corpus.iter().cloned().chain(mutants) {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| property(&case))) {
                eprintln!("the case: {:?}", String::from_utf8_lossy(&case));
                std::panic::resume_unwind(panic);
            }
        }
    };
    std::thread::Builder::new().stack_size(STACK).spawn(run).unwrap().join().unwrap();
}

/// Texts as a corpus.
fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().chain(&TOKENS).map(|text| text.as_bytes().to_vec()).collect()
}

fn assert_reason(reason: &str, file: &str) {
    assert!(reason.starts_with(&format!("{file}: ")), "{reason}");
    assert!(reason.len() > file.len() + 10 && reason.len() <= LONGEST_REASON, "{}: {reason}", reason.len());
    assert!(!reason.chars().any(char::is_control), "{reason:?}");
}

fn assert_meta(json: &[u8]) {
    let id = EntryId::parse(ID).unwrap();
    let meta = match Meta::parse(id, json) {
        Ok(meta) => meta,
        Err(Unusable::Newer(format)) => return assert!(format > FORMAT.into()),
        Err(Unusable::Damaged(reason)) => return assert_reason(&reason, "meta.json"),
    };
    assert_eq!(meta.id, ID);
    let written = meta.to_json();
    assert_eq!(Meta::parse(id, &written), Ok(meta.clone()));
    // Escaped, a character takes six bytes at most; and some for our keys.
    assert!(written.len() <= 6 * json.len() + 500);
    // What a request is made of.
    assert!(meta.raw_uri.starts_with('/') && !meta.raw_uri.starts_with("//"), "{:?}", meta.raw_uri);
    let fields = meta.headers.iter().flat_map(|(name, value)| [name, value]);
    let fields = fields.chain([&meta.method, &meta.raw_uri]).chain(&meta.content_type).chain(&meta.base_etag);
    for field in fields {
        assert!(!field.chars().any(|c| c.is_control() && c != '\t'), "{field:?}");
    }
    if let Ok(Some(base)) = meta.base_time() {
        assert_time(base);
    }
    assert_path(&meta.raw_uri);
}

fn assert_state(json: &[u8]) {
    match State::parse(json) {
        Ok(state) => {
            assert_eq!(State::parse(&::outbox::meta::to_json(&state)).unwrap(), state);
            state.not_before().into_iter().for_each(assert_time);
        }
        Err(error) => assert_reason(&error::describe(&error), "state.json"),
    }
}

/// Whatever the time, it has its spellings.
fn assert_time(at: SystemTime) {
    assert_eq!(clock::http_date(at).len(), "Wed, 01 May 2024 08:00:00 GMT".len());
    assert_eq!(clock::compact(at).len(), "20240501T080000Z".len());
    for spelt in [clock::rfc3339(at), clock::rfc3339_up(at)] {
        assert!(clock::parse_rfc3339(&spelt).is_ok(), "{spelt}");
    }
    clock::unix_nanos(at);
}

/// A path has a key, and at most one place, which is below ROOT.
fn assert_path(uri: &str) {
    Key::of(uri);
    for (n, name) in cached::place(uri).unwrap_or(vec!["a".into()]).iter().enumerate() {
        assert!(!name.is_empty() && name != "." && name != "..", "{uri:?}");
        assert!(!name.contains(['/', '\\', '\0']), "{uri:?}");
        assert!(n > 0 || !name.eq_ignore_ascii_case(layout::OUTBOX_DIR), "{uri:?}");
    }
}

#[test]
fn any_meta_json_is_read_or_refused_with_a_short_reason() {
    check(corpus("meta"), assert_meta);
}

#[test]
fn any_state_json_is_read_or_refused_with_a_short_reason() {
    check(corpus("state"), assert_state);
}

#[test]
fn any_name_in_the_queue_is_an_id_a_conflict_ours_or_foreign() {
    let names =
        [ID, "ffffffffffffffff-ffffff", "18ea4ba277c322d7-873e00.conflict-20261122T065602Z-ab12", ".staging"];
    check(texts(&names), |bytes| {
        let name = String::from_utf8_lossy(bytes);
        match layout::parse(&name) {
            Name::Pending(id) => assert_eq!(id.to_string(), name),
            Name::Conflict(id, stamp) => assert_eq!(format!("{id}{}{stamp}", layout::CONFLICT), name),
            Name::Ours | Name::Foreign => assert_eq!(EntryId::parse(&name), None),
        }
        if let Some((id, stamp)) = layout::parse_aside(&name) {
            assert_eq!(format!("{id}.{stamp}"), name);
            clock::expand_compact(stamp);
        }
        clock::expand_compact(&name);
    });
}

#[test]
fn any_time_in_a_record_is_read_or_refused_and_has_its_spellings() {
    let times = ["2024-05-01T10:00:00.123456789+02:00", "2024-05-01t10:00:00z", "2016-12-31T23:59:60Z"];
    check(texts(&times), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let read = clock::parse_rfc3339(&text);
        if let Ok(Some(at)) = read {
            assert_time(at);
        }
        let respelt = clock::respell_rfc3339(&text);
        assert_eq!(respelt.is_some(), read.is_ok(), "{text}");
        if let Some(respelt) = respelt {
            assert_eq!(clock::parse_rfc3339(&respelt).ok(), read.ok(), "{text}");
            assert_eq!(clock::respell_rfc3339(&respelt), Some(respelt));
        }
    });
    // And those that only a clock can show.
    for seconds in [0, 1, 253_402_300_799, 253_402_300_800, 1 << 40, 1 << 60] {
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).into_iter().for_each(assert_time);
        UNIX_EPOCH.checked_sub(Duration::from_secs(seconds)).into_iter().for_each(assert_time);
    }
}

#[test]
fn any_retry_after_and_any_http_date_are_read_or_ignored() {
    let values =
        ["120", "0", "99999999999999999999", "Wed, 01 May 2024 08:00:00 GMT", "Sun Nov  6 08:49:37 1994"];
    check(texts(&values), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Some(wait) = retry_after(&text, UNIX_EPOCH + Duration::from_secs(1_795_000_000)) {
            assert!((Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&wait), "{text}");
        }
        if let Some(at) = clock::parse_http_date(&text) {
            assert_time(at);
            assert_eq!(clock::parse_http_date(&clock::http_date(at)), Some(at), "{text}");
        }
    });
}

#[test]
fn any_path_has_a_key_and_no_place_outside_of_root() {
    let paths =
        ["/a%20b//c.txt?x", "/a/./b/../c", "/%2e%2e/%2E/x", "/a%2f..%2f..%2fx", "/.ZDDC-Outbox/x", "/%ff"];
    check(texts(&paths), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        assert_path(&text);
        // Escaping all of it changes nothing: it is the same resource.
        if request::raw_uri(&text).is_ok() && !text.contains(['?', '%']) {
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            assert_eq!(Key::of(&escaped), Key::of(&text), "{text}");
            assert_eq!(cached::place(&escaped), cached::place(&text), "{text}");
        }
    });
}

#[test]
fn keys_are_related_as_a_list_of_paths_would_say() {
    let mut rng = Rng::seeded(SEED);
    let path = |rng: &mut Rng| -> Vec<&str> {
        (0..rng.below(4)).map(|_| *rng.pick(&["a", "b", "a!", "a0", "\u{fc}"])).collect()
    };
    let key = |path: &[&str]| Key::of(&format!("/{}", path.join("/")));
    for _ in 0..cases() / 20 {
        let mut keys = Keys::default();
        let mut list: Vec<(Vec<&str>, u64)> = Vec::new();
        for number in 0..20 {
            let (wanted, limit) = (path(&mut rng), rng.next() % 20);
            // With each path counts the smallest number that it came with.
            let first = list.iter().filter(|(path, _)| path.starts_with(&wanted) || wanted.starts_with(path));
            let first = first.map(|(_, number)| *number).min();
            assert_eq!(keys.related(&key(&wanted)), first.is_some(), "{wanted:?} in {list:?}");
            let before = first.is_some_and(|first| first < limit);
            assert_eq!(keys.related_before(&key(&wanted), limit), before, "{wanted:?} {limit} in {list:?}");
            let new = path(&mut rng);
            keys.insert(key(&new), number);
            list.push((new, number));
        }
    }
}

#[test]
fn a_path_of_ten_thousand_segments_is_compared_at_once() {
    let deep = |last: &str| Key::of(&format!("{}{last}", "/a".repeat(8_000)));
    let mut keys = Keys::default();
    let started = std::time::Instant::now();
    for n in 0..100 {
        let key = deep(&format!("/{n}"));
        assert!(!keys.related(&key));
        keys.insert(key, n);
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

/// The same records under the real component: one pass over all of them, and every verdict is the native one.
#[tokio::test]
async fn the_component_judges_a_disk_full_of_such_records_in_one_pass() {
    let (root, server) = (root(), Upstream::start(|_| 204));
    let outbox = builder(root.path()).upstream(server.url()).durability(Durability::None).open().unwrap();
    let mut rng = Rng::seeded(SEED);
    let (metas, states) = (corpus("meta"), corpus("state"));
    let mut planted: Vec<(bool, Vec<u8>)> = metas.iter().map(|meta| (true, meta.clone())).collect();
    planted.extend(states.iter().map(|state| (false, state.clone())));
    for _ in 0..200 {
        planted.push((true, mutant(&mut rng, &metas)));
        planted.push((false, mutant(&mut rng, &states)));
    }
    let mut expected = Vec::new();
    for (is_meta, bytes) in planted {
        let id = send(&outbox, "PUT", "/x", "0123456789").await;
        let entry = kit::path(root.path(), &id);
        let (parsed, own) = (EntryId::parse(&id).unwrap(), rename(&bytes, &id));
        // An outcome: damaged with this reason, or not.
        let damage = if is_meta {
            fs::write(entry.join("meta.json"), &own).unwrap();
            match Meta::parse(parsed, &own) {
                Err(Unusable::Damaged(reason)) => Some(reason),
                Err(Unusable::Newer(_)) => None,
                // What is sound is sent: but whether a server understands such a method is not the question here.
                Ok(meta) if meta.method != "PUT" => {
                    outbox.drop_entry(&id).await.unwrap();
                    continue;
                }
                Ok(_) => None,
            }
        } else {
            fs::write(entry.join("state.json"), &own).unwrap();
            State::parse(&own).err().map(|error| error::describe(&error))
        };
        expected.push((id, damage, own));
    }
    // A pass may find that some request is not to be borne; it never ends for want of sense in a record.
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!(report.remaining, outbox.count().await.unwrap().pending, "{report:?}");
    for (id, damage, bytes) in expected {
        let case = String::from_utf8_lossy(&bytes);
        let said =
            deliveries.iter().find(|delivery| delivery.id == id).map(|d| (d.outcome, d.detail.clone()));
        match (damage, outbox.get(&id).await) {
            (Some(reason), Ok(item)) => {
                assert_eq!(item.place, Place::Corrupt, "{said:?} {case:.300}");
                assert_eq!(item.reason.as_deref().map(str::trim), Some(reason.trim()), "{case:.300}");
            }
            (Some(_), Err(gone)) => panic!("{gone}: {said:?} {case:.300}"),
            // Newer, not yet due, refused by this server, or with another body than it says.
            (None, Ok(item)) => match item.place {
                Place::Pending | Place::Rejected => {}
                Place::Corrupt => assert!(item.reason.unwrap().starts_with("body.bin has "), "{case:.300}"),
                other => panic!("{other:?}: {said:?} {case:.300}"),
            },
            (None, Err(_)) => assert!(server.seen().iter().any(|s| s.header("idempotency-key") == Some(&id))),
        }
    }
}

/// The record under another id.
fn rename(bytes: &[u8], id: &str) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in 0..bytes.len() {
        if bytes[at..].starts_with(ID.as_bytes()) {
            bytes[at..at + id.len()].copy_from_slice(id.as_bytes());
        }
    }
    bytes
}

/// Texts whose mutants are asked about as requests, through the door that authors use.
#[test]
fn any_request_is_taken_or_refused_and_what_is_taken_is_read_back() {
    check(corpus("meta"), |bytes| {
        let mut rng = Rng::new(bytes.len() as u64);
        let corpus = [
            bytes.to_vec(),
            b"/a".to_vec(),
            b"X-A".to_vec(),
            b"2024-05-01T10:00:00Z".to_vec(),
            b"\"v1\"".to_vec(),
        ];
        let mut some = || Some(text(&mut rng, &corpus)).filter(|text| text.len() < 100);
        let asked = ::outbox::bindings::types::Request {
            method: "PUT".into(),
            uri: format!("/{}", some().unwrap_or_default()),
            content_type: some(),
            headers: some().into_iter().map(|name| (name, "x".to_owned())).collect(),
            base_mod_time: some(),
            base_etag: some(),
            create: false,
        };
        let id = EntryId::parse(ID).unwrap();
        match request::check(&asked) {
            Ok(()) => {
                let meta = Meta::new(id, &asked, "2026-11-22T06:56:02Z".into(), 0, "xxh3:00".into());
                let read = Meta::parse(id, &meta.to_json()).unwrap_or_else(|e| panic!("{asked:?}: {e:?}"));
                assert_eq!((read.raw_uri, read.headers), (asked.uri, asked.headers));
            }
            Err(error) => assert!(error::describe(&error).len() > 10),
        }
    });
}
