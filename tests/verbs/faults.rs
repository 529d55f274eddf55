//! What goes wrong is told, once, in time, and of the right lane.

use super::ends::{CABLE, End, PATIENCE, connect, device_names, devices, lane, options, pair, until};
use std::path::Path;
use std::process::Command;
use std::sync::{PoisonError, RwLockWriteGuard};
use std::time::{Duration, Instant};
use tokenrail::Error;
use tokenrail::fabric::verbs::VerbsOptions;
use tokenrail::fabric::{Cause, Event, Fabric, Payload, Region, Write};

fn open_pair(names: &[String], bytes: usize) -> [End; 2] {
    [0, 1].map(|rank: u32| {
        let devices = vec![names[rank as usize % names.len()].clone()];
        End::open(rank, 2, &VerbsOptions { devices, ..options() }, bytes)
    })
}

/// Lane 0 fails because of this, lane 1 goes on.
fn refused_on_one_lane(mut ends: [End; 2], range: std::ops::Range<usize>) {
    ends[0].write(lane(1, 0), range, None);
    ends[0].tell(lane(1, 1), 3);
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "the failure", |ends| !ends[0].failures().is_empty());
    assert_eq!(ends[0].failures(), [(lane(1, 0), Cause::Refused)]);
    assert_eq!(ends[0].verbs.room(lane(1, 0)), 0);
    until(&mut ends, "the other lane", |ends| ends[1].arrived(lane(0, 1)) == [3]);
    // Either end's lane is gone, and only that one.
    until(&mut ends, "the other end's failure", |ends| !ends[1].failures().is_empty());
    assert_eq!(ends[1].failures().len(), 1);
    let (at, cause) = ends[1].failures().remove(0);
    assert_eq!(at, lane(0, 0));
    assert!(matches!(cause, Cause::Other(_) | Cause::Flushed), "{cause:?}");
    ends[0].tell(lane(1, 1), 4);
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "the other lane again", |ends| ends[1].arrived(lane(0, 1)) == [3, 4]);
    assert_eq!(ends[0].failures().len(), 1);
}

#[test]
fn a_wrong_key_is_refused() {
    let Some((names, _cable)) = devices() else { return };
    let mut ends = open_pair(&names, 4096);
    // The last region's last key comes last.
    connect(&mut ends, |_, _, mut address| {
        let last = address.len() - 2;
        address[last] ^= 0x55;
        address
    });
    refused_on_one_lane(ends, 0..100);
}

#[test]
fn what_is_not_registered_is_refused() {
    let Some((names, _cable)) = devices() else { return };
    let mut ends = open_pair(&names, 1 << 16);
    // Rank 1 pretends to have twice as much. Its size comes before the last key.
    let pretended = 1_u64 << 17;
    connect(&mut ends, |from, _, mut address| {
        let at = address.len() - 12..address.len() - 4;
        if from == 1 {
            address[at].copy_from_slice(&pretended.to_le_bytes());
        }
        address
    });
    let payload = Payload::Bytes { region: Region(0), offset: 0, bytes: 200 };
    let write = Write { payload, region: Region(0), offset: (1 << 16) - 100, immediate: None };
    ends[0].verbs.write(lane(1, 0), &write).unwrap();
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "the failure", |ends| !ends[0].failures().is_empty());
    assert_eq!(ends[0].failures(), [(lane(1, 0), Cause::Refused)]);
}

#[test]
fn what_is_known_not_to_be_there_is_not_sent() {
    let Some((names, _cable)) = devices() else { return };
    let mut ends = pair(&names, &options(), 4096);
    let bytes = |offset, bytes| Payload::Bytes { region: Region(0), offset, bytes };
    let to = |payload, region, offset| Write { payload, region: Region(region), offset, immediate: None };
    for (write, expected) in [
        (to(bytes(0, 100), 0, 4000), Cause::Refused),
        (to(bytes(0, 100), 0, u64::MAX), Cause::Refused),
        (to(bytes(0, 100), 1, 0), Cause::Refused),
        (to(Payload::Word(1), 0, 4096), Cause::Refused),
        (to(bytes(4000, 100), 0, 0), Cause::Local),
        (to(bytes(u64::MAX, 100), 0, 0), Cause::Local),
    ] {
        match ends[0].verbs.write(lane(1, 0), &write) {
            Err(Error::Link { rank: 0, peer: 1, lane: 0, cause }) => assert_eq!(cause, expected),
            other => panic!("{write:?}: {other:?}"),
        }
    }
    let write = to(Payload::Word(1), 0, 0);
    for nowhere in [lane(0, 0), lane(1, 2), lane(2, 0), lane(u32::MAX, u32::MAX)] {
        assert_eq!(ends[0].verbs.room(nowhere), 0);
        assert!(matches!(ends[0].verbs.write(nowhere, &write), Err(Error::Link { .. })));
    }
    // The lane is as good as before.
    ends[0].tell(lane(1, 0), 1);
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "the immediate", |ends| ends[1].arrived(lane(0, 0)) == [1]);
}

#[test]
fn a_peer_that_has_closed_is_noticed() {
    let Some((names, _cable)) = devices() else { return };
    let mut ends = pair(&names, &options(), 4096);
    ends[0].tell(lane(1, 0), 1);
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "the immediate", |ends| ends[1].arrived(lane(0, 0)) == [1]);
    let closing = Instant::now();
    ends[1].verbs.close();
    assert!(closing.elapsed() < PATIENCE / 3);
    for _ in 0..3 {
        ends[0].write(lane(1, 0), 0..1000, None);
    }
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "the failure", |ends| !ends[0].failures().is_empty());
    let failures = ends[0].failures();
    assert!(
        matches!(failures[..], [(at, Cause::Unreachable | Cause::Flushed)] if at == lane(1, 0)),
        "{failures:?}"
    );
    // What comes after is refused at once, and no news.
    let write = Write { payload: Payload::Word(1), region: Region(0), offset: 0, immediate: None };
    assert!(matches!(ends[0].verbs.write(lane(1, 0), &write), Err(Error::Link { .. })));
    ends[0].verbs.flush().unwrap();
    (0..1000).for_each(|_| ends[0].poll());
    assert_eq!(ends[0].failures().len(), 1);
    // An end that has closed says so, and can be closed again.
    assert!(matches!(ends[1].verbs.write(lane(0, 0), &write), Err(Error::Link { .. })));
    ends[1].verbs.flush().unwrap();
    ends[1].poll();
    ends[1].verbs.close();
}

#[test]
fn a_peer_that_takes_no_immediates_is_noticed() {
    let Some((names, _cable)) = devices() else { return };
    // 0.64 ms, twice.
    let options = VerbsOptions { receive_depth: 4, rnr_retry: 2, min_rnr_timer: 12, ..options() };
    let [mut sender, mut receiver] = pair(&names, &options, 4096);
    (0..20).for_each(|i| sender.tell(lane(1, 1), i));
    sender.verbs.flush().unwrap();
    let mut sender = [sender];
    until(&mut sender, "the failure", |ends| !ends[0].failures().is_empty());
    assert_eq!(sender[0].failures(), [(lane(1, 1), Cause::NotReady)]);
    // What had come before is not lost.
    receiver.poll();
    assert_eq!(receiver.arrived(lane(0, 1)), [0, 1, 2, 3]);
}

#[test]
fn a_lane_that_gets_nothing_done_is_given_up() {
    let Some((names, _cable)) = devices() else { return };
    // The peer is asked for ever to take immediates in, and Soft-RoCE does not take that for silence.
    let deadline = Duration::from_secs(1);
    let waiting = VerbsOptions { rnr_retry: 7, min_rnr_timer: 12, ack_timeout: 24, ..options() };
    let options = VerbsOptions { receive_depth: 4, deadline, ..waiting };
    let [mut sender, _receiver] = pair(&names, &options, 4096);
    (0..4).for_each(|i| sender.tell(lane(1, 0), i));
    sender.verbs.flush().unwrap();
    let mut sender = [sender];
    until(&mut sender, "the report", |ends| ends[0].written(lane(1, 0)) == 4);
    let start = Instant::now();
    sender[0].tell(lane(1, 0), 4);
    sender[0].verbs.flush().unwrap();
    until(&mut sender, "the failure", |ends| !ends[0].failures().is_empty());
    assert_eq!(sender[0].failures(), [(lane(1, 0), Cause::Unreachable)]);
    assert!(start.elapsed() >= deadline, "{:?}", start.elapsed());
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().expect(command);
    assert!(status.success(), "{command}");
}

/// The devices, with the cable between them for oneself. `None`, and says so, if there is no such cable.
fn cable() -> Option<(Vec<String>, RwLockWriteGuard<'static, ()>)> {
    let names = device_names()?;
    if !Path::new("/sys/class/net/v1").exists() || names != ["rxe0", "rxe1"] {
        super::skip::skipped("no cable to do harm to: it takes the test bed with one machine");
        return None;
    }
    Some((names, CABLE.write().unwrap_or_else(PoisonError::into_inner)))
}

#[test]
fn a_bad_cable_changes_nothing() {
    let Some((names, _alone)) = cable() else { return };
    let mut ends = pair(&names, &options(), 1 << 16);
    for interface in ["v0", "v1"] {
        let harm = "delay 1ms 1ms loss 2% duplicate 2% corrupt 1%";
        run(&format!("tc qdisc add dev {interface} root netem {harm}"));
    }
    const BLOCK: usize = 20_000;
    const FLAG: usize = 32_768;
    for round in 1..=30_u64 {
        let value = move |at: usize| (at as u64 % 251 + round) as u8;
        ends[0].bytes.fill(0..BLOCK, value);
        ends[0].write(lane(1, 0), 0..BLOCK, Some(round as u32));
        ends[0].write_word(lane(1, 0), FLAG as u64, round);
        ends[0].verbs.flush().unwrap();
        until(&mut ends, "the flag", |ends| ends[1].bytes.word(FLAG) == round);
        assert!(ends[1].bytes.read(0..BLOCK).into_iter().eq((0..BLOCK).map(value)));
        until(&mut ends, "the report", |ends| u64::from(ends[0].written(lane(1, 0))) == 2 * round);
    }
    until(&mut ends, "all immediates", |ends| ends[1].arrived(lane(0, 0)).len() == 30);
    assert!(ends[1].arrived(lane(0, 0)).into_iter().eq(1..=30));
    assert!(ends.iter().all(|end| end.failures().is_empty()));
    for interface in ["v0", "v1"] {
        run(&format!("tc qdisc del dev {interface} root"));
    }
}

/// The cable is pulled out at this interface of the test bed while writes are under way.
fn cable_pulled_out(interface: &str) {
    let Some((names, _alone)) = cable() else { return };
    let mut ends = pair(&names, &options(), 1 << 20);
    // Rank 0 keeps both lanes full.
    let keep_full = |end: &mut End| {
        for index in 0..2 {
            while end.verbs.room(lane(1, index)) > 0 {
                let payload = Payload::Bytes { region: Region(0), offset: 0, bytes: 1 << 16 };
                let write = Write { payload, region: Region(0), offset: 0, immediate: None };
                if end.verbs.write(lane(1, index), &write).is_err() {
                    // Why is found in the events.
                    break;
                }
            }
        }
        let _ = end.verbs.flush();
    };
    let start = Instant::now();
    while ends[0].written(lane(1, 0)) < 50 {
        assert!(start.elapsed() < PATIENCE);
        keep_full(&mut ends[0]);
        ends.iter_mut().for_each(End::poll);
    }
    run(&format!("ip link set {interface} down"));
    let down = Instant::now();
    while ends[0].failures().len() < 2 {
        let rooms = [0, 1].map(|index| ends[0].verbs.room(lane(1, index)));
        assert!(down.elapsed() < PATIENCE, "{:?}, room {rooms:?}", ends[0].failures());
        keep_full(&mut ends[0]);
        ends.iter_mut().for_each(End::poll);
    }
    eprintln!("{interface} down: failed after {:?}: {:?}", down.elapsed(), ends[0].failures());
    for (_, cause) in ends[0].failures() {
        assert!(matches!(cause, Cause::Unreachable | Cause::Local | Cause::Flushed), "{cause:?}");
    }
    let of_port = |end: &End, event| end.events.contains(&event);
    let end_of = if interface == "v0" { 0 } else { 1 };
    until(&mut ends, "the port to be down", |ends| of_port(&ends[end_of], Event::PortDown));

    run(&format!("ip link set {interface} up"));
    // They went with the link.
    for route in ["10.1.0.2 dev v0 src 10.1.0.1", "10.1.0.1 dev v1 src 10.1.0.2"] {
        run(&format!("ip route replace {route} table 100"));
    }
    until(&mut ends, "the ports to be up", |ends| of_port(&ends[end_of], Event::PortUp));
    assert_eq!(ends[0].verbs.room(lane(1, 0)), 0);
    drop(ends);
    // A veth is down as long as its other end is.
    let back = Instant::now();
    while !names.iter().all(|name| active(name)) {
        assert!(back.elapsed() < PATIENCE);
        std::thread::yield_now();
    }

    let mut ends = pair(&names, &options(), 4096);
    ends[0].tell(lane(1, 0), 1);
    ends[1].tell(lane(0, 1), 2);
    ends.iter_mut().for_each(|end| end.verbs.flush().unwrap());
    until(&mut ends, "both immediates", |ends| {
        ends[1].arrived(lane(0, 0)) == [1] && ends[0].arrived(lane(1, 1)) == [2]
    });
}

fn active(name: &str) -> bool {
    let nics = tokenrail::fabric::verbs::describe().unwrap();
    nics.iter().any(|nic| nic.name == name && nic.ports[0].state == "active" && !nic.ports[0].gids.is_empty())
}

#[test]
fn a_cable_pulled_out_at_the_receiver() {
    cable_pulled_out("v1");
}

#[test]
fn a_cable_pulled_out_at_the_sender() {
    cable_pulled_out("v0");
}
