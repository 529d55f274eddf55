//! Actors: what moves beside the devices.

mod common;
use common::*;
use std::ptr::with_exposed_provenance_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokenrail_emulator::{Actor, Outlook, simt};

fn word(at: u64) -> *mut u64 {
    with_exposed_provenance_mut(at as usize)
}

/// Answers what is asked, a while later.
struct Server {
    asked: u64,
    answered: u64,
    delay_ns: u64,
    due: Option<(u64, u64)>,
}

impl Actor for Server {
    fn step(&mut self, now_ns: u64) -> Outlook {
        // SAFETY: the words outlive the actor, and no emulated thread runs now.
        let (asked, answered) = unsafe { (word(self.asked).read(), word(self.answered).read()) };
        match self.due {
            Some((due_ns, value)) if now_ns >= due_ns => {
                self.due = None;
                // SAFETY: as above.
                unsafe { word(self.answered).write(value) };
                Outlook::Worked
            }
            Some((due_ns, _)) => Outlook::At(due_ns),
            None if asked != answered => {
                self.due = Some((now_ns + self.delay_ns, asked));
                Outlook::Worked
            }
            None => Outlook::Quiet,
        }
    }
}

#[test]
fn an_actor_serves_a_kernel_that_waits_for_it() {
    for (seed, delay_ns) in [(0, 0), (1, 10), (2, 1_000_000), (3, 5_000_000_000)] {
        let machine = machine(1, seed);
        let device = machine.device(0).unwrap();
        let words = Words::new(&device, 2);
        let [asked, answered] = [words.at(0), words.at(1)];
        let _server = machine.attach(Box::new(Server { asked, answered, delay_ns, due: None }));
        run_on(&device, (1, 1), 0, move || {
            for round in 1..=10 {
                let asked_ns = simt::now_ns();
                store(asked, round);
                assert!(wait(answered, round, asked_ns + delay_ns + 1_000));
                assert!(simt::now_ns() >= asked_ns + delay_ns, "it came before its time");
            }
        })
        .unwrap();
        assert_eq!(words.read(), [10, 10]);
    }
}

#[test]
fn a_deadline_before_an_actors_moment_passes_first() {
    let machine = machine(1, 0);
    let device = machine.device(0).unwrap();
    let words = Words::new(&device, 2);
    let [asked, answered] = [words.at(0), words.at(1)];
    let _server = machine.attach(Box::new(Server { asked, answered, delay_ns: 2_000_000, due: None }));
    run_on(&device, (1, 1), 0, move || {
        store(asked, 1);
        assert!(!wait(answered, 1, simt::now_ns() + 1_000_000));
    })
    .unwrap();
    // What is under way arrives although no kernel is left.
    let done = move || {
        // SAFETY: the words are alive; the engine writes them under the lock that this runs under.
        unsafe { word(answered).read_volatile() == 1 }
    };
    assert!(machine.block_until(Arc::new(done), Some(Duration::from_secs(20))));
}

/// Many times: what ends a machine may come at any moment of the engine's, which must not sleep for good then.
#[test]
fn machines_with_actors_end() {
    for seed in 0..1000 {
        let machine = machine(1, seed);
        let device = machine.device(0).unwrap();
        let words = Words::new(&device, 2);
        let [asked, answered] = [words.at(0), words.at(1)];
        let server = machine.attach(Box::new(Server { asked, answered, delay_ns: 10, due: None }));
        run_on(&device, (1, 1), 0, move || store(asked, 1)).unwrap();
        drop((server, words, device, machine));
    }
}

#[test]
fn what_an_actor_does_repeats() {
    let run = |seed| {
        let machine = machine(1, seed);
        let device = machine.device(0).unwrap();
        let words = Words::new(&device, 2);
        let [asked, answered] = [words.at(0), words.at(1)];
        let _server = machine.attach(Box::new(Server { asked, answered, delay_ns: 100, due: None }));
        let log = Log::default();
        let entries = log.clone();
        run_on(&device, (2, 64), 0, move || {
            if simt::block_index() == 0 && simt::thread_index() == 0 {
                store(asked, 1);
            }
            assert!(wait(answered, 1, 1_000_000));
            entries.push(1_000 * simt::now_ns() + u64::from(64 * simt::block_index() + simt::thread_index()));
        })
        .unwrap();
        log.entries()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn while_memory_may_change_from_outside_time_does_not_jump() {
    struct Outside;
    impl Actor for Outside {
        fn step(&mut self, _now_ns: u64) -> Outlook {
            Outlook::Open
        }
    }
    let machine = machine(1, 0);
    let device = machine.device(0).unwrap();
    let words = Words::new(&device, 2);
    let [asked, answered] = [words.at(0), words.at(1)];
    let _outside = machine.attach(Box::new(Outside));
    let atomic = |at: u64| {
        // SAFETY: the words outlive both threads; the emulated one is on the engine's, and waits with volatile reads.
        unsafe { AtomicU64::from_ptr(word(at)) }
    };
    std::thread::scope(|scope| {
        // Bounded by the kernel's deadline: it ends, and with it the scope, only if this answers.
        scope.spawn(move || {
            while atomic(asked).load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
            }
            atomic(answered).store(1, Ordering::Release);
        });
        run_on(&device, (1, 1), 0, move || {
            store(asked, 1);
            // A minute of real time, which a jump would take at once.
            assert!(wait(answered, 1, simt::now_ns() + 60_000_000_000));
        })
        .unwrap();
    });
    // With nobody to answer, the deadline passes all the same.
    run_on(&device, (1, 1), 0, move || assert!(!wait(answered, 2, simt::now_ns() + 3_000_000))).unwrap();
}
