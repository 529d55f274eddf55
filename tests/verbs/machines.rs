//! Ranks in processes of their own, and on two machines: the test bed's, or any with the same variables set.

use super::ends::{End, PATIENCE, device_names, devices, lane, options, until};
use std::env::{current_exe, var};
use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Instant;
use tokenrail::fabric::verbs::VerbsOptions;
use tokenrail::fabric::{Cause, Fabric, Payload, Region, Write};

const PORT: u16 = 7411;

/// Rank 1 listens and rank 0 calls.
fn meet(rank: u32, addresses: &[&str]) -> TcpStream {
    if rank == 1 {
        return TcpListener::bind((addresses[1], PORT)).unwrap().accept().unwrap().0;
    }
    let start = Instant::now();
    loop {
        match TcpStream::connect((addresses[1], PORT)) {
            Ok(stream) => return stream,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
    }
}

/// Gives the other its bytes and takes the other's.
fn swap(stream: &mut TcpStream, ours: &[u8]) -> Vec<u8> {
    stream.write_all(&(ours.len() as u32).to_le_bytes()).unwrap();
    stream.write_all(ours).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut theirs = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut theirs).unwrap();
    theirs
}

/// Opens a rank's end on a device and connects it to the other's.
fn join(stream: &mut TcpStream, rank: u32, device: &str, bytes: usize) -> [End; 1] {
    let options = VerbsOptions { devices: vec![device.into()], ..options() };
    let mut end = End::open(rank, 2, &options, bytes);
    let peer = 1 - rank;
    let ours = end.verbs.address(peer).unwrap();
    let theirs = swap(stream, &ours);
    let mut told = vec![None, None];
    told[peer as usize] = Some(theirs);
    end.verbs.connect(&told).unwrap();
    swap(stream, b"connected");
    [end]
}

/// What the other process of the next test does: nothing but to be there.
#[test]
fn a_process_to_be_killed() {
    let Ok(port) = var("TOKENRAIL_TEST_VICTIM") else { return };
    let mut stream = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
    let device = device_names().unwrap().pop().unwrap();
    let mut ends = join(&mut stream, 1, &device, 1 << 17);
    // Until it is killed, or whoever was to do so is gone.
    stream.set_nonblocking(true).unwrap();
    while matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock) {
        ends[0].poll();
    }
}

#[test]
fn a_killed_process_is_noticed() {
    let Some((names, _cable)) = devices() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut victim = Command::new(current_exe().unwrap())
        .args(["--exact", "machines::a_process_to_be_killed"])
        .env("TOKENRAIL_TEST_VICTIM", listener.local_addr().unwrap().port().to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stream = listener.accept().unwrap().0;
    let mut ends = join(&mut stream, 0, &names[0], 1 << 17);
    let to = lane(1, 0);
    let payload = Payload::Bytes { region: Region(0), offset: 0, bytes: 1 << 16 };
    let write = Write { payload, region: Region(0), offset: 0, immediate: None };
    let mut killed: Option<Instant> = None;
    let start = Instant::now();
    // Always under way.
    while ends[0].failures().is_empty() {
        assert!(start.elapsed() < PATIENCE);
        while ends[0].verbs.room(to) > 0 {
            ends[0].verbs.write(to, &write).unwrap();
        }
        ends[0].verbs.flush().unwrap();
        ends[0].poll();
        if killed.is_none() && ends[0].written(to) > 20 {
            victim.kill().unwrap();
            killed = Some(Instant::now());
        }
    }
    assert!(killed.expect("no failure before").elapsed() < PATIENCE / 3);
    assert_eq!(ends[0].failures(), [(to, Cause::Unreachable)]);
    victim.wait().unwrap();
}

#[test]
fn two_machines() {
    let Some(devices) = device_names() else { return };
    let (Ok(rank), Ok(addresses)) = (var("TOKENRAIL_RANK"), var("TOKENRAIL_ADDRESSES")) else {
        return super::skip::skipped("no second machine: TOKENRAIL_RANK and TOKENRAIL_ADDRESSES name none");
    };
    let rank: u32 = rank.parse().unwrap();
    let peer = 1 - rank;
    let mut stream = meet(rank, &addresses.split_whitespace().collect::<Vec<_>>());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();

    let total = 1 << 18;
    let mut ends = join(&mut stream, rank, &devices[0], total);
    // Each has written half of the other's.
    let half = |rank: u32| rank as usize * total / 2..(rank as usize + 1) * total / 2;
    let value = |rank: u32, at: usize| (at % 101) as u8 + 1 + rank as u8;
    ends[0].bytes.fill(half(rank), |at| value(rank, at));
    for (i, start) in half(rank).step_by(4096).enumerate() {
        ends[0].write(lane(peer, i as u32 % 2), start..start + 4096, None);
    }
    (0..2).for_each(|index| ends[0].tell(lane(peer, index), 40 + index));
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "the other half", |ends| (0..2).all(|i| ends[0].arrived(lane(peer, i)) == [40 + i]));
    let theirs: Vec<_> = half(peer).map(|at| value(peer, at)).collect();
    assert!(ends[0].bytes.read(half(peer)) == theirs);
    until(&mut ends, "all to be reported", |ends| {
        (0..2).map(|i| ends[0].written(lane(peer, i))).sum::<u32>() == (total / 2 / 4096 + 2) as u32
    });
    swap(&mut stream, b"written");

    // Rank 1 goes, and rank 0 notices.
    if rank == 1 {
        drop(ends);
        swap(&mut stream, b"gone");
        return;
    }
    swap(&mut stream, b"is it?");
    ends[0].write(lane(1, 0), 0..100, None);
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "the failure", |ends| !ends[0].failures().is_empty());
    assert_eq!(ends[0].failures(), [(lane(1, 0), Cause::Unreachable)]);
}
