//! What writes do.

use super::ends::{POISON, devices, ends, lane, options, pair, until};
use tokenrail::Error;
use tokenrail::fabric::verbs::{Registration, VerbsOptions, describe};
use tokenrail::fabric::{Cause, Fabric, Payload, Region, Write};

/// Not the poison, not zero, and different from its neighbours.
fn value(at: usize, salt: usize) -> u8 {
    let value = (at.wrapping_mul(31) ^ (at >> 8) ^ salt.wrapping_mul(97)) as u8 | 1;
    if value == POISON { 3 } else { value }
}

#[test]
fn devices_describe_themselves() {
    let Some((names, _cable)) = devices() else { return };
    let nics = describe().unwrap();
    for name in names {
        let nic = nics.iter().find(|nic| nic.name == name).expect("a device that is used");
        assert_eq!(nic.ports[0].state, "active", "{nic}");
        assert!(!nic.ports[0].gids.is_empty(), "{nic}");
    }
}

#[test]
fn bytes_arrive_and_nothing_beside_them() {
    let Some((names, _cable)) = devices() else { return };
    let total = 3 << 20;
    let mut ends = pair(&names, &options(), total);
    ends[0].bytes.fill(0..total, |at| value(at, 0));
    let mut at = 1;
    let mut ranges = Vec::new();
    for bytes in [1, 2, 7, 8, 63, 64, 65, 1000, 4095, 4096, 4097, 65536, 1 << 20] {
        ranges.push(at..at + bytes);
        // A gap of no special size.
        at += bytes + 37;
    }
    for (i, range) in ranges.iter().enumerate() {
        ends[0].write(lane(1, i as u32 % 2), range.clone(), Some(i as u32));
    }
    ends[0].verbs.flush().unwrap();
    let count = ranges.len();
    until(&mut ends, "all immediates", |ends| {
        (0..2).map(|index| ends[1].arrived(lane(0, index)).len()).sum::<usize>() == count
    });
    let expected: Vec<u8> = (0..total)
        .map(|at| if ranges.iter().any(|range| range.contains(&at)) { value(at, 0) } else { POISON })
        .collect();
    assert!(ends[1].bytes.read(0..total) == expected);
    until(&mut ends, "all writes to be reported", |ends| {
        (0..2).map(|index| ends[0].written(lane(1, index))).sum::<u32>() == count as u32
    });
    assert!(ends.iter().all(|end| end.failures().is_empty()));
    assert_eq!(ends[0].verbs.registration(Region(0)), Some(Registration::Plain));
    assert_eq!(ends[0].verbs.registration(Region(1)), None);
}

#[test]
fn words_appear_where_they_are_written() {
    let Some((names, _cable)) = devices() else { return };
    let mut ends = pair(&names, &options(), 4096);
    let words: Vec<u64> = (1..=64).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    for (i, &word) in words.iter().enumerate() {
        ends[0].write_word(lane(1, 1), 16 * i as u64, word);
    }
    ends[0].tell(lane(1, 1), 5);
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "the immediate", |ends| ends[1].arrived(lane(0, 1)) == [5]);
    let poison = u64::from_ne_bytes([POISON; 8]);
    for (i, &word) in words.iter().enumerate() {
        assert_eq!(ends[1].bytes.word(16 * i), word);
        assert_eq!(ends[1].bytes.word(16 * i + 8), poison);
    }
    let write = Write { payload: Payload::Word(1), region: Region(0), offset: 4, immediate: None };
    let refused = ends[0].verbs.write(lane(1, 0), &write).unwrap_err();
    assert!(matches!(refused, Error::Link { cause: Cause::Other(_), .. }), "{refused}");
}

#[test]
fn immediates_come_in_order_with_bytes_and_without() {
    let Some((names, _cable)) = devices() else { return };
    // So few receives that they have to be posted again and again.
    let mut ends = pair(&names, &VerbsOptions { receive_depth: 16, ..options() }, 4096);
    let immediates = [0, 1, u32::MAX, 0x0102_0304, 7].repeat(20);
    for (i, &immediate) in immediates.iter().enumerate() {
        until(&mut ends, "room", |ends| ends[0].verbs.room(lane(1, 0)) > 0);
        if i % 2 == 0 {
            ends[0].tell(lane(1, 0), immediate);
        } else {
            ends[0].write(lane(1, 0), i..i + 100, Some(immediate));
        }
        ends[0].verbs.flush().unwrap();
    }
    until(&mut ends, "all immediates", |ends| ends[1].arrived(lane(0, 0)).len() == immediates.len());
    assert_eq!(ends[1].arrived(lane(0, 0)), immediates);
}

#[test]
fn many_lanes_to_several_peers() {
    let Some((names, _cable)) = devices() else { return };
    let options = VerbsOptions { lanes: 8, send_depth: 32, receive_depth: 32, signal_every: 5, ..options() };
    let Ok(mut ends) = <[_; 3]>::try_from(ends(&names, 3, &options, 1 << 16)) else { unreachable!() };
    let lanes = 8;
    let block = 600;
    let rounds = 12;
    // Every sender has a part of each receiver, and every lane a part of that. What is sent is elsewhere.
    let part = |from: usize| from * 8192..from * 8192 + lanes as usize * block;
    let source = 32768;
    for (from, end) in ends.iter_mut().enumerate() {
        end.bytes.fill(source..1 << 16, |at| value(at - source, from));
        for round in 0..rounds {
            for index in 0..lanes {
                for to in [(from + 1) % 3, (from + 2) % 3] {
                    let at = index as usize * block;
                    let write = Write {
                        payload: Payload::Bytes {
                            region: Region(0),
                            offset: (source + at) as u64,
                            bytes: block as u32,
                        },
                        region: Region(0),
                        offset: (part(from).start + at) as u64,
                        immediate: (round == rounds - 1).then_some(100 * from as u32 + index),
                    };
                    end.verbs.write(lane(to as u32, index), &write).unwrap();
                }
            }
        }
        end.verbs.flush().unwrap();
    }
    until(&mut ends, "the last of every lane", |ends| {
        ends.iter().enumerate().all(|(rank, end)| {
            (0..3).filter(|&peer| peer != rank).all(|peer| {
                (0..lanes).all(|index| {
                    let of = lane(peer as u32, index);
                    end.arrived(of) == [100 * peer as u32 + index] && end.written(of) == rounds
                })
            })
        })
    });
    for (to, end) in ends.iter().enumerate() {
        for from in (0..3).filter(|&from| from != to) {
            let expected: Vec<_> = (0..part(from).len()).map(|at| value(at, from)).collect();
            assert!(end.bytes.read(part(from)) == expected, "from {from} to {to}");
        }
        let own = end.bytes.read(part(to));
        assert!(own.iter().all(|&byte| byte == POISON), "at {to}");
    }
}

#[test]
fn lanes_are_spread_over_nics() {
    let Some((names, _cable)) = devices() else { return };
    let options = VerbsOptions { devices: names.clone(), lanes: 4, ..options() };
    let mut ends = pair(&names, &options, 1 << 16);
    assert!(ends[0].verbs.nics().eq(names.iter().map(String::as_str)));
    ends[0].bytes.fill(0..1 << 16, |at| value(at, 9));
    for index in 0..4 {
        let at = 10_000 * index as usize;
        ends[0].write(lane(1, index), at..at + 9_000, Some(index));
    }
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "every lane", |ends| (0..4).all(|i| ends[1].arrived(lane(0, i)) == [i]));
    for index in 0..4 {
        let range = 10_000 * index..10_000 * index + 9_000;
        let expected: Vec<_> = range.clone().map(|at| value(at, 9)).collect();
        assert!(ends[1].bytes.read(range) == expected);
    }
}

#[test]
fn a_lane_takes_what_it_has_room_for() {
    let Some((names, _cable)) = devices() else { return };
    let options = VerbsOptions { send_depth: 8, signal_every: 3, ..options() };
    let mut ends = pair(&names, &options, 4096);
    let to = lane(1, 0);
    for left in (0..8).rev() {
        ends[0].write(to, 0..8, None);
        assert_eq!(ends[0].verbs.room(to), left);
    }
    let write = Write { payload: Payload::Word(1), region: Region(0), offset: 0, immediate: None };
    let full = ends[0].verbs.write(to, &write).unwrap_err();
    assert!(matches!(full, Error::Link { rank: 0, peer: 1, lane: 0, .. }), "{full}");
    assert_eq!(ends[0].verbs.room(lane(1, 1)), 8);
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "the lane to be empty", |ends| ends[0].verbs.room(to) == 8);
    assert_eq!(ends[0].written(to), 8);

    for i in 0..500 {
        if ends[0].verbs.room(to) == 0 {
            ends[0].verbs.flush().unwrap();
            until(&mut ends, "room", |ends| ends[0].verbs.room(to) > 0);
        }
        ends[0].write_word(to, 8 * (i % 512), i + 1);
    }
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "all writes to be reported", |ends| ends[0].written(to) == 508);
    until(&mut ends, "the last word", |ends| ends[1].bytes.word(8 * 499) == 500);
    assert_eq!(ends[0].verbs.room(to), 8);
}

#[test]
fn who_sees_a_flag_sees_the_bytes_before_it() {
    let Some((names, _cable)) = devices() else { return };
    const BLOCK: usize = 60_000;
    const FLAG: usize = 61_440;
    let mut ends = pair(&names, &options(), 1 << 16);
    for round in 1..=40_usize {
        ends[0].bytes.fill(0..BLOCK, |at| value(at, round));
        ends[0].write(lane(1, 0), 0..BLOCK, None);
        ends[0].write_word(lane(1, 0), FLAG as u64, round as u64);
        ends[0].verbs.flush().unwrap();
        until(&mut ends, "the flag", |ends| ends[1].bytes.word(FLAG) == round as u64);
        // The end first: it comes last.
        let seen = ends[1].bytes.read(0..BLOCK);
        assert!(seen.iter().rev().zip((0..BLOCK).rev()).all(|(&byte, at)| byte == value(at, round)));
        // The block may change once its writes are reported.
        until(&mut ends, "the report", |ends| ends[0].written(lane(1, 0)) == 2 * round as u32);
    }
}
