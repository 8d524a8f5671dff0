//! Files and directories, over `wasi:filesystem` descriptors rather than `std::fs`: several times faster under
//! wasmtime, whose streams hop threads for every write, and the only way that also works under jco
//! (its shim refuses the flags that std opens files for writing with).
//!
//! Paths are relative to a directory and are never followed through a link in their last component.

use crate::Error;
use std::fmt;
use wasi::filesystem::preopens::get_directories;
use wasi::filesystem::types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags};

pub use wasi::filesystem::types::{DescriptorStat, DescriptorType, ErrorCode};

/// Bytes per read and write call; wasmtime reads no more at once.
pub const CHUNK: usize = 64 * 1024;

/// Directories in directories that are looked into: ours are two deep, and what is planted may be endless.
pub const DEEPEST: u32 = 16;

/// What something on disk is, in words.
pub fn kind_name(kind: DescriptorType) -> &'static str {
    match kind {
        DescriptorType::Directory => "directory",
        DescriptorType::RegularFile => "file",
        DescriptorType::SymbolicLink => "link",
        _ => "special file",
    }
}

/// A file operation that failed.
#[derive(Debug)]
pub struct Fault {
    /// What was being done, and to what.
    pub doing: String,
    /// How it failed.
    pub code: ErrorCode,
}

impl Fault {
    /// Whether the thing does not exist.
    pub fn is_missing(&self) -> bool {
        self.code == ErrorCode::NoEntry
    }

    /// Whether there is nothing to list: no such directory, or something else in its place.
    pub fn is_no_directory(&self) -> bool {
        matches!(self.code, ErrorCode::NoEntry | ErrorCode::NotDirectory | ErrorCode::Loop)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, words(self.code))
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        match fault.code {
            ErrorCode::InsufficientSpace | ErrorCode::Quota => Error::NoSpace,
            _ => Error::Io(fault.to_string()),
        }
    }
}

/// What an error is called: the commonest as people do.
pub fn words(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Access => "permission denied",
        ErrorCode::NotPermitted => "not permitted",
        ErrorCode::NoEntry => "not found",
        ErrorCode::Exist => "there already",
        ErrorCode::Io => "read or write error",
        ErrorCode::ReadOnly => "the file system is read-only",
        ErrorCode::FileTooLarge => "too long",
        _ => code.name(),
    }
}

type Result<T> = std::result::Result<T, Fault>;

fn at<'a>(doing: &'a str, path: &'a str) -> impl FnOnce(ErrorCode) -> Fault + 'a {
    move |code| Fault { doing: format!("cannot {doing} {path}"), code }
}

/// Refuses what is no file.
fn require_file(path: &str, stat: &DescriptorStat) -> Result<()> {
    let code = match stat.type_ {
        DescriptorType::RegularFile => return Ok(()),
        DescriptorType::SymbolicLink => ErrorCode::Loop,
        DescriptorType::Directory => ErrorCode::IsDirectory,
        _ => ErrorCode::Invalid,
    };
    Err(Fault { doing: format!("{path} is no file but a {}", kind_name(stat.type_)), code })
}

/// An open directory.
#[derive(Debug)]
pub struct Dir(Descriptor);

impl Dir {
    /// ROOT: the preopened directory `/data`, or the only one there is.
    pub fn root() -> Result<Dir> {
        let mut given = get_directories();
        let index = given.iter().position(|(_, name)| name == "/data");
        let index = index.or((given.len() == 1).then_some(0));
        match index {
            Some(index) => Ok(Dir(given.swap_remove(index).0)),
            None => Err(Fault {
                doing: "no directory is given to the component as /data (with wasmtime: --dir DIR::/data)"
                    .into(),
                code: ErrorCode::NoEntry,
            }),
        }
    }

    /// Opens a directory.
    pub fn open(&self, path: &str) -> Result<Dir> {
        self.0
            .open_at(PathFlags::empty(), path, OpenFlags::DIRECTORY, DescriptorFlags::READ)
            .map(Dir)
            .map_err(at("open", path))
    }

    /// Makes a directory; an error where the name is taken.
    pub fn create_dir(&self, path: &str) -> Result<()> {
        self.0.create_directory_at(path).map_err(at("create", path))
    }

    /// Opens a directory, making it first where it is missing.
    pub fn open_or_create(&self, path: &str) -> Result<Dir> {
        match self.open(path) {
            Err(fault) if fault.is_missing() => match self.create_dir(path) {
                Err(fault) if fault.code != ErrorCode::Exist => Err(fault),
                _ => self.open(path),
            },
            opened => opened,
        }
    }

    /// Makes a file for writing; an error where the name is taken.
    pub fn create(&self, path: &str) -> Result<File> {
        let flags = OpenFlags::CREATE | OpenFlags::EXCLUSIVE;
        self.0
            .open_at(PathFlags::empty(), path, flags, DescriptorFlags::WRITE)
            .map(File)
            .map_err(at("create", path))
    }

    /// Opens a file for reading; its size beside. What is no file is refused.
    ///
    /// It is opened for writing too: opening a pipe only for reading waits for somebody to write to it, and no
    /// deadline ends that. Where only reading is allowed, a look comes first.
    pub fn open_file(&self, path: &str) -> Result<(File, u64)> {
        let open = |flags| self.0.open_at(PathFlags::empty(), path, OpenFlags::empty(), flags).map(File);
        let file = match open(DescriptorFlags::READ | DescriptorFlags::WRITE) {
            Err(code) if code != ErrorCode::NoEntry => {
                require_file(path, &self.0.stat_at(PathFlags::empty(), path).map_err(at("open", path))?)?;
                open(DescriptorFlags::READ)
            }
            opened => opened,
        };
        let file = file.map_err(at("open", path))?;
        let stat = file.stat().map_err(at("look at", path))?;
        require_file(path, &stat)?;
        Ok((file, stat.size))
    }

    /// Opens a file for reading and writing, making it where it is missing.
    pub fn open_or_create_file(&self, path: &str) -> Result<File> {
        self.0
            .open_at(
                PathFlags::empty(),
                path,
                OpenFlags::CREATE,
                DescriptorFlags::READ | DescriptorFlags::WRITE,
            )
            .map(File)
            .map_err(at("open", path))
    }

    /// Reads a whole file of at most `limit` bytes.
    pub fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let (file, size) = self.open_file(path)?;
        // A byte more tells whether it was replaced by a longer one meanwhile.
        let mut wanted = size.min(limit) + 1;
        // Where exactly what was announced is there, that was all: no second call that finds the end.
        let (content, _) = file.read(0, wanted).map_err(at("read", path))?;
        if size > 0 && size <= limit && content.len() as u64 == size {
            return Ok(content);
        }
        loop {
            let content = file.read_all(wanted).map_err(at("read", path))?;
            match content.len() as u64 {
                len if len > limit => return Err(at("read", path)(ErrorCode::FileTooLarge)),
                len if len < wanted => return Ok(content),
                _ => wanted = limit + 1,
            }
        }
    }

    /// Makes a file with this content, synced on demand. What was written before a failure stays.
    pub fn write(&self, path: &str, content: &[u8], sync: bool) -> Result<()> {
        let file = self.create(path)?;
        file.write(content, 0).map_err(at("write", path))?;
        match sync {
            true => file.sync().map_err(at("sync", path)),
            false => Ok(()),
        }
    }

    /// What is at a path.
    pub fn stat(&self, path: &str) -> Result<DescriptorStat> {
        self.0.stat_at(PathFlags::empty(), path).map_err(at("look at", path))
    }

    /// What this directory is.
    pub fn stat_self(&self) -> Result<DescriptorStat> {
        self.0.stat().map_err(at("look at", "the directory"))
    }

    /// Calls `each` with all names and types, in no order. A name that vanishes meanwhile is left out, and so is one
    /// that is not UTF-8: it cannot be ours, and must not hide the others. How many of those there are is returned.
    pub fn list(&self, mut each: impl FnMut(String, DescriptorType)) -> Result<usize> {
        self.list_while(|name, kind| {
            each(name, kind);
            true
        })
    }

    /// The same, until it says that this was enough.
    pub fn list_while(&self, mut each: impl FnMut(String, DescriptorType) -> bool) -> Result<usize> {
        let stream = self.0.read_directory().map_err(at("list", "the directory"))?;
        let mut unspeakable = 0;
        loop {
            match stream.read_directory_entry() {
                Ok(Some(entry)) => {
                    if !each(entry.name, entry.type_) {
                        return Ok(unspeakable);
                    }
                }
                Ok(None) => return Ok(unspeakable),
                // wasmtime looks at each entry, and one unlinked meanwhile comes back as an error.
                Err(ErrorCode::NoEntry) => {}
                Err(ErrorCode::IllegalByteSequence) => unspeakable += 1,
                Err(code) => return Err(at("list", "the directory")(code)),
            }
        }
    }

    /// Moves something, atomically.
    pub fn rename(&self, from: &str, to_dir: &Dir, to: &str) -> Result<()> {
        self.0.rename_at(from, &to_dir.0, to).map_err(at("rename", from))
    }

    /// Gives a file a second name.
    pub fn link(&self, from: &str, to_dir: &Dir, to: &str) -> Result<()> {
        self.0.link_at(PathFlags::empty(), from, &to_dir.0, to).map_err(at("link", from))
    }

    /// Removes a file or a link.
    pub fn unlink(&self, path: &str) -> Result<()> {
        self.0.unlink_file_at(path).map_err(at("remove", path))
    }

    /// Removes an empty directory.
    pub fn remove_dir(&self, path: &str) -> Result<()> {
        self.0.remove_directory_at(path).map_err(at("remove", path))
    }

    /// Removes whatever is at a path, with all that is below. Links are removed, not followed.
    pub fn remove(&self, path: &str) -> Result<()> {
        self.remove_within(path, DEEPEST)
    }

    fn remove_within(&self, path: &str, deepest: u32) -> Result<()> {
        let fault = match self.unlink(path) {
            Ok(()) => return Ok(()),
            Err(fault) if fault.is_missing() => return Ok(()),
            Err(fault) => fault,
        };
        let dir = match self.open(path) {
            // That is not why it stays.
            Err(no_directory) if no_directory.is_no_directory() => return Err(fault),
            opened => opened?,
        };
        let Some(deeper) = deepest.checked_sub(1) else {
            let doing = format!("cannot remove {path}, which is more than {DEEPEST} directories deep");
            return Err(Fault { doing, code: ErrorCode::NotEmpty });
        };
        let mut names = Vec::new();
        dir.list(|name, _| names.push(name))?;
        for name in names {
            dir.remove_within(&name, deeper)?;
        }
        drop(dir);
        match self.remove_dir(path) {
            Err(fault) if fault.is_missing() => Ok(()),
            removed => removed,
        }
    }

    /// Makes the names in this directory durable. Some hosts cannot (Windows, WasmEdge, wasmer; jco for a preopen): there
    /// the file system itself must see to it.
    pub fn sync(&self) -> Result<()> {
        use ErrorCode::{BadDescriptor, Invalid, IsDirectory, Unsupported};
        match self.0.sync() {
            Err(BadDescriptor | Invalid | IsDirectory | Unsupported) => Ok(()),
            done => done.map_err(at("sync", "the directory")),
        }
    }
}

/// An open file.
#[derive(Debug)]
pub struct File(Descriptor);

impl File {
    /// Up to `wanted` bytes at an offset, [`CHUNK`] at most, and whether the file ends there. Not more than is
    /// wanted: wasmtime clears as much memory as is asked for.
    pub fn read(&self, offset: u64, wanted: u64) -> std::result::Result<(Vec<u8>, bool), ErrorCode> {
        self.0.read(wanted.min(CHUNK as u64), offset)
    }

    /// What is in it, read from the start until there are `enough` bytes or no more.
    pub fn read_all(&self, enough: u64) -> std::result::Result<Vec<u8>, ErrorCode> {
        let mut content = Vec::new();
        while (content.len() as u64) < enough {
            let offset = content.len() as u64;
            let (chunk, end) = self.read(offset, enough - offset)?;
            match content.is_empty() {
                true => content = chunk,
                false => content.extend_from_slice(&chunk),
            }
            if end || content.len() as u64 == offset {
                break;
            }
        }
        Ok(content)
    }

    /// Writes all of it at an offset.
    pub fn write(&self, mut content: &[u8], mut offset: u64) -> std::result::Result<(), ErrorCode> {
        while !content.is_empty() {
            let chunk = content.get(..CHUNK).unwrap_or(content);
            let written = self.0.write(chunk, offset)?;
            content = match usize::try_from(written).ok().and_then(|n| content.get(n..)) {
                Some(rest) if written > 0 => rest,
                _ => return Err(ErrorCode::Io),
            };
            offset += written;
        }
        Ok(())
    }

    /// Makes content and size durable.
    pub fn sync(&self) -> std::result::Result<(), ErrorCode> {
        self.0.sync()
    }

    /// Bytes in it, and what it is.
    pub fn stat(&self) -> std::result::Result<DescriptorStat, ErrorCode> {
        self.0.stat()
    }

    /// A stream of it from the start.
    pub fn stream(&self) -> std::result::Result<wasi::io::streams::InputStream, ErrorCode> {
        self.0.read_via_stream(0)
    }
}
