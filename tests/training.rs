//! A training step of a layer whose expert e multiplies by a(e): forward, and backward along the forward's handle.
//!
//! Forward, a token's y = Σ w_k · a(e_k) · x over its slots. Backward, with g = ∂L/∂y: the backward of combine is a
//! dispatch of g that follows the handle; the backward of dispatch is a combine, which brings ∂L/∂x = Σ w_k · a(e_k) · g
//! back, and beside it the gradient of each weight, ∂L/∂w_k = a(e_k) · ⟨x, g⟩.

use approx::assert_relative_eq;
use half::bf16;
use tokenrail::{Backend, Config, Exchange, Group, Input, Member, Output, Slots, Stream, oracle};

const RANKS: usize = 3;
const TOKENS: usize = 10;
const TOPK: usize = 2;
const HIDDEN: usize = 64;

/// Powers of two, so that bf16 holds every product of small whole numbers.
fn factor(expert: i32) -> f32 {
    [0.5, 1.0, 2.0][expert as usize % 3]
}

/// Small whole numbers.
fn rows(seed: u64) -> Vec<bf16> {
    let noise = oracle::hidden_states(seed, TOKENS, HIDDEN);
    noise.into_iter().map(|value| bf16::from_f32(value.to_f32().round().clamp(-3.0, 3.0))).collect()
}

fn ids(rank: usize) -> Vec<i32> {
    // Slot 1 of every third token is empty.
    let id = |at: usize| if at % 6 == 5 { -1 } else { ((7 * at + 3 * rank + at / 2) % 9) as i32 };
    (0..TOKENS * TOPK).map(id).collect()
}

fn weights(rank: usize) -> Vec<f32> {
    (0..TOKENS * TOPK).map(|at| [0.5, 1.0, 0.25][(at + rank) % 3]).collect()
}

/// What a rank's rows and slots are on the host.
struct Rows {
    x: Vec<bf16>,
    topk_idx: Vec<i32>,
    weights: Vec<f32>,
    count: usize,
}

fn download(exchange: &mut Exchange, stream: &Stream, received: &tokenrail::Received) -> Rows {
    let count = exchange.counts(stream, received).unwrap().rows as usize;
    let gpu = exchange.gpu();
    Rows {
        x: gpu.download(stream, received.x(), count * HIDDEN).unwrap(),
        topk_idx: gpu.download(stream, received.topk_idx(), count * TOPK).unwrap(),
        weights: gpu.download(stream, received.topk_weights(), count * TOPK).unwrap(),
        count,
    }
}

impl Rows {
    /// Σ w · a(e) over the slots that are here, times each row of `of`.
    fn experts(&self, first_expert: i32, of: &[bf16]) -> Vec<bf16> {
        (0..self.count * HIDDEN)
            .map(|at| {
                let slots = at / HIDDEN * TOPK..(at / HIDDEN + 1) * TOPK;
                let here = slots.filter(|&slot| self.topk_idx[slot] >= 0);
                let sum: f32 =
                    here.map(|slot| self.weights[slot] * factor(first_expert + self.topk_idx[slot])).sum();
                bf16::from_f32(sum * of[at].to_f32())
            })
            .collect()
    }

    /// a(e) · ⟨x, g⟩ for each slot that is here.
    fn weight_gradients(&self, first_expert: i32, g: &[bf16]) -> Vec<f32> {
        let slot = |slot: usize| {
            let row = slot / TOPK * HIDDEN..(slot / TOPK + 1) * HIDDEN;
            let dot: f32 = row.map(|at| self.x[at].to_f32() * g[at].to_f32()).sum();
            if self.topk_idx[slot] < 0 { 0.0 } else { factor(first_expert + self.topk_idx[slot]) * dot }
        };
        (0..self.count * TOPK).map(slot).collect()
    }
}

fn rank(member: Member) {
    let config = Config::new(9, TOPK as u32, HIDDEN as u32, TOKENS as u32);
    let mut exchange = Exchange::new(member, &config).unwrap();
    let rank = exchange.rank() as usize;
    let first_expert = exchange.first_expert() as i32;
    let gpu = exchange.gpu().clone();
    let stream = gpu.stream().unwrap();
    let (x, g) = (rows(rank as u64), rows(100 + rank as u64));
    let (topk_idx, topk_weights) = (ids(rank), weights(rank));
    let [on_gpu_x, on_gpu_g] = [&x, &g].map(|rows| gpu.upload(rows).unwrap());
    let (on_gpu_idx, on_gpu_weights) = (gpu.upload(&topk_idx).unwrap(), gpu.upload(&topk_weights).unwrap());
    let [y, grad_x] = [(); 2].map(|()| gpu.alloc(TOKENS * HIDDEN * 2).unwrap());
    let grad_weights = gpu.alloc(TOKENS * TOPK * 4).unwrap();

    let input = Input::new(&on_gpu_x, &on_gpu_idx, &on_gpu_weights, TOKENS as u32);
    let forward = exchange.dispatch(&stream, &input).unwrap();
    // What an engine keeps for the backward pass.
    let kept = download(&mut exchange, &stream, &forward);
    gpu.write(forward.outputs(), &kept.experts(first_expert, &kept.x)).unwrap();
    exchange.combine(&stream, &forward, &y).unwrap();

    let backward = exchange.dispatch(&stream, &Input::follow(&on_gpu_g, forward.handle())).unwrap();
    let arrived = download(&mut exchange, &stream, &backward);
    assert_eq!((arrived.count, &arrived.topk_idx), (kept.count, &kept.topk_idx), "the same rows");
    gpu.write(backward.outputs(), &kept.experts(first_expert, &arrived.x)).unwrap();
    gpu.write(backward.slot_outputs(), &kept.weight_gradients(first_expert, &arrived.x)).unwrap();
    let slots = Some(Slots { values: None, combined: grad_weights.view() });
    exchange.combine_with(&stream, &backward, &Output { slots, ..Output::new(&grad_x) }).unwrap();
    exchange.finish(&stream).unwrap();

    let y: Vec<bf16> = gpu.download(&stream, y.view(), TOKENS * HIDDEN).unwrap();
    let grad_x: Vec<bf16> = gpu.download(&stream, grad_x.view(), TOKENS * HIDDEN).unwrap();
    let grad_weights: Vec<f32> = gpu.download(&stream, grad_weights.view(), TOKENS * TOPK).unwrap();
    for at in 0..TOKENS * HIDDEN {
        let token = at / HIDDEN;
        let slots = (token * TOPK..(token + 1) * TOPK).filter(|&slot| topk_idx[slot] >= 0);
        let scale: f32 = slots.map(|slot| topk_weights[slot] * factor(topk_idx[slot])).sum();
        assert_relative_eq!(y[at].to_f32(), scale * x[at].to_f32(), max_relative = 0.01);
        assert_relative_eq!(grad_x[at].to_f32(), scale * g[at].to_f32(), max_relative = 0.01);
    }
    for (slot, &got) in grad_weights.iter().enumerate() {
        let row = slot / TOPK * HIDDEN..(slot / TOPK + 1) * HIDDEN;
        let dot: f32 = row.map(|at| x[at].to_f32() * g[at].to_f32()).sum();
        let want = if topk_idx[slot] < 0 { 0.0 } else { factor(topk_idx[slot]) * dot };
        assert_eq!(got, want, "gradient of weight {slot}");
    }
    exchange.all_gather((), "the end of the step", config.timeout).unwrap();
}

#[test]
fn forward_and_backward() {
    let members = Group::in_process(RANKS as u32, &Backend::emulator(5)).unwrap();
    std::thread::scope(|scope| members.into_iter().for_each(|member| _ = scope.spawn(|| rank(member))));
}
