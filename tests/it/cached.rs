//! The cached file that a delivery makes stale: removed when it should be, and nothing else ever is.

use crate::cli::Cli;
use crate::kit::{OUTBOX_DIR, open, path, replay, root, send};
use crate::strace::{READ, with_failing};
use crate::upstream::{Act, Reply, Upstream};
use outbox_host::Outcome;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Makes a file, with the directories that it is in.
fn plant(root: &Path, name: &str) -> PathBuf {
    let file = root.join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "cached").unwrap();
    file
}

/// Queues a write and replays it to a server that answers so.
async fn write(root: &Path, method: &str, uri: &str, status: u16) -> Outcome {
    let server = Upstream::start(move |_| status);
    let outbox = open(root, &server.url());
    send(&outbox, method, uri, "new").await;
    let (_, deliveries) = replay(&outbox).await;
    assert_eq!(deliveries.len(), 1, "{uri}: {deliveries:?}");
    deliveries[0].outcome
}

#[tokio::test]
async fn a_delivered_put_patch_or_delete_removes_the_stale_file() {
    for (method, uri, name, status) in [
        ("PUT", "/a.txt", "a.txt", 204),
        ("PATCH", "/dir/a.txt", "dir/a.txt", 200),
        ("DELETE", "/dir/deep/a.txt", "dir/deep/a.txt", 204),
        ("DELETE", "/gone.txt", "gone.txt", 404),
        ("PUT", "/a%20b/%C3%BC.txt", "a b/\u{fc}.txt", 201),
        ("PUT", "/dir%2Fa.txt", "dir/a.txt", 201),
        ("PUT", "/a.txt?version=2&x=/other", "a.txt", 200),
        ("PUT", "/./dir//a.txt", "dir/a.txt", 200),
    ] {
        let root = root();
        let (stale, other) = (plant(root.path(), name), plant(root.path(), "dir/other.txt"));
        assert_eq!(write(root.path(), method, uri, status).await, Outcome::Delivered);
        assert!(!stale.exists() && other.exists(), "{method} {uri}");
    }
}

#[tokio::test]
async fn the_file_stays_after_a_post_and_after_a_write_that_was_not_delivered() {
    for (method, status, outcome) in [
        ("POST", 200, Outcome::Delivered),
        ("PROPPATCH", 207, Outcome::Delivered),
        ("PUT", 503, Outcome::Deferred),
        ("PUT", 302, Outcome::Deferred),
        ("PUT", 401, Outcome::Held),
        ("PUT", 422, Outcome::Rejected),
        ("DELETE", 409, Outcome::Rejected),
    ] {
        let root = root();
        let file = plant(root.path(), "a.txt");
        assert_eq!(write(root.path(), method, "/a.txt", status).await, outcome);
        assert!(file.exists(), "{method} {status}");
    }
}

#[tokio::test]
async fn the_file_stays_while_a_later_write_to_it_waits() {
    // However the later write spells the path.
    for later in ["/dir/a.txt", "/dir/%61.txt?x=1", "/dir//a.txt"] {
        let root = root();
        let file = plant(root.path(), "dir/a.txt");
        let deferred = Act::from(Reply::new(503).header("Retry-After", "3600"));
        let server = Upstream::sequence(vec![Act::from(204), deferred, Act::from(204)]);
        let outbox = open(root.path(), &server.url());
        send(&outbox, "PUT", "/dir/a.txt", "first").await;
        let last = send(&outbox, "PUT", later, "last").await;
        let (report, _) = replay(&outbox).await;
        assert_eq!((report.delivered, report.deferred), (1, 1));
        assert!(file.exists(), "{later}: the file may be what the waiting write put there");
        outbox.retry(&last).await.unwrap();
        assert_eq!(replay(&outbox).await.0.delivered, 1);
        assert!(!file.exists(), "{later}");
    }
}

#[tokio::test]
async fn several_writes_in_one_pass_remove_the_file_with_the_last_one() {
    let root = root();
    let file = plant(root.path(), "a.txt");
    let seen_with_file = file.clone();
    let server = Upstream::start(move |_| if seen_with_file.exists() { 204 } else { 500 });
    let outbox = open(root.path(), &server.url());
    for body in ["1", "2", "3"] {
        send(&outbox, "PUT", "/a.txt", body).await;
    }
    // Before each of them arrived, the file was still there.
    let (report, _) = replay(&outbox).await;
    assert_eq!((report.delivered, report.deferred), (3, 0));
    assert!(!file.exists());
}

#[tokio::test]
async fn no_path_leads_out_of_root_into_the_outbox_or_to_a_directory() {
    let parent = root();
    let root = parent.path().join("root");
    let outside = plant(parent.path(), "outside.txt");
    let kept = plant(&root, &format!("{OUTBOX_DIR}/keep.txt"));
    let shouted = plant(&root, ".ZDDC-Outbox/keep.txt");
    let in_dir = plant(&root, "dir/keep.txt");
    fs::create_dir(root.join("empty")).unwrap();
    for uri in [
        "/../outside.txt",
        "/%2e%2e/outside.txt",
        "/.%2E/outside.txt",
        "/..%2foutside.txt",
        "/%2e%2e%2foutside.txt",
        "/dir/../../outside.txt",
        "/dir%2f..%2f..%2foutside.txt",
        "/dir/%2e%2e/%2e%2e/outside.txt",
        "/..%5coutside.txt",
        "/.zddc-outbox/keep.txt",
        "/%2ezddc-outbox/keep.txt",
        "/%2E%7Addc-outbox%2Fkeep.txt",
        "/./.zddc-outbox/keep.txt",
        "/dir/../.zddc-outbox/keep.txt",
        "/.ZDDC-Outbox/keep.txt",
        "/%2EZDDC-Outbox/keep.txt",
        "/dir",
        "/dir/",
        "/dir/keep.txt/",
        "/empty",
        "/",
        "/?x",
        "/%00",
        "/dir/keep.txt%00",
        "/%ff",
    ] {
        let outcome = write(&root, "PUT", uri, 204).await;
        assert_eq!(outcome, Outcome::Delivered, "{uri}");
        for file in [&outside, &kept, &shouted, &in_dir] {
            assert!(file.exists(), "{uri} removed {}", file.display());
        }
        assert!(root.join("empty").is_dir(), "{uri}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn no_link_leads_out_of_root_or_into_the_outbox() {
    use std::os::unix::fs::symlink;
    let parent = root();
    let root = parent.path().join("root");
    let outside = plant(parent.path(), "outside/a.txt");
    let kept = plant(&root, &format!("{OUTBOX_DIR}/keep.txt"));
    fs::create_dir(root.join("dir")).unwrap();
    symlink(parent.path().join("outside"), root.join("absolute")).unwrap();
    symlink("../outside", root.join("relative")).unwrap();
    symlink("../../outside", root.join("dir/deep")).unwrap();
    symlink(OUTBOX_DIR, root.join("inward")).unwrap();
    symlink("..", root.join("dir/up")).unwrap();
    symlink(parent.path().join("outside/a.txt"), root.join("file")).unwrap();
    symlink("../outside/a.txt", root.join("file2")).unwrap();
    symlink(format!("{OUTBOX_DIR}/keep.txt"), root.join("file3")).unwrap();
    for uri in [
        "/absolute/a.txt",
        "/relative/a.txt",
        "/dir/deep/a.txt",
        "/inward/keep.txt",
        "/dir/up/.zddc-outbox/keep.txt",
        "/dir/up/inward/keep.txt",
        // A link may itself be the stale file; what it leads to is not.
        "/file",
        "/file2",
        "/file3",
    ] {
        assert_eq!(write(&root, "DELETE", uri, 204).await, Outcome::Delivered, "{uri}");
        assert!(outside.exists() && kept.exists(), "{uri}");
    }
}

#[test]
fn a_file_stays_while_it_cannot_be_read_whether_a_later_write_to_it_waits() {
    let cli = Cli::new();
    let file = plant(cli.root.path(), "a");
    let [_, later] = [(); 2].map(|()| cli.send(&["PUT", "/a"]));
    let requests = AtomicUsize::new(0);
    let server = Upstream::start(move |_| match requests.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::new(204).header("ETag", "\"v1\""),
        _ => Reply::new(503),
    });
    let unreadable = path(cli.root.path(), &later).join("meta.json");
    let replay = ["replay", "--upstream", &server.url()];
    let Some(ran) = with_failing(&cli, &unreadable, &[(READ, 1)], &replay) else { return };
    assert!(ran.stdout.contains("1 delivered") && file.exists(), "{ran:?}");
}
