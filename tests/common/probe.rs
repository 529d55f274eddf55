//! The machine beneath the kernels, wrapper by wrapper.

use half::f16;
use tokenrail::device::gpu::mem::Address;
use tokenrail::device::workload::probe::{Probe, ProbeArgs, SCRATCH_WORDS, SHARED_BYTES, THREADS, WORDS};
use tokenrail::gpu::Grid;
use tokenrail::{Backend, Error, Group, Half, oracle};

/// Runs the probe and compares every word with plain arithmetic.
pub fn check(backend: &Backend) {
    let numbers = numbers();
    let got = run(backend, &numbers).expect("the probe runs");
    for (thread, (got, number)) in (0..).zip(got.chunks(WORDS as usize).zip(&numbers)) {
        assert_eq!(got, expected(thread, *number), "thread {thread}, number {number}");
    }
}

/// Numbers at and around the borders of the formats, then any.
fn numbers() -> Vec<f32> {
    let mut numbers =
        vec![0.0, 448.0, 463.9, 464.0, 1e9, 0.0625, 2f32.powi(-6), 2f32.powi(-9), 2f32.powi(-10)];
    numbers.extend([
        1.5 * 2f32.powi(-9),
        0.9 * 2f32.powi(-6),
        1.0625,
        1.1875,
        17.0,
        19.0,
        f32::INFINITY,
        1e-30,
        f32::NAN,
    ]);
    // f16: the largest, what just rounds to infinity, a tie, the smallest normal, subnormals and a tie between them.
    numbers.extend([65504.0, 65519.0, 65520.0, 2049.0, 2f32.powi(-14), 2f32.powi(-24), 1.5 * 2f32.powi(-23)]);
    numbers.push(2f32.powi(-25));
    let more = oracle::hidden_states(3, 1, THREADS as usize - numbers.len());
    numbers.extend(more.iter().map(|number| number.to_f32() * 1.001));
    numbers
}

fn run(backend: &Backend, numbers: &[f32]) -> Result<Vec<u32>, Error> {
    let member = Group::in_process(1, backend)?.remove(0);
    let gpu = member.gpu();
    let stream = gpu.stream()?;
    let out = gpu.upload(&vec![0xa5a5_a5a5u32; (THREADS * WORDS) as usize])?;
    let scratch = gpu.alloc_zeroed(4 * SCRATCH_WORDS as usize)?;
    let numbers = gpu.upload(numbers)?;
    let address = |buffer: &tokenrail::Buffer| Address(buffer.view().address());
    let args = ProbeArgs { out: address(&out), scratch: address(&scratch), numbers: address(&numbers) };
    let grid = Grid { blocks: 1, threads: THREADS, shared_bytes: SHARED_BYTES };
    // SAFETY: the arrays have the sizes that the contract asks for, and outlive the download.
    unsafe { gpu.launch::<Probe>(&stream, grid, &args)? };
    gpu.download(&stream, out.view(), (THREADS * WORDS) as usize)
}

/// Bits, with NaN as GPUs write it.
fn canonical(value: f32) -> u32 {
    if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
}

fn expected(thread: u32, number: f32) -> Vec<u32> {
    let (warp, lane) = (thread / 32, thread % 32);
    let first = 32 * warp;
    let lanes =
        |holds: &dyn Fn(u32) -> bool| (0..32).filter(|&lane| holds(lane)).map(|lane| 1u32 << lane).sum();
    let (a, b, c, d) = (thread, thread + 1, thread + 2, thread + 3);
    let [low, high] = [number, -number].map(oracle::f32_to_bf16);
    let codes = [number, high.to_f32()].map(oracle::f32_to_e4m3);
    let sum = oracle::e4m3_to_f32(codes[0]) + oracle::e4m3_to_f32(codes[1]);
    let halves = [number, -number].map(|number| Half::F16.round(number));
    let ue8m0 = if thread == THREADS - 1 { 255 } else { 4 * thread as u8 };
    vec![
        3 * (first + (lane + 1) % 32),
        2 * (first + lane / 2),
        lanes(&|lane| lane.is_multiple_of(3)),
        lanes(&|lane| (first + lane) / 5 == thread / 5),
        (first..=thread).sum(),
        (first..first + 32).sum(),
        (-0f32).to_bits(),
        match lane {
            8 => 1 + 0xfd00,
            9..16 => 0xfd00,
            _ => 0,
        },
        7 * (63 - thread),
        1,
        (0..64).sum::<u32>() + 64_000,
        1,
        b + a + c * d,
        u32::from(high.to_bits()) << 16 | u32::from(low.to_bits()),
        u32::from(low.to_bits()) << 16 | u32::from(u16::from_le_bytes(codes)),
        canonical(sum),
        u32::from(halves[1]) << 16 | u32::from(halves[0]),
        canonical(f16::from_bits(halves[0]).to_f32()),
        canonical(f16::from_bits(halves[1]).to_f32()),
        canonical(oracle::ue8m0_to_f32(ue8m0)),
    ]
}
