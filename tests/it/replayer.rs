//! The component's interface `replayer`, called as a host does that is not ours.

use crate::kit::{open, root, send};
use crate::plain_host::{Clocks, Instance};
use crate::upstream::{Reply, Upstream};
use outbox_sim::bindings::exports::zddc::outbox::replayer::Options;
use std::sync::atomic::Ordering;

fn options(budget_ms: Option<u64>) -> Options {
    Options { wake: true, resume: None, budget_ms, sweep_every: None }
}

#[tokio::test]
async fn nothing_is_started_once_a_budget_is_used_up_and_what_is_left_goes_in_the_next_pass() {
    for concurrency in ["1", "4"] {
        let (root, clocks) = (root(), Clocks::default());
        let forward = clocks.forward.clone();
        // Half a minute goes by with the first request of each pass.
        let server = Upstream::start(move |_| {
            forward.fetch_add(30_000, Ordering::Relaxed);
            204
        });
        let outbox = open(root.path(), &server.url());
        for n in 0..3 {
            send(&outbox, "PUT", &format!("/{n}"), "x").await;
        }
        let (url, env) = (server.url(), ("OUTBOX_CONCURRENCY", concurrency));
        let mut instance = Instance::new(root.path(), clocks, &[("OUTBOX_UPSTREAM", &url), env]).await;
        for passes in 1..=3 {
            let report = instance.replay(&options(Some(20_000))).await;
            assert_eq!(server.seen().len(), passes);
            assert_eq!((report.delivered, report.remaining), (1, 3 - passes as u64));
            // What is ready is not to wait for a tick.
            assert_eq!(report.next_delay_ms, 0);
        }
        assert_eq!(server.lines(), ["PUT /0", "PUT /1", "PUT /2"]);
        assert_eq!(instance.replay(&options(Some(20_000))).await.next_delay_ms, 300_000);
    }
}

#[tokio::test]
async fn a_pass_in_one_call_reports_what_a_pass_step_by_step_does() {
    let mut reports = Vec::new();
    for at_once in [true, false] {
        let root = root();
        let server = Upstream::start(|seen| match (seen.method.as_str(), seen.target.as_str()) {
            ("PUT", "/conflict") => Reply::new(412),
            ("PUT", "/rejected") => Reply::new(422),
            ("PUT", "/later") => Reply::new(503).header("Retry-After", "3600"),
            ("PUT", "/login") => Reply::new(401),
            _ => Reply::new(204),
        });
        let outbox = open(root.path(), &server.url());
        for uri in ["/a", "/conflict", "/rejected", "/later", "/damaged", "/b", "/login", "/c"] {
            let id = send(&outbox, "PUT", uri, "x").await;
            if uri == "/damaged" {
                std::fs::write(crate::kit::path(root.path(), &format!("{id}/body.bin")), "y").unwrap();
            }
        }
        let (url, env) = (server.url(), ("OUTBOX_CONCURRENCY", "1"));
        let mut instance =
            Instance::new(root.path(), Clocks::default(), &[("OUTBOX_UPSTREAM", &url), env]).await;
        let mut report = match at_once {
            true => instance.replay(&options(None)).await,
            false => instance.step(&options(None)).await,
        };
        let probe = report.resume.probe.take().unwrap();
        assert_eq!(outbox.get(&probe).await.unwrap().entry.unwrap().raw_uri, "/login");
        reports.push(format!("{report:?}"));
    }
    assert_eq!(reports[0], reports[1]);
    for part in [
        "delivered: 2",
        "conflicts: 1",
        "rejected: 1",
        "deferred: 1",
        "held: 1",
        "corrupt: 1",
        "remaining: 3",
    ] {
        assert!(reports[0].contains(part), "{}", reports[0]);
    }
}
