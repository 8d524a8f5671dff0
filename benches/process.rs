//! Processes: servers to replay to, the time to a first request, and peak memory.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::collections::btree_map::{BTreeMap, Entry};
use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::Run;

/// Longer than anything that is started here takes.
const PATIENCE: Duration = Duration::from_secs(180);

/// A process that ends with this value.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Running> {
        Ok(Running(command.spawn().with_context(|| format!("{command:?} cannot be started"))?))
    }

    /// Waits for its end, looking in now and then.
    fn finish(&mut self, mut meanwhile: impl FnMut(u32)) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            meanwhile(self.0.id());
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            ensure!(started.elapsed() < PATIENCE, "it did not end in {PATIENCE:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The servers to replay to, in processes of their own: the original's where there is one, so that both sides
/// face the same, else one of ours. Each is started when it is first asked for.
pub struct Servers {
    baseline: Option<PathBuf>,
    running: RefCell<BTreeMap<Duration, (Running, String)>>,
}

impl Servers {
    pub fn new(baseline: Option<PathBuf>) -> Servers {
        Servers { baseline, running: RefCell::default() }
    }

    /// The URL of the one with this latency.
    pub fn url(&self, latency: Duration) -> Result<String> {
        match self.running.borrow_mut().entry(latency) {
            Entry::Occupied(running) => Ok(running.get().1.clone()),
            Entry::Vacant(none) => Ok(none.insert(server(self.baseline.as_deref(), latency)?).1.clone()),
        }
    }

    /// The URL of one that answers at once.
    pub fn near(&self) -> Result<String> {
        self.url(Duration::ZERO)
    }
}

/// Both kinds print where they listen as JSON, in their first line.
fn server(baseline: Option<&Path>, latency: Duration) -> Result<(Running, String)> {
    let latency = latency.as_millis();
    let mut command = match baseline {
        Some(path) => {
            let mut command = Command::new(path);
            command.args(["upstream", "-listen", "127.0.0.1:0", "-latency", &format!("{latency}ms")]);
            command
        }
        None => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["--serve", &latency.to_string()]);
            command
        }
    };
    let mut server =
        Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()))?;
    let stdout = server.0.stdout.as_mut().context("no stdout")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let line: serde_json::Value = serde_json::from_str(&line).context("the server's first line")?;
    let address = line.get("listening").and_then(serde_json::Value::as_str);
    Ok((server, format!("http://{}", address.context("the server does not say where it listens")?)))
}

/// Is such a server, until stdin is closed: that is, as long as the process that started it lives.
pub fn serve(latency: Duration) -> Result<()> {
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    tokio.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", serde_json::json!({ "listening": listener.local_addr()?.to_string() }));
        thread::spawn(|| {
            let _ = std::io::stdin().read(&mut [0]);
            std::process::exit(0);
        });
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let answer = service_fn(move |request| answer(request, latency));
                // A client that goes away ends its connection, and nothing else.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            });
        }
    })
}

async fn answer(request: Request<Incoming>, latency: Duration) -> Result<Response<Empty<Bytes>>, Infallible> {
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    Ok(Response::new(Empty::new()))
}

/// Milliseconds from the start of a process to the arrival of its first request, which has no body. The
/// command is told where to send it. Where it has `more` to send, the server is away after that.
pub fn first_request(command: impl FnOnce(&str) -> Command, more: bool) -> Result<Run> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut command = command(&format!("http://{address}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (arrived, arrival) = mpsc::channel();
    let server = thread::spawn(move || -> std::io::Result<()> {
        let (stream, _) = listener.accept()?;
        answer_once(stream, |at| {
            // Whoever waits may have lost patience.
            let _ = arrived.send(at);
        })
    });
    let started = Instant::now();
    let mut process = Running::start(&mut command)?;
    let arrival = arrival.recv_timeout(PATIENCE);
    if arrival.is_err() {
        unblock(address);
    }
    let answered = server.join();
    let arrival = arrival.with_context(|| format!("no request came from {command:?}"))?;
    if !matches!(answered, Ok(Ok(()))) {
        bail!("the first request could not be answered");
    }
    let mut peak = None;
    let status = process.finish(|id| peak = peak_kib(&id.to_string()).or(peak))?;
    // Then it is an error that something is left.
    ensure!(status.success() || more, "{command:?}: {status}");
    let figure = arrival.duration_since(started).as_secs_f64() * 1000.0;
    Ok(Run { figure, peak: peak.map(|kib| kib / 1024.0) })
}

/// Reads the head of a request and answers it.
fn answer_once(mut stream: TcpStream, arrived: impl FnOnce(Instant)) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    let mut arrived = Some(arrived);
    while !head.ends_with(b"\r\n\r\n") {
        let n = stream.read(&mut chunk)?;
        if let Some(arrived) = arrived.take() {
            arrived(Instant::now());
        }
        match chunk.get(..n) {
            Some(read) if n > 0 => head.extend_from_slice(read),
            _ => return Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

/// Lets a server go that waits for its one connection.
fn unblock(address: SocketAddr) {
    let _ = TcpStream::connect(address);
}

/// Whether a process's peak memory can be told: Linux shows it.
pub fn can_tell_memory() -> bool {
    peak_kib("self").is_some()
}

/// The most memory that a process ever had resident, as long as it lives. (Not `getrusage`: its figure
/// begins with that of the process that started it.)
fn peak_kib(process: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// KiB that this process has resident.
pub fn resident_kib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// How many threads of this process have this name.
pub fn threads(name: &str) -> Result<usize> {
    let mut count = 0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        // It may have ended meanwhile. The system keeps 15 bytes of a name.
        let found = std::fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
        count += usize::from(found.trim_end() == name);
    }
    Ok(count)
}

/// Processor time of this process, in milliseconds; no number where the system does not tell.
pub fn cpu_ms() -> f64 {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        time.tv_sec as f64 * 1_000.0 + time.tv_nsec as f64 / 1_000_000.0
    }
    #[cfg(not(unix))]
    f64::NAN
}

/// What this program prints when it is started with these arguments.
pub fn figure_of(args: &[&str], cache_dir: &Path) -> Result<Run> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args).env("OUTBOX_CACHE_DIR", cache_dir);
    let (printed, peak) = output(command)?;
    Ok(Run { figure: String::from_utf8_lossy(&printed).trim().parse()?, peak })
}

/// What this process, and those that it has started and that have ended, use from a moment on.
pub struct Usage {
    ticks: Option<u64>,
    peak_is_fresh: bool,
}

impl Usage {
    pub fn begin() -> Usage {
        // Linux forgets the peak then.
        let peak_is_fresh = std::fs::write("/proc/self/clear_refs", "5").is_ok();
        Usage { ticks: ticks(), peak_is_fresh }
    }

    /// Processor time in microseconds, to some 10 ms.
    pub fn cpu_micros(&self) -> Option<f64> {
        let used = ticks()?.checked_sub(self.ticks?)?;
        #[cfg(unix)]
        let a_second = rustix::param::clock_ticks_per_second();
        #[cfg(not(unix))]
        let a_second = 100;
        Some(used as f64 * 1_000_000.0 / a_second as f64)
    }

    /// The peak of this process's memory.
    pub fn peak_mebibytes(&self) -> Option<f64> {
        self.peak_is_fresh.then(|| peak_kib("self")).flatten().map(|kib| kib / 1024.0)
    }
}

/// Processor time of this process and of its children that have ended (proc(5): utime to cstime).
fn ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').skip(11).take(4).map(|field| field.parse::<u64>().ok()).sum()
}

/// Runs a command to its end: what it prints, and its peak memory in MiB, looked at every millisecond.
pub fn output(mut command: Command) -> Result<(Vec<u8>, Option<f64>)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = Running::start(&mut command)?;
    let mut peak = None;
    let status = process.finish(|id| peak = peak_kib(&id.to_string()).or(peak))?;
    ensure!(status.success(), "{command:?}: {status}");
    let mut printed = Vec::new();
    process.0.stdout.take().context("no stdout")?.read_to_end(&mut printed)?;
    Ok((printed, peak.map(|kib| kib / 1024.0)))
}

/// Mebibytes that a process had resident at its peak, looked at every millisecond. So many bytes are given to
/// it on stdin.
pub fn peak_memory(mut command: Command, input: u64) -> Result<Run> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Running::start(&mut command)?;
    let stdin = process.0.stdin.take().context("no stdin")?;
    let feeder = thread::spawn(move || feed(stdin, input));
    let mut peak = 0f64;
    let status = process.finish(|id| peak = peak.max(peak_kib(&id.to_string()).unwrap_or(0.0)))?;
    ensure!(status.success(), "{command:?}: {status}");
    ensure!(matches!(feeder.join(), Ok(Ok(()))), "{command:?} did not read its input");
    Ok(Run { figure: peak / 1024.0, peak: Some(peak / 1024.0) })
}

fn feed(mut stdin: impl Write, bytes: u64) -> std::io::Result<()> {
    std::io::copy(&mut std::io::repeat(b'x').take(bytes), &mut stdin).map(drop)
}
