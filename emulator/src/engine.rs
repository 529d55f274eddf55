//! The engine thread: starts what the streams have queued, and runs it while the host threads are blocked.

use crate::Fault;
use crate::machine::{Host, Shared};
use crate::scheduler::{Ended, Scheduler, Step};
use crate::stream::Operation;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::MutexGuard;

/// Runs until the machine goes.
pub fn run(shared: &Shared) {
    let mut engine = Engine { shared, scheduler: Scheduler::new(shared) };
    let mut host = shared.lock();
    host.run_by_this_thread();
    let mut stuck = false;
    while !host.shutdown {
        if !host.all_blocked() {
            // What a thread waits for may have come by what a kernel wrote.
            shared.changed.notify_all();
            host = shared.stand_still(host);
            // The host may have written what threads wait for.
            engine.scheduler.stored();
            stuck = false;
            continue;
        }
        let started;
        (host, started) = engine.start(host);
        if started {
            // What is not a kernel is done already.
            shared.changed.notify_all();
            engine.scheduler.stored();
            stuck = false;
            continue;
        }
        if engine.scheduler.is_idle() {
            if shared.actors.count() == 0 {
                host = shared.park(host);
                continue;
            }
            drop(host);
            let moved = engine.scheduler.run_actors();
            host = shared.lock();
            host.now_ns = engine.scheduler.now_ns();
            if moved {
                shared.changed.notify_all();
            } else if !host.shutdown {
                // Not for good: something may have come while there was no lock, of which nobody tells again.
                host = shared.pause(host);
            }
            continue;
        }
        drop(host);
        // If nothing could move at this time, and nobody outside is about to change that: on to the next deadline.
        stuck = matches!(engine.scheduler.run(stuck), Step::Stuck);
        host = engine.settle(shared.lock());
        if stuck && host.waits_elsewhere() {
            // Not for good: that thread has more to give.
            host = shared.pause(host);
            stuck = false;
        }
    }
    // What is left may hold memory, which holds the machine's state: dropped here, without the lock.
    let left = host.abandon();
    drop(host);
    drop(left);
    engine.scheduler.abandon();
}

struct Engine<'m> {
    shared: &'m Shared,
    scheduler: Scheduler<'m>,
}

impl<'m> Engine<'m> {
    /// Starts the operations at the heads of idle streams, in the order of devices and streams; true if any came.
    /// They run without the lock, as they, or what they drop, may call the machine.
    fn start(&mut self, mut host: MutexGuard<'m, Host>) -> (MutexGuard<'m, Host>, bool) {
        let mut any = false;
        while let Some((device, stream, queued, operation)) = host.next_operation() {
            any = true;
            drop(host);
            let fault = match operation {
                Operation::Launch(launch, kernel) => {
                    self.scheduler.launch(device, stream, launch, kernel, queued);
                    host = self.settle(self.shared.lock());
                    continue;
                }
                Operation::Host(operation) => run_host(device, operation),
                Operation::Memory(what, spans, operation) => {
                    if let Some(watch) = &mut self.scheduler.watch {
                        watch.stream_operation(device, stream, what, queued, &spans);
                    }
                    run_host(device, operation)
                }
                Operation::Record(event) => {
                    if let Some(watch) = &mut self.scheduler.watch {
                        event.set_watched(watch.record_event(device, stream));
                    }
                    event.reach(self.scheduler.now_ns());
                    None
                }
                Operation::Wait(event) => {
                    if let Some(watch) = &mut self.scheduler.watch {
                        watch.wait_event(device, stream, event.watched());
                    }
                    None
                }
            };
            match fault {
                Some(fault) => self.scheduler.fail(fault),
                None => self.scheduler.ended.push(Ended { device, stream, fault: None }),
            }
            host = self.settle(self.shared.lock());
        }
        (host, any)
    }

    /// Tells the host what has ended.
    fn settle(&mut self, mut host: MutexGuard<'m, Host>) -> MutexGuard<'m, Host> {
        host.now_ns = self.scheduler.now_ns();
        host.watched_ends = self.scheduler.watched_ends();
        for Ended { device, stream, fault } in std::mem::take(&mut self.scheduler.ended) {
            match fault {
                None => host.complete(device, stream),
                Some(fault) => {
                    let dropped = host.fail(fault);
                    drop(host);
                    // Others may wait for these moments.
                    let reach = |operation| match operation {
                        Operation::Record(event) => event.reach(self.scheduler.now_ns()),
                        other => drop(other),
                    };
                    dropped.into_iter().for_each(reach);
                    host = self.shared.lock();
                }
            }
            self.shared.changed.notify_all();
        }
        host
    }
}

/// Runs a host operation; its fault, if it panics.
fn run_host(device: usize, operation: Box<dyn FnOnce() + Send>) -> Option<Fault> {
    catch_unwind(AssertUnwindSafe(operation)).err().map(|payload| Fault {
        device,
        kernel: "host operation",
        thread: None,
        message: crate::scheduler::message_of(payload),
    })
}
