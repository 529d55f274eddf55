//! A mixture-of-experts layer over four ranks, inside a Rust program: route, dispatch, experts, combine, check.
//!
//! `cargo run --release --example moe_layer` runs on the emulator;
//! `cargo run --release --features cuda --example moe_layer -- cuda` on the GPUs of this machine.

use std::thread;
use tokenrail::oracle::{self, Gate, Placement, Router, TokenBatch};
use tokenrail::{Backend, Config, Error, Exchange, Group, Half, Input, Member, workload};

const RANKS: usize = 4;
const TOKENS: usize = 32;
const HIDDEN: usize = 1024;
const GATE: Gate = Gate::DEEPSEEK_V3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend =
        if std::env::args().any(|arg| arg == "cuda") { Backend::cuda() } else { Backend::emulator(0) };

    // Every rank's tokens, and the experts that the gate chooses for them.
    let router = Router::new(GATE, HIDDEN, 7)?;
    let placement = Placement::new(RANKS, GATE.experts())?;
    let mut batches = Vec::new();
    for rank in 0..RANKS {
        let x = oracle::hidden_states(rank as u64, TOKENS, HIDDEN);
        batches.push(TokenBatch::bf16(&x, HIDDEN, router.route(&x)?)?.check(&placement)?);
    }

    // One thread a rank.
    let members = Group::in_process(RANKS as u32, &backend)?;
    let combined = thread::scope(|scope| {
        let ranks: Vec<_> =
            members.into_iter().zip(&batches).map(|pair| scope.spawn(|| layer(pair.0, pair.1))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect::<Result<Vec<_>, Error>>()
    })?;

    // The same on the CPU, bit for bit.
    let received = oracle::dispatch(&batches, &placement, None);
    let outputs: Vec<_> =
        received.iter().map(|received| oracle::experts(received, &placement, Half::Bf16)).collect();
    if combined != oracle::combine(&outputs, &batches, &placement, Half::Bf16, &[], None) {
        return Err("the layer's output differs from the CPU reference".into());
    }
    for rank in received {
        println!("rank {}: {} rows from {:?}", rank.rank, rank.tokens(), rank.tokens_per_source);
    }
    println!(
        "{} tokens came back with the sums of {} experts each, as on the CPU",
        RANKS * TOKENS,
        GATE.topk()
    );
    Ok(())
}

/// What a rank does in its layer: its combined rows, bf16 as bits.
fn layer(member: Member, batch: &TokenBatch) -> Result<Vec<u16>, Error> {
    let config = Config::new(GATE.experts() as u32, GATE.topk() as u32, HIDDEN as u32, TOKENS as u32);
    let mut exchange = Exchange::new(member, &config)?;
    let gpu = exchange.gpu().clone();
    let stream = gpu.stream()?;
    let x = gpu.upload(&batch.rows)?;
    let topk_idx = gpu.upload(&batch.topk_idx)?;
    let topk_weights = gpu.upload(&batch.topk_weights)?;
    let out = gpu.alloc(TOKENS * HIDDEN * 2)?;
    let input = Input::new(&x, &topk_idx, &topk_weights, TOKENS as u32);

    let received = exchange.dispatch(&stream, &input)?;
    // Your grouped GEMM goes here: rows in `received.x()`, results into `received.outputs()`.
    workload::experts(&exchange, &stream, &received)?;
    exchange.combine(&stream, &received, &out)?;
    exchange.finish(&stream)?;
    let combined = gpu.download(&stream, out.view(), TOKENS * HIDDEN)?;
    // No rank frees memory while another is still at work.
    exchange.all_gather((), "the end of the layer", config.timeout)?;
    Ok(combined)
}
