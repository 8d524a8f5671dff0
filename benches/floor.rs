//! The floor: the same work in plain native code, without sandbox, queue semantics or checks. Files are made,
//! read, renamed and deleted in the component's order, and requests go out over bare connections. What is
//! between this and ours is the price of the sandbox and of everything that the outbox promises.

use crate::ours::{SOURCE, make_source, mebibytes, noise};
use crate::plan::{BODIES, BODY, LARGE, SMALL, Work};
use crate::process::Servers;
use crate::{Run, Side};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use rustix::fs::{AtFlags, Mode, OFlags, fstat, fsync, mkdirat, openat, renameat, unlinkat};
use rustix::io::{pread, pwrite};
use std::cell::RefCell;
use std::fs::{create_dir_all, read_dir};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as Waker, Poll};
use std::time::Instant;

/// As long as a common meta.json.
const META: usize = 254;
/// As long as the notes of the greatest ids.
const NOTES: usize = 1536;
/// Bytes of a body that are sent together.
const CHUNK: usize = 64 * 1024;

pub struct Floor;

/// The queue's directory and `.staging`, open.
struct Dirs {
    queue: OwnedFd,
    staging: OwnedFd,
}

impl Dirs {
    fn open(root: &Path) -> Result<Dirs> {
        let queue = root.join(".zddc-outbox");
        create_dir_all(queue.join(".staging"))?;
        let open = |path: &Path| rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        Ok(Dirs { queue: open(&queue)?, staging: open(&queue.join(".staging"))? })
    }

    fn create(&self, path: &str, content: &[u8], sync: bool) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&self.staging, path, flags, Mode::RUSR | Mode::WUSR)?;
        pwrite(&file, content, 0)?;
        if sync {
            fsync(&file)?;
        }
        Ok(())
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let file = openat(&self.queue, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut content = vec![0; 2 * SMALL];
        let len = pread(&file, &mut content, 0)?;
        content.truncate(len);
        Ok(content)
    }

    fn delete(&self, name: &str) -> Result<()> {
        unlinkat(&self.staging, format!("{name}/meta.json"), AtFlags::empty())?;
        unlinkat(&self.staging, format!("{name}/body.bin"), AtFlags::empty())?;
        Ok(unlinkat(&self.staging, name, AtFlags::REMOVEDIR)?)
    }
}

fn enqueue(root: &Path, entries: u32, callers: u32, sync: bool) -> Result<f64> {
    let dirs = Dirs::open(root)?;
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let newest = openat(&dirs.queue, ".newest", flags, Mode::RUSR | Mode::WUSR)?;
    pwrite(&newest, &[0; NOTES], 0)?;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let each = |caller| {
            let (dirs, newest) = (&dirs, &newest);
            scope.spawn(move || queue_each(dirs, newest, (caller..entries).step_by(callers as usize), sync))
        };
        let threads: Vec<_> = (0..callers).map(each).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
    })?;
    Ok(f64::from(entries) / started.elapsed().as_secs_f64())
}

fn queue_each(dirs: &Dirs, newest: &OwnedFd, numbers: impl Iterator<Item = u32>, sync: bool) -> Result<()> {
    let (body, meta) = ([b'x'; SMALL], [b'm'; META]);
    for n in numbers {
        let name = format!("{n:016x}");
        mkdirat(&dirs.staging, &name, Mode::RWXU)?;
        dirs.create(&format!("{name}/body.bin"), &body, sync)?;
        pread(newest, &mut [0; NOTES], 0)?;
        pwrite(newest, &[b'n'; 24], 0)?;
        dirs.create(&format!("{name}/meta.json"), &meta, sync)?;
        if sync {
            fsync(openat(&dirs.staging, &name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)?;
        }
        renameat(&dirs.staging, &name, &dirs.queue, format!("{n:016x}-000000"))?;
        if sync {
            fsync(&dirs.queue)?;
        }
    }
    Ok(())
}

/// As many connections as requests at once, all on this thread.
async fn replay(root: &Path, entries: u32, concurrency: usize, upstream: &str) -> Result<f64> {
    let authority = upstream.trim_start_matches("http://").to_owned();
    let started = Instant::now();
    let dirs = Rc::new(Dirs::open(root)?);
    let mut names = Vec::new();
    for entry in read_dir(root.join(".zddc-outbox"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    ensure!(names.len() == entries as usize, "{} of {entries} entries are there", names.len());
    let waiting = Rc::new(RefCell::new(names));
    let gone = Rc::new(RefCell::new(Vec::new()));
    let tasks = tokio::task::LocalSet::new();
    for _ in 0..concurrency {
        let (dirs, waiting, gone, authority) =
            (dirs.clone(), waiting.clone(), gone.clone(), authority.clone());
        tasks.spawn_local(async move {
            if let Err(error) = deliver(&dirs, &waiting, &gone, &authority).await {
                eprintln!("floor: {error:#}");
            }
        });
    }
    tasks.await;
    fsync(&dirs.queue)?;
    for name in gone.borrow().iter() {
        dirs.delete(name)?;
    }
    ensure!(gone.borrow().len() == entries as usize, "{} of {entries} were delivered", gone.borrow().len());
    Ok(f64::from(entries) / started.elapsed().as_secs_f64())
}

async fn deliver(
    dirs: &Dirs,
    waiting: &RefCell<Vec<String>>,
    gone: &RefCell<Vec<String>>,
    authority: &str,
) -> Result<()> {
    let stream = tokio::net::TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let carried = tokio::task::spawn_local(connection);
    loop {
        let Some(name) = waiting.borrow_mut().pop() else { break };
        dirs.read(&format!("{name}/meta.json"))?;
        let body = FileBody::open(dirs, &format!("{name}/body.bin"))?;
        let request = Request::put(format!("/x/{name}"))
            .header(header::HOST, authority)
            .header(header::CONTENT_LENGTH, body.len)
            .header("Idempotency-Key", &name)
            .body(body)?;
        let reply = sender.send_request(request).await?;
        ensure!(reply.status().is_success(), "{}", reply.status());
        reply.into_body().collect().await?;
        sender.ready().await?;
        renameat(&dirs.queue, &name, &dirs.staging, &name)?;
        gone.borrow_mut().push(name);
    }
    carried.abort();
    Ok(())
}

/// A file that is read as it is sent.
struct FileBody {
    file: OwnedFd,
    len: u64,
    offset: u64,
}

impl FileBody {
    fn open(dirs: &Dirs, path: &str) -> Result<FileBody> {
        let file = openat(&dirs.queue, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let len = fstat(&file)?.st_size.try_into()?;
        Ok(FileBody { file, len, offset: 0 })
    }
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Waker<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let mut chunk = vec![0; CHUNK.min(usize::try_from(self.len - self.offset).unwrap_or(CHUNK))];
        let read = pread(&self.file, &mut chunk, self.offset);
        let frame = read.map_err(Into::into).and_then(|len| match len {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => {
                chunk.truncate(len);
                self.offset += len as u64;
                Ok(Frame::data(chunk.into()))
            }
        });
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.offset == self.len
    }
}

/// MiB a second at which the source is copied, durably.
fn copy(root: &Path) -> Result<f64> {
    let started = Instant::now();
    std::fs::copy(root.join(SOURCE), root.join("copy"))?;
    std::fs::File::open(root.join("copy"))?.sync_all()?;
    std::fs::File::open(root)?.sync_all()?;
    Ok(mebibytes(LARGE) / started.elapsed().as_secs_f64())
}

impl Side for Floor {
    fn measures(&self, work: &Work) -> bool {
        use Work::{Enqueue, EnqueueLarge, Replay, ReplayBodies};
        matches!(work, Enqueue { .. } | EnqueueLarge | Replay { .. } | ReplayBodies)
    }

    fn prepare(&self, work: &Work, root: &Path) -> Result<()> {
        match work {
            Work::Replay { entries, .. } => {
                enqueue(root, *entries, 1, false)?;
            }
            Work::EnqueueLarge => make_source(root)?,
            Work::ReplayBodies => {
                enqueue(root, BODIES, 1, false)?;
                for entry in read_dir(root.join(".zddc-outbox"))? {
                    let body = entry?.path().join("body.bin");
                    if body.exists() {
                        std::io::copy(&mut noise(BODY), &mut std::fs::File::create(body)?)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn run(&self, work: &Work, root: &Path, servers: &Servers) -> Result<Run> {
        match work {
            Work::Enqueue { entries, callers, sync, .. } => {
                Ok(enqueue(root, *entries, *callers, *sync)?.into())
            }
            Work::Replay { entries, concurrency, latency, .. } => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let rate = runtime.block_on(replay(root, *entries, *concurrency, &servers.url(*latency)?))?;
                Ok(rate.into())
            }
            Work::EnqueueLarge => Ok(copy(root)?.into()),
            Work::ReplayBodies => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let entries = runtime.block_on(replay(root, BODIES, 4, &servers.near()?))?;
                Ok((entries * mebibytes(BODY)).into())
            }
            _ => Err(anyhow::anyhow!("not measured")).context("floor"),
        }
    }
}
