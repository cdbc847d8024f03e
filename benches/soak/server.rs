//! The program as a server, its config file, and commands to it.

use std::{
    error::Error,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Of the pool: it is to fill up with snapshots, so that garbage is collected.
const POOL_SIZE: &str = "3G";
/// Of each client's volume.
pub(crate) const VOLUME_BYTES: u64 = 256 << 20;
/// The volume that comes with a reload and goes again.
pub(crate) const EXTRA: &str = "extra";
/// Connections besides strangers.
const SPARE_CONNECTIONS: usize = 64;
/// How long a server may take to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(5);

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Where everything is.
pub(crate) struct Place {
    folder: TempDir,
    program: PathBuf,
    /// The clients' volumes, as the config has them.
    volumes: Vec<String>,
    max_connections: usize,
}

/// A server that is stopped when this is dropped.
pub(crate) struct Server {
    child: Child,
    /// It ends when this does, however this process ends.
    _input: Option<ChildStdin>,
    /// Host and port of the metrics.
    metrics: String,
}

/// The volume of a client.
pub(crate) fn volume(client: usize) -> String {
    format!("client-{client}")
}

impl Place {
    pub(crate) fn new(
        directory: &Path,
        program: PathBuf,
        clients: usize,
        strangers: usize,
    ) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("siltstone-soak-").tempdir_in(directory)?;
        let size = VOLUME_BYTES;
        let volumes = (0..clients).map(|client| format!("{}={size}", volume(client))).collect();
        let max_connections = strangers + SPARE_CONNECTIONS;
        let place = Self { folder, program, volumes, max_connections };
        place.write_config(false)?;
        Ok(place)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.file("socket")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.file("log")
    }

    /// The config, with the extra volume or without.
    pub(crate) fn write_config(&self, with_extra: bool) -> io::Result<()> {
        let extra = with_extra.then(|| format!("{EXTRA}=64M"));
        let create: Vec<_> = self.volumes.iter().cloned().chain(extra).collect();
        let text = format!(
            "pool = {:?}\nsize = {POOL_SIZE:?}\nlisten = [\"unix:{}\"]\ncreate = {create:?}\n\
             max-connections = {}\nmetrics = \"0\"\nstop-at-eof = true\n",
            self.file("pool"),
            self.socket().display(),
            self.max_connections
        );
        fs::write(self.file("config.toml"), text)
    }

    /// Starts a server and waits until it is ready.
    pub(crate) fn start(&self) -> Result<Server> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut child = Command::new(&self.program)
            .args(["serve", "--config"])
            .arg(self.file("config.toml"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for this process to act on.
            .process_group(0)
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        // From here on it is ended whatever happens.
        let mut server = Server { child, _input: input, metrics: String::new() };
        let lines = output.map(BufReader::new).into_iter().flat_map(BufRead::lines);
        for line in lines {
            let line = line?;
            if let Some((_, address)) = line.split_once("metrics: http://") {
                server.metrics = address.trim_end_matches("/metrics").into();
            }
            if line == "ready" {
                return Ok(server);
            }
        }
        Err("the server did not start".into())
    }

    /// Runs a command on the pool, which must succeed.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<()> {
        let (words, rest) =
            arguments.split_at(arguments.iter().position(|a| *a == "POOL").ok_or("no pool")?);
        let output = Command::new(&self.program)
            .args(words)
            .arg(self.file("pool"))
            .args(&rest[1..])
            .env_remove("RUST_LOG")
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("siltstone {}: {}: {}", arguments.join(" "), output.status, said.trim()).into())
    }
}

impl Server {
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Has it read its config again.
    pub(crate) fn reload(&self) -> io::Result<()> {
        self.signal(Signal::HUP)
    }

    /// What a monitoring system reads.
    pub(crate) fn metrics(&self) -> Result<String> {
        let mut stream = TcpStream::connect(&self.metrics)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.metrics);
        stream.write_all(request.as_bytes())?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        if page.starts_with("HTTP/1.1 200 ") { Ok(page) } else { Err("no page of metrics".into()) }
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("the server ended with {status}").into()),
                None if Instant::now() > deadline => return Err("the server does not end".into()),
                None => thread::sleep(LOOK_EVERY),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has been waited for is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
