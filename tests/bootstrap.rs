//! Processes that find each other, those that do not, and those that should not.

use hmac::{Hmac, KeyInit, Mac};
use proptest::prelude::*;
use sha2::Sha256;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};
use tokenrail::Error;
use tokenrail::bootstrap::{Alone, Bootstrap, Cause, Given, Rendezvous, Secret, TcpRendezvous};

const SECRET: &str = "the secret of these tests";
/// For what is to work: long enough for a machine with a lot to do.
const LONG: Duration = Duration::from_secs(30);
/// For what is to fail at its deadline.
const SHORT: Duration = Duration::from_millis(1500);

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

fn settings(address: &str, process: u32, processes: u32) -> Rendezvous {
    let settings = Rendezvous::new(address, process, processes, Secret::new(SECRET));
    Rendezvous { timeout: LONG, message_bytes: 1 << 16, ..settings }
}

fn meet(listener: &TcpListener, settings: &Rendezvous) -> Result<TcpRendezvous, Error> {
    match settings.process {
        0 => TcpRendezvous::host(listener.try_clone().expect("a handle"), settings),
        _ => TcpRendezvous::join(settings),
    }
}

/// Runs every process on a thread of its own; gives what each returned.
fn on_processes<T: Send>(processes: u32, run: impl Fn(TcpRendezvous) -> T + Sync) -> Vec<T> {
    let (listener, address) = listen();
    let run = |process| run(meet(&listener, &settings(&address, process, processes)).expect("all come"));
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..processes).map(|process| scope.spawn(move || run(process))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no process panics")).collect()
    })
}

fn cause<T>(result: Result<T, Error>) -> Cause {
    match result.map(drop) {
        Err(Error::Bootstrap { cause, .. }) => cause,
        other => panic!("{other:?} is not an error of a bootstrap"),
    }
}

fn text<T>(result: Result<T, Error>) -> String {
    result.err().expect("an error").to_string()
}

// --- all is well

#[test]
fn everybody_gets_what_each_gave_in_order() {
    for processes in [1, 2, 5] {
        on_processes(processes, |bootstrap| {
            let process = bootstrap.process();
            assert_eq!(bootstrap.processes(), processes);
            for round in 0..40u32 {
                // Empty entries, small ones, and one as large as it may be.
                let entry = |process: u32| match (round + process) % 4 {
                    0 => Vec::new(),
                    1 => vec![process as u8; 1 << 16],
                    _ => format!("{round} of {process}").into_bytes(),
                };
                let all = bootstrap.all_gather(&entry(process), "a round", LONG).expect("all come");
                assert_eq!(all, (0..processes).map(entry).collect::<Vec<_>>());
            }
        });
    }
}

#[test]
fn large_entries_of_many() {
    let (listener, address) = listen();
    std::thread::scope(|scope| {
        for process in 0..5 {
            let settings = Rendezvous { message_bytes: 4 << 20, ..settings(&address, process, 5) };
            let listener = &listener;
            scope.spawn(move || {
                let bootstrap = meet(listener, &settings).expect("all come");
                let all =
                    bootstrap.all_gather(&vec![process as u8; 4 << 20], "a lot", LONG).expect("it fits");
                assert!((0u8..).zip(&all).all(|(process, entry)| *entry == vec![process; 4 << 20]));
            });
        }
    });
}

#[test]
fn many_processes() {
    on_processes(100, |bootstrap| {
        for round in 0..3 {
            let entry = |process: u32| vec![process as u8; 10 + round];
            let all = bootstrap.all_gather(&entry(bootstrap.process()), "a round", LONG).expect("all come");
            assert_eq!(all, (0..100).map(entry).collect::<Vec<_>>());
        }
    });
}

#[test]
fn process_0_may_come_last() {
    // A port that was free a moment ago, and that no other test is given meanwhile: they are at 127.0.0.1.
    let listener = TcpListener::bind("127.0.0.77:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let (ready, is_ready) = mpsc::channel();
    drop(listener);
    std::thread::scope(|scope| {
        let others = settings(&address, 1, 2);
        scope.spawn(move || {
            ready.send(()).expect("the test waits");
            TcpRendezvous::join(&others)
                .expect("process 0 comes at last")
                .all_gather(b"1", "x", LONG)
                .expect("all come")
        });
        is_ready.recv().expect("the thread runs");
        let bootstrap = TcpRendezvous::join(&settings(&address, 0, 2)).expect("the port is still free");
        assert_eq!(bootstrap.all_gather(b"0", "x", LONG).expect("all come"), [b"0", b"1"]);
    });
}

#[test]
fn a_name_is_looked_up() {
    let (listener, address) = listen();
    let name = address.replace("127.0.0.1", "localhost");
    std::thread::scope(|scope| {
        scope.spawn(|| TcpRendezvous::join(&settings(&name, 1, 2)).expect("it is found"));
        meet(&listener, &settings(&name, 0, 2)).expect("it comes");
    });
}

#[test]
fn alone() {
    assert_eq!((Alone.process(), Alone.processes()), (0, 1));
    assert_eq!(Alone.all_gather(b"me", "x", LONG).expect("nobody else is needed"), [b"me"]);
}

// --- settings and arguments

#[test]
fn settings_that_are_not_possible() {
    let good = settings("127.0.0.1:29400", 1, 2);
    let refusal = |settings: Rendezvous| text(TcpRendezvous::join(&settings));
    for (settings, expected) in [
        (Rendezvous { processes: 0, ..good.clone() }, "rendezvous.processes = 0: must be 1 to 1024"),
        (Rendezvous { processes: 1025, ..good.clone() }, "rendezvous.processes = 1025: must be 1 to 1024"),
        (Rendezvous { process: 2, ..good.clone() }, "rendezvous.process = 2: must be below processes = 2"),
        (
            Rendezvous { secret: Secret::new(""), ..good.clone() },
            "rendezvous.secret = 0 bytes: must be at least 16 bytes",
        ),
        (
            Rendezvous { secret: Secret::new("fifteen letters"), ..good.clone() },
            "rendezvous.secret = 15 bytes: must be at least 16 bytes",
        ),
        (
            Rendezvous { timeout: Duration::ZERO, ..good.clone() },
            "rendezvous.timeout = 0ns: must be above 0 and at most a day",
        ),
        (
            Rendezvous { message_bytes: 0, ..good.clone() },
            "rendezvous.message_bytes = 0: must be 1 to 1073741824",
        ),
        (
            Rendezvous { message_bytes: u32::MAX, ..good.clone() },
            "rendezvous.message_bytes = 4294967295: must be 1 to 1073741824",
        ),
        (
            Rendezvous { address: "nowhere".into(), ..good.clone() },
            "rendezvous.address = nowhere: must be host:port",
        ),
        (Rendezvous { address: ":80".into(), ..good.clone() }, "rendezvous.address = :80: must be host:port"),
        (
            Rendezvous { address: "a:65536".into(), ..good.clone() },
            "rendezvous.address = a:65536: must be host:port",
        ),
        (
            Rendezvous { address: "a:0".into(), ..good.clone() },
            "rendezvous.address = a:0: must name a port that the others know; \
             to have the system choose it, see TcpRendezvous::host",
        ),
    ] {
        assert_eq!(refusal(settings), expected);
    }
    let (listener, _) = listen();
    assert_eq!(text(TcpRendezvous::host(listener, &good)), "rendezvous.process = 1: must be 0: it listens");
    assert_eq!(format!("{:?}", good.secret), "Secret(25 bytes)");
}

#[test]
fn an_entry_that_is_too_large_is_not_sent_and_the_call_may_be_made_again() {
    on_processes(2, |bootstrap| {
        let refused = bootstrap.all_gather(&[0; (1 << 16) + 1], "x", LONG);
        assert_eq!(text(refused), "bytes: 65537 bytes, but message_bytes = 65536");
        bootstrap.all_gather(&[0; 1 << 16], "x", LONG).expect("it fits");
    });
}

#[test]
fn two_threads_in_a_call() {
    let (refused, was_refused) = mpsc::channel();
    let was_refused = Mutex::new(was_refused);
    on_processes(2, |bootstrap| {
        if bootstrap.process() == 0 {
            let was_refused = was_refused.lock().expect("no panic").recv_timeout(LONG);
            assert_eq!(was_refused, Ok(Cause::Busy));
            bootstrap.all_gather(b"0", "x", LONG).expect("one of them waits");
            return;
        }
        // Whichever comes first waits for process 0, which waits for the other to be refused.
        std::thread::scope(|scope| {
            let call = || match bootstrap.all_gather(b"1", "x", LONG) {
                Ok(all) => assert_eq!(all, [b"0", b"1"]),
                Err(error) => refused.send(cause(Err::<(), _>(error))).expect("process 0 waits"),
            };
            scope.spawn(call);
            scope.spawn(call);
        });
    });
}

#[test]
fn a_port_that_is_taken() {
    let (_listener, address) = listen();
    let cause = cause(TcpRendezvous::join(&settings(&address, 0, 2)));
    assert!(matches!(&cause, Cause::Unreachable { address: at, .. } if *at == address), "{cause}");
}

// --- processes that do not come, or go

#[test]
fn a_process_that_does_not_come_to_the_rendezvous() {
    let (listener, address) = listen();
    let begun = Instant::now();
    let meet =
        |process, timeout| cause(meet(&listener, &Rendezvous { timeout, ..settings(&address, process, 4) }));
    std::thread::scope(|scope| {
        let meet = &meet;
        let patient = scope.spawn(move || meet(1, LONG));
        let process_0 = meet(0, SHORT);
        assert!(matches!(&process_0, Cause::Late { processes, .. } if *processes == [2, 3]), "{process_0}");
        // It was told.
        assert_eq!(patient.join().expect("no panic"), process_0);
    });
    assert!(begun.elapsed() < LONG / 2);
}

#[test]
fn process_0_does_not_come() {
    let (listener, address) = listen();
    let impatient = Rendezvous { timeout: SHORT, ..settings(&address, 1, 2) };
    let begun = Instant::now();
    // Somebody listens, but says nothing.
    assert_eq!(cause(TcpRendezvous::join(&impatient)).processes(), [0]);
    drop(listener);
    // Nobody listens.
    let cause = cause(TcpRendezvous::join(&impatient));
    assert!(matches!(&cause, Cause::Unreachable { .. }), "{cause}");
    assert_eq!(cause.processes(), [0]);
    assert!(begun.elapsed() < LONG / 2);
}

#[test]
fn a_deadline_is_for_the_whole_call() {
    let (listener, address) = listen();
    std::thread::scope(|scope| {
        let impatient = Rendezvous { timeout: SHORT, ..settings(&address, 1, 2) };
        let process_1 = scope.spawn(move || cause(TcpRendezvous::join(&impatient)));
        let (mut stream, _) = listener.accept().expect("it connects");
        let begun = Instant::now();
        // There is always something new, but it never becomes a challenge: 83 bytes at most.
        for byte in b"tokenrdv".iter().chain(&[0; 75]) {
            let is_there = stream.write_all(&[*byte]).is_ok() && !process_1.is_finished();
            if !is_there {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        let cause = process_1.join().expect("no panic");
        assert!(matches!(&cause, Cause::Late { processes, .. } if *processes == [0]), "{cause}");
        assert!(begun.elapsed() < 4 * SHORT);
    });
}

#[test]
fn a_process_that_does_not_come_to_a_gathering() {
    // Whoever is the least patient learns who is missing, and the others from it.
    for least_patient in [0, 1] {
        let (give_up, others) = mpsc::channel();
        let others = Mutex::new(others);
        let causes = on_processes(4, |bootstrap| {
            let process = bootstrap.process();
            if process == 3 {
                // It is there, but does not come before the others have given up. It is told as well.
                let others = others.lock().expect("no panic");
                (0..3).for_each(|_| others.recv_timeout(LONG).expect("they give up"));
                return cause(bootstrap.all_gather(b"", "a place", LONG));
            }
            let timeout = if process == least_patient { SHORT } else { LONG };
            let begun = Instant::now();
            let result = bootstrap.all_gather(b"", "a place", timeout);
            assert!(begun.elapsed() < LONG / 2);
            assert!(text(result).starts_with(&format!("process {process} at a place: process")));
            give_up.send(()).expect("process 3 waits");
            // What has failed stays so, and says so at once.
            cause(bootstrap.all_gather(b"", "another", LONG))
        });
        for cause in &causes[..3] {
            let Cause::Earlier(what) = cause else { panic!("{cause}") };
            assert!(what.contains("process 3 did not come within 1."), "{what}");
        }
        assert_eq!(causes[3].processes(), [3]);
    }
}

#[test]
fn process_0_does_not_come_to_a_gathering() {
    let (done, is_done) = mpsc::channel::<()>();
    let (done, is_done) = (Mutex::new(Some(done)), Mutex::new(is_done));
    on_processes(2, |bootstrap| match bootstrap.process() {
        // Until the other has dropped its end.
        0 => assert!(is_done.lock().expect("no panic").recv_timeout(LONG).is_err()),
        _ => {
            let cause = cause(bootstrap.all_gather(b"", "x", SHORT));
            assert!(matches!(&cause, Cause::Late { processes, .. } if *processes == [0]), "{cause}");
            drop(done.lock().expect("no panic").take());
        }
    });
}

#[test]
fn a_process_that_goes() {
    for goes in 0..3 {
        let causes = on_processes(3, |bootstrap| {
            let process = bootstrap.process();
            bootstrap.all_gather(b"", "x", LONG).expect("all come");
            if process == goes {
                return None;
            }
            let begun = Instant::now();
            let cause = cause(bootstrap.all_gather(b"", "x", LONG));
            assert!(begun.elapsed() < LONG / 2);
            Some(cause)
        });
        for cause in causes.into_iter().flatten() {
            assert_eq!(cause.processes(), [goes], "{cause}");
        }
    }
}

#[test]
fn processes_that_meet_for_different_things() {
    let causes = on_processes(2, |bootstrap| {
        let place = ["a place", "another"][bootstrap.process() as usize];
        cause(bootstrap.all_gather(b"", place, LONG))
    });
    assert_eq!(causes[0].to_string(), r#"process 1 is out of step: it is at "another", we are at "a place""#);
    assert_eq!(causes[1].to_string(), format!("process 0 says: {}", causes[0]));
}

// --- real processes

const CHILD: &str = "TOKENRAIL_TEST_BOOTSTRAP";

/// This test again, in a process of its own: address, number and number of processes in the environment.
fn child(address: &str, process: u32, processes: u32) -> Child {
    Command::new(std::env::current_exe().expect("a test is a program"))
        .args(["--exact", "a_child", "--nocapture"])
        .env(CHILD, format!("{address} {process} {processes}"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("it has started before")
}

/// Not a test but what children do.
#[test]
fn a_child() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let [address, process, processes] = *task.split(' ').collect::<Vec<_>>() else { panic!("{task}") };
    let number = |text: &str| text.parse().expect("a number");
    let settings = settings(address, number(process), number(processes));
    let bootstrap = TcpRendezvous::join(&settings).expect("all come");
    let all = bootstrap.all_gather(process.as_bytes(), "first", LONG).expect("all come");
    assert!((0..).zip(&all).all(|(process, entry): (u32, _)| entry == process.to_string().as_bytes()));
    println!("\njoined");
    // Ends when process 0 does, with an error; or this process is killed before.
    bootstrap.all_gather(b"", "second", LONG).expect_err("process 0 does not come");
}

#[test]
fn processes_of_their_own() {
    let (listener, address) = listen();
    let children: Vec<_> = (1..5).map(|process| child(&address, process, 5)).collect();
    let bootstrap = TcpRendezvous::host(listener, &settings(&address, 0, 5)).expect("all come");
    let all = bootstrap.all_gather(b"0", "first", LONG).expect("all come");
    assert_eq!(all, [b"0", b"1", b"2", b"3", b"4"]);
    drop(bootstrap);
    for mut child in children {
        assert!(child.wait().expect("it has started").success());
    }
}

#[test]
fn a_process_that_is_killed_while_the_others_wait() {
    let (listener, address) = listen();
    let mut victim = child(&address, 2, 3);
    let told = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let bootstrap = TcpRendezvous::join(&settings(&address, 1, 3)).expect("all come");
            bootstrap.all_gather(b"1", "first", LONG).expect("all come");
            bootstrap
        });
        let bootstrap = TcpRendezvous::host(listener, &settings(&address, 0, 3)).expect("all come");
        bootstrap.all_gather(b"0", "first", LONG).expect("all come");
        let other = other.join().expect("no panic");
        let waits = scope.spawn(move || cause(bootstrap.all_gather(b"", "second", LONG)));
        let lines = BufReader::new(victim.stdout.take().expect("it was asked for")).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "joined"));
        let begun = Instant::now();
        victim.kill().expect("it is ours");
        victim.wait().expect("it was started");
        let noticed = waits.join().expect("no panic");
        assert!(matches!(noticed, Cause::Lost { process: 2, .. }), "{noticed}");
        let told = cause(other.all_gather(b"", "second", LONG));
        assert!(begun.elapsed() < LONG / 2);
        told
    });
    assert!(matches!(&told, Cause::Told { by: 0, processes, .. } if *processes == [2]), "{told}");
}

// --- processes that are set up wrongly

#[test]
fn another_secret() {
    let (listener, address) = listen();
    std::thread::scope(|scope| {
        let process_0 = scope.spawn(|| meet(&listener, &settings(&address, 0, 2)).map(drop));
        let wrong =
            Rendezvous { secret: Secret::new("another secret, just as long"), ..settings(&address, 1, 2) };
        let begun = Instant::now();
        assert_eq!(cause(TcpRendezvous::join(&wrong)), Cause::Secret { process: 0 });
        assert!(begun.elapsed() < LONG / 2);
        // The right one can still come.
        let right = TcpRendezvous::join(&settings(&address, 1, 2));
        assert!(right.is_ok(), "{:?}", right.err());
        assert!(process_0.join().expect("no panic").is_ok());
    });
    // Process 0 cannot know who it was, but says that there was somebody.
    let impatient = Rendezvous { timeout: SHORT, ..settings(&address, 0, 2) };
    std::thread::scope(|scope| {
        let process_0 = scope.spawn(|| meet(&listener, &impatient).map(drop));
        let wrong =
            Rendezvous { secret: Secret::new("another secret, just as long"), ..settings(&address, 1, 2) };
        assert_eq!(cause(TcpRendezvous::join(&wrong)), Cause::Secret { process: 0 });
        let cause = cause(process_0.join().expect("no panic"));
        assert!(matches!(&cause, Cause::Late { processes, refused: 1, .. } if *processes == [1]), "{cause}");
        assert!(
            cause
                .to_string()
                .ends_with("; 1 connection was turned away: it did not prove that it knows the secret")
        );
    });
}

/// Runs process 0 of three, lets process 1 come, and then somebody who is wrong; gives what process 0 and the wrong one
/// say. Process 1 is told.
fn with_a_wrong_one<T>(wrong: impl FnOnce(&str) -> T) -> (Cause, T) {
    let (listener, address) = listen();
    let begun = Instant::now();
    let results = std::thread::scope(|scope| {
        let process_0 = scope.spawn(|| cause(meet(&listener, &settings(&address, 0, 3))));
        let mut right = Speaker::greet(&address, 1, 3, 1);
        assert_eq!(right.prove(), 0);
        let wrong = wrong(&address);
        // Before, it may have been told who is missing.
        while right.read().0 != 4 {}
        (process_0.join().expect("no panic"), wrong)
    });
    assert!(begun.elapsed() < LONG / 2);
    results
}

#[test]
fn two_processes_with_the_same_number() {
    let (process_0, wrong) = with_a_wrong_one(|address| cause(TcpRendezvous::join(&settings(address, 1, 3))));
    assert_eq!(process_0, Cause::Duplicate { process: 1 });
    assert_eq!(wrong, Cause::Duplicate { process: 1 });
}

#[test]
fn processes_that_disagree() {
    let (process_0, wrong) = with_a_wrong_one(|address| cause(TcpRendezvous::join(&settings(address, 5, 7))));
    let field = "rendezvous.processes";
    assert_eq!(process_0, Cause::Disagreement { field, process: 5, theirs: 7, ours: 3 });
    assert_eq!(wrong, Cause::Disagreement { field, process: 0, theirs: 3, ours: 7 });

    let (process_0, wrong) = with_a_wrong_one(|address| {
        cause(TcpRendezvous::join(&Rendezvous { message_bytes: 7, ..settings(address, 2, 3) }))
    });
    let field = "rendezvous.message_bytes";
    assert_eq!(process_0, Cause::Disagreement { field, process: 2, theirs: 7, ours: 1 << 16 });
    assert_eq!(wrong, Cause::Disagreement { field, process: 0, theirs: 1 << 16, ours: 7 });
}

#[test]
fn another_version_and_a_number_out_of_range() {
    let field = "protocol version";
    let (process_0, verdict) = with_a_wrong_one(|address| Speaker::greet(address, 2, 3, 2).prove());
    assert_eq!((process_0, verdict), (Cause::Disagreement { field, process: 2, theirs: 2, ours: 1 }, 1));
    for number in [0, 3, u32::MAX] {
        let (process_0, verdict) = with_a_wrong_one(|address| Speaker::greet(address, 1, 3, number).prove());
        assert!(matches!(process_0, Cause::OutOfStep { process, .. } if process == number), "{process_0}");
        assert_eq!(verdict, 2);
    }
    // Process 0 is of another version.
    let (listener, address) = listen();
    std::thread::scope(|scope| {
        let process_1 = scope.spawn(|| cause(TcpRendezvous::join(&settings(&address, 1, 2))));
        let (mut stream, _) = listener.accept().expect("it connects");
        let mut transcript = read_bytes(&mut stream, 56);
        transcript.extend_from_slice(b"tokenrdv");
        [9u32, 2, 1 << 16].iter().for_each(|word| transcript.extend_from_slice(&word.to_le_bytes()));
        transcript.extend_from_slice(&[5; 32]);
        stream.write_all(&transcript[56..]).expect("it reads");
        stream.write_all(&mac(SECRET.as_bytes(), &[&[1], &transcript])).expect("it reads");
        // It proves itself, so that process 0 may believe it.
        assert_eq!(read_bytes(&mut stream, 32), mac(SECRET.as_bytes(), &[&[2], &transcript]));
        let cause = process_1.join().expect("no panic");
        assert_eq!(cause, Cause::Disagreement { field, process: 0, theirs: 9, ours: 1 });
    });
}

// --- others

/// A process as the protocol's description has it, which shares no code with the library.
struct Speaker {
    stream: TcpStream,
    transcript: Vec<u8>,
    session: [u8; 32],
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any size does");
    mac.update(&parts.concat());
    mac.finalize().into_bytes().into()
}

fn read_bytes(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    stream.set_read_timeout(Some(LONG)).expect("it can be set");
    let mut read = vec![0; bytes];
    stream.read_exact(&mut read).expect("something comes");
    read
}

fn hello(version: u32, processes: u32, process: u32) -> Vec<u8> {
    let mut hello = b"tokenrdv".to_vec();
    [version, processes, 1 << 16, process]
        .iter()
        .for_each(|word| hello.extend_from_slice(&word.to_le_bytes()));
    hello.extend_from_slice(&[3; 32]);
    hello
}

impl Speaker {
    fn greet(address: &str, version: u32, processes: u32, process: u32) -> Self {
        let mut stream = TcpStream::connect(address).expect("process 0 listens");
        let mut transcript = hello(version, processes, process);
        stream.write_all(&transcript).expect("it reads");
        let challenge = read_bytes(&mut stream, 84);
        transcript.extend_from_slice(&challenge[..52]);
        assert_eq!(challenge[52..], mac(SECRET.as_bytes(), &[&[1], &transcript]));
        let session = mac(SECRET.as_bytes(), &[&[4], &transcript]);
        Self { stream, transcript, session }
    }

    /// What process 0 decides.
    fn prove(&mut self) -> u32 {
        let proof = mac(SECRET.as_bytes(), &[&[2], &self.transcript]);
        self.stream.write_all(&proof).expect("it reads");
        let verdict = read_bytes(&mut self.stream, 36);
        assert_eq!(verdict[4..], mac(SECRET.as_bytes(), &[&[3], &verdict[..4], &self.transcript]));
        u32::from_le_bytes(verdict[..4].try_into().expect("four"))
    }

    /// The bytes of a frame to process 0, with this size in its head.
    fn frame(&self, sequence: u64, kind: u8, size: u32, bytes: &[u8]) -> Vec<u8> {
        let mut head = vec![kind];
        head.extend_from_slice(&size.to_le_bytes());
        let sequence = sequence.to_le_bytes();
        let first = mac(&self.session, &[&[1, 1], &sequence, &head]);
        let second = mac(&self.session, &[&[1, 2], &sequence, &head, bytes]);
        [&head[..], &first, bytes, &second].concat()
    }

    /// The kind and the bytes of a frame.
    fn read(&mut self) -> (u8, Vec<u8>) {
        let frame = read_frame(&mut self.stream).expect("a frame");
        (frame[0], frame[37..frame.len() - 32].to_vec())
    }
}

fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    stream.set_read_timeout(Some(LONG)).expect("it can be set");
    let mut frame = vec![0; 37];
    stream.read_exact(&mut frame).ok()?;
    let size = u32::from_le_bytes(frame[1..5].try_into().expect("four"));
    let mut rest = vec![0; size as usize + 32];
    stream.read_exact(&mut rest).ok()?;
    frame.extend_from_slice(&rest);
    Some(frame)
}

#[test]
fn the_protocol_is_as_described() {
    let (listener, address) = listen();
    std::thread::scope(|scope| {
        let process_0 = scope.spawn(|| {
            let bootstrap = meet(&listener, &settings(&address, 0, 2)).expect("it comes");
            bootstrap.all_gather(b"0", "a place", LONG).expect("it comes")
        });
        let mut speaker = Speaker::greet(&address, 1, 2, 1);
        assert_eq!(speaker.prove(), 0);
        for (sequence, entry, place) in [(0, "", "the rendezvous"), (1, "one", "a place")] {
            let bytes = [entry.as_bytes(), place.as_bytes(), &(place.len() as u16).to_le_bytes()].concat();
            let frame = speaker.frame(sequence, 1, bytes.len() as u32, &bytes);
            speaker.stream.write_all(&frame).expect("it reads");
            // Who is missing may be said any number of times before.
            let entries: Vec<_> =
                std::iter::repeat_with(|| speaker.read()).filter(|(kind, _)| *kind == 2).take(2).collect();
            assert_eq!(entries[1].1, entry.as_bytes());
        }
        assert_eq!(process_0.join().expect("no panic"), [&b"0"[..], b"one"]);
    });
}

#[test]
fn a_size_that_is_too_large_and_messages_that_make_no_sense() {
    type Frame<'a> = &'a dyn Fn(&Speaker) -> Vec<u8>;
    let cases: [(&str, Frame); 6] = [
        ("it sends 4294967295 bytes, which is more than was agreed on", &|speaker| {
            speaker.frame(0, 1, u32::MAX, b"")
        }),
        ("its message of kind 9 makes no sense", &|speaker| speaker.frame(0, 9, 0, b"")),
        ("its message of kind 1 makes no sense", &|speaker| speaker.frame(0, 1, 3, b"x\xff\xff")),
        ("its message of kind 3 makes no sense", &|speaker| speaker.frame(0, 3, 1, b"x")),
        ("its message of kind 4 makes no sense", &|speaker| speaker.frame(0, 4, 1, b"x")),
        ("it sends what only process 0 may", &|speaker| speaker.frame(0, 2, 1, b"x")),
    ];
    for (expected, frame) in cases {
        let (process_0, ()) = with_a_wrong_one(|address| {
            let mut speaker = Speaker::greet(address, 1, 3, 2);
            assert_eq!(speaker.prove(), 0);
            let frame = frame(&speaker);
            speaker.stream.write_all(&frame).expect("it reads");
        });
        assert_eq!(process_0, Cause::OutOfStep { process: 2, what: expected.to_owned() });
    }
}

/// Lets process 1 come while `others` do what they want; it comes in time, and all is well.
fn in_spite_of<T>(others: impl FnOnce(&str) -> T) {
    let (listener, address) = listen();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let process_0 = scope.spawn(|| {
            let bootstrap = meet(&listener, &settings(&address, 0, 2)).expect("process 1 comes");
            bootstrap.all_gather(b"0", "x", LONG).expect("process 1 comes")
        });
        let _kept = others(&address);
        let bootstrap = TcpRendezvous::join(&settings(&address, 1, 2)).expect("process 0 is there");
        assert_eq!(bootstrap.all_gather(b"1", "x", LONG).expect("process 0 is there"), [b"0", b"1"]);
        assert_eq!(process_0.join().expect("no panic"), [b"0", b"1"]);
    });
    assert!(begun.elapsed() < LONG / 2);
}

fn connect(address: &str) -> TcpStream {
    TcpStream::connect(address).expect("process 0 listens")
}

#[test]
fn connections_that_are_silent_keep_nobody_out() {
    // More than process 0 looks after at a time, and as many that stop in the middle.
    in_spite_of(|address| {
        let silent: Vec<_> = (0..150).map(|_| connect(address)).collect();
        let half: Vec<_> = (0..150)
            .map(|_| {
                let mut stream = connect(address);
                stream.write_all(&hello(1, 2, 1)[..30]).expect("there is room");
                stream
            })
            .collect();
        (silent, half)
    });
}

#[test]
fn who_does_not_know_the_secret_cannot_say_who_it_is() {
    in_spite_of(|address| {
        // The proof is another's, or its own challenge sent back; the numbers in the hello are ones that would be errors.
        let mut speakers = Vec::new();
        for (version, processes, process) in [(1, 2, 1), (2, 2, 1), (1, 9, 8), (1, 2, 0), (1, 2, 7)] {
            let mut stream = connect(address);
            stream.write_all(&hello(version, processes, process)).expect("it reads");
            let challenge = read_bytes(&mut stream, 84);
            stream.write_all(&challenge[52..]).expect("it reads");
            let mut verdict = Vec::new();
            // It is turned away without a word.
            let _ = stream.read_to_end(&mut verdict);
            assert!(verdict.is_empty());
            speakers.push(stream);
        }
        speakers
    });
}

#[test]
fn what_was_recorded_is_of_no_use_later() {
    let (listener, address) = listen();
    let hello = hello(1, 2, 1);
    // The nonce of process 1 is the same; that of process 0 is what keeps it out.
    let mut recorded = Vec::new();
    std::thread::scope(|scope| {
        let process_0 = scope.spawn(|| cause(meet(&listener, &settings(&address, 0, 2))));
        let mut speaker = Speaker::greet(&address, 1, 2, 1);
        assert_eq!(speaker.prove(), 0);
        recorded.extend_from_slice(&mac(SECRET.as_bytes(), &[&[2], &speaker.transcript]));
        drop(speaker);
        assert!(matches!(process_0.join().expect("no panic"), Cause::Lost { process: 1, .. }));
    });
    in_spite_of(|address| {
        let mut stream = connect(address);
        stream.write_all(&hello).expect("it reads");
        read_bytes(&mut stream, 84);
        stream.write_all(&recorded).expect("it reads");
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_bytes_to_process_0(
        visits in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), any::<bool>(), any::<bool>()), 1..12),
    ) {
        in_spite_of(|address| {
            let visit = |(bytes, begins_well, ends): &(Vec<u8>, bool, bool)| {
                let mut stream = connect(address);
                let hello = if *begins_well { hello(1, 2, 1) } else { Vec::new() };
                // It may have closed the connection already.
                let _ = stream.write_all(&hello).and_then(|()| stream.write_all(bytes));
                if *ends {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                stream
            };
            visits.iter().map(visit).collect::<Vec<_>>()
        });
    }

    #[test]
    fn any_bytes_to_another(bytes in prop::collection::vec(any::<u8>(), 84..300), begins_well: bool) {
        let (listener, address) = listen();
        let mut bytes = bytes;
        if begins_well {
            bytes[..8].copy_from_slice(b"tokenrdv");
        }
        std::thread::scope(|scope| {
            let process_1 = scope.spawn(|| cause(TcpRendezvous::join(&settings(&address, 1, 2))));
            let (mut stream, _) = listener.accept().expect("it connects");
            let _ = stream.write_all(&bytes);
            let cause = process_1.join().expect("no panic");
            assert_eq!(cause.processes(), [0]);
            assert!(matches!(cause, Cause::Secret { .. } | Cause::OutOfStep { .. }), "{cause}");
        });
    }
}

// --- somebody in the middle

#[derive(Clone, Copy, PartialEq)]
enum Way {
    ToProcess0,
    FromProcess0,
}

/// What somebody in the middle does with a frame: the frames that go on instead, and whether the connection does.
type Edit<'a> = &'a (dyn Fn(&[Vec<u8>], Vec<u8>) -> (Vec<Vec<u8>>, bool) + Sync);

/// Hands on the handshake, and frames one way as `edit` wants: it is given the frames before, and the frame.
fn pass(mut from: TcpStream, mut to: TcpStream, handshake: &[usize], edit: Edit) {
    let mut go = || -> Option<()> {
        for bytes in handshake {
            let bytes = read_bytes(&mut from, *bytes);
            to.write_all(&bytes).ok()?;
        }
        let mut before = Vec::new();
        loop {
            let frame = read_frame(&mut from)?;
            let (frames, goes_on) = edit(&before, frame.clone());
            before.push(frame);
            to.write_all(&frames.concat()).ok()?;
            goes_on.then_some(())?;
        }
    };
    go();
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Two processes with somebody between them; gives what goes wrong at each at last. Entries are different every time.
fn with_somebody_between(way: Way, edit: Edit) -> [Cause; 2] {
    let (listener, address) = listen();
    let (between, between_address) = listen();
    let begun = Instant::now();
    let run = |bootstrap: TcpRendezvous| {
        for round in 0..6u8 {
            match bootstrap.all_gather(&[round; 40], "a round", LONG) {
                Ok(all) => assert_eq!(all, [[round; 40]; 2], "nothing is ever wrong unnoticed"),
                Err(error) => return cause(Err::<(), _>(error)),
            }
        }
        panic!("nobody noticed");
    };
    let causes = std::thread::scope(|scope| {
        let process_0 =
            scope.spawn(|| run(meet(&listener, &settings(&address, 0, 2)).expect("nothing is wrong yet")));
        let process_1 = scope.spawn(|| {
            run(TcpRendezvous::join(&settings(&between_address, 1, 2)).expect("nothing is wrong yet"))
        });
        let (inner, _) = between.accept().expect("process 1 connects");
        let outer = connect(&address);
        let [inner_2, outer_2] = [&inner, &outer].map(|stream| stream.try_clone().expect("a handle"));
        let untouched: Edit = &|_, frame| (vec![frame], true);
        let edit_if = |this| if way == this { edit } else { untouched };
        let [to, from] = [edit_if(Way::ToProcess0), edit_if(Way::FromProcess0)];
        scope.spawn(move || pass(inner, outer, &[56, 32], to));
        scope.spawn(move || pass(outer_2, inner_2, &[84, 36], from));
        [process_0.join().expect("no panic"), process_1.join().expect("no panic")]
    });
    assert!(begun.elapsed() < LONG / 2);
    causes
}

/// Whether a frame is the entry of this process in this round: rounds are of 40 bytes.
fn is_entry(frame: &[u8], round: u8) -> bool {
    matches!(frame[0], 1 | 2) && frame.get(37) == Some(&round) && frame.len() >= 37 + 40 + 32
}

fn noticed(way: Way, edit: Edit) {
    let [process_0, process_1] = with_somebody_between(way, edit);
    let (first, other, peer) = match way {
        Way::ToProcess0 => (process_0, process_1, 1),
        Way::FromProcess0 => (process_1, process_0, 0),
    };
    assert_eq!(first, Cause::Forged { process: peer });
    // It was told, if the one who noticed could tell; it knows at least that the connection is gone.
    assert!(matches!(other, Cause::Told { .. } | Cause::Lost { .. } | Cause::Forged { .. }), "{other}");
}

#[test]
fn a_frame_that_is_changed() {
    for way in [Way::ToProcess0, Way::FromProcess0] {
        // Kind, size (lowest and highest byte), first tag, an entry, second tag.
        for at in [0, 1, 4, 5, 36, 37, 50, usize::MAX] {
            noticed(way, &move |_, mut frame| {
                if is_entry(&frame, 2) {
                    let at = at.min(frame.len() - 1);
                    frame[at] ^= 0x40;
                }
                (vec![frame], true)
            });
        }
    }
}

#[test]
fn a_frame_that_is_repeated_or_left_out_or_late() {
    for way in [Way::ToProcess0, Way::FromProcess0] {
        noticed(way, &|_, frame| (vec![frame.clone(); 1 + usize::from(is_entry(&frame, 2))], true));
        // In place of a later one comes an earlier one.
        noticed(way, &|before, frame| {
            let old = before.iter().find(|old| is_entry(old, 1) && is_entry(&frame, 2)).cloned();
            (vec![old.unwrap_or(frame)], true)
        });
    }
    // Left out: what process 0 says next is not what is expected.
    let is_first =
        |before: &[Vec<u8>], frame: &[u8]| is_entry(frame, 2) && !before.iter().any(|old| is_entry(old, 2));
    noticed(Way::FromProcess0, &|before, frame| match is_first(before, &frame) {
        true => (vec![], true),
        false => (vec![frame], true),
    });
    // The other way round.
    noticed(Way::FromProcess0, &|before, frame| match before.last() {
        _ if is_first(before, &frame) => (vec![], true),
        Some(first) if is_entry(first, 2) => (vec![frame, first.clone()], true),
        _ => (vec![frame], true),
    });
}

#[test]
fn a_frame_that_is_sent_back() {
    let (listener, address) = listen();
    let (between, between_address) = listen();
    std::thread::scope(|scope| {
        let process_0 = scope.spawn(|| cause(meet(&listener, &settings(&address, 0, 2))));
        let process_1 = scope.spawn(|| cause(TcpRendezvous::join(&settings(&between_address, 1, 2))));
        let (mut inner, _) = between.accept().expect("process 1 connects");
        let mut outer = connect(&address);
        for (to_process_0, bytes) in [(true, 56), (false, 84), (true, 32), (false, 36)] {
            let (from, to) = if to_process_0 { (&mut inner, &mut outer) } else { (&mut outer, &mut inner) };
            to.write_all(&read_bytes(from, bytes)).expect("it reads");
        }
        // The first frame of either way has the same number: only the direction tells them apart.
        let first = read_frame(&mut inner).expect("a frame");
        inner.write_all(&first).expect("process 1 reads");
        assert_eq!(process_1.join().expect("no panic"), Cause::Forged { process: 0 });
        drop(outer);
        assert_eq!(process_0.join().expect("no panic").processes(), [1]);
    });
}

#[test]
fn a_frame_that_is_cut() {
    for (way, noticing, peer) in [(Way::ToProcess0, 0, 1), (Way::FromProcess0, 1, 0)] {
        for bytes in [1, 20, 37, 60] {
            let causes = with_somebody_between(way, &move |_, mut frame| {
                let is_cut = is_entry(&frame, 2);
                if is_cut {
                    frame.truncate(bytes);
                }
                (vec![frame], !is_cut)
            });
            assert!(matches!(causes[noticing], Cause::Lost { process, .. } if process == peer), "{causes:?}");
        }
    }
}

// --- an all-gather of one's own

type Gathered = Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>>;

fn given(entries: impl Fn() -> Gathered + Send + Sync) -> (String, String) {
    let given = Given::new(1, 2, |_, _, _| entries())
        .and_then(|given| given.with_message_bytes(4))
        .expect("possible");
    let first = text(given.all_gather(b"one", "x", LONG));
    (first, text(given.all_gather(b"one", "x", LONG)))
}

#[test]
fn an_all_gather_of_ones_own() {
    let given = Given::new(1, 2, |bytes: &[u8], place, timeout| {
        assert_eq!((place, timeout), ("x", LONG));
        Ok(vec![b"zero".to_vec(), bytes.to_vec()])
    });
    let given = given.and_then(|given| given.with_message_bytes(4)).expect("possible");
    assert_eq!((given.process(), given.processes()), (1, 2));
    assert_eq!(given.all_gather(b"one", "x", LONG).expect("it is right"), [&b"zero"[..], b"one"]);
    let large = text(given.all_gather(b"three", "x", LONG));
    assert_eq!(large, "bytes: 5 bytes, but message_bytes = 4");
    assert!(given.all_gather(b"one", "x", LONG).is_ok());
}

#[test]
fn an_all_gather_of_ones_own_that_is_wrong() {
    let one = || b"one".to_vec();
    let cases: [(&str, &(dyn Fn() -> Gathered + Send + Sync)); 6] = [
        ("it brought 0 entries of 2 processes", &|| Ok(vec![])),
        ("it brought 1 entries of 2 processes", &|| Ok(vec![one()])),
        ("it brought 3 entries of 2 processes", &|| Ok(vec![one(), one(), one()])),
        ("entry 0 has 5 bytes, but message_bytes = 4", &|| Ok(vec![vec![0; 5], one()])),
        ("entry 1 is not what this process gave", &|| Ok(vec![one(), vec![]])),
        ("the store is gone", &|| Err("the store is gone".into())),
    ];
    for (expected, entries) in cases {
        let (first, second) = given(entries);
        assert_eq!(first, format!("process 1 at x: the all-gather that was given: {expected}"));
        let earlier =
            format!("an earlier call failed (the all-gather that was given: {expected}): make a new group");
        assert_eq!(second, format!("process 1 at x: {earlier}"));
    }
    let nothing = |_: &[u8], _: &'static str, _: Duration| -> Gathered { Ok(vec![]) };
    assert_eq!(text(Given::new(2, 2, nothing).map(drop)), "process = 2: must be below processes = 2");
    assert_eq!(text(Given::new(0, 0, nothing).map(drop)), "processes = 0: must be 1 to 1024");
}

#[test]
fn an_all_gather_of_ones_own_that_panics() {
    let given = Given::new(0, 1, |_: &[u8], _, _| panic!("as it should, in this test")).expect("possible");
    std::thread::scope(|scope| {
        assert!(scope.spawn(|| given.all_gather(b"", "x", LONG)).join().is_err());
    });
    let earlier = "process 0 at x: an earlier call failed (it did not return): make a new group";
    assert_eq!(text(given.all_gather(b"", "x", LONG)), earlier);
}
