//! Streams, events, graphs and memory, the same on every backend.

use half::bf16;
use std::time::Duration;
use tokenrail::device::gpu::mem::Address;
use tokenrail::device::workload::probe::{Probe, ProbeArgs, SCRATCH_WORDS, SHARED_BYTES, THREADS, WORDS};
use tokenrail::gpu::{Grid, View};
use tokenrail::{Backend, Buffer, Config, Error, Exchange, Gpu, Group, Input, Member, Stream};

/// Words of the arrays that copies move: large enough that on a GPU a copy that does not wait comes too early.
const LARGE: usize = 1 << 20;

/// All of the checks.
pub fn check(backend: &Backend) {
    streams_are_ordered_by_events(backend);
    the_host_waits_for_events(backend);
    gpus_are_ordered_by_events(backend);
    a_graph_does_its_work_again_at_every_launch(backend);
    a_capture_forks_and_joins(backend);
    an_exchange_is_captured(backend);
    what_a_capture_refuses(backend);
    a_stream_goes_on_after_a_capture_that_failed(backend);
    what_streams_refuse(backend);
    allocated_bytes_are_what_was_asked_for(backend);
}

fn gpu(backend: &Backend) -> Gpu {
    let member = Group::in_process(1, backend).expect("the backend is there").remove(0);
    member.gpu().clone()
}

fn text<T>(result: Result<T, Error>) -> String {
    result.err().expect("an error").to_string()
}

fn words(gpu: &Gpu, stream: &Stream, from: &Buffer) -> Vec<u32> {
    gpu.download(stream, from.view(), from.view().bytes() / 4).expect("a download")
}

/// Copies the whole of one buffer to another of the same size.
fn copy(gpu: &Gpu, stream: &Stream, from: &Buffer, to: &Buffer) -> Result<(), Error> {
    gpu.copy(stream, from.view(), to.view(), from.view().bytes())
}

pub fn streams_are_ordered_by_events(backend: &Backend) {
    let gpu = gpu(backend);
    // The one that waits is the older, which the emulator would serve first.
    let (after, before) = (gpu.stream().unwrap(), gpu.stream().unwrap());
    let [x, y] = [(); 2].map(|()| gpu.upload(&vec![0u32; LARGE]).unwrap());
    for round in 1..20 {
        // Of a stream's clones each is the stream.
        let clone = before.clone();
        for byte in [0xee, 0xff, round] {
            gpu.fill(&clone, x.view(), byte).unwrap();
        }
        drop(clone);
        after.wait(&before.record().unwrap().clone()).unwrap();
        copy(&gpu, &after, &x, &y).unwrap();
        before.wait(&after.record().unwrap()).unwrap();
    }
    assert!(words(&gpu, &after, &y).iter().all(|&word| word == 0x13131313));
}

pub fn the_host_waits_for_events(backend: &Backend) {
    let gpu = gpu(backend);
    let stream = gpu.stream().unwrap();
    let x = gpu.alloc(4 * LARGE).unwrap();
    let begin = stream.record().unwrap();
    gpu.fill(&stream, x.view(), 7).unwrap();
    let end = stream.record().unwrap();
    end.synchronize().unwrap();
    assert!(begin.is_reached().unwrap() && end.is_reached().unwrap());
    assert!(begin.elapsed_ms(&end).unwrap() >= 0.0);
    // A host that asks again and again gets its answer.
    gpu.fill(&stream, x.view(), 8).unwrap();
    let end = stream.record().unwrap();
    while !end.is_reached().unwrap() {}
    let other = gpu.stream().unwrap();
    assert_eq!(gpu.download::<u8>(&other, x.view(), 1).unwrap(), [8]);
}

pub fn gpus_are_ordered_by_events(backend: &Backend) {
    let gpus: Vec<_> =
        Group::in_process(2, backend).unwrap().iter().map(|member| member.gpu().clone()).collect();
    let streams: Vec<_> = gpus.iter().map(|gpu| gpu.stream().unwrap()).collect();
    let [x, y] = [1, 0].map(|gpu: usize| gpus[gpu].alloc_zeroed(4 * LARGE).unwrap());
    // The first, which the emulator would serve first, waits for the second, and reads its memory.
    for byte in [0xee, 0xff, 0x21] {
        gpus[1].fill(&streams[1], x.view(), byte).unwrap();
    }
    streams[0].wait(&streams[1].record().unwrap()).unwrap();
    copy(&gpus[0], &streams[0], &x, &y).unwrap();
    assert!(words(&gpus[0], &streams[0], &y).iter().all(|&word| word == 0x21212121));
}

/// Queues the probe, which wants its scratch zeroed.
fn probe(gpu: &Gpu, stream: &Stream, [out, scratch, numbers]: [&Buffer; 3]) -> Result<(), Error> {
    gpu.fill(stream, scratch.view(), 0)?;
    let address = |buffer: &Buffer| Address(buffer.view().address());
    let args = ProbeArgs { out: address(out), scratch: address(scratch), numbers: address(numbers) };
    let grid = Grid { blocks: 1, threads: THREADS, shared_bytes: SHARED_BYTES };
    // SAFETY: all callers pass arrays of the sizes that the contract asks for, and keep them until the last download.
    unsafe { gpu.launch::<Probe>(stream, grid, &args) }
}

pub fn a_graph_does_its_work_again_at_every_launch(backend: &Backend) {
    let gpu = gpu(backend);
    let (stream, other) = (gpu.stream().unwrap(), gpu.stream().unwrap());
    let numbers = |round: usize| -> Vec<f32> {
        (0..THREADS as usize).map(|thread| (round * 100 + thread) as f32 / 8.0).collect()
    };
    let buffer = |count: u32| gpu.alloc(4 * count as usize).unwrap();
    let (input, inside, scratch) = (buffer(THREADS), buffer(THREADS), buffer(SCRATCH_WORDS));
    let (out, result) = (buffer(THREADS * WORDS), buffer(THREADS * WORDS));
    // Without a graph, for comparison.
    let expected: Vec<_> = (0..4)
        .map(|round| {
            gpu.write(input.view(), &numbers(round)).unwrap();
            probe(&gpu, &stream, [&out, &scratch, &input]).unwrap();
            words(&gpu, &stream, &out)
        })
        .collect();
    assert_ne!(expected[0], expected[1]);

    gpu.fill(&stream, result.view(), 0xa5).unwrap();
    let ((), graph) = stream
        .capture(|| {
            gpu.fill(&stream, out.view(), 0x5a)?;
            copy(&gpu, &stream, &input, &inside)?;
            probe(&gpu, &stream, [&out, &scratch, &inside])?;
            copy(&gpu, &stream, &out, &result)
        })
        .unwrap();
    assert_eq!(words(&gpu, &stream, &result)[0], 0xa5a5a5a5, "nothing is done in a capture");
    for (round, expected) in expected.iter().enumerate() {
        gpu.write(input.view(), &numbers(round)).unwrap();
        graph.launch(&stream).unwrap();
        assert_eq!(&words(&gpu, &stream, &result), expected, "launch {round}");
    }
    // Several launches, also on two streams, follow each other.
    gpu.write(input.view(), &numbers(2)).unwrap();
    for stream in [&stream, &other, &stream, &other] {
        graph.launch(stream).unwrap();
    }
    drop(graph);
    assert_eq!(words(&gpu, &other, &result), expected[2]);
    stream.synchronize().unwrap();
}

pub fn a_capture_forks_and_joins(backend: &Backend) {
    let gpu = gpu(backend);
    let (side, stream) = (gpu.stream().unwrap(), gpu.stream().unwrap());
    let [a, b, c, d] = [(); 4].map(|()| gpu.alloc_zeroed(4 * LARGE).unwrap());
    let half = |buffer: &Buffer, half: usize| {
        // SAFETY: within the buffer, which goes at the end of this function.
        unsafe { View::from_raw(buffer.view().address() + (half * 2 * LARGE) as u64, 2 * LARGE) }
    };
    let (events, graph) = stream
        .capture(|| {
            copy(&gpu, &stream, &a, &b)?;
            let fork = stream.record()?;
            side.wait(&fork)?;
            // Both go on from b, one with each half of it.
            gpu.copy(&side, half(&b, 0), half(&c, 0), 2 * LARGE)?;
            gpu.copy(&stream, half(&b, 1), half(&c, 1), 2 * LARGE)?;
            // A stream that only the capture holds.
            let third = gpu.stream()?;
            third.wait(&side.record()?)?;
            gpu.fill(&third, half(&b, 0), 0x77)?;
            side.wait(&third.record()?)?;
            let join = side.record()?;
            drop(third);
            stream.wait(&join)?;
            copy(&gpu, &stream, &c, &d)?;
            Ok([fork, join])
        })
        .unwrap();
    for round in [1, 2, 3] {
        gpu.write(a.view(), &vec![round; LARGE]).unwrap();
        graph.launch(&side).unwrap();
        assert!(words(&gpu, &side, &d).iter().all(|&word| word == round), "launch {round}");
        let b = words(&gpu, &side, &b);
        assert_eq!((b[0], b[LARGE - 1]), (0x77777777, round), "launch {round}");
    }
    // The streams are free again, and the events of the graph are nobody's.
    gpu.fill(&side, a.view(), 9).unwrap();
    stream.wait(&side.record().unwrap()).unwrap();
    copy(&gpu, &stream, &a, &d).unwrap();
    assert_eq!(words(&gpu, &stream, &d)[LARGE - 1], 0x09090909);
    let never = "it was recorded in a capture, and never comes by itself";
    for event in &events {
        let waits = [text(event.synchronize()), text(event.is_reached())];
        assert_eq!(
            waits,
            ["waiting for", "asking for"].map(|call| format!("{call} an event is not possible: {never}"))
        );
        assert_eq!(
            text(event.elapsed_ms(event)),
            format!("measuring from an event is not possible: {never}")
        );
        assert_eq!(
            text(stream.wait(event)),
            "waiting for an event is not possible: it was recorded in a capture that has ended, and never comes by itself"
        );
    }
}

pub fn an_exchange_is_captured(backend: &Backend) {
    let members = Group::in_process(2, backend).unwrap();
    std::thread::scope(|scope| members.into_iter().for_each(|member| _ = scope.spawn(|| exchange(member))));
}

/// One rank's dispatch and combine in a graph, launched for several inputs.
fn exchange(member: Member) {
    const HIDDEN: usize = 64;
    let mut exchange = Exchange::new(member, &Config::new(8, 2, HIDDEN as u32, 4)).unwrap();
    let gpu = exchange.gpu().clone();
    let stream = gpu.stream().unwrap();
    let rank = exchange.rank();
    let x = gpu.alloc(2 * HIDDEN * 2).unwrap();
    let (topk_idx, topk_weights) = (gpu.alloc_zeroed(4 * 4).unwrap(), gpu.upload(&[1f32; 4]).unwrap());
    let combined = gpu.alloc(2 * HIDDEN * 2).unwrap();
    let ((), graph) = stream
        .capture(|| {
            let input = Input::new(&x, &topk_idx, &topk_weights, 2);
            let received = exchange.dispatch(&stream, &input)?;
            gpu.copy(&stream, received.x(), received.outputs(), received.outputs().bytes())?;
            exchange.combine(&stream, &received, &combined)
        })
        .unwrap();
    // Ranks may share a GPU: none launches before all have their graphs.
    let meet = |exchange: &Exchange| exchange.all_gather((), "the graphs", Duration::from_secs(30)).unwrap();
    meet(&exchange);
    // The ids of both tokens, and how many ranks each goes to.
    let rounds =
        [([0, 7, 1, 2], [2, 1]), ([3, 3, -1, 4], [1, 1]), ([5, 0, 0, 6], [2, 2]), ([-1, -1, 7, 7], [0, 1])];
    for (round, (ids, ranks)) in (1u16..).zip(rounds) {
        let value = f32::from(round) + 8.0 * rank as f32;
        gpu.write(x.view(), &vec![bf16::from_f32(value); 2 * HIDDEN]).unwrap();
        gpu.write(topk_idx.view(), &ids).unwrap();
        graph.launch(&stream).unwrap();
        exchange.finish(&stream).unwrap();
        let got: Vec<bf16> = gpu.download(&stream, combined.view(), 2 * HIDDEN).unwrap();
        for (token, ranks) in got.chunks(HIDDEN).zip(ranks) {
            assert!(
                token.iter().all(|got| got.to_f32() == ranks as f32 * value),
                "launch {round}: {token:?}"
            );
        }
    }
    meet(&exchange);
}

pub fn what_a_capture_refuses(backend: &Backend) {
    let gpu = gpu(backend);
    let (stream, side) = (gpu.stream().unwrap(), gpu.stream().unwrap());
    let x = gpu.alloc_zeroed(64).unwrap();
    let outside = stream.record().unwrap();
    let ((), earlier) = stream.capture(|| gpu.fill(&stream, x.view(), 1)).unwrap();
    let captured = "is not possible: the stream is being captured into a graph";
    let ((), graph) = stream
        .capture(|| {
            gpu.fill(&stream, x.view(), 1)?;
            side.wait(&stream.record()?)?;
            for stream in [&stream, &side] {
                assert_eq!(text(stream.synchronize()), format!("synchronize {captured}"));
                assert_eq!(text(earlier.launch(stream)), format!("the launch of a graph {captured}"));
                assert_eq!(
                    text(gpu.download::<u8>(stream, x.view(), 1)),
                    format!("a download {captured}")
                );
                assert_eq!(text(stream.capture(|| Ok(())).map(drop)), format!("a capture {captured}"));
            }
            assert_eq!(
                text(gpu.write(x.view(), &[1u8])),
                "a write is not possible: it would happen now, and not when the graph is launched"
            );
            assert_eq!(
                text(stream.wait(&outside)),
                "waiting for an event is not possible: the stream is being captured, and the event was recorded outside \
                 this capture"
            );
            // None of that has spoilt it; and memory can be had, also with contents.
            let fresh = gpu.upload(&[5u8; 64])?;
            assert_eq!(gpu.download::<u8>(&gpu.stream()?, fresh.view(), 1)?, [5]);
            gpu.fill(&side, x.view(), 2)?;
            stream.wait(&side.record()?)
        })
        .unwrap();
    gpu.write(x.view(), &[0u8; 64]).unwrap();
    graph.launch(&stream).unwrap();
    assert_eq!(words(&gpu, &stream, &x), [0x02020202; 16]);

    let unjoined = stream.capture(|| {
        side.wait(&stream.record()?)?;
        let join = side.record()?;
        gpu.fill(&side, x.view(), 3)?;
        // Too early: the fill is not before it.
        stream.wait(&join)
    });
    assert_eq!(
        text(unjoined.map(drop)),
        "a capture is not possible: a stream that has joined it was not joined back: record an event there, and wait for \
         it on the stream that is captured"
    );
    // Both streams do what they are told again.
    for stream in [&stream, &side] {
        gpu.fill(stream, x.view(), 4).unwrap();
        assert_eq!(words(&gpu, stream, &x), [0x04040404; 16]);
    }
}

pub fn a_stream_goes_on_after_a_capture_that_failed(backend: &Backend) {
    let gpu = gpu(backend);
    let stream = gpu.stream().unwrap();
    let side = gpu.stream().unwrap();
    let x = gpu.alloc_zeroed(64).unwrap();
    let failed = stream.capture(|| -> Result<(), Error> {
        gpu.fill(&stream, x.view(), 1)?;
        side.wait(&stream.record()?)?;
        gpu.fill(&side, x.view(), 2)?;
        // More than there is.
        gpu.copy(&stream, x.view(), x.view(), 65)
    });
    assert_eq!(text(failed.map(drop)), "source of a copy: 64 bytes, but 65 bytes are needed");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ =
            stream.capture(|| -> Result<(), Error> { std::panic::resume_unwind(Box::new("in a capture")) });
    }));
    assert!(panicked.is_err());
    gpu.write(x.view(), &[6u8; 64]).unwrap();
    stream.synchronize().unwrap();
    side.synchronize().unwrap();
    assert_eq!(words(&gpu, &stream, &x), [0x06060606; 16], "nothing of it was done");
    let ((), graph) = stream.capture(|| gpu.fill(&stream, x.view(), 7)).unwrap();
    graph.launch(&stream).unwrap();
    assert_eq!(words(&gpu, &stream, &x), [0x07070707; 16]);
}

pub fn what_streams_refuse(backend: &Backend) {
    let members = Group::in_process(2, backend).unwrap();
    let [ours, theirs] = [0, 1].map(|rank: usize| members[rank].gpu().clone());
    let (stream, foreign) = (ours.stream().unwrap(), theirs.stream().unwrap());
    let x = ours.alloc_zeroed(64).unwrap();
    let ((), graph) = stream.capture(|| ours.fill(&stream, x.view(), 1)).unwrap();
    for refused in [
        text(ours.fill(&foreign, x.view(), 1)),
        text(ours.copy(&foreign, x.view(), x.view(), 64)),
        text(ours.download::<u8>(&foreign, x.view(), 64)),
        text(graph.launch(&foreign)),
    ] {
        assert!(refused.starts_with("stream: one of "), "{refused}");
        assert!(refused.contains(", but it has to be one that this rank's "), "{refused}");
    }
    // Events of another machine are another backend's.
    if let Backend::Emulator(_) = backend {
        let elsewhere = gpu(backend).stream().unwrap().record().unwrap();
        assert!(text(stream.wait(&elsewhere)).starts_with("event: one of another backend, but "));
    }
    let joined = stream.capture(|| {
        let event = stream.record()?;
        Ok(text(foreign.wait(&event)))
    });
    assert_eq!(
        joined.unwrap().0,
        "waiting for an event is not possible: it was recorded in a capture of another GPU, and a graph is of one GPU"
    );
    foreign.synchronize().unwrap();
}

pub fn allocated_bytes_are_what_was_asked_for(backend: &Backend) {
    let gpu = gpu(backend);
    let before = gpu.allocated_bytes();
    let first = gpu.alloc(1000).unwrap();
    let second = gpu.clone().upload(&[1u64; 3]).unwrap();
    let third = gpu.alloc_zeroed(0).unwrap();
    assert_eq!(gpu.allocated_bytes(), before + 1024);
    drop(first);
    assert_eq!(gpu.allocated_bytes(), before + 24);
    assert!(gpu.alloc(usize::MAX / 4).is_err());
    assert_eq!(gpu.allocated_bytes(), before + 24);
    drop((second, third));
    assert_eq!(gpu.allocated_bytes(), before);
}
