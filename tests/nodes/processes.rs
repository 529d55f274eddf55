//! Two processes that a test starts, watches and disturbs.

use std::env::current_exe;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long anything may take, under emulation.
const PATIENCE: Duration = Duration::from_secs(90);

/// Tests that start processes do so one at a time: there are few cores.
pub fn in_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: Vec<String>,
}

/// Processes 0 and 1 of a group. What still runs when this goes is killed.
pub struct Pair([Process; 2]);

impl Pair {
    /// Starts both. Each has a device of its own, if there are two.
    pub fn start(devices: &[String], scenario: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let fd = listener.as_raw_fd();
        // Process 0 is to have the listener: not to be closed when it starts.
        // SAFETY: the descriptor is open.
        assert!(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } == 0);
        let pair = [0, 1].map(|process| {
            let device = &devices[process % devices.len()];
            let mut child = Command::new(current_exe().unwrap())
                .args(["--exact", "a_node", "--nocapture"])
                .env("TOKENRAIL_TEST_NODE", format!("{process} {address} {device} {scenario}"))
                .env("TOKENRAIL_TEST_LISTENER", fd.to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
            let (sender, lines) = channel();
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
            Process { child, stdin, lines, seen: Vec::new() }
        });
        Self(pair)
    }

    /// Reads a process's lines until one is what is wanted.
    fn read_until(&mut self, process: usize, what: &str, mut is_it: impl FnMut(&str) -> bool) {
        let end = Instant::now() + PATIENCE;
        let Process { lines, seen, .. } = &mut self.0[process];
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let found = line.find("node: ").is_some_and(|at| is_it(&line[at + 6..]));
                    seen.push(line);
                    if found {
                        return;
                    }
                }
                Err(error) => panic!("process {process} came to no {what} ({error}): {seen:#?}"),
            }
        }
    }

    pub fn wait_for_round(&mut self, round: u32) {
        (0..2).for_each(|process| {
            self.read_until(process, "such round", |line| line == format!("round {round}"));
        });
    }

    pub fn kill(&mut self, process: usize) {
        self.0[process].child.kill().unwrap();
    }

    /// Lets a process go on that waits for that.
    pub fn let_go(&mut self, process: usize) {
        self.0[process].stdin = None;
    }

    /// Whether the process ends, and well, within `time`.
    pub fn wait(&mut self, process: usize, time: Duration) -> bool {
        let end = Instant::now() + time;
        let Process { child, lines, seen, .. } = &mut self.0[process];
        loop {
            // Its output ends with it.
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
        child.wait().is_ok_and(|status| status.success())
    }

    pub fn both_end_well(mut self) {
        for process in 0..2 {
            assert!(self.wait(process, PATIENCE), "process {process}: {:#?}", self.0[process].seen);
        }
    }

    /// Waits until a process has ended of itself; the errors that its ranks told, at least one.
    pub fn errors_of(&mut self, process: usize) -> Vec<String> {
        self.wait(process, PATIENCE);
        let seen = &self.0[process].seen;
        let errors: Vec<_> =
            seen.iter().filter_map(|line| Some(line.split_once("node: error: ")?.1.to_owned())).collect();
        assert!(!errors.is_empty(), "process {process}: {seen:#?}");
        errors
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for Process { child, .. } in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether the devices are joined by a cable that can be pulled: the test bed's.
pub fn has_cable() -> bool {
    std::env::var("ARRANGEMENT").is_ok_and(|arrangement| arrangement == "one")
}

/// Puts the cable in or pulls it out.
pub fn cable(is_in: bool) {
    let ip = |words: &str| {
        let status = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}");
    };
    if !is_in {
        return ip("link set v1 down");
    }
    ip("link set v1 up");
    // Went with the interface.
    ip("route replace 10.1.0.2 dev v0 src 10.1.0.1 table 100");
    ip("route replace 10.1.0.1 dev v1 src 10.1.0.2 table 100");
    let back = Instant::now();
    while !super::node::all_ports_are_active() {
        assert!(back.elapsed() < PATIENCE, "the ports come back");
        std::thread::yield_now();
    }
}
