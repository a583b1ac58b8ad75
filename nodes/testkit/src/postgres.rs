//! A real PostgreSQL server of Debian's package, on a free port, in a folder of its own.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread;

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

use crate::ports::Port;
use crate::until;

/// Who owns the databases; no superuser.
pub const USER: &str = "protoplex";
/// And by which password.
pub const PASSWORD: &str = "a password that only this test knows";

/// Where Debian has the programs, in one folder for each major version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// Whom a server of root's works as, for it refuses to be root: the first of these that there is.
const ACCOUNTS: [&str; 2] = ["postgres", "nobody"];
/// What a test's server needs besides its place. What a process has written outlives the process without any fsync.
const SETTINGS: [&str; 4] =
    ["fsync=off", "shared_buffers=16MB", "listen_addresses=127.0.0.1", "logging_collector=off"];

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

/// The server. It is stopped and its folder removed when this is dropped, and it ends with the test's process, too.
#[derive(Debug)]
pub struct Server {
    folder: TempDir,
    port: Port,
    programs: PathBuf,
    account: Option<Account>,
    /// The thread that starts processes: they are told of its end, and it ends with this.
    starter: mpsc::Sender<(Command, mpsc::Sender<Child>)>,
    process: Mutex<Option<Child>>,
    databases: AtomicU32,
}

#[derive(Clone, Debug)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Server {
    /// The one of this process; it ends with the last test that has it.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// Makes and starts a server, and waits until it answers.
    ///
    /// # Panics
    /// When PostgreSQL isn't installed, or doesn't start.
    pub fn start() -> Self {
        let programs = programs();
        let account = getuid().is_root().then(account);
        let folder = tempfile::Builder::new().prefix("protoplex-postgres-").tempdir().expect("a folder");
        let (starter, orders) = mpsc::channel::<(Command, mpsc::Sender<Child>)>();
        thread::spawn(move || {
            for (mut command, reply) in orders {
                let child = command.spawn().expect("setpriv and PostgreSQL can be started");
                reply.send(child).expect("somebody waits for it");
            }
        });
        let server = Self {
            folder,
            port: Port::take(),
            programs,
            account,
            starter,
            process: Mutex::new(None),
            databases: AtomicU32::new(0),
        };
        server.make();
        server.resume();
        server.run("postgres", &format!("CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'"));
        server
    }

    /// A new, empty database; its URL.
    ///
    /// # Panics
    /// When the server refuses that.
    pub fn database(&self) -> String {
        self.database_with("")
    }

    /// As [`Self::database`], with something behind `CREATE DATABASE name`.
    ///
    /// # Panics
    /// When the server refuses that.
    pub fn database_with(&self, options: &str) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.run("postgres", &format!("CREATE DATABASE {name} OWNER {USER} {options}"));
        self.url(&name)
    }

    /// Of a database, there or not, for its owner.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://{USER}:{}@127.0.0.1:{}/{database}",
            PASSWORD.replace(' ', "%20"),
            self.port.number()
        )
    }

    /// Runs one statement as the superuser; what it prints.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, database: &str, statement: &str) -> String {
        let output = Command::new(self.programs.join("psql"))
            .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database])
            .args(["-p", &self.port.number().to_string(), "-c", statement, "-h"])
            .arg(self.folder.path())
            .output()
            .expect("psql can be run");
        assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Ends it as a crash does, by SIGKILL.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn kill(&self) {
        let mut child = self.process().take().expect("it runs");
        child.kill().expect("it is this process' child");
        child.wait().expect("it is this process' child");
    }

    /// Starts it again on the same data and port, and waits until it answers.
    ///
    /// # Panics
    /// When it doesn't start.
    pub fn resume(&self) {
        until("PostgreSQL answers", || {
            let mut process = self.process();
            // The backends of a server that was killed may still be at its memory: it ends at once, then.
            if process.as_mut().is_none_or(|child| child.try_wait().ok().flatten().is_some()) {
                *process = Some(self.spawn());
            }
            let port = self.port.number().to_string();
            let mut ready = Command::new(self.programs.join("pg_isready"));
            ready.args(["-q", "-h", "127.0.0.1", "-p", &port]).status().ok()?.success().then_some(())
        });
    }

    /// Has it speak TLS from now on; the certificate that clients have to trust.
    ///
    /// # Panics
    /// When openssl can't be run.
    pub fn speak_tls(&self) -> PathBuf {
        let data = self.data();
        let (certificate, key) = (data.join("server.crt"), data.join("server.key"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-out"])
            .arg(&certificate)
            .arg("-keyout")
            .arg(&key)
            .output()
            .expect("openssl can be run");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        self.give(&certificate);
        self.give(&key);
        self.run("postgres", "ALTER SYSTEM SET ssl = on");
        self.run("postgres", "SELECT pg_reload_conf()");
        until("PostgreSQL speaks TLS", || (self.run("postgres", "SHOW ssl") == "on").then_some(()));
        certificate
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn make(&self) {
        self.give(self.folder.path());
        let password = self.folder.path().join("password");
        fs::write(&password, PASSWORD).expect("the folder can be written");
        self.give(&password);
        let mut initdb = self.command("initdb");
        initdb.args(["-U", "postgres", "-N", "--no-locale", "-E", "UTF8", "--wal-segsize=1"]);
        initdb.args(["--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile"]).arg(password);
        let made = initdb.arg("-D").arg(self.data()).output().expect("setpriv and initdb can be run");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    }

    fn spawn(&self) -> Child {
        let log = fs::File::create(self.folder.path().join("log")).expect("the folder can be written");
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.data()).args(["-p", &self.port.number().to_string()]);
        postgres.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        postgres.args(["-c", &format!("unix_socket_directories={}", self.folder.path().display())]);
        postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let (reply, started) = mpsc::channel();
        self.starter.send((postgres, reply)).expect("the thread lasts as long as this");
        started.recv().expect("it was started")
    }

    /// A program of PostgreSQL's, as a user who isn't root, that is told to end when its starter ends.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=SIGQUIT").current_dir(self.folder.path());
        if let Some(Account { uid, gid }) = self.account {
            command.args([format!("--reuid={uid}"), format!("--regid={gid}")]).arg("--clear-groups");
        }
        command.arg(self.programs.join(program));
        command
    }

    fn give(&self, path: &Path) {
        if let Some(Account { uid, gid }) = self.account {
            chown(path, Some(uid), Some(gid)).expect("root may");
        }
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(mut child) = self.process().take() else { return };
        // At once, and its helpers with it: nothing of it is kept.
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::QUIT);
        }
        let _ = child.wait();
    }
}

/// The newest version's.
fn programs() -> PathBuf {
    let folders = fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let newest = folders
        .filter_map(|folder| {
            Some((folder.file_name().to_str()?.parse::<u32>().ok()?, folder.path().join("bin")))
        })
        .filter(|(_, programs)| programs.join("initdb").exists())
        .max();
    newest.expect("PostgreSQL is installed (scripts/install-test-tools)").1
}

fn account() -> Account {
    let accounts = fs::read_to_string("/etc/passwd").expect("there are users");
    let find = |name: &str| {
        let mut fields =
            accounts.lines().map(|line| line.split(':')).find(|line| line.clone().next() == Some(name))?;
        let (uid, gid) = (fields.nth(2)?, fields.next()?);
        Some(Account { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    };
    ACCOUNTS.into_iter().find_map(find).expect("there is postgres or nobody")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_leaves_nothing_when_a_test_panics() {
        let (told, folder) = mpsc::channel();
        let test = thread::spawn(move || {
            let server = Server::start();
            told.send((server.folder.path().to_owned(), server.process().as_ref().map(Child::id))).unwrap();
            assert_eq!(server.run("postgres", "SELECT 1"), "2", "a test that fails");
        });
        let (folder, pid) = folder.recv().unwrap();
        assert!(test.join().is_err());
        assert!(!folder.exists());
        assert!(!Path::new(&format!("/proc/{}", pid.unwrap())).exists());
    }
}
