//! The checker on small kernels: what orders two accesses, what does not, and what is said about those that nothing orders.

mod common;
use common::*;
use std::ptr::with_exposed_provenance;
use tokenrail_emulator::check::{Checker, Finding, Mutant, Scope, Span, Strength, Touch, Weakness};
use tokenrail_emulator::{Device, Machine, Options, Script, simt};

const SYSTEM: Scope = Scope::System;
const DEVICE: Scope = Scope::Device;

/// A machine that is checked, and what is found of what runs on it.
fn found_by(checker: &Checker, devices: usize, run: impl FnOnce(&[Device])) -> Vec<Finding> {
    let machine = Machine::new(Options { devices, checker: Some(checker.clone()), ..Options::default() });
    let devices: Vec<_> = (0..devices).map(|ordinal| machine.device(ordinal).unwrap()).collect();
    run(&devices);
    checker.findings()
}

fn found(devices: usize, run: impl FnOnce(&[Device])) -> Vec<Finding> {
    found_by(&Checker::new(), devices, run)
}

/// What is found of one kernel with 128 bytes of shared memory.
fn found_of(threads: u32, kernel: impl Fn(u32) + Send + Sync + 'static) -> Vec<Finding> {
    found(1, |devices| run_on(&devices[0], (1, threads), 128, move || kernel(simt::shared_base())).unwrap())
}

#[track_caller]
fn is_clean(findings: &[Finding]) {
    assert!(findings.is_empty(), "{}", findings[0]);
}

/// A race of an operation called `first` with one called `second`, in whichever order they came, and nothing else.
#[track_caller]
fn is_race(findings: &[Finding], first: &str, second: &str) {
    let [Finding::Race { first: a, second: b, .. }] = findings else { panic!("not one race: {findings:?}") };
    let mut seen = [a.site.operation, b.site.operation];
    let mut wanted = [first, second];
    seen.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(seen, wanted, "{}", findings[0]);
}

#[track_caller]
fn read(at: u64) -> u64 {
    read_as(at, Strength::Plain)
}

#[track_caller]
fn read_as(at: u64, strength: Strength) -> u64 {
    simt::access(at, 8, Touch::Read, strength, "read");
    load(at)
}

#[track_caller]
fn write(at: u64, value: u64) {
    simt::access(at, 8, Touch::Write, Strength::Plain, "write");
    store(at, value);
}

#[track_caller]
fn signal(at: u64, value: u64, strength: Strength) {
    simt::access(at, 8, Touch::Write, strength, "signal");
    store(at, value);
}

/// Waits for a word, and reads it as an operation of this strength.
#[track_caller]
fn wait_as(at: u64, at_least: u64, strength: Strength) {
    wait(at, at_least, u64::MAX);
    simt::access(at, 8, Touch::Read, strength, "wait_at_least");
}

#[track_caller]
fn shared_touch(at: u32, bytes: usize, touch: Touch) {
    let name = if touch == Touch::Read { "read" } else { "write" };
    simt::shared_access(at, bytes, touch, Strength::Plain, name);
}

#[track_caller]
fn fill_shared(at: u32, bytes: usize) {
    let to = simt::shared_access(at, bytes, Touch::Write, Strength::Plain, "write");
    // SAFETY: as many bytes of shared memory, as was checked just now.
    unsafe { to.write_bytes(1, bytes) };
}

/// How a message is sent, and received.
#[derive(Clone, Copy)]
struct Way {
    fence: Option<Scope>,
    strength: Strength,
}

fn by(strength: Strength) -> Way {
    Way { fence: None, strength }
}

fn by_fence(fence: Scope, scope: Scope) -> Way {
    Way { fence: Some(fence), strength: Strength::relaxed(scope) }
}

/// One kernel writes data and then a flag; another, on the last device, waits for the flag and reads the data.
fn pass(devices: usize, send: Way, receive: Way) -> Vec<Finding> {
    found(devices, |devices| {
        let words = Words::new(&devices[0], 2);
        let (data, flag) = (words.at(0), words.at(1));
        let streams = [&devices[0], &devices[devices.len() - 1]].map(Device::stream);
        launch(&streams[0], (1, 1), 0, move || {
            write(data, 7);
            send.fence.into_iter().for_each(simt::fence);
            signal(flag, 1, send.strength);
        });
        launch(&streams[1], (1, 1), 0, move || {
            wait_as(flag, 1, receive.strength);
            receive.fence.into_iter().for_each(simt::fence);
            read(data);
        });
        streams.iter().for_each(|stream| stream.synchronize().unwrap());
    })
}

#[test]
fn a_release_and_an_acquire_pass_a_message() {
    is_clean(&pass(2, by(Strength::release(SYSTEM)), by(Strength::acquire(SYSTEM))));
    is_clean(&pass(1, by(Strength::release(DEVICE)), by(Strength::acquire(DEVICE))));
}

#[test]
fn a_flag_that_is_relaxed_on_either_side_passes_none() {
    for devices in [1, 2] {
        for (send, receive) in [
            (Strength::relaxed(SYSTEM), Strength::acquire(SYSTEM)),
            (Strength::release(SYSTEM), Strength::relaxed(SYSTEM)),
        ] {
            is_race(&pass(devices, by(send), by(receive)), "write", "read");
        }
    }
}

#[test]
fn scopes_have_to_include_each_other() {
    for (send, receive) in [(DEVICE, SYSTEM), (SYSTEM, DEVICE)] {
        let (send, receive) = (by(Strength::release(send)), by(Strength::acquire(receive)));
        is_clean(&pass(1, send, receive));
        // Then the flag is no ordered access between these two either.
        let findings = pass(2, send, receive);
        let told: Vec<_> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told.iter().any(|text| text.contains("signal") && text.contains("wait_at_least")),
            "{told:?}"
        );
        assert!(told.iter().any(|text| text.contains("write") && text.contains("read")), "{told:?}");
    }
}

#[test]
fn fences_make_relaxed_flags_pass_messages() {
    is_clean(&pass(2, by_fence(SYSTEM, SYSTEM), by_fence(SYSTEM, SYSTEM)));
    is_clean(&pass(1, by_fence(DEVICE, SYSTEM), by_fence(DEVICE, DEVICE)));
    is_clean(&pass(2, by_fence(SYSTEM, SYSTEM), by(Strength::acquire(SYSTEM))));
    is_clean(&pass(2, by(Strength::release(SYSTEM)), by_fence(SYSTEM, SYSTEM)));
    for (send, receive) in [
        (by_fence(SYSTEM, SYSTEM), by(Strength::relaxed(SYSTEM))),
        (by(Strength::relaxed(SYSTEM)), by_fence(SYSTEM, SYSTEM)),
        (by_fence(DEVICE, SYSTEM), by_fence(SYSTEM, SYSTEM)),
        (by_fence(SYSTEM, SYSTEM), by_fence(DEVICE, SYSTEM)),
    ] {
        is_race(&pass(2, send, receive), "write", "read");
    }
}

#[test]
fn a_report_names_both_accesses() {
    let line = line!() + 5;
    let findings = found(1, |devices| {
        let words = Words::new(&devices[0], 1);
        let at = words.at(0);
        run_on(&devices[0], (2, 64), 0, move || match (simt::block_index(), simt::thread_index()) {
            (0, 33) => write(at, 1),
            (1, 2) => _ = read(at),
            _ => {}
        })
        .unwrap();
    });
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    let text = finding.to_string();
    for part in [
        format!(
            "write at emulator/tests/races.rs:{line}, kernel (launch 0 of its stream) on device 0, block 0, warp 1, lane 1"
        ),
        format!(
            "read at emulator/tests/races.rs:{}, kernel (launch 0 of its stream) on device 0, block 1, warp 0, lane 2",
            line + 1
        ),
    ] {
        assert!(text.contains(&part), "{text}");
    }
}

#[test]
fn a_read_of_what_nobody_wrote_is_found() {
    let findings = found(1, |devices| {
        let memory = devices[0].alloc(16).unwrap();
        let at = memory.ptr().expose_provenance() as u64;
        run_on(&devices[0], (1, 1), 0, move || {
            write(at, 0);
            read(at);
            read(at + 8);
        })
        .unwrap();
    });
    let [Finding::Unwritten { address, access }] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((address % 16, access.site.operation, access.thread), (8, "read", Some((0, 0))));
    assert!(findings[0].to_string().starts_with("read of unwritten memory"), "{}", findings[0]);
}

#[test]
fn a_warp_barrier_orders_and_a_shuffle_does_not() {
    let kernel = |meet: fn()| {
        found_of(32, move |base| {
            if lane() == 0 {
                fill_shared(base, 4);
            }
            meet();
            if lane() == 1 {
                shared_touch(base, 4, Touch::Read);
            }
        })
    };
    is_clean(&kernel(|| simt::warp_barrier(ALL)));
    is_race(&kernel(|| _ = simt::shuffle(ALL, 0, 0)), "write", "read");
    // Lanes that did not take part know nothing.
    is_race(
        &kernel(|| {
            if lane() != 1 {
                simt::warp_barrier(!2)
            }
        }),
        "write",
        "read",
    );
}

#[test]
fn a_barrier_orders_those_that_it_joins() {
    let kernel = |meet: fn(u32)| {
        found_of(96, move |base| {
            let warp = simt::thread_index() / 32;
            if simt::thread_index() == 0 {
                fill_shared(base, 4);
            }
            meet(warp);
            if simt::thread_index() == 64 {
                shared_touch(base, 4, Touch::Read);
            }
        })
    };
    is_clean(&kernel(|_| simt::barrier(0, 96)));
    // The third warp is not one of these.
    is_race(
        &kernel(|warp| {
            if warp < 2 {
                simt::barrier(1, 64)
            }
        }),
        "write",
        "read",
    );
}

#[test]
fn bytes_next_to_each_other_are_different_places() {
    is_clean(&found_of(4, |base| shared_touch(base + lane(), 1, Touch::Write)));
    is_race(&found_of(4, |base| shared_touch(base + lane() % 3, 1, Touch::Write)), "write", "write");
}

#[test]
fn updates_at_once_do_not_race_with_each_other() {
    let add =
        |strength| found_of(32, move |base| _ = simt::shared_access(base, 4, Touch::Update, strength, "add"));
    is_clean(&add(Strength::relaxed(Scope::Block)));
    is_race(&add(Strength::Plain), "add", "add");
}

/// A bulk store whose source a thread has written, and whose destination it then tells another device of.
fn stored(fence: bool, wait_for: fn()) -> Vec<Finding> {
    found(2, |devices| {
        let words = Words::new(&devices[1], 4);
        let (data, flag) = (words.at(0), words.at(2));
        let streams = [0, 1].map(|device: usize| devices[device].stream());
        launch(&streams[0], (1, 1), 16, move || {
            let base = simt::shared_base();
            fill_shared(base, 16);
            if fence {
                simt::fence_proxy();
            }
            simt::bulk_store(std::ptr::with_exposed_provenance_mut(data as usize), base, 16);
            simt::bulk_commit();
            wait_for();
            signal(flag, 1, Strength::release(SYSTEM));
            simt::bulk_wait(0, false);
        });
        launch(&streams[1], (1, 1), 0, move || {
            wait_as(flag, 1, Strength::acquire(SYSTEM));
            read(data);
        });
        streams.iter().for_each(|stream| stream.synchronize().unwrap());
    })
}

#[test]
fn a_bulk_store_is_over_when_it_was_waited_for() {
    is_clean(&stored(true, || simt::bulk_wait(0, false)));
    // To have read its source says nothing about where it goes.
    is_race(&stored(true, || simt::bulk_wait(0, true)), "bulk_store", "read");
    is_race(&stored(true, || ()), "bulk_store", "read");
    is_race(&stored(false, || simt::bulk_wait(0, false)), "write", "bulk_store");
}

#[test]
fn the_source_of_a_bulk_store_is_free_when_it_was_read() {
    let kernel = |waits: bool| {
        found(1, |devices| {
            let words = Words::new(&devices[0], 2);
            let data = words.at(0);
            run_on(&devices[0], (1, 1), 16, move || {
                let base = simt::shared_base();
                fill_shared(base, 16);
                simt::fence_proxy();
                simt::bulk_store(std::ptr::with_exposed_provenance_mut(data as usize), base, 16);
                simt::bulk_commit();
                if waits {
                    simt::bulk_wait(0, true);
                }
                fill_shared(base, 16);
                simt::bulk_wait(0, false);
            })
            .unwrap();
        })
    };
    is_clean(&kernel(true));
    is_race(&kernel(false), "bulk_store", "write");
}

/// A bulk load that another warp waits for.
fn loaded(fence: bool, waits: bool) -> Vec<Finding> {
    found(1, |devices| {
        let words = Words::new(&devices[0], 2);
        let data = words.at(0);
        run_on(&devices[0], (1, 64), 32, move || {
            let (base, thread) = (simt::shared_base(), simt::thread_index());
            if thread == 0 {
                simt::mbarrier_init(base, 1);
                if fence {
                    simt::fence_proxy();
                }
            }
            simt::barrier(0, 64);
            if thread == 0 {
                simt::mbarrier_arrive_expect_tx(base, 16);
                simt::bulk_load(base + 16, with_exposed_provenance(data as usize), 16, base);
            }
            if waits {
                simt::mbarrier_wait(base, 0);
            }
            if thread == 40 {
                shared_touch(base + 16, 16, Touch::Read);
            }
            simt::mbarrier_wait(base, 0);
        })
        .unwrap();
    })
}

#[test]
fn a_bulk_load_is_over_when_its_mbarrier_says_so() {
    is_clean(&loaded(true, true));
    let findings = loaded(true, false);
    assert!(findings.iter().any(|finding| finding.to_string().contains("bulk_load")), "{findings:?}");
    is_race(&loaded(false, true), "mbarrier_init", "bulk_load");
}

#[test]
fn a_phase_tells_what_came_before_its_end() {
    let kernel = |late: bool| {
        found(1, |devices| {
            let words = Words::new(&devices[0], 1);
            let data = words.at(0);
            run_on(&devices[0], (1, 64), 8, move || {
                let (base, thread) = (simt::shared_base(), simt::thread_index());
                if thread == 0 {
                    simt::mbarrier_init(base, 2);
                }
                simt::barrier(0, 64);
                if thread == 0 {
                    simt::mbarrier_arrive(base);
                    if !late {
                        write(data, 1);
                    }
                    simt::mbarrier_arrive(base);
                    if late {
                        write(data, 1);
                    }
                    // Of the next phase, which does not end.
                    simt::mbarrier_arrive(base);
                }
                if thread == 32 {
                    simt::mbarrier_wait(base, 0);
                    read(data);
                }
            })
            .unwrap();
        })
    };
    is_clean(&kernel(false));
    is_race(&kernel(true), "write", "read");
}

#[test]
fn kernels_of_a_stream_follow_each_other_and_those_of_two_need_an_event() {
    let two = |between: fn(&Device) -> [tokenrail_emulator::Stream; 2],
               order: fn(&[tokenrail_emulator::Stream; 2])| {
        found(1, |devices| {
            let words = Words::new(&devices[0], 1);
            let at = words.at(0);
            let streams = between(&devices[0]);
            launch(&streams[0], (1, 1), 0, move || write(at, 1));
            order(&streams);
            launch(&streams[1], (1, 1), 0, move || _ = read(at));
            streams.iter().for_each(|stream| stream.synchronize().unwrap());
        })
    };
    let apart = |device: &Device| [device.stream(), device.stream()];
    is_race(&two(apart, |_| ()), "write", "read");
    is_clean(&two(apart, |streams| streams[1].wait(&streams[0].record())));
    // An event says nothing of what its stream does later.
    let early = found(1, |devices| {
        let words = Words::new(&devices[0], 1);
        let at = words.at(0);
        let streams = apart(&devices[0]);
        let event = streams[0].record();
        launch(&streams[0], (1, 1), 0, move || write(at, 1));
        streams[1].wait(&event);
        launch(&streams[1], (1, 1), 0, move || _ = read(at));
        streams.iter().for_each(|stream| stream.synchronize().unwrap());
    });
    is_race(&early, "write", "read");
    // What the host has waited for is over.
    is_clean(&two(apart, |streams| streams[0].synchronize().unwrap()));
}

#[test]
fn what_a_stream_does_to_memory_is_an_access_too() {
    let fill = |same: bool| {
        found(1, |devices| {
            let words = Words::new(&devices[0], 1);
            let at = words.at(0);
            let streams = [devices[0].stream(), devices[0].stream()];
            launch(&streams[0], (1, 1), 0, move || write(at, 1));
            let span = Span { address: at, bytes: 8, touch: Touch::Write };
            streams[usize::from(!same)].memory_op("fill", vec![span], Box::new(|| ()));
            launch(&streams[0], (1, 1), 0, move || _ = read(at));
            streams.iter().for_each(|stream| stream.synchronize().unwrap());
        })
    };
    is_clean(&fill(true));
    let findings = fill(false);
    let text = findings
        .iter()
        .map(ToString::to_string)
        .find(|text| text.contains("fill at emulator/tests/races.rs"));
    assert!(text.is_some_and(|text| text.contains("an operation of the stream")), "{findings:?}");
}

#[test]
fn a_mutant_is_weaker_at_its_place_alone() {
    let run = |checker: &Checker| {
        found_by(checker, 2, |devices| {
            let words = Words::new(&devices[0], 2);
            let (data, flag) = (words.at(0), words.at(1));
            let streams = [0, 1].map(|device: usize| devices[device].stream());
            launch(&streams[0], (1, 1), 0, move || {
                signal(flag, 1, Strength::release(SYSTEM));
                write(data, 7);
                signal(flag, 2, Strength::release(SYSTEM));
            });
            launch(&streams[1], (1, 1), 0, move || {
                wait_as(flag, 2, Strength::acquire(SYSTEM));
                read(data);
            });
            streams.iter().for_each(|stream| stream.synchronize().unwrap());
        })
    };
    let checker = Checker::new();
    is_clean(&run(&checker));
    let mutants = checker.mutants();
    // Two signals with two weaknesses, and a wait with three.
    assert_eq!(mutants.len(), 7, "{mutants:?}");
    let caught = |mutant: &Mutant| !run(&Checker::of_mutant(mutant.clone())).is_empty();
    let survivors: Vec<_> = mutants.iter().filter(|mutant| !caught(mutant)).collect();
    // The first signal tells nothing that is needed.
    let first = mutants.iter().map(|mutant| &mutant.site).find(|site| site.operation == "signal").unwrap();
    assert!(survivors.iter().all(|mutant| mutant.site == *first), "{survivors:?}");
    assert!(survivors.iter().any(|mutant| mutant.weakness == Weakness::Nothing), "{survivors:?}");
}

#[test]
fn a_script_goes_through_schedules_one_by_one() {
    // Two threads add without taking care; which sum it is depends on who is interrupted.
    let run = |preempt_at: &[u64]| {
        let script = Script::new(preempt_at);
        let machine = Machine::new(Options { script: Some(script.clone()), ..Options::default() });
        let device = machine.device(0).unwrap();
        let words = Words::new(&device, 1);
        let at = words.at(0);
        run_on(&device, (1, 64), 0, move || {
            if lane() == 0 {
                let old = load(at);
                simt::preempt();
                store(at, old + 1);
            }
        })
        .unwrap();
        (words.read()[0], script.points())
    };
    assert_eq!(run(&[]), (2, 2));
    assert_eq!([0, 1, 2].map(|point| run(&[point]).0), [1, 2, 2]);
}
