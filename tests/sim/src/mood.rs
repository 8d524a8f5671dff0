//! How the server treats requests: what it is disposed to, and what that comes to for one of them.

use crate::peer::ELSEWHERE;
use crate::rng::Rng;

/// A disposition, and for how many requests in a hundred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mood {
    /// What goes wrong.
    pub trouble: Trouble,
    /// How often.
    pub percent: u64,
}

impl Default for Mood {
    fn default() -> Mood {
        Mood { trouble: Trouble::None, percent: 0 }
    }
}

/// What can go wrong at the server's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// Nobody listens.
    Refusing,
    /// Packets vanish.
    BlackHole,
    /// Connections break: before, within or after the body, within the reply.
    Breaking,
    /// It is overloaded or broken: 5xx, 408, 423, 425, 429, with any Retry-After.
    Failing,
    /// It wants other credentials.
    Forbidding,
    /// It refuses for good.
    Rejecting,
    /// It points elsewhere.
    Redirecting,
    /// It thinks for up to two minutes.
    Slow,
    /// It names no version in its replies.
    Mute,
    /// Any of these.
    Anything,
    /// It takes 10 KiB of a body in a second.
    Crawling,
}

/// All but [`Trouble::None`], [`Trouble::Anything`], and what a test of its own is for.
const KINDS: [Trouble; 9] = [
    Trouble::Refusing,
    Trouble::BlackHole,
    Trouble::Breaking,
    Trouble::Failing,
    Trouble::Forbidding,
    Trouble::Rejecting,
    Trouble::Redirecting,
    Trouble::Slow,
    Trouble::Mute,
];

impl Trouble {
    /// Any.
    pub fn any(rng: &mut Rng) -> Trouble {
        match rng.percent(30) {
            true => Trouble::Anything,
            false => rng.pick(&KINDS),
        }
    }
}

/// What becomes of one request.
#[derive(Debug, Clone, Default)]
pub struct Fate {
    /// Before anything happens.
    pub latency_us: u64,
    /// No connection.
    pub refuse: bool,
    /// No connection and no word of that.
    pub black_hole: bool,
    /// Answered whatever it is.
    pub status: Option<u16>,
    /// Answered before the body was read.
    pub early: bool,
    /// More headers of the reply.
    pub headers: Vec<(&'static str, String)>,
    /// The connection breaks after so many bytes.
    pub cut_body_at: Option<usize>,
    /// Between reads of the body.
    pub slow_body_ms: u64,
    /// Bytes of the body that it takes in a second.
    pub rate: Option<u64>,
    /// Before it is carried out.
    pub think_ms: u64,
    /// After it was carried out.
    pub reply_after_ms: u64,
    /// Carried out, but the client is not told.
    pub lose_reply: bool,
    /// The reply's content breaks off.
    pub cut_reply: bool,
    /// The reply names no version.
    pub mute: bool,
}

impl Mood {
    /// What becomes of the next request.
    pub fn fate(&self, rng: &mut Rng) -> Fate {
        let mut fate = Fate { latency_us: rng.range(100, 20_000), ..Fate::default() };
        fate.mute = rng.percent(20);
        if !rng.percent(self.percent) {
            return fate;
        }
        let trouble = match self.trouble {
            Trouble::Anything => rng.pick(&KINDS),
            trouble => trouble,
        };
        match trouble {
            Trouble::None | Trouble::Anything => {}
            Trouble::Refusing => fate.refuse = true,
            Trouble::BlackHole => fate.black_hole = true,
            Trouble::Mute => fate.mute = true,
            Trouble::Crawling => fate.rate = Some(10 * 1024),
            Trouble::Breaking => match rng.below(4) {
                0 => fate.cut_body_at = Some(rng.below(3) as usize * rng.below(100_000) as usize),
                1 | 2 => fate.lose_reply = true,
                _ => fate.cut_reply = true,
            },
            Trouble::Slow => {
                fate.slow_body_ms = rng.below(3) * rng.below(2000);
                fate.think_ms = rng.below(2) * rng.below(120_000);
                fate.reply_after_ms = rng.below(2) * rng.below(120_000);
            }
            Trouble::Failing => {
                fate.status = Some(rng.pick(&[408, 423, 425, 429, 500, 502, 503, 503, 503, 504, 507]));
                if rng.percent(50) {
                    fate.headers.push(("retry-after", retry_after(rng)));
                }
            }
            Trouble::Forbidding => fate.status = Some(rng.pick(&[401, 403, 407, 511])),
            Trouble::Rejecting => fate.status = Some(rng.pick(&[400, 404, 405, 409, 410, 413, 415, 422])),
            Trouble::Redirecting => {
                fate.status = Some(rng.pick(&[300, 301, 302, 303, 304, 307, 308]));
                let path = if rng.percent(50) { "/login" } else { "/a" };
                fate.headers.push(("location", format!("http://{ELSEWHERE}{path}")));
            }
        }
        fate.early = fate.status.is_some() && rng.percent(40);
        fate
    }
}

fn retry_after(rng: &mut Rng) -> String {
    match rng.below(6) {
        0 => "0".into(),
        1 => rng.range(1, 120).to_string(),
        2 => rng.range(3600, 200_000).to_string(),
        3 => "Fri, 01 May 2026 09:00:00 GMT".into(),
        4 => "99999999999999999999".into(),
        _ => "soon".into(),
    }
}
