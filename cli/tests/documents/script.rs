//! Runs commands one after another in one shell, in a directory of their own, with the built program
//! in PATH; servers in the background, from when they are ready until the next one or the end.

use std::{
    fmt::Write,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
};

use tempfile::TempDir;

use super::support::Folder;

/// No document takes longer than that.
const SECONDS: &str = "240";

/// What every script begins with.
const PRELUDE: &str = r#"
set -o pipefail
stop_server() {
    [ -n "${server-}" ] || return 0
    kill "$server" 2>/dev/null
    wait "$server"
    local status=$?
    server=
    return $status
}
trap stop_server EXIT
background() {
    stop_server || return
    : >"$out/ready" # what the server before said must not be taken for this one's
    "$@" >>"$out/ready" 2>>server.log &
    server=$!
    local attempt
    for attempt in {1..600}; do
        if grep -qx ready "$out/ready"; then cat "$out/ready"; return 0; fi
        kill -0 "$server" 2>/dev/null || break
        sleep 0.05
    done
    cat server.log
    return 1
}
ended() {
    echo "$2" >"$out/$1.status"
    [ $(( $2 != 0 )) = "$3" ] || exit 1
}
"#;

/// A directory in which the commands of a document run.
pub(super) struct Place {
    folder: Folder,
    /// Short, as the paths of sockets must be.
    sockets: TempDir,
    /// Kept until the commands run, so that nobody else is given them.
    ports: Vec<TcpListener>,
}

/// A command for the shell.
pub(super) struct Step {
    /// What is run.
    pub(super) script: String,
    /// Whether it is to fail.
    pub(super) fails: bool,
}

/// What a step did.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) status: Option<i32>,
    pub(super) printed: String,
}

impl Place {
    pub(super) fn new() -> Self {
        let sockets = tempfile::Builder::new().prefix("silt").tempdir().unwrap();
        Self { folder: Folder::new(), sockets, ports: Vec::new() }
    }

    /// A directory for sockets.
    pub(super) fn sockets(&self) -> &Path {
        self.sockets.path()
    }

    /// A port that nobody uses.
    pub(super) fn port(&mut self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        self.ports.push(listener);
        port
    }

    /// Runs steps until one does not end as it should; returns what each did that ran.
    pub(super) fn run(mut self, steps: &[Step]) -> Vec<Done> {
        self.ports.clear();
        let (work, out) = (self.folder.path("work"), self.folder.path("out"));
        fs::create_dir(&work).unwrap();
        fs::create_dir(&out).unwrap();
        let mut script = String::from(PRELUDE);
        for (number, Step { script: step, fails }) in steps.iter().enumerate() {
            writeln!(script, "{{ {step}\n}} >\"$out/{number}\" 2>&1 </dev/null").unwrap();
            writeln!(script, "ended {number} $? {}", i32::from(*fails)).unwrap();
        }
        let program = Path::new(env!("CARGO_BIN_EXE_siltstone")).parent().unwrap();
        let mut path = vec![PathBuf::from(program)];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
        let status = Process::new("timeout")
            .args(["--kill-after=5", SECONDS, "bash", "-c", &script])
            .current_dir(&work)
            .env("PATH", std::env::join_paths(path).unwrap())
            .env("out", &out)
            .env("repository", super::repository())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .status()
            .unwrap();
        println!("the shell: {status}");
        let done = (0..steps.len()).map_while(|number| {
            let printed = fs::read(out.join(number.to_string())).ok()?;
            let status = fs::read_to_string(out.join(format!("{number}.status"))).ok();
            let printed = String::from_utf8_lossy(&printed).into_owned();
            Some(Done { status: status.and_then(|text| text.trim().parse().ok()), printed })
        });
        done.collect()
    }
}
