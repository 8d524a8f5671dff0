//! Networks that answer in the upstream's place.

use crate::kit::{Base, builder, open, path, replay, root, send, send_on};
use crate::resources::{Resources, now};
use crate::upstream::{Act, Reply, Upstream};
use outbox_host::{Error, Health, Outbox, Outcome};
use std::path::Path;

fn expecting(root: &Path, server: &Upstream) -> Outbox {
    builder(root).upstream(server.url()).expect_header("X-Served-By: dav7").open().unwrap()
}

#[tokio::test]
async fn a_redirect_is_never_a_delivery_and_never_followed() {
    for status in [301, 302, 303, 307, 308] {
        let root = root();
        let server = Upstream::start(move |seen| match seen.target.as_str() {
            "/login" => Reply::new(200).body("<html>please log in</html>"),
            _ => Reply::new(status).header("Location", "/login"),
        });
        let outbox = open(root.path(), &server.url());
        let id = send(&outbox, "PUT", "/a", "mine").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((deliveries[0].outcome, report.remaining), (Outcome::Deferred, 1), "{status}");
        assert_eq!(server.lines(), ["PUT /a"]);
        assert!(path(root.path(), &id).exists());
    }
}

#[tokio::test]
async fn a_success_without_the_expected_header_is_put_off_and_with_it_delivered() {
    let page = |status| Reply::new(status).body("<html>please log in</html>");
    for (reply, outcome) in [
        (page(200), Outcome::Deferred),
        (page(204), Outcome::Deferred),
        (page(200).header("X-Served-By", "hotel"), Outcome::Deferred),
        (page(200).header("x-served-by", " dav7 "), Outcome::Delivered),
        (page(200).header("X-Served-By", "proxy").header("X-Served-By", "dav7"), Outcome::Delivered),
    ] {
        let root = root();
        let server = Upstream::start({
            let reply = reply.clone();
            move |_| reply.clone()
        });
        let outbox = expecting(root.path(), &server);
        let id = send(&outbox, "PUT", "/a", "mine").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((deliveries[0].outcome, report.upstream), (outcome, Health::Up), "{reply:?}");
        let stays = outcome == Outcome::Deferred;
        assert_eq!((report.remaining == 1, path(root.path(), &id).exists()), (stays, stays));
        let portal = deliveries[0].detail.as_deref().is_some_and(|d| d.contains("captive portal"));
        assert_eq!(portal, stays, "{deliveries:?}");
    }
}

#[tokio::test]
async fn a_page_in_place_of_an_answer_is_no_verdict_either() {
    // 412 came from the upstream; what follows it may not have.
    for (method, page) in [("PUT", 200), ("PUT", 404), ("DELETE", 404)] {
        let (root, resources) = (root(), Resources::default());
        resources.write("/doc", "theirs", now());
        let server = Upstream::start(move |seen| match seen.method.as_str() {
            "GET" => Reply::new(page).header("ETag", "\"portal\""),
            _ => Reply::new(412),
        });
        let outbox = expecting(root.path(), &server);
        let id = send_on(&outbox, &Base::Etag("\"v1\"".into()), method, "/doc", "").await;
        let (report, deliveries) = replay(&outbox).await;
        assert_eq!((report.deferred, report.conflicts), (1, 0), "{deliveries:?}");
        assert!(path(root.path(), &id).exists());
    }
    // Nor is it a version for the next edit.
    let root = root();
    let server = Upstream::start(|seen| match seen.method.as_str() {
        "HEAD" => Reply::new(200).header("ETag", "\"portal\""),
        _ => Reply::new(200).header("X-Served-By", "dav7"),
    });
    let outbox = expecting(root.path(), &server);
    let base = Base::Etag("\"v1\"".into());
    send_on(&outbox, &base, "POST", "/doc", "x").await;
    send_on(&outbox, &base, "PUT", "/doc", "y").await;
    let (report, deliveries) = replay(&outbox).await;
    assert_eq!((report.deferred, report.remaining), (1, 2), "{deliveries:?}");
    assert_eq!(server.lines(), ["POST /doc", "HEAD /doc"]);
}

#[tokio::test]
async fn a_removal_that_a_portal_answers_with_404_is_put_off() {
    let root = root();
    let server = Upstream::start(|_| Act::from(404));
    let outbox = expecting(root.path(), &server);
    send(&outbox, "DELETE", "/a", "").await;
    assert_eq!(replay(&outbox).await.0.deferred, 1);
}

#[tokio::test]
async fn an_expected_header_that_makes_no_sense_is_refused() {
    let root = root();
    for field in ["", "X-Served-By", ": dav7", "X Served: dav7", "X-Served-By:"] {
        let refused = builder(root.path()).upstream("http://127.0.0.1:9").expect_header(field).open();
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{field}");
    }
}
