//! The engine thread: starts what the streams have queued, and runs it while the host threads are blocked.

use crate::machine::Shared;
use crate::scheduler::{Ended, Scheduler, Step};
use crate::stream::Operation;

/// Runs until the machine goes.
pub fn run(shared: &Shared) {
    let mut scheduler = Scheduler::new(shared);
    let mut host = shared.lock();
    let mut stuck = false;
    while !host.shutdown {
        if !host.all_blocked() {
            host = shared.park(host);
            continue;
        }
        let started = start(&mut host, &mut scheduler);
        if !started && scheduler.is_idle() {
            host = shared.park(host);
            continue;
        }
        // Nothing can move at this time, and nobody outside is about to change that: on to the next deadline.
        let past = std::mem::take(&mut stuck) && !started;
        drop(host);
        let step = scheduler.run(past);
        host = shared.lock();
        host.now_ns = scheduler.now_ns();
        stuck = matches!(step, Step::Stuck);
        for Ended { device, stream, fault } in scheduler.take_ended() {
            match fault {
                Some(fault) => host.fail(fault),
                None => {
                    if let Some(state) = host.devices[device].streams.get_mut(&stream) {
                        state.running = false;
                        state.completed += 1;
                    }
                    host.tidy(device);
                }
            }
            shared.changed.notify_all();
        }
    }
    drop(host);
    scheduler.abandon();
}

/// Starts the operations at the heads of idle streams, in the order of devices and streams; true if any came.
fn start(host: &mut crate::machine::Host, scheduler: &mut Scheduler) -> bool {
    let now_ns = scheduler.now_ns();
    let mut any = false;
    let mut again = true;
    // An event reached on one stream may free another.
    while std::mem::take(&mut again) {
        for device in 0..host.devices.len() {
            for (&id, stream) in &mut host.devices[device].streams {
                while !stream.running {
                    match stream.queue.pop_front() {
                        None => break,
                        Some(Operation::Wait(event)) if event.time_ns().is_none() => {
                            stream.queue.push_front(Operation::Wait(event));
                            break;
                        }
                        Some(Operation::Launch(launch, kernel)) => {
                            stream.running = true;
                            scheduler.launch(device, id, launch, kernel);
                            any = true;
                            continue;
                        }
                        Some(Operation::Host(operation)) => operation(),
                        Some(Operation::Record(event)) => event.reach(now_ns),
                        Some(Operation::Wait(_)) => {}
                    }
                    stream.completed += 1;
                    again = true;
                    any = true;
                }
            }
            host.tidy(device);
        }
    }
    any
}
