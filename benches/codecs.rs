//! Number formats: the kernels' own conversions as they run on the CPU, the reference's, and packets as an emulated warp
//! fills them. `cargo bench --bench codecs`.

use criterion::{Criterion, Throughput};
use half::bf16;
use std::hint::black_box;
use std::time::Duration;
use tokenrail::CombineFormat;
use tokenrail::device::gpu::convert::{
    bf16x2_to_f32, e4m3_to_f32, f32_to_bf16x2, f32_to_e4m3x2, f32_to_f16x2, ue8m0_to_f32,
};
use tokenrail::device::low_latency::format::{Bf16, E4m3, Log10, Values, Wire};
use tokenrail::oracle::{self, hidden_states};
use tokenrail_emulator::{Launch, Machine, Options, simt};

const HIDDEN: usize = 7168;
const ROWS: usize = 8;
/// Channels of a tile: three planes of 32 cells with 16 each.
const TILE: u64 = 3 * 32 * 16;
/// Warps that fill tiles, and how many each.
const WARPS: u32 = 8;
const TILES: u32 = 64;

fn rows() -> Vec<bf16> {
    hidden_states(1, ROWS, HIDDEN)
}

type Pack = fn(f32, f32) -> u32;
type Unpack = fn(u8) -> f32;

fn conversions(criterion: &mut Criterion) {
    let values: Vec<f32> = rows().iter().map(|value| value.to_f32()).collect();
    let codes: Vec<u8> = values.iter().map(|&value| oracle::f32_to_e4m3(value)).collect();
    let mut group = criterion.benchmark_group("conversion");
    group.throughput(Throughput::Elements(values.len() as u64));
    let pairs: [(&str, Pack); 3] = [
        ("f32 to bf16", f32_to_bf16x2),
        ("f32 to f16", f32_to_f16x2),
        ("f32 to e4m3", |low, high| f32_to_e4m3x2(low, high).into()),
    ];
    for (name, convert) in pairs {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                black_box(&values).chunks_exact(2).for_each(|two| _ = black_box(convert(two[0], two[1])));
            });
        });
    }
    let packed: Vec<u32> = values.chunks_exact(2).map(|two| f32_to_bf16x2(two[0], two[1])).collect();
    group.bench_function("bf16 to f32", |bencher| {
        bencher.iter(|| black_box(&packed).iter().for_each(|&two| _ = black_box(bf16x2_to_f32(two))));
    });
    let bytes: [(&str, Unpack); 2] = [("e4m3 to f32", e4m3_to_f32), ("UE8M0 to f32", ue8m0_to_f32)];
    for (name, convert) in bytes {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(&codes).iter().for_each(|&code| _ = black_box(convert(code))));
        });
    }
}

fn reference(criterion: &mut Criterion) {
    let rows = rows();
    let row: Vec<f32> = rows[..HIDDEN].iter().map(|value| value.to_f32()).collect();
    let mut group = criterion.benchmark_group("reference");
    group.throughput(Throughput::Elements(rows.len() as u64));
    group.bench_function("quantize, f32 scales", |bencher| {
        bencher.iter(|| oracle::quantize(black_box(&rows), HIDDEN).expect("whole rows"));
    });
    group.bench_function("quantize, UE8M0 scales", |bencher| {
        bencher.iter(|| oracle::quantize_ue8m0(black_box(&rows), HIDDEN).expect("whole rows"));
    });
    group.throughput(Throughput::Elements(row.len() as u64));
    for format in [CombineFormat::Bf16, CombineFormat::Fp8, CombineFormat::Log10] {
        group.bench_function(format!("there and back, {format:?}"), |bencher| {
            bencher.iter(|| oracle::through_the_wire(black_box(&row), format));
        });
    }
}

/// Tiles made of values, and values of tiles, with all that the emulator takes for a warp's exchanges.
fn packets<F: Wire>(criterion: &mut Criterion, name: &str) {
    let machine = Machine::new(Options::default());
    let stream = machine.device(0).expect("the first device").stream();
    let launch = Launch { name: "packets", grid: WARPS, block: 32, shared_bytes: 0 };
    let mut group = criterion.benchmark_group("packets by an emulated warp");
    group.throughput(Throughput::Elements(u64::from(WARPS * TILES) * TILE));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            let kernel = || {
                let lane = simt::thread_index() as f32;
                let mut values: Values = [[0.0; 16]; 3];
                for (at, value) in values.iter_mut().flatten().enumerate() {
                    *value = (lane - 15.5) * (at as f32 + 0.5);
                }
                for _ in 0..TILES {
                    values = F::decode(black_box(&F::encode(black_box(&values))));
                }
                black_box(values);
            };
            stream.launch(launch, Box::new(kernel)).expect("a launch within the limits");
            stream.synchronize().expect("a kernel without faults");
        });
    });
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    conversions(&mut criterion);
    reference(&mut criterion);
    packets::<Bf16>(&mut criterion, "bf16");
    packets::<E4m3>(&mut criterion, "FP8");
    packets::<Log10>(&mut criterion, "10-bit logarithms");
    criterion.final_summary();
}
