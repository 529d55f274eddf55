//! The kernels that make and read formats, launched by themselves: quantisation, and experts on rows by expert.

use half::bf16;
use tokenrail::device::gpu::mem::Address;
use tokenrail::device::quantize::{Quantize, QuantizeArgs};
use tokenrail::device::workload::elements::Elements;
use tokenrail::device::workload::experts_by_expert::{ExpertsByExpert, ExpertsByExpertArgs};
use tokenrail::gpu::Grid;
use tokenrail::oracle::{self, ExpertMajor, Placement, Routing, TokenBatch};
use tokenrail::{Backend, Buffer, Element, Gpu, Group, Half, Stream, workload};

const GRID: Grid = Grid { blocks: 2, threads: 64, shared_bytes: 0 };

/// Compares both kernels with the CPU reference in every format.
pub fn check(backend: &Backend) {
    let member = Group::in_process(1, backend).unwrap().remove(0);
    let gpu = member.gpu();
    let stream = gpu.stream().unwrap();
    // A whole group and a short one; four groups, a whole word of scales; five and a short one.
    for hidden in [16, 144, 512, 656] {
        quantized(gpu, &stream, hidden);
    }
    for element in [Element::Bf16, Element::F16, Element::Fp8E4m3, Element::Fp8E4m3Ue8m0] {
        for half in [Half::Bf16, Half::F16] {
            for column_major in [false, true] {
                by_expert(gpu, &stream, element, half, column_major);
            }
        }
    }
}

fn address(buffer: &Buffer) -> Address {
    Address(buffer.view().address())
}

fn quantized(gpu: &Gpu, stream: &Stream, hidden: usize) {
    let rows = 9;
    let mut x = oracle::hidden_states(hidden as u64, rows, hidden);
    // A row each of zeros, of numbers below the floor, of a largest that is just what a power of two reaches, of one
    // just above, of the largest there is; then with NaN, and with infinity.
    for (row, value) in [0x0000, 0x0040, 0x43e0, 0x43e1, 0x7f7f].into_iter().enumerate() {
        x[row * hidden..(row + 1) * hidden].fill(bf16::from_bits(value));
    }
    x[5 * hidden + 3] = bf16::NAN;
    x[6 * hidden + 5] = bf16::NEG_INFINITY;
    let x_device = gpu.upload(&x).unwrap();
    for (ue8m0, want) in [(0, oracle::quantize(&x, hidden)), (1, oracle::quantize_ue8m0(&x, hidden))] {
        let want = want.unwrap();
        let codes = gpu.upload(&vec![0xa5u8; want.rows.len()]).unwrap();
        let scales = gpu.upload(&vec![0xa5a5_a5a5u32; want.scales.len()]).unwrap();
        let args = QuantizeArgs {
            x: address(&x_device),
            quantized: address(&codes),
            scales: address(&scales),
            rows: rows as u32,
            hidden: hidden as u32,
            ue8m0,
        };
        // SAFETY: the arrays have the sizes that the contract asks for, and outlive the downloads.
        unsafe { gpu.launch::<Quantize>(stream, GRID, &args).unwrap() };
        let got: Vec<u32> = gpu.download(stream, scales.view(), want.scales.len()).unwrap();
        assert_eq!(got, want.scales, "scales of {hidden}, ue8m0 {ue8m0}");
        let got: Vec<u8> = gpu.download(stream, codes.view(), want.rows.len()).unwrap();
        assert_eq!(got, want.rows, "codes of {hidden}, ue8m0 {ue8m0}");
    }
}

/// Rank 1 of two: experts 3 to 5, of which the second has no rows.
fn by_expert(gpu: &Gpu, stream: &Stream, element: Element, half: Half, column_major: bool) {
    let (hidden, placement) = (656, Placement::new(2, 6).unwrap());
    let batch = |rank: u64, topk_idx: &[i32]| {
        let routing =
            Routing { topk: 2, topk_idx: topk_idx.to_vec(), topk_weights: vec![0.5; topk_idx.len()] };
        let x = oracle::hidden_states(rank, topk_idx.len() / 2, hidden);
        TokenBatch::of(element, &x, hidden, routing).unwrap()
    };
    let batches = [batch(0, &[3, 5, 0, 1, 5, -1]), batch(1, &[5, 5, 3, 2])];
    let received = &oracle::dispatch(&batches, &placement, None)[1];
    let rows = oracle::expert_major(received, 3, 4, None);
    let mut want = oracle::experts_by_expert(&rows, 1, &placement, half);
    // Padding is not written.
    for (row, _) in rows.expert_of_row.iter().enumerate().filter(|&(_, &expert)| expert < 0) {
        want[row * hidden..(row + 1) * hidden].fill(0xa5a5);
    }

    let words = rows.scales.len() / rows.len();
    let (scales, scale_row_stride, scale_word_stride) = if column_major {
        (by_column(&rows, words), 1, rows.len() as u32)
    } else {
        (rows.scales.clone(), words as u32, 1)
    };
    let [x, expert_of_row] = [gpu.upload(&rows.rows).unwrap(), gpu.upload(&rows.expert_of_row).unwrap()];
    let scales = gpu.upload(&scales).unwrap();
    let out = gpu.upload(&vec![0xa5a5u16; want.len()]).unwrap();
    let count = gpu.upload(&[rows.len() as u32]).unwrap();
    let args = ExpertsByExpertArgs {
        x: Elements {
            x: address(&x),
            scales: address(&scales),
            hidden: hidden as u32,
            format: workload::format(element).unwrap(),
            scale_row_stride,
            scale_word_stride,
        },
        expert_of_row: address(&expert_of_row),
        out: address(&out),
        rows: address(&count),
        output: workload::output(half),
        first_expert: 3,
    };
    // SAFETY: the arrays have the sizes that the contract asks for, and outlive the download.
    unsafe { gpu.launch::<ExpertsByExpert>(stream, GRID, &args).unwrap() };
    let got: Vec<u16> = gpu.download(stream, out.view(), want.len()).unwrap();
    assert_eq!(got, want, "{element:?} to {half:?}, scales by column: {column_major}");
}

/// The scales word by word: `[words, rows]`.
fn by_column(rows: &ExpertMajor, words: usize) -> Vec<u32> {
    (0..words).flat_map(|word| (0..rows.len()).map(move |row| rows.scales_of(row)[word])).collect()
}
