//! The credential, which only the host holds: the guest, the disk and the logs never see it.

use crate::Error;
use http::HeaderValue;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Gives the value of the Authorization header, or none.
type Source = dyn Fn() -> Option<HeaderValue> + Send + Sync;

/// Where the Authorization header of every request comes from. It is asked once, and again after the upstream
/// has refused what it gave.
#[derive(Clone)]
pub struct Credential(Arc<Inner>);

struct Inner {
    source: Box<Source>,
    current: Mutex<Option<Option<HeaderValue>>>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(..)")
    }
}

impl Credential {
    /// A callback that gives the whole value of the header, or none. It is called on a thread where it may wait, and may use
    /// a runtime's blocking calls, one call at a time, also where several outboxes share it: while it waits, nothing is sent.
    pub fn from_fn(source: impl Fn() -> Option<HeaderValue> + Send + Sync + 'static) -> Credential {
        Credential(Arc::new(Inner { source: Box::new(source), current: Mutex::new(None) }))
    }

    /// A bearer token (RFC 6750 section 2.1).
    pub fn bearer(token: &str) -> Result<Credential, Error> {
        Credential::of_token(token, "bearer token", "")
    }

    /// The bearer token in an environment variable.
    pub fn from_env(name: &str) -> Result<Credential, Error> {
        let what = "bearer variable";
        let token =
            std::env::var(name).map_err(|_| Error::invalid(what, name, "it is not set, or not as text"))?;
        Credential::of_token(&token, what, name)
    }

    /// That of a token which is in this.
    fn of_token(token: &str, what: &str, name: &str) -> Result<Credential, Error> {
        let value = bearer(token).map_err(|reason| Error::invalid(what, name, reason))?;
        Ok(Credential::from_fn(move || Some(value.clone())))
    }

    /// The bearer token in a file, whose blanks at the end do not count. It is read again when the upstream
    /// refuses the token, so that a rotated one is taken up. Where there is none to be had then, the last one stays: its
    /// refusal is understood by every server, and what comes without any may be answered in another way.
    pub fn from_file(path: &Path) -> Result<Credential, Error> {
        let path: PathBuf = path.into();
        let read = move || {
            let unusable = |reason: &str| Error::invalid("bearer file", &path.display().to_string(), reason);
            let text =
                std::fs::read_to_string(&path).map_err(|e| unusable(&format!("it cannot be read: {e}")))?;
            bearer(text.trim_end()).map_err(unusable)
        };
        let last = Mutex::new(read()?);
        Ok(Credential::from_fn(move || {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            match read() {
                Ok(value) => *last = value,
                Err(error) => tracing::warn!("{error}; the last token is sent"),
            }
            Some(last.clone())
        }))
    }

    /// The header's value.
    pub(crate) async fn value(&self) -> Option<HeaderValue> {
        let known = self.0.current.try_lock().ok().and_then(|current| current.clone());
        if let Some(value) = known {
            return value;
        }
        let inner = self.0.clone();
        let asking = tokio::task::spawn_blocking(move || {
            let mut current = inner.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.get_or_insert_with(|| (inner.source)()).clone()
        });
        match asking.await {
            Ok(value) => value,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends.
            Err(_) => None,
        }
    }

    /// The upstream refused this: ask the source again next time. (Refusals of several requests may come after another was
    /// asked for.)
    pub(crate) fn refused(&self, sent: &Option<HeaderValue>) {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner).take_if(|current| current == sent);
    }
}

/// The header's value, or what is wrong with the token: never with the token in it.
fn bearer(token: &str) -> Result<HeaderValue, &'static str> {
    const REASON: &str = "the token is empty, or has blanks or characters that no token has";
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(REASON);
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| REASON)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn the_source_is_asked_again_only_after_a_refusal() {
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let credential =
            Credential::from_fn(move || Some(HeaderValue::from(count.fetch_add(1, Ordering::Relaxed))));
        let first = credential.value().await;
        assert_eq!((&credential.value().await, asked.load(Ordering::Relaxed)), (&first, 1));
        credential.refused(&first);
        let second = credential.value().await;
        assert_ne!(first, second);
        // The refusal of another request, which had gone with the first.
        credential.refused(&first);
        assert_eq!((credential.value().await, asked.load(Ordering::Relaxed)), (second, 2));
    }

    #[tokio::test]
    async fn a_token_never_shows() {
        let credential = Credential::bearer("s3cret").unwrap();
        assert!(!format!("{credential:?} {:?}", credential.value().await).contains("s3cret"));
        for bad in ["", "two words", "line\nbreak"] {
            assert!(!Credential::bearer(bad).unwrap_err().to_string().contains("line"));
        }
    }
}
