// Kernels that stand in for a model, and that measure the machine: device/src/workload/.
#include "internode.cuh"
#include "wire.cuh"

namespace workload {

using internode::Command;
using internode::Ring;
using internode::Target;

// What the elements of a row are.
enum Format : u32 { BF16, F16, E4M3, E4M3_UE8M0 };

// Rows to read.
struct Elements {
    Address x;
    Address scales;
    u32 hidden;
    Format format;
    u32 scale_row_stride;
    u32 scale_word_stride;

    // Elements 2 · `pair` and the next of a row, as f32.
    DEVICE convert::Pair load_pair(u32 row, u32 pair) const {
        u64 at = (u64)row * (hidden / 2) + pair;
        if (format == BF16) return convert::bf16x2_to_f32(mem::load_u32(x.offset(4 * at)));
        if (format == F16) return convert::f16x2_to_f32(mem::load_u32(x.offset(4 * at)));
        u32 word = mem::load_u32(x.offset(2 * (at & ~1ull)));
        u32 codes = (at & 1) == 0 ? word : word >> 16;
        float scale = this->scale(row, 2 * pair / SCALE_CHANNELS);
        return {convert::e4m3_to_f32((u8)codes) * scale, convert::e4m3_to_f32((u8)(codes >> 8)) * scale};
    }

    // What the codes of a group are multiplied by.
    DEVICE float scale(u32 row, u32 group) const {
        if (format == E4M3) return __uint_as_float(scale_word(row, group));
        return convert::ue8m0_to_f32((u8)(scale_word(row, group / 4) >> (8 * (group % 4))));
    }

    DEVICE u32 scale_word(u32 row, u32 word) const {
        u64 at = (u64)row * scale_row_stride + (u64)word * scale_word_stride;
        return mem::load_u32(scales.offset(4 * at));
    }
};

// Two neighbouring values as the two halves of a word: f16 if that is the format, else bf16.
DEVICE u32 pack(Format format, float low, float high) {
    return format == F16 ? convert::f32_to_f16x2(low, high) : convert::f32_to_bf16x2(low, high);
}

// Expert `e` makes x · (1 + (e mod 7) / 8) + ((e mod 5) - 2) / 16 of x.
DEVICE float apply(u32 expert, float x) {
    float factor = 1.0f + (float)(expert % 7) * 0.125f;
    float addend = ((float)(expert % 5) - 2.0f) * 0.0625f;
    return x * factor + addend;
}

struct ExpertsArgs {
    Elements x;
    Address topk_idx;
    Address topk_weights;
    Address out;
    Address rows;
    Format output;
    u32 topk;
    u32 first_expert;
};

DEVICE void experts(const ExpertsArgs &args) {
    u32 first = thread::block_index() * thread::warps() + thread::warp_index();
    u32 pairs = args.x.hidden / 2;
    u32 rows = mem::load_u32(args.rows);
    for (u32 row = first; row < rows; row += thread::grid_size() * thread::warps()) {
        for (u32 pair = thread::lane(); pair < pairs; pair += thread::WARP) {
            convert::Pair value = args.x.load_pair(row, pair);
            float low = 0, high = 0;
            for (u32 slot = 0; slot < args.topk; slot++) {
                u32 local = mem::load_u32(args.topk_idx.word(row * args.topk + slot));
                if (local == MAX_U32) continue;
                u32 expert = args.first_expert + local;
                float weight = __uint_as_float(mem::load_u32(args.topk_weights.word(row * args.topk + slot)));
                low += weight * apply(expert, value.low);
                high += weight * apply(expert, value.high);
            }
            u64 at = (u64)row * pairs + pair;
            mem::store_u32(args.out.offset(4 * at), pack(args.output, low, high));
        }
    }
}

struct ExpertsByExpertArgs {
    Elements x;
    Address expert_of_row;
    Address out;
    Address rows;
    Format output;
    u32 first_expert;
};

DEVICE void experts_by_expert(const ExpertsByExpertArgs &args) {
    u32 first = thread::block_index() * thread::warps() + thread::warp_index();
    u32 pairs = args.x.hidden / 2;
    u32 rows = mem::load_u32(args.rows);
    for (u32 row = first; row < rows; row += thread::grid_size() * thread::warps()) {
        u32 local = mem::load_u32(args.expert_of_row.word(row));
        if (local == MAX_U32) continue;
        u32 expert = args.first_expert + local;
        for (u32 pair = thread::lane(); pair < pairs; pair += thread::WARP) {
            convert::Pair value = args.x.load_pair(row, pair);
            u64 at = (u64)row * pairs + pair;
            u32 packed = pack(args.output, apply(expert, value.low), apply(expert, value.high));
            mem::store_u32(args.out.offset(4 * at), packed);
        }
    }
}

struct CommandsArgs {
    Ring ring;
    Address flag;
    Address elapsed;
    u64 timeout_ns;
    u32 to;
    u32 lanes;
    u32 bytes;
    u32 puts;
    u32 round_trips;
};

DEVICE void commands(const CommandsArgs &args) {
    u32 lane = thread::lane();
    u64 deadline_ns = clock_::now_ns() + args.timeout_ns;
    u64 piece = (u64)args.bytes * lane;
    Target to{args.to, lane % at_least_one(args.lanes)};
    for (u32 put = 0; put < args.puts; put++) {
        if (!args.ring.push(true, Command::put(to, 0, piece, piece, args.bytes), deadline_ns)) return;
    }
    if (thread::block_index() == 0 && thread::warp_index() == 0 && args.round_trips > 0) {
        u64 before = mem::load_acquire_sys_u64(args.flag);
        u64 started_ns = clock_::now_ns();
        for (u64 trip = 1; trip < (u64)args.round_trips + 1; trip++) {
            args.ring.push(lane == 0, Command::word({args.to, 0}, 0, before + trip), deadline_ns);
            u64 seen;
            // Partner: the proxy's fabric, by way of the word.
            if (!mem::wait_at_least_acquire_sys(args.flag, before + trip, deadline_ns, seen)) return;
        }
        if (lane == 0) mem::store_u64(args.elapsed, clock_::now_ns() - started_ns);
    }
}

struct DelayArgs {
    Address zero;
    u64 ns;
};

DEVICE void delay(const DelayArgs &args) {
    if (args.ns > 0 && block::is_first_thread()) {
        u64 seen;
        // It never gets there, so that the deadline ends it.
        mem::wait_at_least_acquire_sys(args.zero, 1, clock_::now_ns() + args.ns, seen);
    }
}

struct StreamArgs {
    Address from;
    u32 quads;
    Address sums;
};

DEVICE void stream(const StreamArgs &args) {
    u32 index = thread::block_index() * thread::block_size() + thread::index();
    u32 step = thread::grid_size() * thread::block_size();
    u32 sum = 0;
    for (u32 first = index; first < args.quads; first += step * 8) {
        Quad quads[8] = {};
#pragma unroll
        for (u32 at = 0; at < 8; at++) {
            u32 quad = first + step * at;
            if (quad < args.quads) quads[at] = mem::load_quad(args.from.offset(16 * (u64)quad));
        }
#pragma unroll
        for (u32 at = 0; at < 8; at++) {
            const u32 *words = quads[at].words;
            sum += words[0] ^ words[1] ^ words[2] ^ words[3];
        }
    }
    mem::store_u32(args.sums.word(index), sum);
}

struct ProbeArgs {
    Address out;
    Address scratch;
    Address numbers;
};

DEVICE void probe(const ProbeArgs &args) {
    constexpr u32 THREADS = 64, WORDS = 20;
    u32 index = thread::index(), lane = thread::lane();
    u32 words = shared::base();
    u32 next = 0;
    auto put = [&](u32 value) {
        mem::store_u32(args.out.word(index * WORDS + next), value);
        next++;
    };
    put(warp::shuffle(warp::ALL, 3 * index, (lane + 1) % thread::WARP));
    put((u32)(warp::shuffle_u64(warp::ALL, (u64)index << 33, lane / 2) >> 32));
    put(warp::ballot(warp::ALL, lane % 3 == 0));
    put(warp::match_any(warp::ALL, index / 5));
    put(warp::inclusive_sum(index));
    put(warp::sum(index));
    put(__float_as_uint(warp::max_f32(-(float)((lane + 7) % thread::WARP))));
    // Eight lanes on their own.
    u32 some = 0xff00;
    u32 elected = 0;
    if ((some >> lane & 1) != 0) elected = warp::elect(some) + warp::ballot(some, lane != 9);
    put(elected);

    // Every thread's word, read by its mirror image behind a numbered barrier.
    shared::store_u32(words + 4 * index, 7 * index);
    block::named_barrier(3, THREADS);
    put(shared::load_u32(words + 4 * (THREADS - 1 - index)));
    put(block::barrier_or(index == 40));

    mem::fetch_add_relaxed_gpu_u32(args.scratch, index);
    mem::fetch_add_acq_rel_sys_u32(args.scratch.word(1), 1);
    bool won = mem::compare_exchange_acq_rel_gpu_u32(args.scratch.word(2), 0, index + 1) == 0;
    block::barrier();
    u32 added = mem::load_relaxed_gpu_u32(args.scratch);
    put(added + 1000 * mem::load_acquire_gpu_u32(args.scratch.word(1)));
    bool winner = mem::load_acquire_gpu_u32(args.scratch.word(2)) == index + 1;
    put(won == winner);

    Address own = args.scratch.word(4 + 4 * index);
    mem::store_quad(own, {index, index + 1, index + 2, index + 3});
    mem::fence_acq_rel_gpu();
    Quad quad = mem::load_quad(own);
    mem::store_relaxed_sys_u64(own, (u64)quad.words[0] << 32 | quad.words[1]);
    mem::fence_acq_rel_sys();
    mem::store_release_sys_u64(own, mem::load_acquire_sys_u64(own));
    mem::store_release_gpu_u32(own.word(2), quad.words[2] * quad.words[3]);
    u32 low_word = (u32)mem::load_relaxed_sys_u64(own);
    u32 high_word = (u32)(mem::load_u64(own) >> 32);
    put(low_word + high_word + mem::load_u32(own.word(2)));

    float number = __uint_as_float(mem::load_u32(args.numbers.word(index)));
    u32 bf16 = convert::f32_to_bf16x2(number, -number);
    convert::Pair values = convert::bf16x2_to_f32(bf16);
    put(bf16);
    u32 codes = convert::f32_to_e4m3x2(number, values.high);
    put(codes | (__float_as_uint(values.low) >> 16) << 16);
    u64 earlier = clock_::now_ns();
    float sum = convert::e4m3_to_f32((u8)codes) + convert::e4m3_to_f32((u8)(codes >> 8));
    put(clock_::now_ns() >= earlier ? __float_as_uint(sum) : MAX_U32);
    u32 f16 = convert::f32_to_f16x2(number, -number);
    values = convert::f16x2_to_f32(f16);
    put(f16);
    put(__float_as_uint(values.low));
    put(__float_as_uint(values.high));
    // Codes 0 to 252 in steps of 4, and the last.
    put(__float_as_uint(convert::ue8m0_to_f32((u8)(index == THREADS - 1 ? 255 : 4 * index))));
}

struct CopyArgs {
    Address from;
    Address to;
    u32 pieces;
    u32 piece_bytes;
};

DEVICE void copy(const CopyArgs &args) {
    constexpr u32 STAGES = 2;
    if (thread::lane() != 0) return;
    u32 warp = thread::warp_index();
    u32 buffers = shared::base() + round_up(8 * thread::warps() * STAGES, 128);
    auto barrier = [&](u32 stage) { return shared::base() + 8 * (warp * STAGES + stage); };
    auto buffer = [&](u32 stage) { return buffers + (warp * STAGES + stage) * args.piece_bytes; };
    auto at = [&](u32 piece) { return (u64)piece * args.piece_bytes; };
    auto load = [&](u32 piece, u32 stage) {
        if (piece >= args.pieces) return;
        bulk::mbarrier_arrive_expect(barrier(stage), args.piece_bytes);
        bulk::load(buffer(stage), args.from.offset(at(piece)), args.piece_bytes, barrier(stage));
    };
    bulk::mbarrier_init(barrier(0), 1);
    bulk::mbarrier_init(barrier(1), 1);
    bulk::fence_proxy_async();
    u32 step = thread::grid_size() * thread::warps();
    u32 first = thread::block_index() * thread::warps() + warp;
    load(first, 0);
    u32 stage = 0, parity = 0;
    for (u32 piece = first; piece < args.pieces; piece += step) {
        bulk::wait_read();
        load(piece + step, 1 - stage);
        bulk::mbarrier_wait(barrier(stage), parity);
        bulk::store(args.to.offset(at(piece)), buffer(stage), args.piece_bytes);
        bulk::commit();
        parity ^= stage;
        stage = 1 - stage;
    }
    bulk::wait_written();
}

// Arguments of tokenrail_flag.
struct FlagArgs {
    Address own;
    Address next;
    Address elapsed;
    u64 before;
    u64 timeout_ns;
    u32 untimed;
    u32 rounds;
    u32 leads;
};

DEVICE void flag(const FlagArgs &args) {
    if (!block::is_first_thread()) return;
    u64 deadline_ns = clock_::now_ns() + args.timeout_ns, started_ns = 0, seen;
    for (u32 round = 1; round < args.untimed + args.rounds + 1; round++) {
        u64 value = args.before + round;
        if (!mem::wait_at_least_acquire_sys(args.own, value - args.leads, deadline_ns, seen)) return;
        if (round == args.untimed) started_ns = clock_::now_ns();
        if (round == args.untimed + args.rounds) mem::store_u64(args.elapsed, clock_::now_ns() - started_ns);
        mem::store_release_sys_u64(args.next, value);
    }
}

}  // namespace workload

KERNEL(tokenrail_experts, workload::ExpertsArgs, workload::experts(args))
KERNEL(tokenrail_experts_by_expert, workload::ExpertsByExpertArgs, workload::experts_by_expert(args))
KERNEL(tokenrail_commands, workload::CommandsArgs, workload::commands(args))
KERNEL(tokenrail_delay, workload::DelayArgs, workload::delay(args))
KERNEL(tokenrail_stream, workload::StreamArgs, workload::stream(args))
KERNEL(tokenrail_probe, workload::ProbeArgs, workload::probe(args))
KERNEL(tokenrail_copy, workload::CopyArgs, workload::copy(args))
KERNEL(tokenrail_flag, workload::FlagArgs, workload::flag(args))
