//! What ends tell each other, and when.

use super::ends::{Bytes, End, connect, devices, lane, options, pair, until};
use tokenrail::Error;
use tokenrail::fabric::verbs::{DmaBuf, DmaBufExport, Registration, Verbs, VerbsOptions};
use tokenrail::fabric::{Fabric, MAX_ADDRESS_BYTES, Memory, Region};

fn fabric_error<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Fabric { call, reason }) => format!("{call}: {reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bad_addresses_are_refused() {
    let Some((names, _cable)) = devices() else { return };
    let options = VerbsOptions { devices: vec![names[0].clone()], ..options() };
    let mut end = End::open(0, 2, &options, 4096);
    let mut peer = End::open(1, 2, &options, 4096);
    end.verbs.address(1).unwrap();
    let good = peer.verbs.address(0).unwrap();
    assert!(good.len() <= MAX_ADDRESS_BYTES);

    let mut bad: Vec<Vec<u8>> = (0..good.len()).map(|length| good[..length].to_vec()).collect();
    bad.push([&good[..], &[0]].concat());
    bad.push(vec![0xff; MAX_ADDRESS_BYTES]);
    bad.push(vec![0xff; 4 * MAX_ADDRESS_BYTES]);
    // The header and the link layer of the NIC: no other value of these will do.
    for at in 0..21 {
        for change in [1, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            bad.push(bytes);
        }
    }
    // A number of a queue pair, the first after the only NIC, of more than 24 bits.
    let mut bytes = good.clone();
    bytes[43] = 1;
    bad.push(bytes);
    for bytes in bad {
        fabric_error(end.verbs.connect(&[None, Some(bytes)]));
    }
    fabric_error(end.verbs.connect(&[None]));
    end.verbs.connect(&[None, Some(good)]).unwrap();
}

#[test]
fn ends_have_to_fit() {
    let Some((names, _cable)) = devices() else { return };
    let options = VerbsOptions { devices: vec![names[0].clone()], ..options() };
    let mut end = End::open(0, 3, &options, 4096);
    let more = VerbsOptions { lanes: 3, ..options.clone() };
    let mut peer = End::open(1, 3, &more, 4096);
    let told = peer.verbs.address(0).unwrap();
    // The other way round first: no address was given.
    assert!(fabric_error(end.verbs.connect(&[None, Some(told.clone()), None])).contains("lanes"));
    fabric_error(end.verbs.address(3));
    end.verbs.address(1).unwrap();
    let elsewhere = peer.verbs.address(2).unwrap();
    assert!(fabric_error(end.verbs.connect(&[None, Some(elsewhere), None])).contains("rank 2"));
}

#[test]
fn everything_has_its_time() {
    let Some((names, _cable)) = devices() else { return };
    let mut ends = pair(&names, &options(), 4096);
    let late = Bytes::new(4096);
    // SAFETY: nothing is registered.
    let refused = unsafe { ends[0].verbs.register(late.memory()) };
    assert!(fabric_error(refused).contains("already"));
    fabric_error(ends[0].verbs.address(1));
    fabric_error(ends[0].verbs.connect(&[None, None]));

    let options = VerbsOptions { devices: vec![names[0].clone()], ..options() };
    let mut verbs = Verbs::open(0, 1, &options, None).unwrap();
    for (address, bytes) in [(4096, 0), (u64::MAX - 10, 100), (4096, 4096)] {
        // SAFETY: there is nothing to be freed: no memory of a process is there.
        fabric_error(unsafe { verbs.register(Memory { address, bytes, on_device: false }) });
    }
    // SAFETY: as above.
    let refused = unsafe { verbs.register(Memory { address: 4096, bytes: 4096, on_device: true }) };
    assert!(fabric_error(refused).contains("nvidia_peermem"));
}

#[test]
fn memory_of_a_gpu_is_known_by_address_where_there_is_no_dma_buf() {
    let Some((names, _cable)) = devices() else { return };
    let options = VerbsOptions { devices: vec![names[0].clone()], ..options() };
    let mut ends = [0, 1].map(|rank| End::open(rank, 2, &options, 4096));
    // The host's memory stands for a GPU's; what is handed over is no dma-buf.
    for (end, gives) in ends.iter_mut().zip([false, true]) {
        let export: DmaBufExport = Box::new(move |_| {
            let fd = std::fs::File::open("/dev/zero").unwrap().into();
            gives.then_some(DmaBuf { fd, offset: 0 })
        });
        end.verbs.close();
        end.verbs = Verbs::open(u32::from(gives), 2, &options, Some(export)).unwrap();
        let memory = Memory { on_device: true, ..end.bytes.memory() };
        // SAFETY: the bytes are dropped after `verbs`.
        let region = unsafe { end.verbs.register(memory) }.unwrap();
        assert_eq!(end.verbs.registration(region), Some(Registration::Plain));
        assert_eq!(region, Region(0));
    }
    connect(&mut ends, |_, _, address| address);
    ends[0].bytes.fill(0..20, |at| at as u8 + 1);
    // Few enough to be copied into the request, which a CPU cannot do with a GPU's.
    ends[0].write(lane(1, 0), 0..20, Some(1));
    ends[0].verbs.flush().unwrap();
    until(&mut ends, "the immediate", |ends| ends[1].arrived(lane(0, 0)) == [1]);
    assert!(ends[1].bytes.read(0..20).into_iter().eq(1..=20));
}

#[test]
fn settings_are_checked_against_the_device() {
    let Some((names, _cable)) = devices() else { return };
    let open = |options: VerbsOptions| match Verbs::open(0, 2, &options, None) {
        Err(Error::Config { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(open(VerbsOptions { devices: vec!["nonesuch".into()], ..options() }), "verbs.devices");
    assert_eq!(open(VerbsOptions { near: Some("nonesuch".into()), ..options() }), "verbs.near");
    let devices = vec![names[0].clone()];
    // Of those that are equally near, the first by name.
    if let Some(device) = std::fs::read_dir("/sys/bus/pci/devices").ok().and_then(|mut all| all.next()) {
        let near = device.unwrap().file_name().into_string().unwrap().to_uppercase();
        let verbs = Verbs::open(0, 2, &VerbsOptions { near: Some(near), ..options() }, None).unwrap();
        assert_eq!(verbs.nics().count(), 1);
    }
    assert_eq!(open(VerbsOptions { gid_index: Some(255), devices, ..options() }), "verbs.gid_index");
}
