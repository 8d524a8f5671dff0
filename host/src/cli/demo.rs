//! `outbox demo`.

use super::args::{DemoArgs, Global};
use super::DONE;

pub async fn demo(_global: &Global, _args: DemoArgs) -> anyhow::Result<u8> {
    Ok(DONE)
}
