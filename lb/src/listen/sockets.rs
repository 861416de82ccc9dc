//! Listening sockets, passed to the balancer or bound by it: one per thread for TCP, and one shared by all threads for
//! a Unix socket, since several cannot share a path.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::getgroups;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, open, renameat_with};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt,
};
use rustix::process::{getegid, geteuid};

use crate::config::backend::{MAX_UNIX_PATH_BYTES, SocketAddress};
use crate::config::{SocketFileRights, folder_of};
use crate::user::Owner;

const BACKLOG: i32 = 4096;

/// Lower ports need a privilege, unless net.ipv4.ip_unprivileged_port_start says otherwise.
const UNPRIVILEGED_PORT: u16 = 1024;

/// Files created in a folder with this bit get the folder's group (inode(7)).
const SETGID: u32 = 0o2000;

/// Listening sockets that are passed to a balancer, by address. Where the configuration names such an address, its
/// socket is used; other addresses are bound.
#[derive(Debug, Default)]
pub struct Sockets(HashMap<SocketAddress, Listening>);

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    /// Its local address; `address` is the configured one.
    pub(crate) fn address(&self, address: &SocketAddress) -> Option<SocketAddress> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok().map(SocketAddress::Ip),
            Self::Unix(_) => Some(address.clone()),
        }
    }
}

/// The listening sockets of one address.
#[derive(Debug, Default)]
pub(crate) struct Listening {
    pub sockets: Vec<Socket>,
    /// All are duplicates of one socket, whose clients are handed to the threads in turn.
    pub is_shared: bool,
    /// The file to remove at the end.
    pub file: Option<SocketFile>,
}

/// Sockets that are bound to one address and do not listen yet.
#[derive(Debug)]
pub(crate) enum Bound {
    Tcp(Vec<OwnedFd>),
    Unix(BoundUnix),
}

/// A Unix socket that cannot be found by its path yet.
#[derive(Debug)]
pub(crate) struct BoundUnix {
    socket: OwnedFd,
    /// Its file until it listens.
    temporary: SocketFile,
    path: Arc<Path>,
    /// It replaces a stale socket.
    is_replacing: bool,
    count: usize,
}

/// A user id and a group id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    pub uid: u32,
    pub gid: u32,
}

/// Owner and permissions of a socket file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileRights {
    mode: u32,
    owner: Ids,
}

/// A change of a socket file's permissions. It is reverted on drop unless it is kept.
pub(crate) struct RightsChange {
    file: File,
    before: FileRights,
    wanted: FileRights,
    is_given: bool,
}

/// The file of a Unix socket of ours. It is removed on drop, unless another file has replaced it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Sockets {
    /// Adds a listening socket.
    pub fn add(&mut self, socket: TcpListener) -> io::Result<()> {
        let address = socket.local_addr()?;
        self.insert(address.into(), Socket::Tcp(socket), None);
        Ok(())
    }

    /// Binds a Unix socket, whose file is removed at the end. `process`: the user and group that the process will have.
    pub(crate) fn bind_unix(&mut self, path: &Arc<Path>, rights: &SocketFileRights, process: Ids) -> io::Result<()> {
        let mut listening = BoundUnix::new(path, 1, rights, process)?.listen()?;
        if let Some(socket) = listening.sockets.pop() {
            self.insert(SocketAddress::Unix(Arc::clone(path)), socket, listening.file);
        }
        Ok(())
    }

    fn insert(&mut self, address: SocketAddress, socket: Socket, file: Option<SocketFile>) {
        self.0.insert(address, Listening { sockets: vec![socket], is_shared: true, file });
    }

    /// The socket of an address, `count` times.
    pub(crate) fn take(&mut self, address: &SocketAddress, count: usize) -> Option<io::Result<Listening>> {
        let Listening { mut sockets, file, .. } = self.0.remove(address)?;
        let socket = sockets.pop()?;
        Some(duplicates(&socket, count).map(|sockets| Listening { sockets, is_shared: true, file }))
    }

    pub(crate) fn take_tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        match self.0.remove(&address.into())?.sockets.pop()? {
            Socket::Tcp(socket) => Some(socket),
            Socket::Unix(_) => None,
        }
    }

    /// The addresses of sockets that nobody has taken.
    pub(crate) fn into_addresses(self) -> impl Iterator<Item = SocketAddress> {
        self.0.into_keys()
    }
}

impl Bound {
    /// Binds `count` sockets that share an address. For TCP, sharing would also allow joining sockets of another
    /// process, so this first checks that nobody else listens there, unless this process does itself: `is_own`.
    /// `rights`: for the file of a Unix socket.
    pub(crate) fn new(
        address: &SocketAddress,
        count: usize,
        is_own: bool,
        rights: Option<&SocketFileRights>,
    ) -> io::Result<Self> {
        match (address, rights) {
            (SocketAddress::Ip(address), _) => bind_tcp(*address, count, is_own).map(Self::Tcp),
            (SocketAddress::Unix(path), Some(rights)) => {
                BoundUnix::new(path, count, rights, Ids::of_process()).map(Self::Unix)
            }
            (SocketAddress::Unix(_), None) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Starts to listen: from now on clients can connect, and wait to be accepted.
    pub(crate) fn listen(self) -> io::Result<Listening> {
        let listening = |socket: OwnedFd| {
            listen(&socket, BACKLOG)?;
            Ok(Socket::Tcp(TcpListener::from(socket)))
        };
        match self {
            Self::Tcp(sockets) => {
                let sockets = sockets.into_iter().map(listening).collect::<io::Result<_>>()?;
                Ok(Listening { sockets, is_shared: false, file: None })
            }
            Self::Unix(bound) => bound.listen(),
        }
    }
}

fn bind_tcp(address: SocketAddr, count: usize, is_own: bool) -> io::Result<Vec<OwnedFd>> {
    if address.port() != 0 && !is_own {
        let alone = socket_for(address)?;
        sockopt::set_socket_reuseaddr(&alone, true)?;
        bind(&alone, &address)?;
    }
    let first = shared_socket(address)?;
    // If the system chose the port, it is known now.
    let address = SocketAddr::try_from(rustix::net::getsockname(&first)?)?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(shared_socket(address)?);
    }
    Ok(sockets)
}

impl BoundUnix {
    /// Binds a socket beside `path`, with its final permissions. A file at `path` stays for now. Fails if a process
    /// listens there, or if that file is not a socket.
    fn new(path: &Arc<Path>, count: usize, rights: &SocketFileRights, process: Ids) -> io::Result<Self> {
        let is_replacing = !is_free(path)?;
        let wanted = FileRights::wanted(rights, process, path)?;
        let socket = unix_socket()?;
        let (temporary, file) = bind_beside(&socket, path)?;
        // Nobody can connect before it listens, whatever the initial permissions are.
        give_rights(&file, wanted)?;
        Ok(Self { socket, temporary, path: Arc::clone(path), is_replacing, count })
    }

    /// Listens, and moves the socket to its path in one step: clients find either the previous socket or this one.
    fn listen(self) -> io::Result<Listening> {
        let Self { socket, mut temporary, path, is_replacing, count } = self;
        listen(&socket, BACKLOG)?;
        let socket = Socket::Unix(UnixListener::from(socket));
        let sockets = duplicates(&socket, count)?;
        move_to(&temporary.path, &path, is_replacing)?;
        temporary.path = path.to_path_buf();
        Ok(Listening { sockets, is_shared: true, file: Some(temporary) })
    }
}

/// Moves a socket to a path. Unless it replaces a stale socket, it fails if a file has appeared there since.
fn move_to(from: &Path, to: &Path, is_replacing: bool) -> io::Result<()> {
    let flags = if is_replacing { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    match renameat_with(CWD, from, CWD, to, flags).map_err(io::Error::from) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(io::ErrorKind::AddrInUse.into()),
        // The file system does not support this.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => fs::rename(from, to),
        moved => moved,
    }
}

/// Whether nothing is at the path. A stale socket, left by a process that was killed, counts as false. Fails if a
/// process listens there, or if the file is not a socket.
fn is_free(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(e),
        Ok(file) if !file.file_type().is_socket() => return Err(io::ErrorKind::AlreadyExists.into()),
        Ok(_) => {}
    }
    match connect(unix_socket()?, &SocketAddrUnix::new(path)?).map_err(io::Error::from) {
        Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(false),
        // Its queue is full, so a process listens there.
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// Binds the socket to a temporary name in the folder of `path`.
fn bind_beside(socket: &OwnedFd, path: &Path) -> io::Result<(SocketFile, File)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let number = format!("{}.{}.tmp", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    // `ss` and similar tools show this name.
    let mut telling = name.to_owned();
    telling.push(format!(".{number}"));
    let temporary = folder.join(telling);
    if temporary.as_os_str().len() <= MAX_UNIX_PATH_BYTES {
        bind(socket, &SocketAddrUnix::new(&temporary)?)?;
        return SocketFile::bound_at(temporary);
    }
    // The name does not fit into a socket address: refer to the folder by a shorter path.
    let (temporary, opened) = (folder.join(&number), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC);
    let folder = open(folder, opened, Mode::empty())?;
    let short = format!("/proc/self/fd/{}/{number}", folder.as_fd().as_raw_fd());
    bind(socket, &SocketAddrUnix::new(short)?)?;
    SocketFile::bound_at(temporary)
}

/// Opens the file of a socket, so that it stays identified whatever happens to its path. Fails if it is a link or
/// another kind of file.
fn open_file(path: &Path) -> io::Result<File> {
    let file = File::from(open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?);
    match file.metadata()?.file_type().is_socket() {
        true => Ok(file),
        false => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// Sets owner and permissions. Never by path, since the folder's owner may have put a link there.
fn give_rights(file: &File, FileRights { mode, owner }: FileRights) -> io::Result<()> {
    let before = FileRights::of(&file.metadata()?).owner;
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    let (uid, gid) = (Some(owner.uid), Some(owner.gid));
    if before != owner {
        chown(&opened, uid.filter(|uid| *uid != before.uid), gid.filter(|gid| *gid != before.gid))?;
    }
    fs::set_permissions(opened, Permissions::from_mode(mode))
}

impl Ids {
    fn of_process() -> Self {
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw() }
    }
}

impl FileRights {
    fn of(file: &Metadata) -> Self {
        Self { mode: file.mode() & 0o7777, owner: Ids { uid: file.uid(), gid: file.gid() } }
    }

    /// Defaults follow the system: the process's user, and its group unless the folder passes on its own (setgid).
    fn wanted(rights: &SocketFileRights, process: Ids, path: &Path) -> io::Result<Self> {
        let wanted = rights.owner.as_ref().map(Owner::find).transpose().map_err(io::Error::other)?.unwrap_or_default();
        let folder = fs::metadata(folder_of(path))?;
        let usual_gid = if folder.mode() & SETGID != 0 { folder.gid() } else { process.gid };
        let owner = Ids { uid: wanted.uid.unwrap_or(process.uid), gid: wanted.gid.unwrap_or(usual_gid) };
        Ok(Self { mode: rights.mode, owner })
    }
}

impl RightsChange {
    /// Checks whether the permissions can be set.
    pub(crate) fn new(path: &Path, rights: &SocketFileRights) -> io::Result<Self> {
        let process = Ids::of_process();
        let wanted = FileRights::wanted(rights, process, path)?;
        let file = open_file(path)?;
        let before = FileRights::of(&file.metadata()?);
        let is_member =
            |gid| process.gid == gid || getgroups().is_ok_and(|own| own.iter().any(|own| own.as_raw() == gid));
        let is_own = before.owner.uid == process.uid;
        let can_give =
            before.owner == wanted.owner || (before.owner.uid == wanted.owner.uid && is_member(wanted.owner.gid));
        if before != wanted && process.uid != 0 && !(is_own && can_give) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Self { file, before, wanted, is_given: false })
    }

    pub(crate) fn give(&mut self) -> io::Result<()> {
        self.is_given = true;
        give_rights(&self.file, self.wanted)
    }

    pub(crate) fn keep(mut self) {
        self.is_given = false;
    }
}

impl Drop for RightsChange {
    fn drop(&mut self) {
        if self.is_given
            && let Err(e) = give_rights(&self.file, self.before)
        {
            tracing::warn!("the file of a Unix socket keeps the rights that were taken back: {e}");
        }
    }
}

impl SocketFile {
    /// The file to which this process has bound a socket, and not one that has replaced it since.
    fn bound_at(path: PathBuf) -> io::Result<(Self, File)> {
        let file = open_file(&path)?;
        let found = file.metadata()?;
        if found.uid() != geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok((Self { path, id: (found.dev(), found.ino()) }, file))
    }

    /// Whether it is still at its path.
    pub(crate) fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.id)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there()
            && let Err(e) = fs::remove_file(&self.path)
        {
            tracing::info!("the socket {} is left behind, which the next start replaces: {e}", self.path.display());
        }
    }
}

/// `count` handles of one socket, one for each thread.
fn duplicates(socket: &Socket, count: usize) -> io::Result<Vec<Socket>> {
    match socket {
        Socket::Tcp(tcp) => {
            tcp.set_nonblocking(true)?;
            // Accepted connections inherit it.
            sockopt::set_tcp_nodelay(tcp, true)?;
            (0..count).map(|_| tcp.try_clone().map(Socket::Tcp)).collect()
        }
        Socket::Unix(unix) => {
            unix.set_nonblocking(true)?;
            (0..count).map(|_| unix.try_clone().map(Socket::Unix)).collect()
        }
    }
}

/// Why an address cannot be listened on, and how to fix that. `key` is the setting with the address.
pub(crate) fn cannot_listen(address: &SocketAddress, key: &str, error: &io::Error) -> String {
    let fix = match (fix_of_limit(error), address) {
        (Some(fix), _) => fix.to_owned(),
        (None, SocketAddress::Ip(address)) => fix_of_port(*address, key, error),
        (None, SocketAddress::Unix(path)) => fix_of_path(path, key, error),
    };
    format!("cannot listen on {address} ({error}): {fix}")
}

/// What to do if the process cannot have another file or thread; `None`: the error says something else.
pub(crate) fn fix_of_limit(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error)? {
        Errno::MFILE => Some("raise the limit on open files (ulimit -n, in systemd LimitNOFILE)"),
        Errno::NFILE => Some("raise the system's limit on open files (sysctl fs.file-max)"),
        Errno::AGAIN => Some("raise the limit on threads (ulimit -u, in systemd TasksMax)"),
        Errno::NOBUFS | Errno::NOMEM => Some("the machine, or the container, lacks memory"),
        _ => None,
    }
}

fn fix_of_port(address: SocketAddr, key: &str, error: &io::Error) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::PermissionDenied if port < UNPRIVILEGED_PORT => format!(
            "a port below {UNPRIVILEGED_PORT} needs CAP_NET_BIND_SERVICE (AmbientCapabilities= in systemd, or `setcap \
             cap_net_bind_service=+ep` on the program); or change {key}"
        ),
        io::ErrorKind::AddrNotAvailable => format!("this machine has no address {}: change {key}", address.ip()),
        _ => format!("change {key}, or stop what uses port {port}"),
    }
}

fn fix_of_path(path: &Path, key: &str, error: &io::Error) -> String {
    let folder = path.parent().unwrap_or(path).display();
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("another process listens there: stop it, or change {key}"),
        io::ErrorKind::AlreadyExists => format!("there is a file that is not a socket: remove it, or change {key}"),
        io::ErrorKind::NotFound => format!("make the folder {folder}, or change {key}"),
        io::ErrorKind::PermissionDenied => format!(
            "the process has to be able to write to the folder {folder} (RuntimeDirectory= in systemd), the socket has to \
             be its own, and the group of its owner one that it is in (SupplementaryGroups= in systemd); the rest only a \
             start as root can do, in a folder that belongs to root"
        ),
        // The error concerns the owner.
        io::ErrorKind::Other => "correct owner of the [[listener]]".to_owned(),
        _ => format!("change {key}"),
    }
}

fn unix_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

fn shared_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket_for(address)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    // Accepted connections inherit it.
    sockopt::set_tcp_nodelay(&socket, true)?;
    bind(&socket, &address)?;
    Ok(socket)
}

fn socket_for(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        // As in nginx, `[::]` means IPv6 only, so that 0.0.0.0 can listen beside it.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn listen_errors_explain_the_fix() {
        let message = |address: &str, kind: io::ErrorKind| {
            let address = match address.strip_prefix("unix:") {
                Some(path) => SocketAddress::Unix(Path::new(path).into()),
                None => SocketAddress::Ip(address.parse().expect("an address")),
            };
            cannot_listen(&address, "[[listener]] address", &kind.into())
        };
        for (address, kind, words) in [
            ("0.0.0.0:80", io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            ("0.0.0.0:8080", io::ErrorKind::PermissionDenied, "change [[listener]] address"),
            ("192.0.2.1:80", io::ErrorKind::AddrNotAvailable, "this machine has no address 192.0.2.1"),
            ("0.0.0.0:80", io::ErrorKind::AddrInUse, "stop what uses port 80"),
            ("unix:/run/web.sock", io::ErrorKind::AddrInUse, "another process listens there"),
            ("unix:/run/web.sock", io::ErrorKind::AlreadyExists, "a file that is not a socket: remove it"),
            ("unix:/run/web/sock", io::ErrorKind::NotFound, "make the folder /run/web,"),
            ("unix:/run/web/sock", io::ErrorKind::PermissionDenied, "write to the folder /run/web "),
        ] {
            let message = message(address, kind);
            assert!(
                message.starts_with(&format!("cannot listen on {address} (")) && message.contains(words),
                "{message}"
            );
        }
        let message =
            cannot_listen(&SocketAddress::Ip(([0, 0, 0, 0], 80).into()), "[[listener]] address", &Errno::MFILE.into());
        assert!(message.ends_with("raise the limit on open files (ulimit -n, in systemd LimitNOFILE)"), "{message}");
    }

    #[test]
    fn an_address_in_use_is_shared_only_with_ourselves() {
        let bound = |address: SocketAddr, is_own| Bound::new(&address.into(), 2, is_own, None);
        let free = "127.0.0.1:0".parse().expect("an address");
        let ours = bound(free, false).expect("a free port").listen().expect("a free port");
        let addresses = ours.sockets.iter().map(|socket| match socket {
            Socket::Tcp(socket) => socket.local_addr().expect("a bound socket"),
            Socket::Unix(_) => panic!("it is TCP"),
        });
        let [address, other] = addresses.collect::<Vec<_>>()[..] else { panic!("there are two") };
        assert_eq!(other, address);
        let refused = bound(address, false).expect_err("it is taken");
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        let everywhere = SocketAddr::new([0, 0, 0, 0].into(), address.port());
        bound(everywhere, true).expect("our own").listen().expect("our own");
    }

    const RIGHTS: SocketFileRights = SocketFileRights { mode: 0o640, owner: None };

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("our folder");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_unix_socket_appears_with_its_permissions_and_is_removed_if_still_ours() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path: Arc<Path> = folder.path().join("web.sock").into();
        let bound = BoundUnix::new(&path, 2, &RIGHTS, Ids::of_process()).expect("a free path");
        assert!(!path.exists(), "it does not listen yet");
        let ours = bound.listen().expect("a free path");
        assert_eq!(names(folder.path()), ["web.sock"]);
        assert_eq!(fs::metadata(&path).expect("our socket").mode() & 0o777, 0o640);
        UnixStream::connect(&path).expect("somebody who listens");
        assert_eq!(ours.sockets.len(), 2);
        let refused = BoundUnix::new(&path, 1, &RIGHTS, Ids::of_process()).expect_err("somebody listens");
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(ours);
        assert_eq!(names(folder.path()), [""; 0]);
        // A socket that was bound but never listened leaves no file.
        drop(BoundUnix::new(&path, 1, &RIGHTS, Ids::of_process()).expect("a free path"));
        assert_eq!(names(folder.path()), [""; 0]);
        // A file of another process stays.
        let ours =
            BoundUnix::new(&path, 1, &RIGHTS, Ids::of_process()).expect("a free path").listen().expect("a free path");
        fs::remove_file(&path).expect("our socket");
        let _others = UnixListener::bind(&path).expect("a free path");
        assert!(!ours.file.as_ref().expect("a file").is_there());
        drop(ours);
        assert_eq!(names(folder.path()), ["web.sock"]);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_no_other_file_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path: Arc<Path> = folder.path().join("web.sock").into();
        drop(UnixListener::bind(&path).expect("a free path"));
        assert!(path.exists(), "the socket is left behind");
        let bound = BoundUnix::new(&path, 1, &RIGHTS, Ids::of_process()).expect("nobody listens");
        let refused = UnixStream::connect(&path).expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "there is no moment without a socket");
        let ours = bound.listen().expect("nobody listens");
        UnixStream::connect(&path).expect("somebody who listens");
        drop(ours);
        fs::write(&*path, "text").expect("our folder");
        let refused = BoundUnix::new(&path, 1, &RIGHTS, Ids::of_process()).expect_err("it is no socket");
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).expect("our file"), "text");
    }

    /// The folder's owner can replace the file between the bind and the change of its permissions.
    #[test]
    fn a_file_that_replaced_a_bound_socket_gets_no_permissions() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (target, link) = (folder.path().join("secret"), folder.path().join("web.sock.1.0.tmp"));
        fs::write(&target, "secret").expect("our folder");
        fs::set_permissions(&target, Permissions::from_mode(0o600)).expect("our file");
        std::os::unix::fs::symlink(&target, &link).expect("our folder");
        for path in [&link, &target] {
            let refused = SocketFile::bound_at(path.clone()).expect_err("it is no socket");
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        }
        // If it is replaced later, the socket itself still gets the permissions.
        let path = folder.path().join("web.sock");
        let _socket = UnixListener::bind(&path).expect("a free path");
        let (ours, file) = SocketFile::bound_at(path.clone()).expect("our socket");
        let moved = folder.path().join("moved");
        fs::rename(&path, &moved).expect("our socket");
        fs::rename(&link, &path).expect("our link");
        give_rights(&file, FileRights { mode: 0o606, owner: Ids::of_process() }).expect("our socket");
        assert_eq!(fs::metadata(&moved).expect("our socket").mode() & 0o777, 0o606);
        assert_eq!(fs::metadata(&target).expect("our file").mode() & 0o777, 0o600);
        drop(ours);
        assert_eq!(names(folder.path()), ["moved", "secret", "web.sock"]);
        if geteuid().is_root() {
            chown(&moved, Some(65534), None).expect("we are root");
            let refused = SocketFile::bound_at(moved).expect_err("it is another one's");
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn a_socket_created_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path: Arc<Path> = folder.path().join("web.sock").into();
        let bound = BoundUnix::new(&path, 1, &RIGHTS, Ids::of_process()).expect("a free path");
        let other = UnixListener::bind(&path).expect("a free path");
        let refused = bound.listen().expect_err("somebody listens");
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).expect("the other one");
        drop(other);
        assert_eq!(names(folder.path()), ["web.sock"]);
    }

    #[test]
    fn changed_permissions_are_reverted_unless_committed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("web.sock");
        let _socket = UnixListener::bind(&path).expect("a free path");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("our socket");
        let mode = || fs::metadata(&path).expect("our socket").mode() & 0o777;
        let given = || {
            let mut change = RightsChange::new(&path, &RIGHTS).expect("our socket");
            change.give().expect("our socket");
            assert_eq!(mode(), 0o640);
            change
        };
        drop(given());
        assert_eq!(mode(), 0o600);
        given().keep();
        assert_eq!(mode(), 0o640);
    }

    #[test]
    fn the_longest_path_is_bound() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let rest = MAX_UNIX_PATH_BYTES - folder.path().as_os_str().len() - 1;
        let path: Arc<Path> = folder.path().join("x".repeat(rest)).into();
        let _ours =
            BoundUnix::new(&path, 1, &RIGHTS, Ids::of_process()).expect("a free path").listen().expect("a free path");
        UnixStream::connect(&path).expect("somebody who listens");
        assert_eq!(names(folder.path()).len(), 1);
    }
}
